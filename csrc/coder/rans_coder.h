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
  Tables(const uint16_t* freq, const uint8_t* shift);  // [kTableRows * kSymbols], [kTableRows]
  TableView view(bool trellis) const { return view_from(trellis ? kRows : 0); }

 private:
  TableView view_from(size_t row) const {
    return {slots_.data() + row * kSlots, symbols_.data() + row * kSymbols, shift_.data() + row, first_shift_};
  }

  std::vector<uint32_t> slots_;
  std::vector<SymbolEntry> symbols_;
  std::vector<uint8_t> shift_;
  int first_shift_ = kRows;
};

struct Part {
  const int16_t* values;
  const uint8_t* rows;
  size_t size;
  bool trellis = false;
};

enum class Outcome : uint8_t { kDone, kBadRow, kOffGrid, kTruncated, kNoMemory };

// Paths that run on this processor, fastest first; the scalar one is always there.
std::vector<const Path*> available_paths();

// lanes: 1, 2, 4, ... kMaxLanes; groups: 1 ... kMaxGroups. Throws Fault::kInput for a row that is neither
// below kRows nor kSkipRow, and for a value that its trellis cannot reach.
std::string encode(const Tables& tables, const Path& path, const std::vector<Part>& parts, int lanes, int groups,
                   int threads);

constexpr uint32_t kMaxCharge = 1 << 24;  // of a symbol: path costs then stay far inside of int32

// Chooses the values of a part of a trellis, see dca_fast/entropy/trellis.py. Of size: residuals, rows, values;
// charges: [2 * kRows * kSymbols] in 0 ... kMaxCharge. Throws Fault::kInput for a bad row.
void quantise(const Path& path, const int32_t* residuals, const uint8_t* rows, size_t size, const int32_t* charges,
              int groups, int threads, int16_t* values);

// Decodes the parts of one stream in order. Keeps a padded copy of the stream, refers to the tables.
class Decoder {
 public:
  Decoder(const Tables& tables, const Path& path, const uint8_t* stream, size_t size, int threads);
  Decoder(const Decoder&) = delete;  // the groups point into the stream

  // `last`: whether it is the last part.
  void decode(const uint8_t* rows, size_t size, int16_t* values, bool trellis, bool last);
  // Checks that every lane is back at its start and every word was used.
  void finish() const;

 private:
  struct Group {
    uint32_t states[kMaxLanes];
    uint8_t* next;
    const uint8_t* end;
    bool spare;  // whether all words that are left come from lanes, which may have more than the tail takes
  };

  // `tail`: the first coded value of the tail, counted in the group; none unless it is the last part. `width`: chains.
  Outcome decode_group(Group& group, const uint8_t* rows, size_t size, int16_t* values, bool trellis, size_t tail,
                       int width) const;
  void begin_tail(Group& group) const;

  const Tables& tables_;
  const Path& path_;
  const int threads_;
  int lanes_ = 0;
  bool usable_ = true;  // not after an error: the groups then stand at different places
  std::vector<uint8_t> stream_;
  std::vector<Group> groups_;
};

}  // namespace dca::rans
