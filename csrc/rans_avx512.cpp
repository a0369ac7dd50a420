// Kernels for AVX-512 with VBMI2 (Ice Lake, Zen 4 and later): 32 lanes in two registers; fewer lanes and
// the tail are left to AVX2 and scalar code.
#include "rans_paths.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <immintrin.h>

#include <cstring>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // _mm512_undefined_* in its headers, GCC bug 105593
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt")
#endif

namespace dca::rans {
namespace {

constexpr int kLanes = 32;

size_t pack_rows(const uint8_t* rows, size_t n, size_t capacity, uint8_t* dense, ptrdiff_t& count) {
  const __m512i skip = _mm512_set1_epi8(-1), first_bad = _mm512_set1_epi8(static_cast<char>(kRows));
  size_t kept = 0, i = 0;
  __mmask64 bad = 0;
  for (; i + 64 <= n && kept + 64 <= capacity; i += 64) {
    const __m512i row = _mm512_loadu_si512(rows + i);
    const __mmask64 coded = _mm512_cmpneq_epi8_mask(row, skip);
    bad |= _mm512_mask_cmpge_epu8_mask(coded, row, first_bad);
    _mm512_storeu_si512(dense + kept, _mm512_maskz_compress_epi8(coded, row));
    kept += static_cast<size_t>(_mm_popcnt_u64(coded));
  }
  ptrdiff_t rest = 0;
  i += kScalarPath.pack_rows(rows + i, n - i, capacity - kept, dense + kept, rest);
  count = bad != 0 || rest < 0 ? -1 : static_cast<ptrdiff_t>(kept) + rest;
  return i;
}

void pack_values(const uint8_t* rows, const int16_t* values, size_t n, int16_t* dense) {
  const __m256i skip = _mm256_set1_epi8(-1);
  size_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __mmask32 coded =
        _mm256_cmpneq_epi8_mask(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + i)), skip);
    _mm512_storeu_si512(dense, _mm512_maskz_compress_epi16(coded, _mm512_loadu_si512(values + i)));
    dense += _mm_popcnt_u32(coded);
  }
  kScalarPath.pack_values(rows + i, values + i, n - i, dense);
}

void unpack_values(const uint8_t* rows, const int16_t* dense, size_t n, int16_t* values) {
  const __m256i skip = _mm256_set1_epi8(-1);
  size_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __mmask32 coded =
        _mm256_cmpneq_epi8_mask(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + i)), skip);
    _mm512_storeu_si512(values + i, _mm512_maskz_expand_epi16(coded, _mm512_loadu_si512(dense)));
    dense += _mm_popcnt_u32(coded);
  }
  kScalarPath.unpack_values(rows + i, dense, n - i, values + i);
}

inline __m512i join(__m256i low, __m256i high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
inline __m256i half(__m512i v, int index) {
  return index == 0 ? _mm512_castsi512_si256(v) : _mm512_extracti64x4_epi64(v, 1);
}
inline __m512i widen(__m256i words) { return _mm512_cvtepu16_epi32(words); }
inline __m256i narrow(__m512i v) { return _mm512_cvtepi32_epi16(v); }
inline __mmask32 first_lanes(unsigned count) { return static_cast<__mmask32>((uint64_t{1} << count) - 1); }

// The shifts of 32 rows as words.
struct Shifts {
  __m512i table[2];

  explicit Shifts(const uint8_t* shift) : table{_mm512_loadu_si512(shift), _mm512_loadu_si512(shift + 64)} {}
  __m512i of(__m256i rows) const {
    const __m512i bytes = _mm512_permutex2var_epi8(table[0], _mm512_castsi256_si512(rows), table[1]);
    return _mm512_cvtepu8_epi16(_mm512_castsi512_si256(bytes));
  }
};

// Scalar loads: as fast as the gather instruction at best, and far faster where microcode slows that down.
inline __m512i lookup(const uint32_t* slots, __m512i index) {
  alignas(64) uint32_t i[16];
  _mm512_store_si512(i, index);
  __m128i quarter[4];
  for (int q = 0; q < 4; ++q) {
    quarter[q] = _mm_setr_epi32(static_cast<int>(slots[i[4 * q]]), static_cast<int>(slots[i[4 * q + 1]]),
                                static_cast<int>(slots[i[4 * q + 2]]), static_cast<int>(slots[i[4 * q + 3]]));
  }
  return join(_mm256_setr_m128i(quarter[0], quarter[1]), _mm256_setr_m128i(quarter[2], quarter[3]));
}

inline const uint8_t* refill_all(__m512i& x, const uint8_t* words) {
  const __mmask16 need = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(kLower));
  const __m512i next = widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)));
  x = _mm512_mask_or_epi32(x, need, _mm512_slli_epi32(x, 16), _mm512_maskz_expand_epi32(need, next));
  return words + 2 * _mm_popcnt_u32(need);
}

// Second sweep: takes the low bits of the lanes in `low` and appends them to `value`.
inline const uint8_t* decode_lows(__m512i* x, const uint8_t* words, __mmask32 low, __m512i shift,
                                  __m512i& value) {
  __m256i bits[2];
  for (int v = 0; v < 2; ++v) {
    const __m512i count = widen(half(_mm512_maskz_mov_epi16(low, shift), v));
    bits[v] = narrow(_mm512_andnot_si512(_mm512_sllv_epi32(_mm512_set1_epi32(-1), count), x[v]));
    x[v] = _mm512_srlv_epi32(x[v], count);
    words = refill_all(x[v], words);
  }
  value = _mm512_or_si512(_mm512_mask_sllv_epi16(value, low, value, shift), join(bits[0], bits[1]));
  return words;
}

const uint8_t* decode(const TableView& tables, int lanes, uint32_t* states, const uint8_t* words,
                      const uint8_t* end, const uint8_t* rows, size_t count, int16_t* values) {
  if (lanes != kLanes) return avx2_path()->decode(tables, lanes, states, words, end, rows, count, values);
  const __m512i field = _mm512_set1_epi32(kSlots - 1);
  const Shifts shifts(tables.shift);
  __m512i x[2] = {_mm512_loadu_si512(states), _mm512_loadu_si512(states + 16)};
  for (; count >= kLanes; count -= kLanes, rows += kLanes, values += kLanes) {
    const __m256i row = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows));
    const __m512i row16 = _mm512_cvtepu8_epi16(row);
    __m256i symbols[2];
    for (int v = 0; v < 2; ++v) {
      const __m512i base = _mm512_slli_epi32(widen(half(row16, v)), kProbBits);
      const __m512i entry = lookup(tables.slots, _mm512_or_si512(base, _mm512_and_si512(x[v], field)));
      const __m512i freq = _mm512_and_si512(_mm512_srli_epi32(entry, 12), field);
      const __m512i scaled = _mm512_mullo_epi32(freq, _mm512_srli_epi32(x[v], kProbBits));
      x[v] = _mm512_add_epi32(scaled, _mm512_and_si512(entry, field));
      words = refill_all(x[v], words);
      symbols[v] = narrow(_mm512_srli_epi32(entry, 24));
    }
    const __m512i symbol = join(symbols[0], symbols[1]), shift = shifts.of(row);
    __m512i value = _mm512_sub_epi16(symbol, _mm512_set1_epi16(kCenter));
    const __mmask32 escape = _mm512_cmpeq_epi16_mask(symbol, _mm512_set1_epi16(kEscape));
    const __mmask32 low = _mm512_test_epi16_mask(shift, shift) & ~escape;
    if (low != 0) words = decode_lows(x, words, low, shift, value);
    _mm512_storeu_si512(values, value);
    for (uint32_t left = escape; left != 0; left &= left - 1, words += 2) {
      std::memcpy(values + __builtin_ctz(left), words, 2);
    }
    if (words > end) return nullptr;
  }
  _mm512_storeu_si512(states, x[0]);
  _mm512_storeu_si512(states + 16, x[1]);
  return kScalarPath.decode(tables, lanes, states, words, end, rows, count, values);
}

// Stores the low halves of the lanes in `need` below `words`, lowest lane first.
inline uint8_t* spill_all(__m512i* x, __mmask16 need0, __mmask16 need1, uint8_t* words) {
  const __mmask32 need = _mm512_kunpackw(need1, need0);
  const unsigned count = static_cast<unsigned>(_mm_popcnt_u32(need));
  words -= 2 * count;
  const __m512i sorted = _mm512_maskz_compress_epi16(need, join(narrow(x[0]), narrow(x[1])));
  _mm512_mask_storeu_epi16(words, first_lanes(count), sorted);
  x[0] = _mm512_mask_srli_epi32(x[0], need0, x[0], 16);
  x[1] = _mm512_mask_srli_epi32(x[1], need1, x[1], 16);
  return words;
}

inline __m512i push(__m512i x, __m512i reciprocal, __m512i packed) {
  const __m512i increment = _mm512_and_si512(_mm512_srli_epi32(packed, 5), _mm512_set1_epi32(1));
  const __m512i n = _mm512_add_epi32(x, increment);
  const __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(n, reciprocal), 32);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(n, 32), _mm512_srli_epi64(reciprocal, 32));
  const __m512i high = _mm512_mask_blend_epi32(0xAAAA, even, odd);
  const __m512i quotient = _mm512_srlv_epi32(high, _mm512_and_si512(packed, _mm512_set1_epi32(31)));
  const __m512i rest = _mm512_sub_epi32(_mm512_set1_epi32(kSlots), _mm512_srli_epi32(packed, 20));
  const __m512i start = _mm512_and_si512(_mm512_srli_epi32(packed, 8), _mm512_set1_epi32(0xFFF));
  return _mm512_add_epi32(_mm512_add_epi32(x, start), _mm512_mullo_epi32(quotient, rest));
}

// Third and second sweep, backwards: raw values of `escape`, then the low bits of `low`.
uint8_t* encode_tail(__m512i* x, uint8_t* words, __mmask32 escape, __mmask32 low, __m512i shift,
                     __m512i value) {
  const unsigned count = static_cast<unsigned>(_mm_popcnt_u32(escape));
  words -= 2 * count;
  _mm512_mask_storeu_epi16(words, first_lanes(count), _mm512_maskz_compress_epi16(escape, value));
  const __m512i masked = _mm512_maskz_mov_epi16(low, shift);
  const __m512i bits[2] = {widen(half(masked, 0)), widen(half(masked, 1))};
  __mmask16 need[2];
  for (int v = 0; v < 2; ++v) {  // a shift by 32, of lanes without low bits, gives 0
    const __m512i top = _mm512_srlv_epi32(x[v], _mm512_sub_epi32(_mm512_set1_epi32(32), bits[v]));
    need[v] = _mm512_test_epi32_mask(top, top);
  }
  words = spill_all(x, need[0], need[1], words);
  for (int v = 0; v < 2; ++v) {
    const __m512i high_mask = _mm512_sllv_epi32(_mm512_set1_epi32(-1), bits[v]);
    const __m512i low_bits = _mm512_andnot_si512(high_mask, widen(half(value, v)));
    x[v] = _mm512_or_si512(_mm512_sllv_epi32(x[v], bits[v]), low_bits);
  }
  return words;
}

uint8_t* encode(const TableView& tables, int lanes, uint32_t* states, uint8_t* words, const uint8_t* rows,
                const int16_t* values, size_t count) {
  if (lanes != kLanes) return avx2_path()->encode(tables, lanes, states, words, rows, values, count);
  const size_t tail = count % kLanes;
  size_t first = count - tail;
  words = kScalarPath.encode(tables, lanes, states, words, rows + first, values + first, tail);
  const Shifts shifts(tables.shift);
  const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
  __m512i x[2] = {_mm512_loadu_si512(states), _mm512_loadu_si512(states + 16)};
  while (first > 0) {
    first -= kLanes;
    const __m256i row = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + first));
    const __m512i value = _mm512_loadu_si512(values + first), shift = shifts.of(row);
    const __m512i bucket = _mm512_add_epi16(_mm512_srav_epi16(value, shift), _mm512_set1_epi16(kCenter));
    const __m512i symbol = _mm512_min_epu16(bucket, _mm512_set1_epi16(kEscape));
    alignas(64) uint16_t index[kLanes];
    _mm512_store_si512(index, _mm512_or_si512(_mm512_slli_epi16(_mm512_cvtepu8_epi16(row), 8), symbol));
    alignas(64) SymbolEntry entries[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) entries[lane] = tables.symbols[index[lane]];
    __m512i reciprocal[2], packed[2];
    for (int v = 0; v < 2; ++v) {
      const __m512i a = _mm512_load_si512(entries + 16 * v), b = _mm512_load_si512(entries + 16 * v + 8);
      reciprocal[v] = _mm512_permutex2var_epi32(a, evens, b);
      packed[v] = _mm512_permutex2var_epi32(a, odds, b);
    }
    const __m512i flag = _mm512_set1_epi32(kEscapeFlag),
                  freq = _mm512_set1_epi32(static_cast<int>(0xFFF00000u));
    const __mmask32 escape =
        _mm512_kunpackw(_mm512_test_epi32_mask(packed[1], flag), _mm512_test_epi32_mask(packed[0], flag));
    const __mmask32 low = _mm512_test_epi16_mask(shift, shift) & ~escape;
    if ((escape | low) != 0) words = encode_tail(x, words, escape, low, shift, value);
    words = spill_all(x, _mm512_cmpge_epu32_mask(x[0], _mm512_and_si512(packed[0], freq)),
                      _mm512_cmpge_epu32_mask(x[1], _mm512_and_si512(packed[1], freq)), words);
    for (int v = 0; v < 2; ++v) x[v] = push(x[v], reciprocal[v], packed[v]);
  }
  _mm512_storeu_si512(states, x[0]);
  _mm512_storeu_si512(states + 16, x[1]);
  return words;
}

const Path kAvx512Path = {"avx512", pack_rows, pack_values, unpack_values, decode, encode};

}  // namespace
}  // namespace dca::rans

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace dca::rans {
const Path* avx512_path() {
  __builtin_cpu_init();
  const bool runs = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
                    __builtin_cpu_supports("avx512vbmi2");
  return runs ? &kAvx512Path : nullptr;
}
}  // namespace dca::rans

#else

namespace dca::rans {
const Path* avx512_path() { return nullptr; }
}  // namespace dca::rans

#endif
