// Python door of the coder: arrays in, bytes and arrays out. dca_fast/entropy/coder.py is the only importer.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "crc32.h"
#include "rans_coder.h"

namespace py = pybind11;
namespace rans = dca::rans;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

const rans::Path& path_named(const std::string& name) {
  for (const rans::Path* path : rans::available_paths()) {
    if (name == path->name) return *path;
  }
  throw rans::Error(rans::Fault::kInput, "this processor cannot run the requested instruction set");
}

const char* name_of(rans::Fault fault) {
  switch (fault) {
    case rans::Fault::kTruncated:
      return "truncated";
    case rans::Fault::kCorrupt:
      return "corrupt";
    default:
      return "input";
  }
}

py::bytes encode(const rans::Tables& tables, const std::vector<std::pair<Array<int16_t>, Array<uint8_t>>>& parts,
                 size_t plain, int lanes, int groups, const std::string& isa, int threads) {
  if (lanes < 1 || lanes > rans::kMaxLanes || (lanes & (lanes - 1)) != 0 || groups < 1 || groups > rans::kMaxGroups) {
    throw rans::Error(rans::Fault::kInput, "the number of lanes or groups is out of range");
  }
  const rans::Path& path = path_named(isa);
  std::vector<rans::Part> views;
  for (const auto& [values, rows] : parts) {
    if (values.size() != rows.size()) throw rans::Error(rans::Fault::kInput, "values and rows differ in length");
    views.push_back({values.data(), rows.data(), static_cast<size_t>(rows.size()), views.size() >= plain});
  }
  std::string stream;
  {
    const py::gil_scoped_release release;
    stream = rans::encode(tables, path, views, lanes, groups, threads);
  }
  return py::bytes(stream);
}

std::unique_ptr<rans::Decoder> make_decoder(const rans::Tables& tables, const py::buffer& stream,
                                            const std::string& isa, int threads) {
  const py::buffer_info view = stream.request();
  if (view.itemsize != 1 || PyBuffer_IsContiguous(view.view(), 'C') == 0) {
    throw rans::Error(rans::Fault::kInput, "the stream must be contiguous bytes");
  }
  return std::make_unique<rans::Decoder>(tables, path_named(isa), static_cast<const uint8_t*>(view.ptr),
                                         static_cast<size_t>(view.size), threads);
}

Array<int16_t> decode(rans::Decoder& decoder, const Array<uint8_t>& rows, bool trellis, bool last) {
  Array<int16_t> values(rows.size());
  const uint8_t* from = rows.data();
  int16_t* to = values.mutable_data();
  const size_t size = static_cast<size_t>(rows.size());
  const py::gil_scoped_release release;
  decoder.decode(from, size, to, trellis, last);
  return values;
}

Array<int16_t> quantise(const Array<int32_t>& residuals, const Array<uint8_t>& rows, const Array<int32_t>& charges,
                        int groups, const std::string& isa, int threads) {
  if (residuals.size() != rows.size()) {
    throw rans::Error(rans::Fault::kInput, "residuals and rows differ in length");
  }
  if (charges.ndim() != 3 || charges.shape(0) != 2 || charges.shape(1) != rans::kRows ||
      charges.shape(2) != rans::kSymbols) {
    throw rans::Error(rans::Fault::kInput, "the charges have the wrong shape");
  }
  uint32_t outside = 0;  // its top bit
  const int32_t* charge = charges.data();
  for (py::ssize_t i = 0; i < charges.size(); ++i) {
    const uint32_t one = static_cast<uint32_t>(charge[i]);
    outside |= one | (rans::kMaxCharge - one);
  }
  if (outside >> 31 != 0) throw rans::Error(rans::Fault::kInput, "a charge is out of range");
  if (groups < 1 || groups > rans::kMaxGroups) {
    throw rans::Error(rans::Fault::kInput, "the number of groups is out of range");
  }
  const rans::Path& path = path_named(isa);
  Array<int16_t> values(rows.size());
  const int32_t* from = residuals.data();
  const uint8_t* row = rows.data();
  int16_t* to = values.mutable_data();
  const size_t size = static_cast<size_t>(rows.size());
  const py::gil_scoped_release release;
  rans::quantise(path, from, row, size, charge, groups, threads, to);
  return values;
}

// How often each row occurs among every stride-th of them.
Array<int64_t> row_counts(const Array<uint8_t>& rows, size_t stride) {
  if (stride == 0) throw rans::Error(rans::Fault::kInput, "the stride must be at least 1");
  constexpr size_t kCopies = 4;  // neighbours are often equal: counting into one array would wait for itself
  std::vector<int64_t> counts(kCopies * 256);
  const uint8_t* from = rows.data();
  const size_t size = static_cast<size_t>(rows.size());
  for (size_t i = 0, copy = 0; i < size; i += stride, copy = (copy + 1) % kCopies) ++counts[copy * 256 + from[i]];
  Array<int64_t> out(256);
  for (size_t row = 0; row < 256; ++row) {
    out.mutable_data()[row] = counts[row] + counts[256 + row] + counts[512 + row] + counts[768 + row];
  }
  return out;
}

}  // namespace

PYBIND11_MODULE(_rans, m) {
  m.doc() = "Native rANS coder; use dca_fast.entropy.coder.";
  static const py::handle error = PyErr_NewException("dca_fast._rans.Error", nullptr, nullptr);
  m.attr("Error") = error;
  py::register_local_exception_translator([](std::exception_ptr caught) {
    try {
      if (caught) std::rethrow_exception(caught);
    } catch (const rans::Error& e) {
      PyErr_SetObject(error.ptr(), py::make_tuple(name_of(e.fault), e.what()).ptr());
    }
  });

  m.def(
      "isas",
      [] {
        std::vector<std::string> names;
        for (const rans::Path* path : rans::available_paths()) names.emplace_back(path->name);
        return names;
      },
      "Instruction sets that run here, fastest first.");

#ifdef DCA_CRC32
  if (__builtin_cpu_supports("pclmul")) {
    m.def("crc32", [](const py::buffer& bytes, uint32_t value) {
      const py::buffer_info view = bytes.request();
      if (PyBuffer_IsContiguous(view.view(), 'C') == 0) {
        throw rans::Error(rans::Fault::kInput, "the bytes must be contiguous");
      }
      const py::gil_scoped_release release;
      return rans::crc32(value, static_cast<const uint8_t*>(view.ptr), static_cast<size_t>(view.size * view.itemsize));
    });
  }
#endif
  m.def("quantise", &quantise, py::arg("residuals").noconvert(), py::arg("rows").noconvert(),
        py::arg("charges").noconvert(), py::arg("groups"), py::arg("isa"), py::arg("threads"));
  m.def("row_counts", &row_counts, py::arg("rows").noconvert(), py::arg("stride"));

  py::class_<rans::Decoder>(m, "Decoder")
      .def("decode", &decode, py::arg("rows").noconvert(), py::arg("trellis"), py::arg("last"))
      .def("finish", &rans::Decoder::finish);

  py::class_<rans::Tables>(m, "Tables")
      .def(py::init([](const Array<uint16_t>& freq, const Array<uint8_t>& shift) {
             if (freq.size() != rans::kTableRows * rans::kSymbols || shift.size() != rans::kTableRows) {
               throw rans::Error(rans::Fault::kInput, "the tables have the wrong size");
             }
             return rans::Tables(freq.data(), shift.data());
           }),
           py::arg("freq").noconvert(), py::arg("shift").noconvert())
      .def("encode", &encode, py::arg("parts").noconvert(), py::arg("plain"), py::arg("lanes"), py::arg("groups"),
           py::arg("isa"), py::arg("threads"))
      .def("decoder", &make_decoder, py::arg("stream"), py::arg("isa"), py::arg("threads"), py::keep_alive<0, 1>());
}
