// The rANS step: constants, table entries, one encode step and one decode step.
//
// A lane is a 32-bit state in [2^16, 2^32); it exchanges 16-bit words with a stream that all lanes
// share. The steps are templates over the stream ("Words"), so that a scalar loop and a GPU warp use
// the same arithmetic. Everything is static: a translation unit built for one instruction set must
// not lend its code to another.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define DCA_HD static __host__ __device__ __forceinline__
#else
#define DCA_HD static inline
#endif

namespace dca::rans {

constexpr int kProbBits = 12;
constexpr int kSlots = 1 << kProbBits;
constexpr int kRows = 128;       // rows that a symbol can name
constexpr int kTableRows = 384;  // those of plain values, of trellis set 0, of trellis set 1
constexpr int kSymbols = 256;
constexpr int kEscape = 255;   // symbol: the value follows as one raw word
constexpr int kCenter = 127;   // symbol of bucket 0
constexpr int kSkipRow = 255;  // row: nothing is coded, the value is 0
constexpr int kMaxShift = 8;   // 127 << 8 still fits int16
constexpr int kMaxLanes = 32;
constexpr int kMaxGroups = 64;
constexpr int kWordsPerSymbol = 2;   // at most: one refill, and then low bits or a raw value
constexpr int kChains = 32;          // most trellis chains of a group: coded symbol j belongs to chain j % chains
constexpr int kChainSymbols = 1024;  // of each chain at least, unless there is but one
constexpr int kTrellisStates = 256;
constexpr int kTailShare = 32;  // the last one in so many coded symbols of a stream's last part are its tail
constexpr uint32_t kLower = 1u << 16;

// The tail has fewer lanes than what comes before it. The encoder, which begins with it, hands the first words that it
// writes for the tail to the other lanes, as their first states.
DCA_HD uint32_t tail_lanes(uint32_t lanes) { return lanes < 4 ? 1 : lanes / 4; }

// How many chains each group has in a part of so many coded symbols.
DCA_HD uint32_t chains_of(uint64_t symbols, uint32_t groups) {
  const uint64_t most = symbols / groups / kChainSymbols;
  uint32_t chains = 1;
  while (chains < kChains && 2 * chains <= most) chains *= 2;
  return chains;
}

// Where the tail of so many symbols begins: at a whole round of chains, before the last symbol.
DCA_HD uint64_t tail_begin(uint64_t symbols) { return symbols * (kTailShare - 1) / (kTailShare * kChains) * kChains; }

// Decoder entry of one slot: symbol << 24 | freq << 12 | slot - start.
DCA_HD uint32_t slot_entry(uint32_t symbol, uint32_t freq, uint32_t bias) { return symbol << 24 | freq << 12 | bias; }

// Encoder entry of one symbol. `packed` = freq << 20 | start << 8 | escape << 6 | increment << 5 | log2
// and `reciprocal` give x / freq without a division:
//   x / freq == ((x + increment) * reciprocal) >> (32 + log2)  for every x < 2^32 - 1.
// With 2^log2 <= freq < 2^(log2+1), the rounded-up reciprocal is exact if its error is <= 2^log2, and
// otherwise the rounded-down one is, applied to x + 1 (Robison, N-bit unsigned division via N-bit
// multiply-add, 2005). A state about to be divided is below freq << 20 < 2^32 - 1.
struct SymbolEntry {
  uint32_t reciprocal;
  uint32_t packed;
};

constexpr uint32_t kEscapeFlag = 64;

DCA_HD SymbolEntry symbol_entry(uint32_t start, uint32_t freq, bool escape) {
  uint32_t log2 = 0;
  while (freq >> (log2 + 1)) ++log2;
  const uint64_t scale = uint64_t{1} << (32 + log2);
  const uint64_t down = scale / freq;
  const uint64_t error_up = (down + 1) * freq - scale;
  const bool power = (freq & (freq - 1)) == 0;  // its exact reciprocal, 2^32, does not fit
  const bool up = !power && error_up <= (uint64_t{1} << log2);
  const uint64_t reciprocal = power ? 0xFFFFFFFFu : down + up;
  const uint32_t flags = (escape ? kEscapeFlag : 0) | static_cast<uint32_t>(!up) << 5;
  return {static_cast<uint32_t>(reciprocal), freq << 20 | start << 8 | flags | log2};
}

// The trellis: a shift register with feedback. A symbol in `state` is a multiple of one step from the set state & 1:
// index k stands for the value v = 2k in set 0 and for 2k - sign(k) in set 1. The set comes back in the highest bit
// of the next state, which no parity reaches: a state is entered from one set only.
constexpr int kBySet = 173;    // what a set of 1 turns over in the next state
constexpr int kByParity = 69;  // what an odd index does
constexpr int kApart = 64;     // highest bit of kByParity: tells states apart that are entered from the same two

DCA_HD uint32_t trellis_next(uint32_t state, int k) {
  return (state >> 1) ^ ((state & 1) * kBySet) ^ ((static_cast<uint32_t>(k) & 1) * kByParity);
}

// The state from which an index of this parity leads to `state`.
DCA_HD constexpr uint32_t trellis_before(uint32_t state, uint32_t parity) {
  const uint32_t set = state / (kTrellisStates / 2);
  return ((state ^ (set * kBySet) ^ (parity * kByParity)) << 1 | set) & (kTrellisStates - 1);
}

// What its search adds to a path at one symbol: of the squared error + charge of this edge, what exceeds the `least` of
// the symbol's four. kSteps symbols lead from any state to any other, so that every state is then within as many edges
// of the best one; one that no chain has reached until then is behind by kUnreached and those edges. Costs that are
// compared thus differ by less than 2^15, and may wrap around in 16 bits.
constexpr int kEdgeShift = 6;
constexpr int kEdgeLimit = 2000;
constexpr int kSteps = 8;
constexpr int kUnreached = kSteps * kEdgeLimit + 1;  // cost of a state in which no chain begins
static_assert(1 << kSteps == kTrellisStates && kUnreached + kSteps * kEdgeLimit < 1 << 15, "");

DCA_HD uint16_t trellis_edge(int32_t cost, int32_t least) {
  const int32_t more = (cost - least) >> kEdgeShift;
  return static_cast<uint16_t>(more < kEdgeLimit ? more : kEdgeLimit);
}

DCA_HD int trellis_value(int set, int k) { return 2 * k - (k > 0 ? set : k < 0 ? -set : 0); }

// Exact only for values on the grid of the set.
DCA_HD int trellis_index(int set, int v) { return v < 0 ? -((set - v) >> 1) : (v + set) >> 1; }

// words.take(need) returns the next word and steps over it only if `need`; words.put(need, word) stores
// the word only if `need`. Whether a lane needs a word is close to random: shifts instead of branches.
template <class Words>
DCA_HD uint32_t refill(uint32_t x, Words& words) {
  const bool need = x < kLower;
  const uint64_t joined = uint64_t{x} << 16 | words.take(need);
  return static_cast<uint32_t>(joined >> (16 * static_cast<int>(!need)));
}

template <class Words>
DCA_HD uint32_t spill(uint32_t x, bool need, Words& words) {
  words.put(need, static_cast<uint16_t>(x));
  return x >> (16 * static_cast<int>(need));
}

template <class Words>
DCA_HD uint32_t decode_step(uint32_t x, uint32_t entry, Words& words) {
  x = ((entry >> 12) & 0xFFF) * (x >> kProbBits) + (entry & 0xFFF);
  return refill(x, words);
}

template <class Words>
DCA_HD uint32_t encode_step(uint32_t x, SymbolEntry entry, Words& words) {
  const uint32_t freq = entry.packed >> 20;
  x = spill(x, x >= (entry.packed & 0xFFF00000u), words);  // freq << 20
  const uint64_t product = (uint64_t{x} + ((entry.packed >> 5) & 1)) * entry.reciprocal;
  const uint32_t quotient = static_cast<uint32_t>(product >> 32) >> (entry.packed & 31);
  return x + ((entry.packed >> 8) & 0xFFF) + quotient * (kSlots - freq);
}

// Raw low bits: one of 2^shift equally likely symbols; shift 0 leaves the lane as it is.
template <class Words>
DCA_HD uint32_t decode_low(uint32_t x, int shift, uint32_t& low, Words& words) {
  low = x & ((1u << shift) - 1);
  return refill(x >> shift, words);
}

template <class Words>
DCA_HD uint32_t encode_low(uint32_t x, int shift, uint32_t low, Words& words) {
  return spill(x, (uint64_t{x} << shift) >> 32 != 0, words) << shift | low;
}

}  // namespace dca::rans
