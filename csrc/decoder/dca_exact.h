// What a file holds in exact colours: whole pictures, alpha planes, and layers of graphic blocks (dca_fast/exact/).
#pragma once

#include <cstdint>
#include <vector>

#include "dca_bytes.h"
#include "dca_container.h"

namespace dca::decoder {

// Samples of 8 or 16 bits, by rows, pixels and channels.
struct Samples {
  int channels = 1, depth = 8;
  std::vector<uint8_t> bytes;
};

// Blocks of 16 x 16 pixels in exact colours; samples outside of them are 0.
struct GraphicLayer {
  Samples samples;
  std::vector<uint8_t> inside;  // [rows of blocks, columns of blocks]
};

// All throw Error or exact::Error for bytes that no encoder makes, and for samples that have not the digest.
Samples exact_picture(const File& file, int threads);
Samples alpha_plane(const File& file, int threads);
GraphicLayer graphic_layer(const File& file, int threads);

}  // namespace dca::decoder
