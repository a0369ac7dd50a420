// Python door of the exact-colour coder. dca_fast/exact/coder.py is the only importer and checks its arguments.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "exact_coder.h"

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

template <class Sample>
py::bytes encode(const Array<Sample>& samples, bool candidates, bool index, int step, int threads) {
  check(samples.ndim() == 3, "the samples are not [height, width, channels]");
  const exact::Shape shape = shape_of(samples.shape(0), samples.shape(1), samples.shape(2));
  check(step >= 1 && step <= exact::kMaxStep && step % 2 == 1, "the step is out of range");
  check(!(index && !candidates) && !(step > 1 && candidates), "unknown mode of coding");
  const Sample* from = samples.data();
  std::string stream;
  {
    const py::gil_scoped_release release;
    stream = exact::encode(from, shape, {candidates, index, step}, threads);
  }
  return py::bytes(stream);
}

template <class Sample>
Array<Sample> decode(const py::buffer& stream, py::ssize_t height, py::ssize_t width, py::ssize_t channels,
                     int threads) {
  const exact::Shape shape = shape_of(height, width, channels);
  const py::buffer_info view = stream.request();
  check(view.itemsize == 1 && PyBuffer_IsContiguous(view.view(), 'C') != 0, "the stream must be contiguous bytes");
  Array<Sample> samples({height, width, channels});
  Sample* to = samples.mutable_data();
  const auto* from = static_cast<const uint8_t*>(view.ptr);
  const size_t size = static_cast<size_t>(view.size);
  const py::gil_scoped_release release;
  exact::decode(from, size, shape, to, threads);
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
  m.def("decode8", &decode<uint8_t>, py::arg("stream"), py::arg("height"), py::arg("width"), py::arg("channels"),
        py::arg("threads"));
  m.def("decode16", &decode<uint16_t>, py::arg("stream"), py::arg("height"), py::arg("width"), py::arg("channels"),
        py::arg("threads"));
}
