// Smaller pictures: means of squares of pixels, in integers (dca_fast/reduced.py).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace dca::decoder {

constexpr int reduced(int side, int reduce) { return (side + reduce - 1) / reduce; }

// The mean of each square of `reduce` x `reduce` pixels, as far as the picture has them, halves rounded upwards.
// Samples are [height, width, channels]; `out` takes a row at a time.
template <class Sample, class Out>
void box_means(const Sample* samples, int height, int width, int channels, int reduce, Out&& out) {
  const size_t row = static_cast<size_t>(width) * channels;
  const int columns = reduced(width, reduce);
  std::vector<uint32_t> sums(static_cast<size_t>(columns) * channels);
  std::vector<Sample> means(sums.size());
  for (int top = 0; top < height; top += reduce) {
    const int lines = std::min(reduce, height - top);
    std::fill(sums.begin(), sums.end(), 0u);
    for (int y = top; y < top + lines; ++y) {
      const Sample* from = samples + static_cast<size_t>(y) * row;
      for (int x = 0; x < width; ++x)
        for (int c = 0; c < channels; ++c) sums[static_cast<size_t>(x / reduce) * channels + c] += *from++;
    }
    for (size_t i = 0; i < sums.size(); ++i) {
      const int left = static_cast<int>(i / static_cast<size_t>(channels)) * reduce;
      const auto count = static_cast<uint32_t>(lines * std::min(reduce, width - left));
      means[i] = static_cast<Sample>((2 * sums[i] + count) / (2 * count));
    }
    out(top / reduce, means.data());
  }
}

}  // namespace dca::decoder
