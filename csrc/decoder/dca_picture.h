// From a file that was taken apart to its pixels.
#pragma once

#include <cstdint>
#include <functional>

#include "dca_container.h"
#include "dca_program.h"
#include "dca_reduced.h"
#include "dca_walk.h"

namespace dca::decoder {

struct Settings {
  int threads;
  const rans::Path* path;  // of the entropy decoder
};

// Samples of a pixel: colours, and alpha.
inline int channels_of(const File& file) { return file.colours() + file.has(kAlpha); }

// What is wanted of a picture: an area of it, or all of it with a pixel for `reduce` x `reduce`.
struct View {
  Area area;
  int reduce;

  static View of(const File& file, int reduce = 1) { return {{0, 0, file.width, file.height}, reduce}; }
  int width() const { return reduced(area.width, reduce); }
  int height() const { return reduced(area.height, reduce); }
};

inline size_t row_bytes(const File& file, const View& view) {
  return static_cast<size_t>(view.width()) * static_cast<size_t>(channels_of(file) * (file.depth / 8));
}

// Rows of the result, `stride` bytes from one to the next.
struct Target {
  uint8_t* pixels;
  size_t stride;
};

// Asks for the target once everything in the file has been verified, and then writes all rows; what fails throws before
// that. `programs` may be null: then files that need a model are refused.
void decode_picture(const File& file, Programs* programs, const Settings& settings, const View& view,
                    const std::function<Target()>& target);

}  // namespace dca::decoder
