// Python door of the exact-colour coder. dca_fast/exact/coder.py is the only importer and checks its arguments.
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <optional>
#include <string>

#include "../arrays.h"
#include "exact_coder.h"
#include "exact_palette.h"

namespace exact = dca::exact;
using namespace dca;

namespace {

void check(bool right, const char* what) {
  if (!right) throw nb::value_error(what);
}

exact::Shape shape_of(int64_t height, int64_t width, int64_t channels) {
  check(height >= 1 && height <= exact::kMaxSide && width >= 1 && width <= exact::kMaxSide, "a side is out of range");
  check(channels == 1 || channels == 3, "there are neither one nor three channels");
  return {static_cast<int>(height), static_cast<int>(width), static_cast<int>(channels)};
}

// Blocks of 16 x 16 pixels that are coded, [ceil(height / 16), ceil(width / 16)].
const uint8_t* inside_of(const Array& map, const exact::Shape& shape) {
  const auto blocks = [](int side) { return (side + exact::kBlock - 1) / exact::kBlock; };
  check(map.ndim() == 2 && map.shape(0) == blocks(shape.height) && map.shape(1) == blocks(shape.width),
        "the map is not one of the picture's blocks");
  return map.of<uint8_t>();
}

exact::Shape shape_of(const Array& samples) {
  check(samples.ndim() == 3, "the samples are not [height, width, channels]");
  return shape_of(samples.shape(0), samples.shape(1), samples.shape(2));
}

void check(const exact::Mode& mode) {
  check(mode.step >= 1 && mode.step <= exact::kMaxStep && mode.step % 2 == 1, "the step is out of range");
  check(!(mode.index && !mode.candidates) && !(mode.step > 1 && mode.candidates), "unknown mode of coding");
}

template <class Sample>
nb::bytes encode(const Array& samples, bool candidates, bool index, int step, int threads) {
  const exact::Shape shape = shape_of(samples);
  const exact::Mode mode{candidates, index, step};
  check(mode);
  const Sample* from = samples.of<Sample>();
  std::string stream;
  {
    const nb::gil_scoped_release release;
    stream = exact::encode(from, shape, mode, threads);
  }
  return nb::bytes(stream.data(), stream.size());
}

// The stream of some blocks of 8 bits, and what each of them takes in 1/256 bits.
nb::tuple encode_blocks(const Array& samples, const Array& map, bool candidates, bool index, int threads) {
  const exact::Shape shape = shape_of(samples);
  const exact::Mode mode{candidates, index, 1};
  check(mode);
  const uint8_t* inside = inside_of(map, shape);
  auto spent = new_array<int64_t>({map.shape(0), map.shape(1)});
  std::fill(spent.data(), spent.data() + spent.size(), int64_t{0});
  const exact::Blocks blocks{inside, spent.data()};
  const uint8_t* from = samples.of<uint8_t>();
  std::string stream;
  {
    const nb::gil_scoped_release release;
    stream = exact::encode(from, shape, mode, threads, blocks);
  }
  return nb::make_tuple(nb::bytes(stream.data(), stream.size()), spent);
}

Result<uint8_t> merge_colours(const Array& samples, const Array& map, int64_t price) {
  const exact::Shape shape = shape_of(samples);
  const uint8_t* inside = inside_of(map, shape);
  check(price >= 0 && price <= int64_t{1} << 20, "the price is out of range");
  auto merged = new_array<uint8_t>({samples.shape(0), samples.shape(1), samples.shape(2)});
  const uint8_t* from = samples.of<uint8_t>();
  uint8_t* to = merged.data();
  const nb::gil_scoped_release release;
  exact::merge_colours(from, shape, inside, price, to);
  return merged;
}

template <class Sample>
Result<Sample> decode(const Bytes& stream, int64_t height, int64_t width, int64_t channels, int threads,
                      const std::optional<Array>& map) {
  const exact::Shape shape = shape_of(height, width, channels);
  const exact::Blocks blocks{map ? inside_of(*map, shape) : nullptr, nullptr};
  check(stream.itemsize() == 1 && stream.contiguous(), "the stream must be contiguous bytes");
  const exact::Layout layout = exact::layout_of(stream.data(), stream.size(), shape);
  auto samples = new_array<Sample>({height, width, channels});  // there is none for few bytes that name many bands
  Sample* to = samples.data();
  if (map) std::fill(to, to + samples.size(), Sample{0});
  const nb::gil_scoped_release release;
  exact::decode(layout, shape, to, threads, blocks);
  return samples;
}

}  // namespace

NB_MODULE(_exact, m) {
  if (_import_array() < 0) throw nb::python_error();
  m.doc() = "Native exact-colour coder; use dca_fast.exact.coder.";
  nb::exception<exact::Error>(m, "Error");
  m.def("encode", [](const Array& samples, bool candidates, bool index, int step, int threads) {
    const auto of_type = samples.holds<uint16_t>() ? encode<uint16_t> : encode<uint8_t>;
    return of_type(samples, candidates, index, step, threads);
  });
  m.def("encode_blocks", &encode_blocks);
  m.def("merge_colours", &merge_colours);
  m.def("decode8", &decode<uint8_t>);
  m.def("decode16", &decode<uint16_t>);
}
