// Kernels for AVX2: 8, 16 or 32 lanes, eight to a register. Low bits and escapes are left to scalar code.
#include "rans_paths.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace dca::rans {
namespace {

using Permutations = std::array<std::array<uint8_t, 8>, 256>;

// Entry [mask][lane]: which of the next words belongs to a lane of `mask`.
constexpr Permutations make_spread() {
  Permutations table{};
  for (int mask = 0; mask < 256; ++mask) {
    for (int lane = 0, rank = 0; lane < 8; ++lane) {
      if (mask >> lane & 1) table[mask][lane] = static_cast<uint8_t>(rank++);
    }
  }
  return table;
}

// Entry [mask]: the lanes of `mask` in ascending order, at the start or moved to the end.
constexpr Permutations make_gather(bool to_end) {
  Permutations table{};
  for (int mask = 0; mask < 256; ++mask) {
    int place = 0;
    for (int lane = 0; lane < 8; ++lane) place += to_end && (mask >> lane & 1) == 0;
    for (int lane = 0; lane < 8; ++lane) {
      if (mask >> lane & 1) table[mask][place++] = static_cast<uint8_t>(lane);
    }
  }
  return table;
}

constexpr Permutations kSpread = make_spread();
constexpr Permutations kGather = make_gather(false);
constexpr Permutations kGatherToEnd = make_gather(true);

}  // namespace
}  // namespace dca::rans

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,popcnt")
#endif

#include "rans_trellis.h"

namespace dca::rans {
namespace {

inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline __m128i eight(const void* from) { return _mm_loadl_epi64(static_cast<const __m128i*>(from)); }
inline void store(void* to, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(to), v); }
inline __m256i permutation(const Permutations& table, unsigned mask) {
  return _mm256_cvtepu8_epi32(eight(table[mask].data()));
}
// The low words of eight lanes.
inline __m128i narrow(__m256i lanes) {
  return _mm_packus_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
}
inline unsigned mask_of(__m256i lanes) { return static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(lanes))); }

inline unsigned coded_of(__m128i rows) {
  return ~static_cast<unsigned>(_mm_movemask_epi8(_mm_cmpeq_epi8(rows, _mm_set1_epi8(-1)))) & 0xFF;
}
// Byte permutation that moves eight words as `table[mask]` moves eight bytes.
inline __m128i word_permutation(const Permutations& table, unsigned mask) {
  const __m128i lane = eight(table[mask].data());
  return _mm_add_epi8(_mm_slli_epi16(_mm_unpacklo_epi8(lane, lane), 1), _mm_set1_epi16(0x0100));
}

size_t pack_rows(const uint8_t* rows, size_t n, size_t capacity, uint8_t* dense, ptrdiff_t& count) {
  size_t kept = 0, i = 0;
  unsigned bad = 0;
  for (; i + 8 <= n && kept + 8 <= capacity; i += 8) {
    const __m128i row = eight(rows + i);
    const unsigned coded = coded_of(row);
    bad |= static_cast<unsigned>(_mm_movemask_epi8(row)) & coded;  // a table row has a clear top bit
    _mm_storel_epi64(reinterpret_cast<__m128i*>(dense + kept), _mm_shuffle_epi8(row, eight(kGather[coded].data())));
    kept += static_cast<size_t>(_mm_popcnt_u32(coded));
  }
  ptrdiff_t rest = 0;
  i += kScalarPath.pack_rows(rows + i, n - i, capacity - kept, dense + kept, rest);
  count = bad != 0 || rest < 0 ? -1 : static_cast<ptrdiff_t>(kept) + rest;
  return i;
}

void pack_values(const uint8_t* rows, const int16_t* values, size_t n, int16_t* dense) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const unsigned coded = coded_of(eight(rows + i));
    const __m128i value = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + i));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dense), _mm_shuffle_epi8(value, word_permutation(kGather, coded)));
    dense += _mm_popcnt_u32(coded);
  }
  kScalarPath.pack_values(rows + i, values + i, n - i, dense);
}

void pack_residuals(const uint8_t* rows, const int32_t* residuals, size_t n, int32_t* dense) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const unsigned coded = coded_of(eight(rows + i));
    store(dense, _mm256_permutevar8x32_epi32(load(residuals + i), permutation(kGather, coded)));
    dense += _mm_popcnt_u32(coded);
  }
  kScalarPath.pack_residuals(rows + i, residuals + i, n - i, dense);
}

void unpack_values(const uint8_t* rows, const int16_t* dense, size_t n, int16_t* values) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i skip = _mm_cmpeq_epi8(eight(rows + i), _mm_set1_epi8(-1));
    const unsigned coded = coded_of(eight(rows + i));
    const __m128i value = _mm_loadu_si128(reinterpret_cast<const __m128i*>(dense));
    const __m128i spread = _mm_shuffle_epi8(value, word_permutation(kSpread, coded));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(values + i), _mm_andnot_si128(_mm_unpacklo_epi8(skip, skip), spread));
    dense += _mm_popcnt_u32(coded);
  }
  kScalarPath.unpack_values(rows + i, dense, n - i, values + i);
}

// Scalar loads: as fast as the gather instruction at best, and far faster where microcode slows that down.
inline __m256i lookup(const uint32_t* slots, __m256i index) {
  alignas(32) uint32_t i[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(i), index);
  return _mm256_setr_epi32(static_cast<int>(slots[i[0]]), static_cast<int>(slots[i[1]]), static_cast<int>(slots[i[2]]),
                           static_cast<int>(slots[i[3]]), static_cast<int>(slots[i[4]]), static_cast<int>(slots[i[5]]),
                           static_cast<int>(slots[i[6]]), static_cast<int>(slots[i[7]]));
}

// Whether any of the next rows has low bits; reads 32 of them.
inline bool has_low_bits(const TableView& tables, const uint8_t* rows, int lanes) {
  const __m256i row = _mm256_and_si256(load(rows), _mm256_set1_epi8(kRows - 1));
  const __m256i first = _mm256_set1_epi8(static_cast<char>(tables.first_shift));
  const int found = _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_max_epu8(row, first), row));
  return static_cast<uint32_t>(found) << (32 - lanes) != 0;
}

inline const uint8_t* refill_all(__m256i& x, const uint8_t* words) {
  const __m256i need = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
  const unsigned mask = mask_of(need);
  const __m256i next = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(words)));
  const __m256i word = _mm256_permutevar8x32_epi32(next, permutation(kSpread, mask));
  x = _mm256_blendv_epi8(x, _mm256_or_si256(_mm256_slli_epi32(x, 16), word), need);
  return words + 2 * _mm_popcnt_u32(mask);
}

template <int kVectors>
const uint8_t* decode_rounds(const TableView& tables, uint32_t* states, const uint8_t* words, const uint8_t* end,
                             const uint8_t* rows, size_t rounds, int16_t* values) {
  constexpr int kLanes = 8 * kVectors;
  const __m256i field = _mm256_set1_epi32(kSlots - 1);
  for (; rounds > 0; --rounds, rows += kLanes, values += kLanes) {
    __m256i escapes = _mm256_setzero_si256();
    for (int v = 0; v < kVectors; ++v) {
      const __m256i row = _mm256_cvtepu8_epi32(eight(rows + 8 * v));
      __m256i x = load(states + 8 * v);
      const __m256i slot = _mm256_or_si256(_mm256_slli_epi32(row, kProbBits), _mm256_and_si256(x, field));
      const __m256i entry = lookup(tables.slots, slot);
      const __m256i freq = _mm256_and_si256(_mm256_srli_epi32(entry, 12), field);
      x = _mm256_mullo_epi32(freq, _mm256_srli_epi32(x, kProbBits));
      x = _mm256_add_epi32(x, _mm256_and_si256(entry, field));
      words = refill_all(x, words);
      store(states + 8 * v, x);
      const __m256i symbol = _mm256_srli_epi32(entry, 24);
      escapes = _mm256_or_si256(escapes, _mm256_cmpeq_epi32(symbol, _mm256_set1_epi32(kEscape)));
      const __m128i value = _mm_sub_epi16(narrow(symbol), _mm_set1_epi16(kCenter));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(values + 8 * v), value);
    }
    if (mask_of(escapes) != 0 || has_low_bits(tables, rows, kLanes)) {
      words = decode_rest(tables, kLanes, states, words, rows, values);
    }
    if (words > end) return nullptr;
  }
  return words;
}

const uint8_t* decode(const TableView& tables, int lanes, uint32_t* states, const uint8_t* words, const uint8_t* end,
                      const uint8_t* rows, size_t count, int16_t* values) {
  const size_t rounds = count / static_cast<size_t>(lanes);
  size_t done = rounds * static_cast<size_t>(lanes);
  switch (lanes) {
    case 8:
      words = decode_rounds<1>(tables, states, words, end, rows, rounds, values);
      break;
    case 16:
      words = decode_rounds<2>(tables, states, words, end, rows, rounds, values);
      break;
    case 32:
      words = decode_rounds<4>(tables, states, words, end, rows, rounds, values);
      break;
    default:
      done = 0;
  }
  if (words == nullptr) return nullptr;
  return kScalarPath.decode(tables, lanes, states, words, end, rows + done, count - done, values + done);
}

template <int kVectors>
const uint8_t* decode_chains(const TableView& tables, uint32_t* states, const uint8_t* words, const uint8_t* end,
                             const uint8_t* rows, size_t count, int16_t* values, uint16_t* chains, size_t width) {
  uint8_t chosen[2 * kChains] = {};  // has_low_bits reads beyond the rows
  for (; count >= width; count -= width, rows += width, values += width) {
    choose_rows(rows, chains, static_cast<int>(width), chosen);
    words = decode_rounds<kVectors>(tables, states, words, end, chosen, width / (8 * kVectors), values);
    if (words == nullptr) return nullptr;
    indices_to_values(static_cast<int>(width), values, chains);
  }
  return words;
}

const uint8_t* decode_trellis(const TableView& tables, int lanes, uint32_t* states, const uint8_t* words,
                              const uint8_t* end, const uint8_t* rows, size_t count, int16_t* values, uint16_t* chains,
                              int width) {
  const size_t some = static_cast<size_t>(width);
  size_t done = count - count % some;
  switch (lanes) {
    case 8:
      words = decode_chains<1>(tables, states, words, end, rows, done, values, chains, some);
      break;
    case 16:
      words = decode_chains<2>(tables, states, words, end, rows, done, values, chains, some);
      break;
    case 32:
      words = decode_chains<4>(tables, states, words, end, rows, done, values, chains, some);
      break;
    default:
      done = 0;
  }
  if (words == nullptr) return nullptr;
  return kScalarPath.decode_trellis(tables, lanes, states, words, end, rows + done, count - done, values + done, chains,
                                    width);
}

inline uint8_t* spill_all(__m256i& x, __m256i limit, uint8_t* words) {
  const __m256i need = _mm256_cmpeq_epi32(_mm256_max_epu32(x, limit), x);
  const unsigned mask = mask_of(need);
  const __m256i low = _mm256_and_si256(x, _mm256_set1_epi32(0xFFFF));
  const __m256i sorted = _mm256_permutevar8x32_epi32(low, permutation(kGatherToEnd, mask));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(words - 16), narrow(sorted));
  x = _mm256_blendv_epi8(x, _mm256_srli_epi32(x, 16), need);
  return words - 2 * _mm_popcnt_u32(mask);
}

inline __m256i push(__m256i x, __m256i reciprocal, __m256i packed) {
  const __m256i increment = _mm256_and_si256(_mm256_srli_epi32(packed, 5), _mm256_set1_epi32(1));
  const __m256i n = _mm256_add_epi32(x, increment);
  const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(n, reciprocal), 32);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(n, 32), _mm256_srli_epi64(reciprocal, 32));
  const __m256i high = _mm256_blend_epi32(even, odd, 0xAA);
  const __m256i quotient = _mm256_srlv_epi32(high, _mm256_and_si256(packed, _mm256_set1_epi32(31)));
  const __m256i rest = _mm256_sub_epi32(_mm256_set1_epi32(kSlots), _mm256_srli_epi32(packed, 20));
  const __m256i start = _mm256_and_si256(_mm256_srli_epi32(packed, 8), _mm256_set1_epi32(0xFFF));
  return _mm256_add_epi32(_mm256_add_epi32(x, start), _mm256_mullo_epi32(quotient, rest));
}

template <int kVectors>
uint8_t* encode_rounds(const TableView& tables, uint32_t* states, uint8_t* words, const uint8_t* rows,
                       const int16_t* values, size_t rounds) {
  constexpr int kLanes = 8 * kVectors;
  const __m256i freq = _mm256_set1_epi32(static_cast<int>(0xFFF00000u));
  for (rows += rounds * kLanes, values += rounds * kLanes; rounds > 0; --rounds) {
    rows -= kLanes, values -= kLanes;
    SymbolEntry entries[kLanes];
    uint32_t flags = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint32_t row = rows[lane];
      const uint32_t bucket = static_cast<uint32_t>((values[lane] >> tables.shift[row]) + kCenter);
      entries[lane] = tables.symbols[row * kSymbols + (bucket < kEscape ? bucket : kEscape)];
      flags |= entries[lane].packed;
    }
    if ((flags & kEscapeFlag) != 0 || has_low_bits(tables, rows, kLanes)) {
      words = encode_rest(tables, kLanes, states, words, entries, rows, values);
    }
    for (int v = kVectors - 1; v >= 0; --v) {
      const __m256 a = _mm256_castsi256_ps(load(entries + 8 * v)), b = _mm256_castsi256_ps(load(entries + 8 * v + 4));
      const __m256i reciprocal = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)), 0xD8);
      const __m256i packed = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xDD)), 0xD8);
      __m256i x = load(states + 8 * v);
      words = spill_all(x, _mm256_and_si256(packed, freq), words);
      store(states + 8 * v, push(x, reciprocal, packed));
    }
  }
  return words;
}

uint8_t* encode(const TableView& tables, int lanes, uint32_t* states, uint8_t* words, const uint8_t* rows,
                const int16_t* values, size_t count) {
  const size_t rounds = lanes >= 8 ? count / static_cast<size_t>(lanes) : 0;
  const size_t first = rounds * static_cast<size_t>(lanes);
  words = kScalarPath.encode(tables, lanes, states, words, rows + first, values + first, count - first);
  switch (lanes) {
    case 8:
      return encode_rounds<1>(tables, states, words, rows, values, rounds);
    case 16:
      return encode_rounds<2>(tables, states, words, rows, values, rounds);
    default:
      return encode_rounds<4>(tables, states, words, rows, values, rounds);
  }
}

// The cheaper way, an even index if they are equal; `ways` gets the bit.
inline __m256i choose_sixteen(__m256i even, __m256i odd, int bit, __m256i& ways) {
  const __m256i more = _mm256_sub_epi16(odd, even), signs = _mm256_srai_epi16(more, 15);
  ways = _mm256_or_si256(ways, _mm256_and_si256(signs, _mm256_set1_epi16(static_cast<int16_t>(1 << bit))));
  return _mm256_add_epi16(even, _mm256_and_si256(more, signs));
}

// extend_pair for sixteen chains.
template <int kState>
inline void extend_sixteen(const uint16_t (*path)[kChains], const __m256i (*edge)[2], uint16_t (*next)[kChains],
                           __m256i* ways) {
  constexpr int kEven = trellis_before(kState, 0), kOdd = trellis_before(kState, 1), kSet = kEven & 1;
  constexpr int kOther = kState ^ kByParity;
  const __m256i first = load(path[kEven]), second = load(path[kOdd]), even = edge[kSet][0], odd = edge[kSet][1];
  const __m256i way = _mm256_add_epi16(first, even), other_way = _mm256_add_epi16(second, even);
  store(next[kState], choose_sixteen(way, _mm256_add_epi16(second, odd), kState % kWord, ways[0]));
  store(next[kOther], choose_sixteen(other_way, _mm256_add_epi16(first, odd), kOther % kWord, ways[1]));
}

// The same for two words of states.
template <int kFirst, int... kPairs>
inline void extend_vectors(SearchRound& round, std::integer_sequence<int, kPairs...>) {
  for (int c = 0; c < kChains; c += 16) {
    const auto path = reinterpret_cast<const uint16_t (*)[kChains]>(round.path[0] + c);
    const auto next = reinterpret_cast<uint16_t (*)[kChains]>(round.next[0] + c);
    __m256i edge[2][2], ways[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int i = 0; i < 4; ++i) edge[i >> 1][i & 1] = load(round.edge[i >> 1][i & 1] + c);
    (extend_sixteen<kFirst + kPairs>(path, edge, next, ways), ...);
    store(round.odd[kFirst / kWord] + c, ways[0]);
    store(round.odd[(kFirst ^ kByParity) / kWord] + c, ways[1]);
  }
}

template <int... kWords>
inline void extend_all_vectors(SearchRound& round, std::integer_sequence<int, kWords...>) {
  (extend_vectors<first_of_words(kWords)>(round, std::make_integer_sequence<int, kWord>()), ...);
}

inline void extend_paths_of_sixteen(SearchRound& round) {
  extend_all_vectors(round, std::make_integer_sequence<int, kTrellisStates / kWord / 2>());
}

const Path kAvx2Path = {"avx2", pack_rows, pack_values,    pack_residuals, unpack_values,
                        decode, encode,    decode_trellis, to_indices,     search_chains<extend_paths_of_sixteen>,
                        nullptr};

}  // namespace
}  // namespace dca::rans

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace dca::rans {
const Path* avx2_path() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt") ? &kAvx2Path : nullptr;
}
}  // namespace dca::rans

#else

namespace dca::rans {
const Path* avx2_path() { return nullptr; }
}  // namespace dca::rans

#endif
