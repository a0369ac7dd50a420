#include "cpu_ops.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace dca {
namespace {

constexpr int kParameterPad = 64;
constexpr int64_t kElementWork = 16;  // an element moved or requantised takes as long as that many products

std::atomic<const Kernels*> in_use{nullptr};

int quadtree_group(int parity, int step) {
  constexpr int kOrder[4] = {0, 3, 2, 1};
  return parity ^ kOrder[step];
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows of a strip: fewer than kStrip if that is what it takes to give every thread two of them.
int64_t strip_rows(int64_t rows) {
  if (threads() == 1) return kStrip;
  return std::clamp<int64_t>(round_up(divide_up(rows, 2 * threads()), 12), 12, kStrip);
}

// body(first row, number of rows) for all strips.
template <class F>
void for_strips(int64_t rows, int64_t work, F&& body) {
  const int64_t size = strip_rows(rows);
  parallel_for(divide_up(rows, size), work,
               [&](int64_t i) { body(i * size, static_cast<int>(std::min(size, rows - i * size))); });
}

LinearTask strip_task(const PackedLinear& p, Epilogue epilogue) {
  LinearTask t = {};
  t.w = p.matrix();
  t.m = p.m();
  t.source = p.bits == 8 ? Source::int8 : Source::int16;
  t.epilogue = epilogue;
  t.scratch = scratch(Scratch::strip, kernels().strip_bytes(p.k));
  return t;
}

void linear_strip(const PackedLinear& p, const int8_t* x, int rows, Epilogue epilogue,
                  const int16_t* residual, void* out) {
  LinearTask t = strip_task(p, epilogue);
  t.x = x;
  t.rows = rows;
  t.residual = residual;
  t.out = out;
  kernels().linear(t);
}

void feature_strip(const PackedLinear& p, const int16_t* x, const float* m_in, int rows, Epilogue epilogue,
                   int8_t* out) {
  LinearTask t = strip_task(p, epilogue);
  t.source = Source::feature;
  t.x = x;
  t.m_in = m_in;
  t.rows = rows;
  t.out = out;
  kernels().linear(t);
}

int64_t output_bytes(Epilogue epilogue) {
  return epilogue == Epilogue::add || epilogue == Epilogue::feature ? 2 : epilogue == Epilogue::mean ? 4 : 1;
}

}  // namespace

std::vector<const Kernels*> all_kernels() {
  std::vector<const Kernels*> found;
  for (const Kernels* k : {&scalar_kernels(), avx2_kernels(), avx512_kernels()})
    if (k && k->supported()) found.push_back(k);
  return found;
}

const Kernels& kernels() {
  const Kernels* current = in_use.load(std::memory_order_relaxed);
  if (!current) in_use.store(current = all_kernels().back());
  return *current;
}

void use_kernels(const Kernels& choice) { in_use.store(&choice); }

std::vector<float> padded(const float* values, int64_t count) {
  std::vector<float> out(static_cast<size_t>(round_up(count, kParameterPad)), 0.0f);
  std::copy(values, values + count, out.begin());
  return out;
}

PackedLinear::PackedLinear(const void* w, int bits_, const int32_t* bias, const float* m, int o_, int k_)
    : o(o_),
      k(k_),
      bits(bits_),
      w_(static_cast<const char*>(w),
         static_cast<const char*>(w) + static_cast<int64_t>(o_) * k_ * (bits_ / 8)),
      bias_(bias, bias + o_),
      m_(padded(m, o_)) {}

const Matrix& PackedLinear::matrix() const {
  const Kernels& kernel = kernels();
  Slot& slot = slots_[static_cast<size_t>(kernel.slot)];
  std::call_once(slot.once, [&] {
    std::vector<int64_t> start(static_cast<size_t>(o));
    for (int i = 0; i < o; ++i) start[static_cast<size_t>(i)] = static_cast<int64_t>(i) * k;
    slot.bias.resize(static_cast<size_t>(round_up(o, kParameterPad)));
    slot.matrix = kernel.pack_rows(w_.data(), bits, start.data(), o, k, bias_.data(),
                                   slot.blocks.reserve(kernel.matrix_bytes(o, k, bits)), slot.bias.data());
  });
  return slot.matrix;
}

PackedDepthwise::PackedDepthwise(const int8_t* w, const int32_t* bias, const float* m, int c_)
    : c(c_), w_(w, w + 9 * static_cast<int64_t>(c_)), bias_(bias, bias + c_), m_(padded(m, c_)) {}

void PackedDepthwise::row(const int8_t* const rows[3], int width, int8_t* out) const {
  const Kernels& kernel = kernels();
  Slot& slot = slots_[static_cast<size_t>(kernel.slot)];
  std::call_once(slot.once, [&] {
    slot.bias.resize(static_cast<size_t>(round_up(c, kParameterPad)));
    kernel.pack_depthwise(w_.data(), bias_.data(), c, slot.w.reserve(kernel.depthwise_bytes(c)),
                          slot.bias.data());
  });
  kernel.depthwise(rows, width, c, slot.w.reserve(0), slot.bias.data(), m_.data(), out);
}

void operand(const int16_t* x, const float* m, int64_t rows, int c, int bits, void* out) {
  const std::vector<float> scale = padded(m, c);
  for_strips(rows, rows * c * kElementWork, [&](int64_t first, int count) {
    kernels().operand(x + first * c, scale.data(), count, c, bits,
                      static_cast<char*>(out) + first * c * (bits / 8));
  });
}

void linear(const void* x, int64_t rows, const PackedLinear& p, Epilogue epilogue, const int16_t* residual,
            void* out) {
  for_strips(rows, rows * p.k * p.o, [&](int64_t first, int count) {
    LinearTask t = strip_task(p, epilogue);
    t.x = static_cast<const char*>(x) + first * p.k * (p.bits / 8);
    t.rows = count;
    t.residual = residual ? residual + first * p.o : nullptr;
    t.out = static_cast<char*>(out) + first * p.o * output_bytes(epilogue);
    kernels().linear(t);
  });
}

void linear_gate(const int8_t* x, int64_t rows, const PackedLinear& p, float g, int8_t* out) {
  for_strips(rows, rows * p.k * p.o, [&](int64_t first, int count) {
    int8_t* hidden = scratch_of<int8_t>(Scratch::hidden, static_cast<int64_t>(count) * p.o);
    linear_strip(p, x + first * p.k, count, Epilogue::act, nullptr, hidden);
    kernels().gate(hidden, count, p.o / 2, g, out + first * (p.o / 2));
  });
}

void gated_ffn(const int16_t* x, int64_t rows, const float* m_in, const PackedLinear& gate, float g,
               const PackedLinear& project, int16_t* out) {
  const std::vector<float> scale = padded(m_in, gate.k);
  for_strips(rows, rows * (int64_t{gate.k} * gate.o + int64_t{project.k} * project.o), [&](int64_t first, int count) {
    const int16_t* feature = x + first * gate.k;
    int8_t* hidden = scratch_of<int8_t>(Scratch::hidden, static_cast<int64_t>(count) * gate.o);
    int8_t* mixed = scratch_of<int8_t>(Scratch::mixed, static_cast<int64_t>(count) * project.k);
    feature_strip(gate, feature, scale.data(), count, Epilogue::act, hidden);
    kernels().gate(hidden, count, project.k, g, mixed);
    linear_strip(project, mixed, count, Epilogue::add, feature, out + first * project.o);
  });
}

void depthwise3x3(const int8_t* x, const Map& map, const PackedDepthwise& p, int8_t* out) {
  const int64_t pitch = map.w * map.c;
  parallel_for(map.n * map.h, map.n * map.h * pitch * kElementWork, [&](int64_t i) {
    const int64_t y = i % map.h;
    int8_t* zeros = scratch_of<int8_t>(Scratch::zeros, pitch);
    if (y == 0 || y == map.h - 1) std::memset(zeros, 0, static_cast<size_t>(pitch));
    const int8_t* row = x + i * pitch;
    const int8_t* rows[3] = {y > 0 ? row - pitch : zeros, row, y < map.h - 1 ? row + pitch : zeros};
    p.row(rows, static_cast<int>(map.w), out + i * pitch);
  });
}

namespace {

struct DepthBlock {
  const int16_t* x;
  Map map;
  const float* m_in;
  const PackedLinear& expand;
  const PackedDepthwise& depthwise;
  const PackedLinear& project;
  int16_t* out;

  // Hidden row y of image n, zeros outside the map.
  void fill(int64_t n, int64_t y, int8_t* hidden) const {
    if (y < 0 || y >= map.h) {
      std::memset(hidden, 0, static_cast<size_t>(map.w * expand.o));
      return;
    }
    const int16_t* row = x + (n * map.h + y) * map.w * map.c;
    for (int64_t i = 0; i < map.w; i += kStrip) {
      const int count = static_cast<int>(std::min<int64_t>(kStrip, map.w - i));
      feature_strip(expand, row + i * map.c, m_in, count, Epilogue::leaky, hidden + i * expand.o);
    }
  }

  // Output rows [first, last) of image n: three hidden rows in a ring, so they never leave the cache.
  void rows(int64_t n, int64_t first, int64_t last) const {
    const int64_t pitch = map.w * expand.o;
    int8_t* ring = scratch_of<int8_t>(Scratch::hidden, 3 * pitch);
    int8_t* mixed = scratch_of<int8_t>(Scratch::mixed, pitch);
    const auto slot = [&](int64_t y) { return ring + (y + 3) % 3 * pitch; };
    fill(n, first - 1, slot(first - 1));
    fill(n, first, slot(first));
    for (int64_t y = first; y < last; ++y) {
      fill(n, y + 1, slot(y + 1));
      const int8_t* window[3] = {slot(y - 1), slot(y), slot(y + 1)};
      depthwise.row(window, static_cast<int>(map.w), mixed);
      const int64_t at = (n * map.h + y) * map.w * map.c;
      for (int64_t i = 0; i < map.w; i += kStrip) {
        const int count = static_cast<int>(std::min<int64_t>(kStrip, map.w - i));
        linear_strip(project, mixed + i * expand.o, count, Epilogue::add, x + at + i * map.c,
                     out + at + i * map.c);
      }
    }
  }
};

}  // namespace

void depth_block(const int16_t* x, const Map& map, const float* m_in, const PackedLinear& expand,
                 const PackedDepthwise& depthwise, const PackedLinear& project, int16_t* out) {
  const std::vector<float> scale = padded(m_in, map.c);
  const DepthBlock block = {x, map, scale.data(), expand, depthwise, project, out};
  const int64_t sites = map.n * map.h * map.w;
  if (sites == 0) return;
  // Every part computes two hidden rows twice: parts as tall as keeps the threads busy.
  const int64_t parts =
      threads() == 1 ? 1 : std::clamp<int64_t>(divide_up(2 * threads(), map.n), 1, divide_up(map.h, 4));
  const int64_t height = divide_up(map.h, parts);
  const int64_t per_map = divide_up(map.h, height);
  parallel_for(map.n * per_map, sites * 2 * map.c * expand.o, [&](int64_t i) {
    const int64_t first = i % per_map * height;
    block.rows(i / per_map, first, std::min(map.h, first + height));
  });
}

void window_attention(const int8_t* q, const int8_t* k, const int8_t* v, const Map& map, int heads,
                      int window, int shift, float m, const int32_t* bias, const uint8_t* table,
                      int8_t* out) {
  const int64_t ny = map.h / window, nx = map.w / window;
  const int area = window * window, depth = map.c / heads;
  parallel_for(map.n * ny * nx, map.n * map.h * map.w * area * map.c * 2, [&](int64_t i) {
    int64_t* site = scratch_of<int64_t>(Scratch::sites, area);
    uint8_t* region = scratch_of<uint8_t>(Scratch::regions, area);
    const int64_t wx = i % nx, wy = i / nx % ny, n = i / (nx * ny);
    for (int j = 0; j < area; ++j) {  // output site of the rolled map: input (y + shift) mod h
      const int64_t y = wy * window + j / window + shift, x = wx * window + j % window + shift;
      site[j] = (n * map.h + y % map.h) * map.w + x % map.w;
      region[j] = static_cast<uint8_t>(2 * (y >= map.h) + (x >= map.w));
    }
    const bool whole = region[0] == region[area - 1];  // nothing wraps inside this window
    for (int head = 0; head < heads; ++head)
      for (int first = 0; first < area; first += kStrip) {
        AttentionTask t = {};
        t.q = q + head * depth;
        t.k = k + head * depth;
        t.v = v + head * depth;
        t.out = out + head * depth;
        t.channels = map.c;
        t.q_site = site + first;
        t.k_site = site;
        t.rows = std::min(kStrip, area - first);
        t.keys = area;
        t.depth = depth;
        t.m = m;
        t.bias = bias + (static_cast<int64_t>(head) * area + first) * area;
        t.q_region = whole ? nullptr : region + first;
        t.k_region = whole ? nullptr : region;
        t.table = table;
        t.scratch = scratch(Scratch::strip, kernels().attention_bytes(t.rows, t.keys, depth));
        kernels().attention(t);
      }
  });
}

void token_attention(const int8_t* q, const int8_t* k, const int8_t* v, int64_t n, int64_t queries,
                     int64_t keys, int c, int heads, float m, const uint8_t* table, int8_t* out) {
  constexpr int64_t kScores = 1 << 20;  // bounds the scratch: rows x keys
  const int depth = c / heads;
  const int64_t size = std::clamp<int64_t>(kScores / keys / 12 * 12, 12, strip_rows(queries));
  const int64_t strips = divide_up(queries, size);
  parallel_for(n * heads * strips, n * queries * keys * c * 2, [&](int64_t i) {
    const int64_t first = i % strips * size, head = i / strips % heads, image = i / (strips * heads);
    AttentionTask t = {};
    t.q = q + (image * queries + first) * c + head * depth;
    t.k = k + image * keys * c + head * depth;
    t.v = v + image * keys * c + head * depth;
    t.out = out + (image * queries + first) * c + head * depth;
    t.channels = c;
    t.rows = static_cast<int>(std::min(size, queries - first));
    t.keys = static_cast<int>(keys);
    t.depth = depth;
    t.m = m;
    t.table = table;
    t.wide = true;
    t.scratch = scratch(Scratch::strip, kernels().attention_bytes(t.rows, t.keys, depth));
    kernels().attention(t);
  });
}

void head_params(const int8_t* t, const Map& map, const PackedHead& p, int step, int32_t* mean,
                 uint8_t* row) {
  const int64_t half = map.w / 2, sites = map.h / 2 * half;
  const int64_t size = strip_rows(map.n * sites * 4), strips = divide_up(sites, size);
  parallel_for(map.n * 4 * strips, map.n * sites * 4 * map.c * p.size * 2, [&](int64_t i) {
    const int64_t first = i % strips * size, n = i / (strips * 4);
    const int parity = static_cast<int>(i / strips % 4),
              count = static_cast<int>(std::min(size, sites - first));
    const auto group = static_cast<size_t>(quadtree_group(parity, step));
    int64_t* site = scratch_of<int64_t>(Scratch::sites, count);
    for (int j = 0; j < count; ++j) {
      const int64_t y = (first + j) / half * 2 + (parity >> 1), x = (first + j) % half * 2 + (parity & 1);
      site[j] = (n * map.h + y) * map.w + x;
    }
    LinearTask task = strip_task(*p.mean[group], Epilogue::mean);
    task.x = t;
    task.rows = count;
    task.site = site;
    task.out = mean;
    kernels().linear(task);
    const PackedLinear& scale = *p.row[group];
    task.w = scale.matrix();
    task.m = scale.m();
    task.epilogue = Epilogue::row;
    task.offset = p.offset[group].data();
    task.out = row;
    kernels().linear(task);
  });
}

void quadtree_gather(const void* x, const Map& map, int element, int step, void* out) {
  const int64_t group_bytes = static_cast<int64_t>(map.c / 4) * element;
  parallel_for(map.n * map.h, map.n * map.h * map.w * map.c * kElementWork, [&](int64_t i) {
    const char* from = static_cast<const char*>(x) + i * map.w * group_bytes * 4;
    char* to = static_cast<char*>(out) + i * map.w * group_bytes;
    const int odd = static_cast<int>(i % map.h & 1) * 2;
    for (int64_t s = 0; s < map.w; ++s) {
      const int group = quadtree_group(odd + static_cast<int>(s & 1), step);
      std::memcpy(to + s * group_bytes, from + (s * 4 + group) * group_bytes,
                  static_cast<size_t>(group_bytes));
    }
  });
}

namespace {

// body(image row, its two channel groups, their two parameter rows) for all rows of a map of groups.
template <class F>
void for_group_rows(const Map& map, const float* parameters, int step, F&& body) {
  const int size = map.c / 4;
  std::array<std::vector<float>, 4> group_parameters;
  for (int g = 0; g < 4; ++g) group_parameters[static_cast<size_t>(g)] = padded(parameters + g * size, size);
  parallel_for(map.n * map.h, map.n * map.h * map.w * map.c * kElementWork, [&](int64_t i) {
    const int odd = static_cast<int>(i % map.h & 1) * 2;
    const int group[2] = {quadtree_group(odd, step), quadtree_group(odd + 1, step)};
    const float* const rows[2] = {group_parameters[static_cast<size_t>(group[0])].data(),
                                  group_parameters[static_cast<size_t>(group[1])].data()};
    body(i * map.w * size, group, rows);
  });
}

}  // namespace

void quantize(const int16_t* y, const int32_t* mean, const float* gain, const Map& map, int step,
              int16_t* q) {
  for_group_rows(map, gain, step, [&](int64_t at, const int group[2], const float* const gains[2]) {
    kernels().quantize(y + 4 * at, mean + at, gains, group, static_cast<int>(map.w), map.c / 4, q + at);
  });
}

void reconstruct(const int16_t* q, const int32_t* mean, const float* inv, const Map& map, int step,
                 int16_t* y_hat) {
  for_group_rows(map, inv, step, [&](int64_t at, const int group[2], const float* const rows[2]) {
    kernels().reconstruct(q + at, mean + at, rows, group, static_cast<int>(map.w), map.c / 4, y_hat + 4 * at);
  });
}

void add(const int16_t* x, const int16_t* y, int64_t count, int16_t* out) {
  constexpr int64_t kRun = 1 << 14;
  parallel_for((count + kRun - 1) / kRun, count * kElementWork, [&](int64_t i) {
    kernels().add_rows(x + i * kRun, y + i * kRun, std::min(kRun, count - i * kRun), out + i * kRun);
  });
}

namespace {

// body(run of s * c elements in the larger map, the same run among the patches), both as element offsets.
template <class F>
void for_runs(const Map& map, int s, F&& body) {
  const int64_t run = static_cast<int64_t>(s) * map.c;
  parallel_for(map.n * map.h, map.n * map.h * map.w * map.c * kElementWork, [&](int64_t i) {
    const int64_t patch_row = i / s, dy = i % s;  // h is a multiple of s, so images need no extra care
    for (int64_t x = 0; x < map.w / s; ++x) {
      body(i * map.w * map.c + x * run, ((patch_row * (map.w / s) + x) * s + dy) * run, run);
    }
  });
}

}  // namespace

void patches_from_image(const uint8_t* image, const Map& map, int size, int16_t* out) {
  for_runs(map, size, [&](int64_t from, int64_t to, int64_t run) {
    for (int64_t j = 0; j < run; ++j) out[to + j] = static_cast<int16_t>(image[from + j] - 128);
  });
}

void space_to_depth(const void* x, const Map& map, int s, int element, void* out) {
  for_runs(map, s, [&](int64_t from, int64_t to, int64_t run) {
    std::memcpy(static_cast<char*>(out) + to * element, static_cast<const char*>(x) + from * element,
                static_cast<size_t>(run * element));
  });
}

void depth_to_space(const void* x, const Map& map, int s, int element, void* out) {
  for_runs(map, s, [&](int64_t to, int64_t from, int64_t run) {
    std::memcpy(static_cast<char*>(out) + to * element, static_cast<const char*>(x) + from * element,
                static_cast<size_t>(run * element));
  });
}

}  // namespace dca
