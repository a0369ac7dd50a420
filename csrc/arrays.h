// NumPy's arrays and other bytes in the bindings for Python, within the stable ABIs of both.
#pragma once

#include <nanobind/nanobind.h>
#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <numpy/arrayobject.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

namespace dca {
namespace nb = nanobind;

// NumPy's name for numbers of a kind, without their bits.
template <class T>
constexpr const char* kind_of() {
  return std::is_floating_point_v<T> ? "float" : std::is_signed_v<T> ? "int" : "uint";
}

// An array that the caller of a function holds.
class Array {
 public:
  bool open(nb::handle object) noexcept {
    array_ = reinterpret_cast<PyArrayObject*>(object.ptr());
    return PyArray_Check(object.ptr());
  }

  int64_t ndim() const { return PyArray_NDIM(array_); }
  const npy_intp* shape() const { return PyArray_DIMS(array_); }
  int64_t shape(int64_t i) const { return shape()[i]; }
  int64_t size() const { return PyArray_SIZE(array_); }
  void* data() const { return PyArray_DATA(array_); }
  bool contiguous() const { return PyArray_IS_C_CONTIGUOUS(array_); }
  bool writeable() const { return PyArray_ISWRITEABLE(array_); }
  std::string type() const { return nb::str(nb::handle(reinterpret_cast<PyObject*>(PyArray_DESCR(array_)))).c_str(); }

  template <class T>
  bool holds() const {
    return PyArray_DESCR(array_)->kind == *kind_of<T>() && PyArray_ITEMSIZE(array_) == sizeof(T) &&
           PyArray_ISNOTSWAPPED(array_);
  }

  // Whether it is of this type, contiguous and aligned.
  template <class T>
  bool is() const {
    return holds<T>() && contiguous() && PyArray_ISALIGNED(array_);
  }

  template <class T>
  const T* of() const {
    if (!is<T>()) throw nb::type_error("expected a contiguous array of another type");
    return static_cast<const T*>(data());
  }

 private:
  PyArrayObject* array_ = nullptr;
};

// The contiguous bytes that any other object lends, for as long as this lives.
class Bytes {
 public:
  Bytes() { view_.obj = nullptr; }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  ~Bytes() { PyBuffer_Release(&view_); }

  bool open(nb::handle object) noexcept {
    const bool lent = PyObject_GetBuffer(object.ptr(), &view_, PyBUF_FULL_RO) == 0;
    if (!lent) PyErr_Clear();
    return lent;
  }

  bool contiguous() const { return PyBuffer_IsContiguous(&view_, 'C') != 0; }
  int64_t itemsize() const { return view_.itemsize; }
  const uint8_t* data() const { return static_cast<const uint8_t*>(view_.buf); }
  size_t size() const { return static_cast<size_t>(view_.len); }

 private:
  Py_buffer view_;
};

// An array that a function returns. It can be moved without the interpreter's lock.
template <class T>
struct Result {
  nb::object array;
  T* data() const { return static_cast<T*>(PyArray_DATA(pointer())); }
  int64_t size() const { return PyArray_SIZE(pointer()); }
  PyArrayObject* pointer() const { return reinterpret_cast<PyArrayObject*>(array.ptr()); }
};

using Shape = std::vector<npy_intp>;

// A new array, unset; of memory that `owner` keeps, if there is one.
template <class T>
Result<T> new_array(const Shape& shape, void* memory = nullptr, nb::object owner = {}) {
  constexpr int kInts[] = {NPY_INT8, NPY_INT16, 0, NPY_INT32, 0, 0, 0, NPY_INT64};
  constexpr int type = std::is_signed_v<T> ? kInts[sizeof(T) - 1] : sizeof(T) == 1 ? NPY_UINT8 : NPY_UINT16;
  static_assert(std::is_integral_v<T> && (std::is_signed_v<T> || sizeof(T) <= 2));
  Result<T> result{nb::steal(PyArray_New(&PyArray_Type, static_cast<int>(shape.size()), shape.data(), type, nullptr,
                                         memory, 0, memory ? NPY_ARRAY_CARRAY : 0, nullptr))};
  if (!result.array) throw nb::python_error();
  if (owner) PyArray_SetBaseObject(result.pointer(), owner.release().ptr());
  return result;
}

}  // namespace dca

namespace nanobind::detail {

template <>
struct type_caster<dca::Array> {
  NB_TYPE_CASTER(dca::Array, const_name("numpy.ndarray"))
  bool from_python(handle source, uint32_t, cleanup_list*) noexcept { return value.open(source); }
};

template <>
struct type_caster<dca::Bytes> {
  NB_TYPE_CASTER(dca::Bytes, const_name("collections.abc.Buffer"))
  bool from_python(handle source, uint32_t, cleanup_list*) noexcept { return value.open(source); }
};

template <class T>
struct type_caster<dca::Result<T>> {
  NB_TYPE_CASTER(dca::Result<T>, const_name("numpy.ndarray"))
  static handle from_cpp(const dca::Result<T>& result, rv_policy, cleanup_list*) noexcept {
    return result.array.inc_ref();
  }
};

}  // namespace nanobind::detail
