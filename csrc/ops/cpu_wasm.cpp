// The kernels for WebAssembly with 128-bit vectors, as all browsers have them.
#include "cpu_kernels.h"

#ifdef __wasm_simd128__

#include <wasm_simd128.h>

#include <cstring>

#define UNROLL _Pragma("unroll")
#define OWN_DEPTHWISE

namespace dca {
namespace {

constexpr int kTileRows = 2;  // sums and a step of the weights fit the sixteen registers of x86
constexpr int kTileBlocks = 1;
constexpr bool kBytes = false;
constexpr int kByteOffset = 0;

struct I16 {
  v128_t v[4];
};
struct F16 {
  v128_t v[4];
};

#define QUARTERS(type, expression)                          \
  type out;                                                 \
  UNROLL for (int i = 0; i < 4; ++i) out.v[i] = expression; \
  return out

inline I16 set(int32_t x) { QUARTERS(I16, wasm_i32x4_splat(x)); }
inline I16 load(const int32_t* p) { QUARTERS(I16, wasm_v128_load(p + 4 * i)); }
inline I16 load(const int16_t* p) { QUARTERS(I16, wasm_i32x4_load16x4(p + 4 * i)); }
inline I16 widened(v128_t low, v128_t high) {
  return {{wasm_i32x4_extend_low_i16x8(low), wasm_i32x4_extend_high_i16x8(low), wasm_i32x4_extend_low_i16x8(high),
           wasm_i32x4_extend_high_i16x8(high)}};
}
inline I16 load(const int8_t* p) { return widened(wasm_i16x8_load8x8(p), wasm_i16x8_load8x8(p + 8)); }
inline F16 setf(float x) { QUARTERS(F16, wasm_f32x4_splat(x)); }
inline F16 loadf(const float* p) { QUARTERS(F16, wasm_v128_load(p + 4 * i)); }
inline void store(int32_t* p, I16 x) { UNROLL for (int i = 0; i < 4; ++i) wasm_v128_store(p + 4 * i, x.v[i]); }
inline void store(int16_t* p, I16 x) {  // values in the range of int16
  wasm_v128_store(p, wasm_i16x8_narrow_i32x4(x.v[0], x.v[1]));
  wasm_v128_store(p + 8, wasm_i16x8_narrow_i32x4(x.v[2], x.v[3]));
}
inline void store(int8_t* p, I16 x) {  // the low byte of values in -128..255
  const v128_t low = wasm_i16x8_splat(255);
  const v128_t a = wasm_v128_and(wasm_i16x8_narrow_i32x4(x.v[0], x.v[1]), low);
  const v128_t b = wasm_v128_and(wasm_i16x8_narrow_i32x4(x.v[2], x.v[3]), low);
  wasm_v128_store(p, wasm_u8x16_narrow_i16x8(a, b));
}
inline I16 add(I16 a, I16 b) { QUARTERS(I16, wasm_i32x4_add(a.v[i], b.v[i])); }
inline I16 sub(I16 a, I16 b) { QUARTERS(I16, wasm_i32x4_sub(a.v[i], b.v[i])); }
inline I16 mul(I16 a, I16 b) { QUARTERS(I16, wasm_i32x4_mul(a.v[i], b.v[i])); }
inline I16 min(I16 a, I16 b) { QUARTERS(I16, wasm_i32x4_min(a.v[i], b.v[i])); }
inline I16 max(I16 a, I16 b) { QUARTERS(I16, wasm_i32x4_max(a.v[i], b.v[i])); }
inline I16 bit_and(I16 a, I16 b) { QUARTERS(I16, wasm_v128_and(a.v[i], b.v[i])); }
inline I16 bit_or(I16 a, I16 b) { QUARTERS(I16, wasm_v128_or(a.v[i], b.v[i])); }
template <int N>
inline I16 sra(I16 a) {
  QUARTERS(I16, wasm_i32x4_shr(a.v[i], N));
}
inline F16 to_float(I16 a) { QUARTERS(F16, wasm_f32x4_convert_i32x4(a.v[i])); }
inline F16 mul(F16 a, F16 b) { QUARTERS(F16, wasm_f32x4_mul(a.v[i], b.v[i])); }
inline F16 max(F16 a, F16 b) { QUARTERS(F16, wasm_f32x4_pmax(a.v[i], b.v[i])); }

// Adding 1.5 * 2^23 leaves no fraction bits, so the addition itself rounds half to even, and what it adds to the bits
// of the float is the integer; |limit| <= 2^22. Conversions of floats to integers are slow on x86.
inline I16 round_clamp(F16 a, float lo, float hi) {
  constexpr float kMagic = 12582912.0f;
  constexpr int32_t kMagicBits = 0x4b400000;
  const v128_t low = wasm_f32x4_splat(lo), high = wasm_f32x4_splat(hi);
  QUARTERS(I16,
           wasm_i32x4_sub(wasm_f32x4_add(wasm_f32x4_pmin(wasm_f32x4_pmax(a.v[i], low), high), wasm_f32x4_splat(kMagic)),
                          wasm_i32x4_splat(kMagicBits)));
}

inline int32_t largest(I16 a) {
  const v128_t best = wasm_i32x4_max(wasm_i32x4_max(a.v[0], a.v[1]), wasm_i32x4_max(a.v[2], a.v[3]));
  int32_t lanes[4];
  wasm_v128_store(lanes, best);
  for (int i = 1; i < 4; ++i) lanes[0] = lanes[0] > lanes[i] ? lanes[0] : lanes[i];
  return lanes[0];
}

template <int STEP>
inline I16 dot(I16 acc, I16 x, I16 w) {
  static_assert(STEP == 2, "pairs of int16 only");
  QUARTERS(I16, wasm_i32x4_add(acc.v[i], wasm_i32x4_dot_i16x8(x.v[i], w.v[i])));
}

inline void lookup(const uint8_t* table, const uint8_t* index, uint8_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = table[index[i]];
}

bool supported() { return true; }

#include "cpu_kernels_impl.h"

// Depthwise 3x3: 8 channels at a time, along the row. Two products of operands within +-127 and weights fit 16 bits.

size_t depthwise_bytes(int c) { return static_cast<size_t>(9 * round_up(c, kLanes)) * sizeof(int16_t); }

void pack_depthwise(const int8_t* w, const int32_t* bias, int c, char* packed, int32_t* padded_bias) {
  int16_t* out = reinterpret_cast<int16_t*>(packed);
  for (int tap = 0; tap < 9; ++tap)
    for (int i = 0; i < round_up(c, kLanes); ++i) *out++ = i < c ? w[tap * c + i] : int16_t{0};
  for (int i = 0; i < c; ++i) padded_bias[i] = bias[i];
}

void depthwise(const char* const rows[3], int width, int c, const char* w, const int32_t* bias, const float* m,
               char* out) {
  const int16_t* weights = reinterpret_cast<const int16_t*>(w);
  const int64_t tap = round_up(c, kLanes), pitch = strip_stride(c, 8);
  for (int i = 0; i < c; i += kLanes) {
    const I16 start = load(bias + i);
    const F16 scale = loadf(m + i);
    for (int x = 0; x < width; ++x) {
      v128_t products[9][2];  // of neighbours by columns; those beyond the row are 0
      UNROLL for (int t = 0; t < 9; ++t) {
        const int dx = t / 3 - 1, dy = t % 3;
        const bool there = x + dx >= 0 && x + dx < width;
        const char* from = rows[dy] + (there ? x + dx : x) * pitch + 2 * i;
        const int16_t* weight = weights + (dy * 3 + dx + 1) * tap + i;
        UNROLL for (int h = 0; h < 2; ++h) {
          products[t][h] = there ? wasm_i16x8_mul(wasm_v128_load(from + 16 * h), wasm_v128_load(weight + 8 * h))
                                 : wasm_i16x8_splat(0);
        }
      }
      I16 acc = start;
      UNROLL for (int t = 0; t < 9; t += 2) {
        v128_t sum[2];
        UNROLL for (int h = 0; h < 2; ++h) {
          sum[h] = t < 8 ? wasm_i16x8_add(products[t][h], products[t + 1][h]) : products[t][h];
        }
        acc = add(acc, widened(sum[0], sum[1]));
      }
      store(reinterpret_cast<int16_t*>(out + x * pitch) + i, requantise(acc, scale, 127));
    }
  }
}

}  // namespace

const Kernels* wasm_kernels() {
  static const Kernels kernels = {"wasm", 1, KERNEL_FIELDS};
  return &kernels;
}

}  // namespace dca

#else

namespace dca {
const Kernels* wasm_kernels() { return nullptr; }
}  // namespace dca

#endif
