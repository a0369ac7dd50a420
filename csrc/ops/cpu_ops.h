// The operations over whole tensors: split into strips, spread over threads. Arguments are already checked.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "cpu_kernels.h"
#include "cpu_pool.h"

namespace dca {

const Kernels& kernels();                   // those in use
std::vector<const Kernels*> all_kernels();  // those this machine can run, slowest first
const Kernels& fastest_kernels();           // that start
bool use_kernels(const Kernels& choice);    // false: the system does not let them

std::vector<float> padded(const float* values, int64_t count);

// A linear layer; packed for an instruction set and an order of columns the first time they are needed.
class PackedLinear {
 public:
  PackedLinear(const void* w, int bits, const int32_t* bias, const float* m, int o, int k);
  const Matrix& matrix(Order order = Order::grouped) const;
  const int o, k, bits;

 private:
  struct Slot {
    Once once;
    Buffer blocks;
    std::vector<int32_t> bias;
    std::vector<float> m;
    Matrix matrix;
  };
  void pack(Order order, Slot& slot) const;
  std::vector<char> w_;
  std::vector<int32_t> bias_;
  std::vector<float> m_;
  mutable std::array<std::array<Slot, 3>, 4> slots_;
};

class PackedDepthwise {
 public:
  PackedDepthwise(const int8_t* w, const int32_t* bias, const float* m, int c);
  void row(const char* const rows[3], int width, char* out) const;  // operands
  const int c;

 private:
  struct Slot {
    Once once;
    Buffer w;
    std::vector<int32_t> bias;
  };
  std::vector<int8_t> w_;
  std::vector<int32_t> bias_;
  std::vector<float> m_;
  mutable std::array<Slot, 4> slots_;
};

struct PackedHead {  // per channel group
  // w [4, 2 size, c], bias [4, 2 size]: means, then rows; m_mean, m_row and offset [4, size].
  PackedHead(const int8_t* w, const int32_t* bias, const float* m_mean, const float* m_row, const int32_t* offset,
             int size, int c);
  std::array<std::unique_ptr<PackedLinear>, 4> mean, row;
  std::array<std::vector<int32_t>, 4> offset;
  const int c, size;
};

struct PackedDecoded {  // for one step, by site parity: the columns of the groups decoded before it
  PackedDecoded(const int16_t* w, const int32_t* bias, const float* m, int o, int size, int step);  // w [o, 4 size]
  std::array<std::unique_ptr<PackedLinear>, 4> linear;
  const int size, step;
};

int quadtree_group(int parity, int step);  // the channel group of these sites in this step

struct Map {  // [n, h, w, c]
  int64_t n, h, w;
  int c;
};

struct Attention {
  int heads, window, shift;  // the last two only for windows
  float m;
  const int32_t* bias;  // likewise
  const uint8_t* table;
};

struct GatedFfn {
  const float* m_in;
  const PackedLinear& gate;
  float g;
  const PackedLinear& project;
};

void operand(const int16_t* x, const float* m, int64_t rows, int c, int bits, void* out);
void linear(const void* x, int64_t rows, const PackedLinear& p, Epilogue epilogue, const int16_t* residual, void* out);
void linear_gate(const int8_t* x, int64_t rows, const PackedLinear& p, float g, int8_t* out);
void depthwise3x3(const int8_t* x, const Map& map, const PackedDepthwise& p, int8_t* out);
void window_attention(const int8_t* q, const int8_t* k, const int8_t* v, const Map& map, const Attention& attention,
                      int8_t* out);
void token_attention(const int8_t* q, const int8_t* k, const int8_t* v, int64_t n, int64_t queries, int64_t keys, int c,
                     int heads, float m, const uint8_t* table, int8_t* out);
void decoded_linear(const int16_t* y_hat, const Map& map, const float* m, const PackedDecoded& p,
                    const int16_t* residual, int16_t* out);
void head_params(const int8_t* t, const Map& map, const PackedHead& p, int step, int skip, int64_t valid_h,
                 int64_t valid_w, int32_t* mean, uint8_t* row);
void quadtree_gather(const void* x, const Map& map, int element, int step, void* out);
void add(const int16_t* x, const int16_t* y, int64_t count, int16_t* out);
void act_slope(const int8_t* e, const int8_t* h, bool leaky, int64_t count, int8_t* out);
void gate_slope(const int8_t* e, const int8_t* uv, float g, const float* m, int64_t rows, int half, int8_t* out);
void add_slope(const int16_t* slope, const int16_t* d, const int8_t* h, int64_t count, int16_t* out);
// The sites (top + i step, left + j step) from those step / 2 away: their corners if top = left, else their sides.
void neighbour_mean(const int16_t* z, const Map& map, const float* m, int top, int left, int step, int16_t* out);
// row and offset of groups [map.c]
void coarseness(const uint8_t* row, const int32_t* offset, const Map& map, int skip, int strength, int8_t* out);
void coarser_rows(const uint8_t* row, const int8_t* coarse, int64_t sites, int size, int skip, uint8_t* out);
// finer, coarser: of every site, or null
void residuals(const int16_t* y, const int32_t* mean, const float* gain, const float* finer, const Map& map, int step,
               int32_t* out);
void reconstruct(const int16_t* q, const int32_t* mean, const float* inv, const float* coarser, const Map& map,
                 int step, int16_t* y_hat);
void patches_from_image(const uint8_t* image, const Map& map, int size, int16_t* out);
// Pictures are [height, width, 3]; w [3, 6 rings]; sums [kRingFeatures, kRingFeatures + 3].
void restore(const uint8_t* picture, int64_t height, int64_t width, const int8_t* w, int rings, uint8_t* out);
void restore_sums(const uint8_t* picture, const uint8_t* image, int64_t height, int64_t width, int64_t stride,
                  int64_t* sums);
// Moves blocks of s x s sites into channels or back; `map` is the larger map, elements have `element` bytes.
void space_to_depth(const void* x, const Map& map, int s, int element, void* out);
void depth_to_space(const void* x, const Map& map, int s, int element, void* out);
// With `ffn` that too, row by row, while what it reads is in the cache.
void depth_block(const int16_t* x, const Map& map, const float* m_in, const PackedLinear& expand,
                 const PackedDepthwise& depthwise, const PackedLinear& project, const GatedFfn* ffn, int16_t* out);
void gated_ffn(const int16_t* x, int64_t rows, const GatedFfn& ffn, int16_t* out);

void window_block(const int16_t* x, const Map& map, const float* m_in, const PackedLinear& qkv,
                  const Attention& attention, const PackedLinear& project, int16_t* out);
void token_block(const int16_t* x, const Map& map, const int8_t* k, const int8_t* v, int tokens, const float* m_in,
                 const PackedLinear& query, const Attention& attention, const PackedLinear& project, int16_t* out);

}  // namespace dca
