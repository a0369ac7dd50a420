// What each instruction set implements: kernels over one strip of rows, no memory management, no threads.
// The meaning of every operation is dca_fast/ops/reference.py; integers are exact in any order of summation,
// so all that has to agree is the one float multiply and rounding of an output.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace dca {

constexpr int kLanes = 16;       // outputs a kernel handles at once; parameters are padded to this
constexpr int kStrip = 96;       // rows whose operands stay in cache while the weights pass by
constexpr int kTableSize = 256;  // entries of an exponential table
constexpr int kMeanLimit = 1 << 20, kResidualLimit = 1 << 21, kValueLimit = 1 << 22;
constexpr int kMaxRow = 127;
constexpr int kSkipRow = 255;                   // of a symbol that is not coded
constexpr int kAqReach = 15, kAqChannels = 16;  // AQ_REACH, AQ_CHANNELS of dca_fast/config.py
constexpr int kTrellisStep = 160;  // of the grid of y's values, in 1/256 quantiser steps like means and latents

// The restoration filter: RINGS and RING_LIMIT of dca_fast/config.py. 2040^2 * kRingRun fits 32 bits.
constexpr int kRings = 3, kRingFeatures = 6 * kRings, kRingReach = 2, kRingLimit = 8, kRingRun = 512;

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// A weight matrix [o, k] packed for one instruction set: groups of columns, then k, four bytes per column and
// step. `step` is 4 (signed weights against operands offset to unsigned bytes) or 2 (pairs of int16; on AMX, which has
// its own layout, two bytes).
struct Matrix {
  const char* blocks;
  const int32_t* bias;  // where an accumulator starts; includes the compensation of the operand offset
  const float* m;
  int o, k, step;
};

// Where an output lies among the columns of a matrix. grouped: as the stores of the instruction set want it
// inside each group; gate: 16 of the first half, the same 16 of the second half, the next 16...
enum class Order { plain, grouped, gate };

// feature: int16 that becomes an 8-bit operand by m_in; operand: packed already
enum class Source { int8, int16, feature, operand };
enum class Epilogue { act, leaky, gate, add, feature, pixels, mean, row };

struct LinearTask {
  Matrix w;  // plain for mean and row, gate for gate, else grouped
  int o;     // outputs
  Source source;
  const void* x;          // rows of k elements; operands: rows of strip_stride(k) bytes, whole tiles of them
  const float* m_in;      // [k], padded and grouped; only for Source::feature
  int rows;               // <= kStrip
  const int64_t* x_site;  // row numbers in x, or null for 0, 1, 2...
  Epilogue epilogue;
  void* out;                // rows of o elements, or of strip_stride(o) bytes
  const int64_t* out_site;  // row numbers in out and residual, or null; not for act, leaky, gate and pixels
  bool operands;            // act, leaky, gate: out is packed for the next layer
  float g;                  // only for Epilogue::gate
  const int16_t* residual;  // only for Epilogue::add
  const int32_t* offset;    // [o], padded; only for Epilogue::row
  int skip;                 // only for Epilogue::row: rows below become kSkipRow
  char* scratch;            // kStrip * strip_stride(k, bits), and 64 bytes more
};

struct AttentionTask {
  const int8_t *q, *k, *v;  // first channel of the head
  int8_t* out;
  int64_t channels, out_channels;  // elements from one site to the next
  const int64_t *q_site, *k_site;  // site numbers, or null for 0, 1, 2...
  int rows, keys, depth;           // queries (<= kStrip), keys, channels of the head
  float m;
  const int32_t* bias;                 // [rows, keys] or null
  const uint8_t *q_region, *k_region;  // [rows], [keys] or null; only equal regions see each other
  const uint8_t* table;                // [kTableSize]
  bool wide;                           // 40-bit reciprocal and 64-bit sums: for more than 4096 keys
  char* scratch;                       // attention_bytes(rows, keys, depth)
};

// Attention over few tokens, keys and values packed once for all sites of an image.
constexpr int kFewTokens = 8, kFewHeads = 8, kFewDepth = 32;  // at most so many tokens and heads, of this depth

struct TokenTask {
  const char* packed;  // of pack_tokens
  int heads, tokens;
  float m;
  const uint8_t* table;
  int rows;
  const char* q;  // operands of heads * kFewDepth channels; 32 bytes behind the last row can be read
  char* out;      // likewise
};

// Rows y - 2 to y + 2 of a picture, each colour by itself; kRingReach pixels more on both sides.
struct RingRows {
  const int16_t* at[2 * kRingReach + 1][3];
};

struct Kernels {
  const char* name;
  int slot;   // 0 to 3, of one architecture the same for the same packed weights
  int group;  // columns of a group
  int zero;   // every byte of an operand that is zero
  bool (*supported)();
  bool (*start)();  // what has to be asked of the system before the first use, and whether it agreed; null: nothing
  int (*grouped)(int position);  // column inside a group with Order::grouped
  size_t (*matrix_bytes)(int o, int k, int bits);
  // Column i is w[start[i]...], none if start[i] < 0; both arrays padded to whole groups. `bias` may be null.
  Matrix (*pack_rows)(const void* w, int bits, const int64_t* start, int o, int k, const int32_t* bias, char* blocks,
                      int32_t* packed_bias);
  int64_t (*strip_stride)(int k, int bits);  // bytes of a row of operands
  void (*linear)(const LinearTask&);
  void (*operand)(const int16_t* x, const float* m, int64_t rows, int c, int bits, void* out);
  void (*pack8)(const int8_t* x, int k, char* out);    // one row of operands
  void (*unpack8)(const char* x, int k, int8_t* out);  // and back
  size_t (*depthwise_bytes)(int c);
  void (*pack_depthwise)(const int8_t* w, const int32_t* bias, int c, char* packed, int32_t* padded_bias);
  // One row of outputs from three rows of inputs, all operands.
  void (*depthwise)(const char* const rows[3], int width, int c, const char* w, const int32_t* bias, const float* m,
                    char* out);
  size_t (*attention_bytes)(int rows, int keys, int depth);
  void (*attention)(const AttentionTask&);
  size_t (*tokens_bytes)(int heads);  // null, like the next two, where the general attention has to do
  void (*pack_tokens)(const int8_t* k, const int8_t* v, int heads, int tokens, char* packed);
  void (*tokens)(const TokenTask&);
  void (*add_rows)(const int16_t* x, const int16_t* y, int64_t count, int16_t* out);
  void (*act_slope)(const int8_t* e, const int8_t* h, bool leaky, int64_t count, int8_t* out);
  void (*gate_slope)(const int8_t* e, const int8_t* uv, float g, const float* const m[2], int64_t rows, int half,
                     int8_t* out);  // m of either half, padded
  void (*add_slope)(const int16_t* slope, const int16_t* d, const int8_t* h, int64_t count, int16_t* out);
  // One image row; group(x) of the sites alternates between even and odd x. `finer`, `coarser`: [width] or null.
  void (*residuals)(const int16_t* y, const int32_t* mean, const float* const gain[2], const int group[2],
                    const float* finer, int width, int size, int32_t* out);
  void (*reconstruct)(const int16_t* q, const int32_t* mean, const float* const inv[2], const int group[2],
                      const float* coarser, int width, int size, int16_t* y_hat);
  // A row of a picture, each colour by itself.
  void (*colours)(const uint8_t* pixels, int64_t width, int16_t* const out[3]);
  // One row of a picture; w [3, 6 rings].
  void (*restore)(const RingRows& rows, int width, const int8_t* w, int rings, uint8_t* out);
  // The same, added to sums [kRingFeatures, kRingFeatures + 3], of which the part below the diagonal is left out.
  void (*restore_sums)(const RingRows& rows, int width, const uint8_t* image, int64_t* sums);
};

const Kernels& scalar_kernels();
const Kernels* wasm_kernels();  // null where the compiler or the architecture lacks it, like all below
const Kernels* neon_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512_tall_kernels();
const Kernels* amx_kernels();

}  // namespace dca
