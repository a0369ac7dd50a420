// The .dca file as docs/spec/bitstream.md lays it out: bytes only.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "dca_bytes.h"

namespace dca::decoder {

constexpr int kFormatVersion = 10;  // format 1.0
constexpr uint64_t kDefaultMaxPixels = uint64_t{1} << 28;
constexpr uint64_t kMostPixels = uint64_t{65535} * 65535;

enum Tag { kIcc = 1, kExif, kXmp, kAlpha, kLayer, kTags };

struct File {
  int width = 0, height = 0;
  int quality = 0;  // hundredths
  std::array<uint8_t, 4> model_id{};
  uint32_t digest = 0;  // of the decoded values, or samples
  bool gray = false, exact = false;
  int aq = 0;                        // strength of adaptive quantisation, 0 to 15
  int depth = 8;                     // bits per sample
  std::vector<int8_t> restoration;   // 18 coefficients for each ring, or none
  std::array<Span, kTags> sections;  // by tag; no data where there is none
  Span stream;

  int colours() const { return gray ? 1 : 3; }
  bool has(Tag tag) const { return sections[tag].data != nullptr; }
};

// Takes a file apart and verifies it; throws Error. Spans point into `data`.
File parse(Span data, uint64_t max_pixels);

// How many blocks a LAYER section says that it has.
uint64_t graphic_blocks(Span layer);

}  // namespace dca::decoder
