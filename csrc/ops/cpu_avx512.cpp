// The kernels for AVX-512 with VNNI.
#include "cpu_kernels.h"

#ifndef KERNELS      // see cpu_avx512_tall.cpp and cpu_amx.cpp
#define TILE_ROWS 4  // few, so that the epilogue of a tile overlaps with the products of the next
#define KERNELS avx512_kernels
#define KERNELS_NAME "avx512"
#endif
#ifndef KERNELS_SLOT
#define KERNELS_SLOT 2
#endif

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include <cstring>

#ifdef __clang__
#ifdef OWN_PRODUCTS
#define TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8"
#else
#define TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
#endif
#pragma clang attribute push(__attribute__((target(TARGET))), apply_to = function)
#define UNROLL _Pragma("unroll")
#else
#pragma GCC push_options
#pragma GCC diagnostic ignored "-Wuninitialized"  // false alarms inside the intrinsics headers of GCC 12
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#ifdef OWN_PRODUCTS
#pragma GCC target("amx-tile,amx-int8")
#endif
#define UNROLL _Pragma("GCC unroll 16")
#endif
// What follows must not rename the register: GCC then copies every sum of a tile in every step of its loop.
#define KEEP(x) asm("" : "+v"(x))
#define OWN_STORES
#define OWN_DEPTHWISE
#define OWN_TOKENS

namespace dca {
namespace {

constexpr int kTileRows = TILE_ROWS;
constexpr int kTileBlocks = 2;
constexpr bool kBytes = true;
constexpr int kByteOffset = 128;

using I16 = __m512i;
using F16 = __m512;

int64_t strip_stride(int k, int bits);

inline I16 set(int32_t x) { return _mm512_set1_epi32(x); }
inline I16 load(const int32_t* p) { return _mm512_loadu_si512(p); }
inline I16 load(const int16_t* p) {
  return _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline I16 load(const int8_t* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline F16 setf(float x) { return _mm512_set1_ps(x); }
inline F16 loadf(const float* p) { return _mm512_loadu_ps(p); }
inline void store(int32_t* p, I16 x) { _mm512_storeu_si512(p, x); }
inline void store(int16_t* p, I16 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(x)); }
inline void store(int8_t* p, I16 x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x)); }
inline I16 add(I16 a, I16 b) { return _mm512_add_epi32(a, b); }
inline I16 sub(I16 a, I16 b) { return _mm512_sub_epi32(a, b); }
inline I16 mul(I16 a, I16 b) { return _mm512_mullo_epi32(a, b); }
inline I16 min(I16 a, I16 b) { return _mm512_min_epi32(a, b); }
inline I16 max(I16 a, I16 b) { return _mm512_max_epi32(a, b); }
inline I16 bit_and(I16 a, I16 b) { return _mm512_and_si512(a, b); }
inline I16 bit_or(I16 a, I16 b) { return _mm512_or_si512(a, b); }
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

// Rounded and clamped to [-most, most]: the smaller magnitude with the sign of the first.
inline I16 round_within(F16 a, F16 most) {
  return _mm512_cvt_roundps_epi32(_mm512_range_ps(a, most, 2), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// Stores. Packing two registers of 32-bit values interleaves them by 128-bit lanes, so the columns of a group
// are laid out such that the packed ones are in order: register j, element 4 L + i holds column 8 L + 4 j + i.

int grouped(int position) { return position % 16 / 4 * 8 + position / 16 * 4 + position % 4; }

inline __mmask32 first_of_32(int n) { return n >= 32 ? 0xffffffffu : (1u << n) - 1; }

inline I16 rounded(F16 a) { return _mm512_cvt_roundps_epi32(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

inline I16 pack_words(const F16* r) { return _mm512_packs_epi32(rounded(r[0]), rounded(r[1])); }

inline __m256i pack_bytes(const F16* r) {
  return _mm256_max_epi8(_mm512_cvtsepi16_epi8(pack_words(r)), _mm256_set1_epi8(-127));
}

inline void store_bytes(void* out, const F16* r, int n, bool operands) {
  const __m256i flip = _mm256_set1_epi8(operands ? -128 : 0);
  const __m256i bytes = _mm256_xor_si256(pack_bytes(r), flip);
  if (n >= 32 || operands) {
    _mm256_storeu_si256(static_cast<__m256i*>(out), bytes);
  } else {
    _mm256_mask_storeu_epi8(out, first_of_32(n), bytes);
  }
}

template <bool RESIDUAL>
inline void store_words(int16_t* out, const F16* r, int n, const int16_t* residual) {
  const I16 least = _mm512_set1_epi16(-32767);
  I16 words = _mm512_max_epi16(pack_words(r), least);
  if (n >= 32) {
    if (RESIDUAL) words = _mm512_max_epi16(_mm512_adds_epi16(words, _mm512_loadu_si512(residual)), least);
    _mm512_storeu_si512(out, words);
  } else {
    const __mmask32 valid = first_of_32(n);
    if (RESIDUAL) {
      words = _mm512_max_epi16(_mm512_adds_epi16(words, _mm512_maskz_loadu_epi16(valid, residual)), least);
    }
    _mm512_mask_storeu_epi16(out, valid, words);
  }
}

inline void store_pixels(uint8_t* out, const F16* r, int n) {
  const I16 words = _mm512_adds_epi16(pack_words(r), _mm512_set1_epi16(128));
  const __m256i bytes = _mm512_cvtusepi16_epi8(_mm512_max_epi16(words, _mm512_setzero_si512()));
  _mm256_mask_storeu_epi8(out, first_of_32(n), bytes);
}

// Unpacking words to 32 bits is in the order of a group, too.
void pack_features(const int16_t* x, const int64_t* site, int rows, const float* m, int k, char* out, int64_t stride) {
  for (int r = 0; r < rows; ++r, out += stride) {
    const int16_t* row = x + (site ? site[r] : r) * k;
    for (int i = 0; i < k; i += 32) {
      const I16 v = _mm512_maskz_loadu_epi16(first_of_32(k - i), row + i);
      const I16 a = _mm512_srai_epi32(_mm512_unpacklo_epi16(v, v), 16);
      const I16 b = _mm512_srai_epi32(_mm512_unpackhi_epi16(v, v), 16);
      const F16 product[2] = {mul(to_float(a), loadf(m + i)), mul(to_float(b), loadf(m + i + 16))};
      const __m256i bytes = pack_bytes(product);
      const __m256i operands = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), operands);
    }
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

void depthwise_columns(const char* const rows[3], int width, int64_t pitch, int base, __mmask64 valid, const char* w,
                       const int32_t* bias, const float* m, char* out) {
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
    const int64_t at = x * pitch + base;
    if (x < width) {
      const I16 a = _mm512_maskz_loadu_epi8(valid, rows[0] + at);
      const I16 b = _mm512_maskz_loadu_epi8(valid, rows[1] + at);
      const I16 d = _mm512_maskz_loadu_epi8(valid, rows[2] + at);
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
      done[s] = rounded(mul(to_float(acc), scale[s]));
      before[s] = dot<4>(now[s], column[s], weight[1][s]);
      now[s] = dot<4>(start[s], column[s], weight[0][s]);
    }
    if (x > 0) {
      const I16 packed = _mm512_packs_epi16(_mm512_packs_epi32(done[0], done[1]), _mm512_packs_epi32(done[2], done[3]));
      const I16 operands = _mm512_xor_si512(_mm512_max_epi8(packed, _mm512_set1_epi8(-127)), offset);
      _mm512_mask_storeu_epi8(out + at - pitch, valid, operands);
    }
  }
}

void depthwise(const char* const rows[3], int width, int c, const char* w, const int32_t* bias, const float* m,
               char* out) {
  const int64_t pitch = strip_stride(c, 8);
  for (int base = 0; base < c; base += kWide, w += 3 * 4 * kWide) {
    const __mmask64 valid = pitch - base >= kWide ? ~0ull : 0xffffffffull;
    depthwise_columns(rows, width, pitch, base, valid, w, bias, m, out);
  }
}

// Attention over few tokens: a register holds the scores of one site for two heads, eight tokens each.

constexpr int kTokensPacked = 9 * 64;  // two heads: where the sums start, then eight words of their keys
constexpr int kValuesPacked = 4 * 64;  // one head: two registers of channels, four tokens a word

size_t tokens_bytes(int heads) { return static_cast<size_t>((heads + 1) / 2 * kTokensPacked + heads * kValuesPacked); }

void pack_tokens(const int8_t* k, const int8_t* v, int heads, int tokens, char* packed) {
  const int64_t channels = int64_t{heads} * kFewDepth;
  std::memset(packed, 0, tokens_bytes(heads));
  for (int head = 0; head < heads; ++head) {
    char* keys = packed + head / 2 * kTokensPacked;
    char* values = packed + (heads + 1) / 2 * kTokensPacked + head * kValuesPacked;
    for (int token = 0; token < tokens; ++token) {
      const int lane = head % 2 * 8 + token;
      int32_t sum = 0;
      for (int c = 0; c < kFewDepth; ++c) {
        const int64_t at = token * channels + head * kFewDepth + c;
        sum += k[at];
        keys[64 + c / 4 * 64 + lane * 4 + c % 4] = static_cast<char>(k[at]);
        // position of channel c in the order of a group, see `grouped`
        const int place = c % 8 / 4 * 16 + c / 8 * 4 + c % 4;
        values[place / 16 * 128 + token / 4 * 64 + place % 16 * 4 + token % 4] = static_cast<char>(v[at]);
      }
      reinterpret_cast<int32_t*>(keys)[lane] = -128 * sum;
    }
  }
}

// Distances from the best score of each head, for two heads of one site.
inline void token_distances(const char* q, const char* keys, F16 m, __mmask16 present, uint8_t* out) {
  const I16 site = _mm512_loadu_si512(q);
  const I16 first = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 8, 8, 8, 8, 8, 8, 8, 8);
  I16 acc[2] = {_mm512_loadu_si512(keys), _mm512_setzero_si512()};
  UNROLL for (int word = 0; word < 8; ++word) {
    const I16 x = _mm512_permutexvar_epi32(_mm512_add_epi32(first, _mm512_set1_epi32(word)), site);
    acc[word % 2] = dot<4>(acc[word % 2], x, _mm512_loadu_si512(keys + 64 + word * 64));
  }
  const F16 scaled = mul(to_float(add(acc[0], acc[1])), m);
  const I16 score = round_clamp(scaled, -static_cast<float>(kMeanLimit), static_cast<float>(kMeanLimit));
  I16 best = _mm512_mask_mov_epi32(_mm512_set1_epi32(INT32_MIN / 2), present, score);
  best = max(best, _mm512_shuffle_epi32(best, _MM_PERM_CDAB));
  best = max(best, _mm512_shuffle_epi32(best, _MM_PERM_BADC));
  best = max(best, _mm512_shuffle_i32x4(best, best, 0xb1));
  const I16 distance = min(sub(best, score), set(255));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(distance));
}

// sum of weight * value, times the reciprocal, rounded: exact in doubles, all of it is below 2^48 in units of 2^-40.
inline __m256i token_means(__m256i acc, __m512d reciprocal) {
  const __m512d mean = _mm512_fmadd_pd(_mm512_cvtepi32_pd(acc), reciprocal, _mm512_set1_pd(0.5));
  return _mm512_cvt_roundpd_epi32(mean, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}

inline I16 token_half(I16 e0, I16 e1, const char* values, __m512d reciprocal) {
  I16 acc = dot<4>(_mm512_setzero_si512(), e0, _mm512_loadu_si512(values));
  acc = dot<4>(acc, e1, _mm512_loadu_si512(values + 64));
  const __m256i low = token_means(_mm512_castsi512_si256(acc), reciprocal);
  const __m256i high = token_means(_mm512_extracti64x4_epi64(acc, 1), reciprocal);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

void tokens(const TokenTask& t) {
  constexpr int kRow = kFewHeads * kFewTokens;  // one register of weights a site
  alignas(64) uint8_t distance[kStrip * kRow], weight[kStrip * kRow];
  const int64_t stride = strip_stride(t.heads * kFewDepth, 8);
  const int pairs = (t.heads + 1) / 2;
  const auto present = static_cast<__mmask16>(((1 << t.tokens) - 1) * 0x101);
  const __mmask64 weighed = present * 0x1000100010001ull;
  std::memset(distance, 0, sizeof distance);
  for (int r = 0; r < t.rows; ++r)
    for (int p = 0; p < pairs; ++p) {
      const char* q = t.q + r * stride + p * 64;
      token_distances(q, t.packed + p * kTokensPacked, setf(t.m), present, distance + r * kRow + p * 16);
    }
  int64_t lookups = int64_t{t.rows} * kRow;
  lookup(t.table, distance, weight, lookups);
  const char* values = t.packed + pairs * kTokensPacked;
  for (int r = 0; r < t.rows; ++r) {
    const I16 e = _mm512_maskz_loadu_epi8(weighed, weight + r * kRow);
    const __m512d sums = _mm512_cvtepi64_pd(_mm512_sad_epu8(e, _mm512_setzero_si512()));
    // The quotient has 40 bits and is at least 2^-11 away from the next integer if it is none: floor is exact.
    const __m512d quotient = _mm512_div_pd(_mm512_set1_pd(1099511627776.0), sums);
    alignas(64) double reciprocal[kFewHeads];
    alignas(64) int32_t words[2 * kFewHeads];
    _mm512_store_pd(reciprocal, _mm512_mul_pd(_mm512_roundscale_pd(quotient, _MM_FROUND_TO_NEG_INF),
                                              _mm512_set1_pd(1.0 / 1099511627776.0)));
    _mm512_store_si512(words, e);
    for (int head = 0; head < t.heads; ++head) {
      const I16 e0 = set(words[2 * head]), e1 = set(words[2 * head + 1]);
      const __m512d scale = _mm512_set1_pd(reciprocal[head]);
      const I16 a = token_half(e0, e1, values + head * kValuesPacked, scale);
      const I16 b = token_half(e0, e1, values + head * kValuesPacked + 128, scale);
      const __m256i bytes = _mm512_cvtepi16_epi8(_mm512_packs_epi32(a, b));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(t.out + r * stride + head * kFewDepth),
                          _mm256_xor_si256(bytes, _mm256_set1_epi8(-128)));
    }
  }
}

#include "cpu_kernels_impl.h"

// The two halves of a gate are the two registers of a tile; four rows are packed at a time.
inline I16 gated(I16 u, I16 v, const Scales& scale, F16 g) {
  const F16 most = setf(127.0f);
  const F16 a = _mm512_range_ps(mul(to_float(u), scale.m[0]), most, 2);
  const F16 b = _mm512_range_ps(mul(to_float(v), scale.m[1]), most, 2);
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const F16 product = mul(_mm512_roundscale_ps(a, kNearest), _mm512_roundscale_ps(b, kNearest));
  return round_within(mul(product, g), most);
}

INLINE void Gate::operator()(int row, int col, const Tile& acc) const {
  const Scales scale(t.w.m + col);
  const F16 g = setf(t.g);
  const I16 order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const I16 flip = _mm512_set1_epi8(t.operands ? -128 : 0);
  const int c = col / 2, n = t.operands || t.o - c >= 16 ? 16 : t.o - c;
  char* out = static_cast<char*>(t.out) + row * stride + c;
  UNROLL for (int i = 0; i < kTileRows; i += 4, out += 4 * stride) {
    I16 v[4];
    UNROLL for (int s = 0; s < 4; ++s) v[s] = gated(acc[i + s][0], acc[i + s][1], scale, g);
    I16 packed = _mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
    packed = _mm512_xor_si512(_mm512_permutexvar_epi32(order, packed), flip);
    const int rows = t.rows - row - i;
    if (n == 16 && rows >= 4) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_castsi512_si128(packed));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + stride), _mm512_extracti32x4_epi32(packed, 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * stride), _mm512_extracti32x4_epi32(packed, 2));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 3 * stride), _mm512_extracti32x4_epi32(packed, 3));
      continue;
    }
    alignas(64) char bytes[64];
    _mm512_store_si512(bytes, packed);
    for (int s = 0; s < 4 && s < rows; ++s) std::memcpy(out + s * stride, bytes + s * 16, static_cast<size_t>(n));
  }
}

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

bool avx512_supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

#ifdef OWN_PRODUCTS
bool supported();
bool start();
#else
bool supported() { return avx512_supported(); }
#endif

}  // namespace

const Kernels* KERNELS() {
  static const Kernels kernels = {KERNELS_NAME, KERNELS_SLOT, KERNEL_FIELDS};
  return &kernels;
}

}  // namespace dca

#else

namespace dca {
const Kernels* KERNELS() { return nullptr; }
}  // namespace dca

#endif
