// The kernels for AVX2.
#include "cpu_kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include <cstring>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#define UNROLL _Pragma("unroll")
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#define UNROLL _Pragma("GCC unroll 16")
#endif

namespace dca {
namespace {

constexpr int kTileRows = 6;
constexpr int kTileBlocks = 1;
constexpr bool kBytes = false;  // vpmaddubsw saturates, so bytes are widened to pairs of int16
constexpr int kByteOffset = 0;

struct I16 {
  __m256i a, b;
};
struct F16 {
  __m256 a, b;
};

inline const __m256i* ymm(const void* p) { return static_cast<const __m256i*>(p); }
inline const __m128i* xmm(const void* p) { return static_cast<const __m128i*>(p); }

inline I16 set(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I16 load(const int32_t* p) { return {_mm256_loadu_si256(ymm(p)), _mm256_loadu_si256(ymm(p + 8))}; }
inline I16 load(const int16_t* p) {
  return {_mm256_cvtepi16_epi32(_mm_loadu_si128(xmm(p))), _mm256_cvtepi16_epi32(_mm_loadu_si128(xmm(p + 8)))};
}
inline I16 load(const int8_t* p) {
  const __m128i v = _mm_loadu_si128(xmm(p));
  return {_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(v, v))};
}
inline F16 setf(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F16 loadf(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(int32_t* p, I16 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), x.b);
}
inline __m256i to_words(I16 x) {  // values in the range of int16
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
}
inline void store(int16_t* p, I16 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_words(x)); }
inline void store(int8_t* p, I16 x) {  // the low byte of values in -128..255
  const __m256i w = _mm256_and_si256(to_words(x), _mm256_set1_epi16(255));
  const __m128i v = _mm_packus_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v);
}
inline I16 add(I16 x, I16 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline I16 sub(I16 x, I16 y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
inline I16 mul(I16 x, I16 y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
inline I16 min(I16 x, I16 y) { return {_mm256_min_epi32(x.a, y.a), _mm256_min_epi32(x.b, y.b)}; }
inline I16 max(I16 x, I16 y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
inline I16 bit_and(I16 x, I16 y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
inline I16 bit_or(I16 x, I16 y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
template <int N>
inline I16 sra(I16 x) {
  return {_mm256_srai_epi32(x.a, N), _mm256_srai_epi32(x.b, N)};
}
inline F16 to_float(I16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline F16 mul(F16 x, F16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F16 max(F16 x, F16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline __m256i round_half(__m256 x, __m256 lo, __m256 hi) {
  const __m256 bounded = _mm256_min_ps(_mm256_max_ps(x, lo), hi);
  return _mm256_cvttps_epi32(_mm256_round_ps(bounded, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline I16 round_clamp(F16 x, float lo, float hi) {
  const __m256 low = _mm256_set1_ps(lo), high = _mm256_set1_ps(hi);
  return {round_half(x.a, low, high), round_half(x.b, low, high)};
}
inline int32_t largest(I16 x) {
  int32_t lanes[8], best = INT32_MIN;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), _mm256_max_epi32(x.a, x.b));
  for (int32_t v : lanes) best = best > v ? best : v;
  return best;
}

template <int STEP>
inline I16 dot(I16 acc, I16 x, I16 w) {
  static_assert(STEP == 2, "pairs of int16 only");
  return add(acc, {_mm256_madd_epi16(x.a, w.a), _mm256_madd_epi16(x.b, w.b)});
}

inline void lookup(const uint8_t* table, const uint8_t* index, uint8_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = table[index[i]];
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

bool supported() { return __builtin_cpu_supports("avx2"); }

}  // namespace

const Kernels* avx2_kernels() {
  static const Kernels kernels = {"avx2", 1, KERNEL_FIELDS};
  return &kernels;
}

}  // namespace dca

#else

namespace dca {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace dca

#endif
