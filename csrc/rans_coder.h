// Streams of interleaved rANS lanes: layout, groups, threads. dca_fast/entropy/rans.py is the specification.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "rans_layout.h"
#include "rans_paths.h"

namespace dca::rans {

// The tables in the form the kernels read. Throws Fault::kInput if a row breaks a rule of the format.
class Tables {
 public:
  Tables(const uint16_t* freq, const uint8_t* shift);  // [kRows * kSymbols], [kRows]
  TableView view() const { return {slots_.data(), symbols_.data(), shift_.data(), first_shift_}; }

 private:
  std::vector<uint32_t> slots_;
  std::vector<SymbolEntry> symbols_;
  std::vector<uint8_t> shift_;
  int first_shift_ = kRows;
};

struct Part {
  const int16_t* values;
  const uint8_t* rows;
  size_t size;
};

// Paths that run on this processor, fastest first; the scalar one is always there.
std::vector<const Path*> available_paths();

// lanes: 1, 2, 4, ... kMaxLanes; groups: 1 ... kMaxGroups. Throws Fault::kInput for a row that is neither
// below kRows nor kSkipRow.
std::string encode(const Tables& tables, const Path& path, const std::vector<Part>& parts, int lanes,
                   int groups, int threads);

// Decodes the parts of one stream in order. Keeps a padded copy of the stream, refers to the tables.
class Decoder {
 public:
  Decoder(const Tables& tables, const Path& path, const uint8_t* stream, size_t size, int threads);
  Decoder(const Decoder&) = delete;  // the groups point into the stream

  void decode(const uint8_t* rows, size_t size, int16_t* values);
  // Checks that every lane is back at its start and every word was used.
  void finish() const;

 private:
  struct Group {
    uint32_t states[kMaxLanes];
    const uint8_t* next;
    const uint8_t* end;
  };
  enum class Outcome : uint8_t { kDone, kBadRow, kTruncated };

  Outcome decode_group(Group& group, const uint8_t* rows, size_t size, int16_t* values) const;

  const Tables& tables_;
  const Path& path_;
  const int threads_;
  int lanes_ = 0;
  bool usable_ = true;  // not after an error: the groups then stand at different places
  std::vector<uint8_t> stream_;
  std::vector<Group> groups_;
};

}  // namespace dca::rans
