// Round trips and hostile streams of the exact-colour coder: pictures of 8 and 16 bits, alpha planes, blocks, layers.
//
// The start of an input says what is coded. The rest is a stream, or changes of one that the encoder wrote, or samples.
#include <string>

#include "../../csrc/decoder/dca_exact.h"
#include "../../csrc/exact/exact_coder.h"
#include "../../csrc/exact/exact_palette.h"
#include "input.h"

using namespace dca::exact;
using fuzz::Bytes;
using fuzz::Input;
using fuzz::require;

namespace {

// Most pictures are small: many of them tell more than a few large ones.
int side(Input& input, uint32_t most) { return 1 + static_cast<int>(input.below(input.below(32) == 31 ? most : 7)); }

// Flat shapes, noise, slopes, all of them, or the bytes of the input.
template <class Sample>
std::vector<Sample> picture(Input& input, const Shape& shape) {
  std::vector<Sample> samples(static_cast<size_t>(shape.height) * shape.width * shape.channels);
  const uint32_t kind = input.below(5), colours = 1 + input.below(9);
  std::vector<Sample> palette(static_cast<size_t>(colours) * shape.channels);
  for (Sample& s : palette) s = static_cast<Sample>(input.drawn());
  for (size_t i = 0; i < samples.size(); i += static_cast<size_t>(shape.channels)) {
    const size_t colour = input.drawn_below(colours);
    const uint32_t slope = static_cast<uint32_t>(i / 7), what = kind < 3 ? kind : input.drawn_below(3);
    for (int k = 0; k < shape.channels; ++k) {
      const Sample flat = palette[colour * shape.channels + k], noise = static_cast<Sample>(input.drawn());
      samples[i + k] = kind == 4   ? static_cast<Sample>(input.number(sizeof(Sample)))
                       : what == 0 ? (input.drawn_below(5) && i ? samples[i + k - shape.channels] : flat)
                       : what == 1 ? noise
                                   : static_cast<Sample>(slope + input.drawn_below(4));
    }
  }
  return samples;
}

// Blocks of a picture, some of them inside.
std::vector<uint8_t> some_blocks(Input& input, const Shape& shape) {
  std::vector<uint8_t> inside(static_cast<size_t>((shape.height + 15) / 16 * ((shape.width + 15) / 16)));
  for (uint8_t& block : inside) block = static_cast<uint8_t>(input.drawn_below(2));
  return inside;
}

template <class Sample>
bool decoded(const std::string& stream, const Shape& shape, std::vector<Sample>& back, const Blocks& blocks) {
  const Bytes bytes(stream.begin(), stream.end());  // of their own size: what lies behind them is not read unseen
  try {
    decode(layout_of(bytes.data(), bytes.size(), shape), shape, back.data(), 1, blocks);
    return true;
  } catch (const Error&) {
    return false;
  }
}

template <class Sample>
void coder(Input& input) {
  const uint32_t how = input.below(8);
  const bool with_blocks = sizeof(Sample) == 1 && (how & 4);
  const uint32_t most = with_blocks ? 40 : 24;
  const int channels = input.below(4) == 3 ? 3 : 1;  // the tables of three planes take long to get
  const Shape shape{side(input, most), side(input, most), channels};
  std::vector<uint8_t> inside = some_blocks(input, shape);
  std::vector<int64_t> spent(inside.size());
  const Blocks blocks = with_blocks ? Blocks{inside.data(), nullptr} : Blocks{};
  std::vector<Sample> samples(static_cast<size_t>(shape.height) * shape.width * shape.channels);
  std::string stream;
  if (how % 4 == 0) {
    const Bytes rest = input.rest();
    stream.assign(rest.begin(), rest.end());
  } else {
    const uint32_t kind = input.below(4);
    const bool candidates = kind > 0 && kind < 3;
    const Mode mode{candidates, kind == 2, candidates || kind == 0 ? 1 : 1 + 2 * static_cast<int>(input.below(64))};
    samples = picture<Sample>(input, shape);
    if constexpr (sizeof(Sample) == 1) {
      if (with_blocks) {
        std::vector<uint8_t> merged(samples.size());
        merge_colours(samples.data(), shape, inside.data(), input.below((1 << 20) + 1), merged.data());
        samples = merged;
      }
    }
    const Blocks counted{blocks.inside, with_blocks ? spent.data() : nullptr};
    stream = encode(samples.data(), shape, mode, 1, counted);
    if (how % 4 == 3) {
      std::vector<Sample> back(samples.size());
      require(decoded(stream, shape, back, blocks), "what was written can be read");
      require(mode.step > 1 || back == samples, "a round trip");
      return;
    }
    stream = input.changed(std::move(stream));
    if (how % 4 == 1) inside[input.drawn_below(static_cast<uint32_t>(inside.size()))] ^= 1;
  }
  decoded(stream, shape, samples, blocks);
}

// As files hold them: with their digests, grids of samples and maps of blocks.
void of_files(Input& input) {
  using namespace dca::decoder;
  File file;
  file.width = side(input, 80);
  file.height = side(input, 80);
  file.gray = input.below(2) == 1;
  file.depth = input.below(2) == 1 ? 16 : 8;
  const uint32_t what = input.below(3);
  const Bytes bytes = input.rest();
  const Span span{bytes.data(), bytes.size()};
  if (span.size == 0) return;
  file.stream = file.sections[kAlpha] = file.sections[kLayer] = span;
  try {
    if (what == 0) {
      exact_picture(file, 1);
    } else if (what == 1) {
      alpha_plane(file, 1);
    } else {
      file.depth = 8;
      graphic_layer(file, 1);
    }
  } catch (const dca::exact::Error&) {
  } catch (const dca::decoder::Error& refused) {
    require(refused.status == DCA_CORRUPT_STREAM, "one kind of error");
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) { return 0; }

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  switch (input.below(8)) {
    case 0:
    case 1:
      of_files(input);
      break;
    case 2:
      coder<uint16_t>(input);
      break;
    default:
      coder<uint8_t>(input);
  }
  return 0;
}
