// The coder on a GPU: the same streams as rans_coder.cpp, bit for bit, through the same steps (rans.h).
//
// A part is coded in a few launches. `mark` keeps one bit per position and counts the coded ones, `scatter`
// packs them densely; both use the whole device. Then one warp per group runs the rounds: lane i of the
// stream is lane i of the warp, and a ballot tells each lane which word is its own. What goes on from part to
// part lies in a `State` on the device, so that nothing here waits for the device or allocates, and all
// launches of a decoder are the same for every stream: they can be recorded in a CUDA graph.
//
// A batch is one part of pictures of one size, one after the other, and a `State` for each. Its blocks are a picture's
// in x (or y), and blockIdx.y (or z) names the picture.
//
// Where a part is of a trellis, chain i is lane i of a warp for all but a decoder of fewer lanes. Its search
// leaves all that does not depend on the path to `scatter`; a warp for each chain then only adds and compares.
//
// Without nvcc the file compiles against an emulation of the device (tests/cuda/emulation.h).
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "rans.h"
#include "rans_layout.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define DCA_LAUNCH(kernel, grid, block, shared, stream, ...) kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
#define DCA_DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#else
#include "emulation.h"
#endif

namespace dca::rans {
namespace {

constexpr uint32_t kAll = 0xFFFFFFFFu;
constexpr uint32_t kWarp = 32;
constexpr uint32_t kTile = kWarp * kWarp;  // positions that one warp marks; lane i keeps the bits of the i-th 32
constexpr uint32_t kThreads = 256;
constexpr uint32_t kBatch = 4;         // rounds between two requests for symbols; hides the latency of memory
constexpr uint32_t kAhead = 8;         // the same for the short rounds of a trellis
constexpr uint32_t kRunBits = 7;       // of a slot name the run in which it lies
constexpr uint32_t kRing = 4 * kWarp;  // words of a stream that lie in shared memory
constexpr uint32_t kNoJob = 0xFFFF;
constexpr uint32_t kDigestBlocks = 256;
constexpr uint32_t kJoinBlocks = 16;  // per group
constexpr int kTrellisStep = 160;     // between the values of a trellis, in 1/256 quantiser steps
constexpr uint32_t kLargestResidual = 8191 * 256;
constexpr uint32_t kPaths = kTrellisStates / kWarp;  // that a lane searches
constexpr uint32_t kTraced = 16;                     // symbols whose parities a path carries along
constexpr uint32_t kFetched = 4;                     // blocks of so many symbols that the way back fetches ahead

enum Status : uint32_t { kBadRow = 1, kTruncated = 2, kLeftOver = 4, kWrongState = 8, kOffGrid = 16 };

}  // namespace

// ---- What lies on the device ----

// What a decoder searches, for the rows of one or both sets: of each run of slots the symbol of the first one, which
// mostly is that of all; else the search goes on in the starts of the symbols, from the first one that has a frequency
// to the last one, then the escape and kSlots. It lies in shared memory, with longer runs where there is little of it;
// a table of all slots (2 MiB) would make every round wait for L2.
template <uint32_t kSets>
struct alignas(16) Search {
  uint32_t runs[kSets * kRows << kRunBits];  // symbol << 24 | freq << 12 | start
  uint32_t rows[kSets * kRows];              // first symbol << 20 | index of its start
  uint16_t starts[kSets * kRows * (kSymbols + 1)];
};

struct alignas(16) DeviceTables {
  SymbolEntry symbols[kTableRows * kSymbols];  // uncodable symbols hold the entry of the escape
  uint8_t shift[kTableRows];
  Search<1> plain;
  Search<2> trellis;
  uint32_t stride[4][256];           // a polynomial times x^(16 threads of the digest), by its bytes
  uint32_t in_block[kThreads];       // x^(16 (i + 1))
  uint32_t of_block[kDigestBlocks];  // x^(16 kThreads i)
};

struct Group {
  uint32_t states[kMaxLanes];
  uint64_t begin;  // decoder: its first word, counted from the start of the buffer
  uint32_t words;  // decoder: how many there are; encoder: how many there is room for
  uint32_t next;   // decoder: words used, less those from lanes; encoder: words still free, as they are written from
                   // the end
};

// How many words a decoder has used too many; below 0: that many are left.
DCA_HD int32_t beyond(uint32_t next, uint32_t words) { return static_cast<int32_t>(next - words); }

struct State {
  uint32_t status;  // the first three fields are read by the caller
  uint32_t digest;
  uint64_t size;  // encoder: bytes of the stream
  uint32_t lanes, groups;
  uint32_t arrived, partial;  // of the launch in progress
  Group group[kMaxGroups];
};

namespace {

// Scratch of one part.
struct Work {
  uint32_t size, tiles, pictures;
  uint32_t* masks;   // [tiles * kWarp] a bit per position
  uint32_t* starts;  // [tiles + 1] coded positions before each tile
  void* dense;
};

struct alignas(16) Code {
  SymbolEntry entry;
  uint32_t shift;    // 0 for an escape
  uint32_t payload;  // the low bits, or the value of an escape
};

// What the edges of the trellis add to a path at one symbol.
struct alignas(8) Edges {
  uint32_t of[2];  // by the set: for an even index | for an odd one << 16
};

// ---- Warps and blocks ----

__device__ __forceinline__ uint32_t lane_of_thread() { return threadIdx.x % kWarp; }
__device__ __forceinline__ uint32_t ballot(bool predicate) { return __ballot_sync(kAll, predicate); }
__device__ __forceinline__ uint32_t below(uint32_t lane) { return (1u << lane) - 1; }
__device__ __forceinline__ uint32_t count_bits(uint32_t x) { return static_cast<uint32_t>(__popc(x)); }

__device__ __forceinline__ uint32_t warp_sum(uint32_t x) {
  for (uint32_t lanes = 1; lanes < kWarp; lanes *= 2) x += __shfl_xor_sync(kAll, x, lanes);
  return x;
}

__device__ __forceinline__ uint32_t warp_xor(uint32_t x) {
  for (uint32_t lanes = 1; lanes < kWarp; lanes *= 2) x ^= __shfl_xor_sync(kAll, x, lanes);
  return x;
}

// Sum over the lanes before this one.
__device__ __forceinline__ uint32_t warp_before(uint32_t x) {
  uint32_t sum = x;
  for (uint32_t delta = 1; delta < kWarp; delta *= 2) {
    const uint32_t other = __shfl_up_sync(kAll, sum, delta);
    if (lane_of_thread() >= delta) sum += other;
  }
  return sum - x;
}

// True in all threads of the block that comes here last; it sees what the others wrote before.
__device__ bool is_last_block(State* state) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(&state->arrived, 1u) == gridDim.x - 1;
    if (last) state->arrived = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

// ---- Packing of the coded positions ----

// Counts per tile to sums of all tiles before, by one block.
__device__ void scan_tiles(const Work& work) {
  __shared__ uint32_t sums[kThreads / kWarp];
  const uint32_t each = (work.tiles + kThreads - 1) / kThreads, warp = threadIdx.x / kWarp;
  const uint32_t first = threadIdx.x * each < work.tiles ? threadIdx.x * each : work.tiles;
  const uint32_t end = first + each < work.tiles ? first + each : work.tiles;
  uint32_t sum = 0;
  for (uint32_t i = first; i < end; ++i) sum += work.starts[i];
  uint32_t before = warp_before(sum);
  if (lane_of_thread() == kWarp - 1) sums[warp] = before + sum;
  __syncthreads();
  for (uint32_t i = 0; i < warp; ++i) before += sums[i];
  for (uint32_t i = first; i < end; ++i) {
    const uint32_t count = work.starts[i];
    work.starts[i] = before;
    before += count;
  }
  if (threadIdx.x == kThreads - 1) work.starts[work.tiles] = before;
}

__global__ void __launch_bounds__(kThreads) mark_kernel(const uint8_t* rows, Work work, State* states) {
  const uint32_t lane = lane_of_thread(), tile = (blockIdx.x * kThreads + threadIdx.x) / kWarp;
  if (tile < work.tiles) {
    uint32_t mine = 0;
#pragma unroll 8
    for (uint32_t i = 0; i < kWarp; ++i) {
      const uint32_t at = tile * kTile + i * kWarp + lane;
      const uint32_t row = at < work.size ? rows[at] : kSkipRow;
      const uint32_t mask = ballot(row < kRows);  // a bad row is skipped, so that nobody uses it
      if (row >= kRows && row != kSkipRow) atomicOr(&states[at / (work.size / work.pictures)].status, kBadRow);
      if (lane == i) mine = mask;
    }
    work.masks[tile * kWarp + lane] = mine;
    const uint32_t count = warp_sum(count_bits(mine));
    if (lane == 0) work.starts[tile] = count;
  }
  if (is_last_block(states)) scan_tiles(work);
}

// Calls sink(position, coded, place among the coded) for every position; a block per tile, so that many wait for
// memory at once.
template <class Sink>
__device__ __forceinline__ void scatter(const Work& work, const Sink& sink) {
  const uint32_t lane = lane_of_thread(), tile = blockIdx.x;
  const uint32_t mine = work.masks[tile * kWarp + lane];
  const uint32_t before = work.starts[tile] + warp_before(count_bits(mine));
#pragma unroll
  for (uint32_t i = threadIdx.x / kWarp; i < kWarp; i += kThreads / kWarp) {
    const uint32_t mask = __shfl_sync(kAll, mine, i), start = __shfl_sync(kAll, before, i);
    const uint32_t at = tile * kTile + i * kWarp + lane;
    if (at < work.size) sink(at, (mask >> lane & 1) != 0, start + count_bits(mask & below(lane)));
  }
}

// Of a decoder the coded values follow what it is told of them.
DCA_HD int16_t* dense_values(const Work& work) { return static_cast<int16_t*>(work.dense) + work.size; }

// A job is row | shift << 8, of a trellis also that of its other set << 12; never kNoJob, for shifts are small.
__global__ void __launch_bounds__(kThreads)
    scatter_jobs(const uint8_t* shifts, bool trellis, const uint8_t* rows, Work work) {
  static_assert(kMaxShift < 15 && kRows <= 256, "");
  uint16_t* jobs = static_cast<uint16_t*>(work.dense);
  int16_t* decoded = dense_values(work);
  scatter(work, [=](uint32_t at, bool coded, uint32_t to) {
    if (!coded) return;
    const uint32_t row = rows[at], first = trellis ? kRows : 0;
    const uint32_t other = trellis ? shifts[2 * kRows + row] : 0;
    jobs[to] = static_cast<uint16_t>(row | uint32_t{shifts[first + row]} << 8 | other << 12);
    decoded[to] = 0;  // after an error nothing follows
  });
}

__global__ void __launch_bounds__(kThreads) gather_decoded(int16_t* values, Work work) {
  const int16_t* decoded = dense_values(work);
  scatter(work, [=](uint32_t at, bool coded, uint32_t to) { values[at] = coded ? decoded[to] : int16_t{0}; });
}

__global__ void __launch_bounds__(kThreads) scatter_values(const int16_t* values, Work work) {
  int16_t* packed = static_cast<int16_t*>(work.dense);
  scatter(work, [=](uint32_t at, bool coded, uint32_t to) {
    if (coded) packed[to] = values[at];
  });
}

// `sets` of the coded symbols of a trellis, else null.
__global__ void __launch_bounds__(kThreads) scatter_codes(const DeviceTables* tables, const uint8_t* rows,
                                                          const int16_t* values, const uint8_t* sets, Work work) {
  Code* codes = static_cast<Code*>(work.dense);
  scatter(work, [=](uint32_t at, bool coded, uint32_t to) {
    if (!coded) return;
    const int set = sets == nullptr ? 0 : sets[to];
    const int value = sets == nullptr ? values[at] : trellis_index(set, values[at]);
    const uint32_t row = rows[at] + (sets == nullptr ? 0 : kRows * (1 + set)), shift = tables->shift[row];
    const uint32_t bucket = static_cast<uint32_t>((value >> shift) + kCenter);
    const SymbolEntry entry = tables->symbols[row * kSymbols + (bucket < kEscape ? bucket : kEscape)];
    const bool escape = (entry.packed & kEscapeFlag) != 0;
    const uint32_t bits = static_cast<uint16_t>(value);
    codes[to] = escape ? Code{entry, 0, bits} : Code{entry, shift, bits & ((1u << shift) - 1)};
  });
}

// Number of coded positions before `at`, which may be the end, by a whole warp.
__device__ __forceinline__ uint32_t rank_of(const Work& work, uint32_t at) {
  if (at == work.size) return work.starts[work.tiles];
  const uint32_t tile = at / kTile, lane = lane_of_thread(), last = at / kWarp % kWarp;
  const uint32_t mask = work.masks[tile * kWarp + lane];
  const uint32_t bits = lane < last ? mask : lane == last ? mask & below(at % kWarp) : 0;
  return work.starts[tile] + warp_sum(count_bits(bits));
}

struct Range {
  uint32_t first, end;
};

// The coded symbols of a picture, and what each of its groups has of them.
struct Shares {
  uint32_t first, coded, groups;

  // By a whole warp.
  __device__ __forceinline__ Shares(const Work& work, uint32_t picture, uint32_t groups_) : groups(groups_) {
    const uint32_t size = work.size / work.pictures;
    first = rank_of(work, picture * size);
    coded = rank_of(work, (picture + 1) * size) - first;
  }

  __device__ __forceinline__ uint32_t begin(uint32_t group) const {
    return first + coded / groups * group + coded % groups * group / groups;  // coded * group / groups in 32 bits
  }

  __device__ __forceinline__ Range of(uint32_t group) const { return {begin(group), begin(group + 1)}; }
  __device__ __forceinline__ uint32_t chains() const { return chains_of(coded, groups); }
};

// How many lanes code a part, and how many its tail.
struct Lanes {
  uint32_t all, tail;

  __device__ __forceinline__ Lanes(uint32_t lanes, uint32_t most)
      : all(lanes < most ? lanes : most), tail(tail_lanes(lanes) < most ? tail_lanes(lanes) : most) {}
};

// ---- Decoding ----

// Words of the stream for the lanes that need one, in the order of the lanes. All lanes of the warp take part in every
// call. The next words, kWarp at least, lie in a ring in shared memory; two more for each lane are on their way.
struct WarpReader {
  const uint16_t* words;
  uint16_t* ring;
  uint32_t size, lane;    // words of the group; this lane
  uint32_t next, filled;  // the word that comes next, and that from which on none lies in the ring
  uint32_t coming[2];     // the words `filled` + lane and kWarp further
  bool active = false;

  __device__ __forceinline__ WarpReader(const uint16_t* words_, uint16_t* ring_, uint32_t size_, uint32_t next_)
      : words(words_), ring(ring_), size(size_), lane(lane_of_thread()), next(next_), filled(next_) {
    coming[0] = load(filled + lane);
    coming[1] = load(filled + kWarp + lane);
    fill();
  }

  __device__ __forceinline__ uint32_t load(uint32_t i) const {
    return i < size ? words[i] : 0u;  // a caller that comes to use the 0 finds `next` beyond the size
  }

  __device__ __forceinline__ void fill() {
    ring[(filled + lane) % kRing] = static_cast<uint16_t>(coming[0]);
    coming[0] = coming[1];
    filled += kWarp;
    coming[1] = load(filled + kWarp + lane);
    __syncwarp();  // nobody reads any more what was overwritten: it is words before `next` since an earlier `take`
  }

  __device__ __forceinline__ uint32_t take(bool need) {
    const uint32_t mask = ballot(need && active);
    const uint32_t word = ring[(next + count_bits(mask & below(lane))) % kRing];
    next += count_bits(mask);
    if (filled - next < kWarp) fill();
    return word;
  }

  // Puts the low halves of the states of so many lanes from `from` on before the words that are left: below kWarp.
  __device__ __forceinline__ void put_back(uint32_t x, uint32_t from, uint32_t count) {
    const uint32_t given = __shfl_sync(kAll, x, (from + lane) % kWarp);
    next -= count;
    if (lane < count) ring[(next + lane) % kRing] = static_cast<uint16_t>(given);
    __syncwarp();
  }

  // Whether all words that are left, which were put back, are 0; skips them.
  __device__ __forceinline__ bool skip_zeros() {
    const bool wrong = lane < size - next && ring[(next + lane) % kRing] != 0;
    next = size;
    return ballot(wrong) == 0;
  }
};

// `Search`, wherever it lies, with runs of so many bits.
struct Searched {
  const uint32_t* runs;
  const uint32_t* rows;
  const uint16_t* starts;
  uint32_t bits;

  // The entry of a slot as slot_entry has it.
  __device__ __forceinline__ uint32_t find(uint32_t row, uint32_t slot) const {
    const uint32_t run = runs[row << bits | slot >> (kProbBits - bits)];
    uint32_t symbol = run >> 24, freq = run >> 12 & 0xFFF, start = run & 0xFFF;
    if (slot - start >= freq) {
      const uint32_t word = rows[row], first = word >> 20;
      const uint16_t* ends = starts + (word & 0xFFFFF) + 1;
      uint32_t i = symbol - first, end = start + freq;
      do {
        start = end;
        end = ends[++i];
      } while (slot >= end);
      symbol = end == kSlots ? kEscape : first + i;
      freq = end - start;
    }
    return slot_entry(symbol, freq & 0xFFF, (slot - start) & 0xFFF);
  }
};

// The trellis chains of one lane, which takes them in turn: a byte for the state of each, that of this round first.
template <uint32_t kQueue>
struct Chains {
  uint64_t bytes[kQueue] = {};
  uint32_t last;

  // Lane i of so many lanes takes states[i], states[i + lanes] ...
  __device__ __forceinline__ Chains(const uint8_t* states, uint32_t chains, uint32_t lanes) : last(chains / lanes - 1) {
    for (uint32_t i = 0; i <= last; ++i) step(states[i * lanes + lane_of_thread() % lanes]);
  }

  __device__ __forceinline__ uint32_t state() const { return static_cast<uint32_t>(bytes[0]) & 0xFF; }

  // Takes the first state away and puts one behind the others.
  __device__ __forceinline__ void step(uint32_t next) {
#pragma unroll
    for (uint32_t w = 0; w < kQueue; ++w) {
      const uint64_t from_next = w + 1 < kQueue ? bytes[w + 1] << 56 : 0, added = uint64_t{next} << 8 * (last % 8);
      bytes[w] = bytes[w] >> 8 | from_next | (kQueue == 1 || w == last / 8 ? added : 0);
    }
  }

  // The opposite of the constructor, after whole rounds of all chains.
  __device__ __forceinline__ void store(uint8_t* states, uint32_t lanes) {
    const uint32_t lane = lane_of_thread();
    for (uint32_t i = 0; i <= last; ++i, step(state())) {
      if (lane < lanes) states[i * lanes + lane] = static_cast<uint8_t>(state());
    }
  }
};

// Of a plain part.
template <>
struct Chains<0> {
  __device__ __forceinline__ Chains(const uint8_t*, uint32_t, uint32_t) {}
  __device__ __forceinline__ uint32_t state() const { return 0; }
  __device__ __forceinline__ void step(uint32_t) {}
  __device__ __forceinline__ void store(uint8_t*, uint32_t) const {}
};

// Decodes the value of a lane, unless it has no job.
template <uint32_t kQueue>
__device__ __forceinline__ uint32_t decode_round(const Searched& search, uint32_t x, uint32_t job, WarpReader& words,
                                                 Chains<kQueue>& chains, int16_t* to) {
  words.active = job != kNoJob;
  const uint32_t set = chains.state() & 1;
  const uint32_t entry = search.find(set * kRows + job % kRows, x & (kSlots - 1));
  const uint32_t stepped = decode_step(x, entry, words);
  x = words.active ? stepped : x;
  const bool escape = words.active && entry >> 24 == kEscape;
  const int shift = words.active && !escape ? static_cast<int>(job >> (8 + 4 * set) & 15) : 0;
  int value = static_cast<int>(entry >> 24) - kCenter;
  if (ballot(escape || shift != 0) != 0) {
    uint32_t low = 0;
    x = decode_low(x, shift, low, words);
    const uint32_t raw = words.take(escape);
    value = escape ? static_cast<int16_t>(raw) : value * (1 << shift) + static_cast<int>(low);
  }
  if (!words.active) return x;
  if (kQueue != 0) {
    chains.step(trellis_next(chains.state(), value));
    value = trellis_value(static_cast<int>(set), value);
  }
  *to = static_cast<int16_t>(value);
  return x;
}

// `states` are those of the chains, before and, after whole rounds of all of them, behind the range.
template <uint32_t kQueue>
__device__ __forceinline__ uint32_t decode_rounds(const Searched& search, uint32_t x, const Work& work, Range range,
                                                  uint32_t lanes, WarpReader& words, uint32_t chains_,
                                                  uint8_t* states) {
  const uint32_t lane = lane_of_thread();
  Chains<kQueue> chains(states, chains_, lanes);
  const uint16_t* jobs = static_cast<const uint16_t*>(work.dense);
  int16_t* values = dense_values(work);
  const uint32_t end = lane < lanes ? range.end : 0;
  const auto load = [&](uint32_t i) { return i < end ? jobs[i] : kNoJob; };
  uint32_t coming[kBatch];
#pragma unroll
  for (uint32_t k = 0; k < kBatch; ++k) coming[k] = load(range.first + k * lanes + lane);
  for (uint32_t at = range.first + lane; at - lane < range.end; at += kBatch * lanes) {
#pragma unroll
    for (uint32_t k = 0; k < kBatch; ++k) {
      const uint32_t job = coming[k];
      coming[k] = load(at + (kBatch + k) * lanes);
      x = decode_round(search, x, job, words, chains, values + at + k * lanes);
    }
    if (beyond(words.next, words.size) > 0) break;
  }
  chains.store(states, lanes);
  __syncwarp();
  return x;
}

template <uint32_t kSets>
__device__ __forceinline__ uint32_t decode_range(const Searched& search, uint32_t x, const Work& work, Range range,
                                                 uint32_t lanes, WarpReader& words, uint32_t chains, uint8_t* states) {
  if constexpr (kSets == 1) {
    return decode_rounds<0>(search, x, work, range, lanes, words, chains, states);
  } else if (chains / lanes <= 8) {
    return decode_rounds<1>(search, x, work, range, lanes, words, chains, states);
  } else {
    return decode_rounds<kChains / 8>(search, x, work, range, lanes, words, chains, states);
  }
}

template <uint32_t kSets>
__device__ __forceinline__ void decode_group(const Searched& search, const uint16_t* stream, State* state, Group& group,
                                             const Work& work, Range range, uint32_t chains, bool last) {
  __shared__ uint16_t ring[kRing];
  __shared__ uint8_t states[kChains];
  const uint32_t lane = lane_of_thread(), lanes = state->lanes, few = tail_lanes(lanes);
  const Lanes used(lanes, kSets == 2 ? chains : kChains);
  const uint32_t tail = last ? range.first + static_cast<uint32_t>(tail_begin(range.end - range.first)) : range.end;
  states[lane] = 0;
  __syncwarp();
  WarpReader words(stream + group.begin, ring, group.words, group.next);
  uint32_t x = group.states[lane];
  x = decode_range<kSets>(search, x, work, {range.first, tail}, used.all, words, chains, states);
  if (last && beyond(words.next, group.words) <= 0) {
    const bool spare = words.next == group.words;  // then lanes may have more words than the tail takes
    words.put_back(x, few, lanes - few);
    if (lane >= few && lane < lanes) x = x >> 16 == 1 ? kLower : 0;  // finish_kernel finds the wrong ones
    x = decode_range<kSets>(search, x, work, {tail, range.end}, used.tail, words, chains, states);
    if (spare && beyond(words.next, group.words) < 0 && !words.skip_zeros() && lane == 0) {
      atomicOr(&state->status, kLeftOver);
    }
  }
  group.states[lane] = x;
  if (lane != 0) return;
  group.next = words.next;
  if (beyond(group.next, group.words) > 0) atomicOr(&state->status, kTruncated);
}

// One block per group; all of its threads fetch the tables, then its first warp decodes. `staged_bytes`: of `stage`.
template <uint32_t kSets, bool kStaged>
__global__ void __launch_bounds__(kThreads, 1)
    decode_kernel(const Search<kSets>* tables, uint32_t searched, uint32_t staged_bytes, const uint16_t* stream,
                  State* states, Work work, bool last) {
  State* state = states + blockIdx.y;
  if (blockIdx.x >= state->groups) return;
  Group& group = state->group[blockIdx.x];
  const Shares shares(work, blockIdx.y, state->groups);
  const Range range = shares.of(blockIdx.x);
  if (range.first == range.end || beyond(group.next, group.words) > 0) return;  // nothing to do, or an earlier error
  Searched search{tables->runs, tables->rows, tables->starts, kRunBits};
  if (kStaged) {
    DCA_DYNAMIC_SHARED(uint4, staged);
    const uint32_t runs = (staged_bytes - searched) / sizeof(uint32_t);
    while (kSets * kRows << search.bits > runs) --search.bits;
    uint32_t* to = reinterpret_cast<uint32_t*>(staged);
    for (uint32_t i = threadIdx.x; i < runs; i += kThreads) to[i] = tables->runs[i << (kRunBits - search.bits)];
    for (uint32_t i = threadIdx.x; i < searched / sizeof(uint4); i += kThreads) {
      staged[runs / 4 + i] = reinterpret_cast<const uint4*>(tables->rows)[i];
    }
    __syncthreads();
    search.runs = to;
    search.rows = to + runs;
    search.starts = reinterpret_cast<const uint16_t*>(search.rows + kSets * kRows);
  }
  if (threadIdx.x < kWarp) decode_group<kSets>(search, stream, state, group, work, range, shares.chains(), last);
}

__global__ void __launch_bounds__(kWarp) finish_kernel(State* states) {
  State* state = states + blockIdx.y;
  if (blockIdx.x >= state->groups) return;
  const Group& group = state->group[blockIdx.x];
  if (beyond(group.next, group.words) < 0 && threadIdx.x == 0) atomicOr(&state->status, kLeftOver);
  if (group.states[threadIdx.x] != kLower) atomicOr(&state->status, kWrongState);
}

// ---- Encoding ----

// Finds the sets of the values of a trellis, packed by scatter_values: one warp per group, a lane for each chain.
__global__ void __launch_bounds__(kWarp) follow_kernel(State* states, Work work, uint8_t* sets) {
  State* state = states + blockIdx.y;
  if (blockIdx.x >= state->groups) return;
  const Shares shares(work, blockIdx.y, state->groups);
  const Range range = shares.of(blockIdx.x);
  const int16_t* values = static_cast<const int16_t*>(work.dense);
  const auto load = [&](uint32_t i) { return i < range.end ? values[i] : int16_t{0}; };
  const uint32_t chains = shares.chains();
  const uint32_t first = lane_of_thread() < chains ? range.first + lane_of_thread() : range.end;
  uint32_t chain = 0;
  bool off_grid = false;
  int16_t coming[kAhead];
#pragma unroll
  for (uint32_t k = 0; k < kAhead; ++k) coming[k] = load(first + k * chains);
  for (uint32_t at = first; at < range.end; at += kAhead * chains) {
#pragma unroll
    for (uint32_t k = 0; k < kAhead; ++k) {
      const uint32_t i = at + k * chains;
      const int value = coming[k], set = static_cast<int>(chain & 1), index = trellis_index(set, value);
      coming[k] = load(i + kAhead * chains);
      off_grid |= trellis_value(set, index) != value;
      chain = trellis_next(chain, index);
      if (i < range.end) sets[i] = static_cast<uint8_t>(set);
    }
  }
  if (off_grid) atomicOr(&state->status, kOffGrid);
}

// Writes downwards; of the lanes that have a word the first one's comes to lie first.
struct WarpWriter {
  uint16_t* words;
  uint32_t next, lane;
  bool active = false;

  __device__ __forceinline__ WarpWriter(uint16_t* words_, uint32_t next_)
      : words(words_), next(next_), lane(lane_of_thread()) {}

  __device__ __forceinline__ void put(bool need, uint16_t word) {
    const uint32_t mask = ballot(need && active);
    next -= count_bits(mask);
    if (need && active) words[next + count_bits(mask & below(lane))] = word;
  }
};

__device__ __forceinline__ Code load_code(const Work& work, uint32_t i, uint32_t end, bool in_use) {
  return in_use && i < end ? static_cast<const Code*>(work.dense)[i] : Code{{0, 0}, 0, 0};
}

__device__ __forceinline__ uint32_t encode_round(uint32_t x, const Code& code, WarpWriter& words) {
  words.active = code.entry.packed != 0;
  const bool escape = (code.entry.packed & kEscapeFlag) != 0;
  if (ballot(escape || code.shift != 0) != 0) {
    words.put(escape, static_cast<uint16_t>(code.payload));
    x = encode_low(x, static_cast<int>(code.shift), escape ? 0 : code.payload, words);
  }
  const uint32_t stepped = encode_step(x, code.entry, words);
  return words.active ? stepped : x;
}

// From the last round to the first.
__device__ __forceinline__ uint32_t encode_rounds(uint32_t x, const Work& work, Range range, uint32_t lanes,
                                                  WarpWriter& writer) {
  if (range.first == range.end) return x;
  const uint32_t lane = lane_of_thread(), rounds = (range.end - range.first + lanes - 1) / lanes;
  Code codes[kBatch], coming[kBatch];
  // Batch i holds the rounds i * kBatch up to (i + 1) * kBatch; those after the last round are empty.
  const auto load = [&](uint32_t batch, uint32_t k) {
    const uint32_t i = range.first + (batch * kBatch + k) * lanes + lane;
    return load_code(work, i, range.end, lane < lanes);
  };
  uint32_t batch = (rounds + kBatch - 1) / kBatch;
#pragma unroll
  for (uint32_t k = 0; k < kBatch; ++k) coming[k] = load(batch - 1, k);
  while (batch-- > 0) {
#pragma unroll
    for (uint32_t k = 0; k < kBatch; ++k) {
      codes[k] = coming[k];
      if (batch > 0) coming[k] = load(batch - 1, k);
    }
#pragma unroll
    for (uint32_t k = kBatch; k-- > 0;) x = encode_round(x, codes[k], writer);
  }
  return x;
}

// One warp per group.
__global__ void __launch_bounds__(kWarp)
    encode_kernel(State* states, Work work, bool trellis, bool last, uint16_t* words) {
  State* state = states + blockIdx.y;
  if (blockIdx.x >= state->groups) return;
  Group& group = state->group[blockIdx.x];
  const Shares shares(work, blockIdx.y, state->groups);
  const Range range = shares.of(blockIdx.x);
  if (range.first == range.end) return;
  const uint32_t lane = lane_of_thread(), lanes = state->lanes, few = tail_lanes(lanes);
  const Lanes used(lanes, trellis ? shares.chains() : kChains);
  const uint32_t tail = last ? range.first + static_cast<uint32_t>(tail_begin(range.end - range.first)) : range.end;
  WarpWriter writer(words + (size_t{blockIdx.y} * state->groups + blockIdx.x) * group.words, group.next);
  uint32_t x = encode_rounds(group.states[lane], work, {tail, range.end}, used.tail, writer);
  if (last) {
    const uint32_t written = group.words - writer.next, handed = written < lanes - few ? written : lanes - few;
    __syncwarp();  // before a lane reads what others wrote
    if (lane >= few && lane - few < handed) x = kLower | writer.words[writer.next + lane - few];
    writer.next += handed;
  }
  x = encode_rounds(x, work, {range.first, tail}, used.all, writer);
  group.states[lane] = x;
  if (lane == 0) group.next = writer.next;
}

__global__ void __launch_bounds__(kWarp)
    open_kernel(State* states, const int32_t* lanes, uint32_t groups, uint32_t words) {
  State* state = states + blockIdx.y;
  Group& group = state->group[blockIdx.x];
  group.states[threadIdx.x] = kLower;
  if (threadIdx.x != 0) return;
  group.begin = 0;
  group.words = group.next = words;
  if (blockIdx.x != 0) return;
  state->status = state->digest = state->arrived = state->partial = 0;
  state->size = 0;
  state->lanes = lanes == nullptr ? kMaxLanes : static_cast<uint32_t>(lanes[blockIdx.y]);
  state->groups = groups;
}

// ---- Quantising with a trellis ----

struct Candidate {
  int32_t metric, index;
};

// The better one of the two indices of a parity that are next to a residual of this size.
__device__ __forceinline__ Candidate nearest(uint32_t size, int set, int parity, const int32_t* charges) {
  const auto candidate = [=](int index) {
    const int error = static_cast<int>(size) - kTrellisStep * trellis_value(set, index);
    return Candidate{error * error + __ldg(charges + (index < kSymbols ? index : kSymbols - 1)), index};
  };
  const int below = static_cast<int>((size + static_cast<uint32_t>(kTrellisStep * set)) / (2 * kTrellisStep));
  const int low = (below & 1) == parity ? below : below - 1;
  const Candidate high = candidate(low + 2);
  if (low < 0) return high;
  const Candidate lower = candidate(low);
  return lower.metric <= high.metric ? lower : high;
}

__device__ __forceinline__ uint32_t size_of(int32_t residual) {
  const uint32_t bits = static_cast<uint32_t>(residual), size = residual < 0 ? 0u - bits : bits;
  return size < kLargestResidual ? size : kLargestResidual;
}

// What an edge of the trellis stands for depends on the symbol, on the set of its state and on the parity.
__device__ __forceinline__ Candidate candidate_of(int32_t residual, uint32_t row, const int32_t* charges, int set,
                                                  int parity) {
  const uint32_t charged = static_cast<uint32_t>(set) * kRows + row;
  return nearest(size_of(residual), set, parity, charges + charged * kSymbols);
}

__global__ void __launch_bounds__(kThreads)
    scatter_edges(const int32_t* residuals, const uint8_t* rows, const int32_t* charges, Work work) {
  Edges* edges = static_cast<Edges*>(work.dense);
  scatter(work, [=](uint32_t at, bool coded, uint32_t to) {
    if (!coded) return;
    int32_t metrics[2][2], least = INT32_MAX;
    for (int i = 0; i < 4; ++i) {
      const int32_t metric = candidate_of(residuals[at], rows[at], charges, i >> 1, i & 1).metric;
      metrics[i >> 1][i & 1] = metric;
      least = metric < least ? metric : least;
    }
    const auto edge = [&](int set, int parity) { return uint32_t{trellis_edge(metrics[set][parity], least)}; };
    edges[to] = {{edge(0, 0) | edge(0, 1) << 16, edge(1, 0) | edge(1, 1) << 16}};
  });
}

// The 256 paths of a chain lie in places: kWarp * path + lane, kPaths in each lane. The one to the state after an even
// index stays where that to the state before it was. All this is linear modulo 2: the place of a state is the sum of
// those of its bits, the two ways into a state come from places at one distance in each step, and the set of a place is
// the parity of some of its bits. After kPeriod steps every state is back in its place.
constexpr uint32_t kPeriod = 124;
constexpr uint32_t kStateBits = kSteps;

struct Walk {
  uint8_t place[kPeriod][kStateBits];              // by the step: of the state with one bit
  uint8_t apart[kPeriod];                          // distance of the places that lead to one state
  uint8_t set_lanes[kPeriod], set_paths[kPeriod];  // bits of a lane that count for the set; which paths turn it over
  // The way back through kTraced symbols: which bits of `state | parities << kStateBits` make, by the lane, the set of
  // each symbol, then each bit of the state before them.
  uint32_t back[kWarp];
};

constexpr uint32_t parity_of(uint32_t x) {
  uint32_t parity = 0;
  for (; x != 0; x &= x - 1) parity ^= 1;
  return parity;
}

constexpr Walk make_walk() {
  Walk walk{};
  uint32_t sets[kPeriod] = {}, apart = trellis_before(0, 1);
  for (uint32_t bit = 0; bit < kStateBits; ++bit) {
    for (uint32_t step = 0, place = 1u << bit; step < kPeriod; ++step, place = trellis_before(place, 0)) {
      walk.place[step][bit] = static_cast<uint8_t>(place);
      sets[(kPeriod - step) % kPeriod] |= (place & 1) << bit;
    }
  }
  for (uint32_t step = 0; step < kPeriod; ++step, apart = trellis_before(apart, 0)) {
    walk.apart[step] = static_cast<uint8_t>(apart);
    walk.set_lanes[step] = static_cast<uint8_t>(sets[step] % kWarp);
    for (uint32_t path = 0; path < kPaths; ++path) {
      walk.set_paths[step] |= static_cast<uint8_t>(parity_of(path & sets[step] / kWarp) << path);
    }
  }
  for (uint32_t bit = 0; bit < kStateBits + kTraced; ++bit) {
    const uint32_t one = 1u << bit;
    uint32_t state = one % kTrellisStates;
    for (uint32_t symbol = kTraced; symbol-- > 0;) {
      state = trellis_before(state, one >> (kStateBits + symbol) & 1);
      walk.back[symbol] |= (state & 1) << bit;
    }
    for (uint32_t i = 0; i < kStateBits; ++i) walk.back[kTraced + i] |= (state >> i & 1) << bit;
  }
  return walk;
}

constexpr bool returns(uint32_t state) {
  uint32_t place = state;
  for (uint32_t step = 0; step < kPeriod; ++step) place = trellis_before(place, 0);
  return place == state;
}

static_assert(returns(1) && returns(2) && returns(4) && returns(8) && returns(16) && returns(32) && returns(64) &&
                  returns(128) && kTrellisStates == 256 && kPaths == 8 && kTraced + kStateBits <= kWarp,
              "");

__constant__ constexpr Walk kWalk = make_walk();

// The place of a state at a step; that of a place, at kPeriod less the step, is its state.
__device__ __forceinline__ uint32_t place_of(uint32_t state, uint32_t step) {
  uint32_t place = 0;
  for (uint32_t bit = 0; bit < kStateBits; ++bit) place ^= (0u - (state >> bit & 1)) & kWalk.place[step][bit];
  return place;
}

// A path is its cost << 16 | the parities of its last indices, kTraced at most. One signed comparison finds the cheaper
// way to a state, and an even index if both cost the same, as the last parity is the highest bit. At every kTraced-th
// symbol the cost of state 0 becomes 0. From there the least cost rises by at most kEdgeLimit a symbol. No cost is more
// than kSteps edges above the least one of kSteps symbols before, or, without such, more than kUnreached and those.
static_assert(kTraced <= 2 * kSteps && 2 * kSteps * kEdgeLimit < 1 << 15, "");
using Paths = uint32_t[kPaths];

__device__ __forceinline__ uint32_t better(uint32_t even, uint32_t odd) {
  return static_cast<int32_t>(odd) < static_cast<int32_t>(even) ? odd : even;
}

// Takes the paths one symbol on; `parity` is the bit of an odd index.
__device__ __forceinline__ void search_step(Paths& paths, const Edges& edge, uint32_t step, uint32_t parity) {
  const uint32_t apart = kWalk.apart[step], turning = kWalk.set_paths[step];
  const bool turned = (count_bits(lane_of_thread() & kWalk.set_lanes[step]) & 1) != 0;
  const uint32_t own = turned ? edge.of[1] : edge.of[0], other = turned ? edge.of[0] : edge.of[1];
  const uint32_t own_even = own << 16, own_odd = (own & 0xFFFF0000u) | parity;
  const uint32_t other_even = other << 16, other_odd = (other & 0xFFFF0000u) | parity;
  Paths from;
#pragma unroll
  for (uint32_t i = 0; i < kPaths; ++i) from[i] = paths[i];
#pragma unroll
  for (uint32_t bit = 1; bit < kPaths; bit *= 2) {
    const bool swapped = (apart & bit * kWarp) != 0;  // in all lanes
#pragma unroll
    for (uint32_t i = 0; i < kPaths; ++i) {
      if ((i & bit) != 0) continue;
      const uint32_t first = from[i], second = from[i | bit];
      from[i] = swapped ? second : first;
      from[i | bit] = swapped ? first : second;
    }
  }
#pragma unroll
  for (uint32_t i = 0; i < kPaths; ++i) {
    const bool turns = (turning & 1u << i) != 0;
    const uint32_t odd = __shfl_xor_sync(kAll, from[i], apart % kWarp) + (turns ? other_odd : own_odd);
    paths[i] = better(paths[i] + (turns ? other_even : own_even), odd);
  }
}

// Blocks of kTraced symbols of all chains of a picture together, at most. Each chain has room for those of the longest
// one: less than one block more than its share, and that of a symbol for each group. A chain has kChainSymbols symbols,
// or is the only one of its group.
DCA_HD uint64_t search_blocks(uint32_t size) {
  return size / kTraced + size / kChainSymbols + kMaxGroups + kMaxGroups / kTraced + 1;
}

// Viterbi's algorithm, a warp for each chain of a picture. Leaves the edge of the best path at each symbol:
// set << 1 | parity. `trail` has the parities of all paths, kTraced symbols at a time; the first block may have fewer,
// which are its last ones.
__global__ void __launch_bounds__(kWarp) search_kernel(uint32_t groups, Work work, uint4* trail, uint8_t* taken) {
  const Shares shares(work, blockIdx.y, groups);
  const uint32_t lane = lane_of_thread(), chains = shares.chains(), one = blockIdx.x;
  if (one >= groups * chains) return;
  const Range range = shares.of(one / chains);
  const uint32_t first = range.first + one % chains;
  if (first >= range.end) return;
  const uint32_t steps = (range.end - first + chains - 1) / chains;
  const uint32_t blocks = (steps + kTraced - 1) / kTraced, missing = kTraced * blocks - steps;
  const uint32_t longest = ((shares.coded + groups - 1) / groups + chains - 1) / chains;  // chain of the picture
  const size_t before = size_t{one} * ((longest + kTraced - 1) / kTraced);
  trail += kWarp * (blockIdx.y * search_blocks(work.size / work.pictures) + before) + lane;
  const Edges* edges = static_cast<const Edges*>(work.dense) + first;
  const auto load = [&](uint32_t i) { return i < steps ? edges[size_t{i} * chains] : Edges{}; };
  Paths paths;
  for (uint32_t i = 0; i < kPaths; ++i) paths[i] = i == 0 && lane == 0 ? 0 : uint32_t{kUnreached} << 16;
  uint32_t step = 0;
  const auto take_on = [&](const Edges& edge, uint32_t symbol) {
    search_step(paths, edge, step, 1u << symbol);
    step = step + 1 < kPeriod ? step + 1 : 0;
  };
  const auto store = [&](uint32_t block) {
    const auto parities = [&](uint32_t i) { return (paths[i] & 0xFFFF) | paths[i + 1] << 16; };
    trail[block * kWarp] = {parities(0), parities(2), parities(4), parities(6)};
    const uint32_t base = __shfl_sync(kAll, paths[0], 0) & 0xFFFF0000u;
#pragma unroll
    for (uint32_t i = 0; i < kPaths; ++i) paths[i] = (paths[i] & 0xFFFF0000u) - base;
  };
  const Edges early = load(lane - missing);
  Edges coming[kAhead];
#pragma unroll
  for (uint32_t k = 0; k < kAhead; ++k) coming[k] = load(kTraced - missing + k);
  for (uint32_t symbol = missing; symbol < kTraced; ++symbol) {
    take_on({{__shfl_sync(kAll, early.of[0], symbol), __shfl_sync(kAll, early.of[1], symbol)}}, symbol);
  }
  store(0);
  for (uint32_t at = kTraced; at < kTraced * blocks; at += kAhead) {
#pragma unroll
    for (uint32_t k = 0; k < kAhead; ++k) {
      const Edges edge = coming[k];
      coming[k] = load(at - missing + kAhead + k);
      take_on(edge, at % kTraced + k);
    }
    if (at % kTraced == kTraced - kAhead) store(at / kTraced);
  }

  uint32_t best = 0x7FFFFFFF;  // cost << 16 | state: the lowest of equals
  for (uint32_t i = 0; i < kPaths; ++i) {
    best = better(best, paths[i] | place_of(kWarp * i + lane, (kPeriod - step) % kPeriod));
  }
  for (uint32_t lanes = 1; lanes < kWarp; lanes *= 2) best = better(best, __shfl_xor_sync(kAll, best, lanes));
  uint32_t state = best % kTrellisStates;
  const uint32_t back = kWalk.back[lane];
  uint4 fetched[kFetched] = {};
#pragma unroll
  for (uint32_t k = 0; k < kFetched; ++k) {
    if (k < blocks) fetched[k] = trail[(blocks - 1 - k) * kWarp];
  }
  for (uint32_t done = 0; done < blocks; done += kFetched) {
#pragma unroll
    for (uint32_t k = 0; k < kFetched; ++k) {
      if (done + k >= blocks) break;
      const uint32_t block = blocks - 1 - done - k;
      const uint4 words = fetched[k];
      if (block >= kFetched) fetched[k] = trail[(block - kFetched) * kWarp];
      const uint32_t place = place_of(state, step), path = place / kWarp;
      const uint32_t low = path < 2 ? words.x : words.y, high = path < 6 ? words.z : words.w;
      const uint32_t pair = __shfl_sync(kAll, path < 4 ? low : high, place % kWarp);
      const uint32_t parities = pair >> 16 * (path % 2) & 0xFFFF;
      const uint32_t found = ballot((count_bits((parities << kStateBits | state) & back) & 1) != 0);
      const uint32_t i = kTraced * block + lane, edge_taken = (found >> lane & 1) << 1 | (parities >> lane & 1);
      if (lane < kTraced && i >= missing) {
        taken[first + size_t{i - missing} * chains] = static_cast<uint8_t>(edge_taken);
      }
      state = found >> kTraced & (kTrellisStates - 1);
      step = step >= kTraced ? step - kTraced : step + kPeriod - kTraced;
    }
  }
}

// The inverse of scatter_edges, with what became of its symbols.
__global__ void __launch_bounds__(kThreads)
    gather_values(const int32_t* residuals, const uint8_t* rows, const int32_t* charges, const uint8_t* taken,
                  int16_t* values, Work work) {
  scatter(work, [=](uint32_t at, bool coded, uint32_t to) {
    int value = 0;
    if (coded) {
      const int set = taken[to] >> 1, parity = taken[to] & 1;
      value = trellis_value(set, candidate_of(residuals[at], rows[at], charges, set, parity).index);
    }
    values[at] = static_cast<int16_t>(residuals[at] < 0 ? -value : value);
  });
}

__device__ uint32_t group_bytes(const State* state, uint32_t g) {
  return 4 * state->lanes + 2 * (state->group[g].words - state->group[g].next);
}

// Puts header and groups one behind the other, `room` bytes behind the stream of the picture before.
__global__ void __launch_bounds__(kThreads)
    join_kernel(State* states, const uint16_t* words, uint8_t* out, uint64_t room) {
  State* state = states + blockIdx.z;
  out += blockIdx.z * room;
  const uint32_t g = blockIdx.y, groups = state->groups, lanes = state->lanes;
  if (g >= groups) return;
  const bool writes_header = g == 0 && blockIdx.x == 0 && threadIdx.x == 0;
  uint64_t header = 2, before = 0, all = 0;
  for (uint32_t i = 0; i < groups; ++i) {
    const uint32_t bytes = group_bytes(state, i);
    if (i < g) before += bytes;
    all += bytes;
    for (uint32_t rest = bytes, more = i + 1 < groups; more; rest >>= 7) {
      more = rest >= 0x80;
      if (writes_header) out[header] = static_cast<uint8_t>((rest & 0x7F) | more << 7);
      ++header;
    }
  }
  if (writes_header) {
    out[0] = static_cast<uint8_t>(count_bits(lanes - 1));
    out[1] = static_cast<uint8_t>(groups);
    state->size = header + all;
  }
  const Group& group = state->group[g];
  const uint16_t* from = words + (size_t{blockIdx.z} * groups + g) * group.words + group.next;
  uint8_t* to = out + header + before;
  const uint32_t bytes = group_bytes(state, g), head = 4 * lanes;
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < bytes; i += kJoinBlocks * kThreads) {
    const uint32_t word = i < head ? group.states[i / 4] >> (8 * (i % 4)) : from[(i - head) / 2] >> (8 * (i % 2));
    to[i] = static_cast<uint8_t>(word);
  }
}

// ---- Digest: CRC-32 of the values as little-endian int16 ----

// Polynomials modulo that of the CRC; bit 31 is the coefficient of x^0.
DCA_HD uint32_t multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (int i = 31; i >= 0; --i) {
    product ^= b & (0u - (a >> i & 1));
    b = b >> 1 ^ (0xEDB88320u & (0u - (b & 1)));
  }
  return product;
}

uint32_t power_of_x(uint64_t exponent) {
  uint32_t result = 1u << 31;
  for (uint32_t base = 1u << 30; exponent != 0; exponent >>= 1, base = multiply(base, base)) {
    if (exponent & 1) result = multiply(result, base);
  }
  return result;
}

// The value at distance i from the last one counts times x^(16 (i + 1)). A thread takes those at the same
// distance modulo the number of threads, by Horner's rule, and the block adds them up.
__global__ void __launch_bounds__(kThreads)
    digest_kernel(const DeviceTables* tables, const int16_t* values, const uint8_t* rows, uint32_t size, uint32_t whole,
                  State* states) {
  State* state = states + blockIdx.y;
  values += size_t{blockIdx.y} * size;
  if (rows != nullptr) rows += size_t{blockIdx.y} * size;
  __shared__ uint32_t stride[4][256];
  __shared__ uint32_t sums[kThreads / kWarp];
  for (uint32_t k = 0; k < 4; ++k) stride[k][threadIdx.x] = tables->stride[k][threadIdx.x];
  __syncthreads();
  const uint32_t step = kDigestBlocks * kThreads, mine = blockIdx.x * kThreads + threadIdx.x;
  uint32_t crc = 0;
  for (uint32_t left = mine < size ? (size - 1 - mine) / step + 1 : 0; left > 0; --left) {
    const uint32_t at = size - 1 - mine - (left - 1) * step;
    const bool counts = rows == nullptr || rows[at] != kSkipRow;
    crc = stride[0][crc & 255] ^ stride[1][crc >> 8 & 255] ^ stride[2][crc >> 16 & 255] ^ stride[3][crc >> 24];
    crc ^= counts ? static_cast<uint16_t>(values[at]) : 0u;
  }
  const uint32_t sum = warp_xor(multiply(crc, tables->in_block[threadIdx.x]));
  if (lane_of_thread() == 0) sums[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t block = 0;
    for (uint32_t i = 0; i < kThreads / kWarp; ++i) block ^= sums[i];
    atomicXor(&state->partial, multiply(block, tables->of_block[blockIdx.x]));
  }
  if (is_last_block(state) && threadIdx.x == 0) {
    state->digest = ~(multiply(whole, ~state->digest) ^ atomicExch(&state->partial, 0u));
  }
}

// ---- Histogram of every stride-th row ----

__global__ void __launch_bounds__(kThreads)
    histogram_kernel(const uint8_t* rows, uint32_t size, uint32_t samples, uint32_t stride, uint32_t* counts) {
  __shared__ uint32_t mine[256];
  mine[threadIdx.x] = 0;
  rows += size_t{blockIdx.y} * size;
  counts += size_t{blockIdx.y} * 256;
  __syncthreads();
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < samples; i += gridDim.x * kThreads) {
    atomicAdd(&mine[rows[static_cast<size_t>(i) * stride]], 1u);
  }
  __syncthreads();
  if (mine[threadIdx.x] != 0) atomicAdd(&counts[threadIdx.x], mine[threadIdx.x]);
}

// ---- Host ----

constexpr size_t round_up(size_t size) { return (size + 15) / 16 * 16; }

uint32_t tiles_of(uint32_t size) { return (size + kTile - 1) / kTile; }

size_t index_bytes(uint32_t size) { return round_up(4 * (size_t{tiles_of(size)} * (kWarp + 1) + 1)); }

Work work_in(void* scratch, uint32_t size, uint32_t pictures) {
  uint32_t* masks = static_cast<uint32_t*>(scratch);
  const uint32_t tiles = tiles_of(size);
  uint8_t* dense = static_cast<uint8_t*>(scratch) + index_bytes(size);
  return {size, tiles, pictures, masks, masks + size_t{tiles} * kWarp, dense};
}

void fill_symbols(DeviceTables& tables, uint32_t row, const uint16_t* freq, uint32_t shift) {
  SymbolEntry* symbols = tables.symbols + row * kSymbols;
  uint32_t start = 0;
  for (uint32_t symbol = 0; symbol < kSymbols; start += freq[symbol++]) {
    if (freq[symbol] != 0) symbols[symbol] = symbol_entry(start, freq[symbol], symbol == kEscape);
  }
  for (uint32_t symbol = 0; symbol < kEscape; ++symbol) {
    if (freq[symbol] == 0) symbols[symbol] = symbols[kEscape];
  }
  tables.shift[row] = static_cast<uint8_t>(shift);
}

// Returns how many bytes are used behind the runs.
template <uint32_t kSets>
uint32_t fill_search(Search<kSets>& search, const uint16_t* freq) {
  uint32_t count = 0;
  for (uint32_t row = 0; row < kSets * kRows; ++row, freq += kSymbols) {
    uint32_t first = 0, escape = kEscape, start = 0;
    while (freq[first] == 0) ++first;
    while (freq[escape - 1] == 0) --escape;  // comes right after the last one that has a frequency
    search.rows[row] = first << 20 | count;
    for (uint32_t symbol = first; symbol <= escape; ++symbol) {
      const uint32_t end = symbol == escape ? kSlots : start + freq[symbol];
      const uint32_t entry = slot_entry(symbol == escape ? kEscape : symbol, end - start, start);
      constexpr uint32_t kShift = kProbBits - kRunBits;
      for (uint32_t i = (start + (1 << kShift) - 1) >> kShift; i << kShift < end; ++i) {
        search.runs[row << kRunBits | i] = entry;
      }
      search.starts[count++] = static_cast<uint16_t>(start);
      start = end;
    }
    search.starts[count++] = kSlots;
  }
  return static_cast<uint32_t>(round_up(sizeof search.rows + sizeof(uint16_t) * count));
}

void fill_digest(DeviceTables& tables) {
  const uint32_t step = power_of_x(16ull * kThreads * kDigestBlocks);
  for (uint32_t k = 0; k < 4; ++k) {
    for (uint32_t byte = 0; byte < 256; ++byte) tables.stride[k][byte] = multiply(step, byte << (8 * k));
  }
  for (uint32_t i = 0; i < kThreads; ++i) tables.in_block[i] = power_of_x(16ull * (i + 1));
  for (uint32_t i = 0; i < kDigestBlocks; ++i) tables.of_block[i] = power_of_x(16ull * kThreads * i);
}

// The words of all groups begin at even bytes, or all at odd ones: the stream is then put one byte further.
size_t shift_of(const Layout& layout) { return layout.begin[0] % 2; }

// `first` is the place of the stream in the buffer, an even one behind its shift.
void open_groups(State& state, const uint8_t* stream, const Layout& layout, uint64_t first) {
  state.lanes = static_cast<uint32_t>(layout.lanes);
  state.groups = static_cast<uint32_t>(layout.groups);
  for (uint32_t g = 0; g < state.groups; ++g) {
    Group& group = state.group[g];
    for (uint32_t lane = 0; lane < kMaxLanes; ++lane) {
      group.states[lane] = lane < state.lanes ? get32(stream + layout.begin[g] + 4 * lane) : kLower;
    }
    const size_t begin = layout.begin[g] + 4 * state.lanes;
    group.begin = (first + begin + shift_of(layout)) / 2;
    group.words = static_cast<uint32_t>((layout.begin[g + 1] - begin) / 2);
  }
}

// Bytes of shared memory that the kernel gets on the present device, with the shortest runs that find room, or 0.
uint32_t stage(const void* kernel, uint32_t sets, uint32_t searched) {
  constexpr uint32_t kOwn = 1024;  // of the kernel itself, and more
  int device = 0, limit = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return 0;
  uint32_t bits = kRunBits;
  const auto bytes = [&] { return searched + (sets * kRows << bits) * sizeof(uint32_t); };
  while (bits > 0 && bytes() + kOwn > static_cast<uint32_t>(limit)) --bits;
  if (bits == 0) return 0;
  const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  const cudaError_t error = cudaFuncSetAttribute(kernel, attribute, static_cast<int>(bytes()));
  return error == cudaSuccess ? static_cast<uint32_t>(bytes()) : 0;
}

void launch_mark(const uint8_t* rows, const Work& work, State* states, cudaStream_t queue) {
  const uint32_t blocks = (work.tiles * kWarp + kThreads - 1) / kThreads;
  DCA_LAUNCH(mark_kernel, blocks, kThreads, 0, queue, rows, work, states);
}

template <uint32_t kSets>
void launch_decode(const Search<kSets>* search, uint32_t searched, uint32_t staged_bytes, const uint16_t* stream,
                   State* states, const Work& work, uint32_t groups, bool last, cudaStream_t queue) {
  const auto kernel = staged_bytes != 0 ? decode_kernel<kSets, true> : decode_kernel<kSets, false>;
  const dim3 grid(groups, work.pictures);
  DCA_LAUNCH(kernel, grid, kThreads, staged_bytes, queue, search, searched, staged_bytes, stream, states, work, last);
}

}  // namespace
}  // namespace dca::rans

// All functions that launch return 0 or a CUDA error code. Pointers are to the device unless named otherwise;
// sizes are positions of all pictures of a batch, a multiple of their number and below 2^31; `states` are one for each
// picture. Called by dca_fast/entropy/cuda_coder.py, which checks every argument.
extern "C" {

using namespace dca::rans;

uint64_t dca_rans_table_bytes() { return sizeof(DeviceTables); }
uint64_t dca_rans_state_bytes() { return sizeof(State); }
uint64_t dca_rans_decode_bytes(uint32_t size) { return index_bytes(size) + 4ull * size; }
uint64_t dca_rans_encode_bytes(uint32_t size) { return index_bytes(size) + (sizeof(Code) + 1) * uint64_t{size}; }
uint64_t dca_rans_quantise_bytes(uint32_t size, uint32_t pictures) {
  return round_up(sizeof(State)) + index_bytes(size) + round_up((sizeof(Edges) + 1) * uint64_t{size}) +
         sizeof(uint4) * kWarp * pictures * search_blocks(size / pictures);
}
const char* dca_rans_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

// Fills `host` (zeros) from valid tables; how many bytes of it a decoder searches beside its runs of slots, in a plain
// part and in one of a trellis, goes to `searched`.
void dca_rans_tables(const uint16_t* freq, const uint8_t* shift, void* host, uint32_t* searched) {
  DeviceTables& tables = *static_cast<DeviceTables*>(host);
  for (uint32_t row = 0; row < kTableRows; ++row) fill_symbols(tables, row, freq + row * kSymbols, shift[row]);
  searched[0] = fill_search(tables.plain, freq);
  searched[1] = fill_search(tables.trellis, freq + kRows * kSymbols);
  fill_digest(tables);
}

// Prepares the present device for plain parts or those of a trellis; returns how many bytes its shared memory has for
// `searched` bytes of tables and their runs, 0 if too few.
uint32_t dca_rans_stage(uint32_t trellis, uint32_t searched) {
  return trellis != 0 ? stage(reinterpret_cast<const void*>(decode_kernel<2, true>), 2, searched)
                      : stage(reinterpret_cast<const void*>(decode_kernel<1, true>), 1, searched);
}

// Opens streams for decoding: checks those that lie in `host` one behind the other, up to `ends`, copies them to
// `staging` in host memory, which outlives the copies that follow, and on to `streams`; both have room for two bytes
// more for each. Returns -1 for a truncated and -2 for a corrupt stream, with its number and the reason in `message`,
// which has room for 80 characters. Not for a graph: it reads host memory.
int dca_rans_reset(const uint8_t* host, const uint64_t* ends, uint32_t pictures, uint8_t* staging, State* opened,
                   uint8_t* streams, State* states, char* message, cudaStream_t queue) {
  static_assert(offsetof(State, status) == 0 && offsetof(State, digest) == 4 && offsetof(State, size) == 8,
                "as cuda_coder.py reads them");
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  cudaError_t error = cudaStreamIsCapturing(queue, &capture);
  if (error == cudaSuccess && capture != cudaStreamCaptureStatusNone) error = cudaErrorStreamCaptureUnsupported;
  if (error != cudaSuccess) return static_cast<int>(error);
  uint64_t begin = 0, to = 0;
  for (uint32_t p = 0; p < pictures; begin = ends[p++]) {
    const uint64_t size = ends[p] - begin;
    Layout layout;
    try {
      layout = read_layout(host + begin, size);
    } catch (const Error& fault) {
      std::memcpy(message, &p, sizeof p);
      std::strncpy(message + sizeof p, fault.what(), 79 - sizeof p);
      return fault.fault == Fault::kTruncated ? -1 : -2;
    }
    opened[p] = State{};
    open_groups(opened[p], host + begin, layout, to);
    std::memcpy(staging + to + shift_of(layout), host + begin, size);
    to = (to + shift_of(layout) + size + 1) / 2 * 2;
  }
  error = cudaMemcpyAsync(streams, staging, to, cudaMemcpyHostToDevice, queue);
  if (error == cudaSuccess) {
    error = cudaMemcpyAsync(states, opened, pictures * sizeof(State), cudaMemcpyHostToDevice, queue);
  }
  return static_cast<int>(error);
}

// Decodes the next part, or the last one, plain or of a trellis, of streams of at most so many groups; `scratch` has
// dca_rans_decode_bytes(size). `searched`, `staged_bytes`: of dca_rans_tables and dca_rans_stage.
int dca_rans_decode(const DeviceTables* tables, uint32_t trellis, uint32_t last, uint32_t searched,
                    uint32_t staged_bytes, const uint16_t* streams, State* states, uint32_t pictures, uint32_t groups,
                    const uint8_t* rows, uint32_t size, int16_t* values, void* scratch, cudaStream_t queue) {
  if (size == 0) return 0;
  const Work work = work_in(scratch, size, pictures);
  launch_mark(rows, work, states, queue);
  DCA_LAUNCH(scatter_jobs, work.tiles, kThreads, 0, queue, tables->shift, trellis != 0, rows, work);
  if (trellis != 0) {
    launch_decode(&tables->trellis, searched, staged_bytes, streams, states, work, groups, last != 0, queue);
  } else {
    launch_decode(&tables->plain, searched, staged_bytes, streams, states, work, groups, last != 0, queue);
  }
  DCA_LAUNCH(gather_decoded, work.tiles, kThreads, 0, queue, values, work);
  return static_cast<int>(cudaGetLastError());
}

// Sets status bits where words are left over or a state is wrong.
int dca_rans_finish(State* states, uint32_t pictures, cudaStream_t queue) {
  const dim3 grid(kMaxGroups, pictures);
  DCA_LAUNCH(finish_kernel, grid, kWarp, 0, queue, states);
  return static_cast<int>(cudaGetLastError());
}

// Goes on with the digest of each state; with `rows`, values that are not coded count as 0.
int dca_rans_digest(const DeviceTables* tables, const int16_t* values, const uint8_t* rows, uint32_t size,
                    State* states, uint32_t pictures, cudaStream_t queue) {
  if (size == 0) return 0;
  const uint32_t each = size / pictures, blocks = (each + kThreads - 1) / kThreads;
  const dim3 grid(blocks < kDigestBlocks ? blocks : kDigestBlocks, pictures);
  DCA_LAUNCH(digest_kernel, grid, kThreads, 0, queue, tables, values, rows, each, power_of_x(16ull * each), states);
  return static_cast<int>(cudaGetLastError());
}

// Starts a stream of each picture, with lanes[picture] lanes; every group gets room for `words`, in the worst case two
// for each of its positions.
int dca_rans_encode_open(State* states, uint32_t pictures, const int32_t* lanes, uint32_t groups, uint32_t words,
                         cudaStream_t queue) {
  const dim3 grid(kMaxGroups, pictures);
  DCA_LAUNCH(open_kernel, grid, kWarp, 0, queue, states, lanes, groups, words);
  return static_cast<int>(cudaGetLastError());
}

// Puts a part, plain or of a trellis, before those encoded so far, none if it is the last one; `scratch` has
// dca_rans_encode_bytes(size).
int dca_rans_encode(const DeviceTables* tables, uint32_t trellis, uint32_t last, State* states, uint32_t pictures,
                    uint32_t groups, const int16_t* values, const uint8_t* rows, uint32_t size, uint16_t* words,
                    void* scratch, cudaStream_t queue) {
  if (size == 0) return 0;
  const Work work = work_in(scratch, size, pictures);
  const dim3 grid(groups, pictures);
  uint8_t* sets = nullptr;
  launch_mark(rows, work, states, queue);
  if (trellis != 0) {
    sets = static_cast<uint8_t*>(work.dense) + sizeof(Code) * size_t{size};
    DCA_LAUNCH(scatter_values, work.tiles, kThreads, 0, queue, values, work);
    DCA_LAUNCH(follow_kernel, grid, kWarp, 0, queue, states, work, sets);
  }
  DCA_LAUNCH(scatter_codes, work.tiles, kThreads, 0, queue, tables, rows, values, sets, work);
  DCA_LAUNCH(encode_kernel, grid, kWarp, 0, queue, states, work, trellis != 0, last != 0, words);
  return static_cast<int>(cudaGetLastError());
}

// Writes each stream to its `room` bytes of `out` and its length to its state.
int dca_rans_encode_close(State* states, uint32_t pictures, uint32_t groups, const uint16_t* words, uint8_t* out,
                          uint64_t room, cudaStream_t queue) {
  const dim3 grid(kJoinBlocks, groups, pictures);
  DCA_LAUNCH(join_kernel, grid, kThreads, 0, queue, states, words, out, room);
  return static_cast<int>(cudaGetLastError());
}

// Finds the values of a part of a trellis in streams of so many groups. Charges [2][kRows][kSymbols] are 0..2^24, bad
// rows count as kSkipRow; `scratch` has dca_rans_quantise_bytes(size, pictures).
int dca_rans_quantise(const int32_t* residuals, const uint8_t* rows, uint32_t size, uint32_t pictures,
                      const int32_t* charges, uint32_t groups, int16_t* values, void* scratch, cudaStream_t queue) {
  if (size == 0) return 0;
  State* state = static_cast<State*>(scratch);  // of the packing, whichever picture a bad row belongs to
  Work work = work_in(static_cast<uint8_t*>(scratch) + round_up(sizeof(State)), size, 1);
  uint8_t* taken = static_cast<uint8_t*>(work.dense) + sizeof(Edges) * size_t{size};
  uint4* trail =
      reinterpret_cast<uint4*>(static_cast<uint8_t*>(work.dense) + round_up((sizeof(Edges) + 1) * size_t{size}));
  const int32_t* any_lanes = nullptr;
  DCA_LAUNCH(open_kernel, 1, kWarp, 0, queue, state, any_lanes, groups, 0);
  launch_mark(rows, work, state, queue);
  DCA_LAUNCH(scatter_edges, work.tiles, kThreads, 0, queue, residuals, rows, charges, work);
  work.pictures = pictures;
  const dim3 grid(groups * kChains, pictures);
  DCA_LAUNCH(search_kernel, grid, kWarp, 0, queue, groups, work, trail, taken);
  DCA_LAUNCH(gather_values, work.tiles, kThreads, 0, queue, residuals, rows, charges, taken, values, work);
  return static_cast<int>(cudaGetLastError());
}

// Adds to counts[picture][256] how often each row occurs among every stride-th one of its `size` rows.
int dca_rans_histogram(const uint8_t* rows, uint32_t size, uint32_t pictures, uint32_t stride, uint32_t* counts,
                       cudaStream_t queue) {
  if (size == 0) return 0;
  const uint32_t samples = (size - 1) / stride + 1, blocks = (samples + kThreads - 1) / kThreads;
  const dim3 grid(blocks < 64 ? blocks : 64, pictures);
  DCA_LAUNCH(histogram_kernel, grid, kThreads, 0, queue, rows, size, samples, stride, counts);
  return static_cast<int>(cudaGetLastError());
}

}  // extern "C"
