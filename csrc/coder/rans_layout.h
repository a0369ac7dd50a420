// Where the groups of a stream lie: its header and states, read from bytes that nobody has vouched for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "rans.h"

namespace dca::rans {

enum class Fault { kInput, kTruncated, kCorrupt };

struct Error : std::runtime_error {
  Error(Fault kind, const char* what) : std::runtime_error(what), fault(kind) {}
  Fault fault;
};

struct Layout {
  int lanes = 0;
  int groups = 0;
  size_t begin[kMaxGroups + 1] = {};  // bytes; group g ends where group g + 1 begins
};

static inline uint32_t get32(const uint8_t* from) {
  return from[0] | static_cast<uint32_t>(from[1]) << 8 | static_cast<uint32_t>(from[2]) << 16 |
         static_cast<uint32_t>(from[3]) << 24;
}

// Reads a canonical LEB128 number of at most five bytes.
static inline uint64_t take_size(const uint8_t*& from, const uint8_t* end) {
  uint64_t value = 0;
  for (int i = 0; i < 5; ++i) {
    if (from == end) throw Error(Fault::kTruncated, "the coder stream ends in its header");
    const uint8_t byte = *from++;
    value |= static_cast<uint64_t>(byte & 0x7F) << (7 * i);
    if (byte >= 0x80) continue;
    if (i > 0 && byte == 0) break;
    return value;
  }
  throw Error(Fault::kCorrupt, "a group size of the coder stream is not canonical");
}

static inline void check_group(const uint8_t* group, size_t size, int lanes) {
  if (size < 4 * static_cast<size_t>(lanes)) {
    throw Error(Fault::kTruncated, "a coder group is shorter than its states");
  }
  if (size % 2 != 0) throw Error(Fault::kCorrupt, "a coder group has an odd number of bytes");
  for (int lane = 0; lane < lanes; ++lane) {
    if (get32(group + 4 * lane) < kLower) throw Error(Fault::kCorrupt, "a coder state is out of range");
  }
}

// Throws Fault::kTruncated or Fault::kCorrupt, in the order in which a reader meets the faults.
static inline Layout read_layout(const uint8_t* stream, size_t size) {
  if (size < 2) throw Error(Fault::kTruncated, "the coder stream ends in its header");
  if (stream[0] > 5) throw Error(Fault::kCorrupt, "the coder stream has an unknown number of lanes");
  if (stream[1] < 1 || stream[1] > kMaxGroups) {
    throw Error(Fault::kCorrupt, "the coder stream has a wrong number of groups");
  }
  Layout layout;
  layout.lanes = 1 << stream[0];
  layout.groups = stream[1];
  const uint8_t *at = stream + 2, *const end = stream + size;
  uint64_t sizes[kMaxGroups];
  for (int g = 0; g + 1 < layout.groups; ++g) sizes[g] = take_size(at, end);
  for (int g = 0; g < layout.groups; ++g) {
    const uint64_t rest = static_cast<uint64_t>(end - at);
    if (g + 1 == layout.groups) sizes[g] = rest;
    if (sizes[g] > rest) throw Error(Fault::kTruncated, "a coder group ends beyond the stream");
    check_group(at, static_cast<size_t>(sizes[g]), layout.lanes);
    layout.begin[g] = static_cast<size_t>(at - stream);
    at += sizes[g];
  }
  layout.begin[layout.groups] = size;
  return layout;
}

}  // namespace dca::rans
