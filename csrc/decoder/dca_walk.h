// From the stream of a picture to its latent: tiles, hyper latents, the four steps (dca_fast/network/walk.py).
#pragma once

#include <vector>

#include "dca_bytes.h"
#include "dca_program.h"

namespace dca::decoder {

// The latent sites of a picture, or of a tile of a large one from (top, left) on: those of the padded picture, and how
// many of them touch the picture.
struct Grid {
  int top, left, h, w, valid_h, valid_w;

  static Grid of(int height, int width);  // of pixels
  // What is coded on its own: all of it, or where there are many sites tiles of about one size, by rows of tiles.
  std::vector<Grid> tiles() const;
};

struct Latent {
  Words y_hat;  // [h, w, M]
  uint32_t digest;
};

// Throws Error, or rans::Error, for a stream that is not one of such a picture.
Latent decode_latent(const Program& program, const rans::Path& path, Span stream, const Grid& grid, int aq,
                     int threads);

}  // namespace dca::decoder
