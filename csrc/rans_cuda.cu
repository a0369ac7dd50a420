// The coder on a GPU: the same streams as rans_coder.cpp, bit for bit, through the same steps (rans.h).
//
// A part is coded in three launches. `mark` keeps one bit per position and counts the coded ones, `scatter`
// packs them densely; both use the whole device. Then one warp per group runs the rounds: lane i of the
// stream is lane i of the warp, and a ballot tells each lane which word is its own. What goes on from part to
// part lies in a `State` on the device, so that nothing here waits for the device or allocates, and all
// launches of a decoder are the same for every stream: they can be recorded in a CUDA graph.
//
// Without nvcc the file compiles against an emulation of the device (tests/cuda/emulation.h).
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "rans.h"
#include "rans_layout.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define DCA_LAUNCH(kernel, grid, block, shared, stream, ...) \
  kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
#define DCA_DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#else
#include "emulation.h"
#endif

namespace dca::rans {
namespace {

constexpr uint32_t kAll = 0xFFFFFFFFu;
constexpr uint32_t kWarp = 32;
constexpr uint32_t kTile = kWarp * kWarp;  // positions of one warp; lane i keeps the bits of its i-th 32
constexpr uint32_t kThreads = 256;
constexpr uint32_t kBatch = 4;  // rounds between two requests for symbols; hides the latency of memory
constexpr uint32_t kCoarseBits = 8;
constexpr uint32_t kCoarseShift = kProbBits - kCoarseBits;
constexpr uint32_t kDigestBlocks = 256;
constexpr uint32_t kJoinBlocks = 16;  // per group

enum Status : uint32_t { kBadRow = 1, kTruncated = 2, kLeftOver = 4, kWrongState = 8 };

}  // namespace

// ---- What lies on the device ----

// The symbols of a row in order, those without a frequency left out: symbol << 24 | freq << 12 | start. A
// search starts at the symbol of the slot rounded down to 16 and seldom goes on. This fits into shared memory,
// a table of all slots (2 MiB) does not: it would make every round wait for L2.
struct alignas(16) Search {
  uint32_t rows[kRows];  // shift << 16 | index of the first entry
  uint8_t coarse[kRows << kCoarseBits];
  uint32_t entries[kRows * kSymbols];
};

struct alignas(16) DeviceTables {
  SymbolEntry symbols[kRows * kSymbols];  // uncodable symbols hold the entry of the escape
  uint8_t shift[kRows];
  Search search;
  uint32_t stride[4][256];           // a polynomial times x^(16 threads of the digest), by its bytes
  uint32_t in_block[kThreads];       // x^(16 (i + 1))
  uint32_t of_block[kDigestBlocks];  // x^(16 kThreads i)
};

struct Group {
  uint32_t states[kMaxLanes];
  uint64_t begin;  // decoder: its first word, counted from the start of the buffer
  uint32_t words;  // decoder: how many there are; encoder: how many there is room for
  uint32_t next;   // decoder: words used; encoder: words still free, as they are written from the end
};

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
  uint32_t size, tiles;
  uint32_t* masks;   // [tiles * kWarp] a bit per position
  uint32_t* starts;  // [tiles + 1] coded positions before each tile
  void* dense;
};

struct alignas(16) Code {
  SymbolEntry entry;
  uint32_t shift;    // 0 for an escape
  uint32_t payload;  // the low bits, or the value of an escape
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

__global__ void __launch_bounds__(kThreads) mark_kernel(const uint8_t* rows, Work work, State* state) {
  const uint32_t lane = lane_of_thread(), tile = (blockIdx.x * kThreads + threadIdx.x) / kWarp;
  if (tile < work.tiles) {
    uint32_t mine = 0;
    bool bad = false;
#pragma unroll 8
    for (uint32_t i = 0; i < kWarp; ++i) {
      const uint32_t at = tile * kTile + i * kWarp + lane;
      const uint32_t row = at < work.size ? rows[at] : kSkipRow;
      const uint32_t mask = ballot(row < kRows);  // a bad row is skipped, so that nobody uses it
      bad |= row >= kRows && row != kSkipRow;
      if (lane == i) mine = mask;
    }
    if (bad) atomicOr(&state->status, kBadRow);
    work.masks[tile * kWarp + lane] = mine;
    const uint32_t count = warp_sum(count_bits(mine));
    if (lane == 0) work.starts[tile] = count;
  }
  if (is_last_block(state)) scan_tiles(work);
}

// Calls sink(position, coded, place among the coded) for every position.
template <class Sink>
__device__ __forceinline__ void scatter(const Work& work, const Sink& sink) {
  const uint32_t lane = lane_of_thread(), tile = (blockIdx.x * kThreads + threadIdx.x) / kWarp;
  if (tile >= work.tiles) return;
  const uint32_t mine = work.masks[tile * kWarp + lane];
  const uint32_t before = work.starts[tile] + warp_before(count_bits(mine));
#pragma unroll 8
  for (uint32_t i = 0; i < kWarp; ++i) {
    const uint32_t mask = __shfl_sync(kAll, mine, i), start = __shfl_sync(kAll, before, i);
    const uint32_t at = tile * kTile + i * kWarp + lane;
    if (at < work.size) sink(at, (mask >> lane & 1) != 0, start + count_bits(mask & below(lane)));
  }
}

DCA_HD uint8_t* dense_rows(const Work& work) { return static_cast<uint8_t*>(work.dense) + 4ull * work.size; }

__global__ void __launch_bounds__(kThreads) scatter_rows(const uint8_t* rows, int16_t* values, Work work) {
  uint32_t* positions = static_cast<uint32_t*>(work.dense);
  uint8_t* packed = dense_rows(work);
  scatter(work, [=](uint32_t at, bool coded, uint32_t to) {
    values[at] = 0;  // also where a value follows: after an error there may be none
    if (!coded) return;
    positions[to] = at;
    packed[to] = rows[at];
  });
}

__global__ void __launch_bounds__(kThreads) scatter_codes(const DeviceTables* tables, const uint8_t* rows,
                                                          const int16_t* values, Work work) {
  Code* codes = static_cast<Code*>(work.dense);
  scatter(work, [=](uint32_t at, bool coded, uint32_t to) {
    if (!coded) return;
    const uint32_t row = rows[at], value = static_cast<uint16_t>(values[at]);
    const uint32_t shift = tables->shift[row];
    const uint32_t bucket = static_cast<uint32_t>((values[at] >> shift) + kCenter);
    const SymbolEntry entry = tables->symbols[row * kSymbols + (bucket < kEscape ? bucket : kEscape)];
    const bool escape = (entry.packed & kEscapeFlag) != 0;
    codes[to] = escape ? Code{entry, 0, value} : Code{entry, shift, value & ((1u << shift) - 1)};
  });
}

// Number of coded positions before `at`, by a whole warp.
__device__ __forceinline__ uint32_t rank_of(const Work& work, uint32_t at) {
  if (at >= work.size) return work.starts[work.tiles];
  const uint32_t tile = at / kTile, lane = lane_of_thread(), last = at / kWarp % kWarp;
  const uint32_t mask = work.masks[tile * kWarp + lane];
  const uint32_t bits = lane < last ? mask : lane == last ? mask & below(at % kWarp) : 0;
  return work.starts[tile] + warp_sum(count_bits(bits));
}

struct Range {
  uint32_t first, end;
};

// The coded symbols of one group.
__device__ __forceinline__ Range range_of(const Work& work, uint32_t group, uint32_t groups) {
  const uint64_t size = work.size;
  return {rank_of(work, static_cast<uint32_t>(size * group / groups)),
          rank_of(work, static_cast<uint32_t>(size * (group + 1) / groups))};
}

// ---- Decoding ----

// Words of the stream for the lanes that need one, in the order of the lanes. All lanes of the warp take part
// in every call. Two words per lane wait in registers, a third is on its way.
struct WarpReader {
  const uint16_t* words;
  uint32_t size, first, lane;  // words of the group; place of `now`; this lane
  uint32_t used = 0;           // words after `first`, below kWarp between calls
  uint32_t now, next, later;
  bool active = false;

  __device__ __forceinline__ WarpReader(const uint16_t* words_, uint32_t size_, uint32_t first_)
      : words(words_), size(size_), first(first_), lane(lane_of_thread()) {
    now = load(first + lane);
    next = load(first + kWarp + lane);
    later = load(first + 2 * kWarp + lane);
  }

  __device__ __forceinline__ uint32_t load(uint32_t i) const {
    return i < size ? words[i] : 0u;  // a caller that comes to use the 0 finds position() beyond the size
  }

  __device__ __forceinline__ uint32_t take(bool need) {
    const uint32_t mask = ballot(need && active);
    const uint32_t i = used + count_bits(mask & below(lane));
    const uint32_t low = __shfl_sync(kAll, now, i % kWarp), high = __shfl_sync(kAll, next, i % kWarp);
    used += count_bits(mask);
    if (used >= kWarp) {
      used -= kWarp;
      first += kWarp;
      now = next;
      next = later;
      later = load(first + 2 * kWarp + lane);
    }
    return i < kWarp ? low : high;
  }

  __device__ __forceinline__ uint32_t position() const { return first + used; }
};

// The entry of a slot as slot_entry has it.
__device__ __forceinline__ uint32_t find(const Search* search, uint32_t row, uint32_t index, uint32_t slot) {
  const uint32_t* entry = search->entries + index + search->coarse[row << kCoarseBits | slot >> kCoarseShift];
  while (slot - (*entry & 0xFFF) >= (*entry >> 12 & 0xFFF)) ++entry;
  return (*entry & ~0xFFFu) | (slot - (*entry & 0xFFF));
}

struct Place {
  uint32_t position, row;
  bool active;
};

// What a round needs to know of one lane, besides its state.
struct Job {
  Place place;
  uint32_t row;  // of Search
};

__device__ __forceinline__ Place load_place(const Work& work, uint32_t i, uint32_t end, bool lane_in_use) {
  if (!lane_in_use || i >= end) return {0, 0, false};
  return {static_cast<const uint32_t*>(work.dense)[i], dense_rows(work)[i], true};
}

__device__ __forceinline__ uint32_t decode_round(const Search* search, uint32_t x, const Job& job,
                                                 WarpReader& words, int16_t* values) {
  const Place& place = job.place;
  words.active = place.active;
  const uint32_t entry = find(search, place.row, job.row & 0xFFFF, x & (kSlots - 1));
  const uint32_t stepped = decode_step(x, entry, words);
  x = place.active ? stepped : x;
  const bool escape = place.active && entry >> 24 == kEscape;
  const int shift = place.active && !escape ? static_cast<int>(job.row >> 16) : 0;
  int value = static_cast<int>(entry >> 24) - kCenter;
  if (ballot(escape || shift != 0) != 0) {
    uint32_t low = 0;
    x = decode_low(x, shift, low, words);
    const uint32_t raw = words.take(escape);
    value = static_cast<int>(escape ? raw : static_cast<uint32_t>(value * (1 << shift)) + low);
  }
  if (place.active) values[place.position] = static_cast<int16_t>(value);
  return x;
}

__device__ __forceinline__ void decode_group(const Search* search, const uint16_t* stream, State* state,
                                             Group& group, const Work& work, Range range, int16_t* values) {
  const uint32_t lane = lane_of_thread(), lanes = state->lanes;
  WarpReader words(stream + group.begin, group.words, group.next);
  uint32_t x = group.states[lane];
  Job jobs[kBatch];
  Place coming[kBatch];
#pragma unroll
  for (uint32_t k = 0; k < kBatch; ++k) {
    coming[k] = load_place(work, range.first + k * lanes + lane, range.end, lane < lanes);
  }
  for (uint32_t at = range.first; at < range.end; at += kBatch * lanes) {
#pragma unroll
    for (uint32_t k = 0; k < kBatch; ++k) {
      jobs[k] = {coming[k], search->rows[coming[k].row]};
      coming[k] = load_place(work, at + (kBatch + k) * lanes + lane, range.end, lane < lanes);
    }
#pragma unroll
    for (uint32_t k = 0; k < kBatch; ++k) x = decode_round(search, x, jobs[k], words, values);
    if (words.position() > group.words) break;
  }
  group.states[lane] = x;
  if (lane != 0) return;
  group.next = words.position();
  if (words.position() > group.words) atomicOr(&state->status, kTruncated);
}

// One block per group; all of its threads fetch the tables, then its first warp decodes.
template <bool kStaged>
__global__ void __launch_bounds__(kThreads) decode_kernel(const Search* search, uint32_t search_bytes,
                                                          const uint16_t* stream, State* state, Work work,
                                                          int16_t* values) {
  if (blockIdx.x >= state->groups) return;
  Group& group = state->group[blockIdx.x];
  const Range range = range_of(work, blockIdx.x, state->groups);
  if (range.first == range.end || group.next > group.words) return;  // nothing to do, or an earlier error
  if (kStaged) {
    DCA_DYNAMIC_SHARED(uint4, staged);
    for (uint32_t i = threadIdx.x; i < search_bytes / 16; i += kThreads) {
      staged[i] = reinterpret_cast<const uint4*>(search)[i];
    }
    __syncthreads();
    search = reinterpret_cast<const Search*>(staged);
  }
  if (threadIdx.x < kWarp) decode_group(search, stream, state, group, work, range, values);
}

__global__ void __launch_bounds__(kWarp) finish_kernel(State* state) {
  if (blockIdx.x >= state->groups) return;
  const Group& group = state->group[blockIdx.x];
  if (group.next < group.words && threadIdx.x == 0) atomicOr(&state->status, kLeftOver);
  if (group.states[threadIdx.x] != kLower) atomicOr(&state->status, kWrongState);
}

// ---- Encoding ----

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

// One warp per group, from the last round of a part to the first.
__global__ void __launch_bounds__(kWarp) encode_kernel(State* state, Work work, uint16_t* words) {
  if (blockIdx.x >= state->groups) return;
  Group& group = state->group[blockIdx.x];
  const Range range = range_of(work, blockIdx.x, state->groups);
  if (range.first == range.end) return;
  const uint32_t lane = lane_of_thread(), lanes = state->lanes;
  const uint32_t rounds = (range.end - range.first + lanes - 1) / lanes;
  WarpWriter writer(words + static_cast<size_t>(blockIdx.x) * group.words, group.next);
  uint32_t x = group.states[lane];
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
  group.states[lane] = x;
  if (lane == 0) group.next = writer.next;
}

__global__ void __launch_bounds__(kWarp) open_kernel(State* state, uint32_t lanes, uint32_t groups, uint32_t words) {
  Group& group = state->group[blockIdx.x];
  group.states[threadIdx.x] = kLower;
  if (threadIdx.x != 0) return;
  group.begin = 0;
  group.words = group.next = words;
  if (blockIdx.x != 0) return;
  state->status = state->digest = state->arrived = state->partial = 0;
  state->size = 0;
  state->lanes = lanes;
  state->groups = groups;
}

__device__ uint32_t group_bytes(const State* state, uint32_t g) {
  return 4 * state->lanes + 2 * (state->group[g].words - state->group[g].next);
}

// Puts header and groups one behind the other.
__global__ void __launch_bounds__(kThreads) join_kernel(State* state, const uint16_t* words, uint8_t* out) {
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
  const uint16_t* from = words + static_cast<size_t>(g) * group.words + group.next;
  uint8_t* to = out + header + before;
  const uint32_t bytes = group_bytes(state, g), states = 4 * lanes;
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < bytes; i += kJoinBlocks * kThreads) {
    const uint32_t word = i < states ? group.states[i / 4] >> (8 * (i % 4)) : from[(i - states) / 2] >> (8 * (i % 2));
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
__global__ void __launch_bounds__(kThreads) digest_kernel(const DeviceTables* tables, const int16_t* values,
                                                          const uint8_t* rows, uint32_t size, uint32_t whole,
                                                          State* state) {
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

__global__ void __launch_bounds__(kThreads) histogram_kernel(const uint8_t* rows, uint32_t samples, uint32_t stride,
                                                             uint32_t* counts) {
  __shared__ uint32_t mine[256];
  mine[threadIdx.x] = 0;
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
uint32_t blocks_of(uint32_t tiles) { return (tiles * kWarp + kThreads - 1) / kThreads; }

size_t index_bytes(uint32_t size) { return round_up(4 * (size_t{tiles_of(size)} * (kWarp + 1) + 1)); }

Work work_in(void* scratch, uint32_t size) {
  uint32_t* masks = static_cast<uint32_t*>(scratch);
  const uint32_t tiles = tiles_of(size);
  return {size, tiles, masks, masks + size_t{tiles} * kWarp, static_cast<uint8_t*>(scratch) + index_bytes(size)};
}

void fill_row(DeviceTables& tables, uint32_t row, const uint16_t* freq, uint32_t shift, uint32_t& count) {
  Search& search = tables.search;
  const uint32_t first = count;
  SymbolEntry* symbols = tables.symbols + row * kSymbols;
  uint32_t start = 0;
  for (uint32_t symbol = 0; symbol < kSymbols; start += freq[symbol++]) {
    if (freq[symbol] == 0) continue;
    symbols[symbol] = symbol_entry(start, freq[symbol], symbol == kEscape);
    for (uint32_t i = (start + (1 << kCoarseShift) - 1) >> kCoarseShift; i << kCoarseShift < start + freq[symbol]; ++i)
      search.coarse[row << kCoarseBits | i] = static_cast<uint8_t>(count - first);
    search.entries[count++] = slot_entry(symbol, freq[symbol], start);
  }
  for (uint32_t symbol = 0; symbol < kEscape; ++symbol) {
    if (freq[symbol] == 0) symbols[symbol] = symbols[kEscape];
  }
  tables.shift[row] = static_cast<uint8_t>(shift);
  search.rows[row] = shift << 16 | first;
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

void open_groups(State& state, const uint8_t* stream, const Layout& layout) {
  state.lanes = static_cast<uint32_t>(layout.lanes);
  state.groups = static_cast<uint32_t>(layout.groups);
  for (uint32_t g = 0; g < state.groups; ++g) {
    Group& group = state.group[g];
    for (uint32_t lane = 0; lane < kMaxLanes; ++lane) {
      group.states[lane] = lane < state.lanes ? get32(stream + layout.begin[g] + 4 * lane) : kLower;
    }
    const size_t begin = layout.begin[g] + 4 * state.lanes;
    group.begin = (begin + shift_of(layout)) / 2;
    group.words = static_cast<uint32_t>((layout.begin[g + 1] - begin) / 2);
  }
}

}  // namespace
}  // namespace dca::rans

// All functions that launch return 0 or a CUDA error code. Pointers are to the device unless named otherwise;
// sizes are positions below 2^31. Called by dca_fast/entropy/device.py, which checks every argument.
extern "C" {

using namespace dca::rans;

uint64_t dca_rans_table_bytes() { return sizeof(DeviceTables); }
uint64_t dca_rans_state_bytes() { return sizeof(State); }
uint64_t dca_rans_decode_bytes(uint32_t size) { return index_bytes(size) + 5ull * size; }
uint64_t dca_rans_encode_bytes(uint32_t size) { return index_bytes(size) + sizeof(Code) * uint64_t{size}; }
const char* dca_rans_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

// Fills `host` (zeros) from valid tables; returns how many bytes of it a decoder searches.
uint32_t dca_rans_tables(const uint16_t* freq, const uint8_t* shift, void* host) {
  DeviceTables& tables = *static_cast<DeviceTables*>(host);
  uint32_t count = 0;
  for (uint32_t row = 0; row < kRows; ++row) fill_row(tables, row, freq + row * kSymbols, shift[row], count);
  fill_digest(tables);
  return static_cast<uint32_t>(round_up(offsetof(Search, entries) + 4 * count));
}

// Prepares the present device; returns `search_bytes` if they fit into its shared memory, else 0.
uint32_t dca_rans_stage(uint32_t search_bytes) {
  int device = 0, limit = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return 0;
  if (search_bytes > static_cast<uint32_t>(limit)) return 0;
  const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  const cudaError_t error = cudaFuncSetAttribute(decode_kernel<true>, attribute, static_cast<int>(search_bytes));
  return error == cudaSuccess ? search_bytes : 0;
}

// Opens a stream for decoding: checks `host_stream` and copies it to `stream`, which has room for one byte more,
// and to `state`. Returns -1 for a truncated and -2 for a corrupt stream, with the reason in `message`, which has
// room for 80 characters. Not for a graph: it reads host memory.
int dca_rans_reset(const uint8_t* host_stream, uint64_t size, uint8_t* stream, State* state, char* message,
                   cudaStream_t queue) {
  static_assert(offsetof(State, status) == 0 && offsetof(State, digest) == 4 && offsetof(State, size) == 8,
                "as device.py reads them");
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  cudaError_t error = cudaStreamIsCapturing(queue, &capture);
  if (error == cudaSuccess && capture != cudaStreamCaptureStatusNone) error = cudaErrorStreamCaptureUnsupported;
  if (error != cudaSuccess) return static_cast<int>(error);
  State opened = {};
  Layout layout;
  try {
    layout = read_layout(host_stream, size);
  } catch (const Error& fault) {
    std::strncpy(message, fault.what(), 79);
    return fault.fault == Fault::kTruncated ? -1 : -2;
  }
  open_groups(opened, host_stream, layout);
  // From pageable memory: both are copied before the calls return.
  error = cudaMemcpyAsync(stream + shift_of(layout), host_stream, size, cudaMemcpyHostToDevice, queue);
  if (error == cudaSuccess) error = cudaMemcpyAsync(state, &opened, sizeof opened, cudaMemcpyHostToDevice, queue);
  return static_cast<int>(error);
}

// Decodes the next part; `scratch` has dca_rans_decode_bytes(size).
int dca_rans_decode(const DeviceTables* tables, uint32_t staged_bytes, const uint16_t* stream, State* state,
                    const uint8_t* rows, uint32_t size, int16_t* values, void* scratch, cudaStream_t queue) {
  if (size == 0) return 0;
  const Work work = work_in(scratch, size);
  const uint32_t blocks = blocks_of(work.tiles);
  DCA_LAUNCH(mark_kernel, blocks, kThreads, 0, queue, rows, work, state);
  DCA_LAUNCH(scatter_rows, blocks, kThreads, 0, queue, rows, values, work);
  const auto kernel = staged_bytes != 0 ? decode_kernel<true> : decode_kernel<false>;
  DCA_LAUNCH(kernel, kMaxGroups, kThreads, staged_bytes, queue, &tables->search, staged_bytes, stream, state, work,
             values);
  return static_cast<int>(cudaGetLastError());
}

// Sets status bits where words are left over or a state is wrong.
int dca_rans_finish(State* state, cudaStream_t queue) {
  DCA_LAUNCH(finish_kernel, kMaxGroups, kWarp, 0, queue, state);
  return static_cast<int>(cudaGetLastError());
}

// Goes on with state->digest; with `rows`, values that are not coded count as 0.
int dca_rans_digest(const DeviceTables* tables, const int16_t* values, const uint8_t* rows, uint32_t size,
                    State* state, cudaStream_t queue) {
  if (size == 0) return 0;
  const uint32_t blocks = (size + kThreads - 1) / kThreads;
  const uint32_t grid = blocks < kDigestBlocks ? blocks : kDigestBlocks;
  DCA_LAUNCH(digest_kernel, grid, kThreads, 0, queue, tables, values, rows, size, power_of_x(16ull * size), state);
  return static_cast<int>(cudaGetLastError());
}

// Starts a stream; every group gets room for `words`, in the worst case two for each of its positions.
int dca_rans_encode_open(State* state, uint32_t lanes, uint32_t groups, uint32_t words, cudaStream_t queue) {
  DCA_LAUNCH(open_kernel, kMaxGroups, kWarp, 0, queue, state, lanes, groups, words);
  return static_cast<int>(cudaGetLastError());
}

// Puts a part before those encoded so far; `scratch` has dca_rans_encode_bytes(size).
int dca_rans_encode(const DeviceTables* tables, State* state, const int16_t* values, const uint8_t* rows, uint32_t size,
                    uint16_t* words, void* scratch, cudaStream_t queue) {
  if (size == 0) return 0;
  const Work work = work_in(scratch, size);
  const uint32_t blocks = blocks_of(work.tiles);
  DCA_LAUNCH(mark_kernel, blocks, kThreads, 0, queue, rows, work, state);
  DCA_LAUNCH(scatter_codes, blocks, kThreads, 0, queue, tables, rows, values, work);
  DCA_LAUNCH(encode_kernel, kMaxGroups, kWarp, 0, queue, state, work, words);
  return static_cast<int>(cudaGetLastError());
}

// Writes the stream to `out` and its length to state->size.
int dca_rans_encode_close(State* state, const uint16_t* words, uint8_t* out, cudaStream_t queue) {
  const dim3 grid(kJoinBlocks, kMaxGroups);
  DCA_LAUNCH(join_kernel, grid, kThreads, 0, queue, state, words, out);
  return static_cast<int>(cudaGetLastError());
}

// Adds to counts[256] how often each row occurs among every stride-th one.
int dca_rans_histogram(const uint8_t* rows, uint32_t size, uint32_t stride, uint32_t* counts, cudaStream_t queue) {
  if (size == 0) return 0;
  const uint32_t samples = (size - 1) / stride + 1, blocks = (samples + kThreads - 1) / kThreads;
  DCA_LAUNCH(histogram_kernel, blocks < 64 ? blocks : 64, kThreads, 0, queue, rows, samples, stride, counts);
  return static_cast<int>(cudaGetLastError());
}

}  // extern "C"
