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

constexpr int kTrellisStep = 160;             // of the grid of values, in units of a residual
constexpr uint32_t kMaxResidual = 8191 << 8;  // a residual beyond it counts as this
constexpr int32_t kUnreached = 1 << 28;       // cost of a state in which no chain begins
constexpr int32_t kNever = 1 << 30;           // cost of an index below 0
constexpr size_t kRoundsToLowest = 32;        // the lowest cost becomes 0: until then they grow by 2^30 at most

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

static inline bool to_indices(uint8_t* rows, int16_t* values, size_t count, uint16_t* chains) {
  uint16_t off_grid = 0;
  for (; count >= kChains; count -= kChains, rows += kChains, values += kChains) {
    off_grid |= values_to_indices(kChains, rows, values, chains);
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
  int32_t (*path)[kChains], (*next)[kChains];  // costs by the last state, before and after the round
  int32_t symbol[2][2][kChains];              // what one more symbol adds, by set and parity of its index
  int32_t size[kChains];                      // of its residual
  int32_t odd[kTrellisStates / 32][kChains];  // the trail: bit `state` says that the index of the way to it is odd
  int32_t higher[kChains];                    // bit 2 * set + parity, that the higher index is the cheaper one
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
    round.symbol[kSet][0][c] = odd ? other : same;
    round.symbol[kSet][1][c] = odd ? same : other;
    round.higher[c] |= (odd ? other_higher | same_higher << 1 : same_higher | other_higher << 1) << (2 * kSet);
  }
}

// Chooses the way into two states, which are entered from the same two; an even index wins ties.
template <int kState>
static inline void extend_pair(SearchRound& round, int32_t* ways) {
  constexpr int kEven = trellis_before(kState, 0), kOdd = trellis_before(kState, 1), kSet = kEven & 1;
  constexpr int kOther = kState ^ kByParity;
  static_assert(trellis_before(kOther, 0) == kOdd && trellis_before(kOther, 1) == kEven);
  for (int c = 0; c < kChains; ++c) {
    const int32_t first = round.path[kEven][c], second = round.path[kOdd][c];
    const int32_t even = round.symbol[kSet][0][c], odd = round.symbol[kSet][1][c];
    round.next[kState][c] = std::min(first + even, second + odd);
    round.next[kOther][c] = std::min(second + even, first + odd);
    const uint32_t way = static_cast<uint32_t>(second + odd < first + even) << (kState % 32);
    const uint32_t other = static_cast<uint32_t>(first + odd < second + even) << (kOther % 32);
    ways[c] |= static_cast<int32_t>(way | other);
  }
}

// The same for all states of one set.
template <int kSet, int... kPairs>
static inline void extend_set(SearchRound& round, std::integer_sequence<int, kPairs...>) {
  static_assert(16 <= kByParity && kByParity < 32);  // bit 4 tells the states of a pair apart
  int32_t ways[kChains] = {};
  (extend_pair<kSet * 32 + kPairs>(round, ways), ...);
  std::copy_n(ways, kChains, round.odd[kSet]);
}

static inline void extend_paths(SearchRound& round) {
  extend_set<0>(round, std::make_integer_sequence<int, 16>());
  extend_set<1>(round, std::make_integer_sequence<int, 16>());
}

static inline void lower_costs(SearchRound& round) {
  for (int c = 0; c < kChains; ++c) {
    int32_t lowest = round.path[0][c];
    for (int state = 1; state < kTrellisStates; ++state) lowest = std::min(lowest, round.path[state][c]);
    for (int state = 0; state < kTrellisStates; ++state) round.path[state][c] -= lowest;
  }
}

// Goes one round back: values, and the states before it.
static inline void trace_round(const int32_t* residuals, const uint8_t* trail, int count, int32_t* states,
                               int16_t* values) {
  int32_t odd[2][kChains];
  std::memcpy(odd, trail, sizeof odd);
  for (int c = 0; c < count; ++c) {
    const uint32_t state = static_cast<uint32_t>(states[c]);
    const int32_t parity = (state < 32 ? odd[0][c] : odd[1][c]) >> (state % 32) & 1;
    const int32_t before = static_cast<int32_t>(trellis_before(state, static_cast<uint32_t>(parity)));
    const int32_t set = before & 1;
    const int32_t below = index_below(clamped(residuals[c]), set), higher = trail[sizeof odd + c];
    const int32_t index = below - ((below ^ parity) & 1) + 2 * (higher >> (2 * set + parity) & 1);
    const int32_t value = trellis_value(set, index);
    values[c] = static_cast<int16_t>(residuals[c] < 0 ? -value : value);
    states[c] = before;
  }
}

template <void (*kExtendPaths)(SearchRound&)>
static inline void search_chains(const int32_t* charges, const int32_t* residuals, const uint8_t* rows,
                                 size_t count, uint8_t* trail, int16_t* values) {
  alignas(64) int32_t paths[2][kTrellisStates][kChains];
  SearchRound round;
  round.path = paths[0], round.next = paths[1];
  std::fill_n(round.path[0], kTrellisStates * kChains, kUnreached);
  std::fill_n(round.path[0], kChains, 0);
  size_t first = 0;
  for (; first < count; first += kChains, trail += kTrailBytes) {
    if (first / kChains % kRoundsToLowest == 0) lower_costs(round);
    for (int c = 0; c < kChains; ++c) round.size[c] = clamped(residuals[first + c]);
    std::fill_n(round.higher, kChains, 0);
    cost_symbols<0>(round, charges, rows + first);
    cost_symbols<1>(round, charges, rows + first);
    const int active = static_cast<int>(std::min<size_t>(count - first, kChains));
    kExtendPaths(round);
    for (int state = 0; active < kChains && state < kTrellisStates; ++state) {
      std::copy_n(round.path[state] + active, kChains - active, round.next[state] + active);
    }
    std::swap(round.path, round.next);
    std::memcpy(trail, round.odd, sizeof round.odd);
    for (int c = 0; c < kChains; ++c) trail[sizeof round.odd + c] = static_cast<uint8_t>(round.higher[c]);
  }
  int32_t states[kChains] = {};
  for (int c = 0; c < kChains; ++c) {
    for (int state = 1; state < kTrellisStates; ++state) {
      if (round.path[state][c] < round.path[states[c]][c]) states[c] = state;
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
