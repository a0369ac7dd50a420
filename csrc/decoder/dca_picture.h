// From a file that was taken apart to its pixels.
#pragma once

#include <cstdint>
#include <functional>

#include "dca_container.h"
#include "dca_program.h"
#include "dca_reduced.h"

namespace dca::decoder {

struct Settings {
  int threads;
  const rans::Path* path;  // of the entropy decoder
};

// Samples of a pixel: colours, and alpha.
inline int channels_of(const File& file) { return file.colours() + file.has(kAlpha); }

// Of a picture with a pixel for `reduce` x `reduce`.
inline size_t row_bytes(const File& file, int reduce) {
  return static_cast<size_t>(reduced(file.width, reduce)) * static_cast<size_t>(channels_of(file) * (file.depth / 8));
}

// Rows of the result, `stride` bytes from one to the next.
struct Target {
  uint8_t* pixels;
  size_t stride;
};

// Asks for the target once everything in the file has been verified, and then writes all rows; what fails throws before
// that. `programs` may be null: then files that need a model are refused. `reduce`: 1, or 2, 4, 8, 16 for a preview.
void decode_picture(const File& file, Programs* programs, const Settings& settings, int reduce,
                    const std::function<Target()>& target);

}  // namespace dca::decoder
