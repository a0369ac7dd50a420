// Portable kernels, any number of lanes. Also the tail rounds of the vector paths.
#include <algorithm>
#include <cstring>

#include "rans_paths.h"
#include "rans_trellis.h"

namespace dca::rans {
namespace {

struct Reader {
  const uint8_t* next;

  uint32_t take(bool need) {
    const uint32_t word = next[0] | static_cast<uint32_t>(next[1]) << 8;
    next += 2 * static_cast<int>(need);
    return word;
  }
};

struct Writer {
  uint8_t* next;

  void put(bool need, uint16_t word) {
    next[-2] = static_cast<uint8_t>(word);
    next[-1] = static_cast<uint8_t>(word >> 8);
    next -= 2 * static_cast<int>(need);
  }
};

// Eight rows at once: skipped positions come in runs, and coded ones as well.
enum class Run { kMixed, kSkipped, kCoded };

inline Run run_of_eight(const uint8_t* rows) {
  uint64_t word;
  std::memcpy(&word, rows, 8);
  if (word == ~uint64_t{0}) return Run::kSkipped;
  return (word & 0x8080808080808080u) == 0 ? Run::kCoded : Run::kMixed;  // a table row has a clear top bit
}

size_t pack_rows(const uint8_t* rows, size_t n, size_t capacity, uint8_t* dense, ptrdiff_t& count) {
  size_t kept = 0, i = 0;
  bool bad = false;
  while (i < n && kept < capacity) {
    const bool whole = i + 8 <= n && kept + 8 <= capacity;
    const Run run = whole ? run_of_eight(rows + i) : Run::kMixed;
    if (run != Run::kMixed) {
      std::memcpy(dense + kept, rows + i, 8);
      kept += run == Run::kCoded ? 8 : 0;
      i += 8;
      continue;
    }
    for (const size_t stop = std::min(i + 8, n); i < stop && kept < capacity; ++i) {
      dense[kept] = rows[i];
      kept += rows[i] != kSkipRow;
      bad |= rows[i] >= kRows && rows[i] != kSkipRow;
    }
  }
  count = bad ? -1 : static_cast<ptrdiff_t>(kept);
  return i;
}

template <class T>
void pack(const uint8_t* rows, const T* values, size_t n, T* dense) {
  for (size_t i = 0; i < n;) {
    const Run run = i + 8 <= n ? run_of_eight(rows + i) : Run::kMixed;
    if (run != Run::kMixed) {
      std::memcpy(dense, values + i, 8 * sizeof(T));
      dense += run == Run::kCoded ? 8 : 0;
      i += 8;
      continue;
    }
    for (const size_t stop = std::min(i + 8, n); i < stop; ++i) {
      *dense = values[i];
      dense += rows[i] != kSkipRow;
    }
  }
}

void unpack_values(const uint8_t* rows, const int16_t* dense, size_t n, int16_t* values) {
  for (size_t i = 0; i < n;) {
    const Run run = i + 8 <= n ? run_of_eight(rows + i) : Run::kMixed;
    if (run == Run::kSkipped) {
      std::memset(values + i, 0, 16);
      i += 8;
      continue;
    }
    if (run == Run::kCoded) {
      std::memcpy(values + i, dense, 16);
      dense += 8;
      i += 8;
      continue;
    }
    for (const size_t stop = std::min(i + 8, n); i < stop; ++i) {
      const bool coded = rows[i] != kSkipRow;
      values[i] = static_cast<int16_t>(*dense & -static_cast<int>(coded));
      dense += coded;
    }
  }
}

inline const uint8_t* decode_round(const TableView& tables, int lanes, uint32_t* states, const uint8_t* next,
                                   const uint8_t* rows, int16_t* values) {
  Reader words{next};
  const uint32_t* slots = tables.slots;
  const uint8_t* shift = tables.shift;
  uint32_t rest = 0;
  for (int lane = 0; lane < lanes; ++lane) {
    const uint32_t row = rows[lane];
    const uint32_t entry = slots[row << kProbBits | (states[lane] & (kSlots - 1))];
    states[lane] = decode_step(states[lane], entry, words);
    values[lane] = static_cast<int16_t>(static_cast<int>(entry >> 24) - kCenter);
    rest |= shift[row] | static_cast<uint32_t>(entry >> 24 == kEscape);
  }
  return rest != 0 ? decode_rest(tables, lanes, states, words.next, rows, values) : words.next;
}

template <int kLanes>
const uint8_t* decode_lanes(const TableView& tables, uint32_t* states, const uint8_t* words, const uint8_t* end,
                            const uint8_t* rows, size_t count, int16_t* values) {
  uint32_t x[kLanes];
  std::memcpy(x, states, sizeof x);
  for (; count >= kLanes; count -= kLanes, rows += kLanes, values += kLanes) {
    words = decode_round(tables, kLanes, x, words, rows, values);
    if (words > end) return nullptr;
  }
  words = decode_round(tables, static_cast<int>(count), x, words, rows, values);
  std::memcpy(states, x, sizeof x);
  return words > end ? nullptr : words;
}

const uint8_t* decode(const TableView& tables, int lanes, uint32_t* states, const uint8_t* words, const uint8_t* end,
                      const uint8_t* rows, size_t count, int16_t* values) {
  switch (lanes) {
    case 1:
      return decode_lanes<1>(tables, states, words, end, rows, count, values);
    case 2:
      return decode_lanes<2>(tables, states, words, end, rows, count, values);
    case 4:
      return decode_lanes<4>(tables, states, words, end, rows, count, values);
    case 8:
      return decode_lanes<8>(tables, states, words, end, rows, count, values);
    case 16:
      return decode_lanes<16>(tables, states, words, end, rows, count, values);
    default:
      return decode_lanes<32>(tables, states, words, end, rows, count, values);
  }
}

const uint8_t* decode_trellis(const TableView& tables, int lanes, uint32_t* states, const uint8_t* words,
                              const uint8_t* end, const uint8_t* rows, size_t count, int16_t* values, uint16_t* chains,
                              int width) {
  for (size_t done = 0; done < count; done += static_cast<size_t>(width)) {
    const size_t active = std::min(count - done, static_cast<size_t>(width));
    uint8_t chosen[kChains];
    choose_rows(rows + done, chains, static_cast<int>(active), chosen);
    words = decode(tables, lanes, states, words, end, chosen, active, values + done);
    if (words == nullptr) return nullptr;
    indices_to_values(static_cast<int>(active), values + done, chains);
  }
  return words;
}

inline uint8_t* encode_round(const TableView& tables, int lanes, uint32_t* states, uint8_t* next, const uint8_t* rows,
                             const int16_t* values) {
  SymbolEntry entries[kMaxLanes];
  uint32_t rest = 0;
  for (int lane = 0; lane < lanes; ++lane) {
    const uint32_t row = rows[lane];
    const int shift = tables.shift[row];
    const uint32_t bucket = static_cast<uint32_t>((values[lane] >> shift) + kCenter);
    entries[lane] = tables.symbols[row * kSymbols + (bucket < kEscape ? bucket : kEscape)];
    rest |= (entries[lane].packed & kEscapeFlag) | static_cast<uint32_t>(shift);
  }
  if (rest != 0) next = encode_rest(tables, lanes, states, next, entries, rows, values);
  Writer words{next};
  for (int lane = lanes - 1; lane >= 0; --lane) states[lane] = encode_step(states[lane], entries[lane], words);
  return words.next;
}

template <int kLanes>
uint8_t* encode_lanes(const TableView& tables, uint32_t* states, uint8_t* words, const uint8_t* rows,
                      const int16_t* values, size_t count) {
  uint32_t x[kLanes];
  std::memcpy(x, states, sizeof x);
  const size_t tail = count % kLanes;
  size_t first = count - tail;
  words = encode_round(tables, static_cast<int>(tail), x, words, rows + first, values + first);
  while (first > 0) {
    first -= kLanes;
    words = encode_round(tables, kLanes, x, words, rows + first, values + first);
  }
  std::memcpy(states, x, sizeof x);
  return words;
}

uint8_t* encode(const TableView& tables, int lanes, uint32_t* states, uint8_t* words, const uint8_t* rows,
                const int16_t* values, size_t count) {
  switch (lanes) {
    case 1:
      return encode_lanes<1>(tables, states, words, rows, values, count);
    case 2:
      return encode_lanes<2>(tables, states, words, rows, values, count);
    case 4:
      return encode_lanes<4>(tables, states, words, rows, values, count);
    case 8:
      return encode_lanes<8>(tables, states, words, rows, values, count);
    case 16:
      return encode_lanes<16>(tables, states, words, rows, values, count);
    default:
      return encode_lanes<32>(tables, states, words, rows, values, count);
  }
}

}  // namespace

const uint8_t* decode_rest(const TableView& tables, int lanes, uint32_t* states, const uint8_t* next,
                           const uint8_t* rows, int16_t* values) {
  Reader words{next};
  uint32_t escapes = 0;
  for (int lane = 0; lane < lanes; ++lane) {
    const bool escape = values[lane] == kEscape - kCenter;
    const int shift = escape ? 0 : tables.shift[rows[lane]];
    uint32_t low = 0;
    states[lane] = decode_low(states[lane], shift, low, words);
    values[lane] = static_cast<int16_t>(values[lane] * (1 << shift) + static_cast<int>(low));
    escapes |= static_cast<uint32_t>(escape) << lane;
  }
  for (int lane = 0; lane < lanes; ++lane) {
    if (escapes >> lane & 1) values[lane] = static_cast<int16_t>(words.take(true));
  }
  return words.next;
}

uint8_t* encode_rest(const TableView& tables, int lanes, uint32_t* states, uint8_t* next, const SymbolEntry* entries,
                     const uint8_t* rows, const int16_t* values) {
  Writer words{next};
  for (int lane = lanes - 1; lane >= 0; --lane) {
    words.put((entries[lane].packed & kEscapeFlag) != 0, static_cast<uint16_t>(values[lane]));
  }
  for (int lane = lanes - 1; lane >= 0; --lane) {
    const int shift = (entries[lane].packed & kEscapeFlag) != 0 ? 0 : tables.shift[rows[lane]];
    const uint32_t low = static_cast<uint32_t>(values[lane]) & ((1u << shift) - 1);
    states[lane] = encode_low(states[lane], shift, low, words);
  }
  return words.next;
}

const Path kScalarPath = {"scalar", pack_rows, pack<int16_t>,  pack<int32_t>, unpack_values,
                          decode,   encode,    decode_trellis, to_indices,    search_chains<extend_paths>,
                          nullptr};

}  // namespace dca::rans
