#include "dca_exact.h"

#include <algorithm>

#include "../exact/exact_coder.h"

namespace dca::decoder {
namespace {

constexpr size_t kDigestBytes = 4;
constexpr int kMostSizeBytes = 5;  // of a number in these streams

template <class Sample>
void decode(Span stream, const exact::Shape& shape, std::vector<uint8_t>& bytes, int threads,
            const exact::Blocks& blocks = {}) {
  const exact::Layout layout = exact::layout_of(stream.data, stream.size, shape);  // before there is memory for it
  bytes.resize(static_cast<size_t>(shape.height) * shape.width * shape.channels * sizeof(Sample));
  exact::decode(layout, shape, reinterpret_cast<Sample*>(bytes.data()), threads, blocks);
}

// Samples of 16 bits lie on a grid, whose numbers are coded: in 8 bits if those suffice.
void decode_deep(Span stream, const exact::Shape& shape, std::vector<uint8_t>& bytes, int threads) {
  Reader reader(stream, std::min<size_t>(1, stream.size), DCA_CORRUPT_STREAM);
  const uint64_t factor = reader.number(kMostSizeBytes), least = reader.number(kMostSizeBytes);
  if (factor < 1 || factor > 65535 || least > 65535) {
    fail(DCA_CORRUPT_STREAM, "exact colours: a grid of samples that there is not");
  }
  std::vector<uint8_t> coded{stream.data[0]};
  const Span rest = reader.rest();
  coded.insert(coded.end(), rest.data, rest.data + rest.size);
  const Span numbers{coded.data(), coded.size()};
  const size_t count = static_cast<size_t>(shape.height) * shape.width * shape.channels;
  if ((65535 - least) / factor < 256) {
    std::vector<uint8_t> small;
    decode<uint8_t>(numbers, shape, small, threads);
    bytes.resize(2 * count);
    std::copy(small.begin(), small.end(), reinterpret_cast<uint16_t*>(bytes.data()));
  } else {
    decode<uint16_t>(numbers, shape, bytes, threads);
  }
  for (auto *sample = reinterpret_cast<uint16_t*>(bytes.data()), *end = sample + count; sample != end; ++sample) {
    const uint64_t value = *sample * factor + least;
    if (value > 65535) fail(DCA_CORRUPT_STREAM, "exact colours: a value is outside of its range");
    *sample = static_cast<uint16_t>(value);
  }
}

void check_digest(const Samples& samples, uint32_t digest) {
  if (crc32(0, samples.bytes.data(), samples.bytes.size()) != digest) {
    fail(DCA_CORRUPT_STREAM, "exact colours: the decoded samples do not have the digest in the file");
  }
}

Samples decoded(Span stream, const File& file, int channels, uint32_t digest, int threads) {
  Samples out{channels, file.depth, {}};
  const exact::Shape shape{file.height, file.width, channels};
  file.depth == 8 ? decode<uint8_t>(stream, shape, out.bytes, threads) : decode_deep(stream, shape, out.bytes, threads);
  check_digest(out, digest);
  return out;
}

// The digest at the start of a section.
uint32_t take_digest(Reader& reader) { return little32(reader.take(kDigestBytes).data); }

// The map of blocks, row by row: by the blocks on the left, above, and above on the right.
std::vector<uint8_t> decode_map(Span bytes, int rows, int columns) {
  exact::Decoder coder;
  coder.start(bytes.data, bytes.size);
  exact::Probability contexts[8];
  std::vector<uint8_t> inside(static_cast<size_t>(rows) * columns), above(static_cast<size_t>(columns) + 1);
  for (int y = 0; y < rows; ++y) {
    std::vector<uint8_t> here(above.size());
    for (size_t x = 0; x + 1 < here.size(); ++x) {
      const int w = x > 0 ? here[x - 1] : 0;
      exact::Probability& c = contexts[w + 2 * above[x] + 4 * above[x + 1]];
      const int bit = coder.code(0, std::clamp(c.p(), 16, 65535 - 16));
      c.update<exact::Single>(bit);
      here[x] = static_cast<uint8_t>(bit);
    }
    std::copy_n(here.begin(), columns, inside.begin() + static_cast<ptrdiff_t>(y) * columns);
    above = here;
  }
  if (!coder.finished()) fail(DCA_CORRUPT_STREAM, "exact colours: bytes are left over behind the map of blocks");
  return inside;
}

}  // namespace

Samples exact_picture(const File& file, int threads) {
  return decoded(file.stream, file, file.colours(), file.digest, threads);
}

Samples alpha_plane(const File& file, int threads) {
  Reader reader(file.sections[kAlpha], 0, DCA_CORRUPT_STREAM);
  const uint32_t digest = take_digest(reader);
  return decoded(reader.rest(), file, 1, digest, threads);
}

GraphicLayer graphic_layer(const File& file, int threads) {
  Reader reader(file.sections[kLayer], 0, DCA_CORRUPT_STREAM);
  const uint32_t digest = take_digest(reader);
  const uint64_t count = reader.number(kMostSizeBytes), size = reader.number(kMostSizeBytes);
  const Span map = reader.take(static_cast<size_t>(std::min<uint64_t>(size, SIZE_MAX)));
  if (map.size > 0 && map.data[map.size - 1] == 0) {
    fail(DCA_CORRUPT_STREAM, "exact colours: the map of blocks ends with a byte that is not needed");
  }
  const int rows = (file.height + exact::kBlock - 1) / exact::kBlock;
  const int columns = (file.width + exact::kBlock - 1) / exact::kBlock;
  GraphicLayer layer{{file.colours(), 8, {}}, decode_map(map, rows, columns)};
  const auto inside = static_cast<uint64_t>(std::count(layer.inside.begin(), layer.inside.end(), uint8_t{1}));
  if (count == 0 || inside != count) {
    fail(DCA_CORRUPT_STREAM, "exact colours: the map has not %llu blocks", static_cast<unsigned long long>(count));
  }
  const exact::Shape shape{file.height, file.width, file.colours()};
  decode<uint8_t>(reader.rest(), shape, layer.samples.bytes, threads, {layer.inside.data(), nullptr});
  check_digest(layer.samples, digest);
  return layer;
}

}  // namespace dca::decoder
