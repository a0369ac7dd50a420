// Python door of the exact-colour coder. dca_fast/exact/coder.py is the only importer and checks its arguments.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>

#include "exact_coder.h"
#include "exact_palette.h"

namespace py = pybind11;
namespace exact = dca::exact;

namespace {

template <class Sample>
using Array = py::array_t<Sample, py::array::c_style>;

void check(bool right, const char* what) {
  if (!right) throw py::value_error(what);
}

exact::Shape shape_of(py::ssize_t height, py::ssize_t width, py::ssize_t channels) {
  check(height >= 1 && height <= exact::kMaxSide && width >= 1 && width <= exact::kMaxSide, "a side is out of range");
  check(channels == 1 || channels == 3, "there are neither one nor three channels");
  return {static_cast<int>(height), static_cast<int>(width), static_cast<int>(channels)};
}

// Blocks of 16 x 16 pixels that are coded, [ceil(height / 16), ceil(width / 16)].
const uint8_t* inside_of(const Array<uint8_t>& map, const exact::Shape& shape) {
  const auto blocks = [](int side) { return (side + exact::kBlock - 1) / exact::kBlock; };
  check(map.ndim() == 2 && map.shape(0) == blocks(shape.height) && map.shape(1) == blocks(shape.width),
        "the map is not one of the picture's blocks");
  return map.data();
}

template <class Sample>
exact::Shape shape_of(const Array<Sample>& samples) {
  check(samples.ndim() == 3, "the samples are not [height, width, channels]");
  return shape_of(samples.shape(0), samples.shape(1), samples.shape(2));
}

void check(const exact::Mode& mode) {
  check(mode.step >= 1 && mode.step <= exact::kMaxStep && mode.step % 2 == 1, "the step is out of range");
  check(!(mode.index && !mode.candidates) && !(mode.step > 1 && mode.candidates), "unknown mode of coding");
}

template <class Sample>
py::bytes encode(const Array<Sample>& samples, bool candidates, bool index, int step, int threads) {
  const exact::Shape shape = shape_of(samples);
  const exact::Mode mode{candidates, index, step};
  check(mode);
  const Sample* from = samples.data();
  std::string stream;
  {
    const py::gil_scoped_release release;
    stream = exact::encode(from, shape, mode, threads);
  }
  return py::bytes(stream);
}

// The stream of some blocks of 8 bits, and what each of them takes in 1/256 bits.
py::tuple encode_blocks(const Array<uint8_t>& samples, const Array<uint8_t>& map, bool candidates, bool index,
                        int threads) {
  const exact::Shape shape = shape_of(samples);
  const exact::Mode mode{candidates, index, 1};
  check(mode);
  const uint8_t* inside = inside_of(map, shape);
  Array<int64_t> spent({map.shape(0), map.shape(1)});
  std::fill(spent.mutable_data(), spent.mutable_data() + spent.size(), int64_t{0});
  const exact::Blocks blocks{inside, spent.mutable_data()};
  const uint8_t* from = samples.data();
  std::string stream;
  {
    const py::gil_scoped_release release;
    stream = exact::encode(from, shape, mode, threads, blocks);
  }
  return py::make_tuple(py::bytes(stream), spent);
}

Array<uint8_t> merge_colours(const Array<uint8_t>& samples, const Array<uint8_t>& map, int64_t price) {
  const exact::Shape shape = shape_of(samples);
  const uint8_t* inside = inside_of(map, shape);
  check(price >= 0 && price <= int64_t{1} << 20, "the price is out of range");
  Array<uint8_t> merged({samples.shape(0), samples.shape(1), samples.shape(2)});
  const uint8_t* from = samples.data();
  uint8_t* to = merged.mutable_data();
  const py::gil_scoped_release release;
  exact::merge_colours(from, shape, inside, price, to);
  return merged;
}

template <class Sample>
Array<Sample> decode(const py::buffer& stream, py::ssize_t height, py::ssize_t width, py::ssize_t channels, int threads,
                     const std::optional<Array<uint8_t>>& map) {
  const exact::Shape shape = shape_of(height, width, channels);
  const exact::Blocks blocks{map ? inside_of(*map, shape) : nullptr, nullptr};
  const py::buffer_info view = stream.request();
  check(view.itemsize == 1 && PyBuffer_IsContiguous(view.view(), 'C') != 0, "the stream must be contiguous bytes");
  const exact::Layout layout = exact::layout_of(static_cast<const uint8_t*>(view.ptr), view.size, shape);
  Array<Sample> samples({height, width, channels});  // a stream of few bytes that names many bands takes none
  Sample* to = samples.mutable_data();
  if (map) std::fill(to, to + samples.size(), Sample{0});
  const py::gil_scoped_release release;
  exact::decode(layout, shape, to, threads, blocks);
  return samples;
}

}  // namespace

PYBIND11_MODULE(_exact, m) {
  m.doc() = "Native exact-colour coder; use dca_fast.exact.coder.";
  py::register_local_exception<exact::Error>(m, "Error");
  m.def("encode", &encode<uint8_t>, py::arg("samples").noconvert(), py::arg("candidates"), py::arg("index"),
        py::arg("step"), py::arg("threads"));
  m.def("encode", &encode<uint16_t>, py::arg("samples").noconvert(), py::arg("candidates"), py::arg("index"),
        py::arg("step"), py::arg("threads"));
  m.def("encode_blocks", &encode_blocks, py::arg("samples").noconvert(), py::arg("map").noconvert(),
        py::arg("candidates"), py::arg("index"), py::arg("threads"));
  m.def("merge_colours", &merge_colours, py::arg("samples").noconvert(), py::arg("map").noconvert(), py::arg("price"));
  m.def("decode8", &decode<uint8_t>, py::arg("stream"), py::arg("height"), py::arg("width"), py::arg("channels"),
        py::arg("threads"), py::arg("map") = py::none());
  m.def("decode16", &decode<uint16_t>, py::arg("stream"), py::arg("height"), py::arg("width"), py::arg("channels"),
        py::arg("threads"), py::arg("map") = py::none());
}
