// Kernels for AVX-512 with VBMI2 (Ice Lake, Zen 4 and later): 32 lanes in two registers; fewer lanes and
// the tail are left to AVX2 and scalar code.
#include "rans_paths.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // _mm512_undefined_* in its headers, GCC bug 105593
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt")
#endif

#include "rans_trellis.h"

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

void pack_residuals(const uint8_t* rows, const int32_t* residuals, size_t n, int32_t* dense) {
  const __m128i skip = _mm_set1_epi8(-1);
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __mmask16 coded = _mm_cmpneq_epi8_mask(_mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + i)), skip);
    _mm512_storeu_si512(dense, _mm512_maskz_compress_epi32(coded, _mm512_loadu_si512(residuals + i)));
    dense += _mm_popcnt_u32(coded);
  }
  kScalarPath.pack_residuals(rows + i, residuals + i, n - i, dense);
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

inline __m512i join(__m256i low, __m256i high) { return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1); }
inline __m256i half(__m512i v, int index) {
  return index == 0 ? _mm512_castsi512_si256(v) : _mm512_extracti64x4_epi64(v, 1);
}
inline __m512i widen(__m256i words) { return _mm512_cvtepu16_epi32(words); }
inline __m256i narrow(__m512i v) { return _mm512_cvtepi32_epi16(v); }
inline __mmask32 first_lanes(unsigned count) { return static_cast<__mmask32>((uint64_t{1} << count) - 1); }

// The shifts of 32 rows, as words. Most often there are none.
inline __m512i shifts_of(const TableView& tables, __m512i rows) {
  const __m512i first = _mm512_set1_epi16(static_cast<int16_t>(tables.first_shift));
  const __m512i symbol_rows = _mm512_and_si512(rows, _mm512_set1_epi16(kRows - 1));
  if (_mm512_cmpge_epu16_mask(symbol_rows, first) == 0) return _mm512_setzero_si512();
  const __m512i index = _mm512_castsi256_si512(_mm512_cvtepi16_epi8(rows));
  __m512i shift[4];  // plain tables, which lie before the others, have as many
  for (int i = 0; i < 4; ++i) shift[i] = _mm512_loadu_si512(tables.shift + 64 * i);
  const __m512i bytes =
      _mm512_mask_mov_epi8(_mm512_permutex2var_epi8(shift[0], index, shift[1]), _mm512_movepi8_mask(index),
                           _mm512_permutex2var_epi8(shift[2], index, shift[3]));
  return _mm512_cvtepu8_epi16(_mm512_castsi512_si256(bytes));
}

// The states of 32 chains, and which of them are in set 1.
class ChainStates {
 public:
  ChainStates() = default;
  explicit ChainStates(const uint16_t* chains) : states_(_mm512_loadu_si512(chains)) { find_set(); }

  __m512i choose(__m512i rows) const { return _mm512_mask_add_epi16(rows, set_, rows, _mm512_set1_epi16(kSetBit)); }

  // Turns indices to values and leads the chains on.
  __m512i step(__m512i index) {
    const __m512i zero = _mm512_setzero_si512(), one = _mm512_set1_epi16(1);
    const __m512i twice = _mm512_add_epi16(index, index);
    const __m512i less = _mm512_mask_sub_epi16(twice, _mm512_mask_cmpgt_epi16_mask(set_, index, zero), twice, one);
    const __m512i value = _mm512_mask_add_epi16(less, _mm512_mask_cmplt_epi16_mask(set_, index, zero), less, one);
    const __m512i by_set = _mm512_maskz_set1_epi16(set_, kBySet);
    const __m512i by_parity = _mm512_maskz_set1_epi16(_mm512_test_epi16_mask(index, one), kByParity);
    states_ = _mm512_xor_si512(_mm512_xor_si512(_mm512_srli_epi16(states_, 1), by_set), by_parity);
    find_set();
    return value;
  }

  void store(uint16_t* chains) const { _mm512_storeu_si512(chains, states_); }

 private:
  void find_set() { set_ = _mm512_test_epi16_mask(states_, _mm512_set1_epi16(1)); }

  __m512i states_;
  __mmask32 set_;
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
inline const uint8_t* decode_lows(__m512i* x, const uint8_t* words, __mmask32 low, __m512i shift, __m512i& value) {
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

// The whole rounds; `chains` of a trellis, else unused.
template <bool kTrellis>
const uint8_t* decode_rounds(const TableView& tables, uint32_t* states, const uint8_t* words, const uint8_t* end,
                             const uint8_t* rows, size_t rounds, int16_t* values, ChainStates& chains) {
  const __m512i field = _mm512_set1_epi32(kSlots - 1);
  __m512i x[2] = {_mm512_loadu_si512(states), _mm512_loadu_si512(states + 16)};
  for (; rounds > 0; --rounds, rows += kLanes, values += kLanes) {
    __m512i row = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows)));
    if (kTrellis) row = chains.choose(row);
    __m256i symbols[2];
    for (int v = 0; v < 2; ++v) {
      const __m512i base = _mm512_slli_epi32(widen(half(row, v)), kProbBits);
      const __m512i entry = lookup(tables.slots, _mm512_or_si512(base, _mm512_and_si512(x[v], field)));
      const __m512i freq = _mm512_and_si512(_mm512_srli_epi32(entry, 12), field);
      const __m512i scaled = _mm512_mullo_epi32(freq, _mm512_srli_epi32(x[v], kProbBits));
      x[v] = _mm512_add_epi32(scaled, _mm512_and_si512(entry, field));
      words = refill_all(x[v], words);
      symbols[v] = narrow(_mm512_srli_epi32(entry, 24));
    }
    const __m512i symbol = join(symbols[0], symbols[1]), shift = shifts_of(tables, row);
    __m512i value = _mm512_sub_epi16(symbol, _mm512_set1_epi16(kCenter));
    const __mmask32 escape = _mm512_cmpeq_epi16_mask(symbol, _mm512_set1_epi16(kEscape));
    const __mmask32 low = _mm512_test_epi16_mask(shift, shift) & ~escape;
    if (low != 0) words = decode_lows(x, words, low, shift, value);
    if (escape != 0) {
      value = _mm512_mask_expand_epi16(value, escape, _mm512_loadu_si512(words));
      words += 2 * _mm_popcnt_u32(escape);
    }
    _mm512_storeu_si512(values, kTrellis ? chains.step(value) : value);
    if (words > end) return nullptr;
  }
  _mm512_storeu_si512(states, x[0]);
  _mm512_storeu_si512(states + 16, x[1]);
  return words;
}

const uint8_t* decode(const TableView& tables, int lanes, uint32_t* states, const uint8_t* words, const uint8_t* end,
                      const uint8_t* rows, size_t count, int16_t* values) {
  if (lanes != kLanes) return avx2_path()->decode(tables, lanes, states, words, end, rows, count, values);
  ChainStates unused;
  words = decode_rounds<false>(tables, states, words, end, rows, count / kLanes, values, unused);
  const size_t done = count - count % kLanes;
  if (words == nullptr) return nullptr;
  return kScalarPath.decode(tables, lanes, states, words, end, rows + done, count - done, values + done);
}

const uint8_t* decode_trellis(const TableView& tables, int lanes, uint32_t* states, const uint8_t* words,
                              const uint8_t* end, const uint8_t* rows, size_t count, int16_t* values, uint16_t* chains,
                              int width) {
  if (lanes != kLanes) {
    return avx2_path()->decode_trellis(tables, lanes, states, words, end, rows, count, values, chains, width);
  }
  ChainStates all(chains);
  words = decode_rounds<true>(tables, states, words, end, rows, count / kLanes, values, all);
  all.store(chains);
  const size_t done = count - count % kLanes;
  if (words == nullptr) return nullptr;
  return kScalarPath.decode_trellis(tables, lanes, states, words, end, rows + done, count - done, values + done, chains,
                                    width);
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
uint8_t* encode_tail(__m512i* x, uint8_t* words, __mmask32 escape, __mmask32 low, __m512i shift, __m512i value) {
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
  const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
  __m512i x[2] = {_mm512_loadu_si512(states), _mm512_loadu_si512(states + 16)};
  while (first > 0) {
    first -= kLanes;
    const __m512i row = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + first)));
    const __m512i value = _mm512_loadu_si512(values + first), shift = shifts_of(tables, row);
    const __m512i bucket = _mm512_add_epi16(_mm512_srav_epi16(value, shift), _mm512_set1_epi16(kCenter));
    const __m512i symbol = _mm512_min_epu16(bucket, _mm512_set1_epi16(kEscape));
    alignas(64) uint16_t index[kLanes];
    _mm512_store_si512(index, _mm512_or_si512(_mm512_slli_epi16(row, 8), symbol));
    alignas(64) SymbolEntry entries[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) entries[lane] = tables.symbols[index[lane]];
    __m512i reciprocal[2], packed[2];
    for (int v = 0; v < 2; ++v) {
      const __m512i a = _mm512_load_si512(entries + 16 * v), b = _mm512_load_si512(entries + 16 * v + 8);
      reciprocal[v] = _mm512_permutex2var_epi32(a, evens, b);
      packed[v] = _mm512_permutex2var_epi32(a, odds, b);
    }
    const __m512i flag = _mm512_set1_epi32(kEscapeFlag), freq = _mm512_set1_epi32(static_cast<int>(0xFFF00000u));
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

// The search's trail has masks of the chains for a round: [state] those whose way to it has an odd index, and
// [kHigher + 2 * set + other] those for which the higher one of two indices is cheaper: of the one next below the
// residual and that + 2, or of the others beside it. Volatile: else GCC gathers masks before it stores.
constexpr int kVector = 16;
constexpr int kHigher = kTrellisStates;
constexpr size_t kTrailWords = kTrailBytes / sizeof(uint32_t);
static_assert(kHigher + 4 <= kTrailWords);

// Charges of an index and of the three after it.
struct Charges {
  __m512i of[4];
};

// `row`: where the charges of a row begin; the last of them counts for all beyond.
inline Charges load_charges(const int32_t* charges, __m512i row, __m512i index) {
  const __m512i first = _mm512_min_epi32(index, _mm512_set1_epi32(kSymbols - 4));
  alignas(64) uint32_t places[kVector];
  _mm512_store_si512(places, _mm512_add_epi32(row, first));
  const volatile uint32_t* at = places;  // loads: taking a register apart would cost more
  __m512i four[4];                       // symbols in each: transposed in place
  for (int i = 0; i < 4; ++i) {
    four[i] = _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(charges + at[i])));
    for (int q = 1; q < 4; ++q) {
      const __m128i next = _mm_loadu_si128(reinterpret_cast<const __m128i*>(charges + at[4 * q + i]));
      four[i] = _mm512_mask_broadcast_i32x4(four[i], static_cast<__mmask16>(0xF << 4 * q), next);
    }
  }
  const __m512i a = _mm512_unpacklo_epi32(four[0], four[1]), b = _mm512_unpackhi_epi32(four[0], four[1]);
  const __m512i c = _mm512_unpacklo_epi32(four[2], four[3]), d = _mm512_unpackhi_epi32(four[2], four[3]);
  Charges charge{{_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d),
                  _mm512_unpackhi_epi64(b, d)}};
  const __m512i beyond = _mm512_sub_epi32(index, first);
  if (_mm512_test_epi32_mask(beyond, beyond) == 0) return charge;
  for (int step = 1; step < 4; ++step) {
    const __mmask16 moved = _mm512_cmpge_epi32_mask(beyond, _mm512_set1_epi32(step));
    for (int i = 0; i < 3; ++i) charge.of[i] = _mm512_mask_mov_epi32(charge.of[i], moved, charge.of[i + 1]);
  }
  return charge;
}

inline __m512i square(__m512i v) { return _mm512_madd_epi16(v, v); }  // of 0 ... 2^15 - 1

// index_below where the set's part is added already: a division by 64, and by 5.
inline __m512i index_below(__m512i size) {
  const __m512i fifth = _mm512_mulhi_epu16(_mm512_srli_epi32(size, 6), _mm512_set1_epi32(0xCCCD));
  return _mm512_srli_epi32(fifth, 2);
}

inline __m512i clamped(__m512i residual) {
  return _mm512_min_epu32(_mm512_abs_epi32(residual), _mm512_set1_epi32(kMaxResidual));
}

// Costs of 16 symbols, by the parity of the index; `row` is where charges of their rows begin, `higher` their half of
// the masks.
template <int kSet>
inline void cost_symbols(const int32_t* charges, __m512i size, __m512i row, __m512i* cost, volatile uint16_t* higher) {
  const __m512i one = _mm512_set1_epi32(1), step = _mm512_set1_epi32(2 * kTrellisStep);
  const __m512i raised = _mm512_add_epi32(size, _mm512_set1_epi32(kTrellisStep * kSet));
  const __m512i below = index_below(raised);
  const __mmask16 some = _mm512_test_epi32_mask(below, below);
  const __m512i least = _mm512_mask_sub_epi32(below, some, below, one);
  const Charges charge = load_charges(charges, row, least);

  // Errors of the indices below - 1 ... below + 2, all made positive. Those of 0 do not have the set's part.
  const __m512i rest = _mm512_sub_epi32(raised, _mm512_madd_epi16(below, step));
  __m512i error[4] = {_mm512_add_epi32(rest, step), rest, _mm512_sub_epi32(step, rest),
                      _mm512_sub_epi32(_mm512_add_epi32(step, step), rest)};
  if (kSet == 1) {
    error[0] = _mm512_mask_mov_epi32(error[0], _mm512_cmpeq_epi32_mask(below, one), size);
    error[1] = _mm512_mask_mov_epi32(size, some, error[1]);
  }
  __m512i found[4];
  found[0] = _mm512_mask_add_epi32(_mm512_set1_epi32(kNever), some, square(error[0]), charge.of[0]);
  for (int i = 1; i < 4; ++i) {
    found[i] = _mm512_add_epi32(square(error[i]), _mm512_mask_mov_epi32(charge.of[i - 1], some, charge.of[i]));
  }
  const __m512i same = _mm512_min_epi32(found[1], found[3]), other = _mm512_min_epi32(found[0], found[2]);
  higher[4 * kSet] = _mm512_cmplt_epi32_mask(found[3], found[1]);
  higher[4 * kSet + 2] = _mm512_cmplt_epi32_mask(found[2], found[0]);
  const __mmask16 odd = _mm512_test_epi32_mask(below, one);
  cost[0] = _mm512_mask_mov_epi32(same, odd, other);
  cost[1] = _mm512_mask_mov_epi32(other, odd, same);
}

// What one more symbol adds to paths of 16 chains, by set and parity of its index.
inline void find_edges(const int32_t* charges, const int32_t* residuals, const uint8_t* rows, __m256i* edges,
                       uint16_t* higher) {
  const __m128i row = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows));
  const __m512i begin = _mm512_slli_epi32(_mm512_cvtepu8_epi32(row), 8);
  const __m512i size = clamped(_mm512_loadu_si512(residuals));
  __m512i cost[4];
  cost_symbols<0>(charges, size, begin, cost, higher);
  cost_symbols<1>(charges + kRows * kSymbols, size, begin, cost + 2, higher);
  const __m512i least = _mm512_min_epi32(_mm512_min_epi32(cost[0], cost[1]), _mm512_min_epi32(cost[2], cost[3]));
  for (int i = 0; i < 4; ++i) {
    const __m512i more = _mm512_srli_epi32(_mm512_sub_epi32(cost[i], least), kEdgeShift);
    edges[i] = narrow(_mm512_min_epi32(more, _mm512_set1_epi32(kEdgeLimit)));
  }
}

// The cheaper way, an even index if they are equal.
inline __m512i choose_way(__m512i even, __m512i odd, volatile uint32_t* ways) {
  const __mmask32 is_odd = _mm512_movepi16_mask(_mm512_sub_epi16(odd, even));
  *ways = is_odd;
  return _mm512_mask_mov_epi16(even, is_odd, odd);
}

// Chooses the way into two states, which are entered from the same two.
template <uint32_t kState>
inline void extend_pair(const __m512i* path, const __m512i (*edge)[2], __m512i* next, volatile uint32_t* trail) {
  constexpr uint32_t kEven = trellis_before(kState, 0), kOdd = trellis_before(kState, 1);
  constexpr uint32_t kOther = kState ^ kByParity, kSet = kEven & 1;
  static_assert(trellis_before(kOther, 0) == kOdd && trellis_before(kOther, 1) == kEven);
  const __m512i first = path[kEven], second = path[kOdd], even = edge[kSet][0], odd = edge[kSet][1];
  next[kState] = choose_way(_mm512_add_epi16(first, even), _mm512_add_epi16(second, odd), trail + kState);
  next[kOther] = choose_way(_mm512_add_epi16(second, even), _mm512_add_epi16(first, odd), trail + kOther);
}

// The same for all states.
template <uint32_t... kPairs>
inline void extend_paths(const __m512i* path, const __m512i (*edge)[2], __m512i* next, volatile uint32_t* trail,
                         std::integer_sequence<uint32_t, kPairs...>) {
  static_assert(kApart <= kByParity && kByParity < 2 * kApart);
  (extend_pair<(kPairs & (kApart - 1)) | (kPairs & -kApart) << 1>(path, edge, next, trail), ...);
}

// The state of least cost, the lowest of equals.
inline __m512i best_state(const __m512i* path) {
  __m512i lowest = path[0], best = _mm512_setzero_si512();
  for (int state = 1; state < kTrellisStates; ++state) {
    const __mmask32 lower = _mm512_movepi16_mask(_mm512_sub_epi16(path[state], lowest));
    lowest = _mm512_mask_mov_epi16(lowest, lower, path[state]);
    best = _mm512_mask_mov_epi16(best, lower, _mm512_set1_epi16(static_cast<int16_t>(state)));
  }
  return best;
}

// Goes one round back with 16 chains, of which the first has this bit: returns the states before it, and the values.
inline __m512i trace_round(__m512i state, __m512i residual, const uint32_t* trail, uint32_t first, __m256i& values) {
  const __m512i one = _mm512_set1_epi32(1), zero = _mm512_setzero_si512();
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i bit = _mm512_sllv_epi32(_mm512_set1_epi32(static_cast<int>(first)), lanes);
  const __mmask16 odd = _mm512_test_epi32_mask(lookup(trail, state), bit);
  const __mmask16 set = _mm512_cmpge_epi32_mask(state, _mm512_set1_epi32(kTrellisStates / 2));
  const __m512i came = _mm512_mask_xor_epi32(state, set, state, _mm512_set1_epi32(kBySet));
  const __m512i shifted = _mm512_slli_epi32(_mm512_mask_xor_epi32(came, odd, came, _mm512_set1_epi32(kByParity)), 1);
  const __m512i before =
      _mm512_and_si512(_mm512_mask_or_epi32(shifted, set, shifted, one), _mm512_set1_epi32(kTrellisStates - 1));

  const __mmask16 negative = _mm512_cmplt_epi32_mask(residual, zero);
  const __m512i size = clamped(residual);
  const __m512i below = index_below(_mm512_mask_add_epi32(size, set, size, _mm512_set1_epi32(kTrellisStep)));
  const __m512i other = _mm512_and_si512(_mm512_mask_xor_epi32(below, odd, below, one), one);
  const __m512i four = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(trail + kHigher)));
  const __m512i which = _mm512_mask_add_epi32(other, set, other, _mm512_set1_epi32(2));
  const __mmask16 higher = _mm512_test_epi32_mask(_mm512_permutexvar_epi32(which, four), bit);
  const __m512i lower = _mm512_sub_epi32(below, other);
  const __m512i index = _mm512_mask_add_epi32(lower, higher, lower, _mm512_set1_epi32(2));
  const __m512i twice = _mm512_add_epi32(index, index);
  const __m512i value = _mm512_mask_sub_epi32(twice, _mm512_mask_test_epi32_mask(set, index, index), twice, one);
  values = narrow(_mm512_mask_sub_epi32(value, negative, zero, value));
  return before;
}

// Adds one symbol to each of the 32 chains.
inline void search_round(const __m512i* path, const int32_t* charges, const int32_t* residuals, const uint8_t* rows,
                         __m512i* next, uint32_t* trail) {
  __m256i halves[2][4];
  uint16_t* higher = reinterpret_cast<uint16_t*>(trail + kHigher);
  find_edges(charges, residuals, rows, halves[0], higher);
  find_edges(charges, residuals + kVector, rows + kVector, halves[1], higher + 1);
  __m512i edge[2][2];
  for (int i = 0; i < 4; ++i) edge[i >> 1][i & 1] = join(halves[0][i], halves[1][i]);
  extend_paths(path, edge, next, trail, std::make_integer_sequence<uint32_t, kTrellisStates / 2>());
}

void search(const int32_t* charges, const int32_t* residuals, const uint8_t* rows, size_t count, uint8_t* bytes,
            int16_t* values) {
  if (count == 0) return;
  uint32_t* trail = reinterpret_cast<uint32_t*>(bytes);
  __m512i paths[2][kTrellisStates];
  __m512i *path = paths[0], *next = paths[1];
  for (int state = 0; state < kTrellisStates; ++state) path[state] = _mm512_set1_epi16(state == 0 ? 0 : kUnreached);
  size_t at = 0;
  for (;; at += kChains, trail += kTrailWords, std::swap(path, next)) {
    search_round(path, charges, residuals + at, rows + at, next, trail);
    if (count - at <= kChains) break;
  }
  const __mmask32 tail = first_lanes(static_cast<unsigned>(count - at));
  for (int state = 0; state < kTrellisStates; ++state) {
    next[state] = _mm512_mask_mov_epi16(path[state], tail, next[state]);
  }

  const __m512i best = best_state(next);
  __m512i states[2] = {widen(half(best, 0)), widen(half(best, 1))};
  for (__mmask32 active = tail;; at -= kChains, trail -= kTrailWords, active = first_lanes(kChains)) {
    for (int h = 0; h < 2; ++h) {
      __m256i found;
      const __m512i residual = _mm512_loadu_si512(residuals + at + kVector * h);
      const __m512i before = trace_round(states[h], residual, trail, 1u << (kVector * h), found);
      states[h] = _mm512_mask_mov_epi32(states[h], static_cast<__mmask16>(active >> (kVector * h)), before);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + at + kVector * h), found);
    }
    if (at == 0) break;
  }
}

// A search along the states of one chain. The cost of a state lies where that of its predecessor lay from which an even
// index leads to it; the other predecessor is found at a distance, by XOR, that depends on the round alone.
constexpr int kPlaces = kTrellisStates;
constexpr int kPathVectors = kPlaces / 32;  // the lower five bits of a place are its lane, the others its vector

struct Turn {
  uint8_t apart;         // between the places of two states from which the same two are entered
  uint8_t set;           // the set of a state is the parity of its place & set
  uint8_t place[2][16];  // of a state, after the round: XOR of those of its lower and its upper half
};

constexpr uint32_t parity_of(uint32_t x) {
  x ^= x >> 4, x ^= x >> 2;
  return (x ^ x >> 1) & 1;
}

// How places turn from round to round, until they are again those of the beginning: all of it is linear.
struct Turns {
  Turn of[256];
  int count = 0;

  Turns() {
    uint32_t place[kPlaces];  // of each state before a round
    for (int z = 0; z < kPlaces; ++z) place[z] = static_cast<uint32_t>(z);
    do {
      Turn& turn = of[count++];
      turn.apart = static_cast<uint8_t>(place[trellis_before(0, 0) ^ trellis_before(0, 1)] ^ place[0]);
      for (uint32_t set = 1; set < kPlaces; ++set) {
        bool fits = true;
        for (int bit = 0; bit < 8; ++bit) fits &= parity_of(place[1 << bit] & set) == (bit == 0);
        if (fits) turn.set = static_cast<uint8_t>(set);
      }
      uint32_t after[kPlaces];
      for (uint32_t z = 0; z < kPlaces; ++z) after[z] = place[trellis_before(z, 0)];
      std::copy_n(after, kPlaces, place);
      for (int z = 0; z < 16; ++z) {
        turn.place[0][z] = static_cast<uint8_t>(place[z]);
        turn.place[1][z] = static_cast<uint8_t>(place[z << 4]);
      }
    } while (count < 256 && !is_first(place));
  }

 private:
  static bool is_first(const uint32_t* place) {
    for (int bit = 0; bit < 8; ++bit) {
      if (place[1 << bit] != 1u << bit) return false;
    }
    return true;
  }
};

// Bit i says whether the parity of i & mask is odd.
inline uint32_t odd_lanes(uint32_t mask) {
  uint32_t odd = 0;
  constexpr uint32_t kBits[5] = {0xAAAAAAAA, 0xCCCCCCCC, 0xF0F0F0F0, 0xFF00FF00, 0xFFFF0000};
  for (int bit = 0; bit < 5; ++bit) odd ^= mask >> bit & 1 ? kBits[bit] : 0;
  return odd;
}

// Edges of all symbols, 32 at a time: [set * 2 + parity][32].
using Edges = uint16_t[4][32];

// One symbol more for all paths.
inline void extend_chain(__m512i* path, const Edges& edges, size_t i, const Turn& turn, volatile uint32_t* ways) {
  const __mmask32 sets = odd_lanes(turn.set);
  __m512i edge[2][2];  // [whether the place of the vector turns sets over][parity]
  for (int parity = 0; parity < 2; ++parity) {
    const __m512i first = _mm512_set1_epi16(static_cast<int16_t>(edges[parity][i]));
    const __m512i second = _mm512_set1_epi16(static_cast<int16_t>(edges[2 + parity][i]));
    edge[0][parity] = _mm512_mask_mov_epi16(first, sets, second);
    edge[1][parity] = _mm512_mask_mov_epi16(second, sets, first);
  }
  const __m512i lanes = _mm512_set_epi16(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12,
                                         11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i other = _mm512_xor_si512(lanes, _mm512_set1_epi16(turn.apart & 31));
  __m512i next[kPathVectors];
  for (int v = 0; v < kPathVectors; ++v) {
    const __m512i* const own = edge[parity_of(static_cast<uint32_t>(v << 5) & turn.set)];
    const __m512i even = _mm512_add_epi16(_mm512_load_si512(path + v), own[0]);
    const __m512i partner = _mm512_permutexvar_epi16(other, _mm512_load_si512(path + (v ^ turn.apart >> 5)));
    next[v] = choose_way(even, _mm512_add_epi16(partner, own[1]), ways + v);
  }
  for (int v = 0; v < kPathVectors; ++v) _mm512_store_si512(path + v, next[v]);
}

void search_one(const int32_t* charges, const int32_t* residuals, const uint8_t* rows, size_t count, uint8_t* bytes,
                int16_t* values) {
  static const Turns turns;
  uint32_t* const trail = reinterpret_cast<uint32_t*>(bytes);
  uint8_t* const highers = bytes + 4 * kPathVectors * count;
  __m512i path[kPathVectors];
  for (__m512i& some : path) some = _mm512_set1_epi16(kUnreached);
  path[0] = _mm512_mask_mov_epi16(path[0], 1, _mm512_setzero_si512());
  int turn = 0;
  for (size_t first = 0; first < count; first += 32) {
    alignas(64) Edges edges;
    uint16_t masks[8];
    for (int h = 0; h < 2; ++h) {
      __m256i half[4];
      find_edges(charges, residuals + first + kVector * h, rows + first + kVector * h, half, masks + h);
      for (int e = 0; e < 4; ++e) _mm256_store_si256(reinterpret_cast<__m256i*>(edges[e] + kVector * h), half[e]);
    }
    std::memcpy(highers + first / 2, masks, sizeof masks);
    for (size_t i = 0; i < std::min<size_t>(32, count - first); ++i) {
      extend_chain(path, edges, i, turns.of[turn], trail + kPathVectors * (first + i));
      turn = turn + 1 == turns.count ? 0 : turn + 1;
    }
  }
  alignas(64) uint16_t costs[kPlaces];
  std::memcpy(costs, path, sizeof costs);
  turn = turn == 0 ? turns.count - 1 : turn - 1;  // of the last symbol
  const auto place = [&](uint32_t z) { return turns.of[turn].place[0][z & 15] ^ turns.of[turn].place[1][z >> 4]; };
  uint32_t state = 0;
  for (uint32_t z = 1; count > 0 && z < kPlaces; ++z) {
    const uint16_t more = static_cast<uint16_t>(costs[place(z)] - costs[place(state)]);
    if (static_cast<int16_t>(more) < 0) state = z;
  }
  for (size_t i = count; i-- > 0; turn = turn == 0 ? turns.count - 1 : turn - 1) {
    const uint32_t at = static_cast<uint32_t>(place(state));
    const uint32_t odd = trail[kPathVectors * i + (at >> 5)] >> (at & 31) & 1;
    state = trellis_before(state, odd);
    const int set = static_cast<int>(state & 1);
    const int32_t below = rans::index_below(rans::clamped(residuals[i]), set), sign = residuals[i] >> 31;
    const int32_t other = (below ^ static_cast<int32_t>(odd)) & 1;
    uint16_t mask;
    std::memcpy(&mask, highers + i / 32 * 16 + 2 * (4 * set + 2 * other + i / 16 % 2), sizeof mask);
    const int32_t index = below - other + 2 * (mask >> i % 16 & 1);
    const int32_t value = 2 * index - (index > 0 ? set : 0);
    values[i] = static_cast<int16_t>((value ^ sign) - sign);
  }
}

const Path kAvx512Path = {"avx512", pack_rows,      pack_values, pack_residuals, unpack_values, decode,
                          encode,   decode_trellis, to_indices,  search,         search_one};

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
