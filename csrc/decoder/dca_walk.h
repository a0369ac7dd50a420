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

// A rectangle, of sites or of pixels.
struct Area {
  int left, top, width, height;

  int right() const { return left + width; }
  int bottom() const { return top + height; }
  // With so much more on each side, as far as there is some.
  Area around(int reach, int most_width, int most_height) const;
};

// The stream of a tile, and the digest of its values.
struct TileStream {
  uint32_t digest;
  Span bytes;
};

// The table of a picture in so many tiles, at least two, and the streams behind it. Throws Error.
std::vector<TileStream> tile_streams(Span stream, size_t count);

struct Latent {
  Words y_hat;  // [height, width, M] of the area
  uint32_t digest;
};

// The latent of an area of the sites of `grid`. Tiles outside of it are not decoded. Throws Error, or rans::Error, for
// a stream that is not one of such a picture.
Latent decode_latent(const Program& program, const rans::Path& path, Span stream, const Grid& grid, const Area& area,
                     int aq, int threads);

}  // namespace dca::decoder
