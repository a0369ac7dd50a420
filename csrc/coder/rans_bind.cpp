// Python door of the coder: arrays in, bytes and arrays out. dca_fast/entropy/coder.py is the only importer.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <utility>
#include <vector>

#include "../arrays.h"
#include "crc32.h"
#include "rans_coder.h"

namespace rans = dca::rans;
using namespace dca;

namespace {

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

nb::bytes encode(const rans::Tables& tables, const nb::list& parts, size_t plain, int lanes, int groups,
                 const std::string& isa, int threads) {
  if (lanes < 1 || lanes > rans::kMaxLanes || (lanes & (lanes - 1)) != 0 || groups < 1 || groups > rans::kMaxGroups) {
    throw rans::Error(rans::Fault::kInput, "the number of lanes or groups is out of range");
  }
  const rans::Path& path = path_named(isa);
  std::vector<rans::Part> views;
  for (const nb::handle part : parts) {
    const auto [values, rows] = nb::cast<std::pair<Array, Array>>(part);
    if (values.size() != rows.size()) throw rans::Error(rans::Fault::kInput, "values and rows differ in length");
    views.push_back(
        {values.of<int16_t>(), rows.of<uint8_t>(), static_cast<size_t>(rows.size()), views.size() >= plain});
  }
  std::string stream;
  {
    const nb::gil_scoped_release release;
    stream = rans::encode(tables, path, views, lanes, groups, threads);
  }
  return nb::bytes(stream.data(), stream.size());
}

rans::Decoder* make_decoder(const rans::Tables& tables, const Bytes& stream, const std::string& isa, int threads) {
  if (stream.itemsize() != 1 || !stream.contiguous()) {
    throw rans::Error(rans::Fault::kInput, "the stream must be contiguous bytes");
  }
  return new rans::Decoder(tables, path_named(isa), stream.data(), stream.size(), threads);
}

Result<int16_t> decode(rans::Decoder& decoder, const Array& rows, bool trellis, bool last) {
  auto values = new_array<int16_t>({rows.size()});
  const uint8_t* from = rows.of<uint8_t>();
  int16_t* to = values.data();
  const size_t size = static_cast<size_t>(rows.size());
  const nb::gil_scoped_release release;
  decoder.decode(from, size, to, trellis, last);
  return values;
}

Result<int16_t> quantise(const Array& residuals, const Array& rows, const Array& charges, int groups,
                         const std::string& isa, int threads) {
  if (residuals.size() != rows.size()) {
    throw rans::Error(rans::Fault::kInput, "residuals and rows differ in length");
  }
  if (charges.ndim() != 3 || charges.shape(0) != 2 || charges.shape(1) != rans::kRows ||
      charges.shape(2) != rans::kSymbols) {
    throw rans::Error(rans::Fault::kInput, "the charges have the wrong shape");
  }
  uint32_t outside = 0;  // its top bit
  const int32_t* charge = charges.of<int32_t>();
  for (int64_t i = 0, count = charges.size(); i < count; ++i) {
    const uint32_t one = static_cast<uint32_t>(charge[i]);
    outside |= one | (rans::kMaxCharge - one);
  }
  if (outside >> 31 != 0) throw rans::Error(rans::Fault::kInput, "a charge is out of range");
  if (groups < 1 || groups > rans::kMaxGroups) {
    throw rans::Error(rans::Fault::kInput, "the number of groups is out of range");
  }
  const rans::Path& path = path_named(isa);
  auto values = new_array<int16_t>({rows.size()});
  const int32_t* from = residuals.of<int32_t>();
  const uint8_t* row = rows.of<uint8_t>();
  int16_t* to = values.data();
  const size_t size = static_cast<size_t>(rows.size());
  const nb::gil_scoped_release release;
  rans::quantise(path, from, row, size, charge, groups, threads, to);
  return values;
}

// How often each row occurs among every stride-th of them.
Result<int64_t> row_counts(const Array& rows, size_t stride) {
  if (stride == 0) throw rans::Error(rans::Fault::kInput, "the stride must be at least 1");
  constexpr size_t kCopies = 4;  // neighbours are often equal: counting into one array would wait for itself
  std::vector<int64_t> counts(kCopies * 256);
  const uint8_t* from = rows.of<uint8_t>();
  const size_t size = static_cast<size_t>(rows.size());
  for (size_t i = 0, copy = 0; i < size; i += stride, copy = (copy + 1) % kCopies) ++counts[copy * 256 + from[i]];
  auto out = new_array<int64_t>({256});
  for (size_t row = 0; row < 256; ++row) {
    out.data()[row] = counts[row] + counts[256 + row] + counts[512 + row] + counts[768 + row];
  }
  return out;
}

}  // namespace

NB_MODULE(_rans, m) {
  if (_import_array() < 0) throw nb::python_error();
  m.doc() = "Native rANS coder; use dca_fast.entropy.coder.";
  nb::set_leak_warnings(false);  // modules keep coders for as long as the interpreter lives
  PyObject* const error = PyErr_NewException("dca_fast._rans.Error", nullptr, nullptr);
  m.attr("Error") = nb::handle(error);
  const auto translate = [](const std::exception_ptr& caught, void* type) {
    try {
      std::rethrow_exception(caught);
    } catch (const rans::Error& e) {
      PyErr_SetObject(static_cast<PyObject*>(type), nb::make_tuple(name_of(e.fault), e.what()).ptr());
    }
  };
  nb::register_exception_translator(translate, error);

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
    m.def("crc32", [](const Bytes& bytes, uint32_t value) {
      if (!bytes.contiguous()) throw rans::Error(rans::Fault::kInput, "the bytes must be contiguous");
      const nb::gil_scoped_release release;
      return rans::crc32(value, bytes.data(), bytes.size());
    });
  }
#endif
  m.def("quantise", &quantise);
  m.def("row_counts", &row_counts);

  nb::class_<rans::Decoder>(m, "Decoder").def("decode", &decode).def("finish", &rans::Decoder::finish);

  nb::class_<rans::Tables>(m, "Tables")
      .def("__init__",
           [](rans::Tables* self, const Array& freq, const Array& shift) {
             if (freq.size() != rans::kTableRows * rans::kSymbols || shift.size() != rans::kTableRows) {
               throw rans::Error(rans::Fault::kInput, "the tables have the wrong size");
             }
             new (self) rans::Tables(freq.of<uint16_t>(), shift.of<uint8_t>());
           })
      .def("encode", &encode)
      .def("decoder", &make_decoder, nb::keep_alive<0, 1>());
}
