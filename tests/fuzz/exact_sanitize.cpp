// Round trips and hostile streams of the exact-colour coder, for use with sanitizers:
//   g++ -std=c++17 -O1 -g -pthread -fsanitize=address,undefined -fno-sanitize-recover=all -I csrc/exact
//       tests/fuzz/exact_sanitize.cpp csrc/exact/exact_coder.cpp -o exact_sanitize
//   ./exact_sanitize [mutated streams, default 20000] [seed, default 1]
// Any fault but exact::Error ends the run with an error.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "exact_coder.h"

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

template <class Sample>
void round(int mutations) {
  const Shape shape{1 + below(24), 1 + below(24), below(2) ? 3 : 1};
  const auto samples = picture<Sample>(shape);
  const Mode modes[] = {{false, false, 1}, {true, false, 1}, {true, true, 1}, {false, false, 1 + 2 * below(64)}};
  for (const Mode& mode : modes) {
    std::string stream = encode(samples.data(), shape, mode, 1);
    std::vector<Sample> back(samples.size());
    decode(reinterpret_cast<const uint8_t*>(stream.data()), stream.size(), shape, back.data(), 1);
    if (mode.step == 1 && back != samples) {
      std::fprintf(stderr, "failed: a round trip\n");
      std::exit(1);
    }
    for (int i = 0; i < mutations; ++i) {
      std::string bad = stream;
      for (int n = 1 + below(4); n > 0; --n) {
        const size_t at = static_cast<size_t>(below(static_cast<int>(bad.size())));
        if (below(3) == 0)
          bad.resize(at + 1);
        else
          bad[at] = static_cast<char>(generator());
      }
      try {
        decode(reinterpret_cast<const uint8_t*>(bad.data()), bad.size(), shape, back.data(), 1);
      } catch (const Error&) {
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int mutated = argc > 1 ? std::atoi(argv[1]) : 20000;
  generator.seed(argc > 2 ? static_cast<uint32_t>(std::atoi(argv[2])) : 1);
  for (int done = 0; done < mutated; done += 80) {
    round<uint8_t>(10);
    round<uint16_t>(10);
  }
  std::printf("ok\n");
  return 0;
}
