// What each instruction set implements: kernels over one strip of rows, no memory management, no threads.
// The meaning of every operation is dca_fast/ops/reference.py; integers are exact in any order of summation,
// so all that has to agree is the one float multiply and rounding of an output.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dca {

constexpr int kLanes = 16;       // outputs a kernel handles at once; parameters are padded to this
constexpr int kStrip = 96;       // rows whose operands stay in cache while the weights pass by
constexpr int kTableSize = 256;  // entries of an exponential table
constexpr int kMeanLimit = 1 << 20;
constexpr int kSymbolLimit = 8191;
constexpr int kMaxRow = 127;
constexpr int kMeanBits = 8;  // means and latents are held in 1/256 of a quantiser step

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// A weight matrix [o, k] packed for one instruction set: groups of columns, then k, four bytes per column and
// step. `step` is 4 (signed weights against operands offset to unsigned bytes) or 2 (pairs of int16).
struct Matrix {
  const char* blocks;
  const int32_t* bias;  // where an accumulator starts; includes the compensation of the operand offset
  int o, k, step;
};

enum class Source { int8, int16, feature };  // feature: int16 that becomes an 8-bit operand by m_in
enum class Epilogue { act, leaky, add, feature, pixels, mean, row };

struct LinearTask {
  Matrix w;
  const float* m;  // [o], padded
  Source source;
  const void* x;        // rows of k elements
  const float* m_in;    // [k], padded; only for Source::feature
  int rows;             // <= kStrip
  const int64_t* site;  // row numbers in x and out, or null for 0, 1, 2...
  Epilogue epilogue;
  void* out;                // rows of o elements
  const int16_t* residual;  // only for Epilogue::add
  const int32_t* offset;    // [o], padded; only for Epilogue::row
  char* scratch;            // strip_bytes(k)
};

struct AttentionTask {
  const int8_t *q, *k, *v;  // first channel of the head
  int8_t* out;
  int64_t channels;                // elements from one site to the next
  const int64_t *q_site, *k_site;  // site numbers, or null for 0, 1, 2...
  int rows, keys, depth;           // queries (<= kStrip), keys, channels of the head
  float m;
  const int32_t* bias;                 // [rows, keys] or null
  const uint8_t *q_region, *k_region;  // [rows], [keys] or null; only equal regions see each other
  const uint8_t* table;                // [kTableSize]
  bool wide;                           // 40-bit reciprocal and 64-bit sums: for more than 4096 keys
  char* scratch;                       // attention_bytes(rows, keys, depth)
};

struct Kernels {
  const char* name;
  int slot;  // 0, 1 or 2
  bool (*supported)();
  size_t (*matrix_bytes)(int o, int k, int bits);
  // Element (i, j) is w[start[i] + j]. `bias` may be null.
  Matrix (*pack_rows)(const void* w, int bits, const int64_t* start, int o, int k, const int32_t* bias,
                      char* blocks, int32_t* padded_bias);
  size_t (*strip_bytes)(int k);
  void (*linear)(const LinearTask&);
  void (*operand)(const int16_t* x, const float* m, int64_t rows, int c, int bits, void* out);
  void (*gate)(const int8_t* x, int64_t rows, int h, float g, int8_t* out);  // x [rows, 2h]
  size_t (*depthwise_bytes)(int c);
  void (*pack_depthwise)(const int8_t* w, const int32_t* bias, int c, char* packed, int32_t* padded_bias);
  // One row of outputs from three rows of inputs; rows outside the map are rows of zeros.
  void (*depthwise)(const int8_t* const rows[3], int width, int c, const char* w, const int32_t* bias,
                    const float* m, int8_t* out);
  size_t (*attention_bytes)(int rows, int keys, int depth);
  void (*attention)(const AttentionTask&);
  // One image row; group(x) of the sites alternates between even and odd x.
  void (*add_rows)(const int16_t* x, const int16_t* y, int64_t count, int16_t* out);
  void (*quantize)(const int16_t* y, const int32_t* mean, const float* const gain[2], const int group[2],
                   int width, int size, int16_t* q);
  void (*reconstruct)(const int16_t* q, const int32_t* mean, const float* const inv[2], const int group[2],
                      int width, int size, int16_t* y_hat);
};

const Kernels& scalar_kernels();
const Kernels* avx2_kernels();  // null where the compiler or the architecture lacks it
const Kernels* avx512_kernels();

}  // namespace dca
