// The trellis as portable loops over its 32 chains, which every instruction set compiles for itself. What is included
// here is included before the instruction set is chosen, so that only this code is compiled for it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "rans_paths.h"

namespace dca::rans {

constexpr int kTrellisStep = 160;                           // of the grid of values, in units of a residual
constexpr uint32_t kMaxResidual = 8191 << 8;                // a residual beyond it counts as this
constexpr int32_t kNever = 1 << 30;                         // cost of an index below 0
constexpr int kWord = 16;                                   // states whose ways share a word of the trail
constexpr size_t kHigherAt = kTrellisStates / 8 * kChains;  // what the trail has behind the ways

// The rows of the tables that the sets of the chains choose.
static inline void choose_rows(const uint8_t* rows, const uint16_t* chains, int count, uint8_t* chosen) {
  for (int c = 0; c < count; ++c) chosen[c] = static_cast<uint8_t>(rows[c] | (chains[c] & 1) * kSetBit);
}

// trellis_next in words.
static inline uint16_t next_word(uint16_t state, uint16_t index) {
  const int by_set = -(state & 1) & kBySet, by_parity = -(index & 1) & kByParity;
  return static_cast<uint16_t>((state >> 1) ^ by_set ^ by_parity);
}

// Turns decoded indices to values and leads the chains on.
static inline void indices_to_values(int count, int16_t* values, uint16_t* chains) {
  for (int c = 0; c < count; ++c) {
    const int16_t index = values[c];
    values[c] = static_cast<int16_t>(trellis_value(chains[c] & 1, index));
    chains[c] = next_word(chains[c], static_cast<uint16_t>(index));
  }
}

// The opposite; bit 0 of what it returns says that a value is not on the grid.
static inline uint16_t values_to_indices(int count, uint8_t* rows, int16_t* values, uint16_t* chains) {
  uint16_t off_grid = 0;
  for (int c = 0; c < count; ++c) {
    const uint16_t set = chains[c] & 1, value = static_cast<uint16_t>(values[c]);
    const uint16_t sign = static_cast<uint16_t>(values[c] >> 15);
    const uint16_t size = static_cast<uint16_t>((value ^ sign) - sign);
    const uint16_t index = static_cast<uint16_t>((size + set) >> 1);
    off_grid |= static_cast<uint16_t>((size ^ set) & static_cast<uint16_t>(value != 0));
    rows[c] = static_cast<uint8_t>(rows[c] | set * kSetBit);
    values[c] = static_cast<int16_t>((index ^ sign) - sign);
    chains[c] = next_word(chains[c], index);
  }
  return off_grid;
}

static inline bool to_indices(uint8_t* rows, int16_t* values, size_t count, uint16_t* chains, int width) {
  uint16_t off_grid = 0;
  for (; width == kChains && count >= kChains; count -= kChains, rows += kChains, values += kChains) {
    off_grid |= values_to_indices(kChains, rows, values, chains);
  }
  const size_t some = static_cast<size_t>(width);
  for (; count > some; count -= some, rows += some, values += some) {
    off_grid |= values_to_indices(width, rows, values, chains);
  }
  off_grid |= values_to_indices(static_cast<int>(count), rows, values, chains);
  return (off_grid & 1) == 0;
}

static inline int32_t clamped(int32_t residual) {
  const uint32_t size = residual < 0 ? 0u - static_cast<uint32_t>(residual) : static_cast<uint32_t>(residual);
  return static_cast<int32_t>(std::min(size, kMaxResidual));
}

// The highest index of a set whose value is not above the residual: a division by 64, and by 5.
static inline int32_t index_below(int32_t size, int set) {
  const uint32_t raised = static_cast<uint32_t>(size + kTrellisStep * set);
  static_assert(2 * kTrellisStep == 64 * 5 && (kMaxResidual + kTrellisStep) >> 6 < 1 << 15);
  return static_cast<int32_t>((raised >> 6) * 0xCCCDu >> 18);
}

// One round of the search: loops over all chains, arrays in one object that nothing else can be a part of.
struct SearchRound {
  uint16_t (*path)[kChains], (*next)[kChains];  // costs by the last state, before and after the round
  int32_t cost[2][2][kChains];                  // of one more symbol, by set and parity of its index
  uint16_t edge[2][2][kChains];                 // what it adds
  int32_t size[kChains];                        // of its residual
  uint16_t (*odd)[kChains];                     // the trail: bit `state` says that the index of the way to it is odd
  int32_t higher[kChains];                      // bit 2 * set + parity, that the higher index is the cheaper one
};

// The cheaper one of the two indices next to the residual, for each parity.
template <int kSet>
static inline void cost_symbols(SearchRound& round, const int32_t* charges, const uint8_t* rows) {
  int32_t below[kChains], cost[4][kChains];  // of the index below and of one less, one more, two more
  for (int c = 0; c < kChains; ++c) below[c] = index_below(round.size[c], kSet);
  for (int c = 0; c < kChains; ++c) {
    const int32_t* charge = charges + (kSet * kRows + rows[c]) * kSymbols;
    for (int i = 0; i < 4; ++i) cost[i][c] = charge[std::clamp(below[c] - 1 + i, 0, kSymbols - 1)];
  }
  for (int c = 0; c < kChains; ++c) {
    for (int i = 0; i < 4; ++i) {
      const int32_t error = round.size[c] - kTrellisStep * trellis_value(kSet, below[c] - 1 + i);
      cost[i][c] += error * error;
    }
    cost[0][c] = below[c] == 0 ? kNever : cost[0][c];
    const int32_t other = std::min(cost[0][c], cost[2][c]), same = std::min(cost[1][c], cost[3][c]);
    const int32_t other_higher = cost[2][c] < cost[0][c], same_higher = cost[3][c] < cost[1][c];
    const int32_t odd = -(below[c] & 1);
    round.cost[kSet][0][c] = odd ? other : same;
    round.cost[kSet][1][c] = odd ? same : other;
    round.higher[c] |= (odd ? other_higher | same_higher << 1 : same_higher | other_higher << 1) << (2 * kSet);
  }
}

static inline void find_edges(SearchRound& round) {
  int32_t least[kChains];
  for (int c = 0; c < kChains; ++c) {
    const int32_t even = round.cost[0][0][c], odd = round.cost[0][1][c];
    const int32_t other_even = round.cost[1][0][c], other_odd = round.cost[1][1][c];
    const int32_t in_set = even < odd ? even : odd, in_other = other_even < other_odd ? other_even : other_odd;
    least[c] = in_set < in_other ? in_set : in_other;
  }
  for (int set = 0; set < 2; ++set) {
    for (int parity = 0; parity < 2; ++parity) {
      const int32_t* cost = round.cost[set][parity];
      for (int c = 0; c < kChains; ++c) round.edge[set][parity][c] = trellis_edge(cost[c], least[c]);
    }
  }
}

// The cheaper way, an even index if they are equal; `ways` gets the bit.
static inline uint16_t choose_way(uint16_t even, uint16_t odd, uint16_t bit, uint16_t& ways) {
  const uint16_t more = static_cast<uint16_t>(odd - even);
  const uint16_t sign = static_cast<uint16_t>(static_cast<int16_t>(more) >> 15);
  ways = static_cast<uint16_t>(ways | (sign & bit));
  return static_cast<uint16_t>(even + (more & sign));
}

// Chooses the way into two states, which are entered from the same two. Nothing here overlaps: a compiler may take all
// chains at once.
static inline void choose_ways(const uint16_t* __restrict first, const uint16_t* __restrict second,
                               const uint16_t (*__restrict edge)[kChains], uint16_t bit, uint16_t other_bit,
                               uint16_t* __restrict next, uint16_t* __restrict other_next, uint16_t* __restrict ways,
                               uint16_t* __restrict other_ways) {
  for (int c = 0; c < kChains; ++c) {
    const uint16_t even = edge[0][c], odd = edge[1][c];
    next[c] = choose_way(static_cast<uint16_t>(first[c] + even), static_cast<uint16_t>(second[c] + odd), bit, ways[c]);
    other_next[c] = choose_way(static_cast<uint16_t>(second[c] + even), static_cast<uint16_t>(first[c] + odd),
                               other_bit, other_ways[c]);
  }
}

template <int kState>
static inline void extend_pair(SearchRound& round, uint16_t* ways, uint16_t* other_ways) {
  constexpr int kEven = trellis_before(kState, 0), kOdd = trellis_before(kState, 1), kOther = kState ^ kByParity;
  static_assert(trellis_before(kOther, 0) == kOdd && trellis_before(kOther, 1) == kEven);
  choose_ways(round.path[kEven], round.path[kOdd], round.edge[kEven & 1], 1 << kState % kWord, 1 << kOther % kWord,
              round.next[kState], round.next[kOther], ways, other_ways);
}

// The same for two words of states.
template <int kFirst, int... kPairs>
static inline void extend_words(SearchRound& round, std::integer_sequence<int, kPairs...>) {
  uint16_t ways[2][kChains] = {};
  (extend_pair<kFirst + kPairs>(round, ways[0], ways[1]), ...);
  std::copy_n(ways[0], kChains, round.odd[kFirst / kWord]);
  std::copy_n(ways[1], kChains, round.odd[(kFirst ^ kByParity) / kWord]);
}

// The first state of the i-th word of those without kApart.
constexpr int first_of_words(int i) {
  static_assert(kApart <= kByParity && kByParity < 2 * kApart && kApart % kWord == 0);
  return (i * kWord & (kApart - 1)) | (i * kWord & -kApart) << 1;
}

template <int... kWords>
static inline void extend_all(SearchRound& round, std::integer_sequence<int, kWords...>) {
  (extend_words<first_of_words(kWords)>(round, std::make_integer_sequence<int, kWord>()), ...);
}

static inline void extend_paths(SearchRound& round) {
  extend_all(round, std::make_integer_sequence<int, kTrellisStates / kWord / 2>());
}

// Goes one round back: values, and the states before it.
static inline void trace_round(const int32_t* residuals, const uint8_t* trail, int count, int32_t* states,
                               int16_t* values) {
  const auto odd = reinterpret_cast<const uint16_t (*)[kChains]>(trail);
  int32_t sets[kChains] = {}, parities[kChains] = {}, higher[kChains];
  for (int c = 0; c < kChains; ++c) higher[c] = trail[kHigherAt + c];
  for (int c = 0; c < count; ++c) {
    const uint32_t state = static_cast<uint32_t>(states[c]);
    const uint32_t parity = odd[state / kWord][c] >> (state % kWord) & 1u;
    const uint32_t before = trellis_before(state, parity);
    sets[c] = static_cast<int32_t>(before & 1), parities[c] = static_cast<int32_t>(parity);
    states[c] = static_cast<int32_t>(before);
  }
  for (int c = 0; c < kChains; ++c) {
    const int32_t set = sets[c], parity = parities[c], sign = residuals[c] >> 31;
    const int32_t below = index_below(clamped(residuals[c]), set);
    const int32_t index = below - ((below ^ parity) & 1) + 2 * (higher[c] >> (2 * set + parity) & 1);
    const int32_t value = 2 * index - (index > 0 ? set : 0);
    values[c] = static_cast<int16_t>((value ^ sign) - sign);
  }
}

template <void (*kExtendPaths)(SearchRound&)>
static inline void search_chains(const int32_t* charges, const int32_t* residuals, const uint8_t* rows, size_t count,
                                 uint8_t* trail, int16_t* values) {
  alignas(64) uint16_t paths[2][kTrellisStates][kChains];
  SearchRound round;
  round.path = paths[0], round.next = paths[1];
  std::fill_n(round.path[0], kTrellisStates * kChains, static_cast<uint16_t>(kUnreached));
  std::fill_n(round.path[0], kChains, static_cast<uint16_t>(0));
  size_t first = 0;
  for (; first < count; first += kChains, trail += kTrailBytes) {
    for (int c = 0; c < kChains; ++c) round.size[c] = clamped(residuals[first + c]);
    std::fill_n(round.higher, kChains, 0);
    cost_symbols<0>(round, charges, rows + first);
    cost_symbols<1>(round, charges, rows + first);
    find_edges(round);
    const int active = static_cast<int>(std::min<size_t>(count - first, kChains));
    round.odd = reinterpret_cast<uint16_t (*)[kChains]>(trail);
    kExtendPaths(round);
    for (int state = 0; active < kChains && state < kTrellisStates; ++state) {
      std::copy_n(round.path[state] + active, kChains - active, round.next[state] + active);
    }
    std::swap(round.path, round.next);
    for (int c = 0; c < kChains; ++c) trail[kHigherAt + c] = static_cast<uint8_t>(round.higher[c]);
  }
  int32_t states[kChains] = {};
  for (int c = 0; c < kChains; ++c) {
    for (int state = 1; state < kTrellisStates; ++state) {
      const uint16_t more = static_cast<uint16_t>(round.path[state][c] - round.path[states[c]][c]);
      if (static_cast<int16_t>(more) < 0) states[c] = state;
    }
  }
  for (; first > 0; first -= kChains) {
    const size_t at = first - kChains;
    const int active = static_cast<int>(std::min<size_t>(count - at, kChains));
    trail -= kTrailBytes;
    trace_round(residuals + at, trail, active, states, values + at);
  }
}

}  // namespace dca::rans
