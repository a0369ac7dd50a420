// The kernels for NEON with its products of bytes: ARMv8.2 with "dotprod", as Apple's M1, Graviton 2 and later have it.
#include "cpu_kernels.h"

// Clang before 16 has these products only where the whole file may use them.
#if defined(__aarch64__) && defined(__GNUC__) && !defined(__AARCH64EB__) && \
    (!defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_DOTPROD))

#include <arm_neon.h>
#ifdef __linux__
#include <sys/auxv.h>
#endif

#include <cstring>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#define UNROLL _Pragma("unroll")
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define KEEP(x) asm("" : "+w"(x.v[0]), "+w"(x.v[1]), "+w"(x.v[2]), "+w"(x.v[3]))
#define OWN_TILE
#define OWN_DEPTHWISE

namespace dca {
namespace {

constexpr int kTileRows = 4;  // sums, a step of the weights and of the operands just fit the registers
constexpr int kTileBlocks = 1;
constexpr bool kBytes = true;
constexpr int kByteOffset = 0;

struct I16 {
  int32x4_t v[4];
};
struct F16 {
  float32x4_t v[4];
};

#define QUARTERS(type, expression)                          \
  type out;                                                 \
  UNROLL for (int i = 0; i < 4; ++i) out.v[i] = expression; \
  return out

inline I16 set(int32_t x) { QUARTERS(I16, vdupq_n_s32(x)); }
inline I16 load(const int32_t* p) { QUARTERS(I16, vld1q_s32(p + 4 * i)); }
inline I16 load(const int16_t* p) { QUARTERS(I16, vmovl_s16(vld1_s16(p + 4 * i))); }
inline I16 widened(int16x8_t low, int16x8_t high) {
  return {{vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)}};
}
inline I16 load(const int8_t* p) {
  const int8x16_t bytes = vld1q_s8(p);
  return widened(vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
}
inline F16 setf(float x) { QUARTERS(F16, vdupq_n_f32(x)); }
inline F16 loadf(const float* p) { QUARTERS(F16, vld1q_f32(p + 4 * i)); }
inline void store(int32_t* p, I16 x) { UNROLL for (int i = 0; i < 4; ++i) vst1q_s32(p + 4 * i, x.v[i]); }
inline int16x8_t words(int32x4_t low, int32x4_t high) { return vmovn_high_s32(vmovn_s32(low), high); }
inline void store(int16_t* p, I16 x) {
  vst1q_s16(p, words(x.v[0], x.v[1]));
  vst1q_s16(p + 8, words(x.v[2], x.v[3]));
}
inline void store(int8_t* p, I16 x) {
  vst1q_s8(p, vmovn_high_s16(vmovn_s16(words(x.v[0], x.v[1])), words(x.v[2], x.v[3])));
}
inline I16 add(I16 a, I16 b) { QUARTERS(I16, vaddq_s32(a.v[i], b.v[i])); }
inline I16 sub(I16 a, I16 b) { QUARTERS(I16, vsubq_s32(a.v[i], b.v[i])); }
inline I16 mul(I16 a, I16 b) { QUARTERS(I16, vmulq_s32(a.v[i], b.v[i])); }
inline I16 min(I16 a, I16 b) { QUARTERS(I16, vminq_s32(a.v[i], b.v[i])); }
inline I16 max(I16 a, I16 b) { QUARTERS(I16, vmaxq_s32(a.v[i], b.v[i])); }
inline I16 bit_and(I16 a, I16 b) { QUARTERS(I16, vandq_s32(a.v[i], b.v[i])); }
inline I16 bit_or(I16 a, I16 b) { QUARTERS(I16, vorrq_s32(a.v[i], b.v[i])); }
template <int N>
inline I16 sra(I16 a) {
  QUARTERS(I16, vshrq_n_s32(a.v[i], N));
}
inline F16 to_float(I16 a) { QUARTERS(F16, vcvtq_f32_s32(a.v[i])); }
inline F16 mul(F16 a, F16 b) { QUARTERS(F16, vmulq_f32(a.v[i], b.v[i])); }
inline F16 max(F16 a, F16 b) { QUARTERS(F16, vmaxq_f32(a.v[i], b.v[i])); }
inline I16 round_clamp(F16 a, float lo, float hi) {
  const float32x4_t low = vdupq_n_f32(lo), high = vdupq_n_f32(hi);
  QUARTERS(I16, vcvtnq_s32_f32(vminq_f32(vmaxq_f32(a.v[i], low), high)));
}
inline int32_t largest(I16 a) { return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.v[0], a.v[1]), vmaxq_s32(a.v[2], a.v[3]))); }

template <int STEP>
inline I16 dot(I16 acc, I16 x, I16 w) {
  if (STEP == 4) {
    QUARTERS(I16, vdotq_s32(acc.v[i], vreinterpretq_s8_s32(x.v[i]), vreinterpretq_s8_s32(w.v[i])));
  }
  UNROLL for (int i = 0; i < 4; ++i) {
    const int16x8_t a = vreinterpretq_s16_s32(x.v[i]), b = vreinterpretq_s16_s32(w.v[i]);
    const int32x4_t low = vmull_s16(vget_low_s16(a), vget_low_s16(b)), high = vmull_high_s16(a, b);
    acc.v[i] = vaddq_s32(acc.v[i], vpaddq_s32(low, high));
  }
  return acc;
}

// 256 bytes are four lookups of 64; an index beyond the 64 leaves what is there.
inline void lookup(const uint8_t* table, const uint8_t* index, uint8_t* out, int64_t n) {
  uint8x16x4_t part[4];
  for (int i = 0; i < 4; ++i) part[i] = vld1q_u8_x4(table + 64 * i);
  for (int64_t i = 0; i < n; i += kLanes) {  // n is a multiple of kGroup
    const uint8x16_t at = vld1q_u8(index + i);
    uint8x16_t value = vqtbl4q_u8(part[0], at);
    UNROLL for (int j = 1; j < 4; ++j) {
      value = vqtbx4q_u8(value, part[j], vsubq_u8(at, vdupq_n_u8(static_cast<uint8_t>(64 * j))));
    }
    vst1q_u8(out + i, value);
  }
}

#include "cpu_kernels_impl.h"

// The products of one word of every row, four bytes or two int16, which lie in lane kWord of x.
template <int STEP, int kWord>
INLINE void add_products(Tile& acc, const int32x4_t* x, const char* w) {
  if (STEP == 4) {
    UNROLL for (int j = 0; j < 4; ++j) {
      const int8x16_t b = vld1q_s8(reinterpret_cast<const int8_t*>(w) + 16 * j);
      UNROLL for (int i = 0; i < kTileRows; ++i) {
        int32x4_t& sum = acc[i][0].v[j];
        sum = vdotq_laneq_s32(sum, b, vreinterpretq_s8_s32(x[i]), kWord);
      }
    }
    return;
  }
  const int16_t* pairs = reinterpret_cast<const int16_t*>(w);
  UNROLL for (int j = 0; j < 4; j += 2) {  // eight columns: their first and their second factors
    const int16x8_t p = vld1q_s16(pairs + 8 * j), q = vld1q_s16(pairs + 8 * j + 8);
    const int16x8_t first = vuzp1q_s16(p, q), second = vuzp2q_s16(p, q);
    UNROLL for (int i = 0; i < kTileRows; ++i) {
      const int16x8_t a = vreinterpretq_s16_s32(x[i]);
      int32x4_t &low = acc[i][0].v[j], &high = acc[i][0].v[j + 1];
      low = vmlal_laneq_s16(low, vget_low_s16(first), a, 2 * kWord);
      high = vmlal_high_laneq_s16(high, first, a, 2 * kWord);
      low = vmlal_laneq_s16(low, vget_low_s16(second), a, 2 * kWord + 1);
      high = vmlal_high_laneq_s16(high, second, a, 2 * kWord + 1);
    }
  }
}

template <int STEP, class E>
SEPARATE void tile(const char* a, int64_t stride, const char* w, int words, const int32_t* bias, int row, int col,
                   const E& epilogue) {
  constexpr int kBytesOfWord = kGroup * 4;
  Tile acc;
  UNROLL for (int i = 0; i < kTileRows; ++i) acc[i][0] = load(bias);
  int32x4_t x[kTileRows];
  int word = 0;
  for (; word + 4 <= words; word += 4, w += 4 * kBytesOfWord) {
    UNROLL for (int i = 0; i < kTileRows; ++i) {
      x[i] = vreinterpretq_s32_s8(vld1q_s8(reinterpret_cast<const int8_t*>(a + i * stride) + 4 * word));
    }
    add_products<STEP, 0>(acc, x, w);
    add_products<STEP, 1>(acc, x, w + kBytesOfWord);
    add_products<STEP, 2>(acc, x, w + 2 * kBytesOfWord);
    add_products<STEP, 3>(acc, x, w + 3 * kBytesOfWord);
  }
  for (; word < words; ++word, w += kBytesOfWord) {
    UNROLL for (int i = 0; i < kTileRows; ++i) {
      int32_t operand;
      std::memcpy(&operand, a + i * stride + 4 * word, 4);
      x[i] = vdupq_n_s32(operand);
    }
    add_products<STEP, 0>(acc, x, w);
  }
  UNROLL for (int i = 0; i < kTileRows; ++i) { KEEP(acc[i][0]); }
  epilogue(row, col, acc);
}

// Depthwise 3x3: 16 channels at a time, along the row. Two products of operands within +-127 and weights fit 16 bits.

size_t depthwise_bytes(int c) { return static_cast<size_t>(9 * round_up(c, kLanes)); }

void pack_depthwise(const int8_t* w, const int32_t* bias, int c, char* packed, int32_t* padded_bias) {
  for (int tap = 0; tap < 9; ++tap)
    for (int i = 0; i < round_up(c, kLanes); ++i) *packed++ = static_cast<char>(i < c ? w[tap * c + i] : 0);
  for (int i = 0; i < c; ++i) padded_bias[i] = bias[i];
}

void depthwise(const char* const rows[3], int width, int c, const char* w, const int32_t* bias, const float* m,
               char* out) {
  const int64_t tap = round_up(c, kLanes), pitch = strip_stride(c, 8);
  const auto bytes = [](const char* p) { return vld1q_s8(reinterpret_cast<const int8_t*>(p)); };
  for (int i = 0; i < c && width > 0; i += kLanes) {
    int8x16_t weight[9], seen[9];  // columns of three: left of the site, at it, right of it
    UNROLL for (int t = 0; t < 9; ++t) weight[t] = bytes(w + (t % 3 * 3 + t / 3) * tap + i);
    UNROLL for (int t = 0; t < 3; ++t) {
      seen[t] = vdupq_n_s8(0);
      seen[3 + t] = bytes(rows[t] + i);
    }
    const I16 start = load(bias + i);
    const F16 scale = loadf(m + i);
    for (int x = 0; x < width; ++x) {
      UNROLL for (int t = 0; t < 3; ++t) {
        seen[6 + t] = x + 1 < width ? bytes(rows[t] + (x + 1) * pitch + i) : vdupq_n_s8(0);
      }
      I16 acc = start;
      UNROLL for (int t = 0; t < 9; t += 2) {
        int16x8_t low = vmull_s8(vget_low_s8(seen[t]), vget_low_s8(weight[t]));
        int16x8_t high = vmull_high_s8(seen[t], weight[t]);
        if (t < 8) {
          low = vmlal_s8(low, vget_low_s8(seen[t + 1]), vget_low_s8(weight[t + 1]));
          high = vmlal_high_s8(high, seen[t + 1], weight[t + 1]);
        }
        acc = add(acc, widened(low, high));
      }
      store(reinterpret_cast<int8_t*>(out + x * pitch + i), requantise(acc, scale, 127));
      UNROLL for (int t = 0; t < 6; ++t) seen[t] = seen[t + 3];
    }
  }
}

}  // namespace
}  // namespace dca

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace dca {
namespace {

bool supported() {
#if defined(__linux__)
  constexpr unsigned long kDotProducts = 1ul << 20;  // HWCAP_ASIMDDP
  return getauxval(AT_HWCAP) & kDotProducts;
#elif defined(__APPLE__)
  return true;  // since the first of them
#else
  return false;
#endif
}

}  // namespace

const Kernels* neon_kernels() {
  static const Kernels kernels = {"neon", 1, KERNEL_FIELDS};
  return &kernels;
}

}  // namespace dca

#else

namespace dca {
const Kernels* neon_kernels() { return nullptr; }
}  // namespace dca

#endif
