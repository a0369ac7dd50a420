// The trellis as portable loops over its 32 chains, which every instruction set compiles for itself. What is included
// here is included before the instruction set is chosen, so that only this code is compiled for it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
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

// trellis_next with no shift by a variable: words have none.
static inline uint16_t next_word(uint16_t state, uint16_t index) {
  const int odd = index ^ state ^ (state >> 1) ^ (state >> 2);
  return static_cast<uint16_t>(((state << 1) & 6) | (odd & 1));
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
  int32_t path[kTrellisStates][kChains];  // costs by the last state
  int32_t symbol[2][2][kChains];          // what one more symbol adds, by set and parity of its index
  int32_t size[kChains];                  // of its residual
  int32_t bits[kChains];                  // of the trail: [state] says that the way to it is from state >> 1 | 4,
                                          // [8 + 2 * set + parity] that the higher index is the cheaper one
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
    round.bits[c] |= (odd ? other_higher | same_higher << 1 : same_higher | other_higher << 1) << (8 + 2 * kSet);
  }
}

// Chooses the way into a state.
template <int kState>
static inline void extend_path(SearchRound& round, int32_t* path) {
  constexpr int kLow = kState >> 1, kSet = kLow & 1, kParity = (kState ^ (0x96 >> kLow)) & 1;
  for (int c = 0; c < kChains; ++c) {
    const int32_t first = round.path[kLow][c] + round.symbol[kSet][kParity][c];
    const int32_t second = round.path[kLow | 4][c] + round.symbol[kSet][kParity ^ 1][c];
    path[c] = std::min(first, second);
    round.bits[c] |= static_cast<int32_t>(second < first) << kState;
  }
}

// The same for all states of the first `active` chains.
template <int... kStates>
static inline void extend_paths(SearchRound& round, int active, std::integer_sequence<int, kStates...>) {
  int32_t path[kTrellisStates][kChains];
  (extend_path<kStates>(round, path[kStates]), ...);
  for (int state = 0; state < kTrellisStates; ++state) std::copy_n(path[state], active, round.path[state]);
}

static inline void lower_costs(SearchRound& round) {
  for (int c = 0; c < kChains; ++c) {
    int32_t lowest = round.path[0][c];
    for (int state = 1; state < kTrellisStates; ++state) lowest = std::min(lowest, round.path[state][c]);
    for (int state = 0; state < kTrellisStates; ++state) round.path[state][c] -= lowest;
  }
}

// Goes one round back: values, and the states before it.
static inline void trace_round(const int32_t* residuals, const uint16_t* trail, int count, int32_t* states,
                               int16_t* values) {
  for (int c = 0; c < count; ++c) {
    const int32_t bits = trail[c], state = states[c];
    const int32_t before = state >> 1 | (bits >> state & 1) << 2;
    const int32_t set = before & 1, parity = (state ^ (0x96 >> before)) & 1;
    const int32_t below = index_below(clamped(residuals[c]), set);
    const int32_t index = below - ((below ^ parity) & 1) + 2 * (bits >> (8 + 2 * set + parity) & 1);
    const int32_t value = trellis_value(set, index);
    values[c] = static_cast<int16_t>(residuals[c] < 0 ? -value : value);
    states[c] = before;
  }
}

static inline void search_chains(const int32_t* charges, const int32_t* residuals, const uint8_t* rows,
                                 size_t count, uint16_t* trail, int16_t* values) {
  SearchRound round;
  std::fill_n(round.path[0], kTrellisStates * kChains, kUnreached);
  std::fill_n(round.path[0], kChains, 0);
  size_t first = 0;
  for (; first < count; first += kChains) {
    if (first / kChains % kRoundsToLowest == 0) lower_costs(round);
    for (int c = 0; c < kChains; ++c) round.size[c] = clamped(residuals[first + c]);
    std::fill_n(round.bits, kChains, 0);
    cost_symbols<0>(round, charges, rows + first);
    cost_symbols<1>(round, charges, rows + first);
    const int active = static_cast<int>(std::min<size_t>(count - first, kChains));
    extend_paths(round, active, std::make_integer_sequence<int, kTrellisStates>());
    for (int c = 0; c < kChains; ++c) trail[first + c] = static_cast<uint16_t>(round.bits[c]);
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
    trace_round(residuals + at, trail + at, active, states, values + at);
  }
}

}  // namespace dca::rans
