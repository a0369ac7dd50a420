// The kernels for AVX-512 with VNNI.
#include "cpu_kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include <cstring>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), \
                             apply_to = function)
#define UNROLL _Pragma("unroll")
#else
#pragma GCC push_options
#pragma GCC diagnostic ignored \
    "-Wmaybe-uninitialized"  // a false alarm inside the intrinsics headers of GCC 12
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define OWN_DEPTHWISE

namespace dca {
namespace {

constexpr int kTileRows = 12;
constexpr int kTileBlocks = 2;
constexpr bool kBytes = true;

using I16 = __m512i;
using F16 = __m512;

inline I16 set(int32_t x) { return _mm512_set1_epi32(x); }
inline I16 load(const int32_t* p) { return _mm512_loadu_si512(p); }
inline I16 load(const int16_t* p) {
  return _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline I16 load(const int8_t* p) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline F16 setf(float x) { return _mm512_set1_ps(x); }
inline F16 loadf(const float* p) { return _mm512_loadu_ps(p); }
inline void store(int32_t* p, I16 x) { _mm512_storeu_si512(p, x); }
inline void store(int16_t* p, I16 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(x));
}
inline void store(int8_t* p, I16 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
}
inline I16 add(I16 a, I16 b) { return _mm512_add_epi32(a, b); }
inline I16 sub(I16 a, I16 b) { return _mm512_sub_epi32(a, b); }
inline I16 mul(I16 a, I16 b) { return _mm512_mullo_epi32(a, b); }
inline I16 min(I16 a, I16 b) { return _mm512_min_epi32(a, b); }
inline I16 max(I16 a, I16 b) { return _mm512_max_epi32(a, b); }
template <int N>
inline I16 sra(I16 a) {
  return _mm512_srai_epi32(a, N);
}
inline F16 to_float(I16 a) { return _mm512_cvtepi32_ps(a); }
inline F16 mul(F16 a, F16 b) { return _mm512_mul_ps(a, b); }
inline F16 max(F16 a, F16 b) { return _mm512_max_ps(a, b); }
inline I16 round_clamp(F16 a, float lo, float hi) {
  const F16 bounded = _mm512_min_ps(_mm512_max_ps(a, _mm512_set1_ps(lo)), _mm512_set1_ps(hi));
  return _mm512_cvt_roundps_epi32(bounded, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline int32_t largest(I16 a) { return _mm512_reduce_max_epi32(a); }

template <int STEP>
inline I16 dot(I16 acc, I16 x, I16 w) {
  return STEP == 4 ? _mm512_dpbusd_epi32(acc, x, w) : _mm512_dpwssd_epi32(acc, x, w);
}

// 256 bytes are four registers of 32 words: two lookups of 64 words, chosen by the top bit, then the byte by
// the lowest.
inline void lookup(const uint8_t* table, const uint8_t* index, uint8_t* out, int64_t n) {
  I16 part[4];
  for (int i = 0; i < 4; ++i) part[i] = _mm512_loadu_si512(table + 64 * i);
  for (int64_t i = 0; i < n; i += 32) {  // n is a multiple of kGroup
    const I16 at = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(index + i)));
    const I16 word = _mm512_srli_epi16(at, 1);
    const I16 low = _mm512_permutex2var_epi16(part[0], word, part[1]);
    const I16 high = _mm512_permutex2var_epi16(part[2], word, part[3]);
    const __mmask32 upper = _mm512_test_epi16_mask(at, _mm512_set1_epi16(128));
    const I16 pair = _mm512_mask_mov_epi16(low, upper, high);
    const __mmask32 odd = _mm512_test_epi16_mask(at, _mm512_set1_epi16(1));
    const I16 value = _mm512_mask_srli_epi16(pair, odd, pair, 8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm512_cvtepi16_epi8(value));
  }
}

// Depthwise 3x3: 64 channels, the three rows of a column interleaved to the four bytes of one dot product.
// Unpacking bytes, then words, inside 128-bit lanes sends channel 16 L + 4 s + i to register s, element
// 4 L + i; the saturating packs at the end undo exactly that order.

constexpr int kWide = 64;

inline size_t depthwise_bytes(int c) { return static_cast<size_t>(round_up(c, kWide)) * 3 * 4; }

void pack_depthwise(const int8_t* w, const int32_t* bias, int c, char* packed, int32_t* padded_bias) {
  int8_t* out = reinterpret_cast<int8_t*>(packed);
  for (int base = 0; base < c; base += kWide)
    for (int dx = 0; dx < 3; ++dx)
      for (int s = 0; s < 4; ++s)
        for (int e = 0; e < kLanes; ++e)
          for (int dy = 0; dy < 4; ++dy) {
            const int channel = base + e / 4 * 16 + s * 4 + e % 4;
            *out++ = channel < c && dy < 3 ? w[(dy * 3 + dx) * c + channel] : int8_t{0};
          }
  for (int i = 0; i < c; ++i) {
    int32_t sum = 0;
    for (int tap = 0; tap < 9; ++tap) sum += w[tap * c + i];
    padded_bias[i] = static_cast<int32_t>(static_cast<uint32_t>(bias[i]) - 128u * static_cast<uint32_t>(sum));
  }
}

template <class T>
inline I16 load_permuted(const T* p, int s) {  // elements 16 L + 4 s + i
  const __m128i* q = reinterpret_cast<const __m128i*>(p + 4 * s);
  I16 v = _mm512_castsi128_si512(_mm_loadu_si128(q));
  v = _mm512_inserti32x4(v, _mm_loadu_si128(q + 4), 1);
  v = _mm512_inserti32x4(v, _mm_loadu_si128(q + 8), 2);
  return _mm512_inserti32x4(v, _mm_loadu_si128(q + 12), 3);
}

void depthwise_columns(const int8_t* const rows[3], int width, int c, int base, __mmask64 valid,
                       const char* w, const int32_t* bias, const float* m, int8_t* out) {
  const I16 offset = _mm512_set1_epi8(-128);
  I16 weight[3][4], start[4], before[4], now[4], column[4];
  F16 scale[4];
  for (int s = 0; s < 4; ++s) {
    for (int dx = 0; dx < 3; ++dx) weight[dx][s] = _mm512_loadu_si512(w + (dx * 4 + s) * 64);
    start[s] = load_permuted(bias + base, s);
    scale[s] = _mm512_castsi512_ps(load_permuted(m + base, s));
    before[s] = start[s];
    now[s] = dot<4>(start[s], offset, weight[0][s]);  // the column left of the map is zero
  }
  for (int x = 0; x <= width; ++x) {  // column x completes output x - 1
    const int64_t at = static_cast<int64_t>(x) * c + base;
    if (x < width) {
      const I16 a = _mm512_xor_si512(_mm512_maskz_loadu_epi8(valid, rows[0] + at), offset);
      const I16 b = _mm512_xor_si512(_mm512_maskz_loadu_epi8(valid, rows[1] + at), offset);
      const I16 d = _mm512_xor_si512(_mm512_maskz_loadu_epi8(valid, rows[2] + at), offset);
      const I16 ab_low = _mm512_unpacklo_epi8(a, b), ab_high = _mm512_unpackhi_epi8(a, b);
      const I16 d_low = _mm512_unpacklo_epi8(d, offset), d_high = _mm512_unpackhi_epi8(d, offset);
      column[0] = _mm512_unpacklo_epi16(ab_low, d_low);
      column[1] = _mm512_unpackhi_epi16(ab_low, d_low);
      column[2] = _mm512_unpacklo_epi16(ab_high, d_high);
      column[3] = _mm512_unpackhi_epi16(ab_high, d_high);
    } else {
      for (int s = 0; s < 4; ++s) column[s] = offset;
    }
    I16 done[4];
    UNROLL for (int s = 0; s < 4; ++s) {
      const I16 acc = dot<4>(before[s], column[s], weight[2][s]);
      done[s] = round_clamp(mul(to_float(acc), scale[s]), -127.0f, 127.0f);
      before[s] = dot<4>(now[s], column[s], weight[1][s]);
      now[s] = dot<4>(start[s], column[s], weight[0][s]);
    }
    if (x > 0) {
      const I16 packed =
          _mm512_packs_epi16(_mm512_packs_epi32(done[0], done[1]), _mm512_packs_epi32(done[2], done[3]));
      _mm512_mask_storeu_epi8(out + at - c, valid, packed);
    }
  }
}

void depthwise(const int8_t* const rows[3], int width, int c, const char* w, const int32_t* bias,
               const float* m, int8_t* out) {
  for (int base = 0; base < c; base += kWide, w += 3 * 4 * kWide) {
    const __mmask64 valid = c - base >= kWide ? ~0ull : (1ull << (c - base)) - 1;
    depthwise_columns(rows, width, c, base, valid, w, bias, m, out);
  }
}

#include "cpu_kernels_impl.h"

}  // namespace
}  // namespace dca

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

// What runs before the processor is known has to do without its instructions.
namespace dca {
namespace {

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

}  // namespace

const Kernels* avx512_kernels() {
  static const Kernels kernels = {"avx512", 2, KERNEL_FIELDS};
  return &kernels;
}

}  // namespace dca

#else

namespace dca {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace dca

#endif
