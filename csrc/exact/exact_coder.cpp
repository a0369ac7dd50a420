#include "exact_coder.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>

namespace dca::exact {
namespace {

// At least, where there are several. What candidates are proposed from takes long to fill.
constexpr int64_t kBandPixels = 1 << 20, kBandPixelsOfCandidates = 1 << 23;

// Runs work(i) for every band on so many threads; rethrows what one throws.
template <class F>
void for_bands(int bands, int threads, F&& work) {
  std::atomic<int> next{0};
  std::exception_ptr error;
  std::mutex mutex;
  const auto run = [&] {
    try {
      for (int i = next++; i < bands; i = next++) work(i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      error = std::current_exception();
    }
  };
  std::vector<std::thread> helpers;
  try {
    for (int i = 1; i < std::min(threads, bands); ++i) helpers.emplace_back(run);
  } catch (const std::exception&) {  // no more threads, or no memory for them: those there are do the work
  }
  run();
  for (std::thread& helper : helpers) helper.join();
  if (error) std::rethrow_exception(error);
}

int first_row(const Shape& shape, int bands, int band) {
  return static_cast<int>(static_cast<int64_t>(shape.height) * band / bands);
}

size_t blocks_of(int side) { return (static_cast<size_t>(side) + kBlock - 1) / kBlock; }

void put_size(std::string& out, size_t size) {
  for (; size > 0x7f; size >>= 7) out.push_back(static_cast<char>(size | 0x80));
  out.push_back(static_cast<char>(size));
}

// The next number in LEB128, written in the fewest bytes.
size_t take_size(const uint8_t*& at, const uint8_t* end) {
  size_t size = 0;
  for (int shift = 0; shift < 35; shift += 7) {
    if (at == end) throw Error("the stream ends inside the sizes of its bands");
    const uint8_t byte = *at++;
    size |= static_cast<size_t>(byte & 0x7f) << shift;
    if (byte < 0x80) {
      if (byte == 0 && shift > 0) break;
      return size;
    }
  }
  throw Error("malformed size of a band");
}

}  // namespace

int bands_of(const Shape& shape, const Mode& mode) {
  const int64_t least = mode.candidates ? kBandPixelsOfCandidates : kBandPixels;
  const int64_t bands = static_cast<int64_t>(shape.height) * shape.width / least;
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>({bands, shape.height, kMaxBands})));
}

template <class Sample>
std::string encode(const Sample* samples, const Shape& shape, const Mode& mode, int threads, const Blocks& blocks) {
  const int bands = bands_of(shape, mode);
  const size_t row = static_cast<size_t>(shape.width) * shape.channels;
  std::vector<std::string> coded(bands);
  std::mutex mutex;
  for_bands(bands, threads, [&](int i) {
    const int top = first_row(shape, bands, i), height = first_row(shape, bands, i + 1) - top;
    const size_t across = blocks_of(shape.width), first = top / kBlock * across;
    std::vector<int64_t> spent;
    if (blocks.spent != nullptr) spent.resize(blocks_of(top + height) * across - first);
    const Blocks own{blocks.inside != nullptr ? blocks.inside + first : nullptr,
                     blocks.spent != nullptr ? spent.data() : nullptr};
    const auto band = std::make_unique<Band<Sample, true>>(shape.width, height, shape.channels, mode, top, own);
    if (!band->run(samples + top * row)) throw Error("the encoder left the range of its samples");
    coded[i] = band->coder.finish();
    const std::lock_guard<std::mutex> lock(mutex);  // two bands may share a row of blocks
    for (size_t block = 0; block < spent.size(); ++block) blocks.spent[first + block] += spent[block];
  });
  std::string stream(1, static_cast<char>((mode.candidates ? 1 : 0) | (mode.index ? 2 : 0) | (mode.step / 2) << 2));
  for (int i = 0; i + 1 < bands; ++i) put_size(stream, coded[i].size());
  for (const std::string& bytes : coded) stream += bytes;
  return stream;
}

Layout layout_of(const uint8_t* stream, size_t size, const Shape& shape) {
  if (size == 0) throw Error("the stream is empty");
  const uint8_t *at = stream + 1, *const end = stream + size;
  Layout layout{{(stream[0] & 1) != 0, (stream[0] & 2) != 0, 2 * (stream[0] >> 2) + 1}, {}, {}};
  const Mode& mode = layout.mode;
  if ((mode.index && !mode.candidates) || (mode.step > 1 && mode.candidates)) throw Error("unknown mode of coding");
  size_t known = 0;
  for (int i = 0; i + 1 < bands_of(shape, mode); ++i) {
    layout.sizes.push_back(take_size(at, end));
    known += layout.sizes.back();
  }
  const size_t rest = static_cast<size_t>(end - at);
  if (known > rest) throw Error("the bands are larger than the stream");
  layout.sizes.push_back(rest - known);
  for (const size_t bytes : layout.sizes) {
    layout.starts.push_back(at);
    at += bytes;
    if (bytes > 0 && at[-1] == 0) throw Error("a band ends with a byte that is not needed");
  }
  return layout;
}

template <class Sample>
void decode(const Layout& layout, const Shape& shape, Sample* samples, int threads, const Blocks& blocks) {
  const int bands = static_cast<int>(layout.sizes.size());
  const size_t row = static_cast<size_t>(shape.width) * shape.channels;
  for_bands(bands, threads, [&](int i) {
    const int top = first_row(shape, bands, i), height = first_row(shape, bands, i + 1) - top;
    const size_t first = top / kBlock * blocks_of(shape.width);
    const Blocks own{blocks.inside != nullptr ? blocks.inside + first : nullptr, nullptr};
    const auto band = std::make_unique<Band<Sample, false>>(shape.width, height, shape.channels, layout.mode, top, own);
    band->coder.start(layout.starts[i], layout.sizes[i]);
    if (!band->run(samples + top * row)) throw Error("a value is outside of its range");
    if (!band->coder.finished()) throw Error("bytes are left over behind a band");
  });
}

template std::string encode(const uint8_t*, const Shape&, const Mode&, int, const Blocks&);
template std::string encode(const uint16_t*, const Shape&, const Mode&, int, const Blocks&);
template void decode(const Layout&, const Shape&, uint8_t*, int, const Blocks&);
template void decode(const Layout&, const Shape&, uint16_t*, int, const Blocks&);

}  // namespace dca::exact
