// dca_fast._cpu: the operations on NumPy arrays. Everything is checked here, before any pointer is used.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <shared_mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../arrays.h"
#include "cpu_ops.h"

using namespace dca;

namespace {

constexpr int64_t kMaxElements = int64_t{1} << 40;
constexpr double kMostResult = (int64_t{1} << 31) - 1024;  // so that its float is below 2^31
constexpr int64_t kMaxChannels = 1 << 16;                  // keeps every index inside a row far from overflow

struct BadInput : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class T>
std::string type_name() {
  return kind_of<T>() + std::to_string(8 * sizeof(T));
}

std::string shape_text(const Array& a) {
  std::ostringstream out;
  out << a.type() << " [";
  for (int64_t i = 0; i < a.ndim(); ++i) out << (i ? ", " : "") << a.shape(i);
  out << "]" << (a.contiguous() ? "" : " not contiguous");
  return out.str();
}

[[noreturn]] void refuse(const char* name, const std::string& wanted, const Array& got) {
  throw BadInput(std::string(name) + ": expected " + wanted + ", got " + shape_text(got));
}

void require(bool condition, const char* message) {
  if (!condition) throw BadInput(message);
}

constexpr int64_t kAny = -1;

// The data of an array of exactly this type and shape (kAny: any length).
template <class T>
const T* data(const Array& a, const char* name, std::initializer_list<int64_t> shape) {
  bool fits = a.is<T>() && a.ndim() == static_cast<int64_t>(shape.size()) && a.size() < kMaxElements;
  int64_t i = 0;
  for (int64_t length : shape) {
    if (fits && length != kAny && a.shape(i) != length) fits = false;
    ++i;
  }
  if (!fits) {
    std::ostringstream wanted;
    wanted << "contiguous " << type_name<T>() << " [";
    const char* separator = "";
    for (int64_t length : shape) {
      wanted << separator << (length == kAny ? std::string("any") : std::to_string(length));
      separator = ", ";
    }
    refuse(name, wanted.str() + "]", a);
  }
  return static_cast<const T*>(a.data());
}

// The data of an array of this type whose last dimension is `last` (kAny: any), and how many rows it has.
template <class T>
const T* rows_of(const Array& a, const char* name, int64_t last, int64_t& rows) {
  if (!a.is<T>() || a.ndim() < 1 || a.size() >= kMaxElements || a.shape(a.ndim() - 1) < 1 ||
      a.shape(a.ndim() - 1) > kMaxChannels || (last != kAny && a.shape(a.ndim() - 1) != last)) {
    refuse(name,
           std::string("contiguous ") + type_name<T>() + " [..., " +
               (last == kAny ? std::string("channels") : std::to_string(last)) + "]",
           a);
  }
  rows = a.size() / a.shape(a.ndim() - 1);
  return static_cast<const T*>(a.data());
}

template <class T>
const T* map_of(const Array& a, const char* name, int64_t channels, Map& map) {
  int64_t rows;
  const T* p = rows_of<T>(a, name, channels, rows);
  if (a.ndim() != 4 || a.shape(1) > INT32_MAX || a.shape(2) > (1 << 24)) {
    refuse(name, std::string("contiguous ") + type_name<T>() + " [N, H, W, C]", a);
  }
  map = {a.shape(0), a.shape(1), a.shape(2), static_cast<int>(a.shape(3))};
  return p;
}

void same_shape(const Array& a, const Array& b, const char* message) {
  require(a.ndim() == b.ndim() && std::equal(a.shape(), a.shape() + a.ndim(), b.shape()), message);
}

// The data of an array of this type, of the shape of `other`.
template <class T>
const T* beside(const Array& a, const char* name, const Array& other, const char* message) {
  int64_t rows;
  const T* p = rows_of<T>(a, name, kAny, rows);
  same_shape(other, a, message);
  return p;
}

void finite(const float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) require(std::isfinite(values[i]), "multipliers must be finite");
}

// The memory of results that are gone, kept for the next of the same size: fresh pages cost as much as an operation.
// The interpreter's lock guards it. Never destroyed: arrays may outlive static destructors.
class Spare {
 public:
  static Spare& of_process() {
    static Spare* const spare = new Spare;
    return *spare;
  }

  void* take(size_t bytes) {
    const auto found = free_.find(bytes);
    if (found == free_.end()) return allocate(bytes);
    void* p = found->second;
    free_.erase(found);
    kept_ -= bytes;
    return p;
  }

  void give(void* p, size_t bytes) noexcept {
    if (bytes > kMost) return ::operator delete(p, kAlignment);
    if (kept_ + bytes > kMost) clear();  // what is kept is often of another picture's sizes
    try {
      free_.emplace(bytes, p);
      kept_ += bytes;
    } catch (const std::bad_alloc&) {
      ::operator delete(p, kAlignment);
    }
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  static constexpr size_t kMost = size_t{64} << 20;

  void* allocate(size_t bytes) {
    try {
      return ::operator new(bytes, kAlignment);
    } catch (const std::bad_alloc&) {
      clear();
      return ::operator new(bytes, kAlignment);
    }
  }

  void clear() {
    for (const auto& [bytes, p] : free_) ::operator delete(p, kAlignment);
    free_.clear();
    kept_ = 0;
  }

  std::unordered_multimap<size_t, void*> free_;
  size_t kept_ = 0;
};

constexpr size_t kLeastKept = 1 << 14;  // bytes; smaller ones the allocator keeps itself

struct Block {
  size_t bytes;
  void* data;
  explicit Block(size_t n) : bytes(n), data(Spare::of_process().take(n)) {}
  ~Block() { Spare::of_process().give(data, bytes); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
};

template <class T>
Result<T> fresh(const Shape& shape) {
  size_t bytes = sizeof(T);
  for (const npy_intp length : shape) bytes *= static_cast<size_t>(length);
  if (bytes < kLeastKept) return new_array<T>(shape);
  auto block = std::make_unique<Block>(bytes);
  nb::capsule owner(block.get(), [](void* p) noexcept { delete static_cast<Block*>(p); });
  return new_array<T>(shape, block.release()->data, std::move(owner));
}

template <class T>
Result<T> like(const Array& x, int64_t channels) {
  Shape shape(x.shape(), x.shape() + x.ndim());
  shape.back() = channels;
  return fresh<T>(shape);
}

int step_of(int step) {
  require(step >= 0 && step < 4, "step: expected 0, 1, 2 or 3");
  return step;
}

void even(const Map& map) { require(map.h % 2 == 0 && map.w % 2 == 0, "height and width must be even"); }

// Operations hold this shared, a change of instruction set alone; so no operation sees two of them.
std::shared_mutex kernel_mutex;

class Running {
  nb::gil_scoped_release release_;
  std::shared_lock<std::shared_mutex> lock_{kernel_mutex};
};

// An array that `work` fills, while others may use the interpreter.
template <class T, class Work>
Result<T> computed(Result<T> out, Work&& work) {
  const Running running;
  work(out.data());
  return out;
}

// Weights.

// Results are clamped as saturated 32-bit integers, which a multiplier must not leave.
void fits(int64_t sum, float m) {
  require(static_cast<double>(sum) * std::abs(static_cast<double>(m)) < kMostResult,
          "multipliers: the result of a row can exceed 31 bits");
}

const float* operand_multipliers(const Array& m_in, int64_t channels) {
  const float* values = data<float>(m_in, "m_in", {channels});
  for (int64_t i = 0; i < channels; ++i) fits(-int64_t{INT16_MIN}, values[i]);
  return values;
}

// A head clamps its results before they become integers.
template <class T>
void check_rows(const T* w, const int32_t* b, const float* m, int64_t o, int64_t k, bool head = false) {
  const int64_t limit = std::numeric_limits<T>::max();
  finite(m, o);
  for (int64_t i = 0; i < o; ++i) {
    int64_t sum = std::abs(static_cast<int64_t>(b[i]));
    for (int64_t j = 0; j < k; ++j) sum += limit * std::abs(static_cast<int64_t>(w[i * k + j]));
    require(sum <= INT32_MAX, "weights: the accumulator of a row can exceed 31 bits");
    if (!head) fits(sum, m[i]);
  }
}

template <class T>
void pack(PackedLinear* self, const T* w, const int32_t* b, const float* m, int64_t o, int64_t k) {
  check_rows(w, b, m, o, k);
  new (self) PackedLinear(w, static_cast<int>(sizeof(T) * 8), b, m, static_cast<int>(o), static_cast<int>(k));
}

void make_linear(PackedLinear* self, const Array& w, const Array& b, const Array& m) {
  int64_t o;
  if (w.holds<int16_t>()) {
    const int16_t* values = rows_of<int16_t>(w, "w", kAny, o);
    require(w.ndim() == 2 && o >= 1 && o <= kMaxChannels, "w: expected [O, K]");
    return pack(self, values, data<int32_t>(b, "b", {o}), data<float>(m, "m", {o}), o, w.shape(1));
  }
  const int8_t* values = rows_of<int8_t>(w, "w", kAny, o);
  require(w.ndim() == 2 && o >= 1 && o <= kMaxChannels, "w: expected [O, K]");
  return pack(self, values, data<int32_t>(b, "b", {o}), data<float>(m, "m", {o}), o, w.shape(1));
}

void make_depthwise(PackedDepthwise* self, const Array& w, const Array& b, const Array& m) {
  const int8_t* values = data<int8_t>(w, "w", {3, 3, kAny});
  const int64_t c = w.shape(2);
  require(c >= 1 && c <= kMaxChannels, "w: too many channels");
  const float* scale = data<float>(m, "m", {c});
  const int32_t* bias = data<int32_t>(b, "b", {c});
  finite(scale, c);
  for (int64_t i = 0; i < c; ++i) {
    int64_t sum = std::abs(static_cast<int64_t>(bias[i]));
    for (int tap = 0; tap < 9; ++tap) sum += 127 * std::abs(static_cast<int64_t>(values[tap * c + i]));
    fits(sum, scale[i]);
  }
  new (self) PackedDepthwise(values, bias, scale, static_cast<int>(c));
}

void make_head(PackedHead* self, const Array& w, const Array& b, const Array& m_mean, const Array& m_scale,
               const Array& offset) {
  int64_t rows;
  const int8_t* values = rows_of<int8_t>(w, "w", kAny, rows);
  require(w.ndim() == 3 && w.shape(0) == 4 && w.shape(1) >= 2 && w.shape(1) % 2 == 0 && w.shape(1) <= kMaxChannels,
          "w: expected [4, 2G, C]");
  const int64_t size = w.shape(1) / 2, c = w.shape(2);
  const int32_t* bias = data<int32_t>(b, "b", {4, 2 * size});
  const float* mean = data<float>(m_mean, "m_mean", {4, size});
  const float* scale = data<float>(m_scale, "m_scale", {4, size});
  const int32_t* start = data<int32_t>(offset, "offset", {4, size});
  for (int64_t g = 0; g < 4; ++g) {
    const int64_t first = g * 2 * size;
    check_rows(values + first * c, bias + first, mean + g * size, size, c, true);
    check_rows(values + (first + size) * c, bias + first + size, scale + g * size, size, c, true);
  }
  for (int64_t i = 0; i < 4 * size; ++i) {
    require(start[i] >= -kMeanLimit && start[i] <= kMeanLimit, "offset: expected values within +-2^20");
  }
  new (self) PackedHead(values, bias, mean, scale, start, static_cast<int>(size), static_cast<int>(c));
}

void make_decoded(PackedDecoded* self, const Array& w, const Array& b, const Array& m, int step) {
  int64_t o;
  const int16_t* values = rows_of<int16_t>(w, "w", kAny, o);
  require(w.ndim() == 2 && o >= 1 && o <= kMaxChannels && w.shape(1) % 4 == 0, "w: expected [O, 4G]");
  require(step >= 1 && step < 4, "step: expected 1, 2 or 3");
  const int64_t size = w.shape(1) / 4;
  const int32_t* bias = data<int32_t>(b, "b", {o});
  const float* scale = data<float>(m, "m", {o});
  check_rows(values, bias, scale, o, 4 * size);
  new (self) PackedDecoded(values, bias, scale, static_cast<int>(o), static_cast<int>(size), step);
}

// Operations.

template <class T>
Result<T> bind_operand(const Array& x, const Array& m) {
  int64_t rows;
  const int16_t* in = rows_of<int16_t>(x, "x", kAny, rows);
  const int64_t c = x.shape(x.ndim() - 1);
  const float* scale = data<float>(m, "m", {c});
  return computed(like<T>(x, c), [&](T* to) { operand(in, scale, rows, static_cast<int>(c), sizeof(T) * 8, to); });
}

Result<int16_t> bind_add(const Array& x, const Array& y) {
  int64_t rows;
  const int16_t* a = rows_of<int16_t>(x, "x", kAny, rows);
  const int16_t* b = beside<int16_t>(y, "y", x, "x and y: shapes differ");
  const int64_t count = x.size();
  return computed(like<int16_t>(x, x.shape(x.ndim() - 1)), [&](int16_t* to) { add(a, b, count, to); });
}

Result<int8_t> bind_act_slope(const Array& e, const Array& h, bool leaky) {
  int64_t rows;
  const int8_t* slope = rows_of<int8_t>(e, "e", kAny, rows);
  const int8_t* operand = beside<int8_t>(h, "h", e, "e and h: shapes differ");
  const int64_t count = e.size();
  return computed(like<int8_t>(e, e.shape(e.ndim() - 1)),
                  [&](int8_t* to) { act_slope(slope, operand, leaky, count, to); });
}

Result<int8_t> bind_gate_slope(const Array& e, const Array& uv, float g, const Array& m) {
  int64_t rows;
  const int8_t* slope = rows_of<int8_t>(e, "e", kAny, rows);
  const int half = static_cast<int>(e.shape(e.ndim() - 1));
  const int8_t* halves = rows_of<int8_t>(uv, "uv", 2 * half, rows);
  require(e.ndim() == uv.ndim() && std::equal(e.shape(), e.shape() + e.ndim() - 1, uv.shape()),
          "e and uv: shapes differ");
  const float* scales = data<float>(m, "m", {2 * half});
  return computed(like<int8_t>(e, 2 * half), [&](int8_t* to) { gate_slope(slope, halves, g, scales, rows, half, to); });
}

Result<int16_t> bind_add_slope(const Array& slope, const Array& d, const Array& h) {
  int64_t rows;
  const int16_t* before = rows_of<int16_t>(slope, "slope", kAny, rows);
  const int16_t* more = beside<int16_t>(d, "d", slope, "slope and d: shapes differ");
  const int8_t* operand = beside<int8_t>(h, "h", slope, "slope and h: shapes differ");
  const int64_t count = slope.size();
  return computed(like<int16_t>(slope, slope.shape(slope.ndim() - 1)),
                  [&](int16_t* to) { add_slope(before, more, operand, count, to); });
}

// Operands In, outputs Out; `residual` only with Epilogue::add.
template <class In, class Out>
Result<Out> bind_linear(const Array& x, const PackedLinear& p, Epilogue epilogue,
                        const std::optional<Array>& residual = std::nullopt) {
  require(p.bits == sizeof(In) * 8, sizeof(In) == 1 ? "w: expected int8 weights" : "w: expected int16 weights");
  int64_t rows;
  const In* in = rows_of<In>(x, "x", p.k, rows);
  const int16_t* add = nullptr;
  if (residual) {
    int64_t ignored;
    add = rows_of<int16_t>(*residual, "residual", p.o, ignored);
    require(residual->ndim() == x.ndim() && std::equal(x.shape(), x.shape() + x.ndim() - 1, residual->shape()),
            "residual: expected the shape of the output");
  }
  return computed(like<Out>(x, p.o), [&](Out* to) { linear(in, rows, p, epilogue, add, to); });
}

Result<int8_t> bind_gate(const Array& x, const PackedLinear& p, float g) {
  require(p.bits == 8 && p.o % 2 == 0, "w: expected int8 weights with an even number of rows");
  fits(127 * 127, g);
  int64_t rows;
  const int8_t* in = rows_of<int8_t>(x, "x", p.k, rows);
  return computed(like<int8_t>(x, p.o / 2), [&](int8_t* to) { linear_gate(in, rows, p, g, to); });
}

template <class In>
Result<int16_t> bind_feature(const Array& x, const PackedLinear& p, const std::optional<Array>& residual) {
  return bind_linear<In, int16_t>(x, p, residual ? Epilogue::add : Epilogue::feature, residual);
}

Result<int8_t> bind_depthwise(const Array& x, const PackedDepthwise& p) {
  Map map;
  const int8_t* in = map_of<int8_t>(x, "x", p.c, map);
  return computed(like<int8_t>(x, p.c), [&](int8_t* to) { depthwise3x3(in, map, p, to); });
}

const uint8_t* exponential_table(const Array& table) {
  const uint8_t* values = data<uint8_t>(table, "table", {kTableSize});
  require(values[0] > 0, "table: expected a positive first entry");
  require(*std::max_element(values, values + kTableSize) <= 127, "table: expected entries up to 127");
  return values;
}

// Checks what windows of a map must fulfil; `bias` and `table` must outlive the result.
Attention window_arguments(const Map& map, int heads, int window, int shift, float m, const Array& bias,
                           const Array& table) {
  require(window >= 1 && window <= 64 && map.h % window == 0 && map.w % window == 0,
          "window: expected at most 64 and a divisor of height and width");
  require(heads >= 1 && map.c % heads == 0, "heads: expected a divisor of the channels");
  require(shift >= 0 && shift < window, "shift: expected 0 <= shift < window");
  finite(&m, 1);
  const int64_t area = static_cast<int64_t>(window) * window;
  return {heads, window, shift, m, data<int32_t>(bias, "bias", {heads, area, area}), exponential_table(table)};
}

Result<int8_t> bind_window_attention(const Array& q, const Array& k, const Array& v, int heads, int window, int shift,
                                     float m, const Array& bias, const Array& table) {
  Map map;
  const int8_t* query = map_of<int8_t>(q, "q", kAny, map);
  const int8_t* key = data<int8_t>(k, "k", {map.n, map.h, map.w, map.c});
  const int8_t* value = data<int8_t>(v, "v", {map.n, map.h, map.w, map.c});
  const Attention attention = window_arguments(map, heads, window, shift, m, bias, table);
  return computed(like<int8_t>(q, map.c), [&](int8_t* to) { window_attention(query, key, value, map, attention, to); });
}

// A projection of attention, c to c, and what makes its operands.
const float* square(const PackedLinear& first, int outputs, const PackedLinear& last, const Array& m_in) {
  require(first.bits == 8 && last.bits == 8, "w: expected int8 weights");
  require(first.o == outputs && last.k == first.k && last.o == first.k,
          "weights: the layers of the block do not fit each other");
  return operand_multipliers(m_in, first.k);
}

Result<int16_t> bind_window_block(const Array& x, const Array& m_in, const PackedLinear& qkv, int heads, int window,
                                  int shift, float m, const Array& bias, const Array& table,
                                  const PackedLinear& project) {
  Map map;
  const int16_t* in = map_of<int16_t>(x, "x", qkv.k, map);
  const float* scale = square(qkv, 3 * qkv.k, project, m_in);
  const Attention attention = window_arguments(map, heads, window, shift, m, bias, table);
  return computed(like<int16_t>(x, map.c),
                  [&](int16_t* to) { window_block(in, map, scale, qkv, attention, project, to); });
}

Result<int16_t> bind_token_block(const Array& x, const Array& k, const Array& v, const Array& m_in,
                                 const PackedLinear& query, int heads, float m, const Array& table,
                                 const PackedLinear& project) {
  Map map;
  const int16_t* in = map_of<int16_t>(x, "x", query.k, map);
  const float* scale = square(query, query.k, project, m_in);
  const int8_t* key = data<int8_t>(k, "k", {map.n, kAny, map.c});
  const int64_t tokens = k.shape(1);
  const int8_t* value = data<int8_t>(v, "v", {map.n, tokens, map.c});
  require(tokens >= 1 && tokens <= (1 << 26), "k: expected 1 to 2^26 tokens");
  require(heads >= 1 && map.c % heads == 0, "heads: expected a divisor of the channels");
  finite(&m, 1);
  const Attention attention = {heads, 0, 0, m, nullptr, exponential_table(table)};
  return computed(like<int16_t>(x, map.c), [&](int16_t* to) {
    token_block(in, map, key, value, static_cast<int>(tokens), scale, query, attention, project, to);
  });
}

Result<int8_t> bind_token_attention(const Array& q, const Array& k, const Array& v, int heads, float m,
                                    const Array& table) {
  const int8_t* query = data<int8_t>(q, "q", {kAny, kAny, kAny});
  const int64_t n = q.shape(0), queries = q.shape(1), c = q.shape(2);
  require(c >= 1 && c <= kMaxChannels, "q: too many channels");
  const int8_t* key = data<int8_t>(k, "k", {n, kAny, c});
  const int64_t keys = k.shape(1);
  const int8_t* value = data<int8_t>(v, "v", {n, keys, c});
  require(keys >= 1 && keys <= (1 << 26), "k: expected 1 to 2^26 tokens");
  require(heads >= 1 && c % heads == 0, "heads: expected a divisor of the channels");
  finite(&m, 1);
  const uint8_t* exponentials = exponential_table(table);
  return computed(like<int8_t>(q, c), [&](int8_t* to) {
    token_attention(query, key, value, n, queries, keys, static_cast<int>(c), heads, m, exponentials, to);
  });
}

void skip_of(int skip) { require(skip >= 0 && skip <= kMaxRow + 1, "skip: expected 0 to 128"); }

nb::tuple bind_head(const Array& t, const PackedHead& p, int step, int skip, int64_t valid_h, int64_t valid_w) {
  Map map;
  const int8_t* in = map_of<int8_t>(t, "t", p.c, map);
  even(map);
  step_of(step);
  skip_of(skip);
  require(valid_h >= 0 && valid_h <= map.h && valid_w >= 0 && valid_w <= map.w,
          "valid: expected at most height and width");
  auto mean = like<int32_t>(t, p.size);
  auto row = like<uint8_t>(t, p.size);
  int32_t* to_mean = mean.data();
  uint8_t* to_row = row.data();
  {
    Running running;
    head_params(in, map, p, step, skip, valid_h, valid_w, to_mean, to_row);
  }
  return nb::make_tuple(mean, row);
}

template <class T>
const T* group_map(const Array& a, const char* name, Map& map) {
  const T* p = map_of<T>(a, name, kAny, map);
  require(map.c % 4 == 0, "channels must be a multiple of four");
  even(map);
  return p;
}

template <class T>
nb::object gather_as(const Array& x, int step) {
  Map map;
  const T* in = group_map<T>(x, "x", map);
  return computed(like<T>(x, map.c / 4), [&](T* to) { quadtree_gather(in, map, sizeof(T), step, to); }).array;
}

nb::object bind_gather(const Array& x, int step) {
  step_of(step);
  return x.holds<int32_t>() ? gather_as<int32_t>(x, step) : gather_as<int16_t>(x, step);
}

Result<int16_t> bind_decoded(const Array& y_hat, const Array& m, const PackedDecoded& p, const Array& residual) {
  Map map;
  const int16_t* in = group_map<int16_t>(y_hat, "y_hat", map);
  require(map.c == 4 * p.size, "y_hat: other channels than the weights");
  const float* scale = data<float>(m, "m", {map.c});
  const int16_t* added = data<int16_t>(residual, "residual", {map.n, map.h, map.w, p.linear[0]->o});
  return computed(like<int16_t>(y_hat, p.linear[0]->o),
                  [&](int16_t* to) { decoded_linear(in, map, scale, p, added, to); });
}

Result<int16_t> bind_neighbour_mean(const Array& z, const Array& m, int top, int left, int step) {
  Map map;
  const int16_t* in = map_of<int16_t>(z, "z", kAny, map);
  const float* weights = data<float>(m, "m", {4, map.c});
  const int reach = step / 2;
  require(step > 0 && step == 2 * reach && (top == 0 || top == reach) && (left == 0 || left == reach) && top + left > 0,
          "part: sites have no neighbours there");
  require(top < map.h && left < map.w, "part: there are no such sites");
  return computed(fresh<int16_t>({map.n, (map.h - top + step - 1) / step, (map.w - left + step - 1) / step, map.c}),
                  [&](int16_t* to) { neighbour_mean(in, map, weights, top, left, step, to); });
}

Result<int8_t> bind_coarseness(const Array& row, const Array& offset, int skip, int strength) {
  Map map;
  const uint8_t* rows = map_of<uint8_t>(row, "row", kAny, map);
  even(map);
  const int32_t* offsets = data<int32_t>(offset, "offset", {4, map.c});
  for (int i = 0; i < 4 * map.c; ++i) {
    require(offsets[i] >= -kMeanLimit && offsets[i] <= kMeanLimit, "offset: expected at most 2^20");
  }
  skip_of(skip);
  require(strength >= 0 && strength <= 15, "strength: expected 0 to 15");
  return computed(fresh<int8_t>({map.n, map.h, map.w}),
                  [&](int8_t* to) { coarseness(rows, offsets, map, skip, strength, to); });
}

Result<uint8_t> bind_coarser_rows(const Array& row, const Array& coarse, int skip) {
  Map map;
  const uint8_t* rows = map_of<uint8_t>(row, "row", kAny, map);
  const int8_t* by = data<int8_t>(coarse, "coarse", {map.n, map.h, map.w});
  skip_of(skip);
  return computed(like<uint8_t>(row, map.c),
                  [&](uint8_t* to) { coarser_rows(rows, by, map.n * map.h * map.w, map.c, skip, to); });
}

const float* factors_of(const std::optional<Array>& a, const char* name, const Map& map) {
  if (!a) return nullptr;
  const float* p = data<float>(*a, name, {map.n, map.h, map.w});
  for (int64_t i = 0; i < map.n * map.h * map.w; ++i) require(p[i] > 0.125f && p[i] < 8, "factors: expected 1/8 to 8");
  return p;
}

Result<int32_t> bind_residuals(const Array& y, const Array& mean, const Array& gain, int step,
                               const std::optional<Array>& finer) {
  Map map;
  const int16_t* in = group_map<int16_t>(y, "y", map);
  const int32_t* means = data<int32_t>(mean, "mean", {map.n, map.h, map.w, map.c / 4});
  const float* gains = data<float>(gain, "gain", {map.c});
  step_of(step);
  const float* factors = factors_of(finer, "finer", map);
  return computed(like<int32_t>(y, map.c / 4),
                  [&](int32_t* to) { residuals(in, means, gains, factors, map, step, to); });
}

void bind_reconstruct(const Array& q, const Array& mean, const Array& inv, int step, const Array& y_hat,
                      const std::optional<Array>& coarser) {
  Map map;
  group_map<int16_t>(y_hat, "y_hat", map);
  require(y_hat.writeable(), "y_hat: not writable");
  const int16_t* symbols = data<int16_t>(q, "q", {map.n, map.h, map.w, map.c / 4});
  const int32_t* means = data<int32_t>(mean, "mean", {map.n, map.h, map.w, map.c / 4});
  const float* steps = data<float>(inv, "inv", {map.c});
  step_of(step);
  const float* factors = factors_of(coarser, "coarser", map);
  auto* to = static_cast<int16_t*>(y_hat.data());
  Running running;
  reconstruct(symbols, means, steps, factors, map, step, to);
}

void divisible(const Map& map, int size) {
  require(size >= 1 && size <= 64 && map.h % size == 0 && map.w % size == 0,
          "size: expected at most 64 and a divisor of height and width");
}

Shape patch_shape(const Map& map, int s) { return {map.n, map.h / s, map.w / s, map.c * s * s}; }

Result<int16_t> bind_patches(const Array& image, int size) {
  Map map;
  const uint8_t* in = map_of<uint8_t>(image, "image", 3, map);
  divisible(map, size);
  return computed(fresh<int16_t>(patch_shape(map, size)), [&](int16_t* to) { patches_from_image(in, map, size, to); });
}

template <class T>
nb::object to_depth(const Array& x, int s) {
  Map map;
  const T* in = map_of<T>(x, "x", kAny, map);
  divisible(map, s);
  return computed(fresh<T>(patch_shape(map, s)), [&](T* to) { space_to_depth(in, map, s, sizeof(T), to); }).array;
}

template <class T>
nb::object to_space(const Array& x, int s, int64_t channels, const char* name) {
  Map map;
  const T* in = map_of<T>(x, name, channels, map);
  require(map.c % (s * s) == 0, "channels must be a multiple of the block area");
  const Map large = {map.n, map.h * s, map.w * s, map.c / (s * s)};
  return computed(fresh<T>({large.n, large.h, large.w, large.c}),
                  [&](T* to) { depth_to_space(in, large, s, sizeof(T), to); })
      .array;
}

nb::object bind_image(const Array& patches, int size) {
  require(size >= 1 && size <= 64, "size: expected 1 to 64");
  return to_space<uint8_t>(patches, size, int64_t{3} * size * size, "patches");
}

// Height and width of a picture [H, W, 3].
const uint8_t* picture_of(const Array& a, const char* name, int64_t& height, int64_t& width) {
  const uint8_t* p = data<uint8_t>(a, name, {kAny, kAny, 3});
  height = a.shape(0), width = a.shape(1);
  require(height >= 1 && width >= 1 && width <= (1 << 24), "picture: expected at least one pixel");
  return p;
}

Result<uint8_t> bind_restore(const Array& picture, const Array& w) {
  int64_t height, width;
  const uint8_t* from = picture_of(picture, "picture", height, width);
  const int8_t* weights = data<int8_t>(w, "w", {3, kAny});
  const int64_t rings = w.shape(1) / 6;
  require(w.shape(1) % 6 == 0 && rings >= 1 && rings <= kRings, "w: expected [3, 6 R] of 1 to 3 rings R");
  return computed(fresh<uint8_t>({height, width, 3}),
                  [&](uint8_t* to) { restore(from, height, width, weights, static_cast<int>(rings), to); });
}

Result<int64_t> bind_restore_sums(const Array& picture, const Array& image, int64_t stride) {
  int64_t height, width;
  const uint8_t* found = picture_of(picture, "picture", height, width);
  const uint8_t* wanted = data<uint8_t>(image, "image", {height, width, 3});
  require(stride >= 1 && stride <= (1 << 24), "stride: expected at least 1");
  return computed(fresh<int64_t>({kRingFeatures, kRingFeatures + 3}),
                  [&](int64_t* to) { restore_sums(found, wanted, height, width, stride, to); });
}

bool is_byte(const Array& x) { return x.is<int8_t>(); }

nb::object bind_to_depth(const Array& x) { return is_byte(x) ? to_depth<int8_t>(x, 2) : to_depth<int16_t>(x, 2); }

nb::object bind_to_space(const Array& x) {
  return is_byte(x) ? to_space<int8_t>(x, 2, kAny, "x") : to_space<int16_t>(x, 2, kAny, "x");
}

GatedFfn checked_ffn(const Array& m_in, const PackedLinear& gate, float g, const PackedLinear& project) {
  require(gate.bits == 8 && project.bits == 8, "w: expected int8 weights");
  require(gate.o == 2 * project.k && project.o == gate.k, "weights: the layers of the block do not fit each other");
  fits(127 * 127, g);
  return {operand_multipliers(m_in, gate.k), gate, g, project};
}

Result<int16_t> depth_and_ffn(const Array& x, const Array& m_in, const PackedLinear& expand,
                              const PackedDepthwise& depthwise, const PackedLinear& project, const GatedFfn* ffn) {
  Map map;
  const int16_t* in = map_of<int16_t>(x, "x", expand.k, map);
  require(expand.bits == 8 && project.bits == 8, "w: expected int8 weights");
  require(depthwise.c == expand.o && project.k == expand.o && project.o == expand.k,
          "weights: the layers of the block do not fit each other");
  require(!ffn || ffn->gate.k == map.c, "weights: the two parts of the block do not fit each other");
  const float* scale = operand_multipliers(m_in, map.c);
  return computed(like<int16_t>(x, map.c),
                  [&](int16_t* to) { depth_block(in, map, scale, expand, depthwise, project, ffn, to); });
}

Result<int16_t> bind_depth_block(const Array& x, const Array& m_in, const PackedLinear& expand,
                                 const PackedDepthwise& depthwise, const PackedLinear& project) {
  return depth_and_ffn(x, m_in, expand, depthwise, project, nullptr);
}

Result<int16_t> bind_block(const Array& x, const Array& m_in, const PackedLinear& expand,
                           const PackedDepthwise& depthwise, const PackedLinear& project, const Array& ffn_in,
                           const PackedLinear& gate, float g, const PackedLinear& last) {
  const GatedFfn ffn = checked_ffn(ffn_in, gate, g, last);
  return depth_and_ffn(x, m_in, expand, depthwise, project, &ffn);
}

Result<int16_t> bind_ffn(const Array& x, const Array& m_in, const PackedLinear& gate, float g,
                         const PackedLinear& project) {
  const GatedFfn ffn = checked_ffn(m_in, gate, g, project);
  int64_t rows;
  const int16_t* in = rows_of<int16_t>(x, "x", gate.k, rows);
  return computed(like<int16_t>(x, gate.k), [&](int16_t* to) { gated_ffn(in, rows, ffn, to); });
}

// Choices.

void set_isa(const std::string& name) {
  const auto available = all_kernels();
  const Kernels* choice = name == "auto" ? &fastest_kernels() : nullptr;
  for (const Kernels* k : available)
    if (name == k->name) choice = k;
  if (!choice) throw BadInput("instruction set '" + name + "' is not available on this machine");
  if (choice == &kernels()) return;  // without the lock, which a forked child may find taken for ever
  nb::gil_scoped_release release;
  std::unique_lock<std::shared_mutex> lock(kernel_mutex);
  if (!use_kernels(*choice)) throw BadInput("the system does not let this process use " + name);
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Kernels* k : all_kernels()) names.emplace_back(k->name);
  return names;
}

PyObject* error_type = nullptr;  // what BadInput becomes; ValueError until set

}  // namespace

NB_MODULE(_cpu, m) {
  if (_import_array() < 0) throw nb::python_error();
  m.doc() = "Integer operations on NumPy arrays; dca_fast.ops.native is the interface.";
  nb::set_leak_warnings(false);  // layers that modules keep outlive the interpreter
  nb::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const BadInput& e) {
      PyErr_SetString(error_type ? error_type : PyExc_ValueError, e.what());
    }
  });
  m.def("set_error_type", [](const nb::object& type) {
    Py_XDECREF(error_type);
    error_type = type.inc_ref().ptr();
  });
  m.def("isas", &isas, "Instruction sets this machine can run, slowest first.");
  m.def("isa", [] { return std::string(kernels().name); });
  m.def("set_isa", &set_isa);
  m.def("threads", &threads);
  m.def("set_threads", &set_threads);

  nb::class_<PackedLinear>(m, "Linear").def("__init__", &make_linear);
  nb::class_<PackedDepthwise>(m, "Depthwise").def("__init__", &make_depthwise);
  nb::class_<PackedHead>(m, "Head").def("__init__", &make_head);
  nb::class_<PackedDecoded>(m, "Decoded").def("__init__", &make_decoded);

  m.def("operand8", &bind_operand<int8_t>);
  m.def("operand16", &bind_operand<int16_t>);
  m.def("add", &bind_add);
  m.def("linear_act", [](const Array& x, const PackedLinear& p, bool leaky) {
    return bind_linear<int8_t, int8_t>(x, p, leaky ? Epilogue::leaky : Epilogue::act);
  });
  m.def("linear_gate", &bind_gate);
  m.def("act_slope", &bind_act_slope);
  m.def("gate_slope", &bind_gate_slope);
  m.def("add_slope", &bind_add_slope);
  m.def("linear_add", &bind_feature<int8_t>);
  m.def("wide_linear", &bind_feature<int16_t>);
  m.def("decoded_linear", &bind_decoded);
  m.def("wide_pixels",
        [](const Array& x, const PackedLinear& p) { return bind_linear<int16_t, uint8_t>(x, p, Epilogue::pixels); });
  m.def("depthwise3x3", &bind_depthwise);
  m.def("window_attention", &bind_window_attention);
  m.def("token_attention", &bind_token_attention);
  m.def("head_params", &bind_head);
  m.def("quadtree_gather", &bind_gather);
  m.def("neighbour_mean", &bind_neighbour_mean);
  m.def("coarseness", &bind_coarseness);
  m.def("coarser_rows", &bind_coarser_rows);
  m.def("residuals", &bind_residuals);
  m.def("reconstruct", &bind_reconstruct);
  m.def("patches_from_image", &bind_patches);
  m.def("image_from_patches", &bind_image);
  m.def("restore", &bind_restore);
  m.def("restore_sums", &bind_restore_sums);
  m.def("space_to_depth2", &bind_to_depth);
  m.def("depth_to_space2", &bind_to_space);
  m.def("depth_block", &bind_depth_block);
  m.def("block", &bind_block);
  m.def("gated_ffn", &bind_ffn);
  m.def("window_block", &bind_window_block);
  m.def("token_block", &bind_token_block);
}
