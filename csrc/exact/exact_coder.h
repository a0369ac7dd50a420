// Streams of the exact-colour coder: bands of rows, and threads over them. docs/spec/exact.md is the specification.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "exact_model.h"

namespace dca::exact {

constexpr int kMaxSide = 65535;
constexpr int kMaxBands = 64;
constexpr int kMaxStep = 127;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Shape {
  int height, width, channels;  // 1 or 3
};

// Bands of a picture: a matter of its size and mode alone, because they are part of the format.
int bands_of(const Shape& shape, const Mode& mode);

// Codes samples [height * width * channels], each band with one thread.
template <class Sample>
std::string encode(const Sample* samples, const Shape& shape, const Mode& mode, int threads, const Blocks& blocks = {});

// Where the bands of a stream are.
struct Layout {
  Mode mode;
  std::vector<size_t> sizes;
  std::vector<const uint8_t*> starts;
};

// Throws Error where a stream of so many bytes cannot have the bands of such a picture: before there is memory for it.
Layout layout_of(const uint8_t* stream, size_t size, const Shape& shape);

// Throws Error for a stream that no encoder makes; the samples are of no use then. Samples outside of the blocks are
// left as they are.
template <class Sample>
void decode(const Layout& layout, const Shape& shape, Sample* samples, int threads, const Blocks& blocks = {});

}  // namespace dca::exact
