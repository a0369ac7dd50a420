// Round trips and hostile streams of the exact-colour coder, for use with sanitizers:
//   g++ -std=c++17 -O1 -g -pthread -fsanitize=address,undefined -fno-sanitize-recover=all -I csrc/exact
//       tests/fuzz/exact_sanitize.cpp csrc/exact/exact_coder.cpp csrc/exact/exact_palette.cpp -o exact_sanitize
//   ./exact_sanitize [mutated streams, default 20000] [seed, default 1]
// Any fault but exact::Error ends the run with an error.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "exact_coder.h"
#include "exact_palette.h"

namespace {

using namespace dca::exact;

std::mt19937 generator;

int below(int n) { return static_cast<int>(generator() % static_cast<uint32_t>(n)); }

// Flat shapes, noise, slopes, or all of them.
template <class Sample>
std::vector<Sample> picture(const Shape& shape) {
  std::vector<Sample> samples(static_cast<size_t>(shape.height) * shape.width * shape.channels);
  const int kind = below(4), colours = 1 + below(9);
  std::vector<Sample> palette(static_cast<size_t>(colours) * shape.channels);
  for (Sample& s : palette) s = static_cast<Sample>(generator());
  for (size_t i = 0; i < samples.size(); i += static_cast<size_t>(shape.channels)) {
    const int colour = below(colours), slope = static_cast<int>(i / 7), what = kind < 3 ? kind : below(3);
    for (int k = 0; k < shape.channels; ++k) {
      const Sample flat = palette[static_cast<size_t>(colour) * shape.channels + k];
      const Sample noise = static_cast<Sample>(generator());
      samples[i + k] = what == 0   ? (below(5) && i ? samples[i + k - shape.channels] : flat)
                       : what == 1 ? noise
                                   : static_cast<Sample>(slope + below(4));
    }
  }
  return samples;
}

// A stream with some of its bytes changed or cut off.
std::string damaged(std::string stream) {
  for (int n = 1 + below(4); n > 0; --n) {
    const size_t at = static_cast<size_t>(below(static_cast<int>(stream.size())));
    if (below(3) == 0)
      stream.resize(at + 1);
    else
      stream[at] = static_cast<char>(generator());
  }
  return stream;
}

void fail(const char* what) {
  std::fprintf(stderr, "failed: %s\n", what);
  std::exit(1);
}

// Some blocks, of fewer colours; a stream of other blocks, too.
void blocks(int mutations) {
  const Shape shape{1 + below(60), 1 + below(60), below(2) ? 3 : 1};
  const auto samples = picture<uint8_t>(shape);
  const size_t count = static_cast<size_t>((shape.height + 15) / 16 * ((shape.width + 15) / 16));
  std::vector<uint8_t> inside(count), merged(samples.size()), back(samples.size());
  std::vector<int64_t> spent(count);
  for (uint8_t& block : inside) block = static_cast<uint8_t>(below(2));
  merge_colours(samples.data(), shape, inside.data(), below(1 << 20), merged.data());
  const Mode mode{true, below(2) == 1, 1};
  const Blocks those{inside.data(), spent.data()};
  const std::string stream = encode(merged.data(), shape, mode, 1, those);
  decode(layout_of(reinterpret_cast<const uint8_t*>(stream.data()), stream.size(), shape), shape, back.data(), 1,
         those);
  if (back != merged) fail("a round trip of blocks");
  for (int i = 0; i < mutations; ++i) {
    const std::string bad = damaged(stream);
    if (i % 3 == 0) inside[static_cast<size_t>(below(static_cast<int>(count)))] ^= 1;
    try {
      decode(layout_of(reinterpret_cast<const uint8_t*>(bad.data()), bad.size(), shape), shape, back.data(), 1, those);
    } catch (const Error&) {
    }
  }
}

template <class Sample>
void round(int mutations) {
  const Shape shape{1 + below(24), 1 + below(24), below(2) ? 3 : 1};
  const auto samples = picture<Sample>(shape);
  const Mode modes[] = {{false, false, 1}, {true, false, 1}, {true, true, 1}, {false, false, 1 + 2 * below(64)}};
  for (const Mode& mode : modes) {
    std::string stream = encode(samples.data(), shape, mode, 1);
    std::vector<Sample> back(samples.size());
    decode(layout_of(reinterpret_cast<const uint8_t*>(stream.data()), stream.size(), shape), shape, back.data(), 1);
    if (mode.step == 1 && back != samples) fail("a round trip");
    for (int i = 0; i < mutations; ++i) {
      const std::string bad = damaged(stream);
      try {
        decode(layout_of(reinterpret_cast<const uint8_t*>(bad.data()), bad.size(), shape), shape, back.data(), 1);
      } catch (const Error&) {
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int mutated = argc > 1 ? std::atoi(argv[1]) : 20000;
  generator.seed(argc > 2 ? static_cast<uint32_t>(std::atoi(argv[2])) : 1);
  for (int done = 0; done < mutated; done += 90) {
    round<uint8_t>(10);
    round<uint16_t>(10);
    blocks(10);
  }
  std::printf("ok\n");
  return 0;
}
