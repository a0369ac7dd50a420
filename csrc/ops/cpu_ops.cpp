#include "cpu_ops.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>
#include <vector>

namespace dca {
namespace {

constexpr int kParameterPad = 64;
constexpr int64_t kElementWork = 16;  // an element moved or requantised takes as long as that many products

std::atomic<const Kernels*> in_use{nullptr};

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

// Operands of a strip, and somewhat more, because tiles are read whole.
char* operand_strip(Scratch purpose, int k, int bits = 8) {
  return scratch(purpose, kStrip * kernels().strip_stride(k, bits) + 64);
}

LinearTask strip_task(const PackedLinear& p, Epilogue epilogue) {
  const bool plain = epilogue == Epilogue::mean || epilogue == Epilogue::row;
  const bool gate = epilogue == Epilogue::gate;
  LinearTask t = {};
  t.w = p.matrix(plain ? Order::plain : gate ? Order::gate : Order::grouped);
  t.o = gate ? p.o / 2 : p.o;
  t.source = p.bits == 8 ? Source::int8 : Source::int16;
  t.epilogue = epilogue;
  t.scratch = operand_strip(Scratch::strip, p.k, p.bits);
  return t;
}

// Multipliers in the order of Order::grouped.
std::vector<float> grouped(const float* values, int64_t count) {
  const Kernels& kernel = kernels();
  std::vector<float> out(static_cast<size_t>(round_up(count, kParameterPad)), 0.0f);
  for (int base = 0; base < count; base += kernel.group)
    for (int i = 0; i < kernel.group; ++i) {
      const int column = base + kernel.grouped(i);
      if (column < count) out[static_cast<size_t>(base + i)] = values[column];
    }
  return out;
}

// One layer over a strip of a block; the caller says from what to what.
struct Step {
  LinearTask task;

  Step(const PackedLinear& p, int rows, Epilogue epilogue) : task(strip_task(p, epilogue)) { task.rows = rows; }
  Step& from_feature(const int16_t* x, const float* m_in, const int64_t* site = nullptr) {
    task.source = Source::feature;
    task.x = x;
    task.m_in = m_in;
    task.x_site = site;
    return *this;
  }
  Step& from_operands(const char* x) {
    task.source = Source::operand;
    task.x = x;
    return *this;
  }
  Step& from_bytes(const int8_t* x) {
    task.x = x;
    return *this;
  }
  Step& with_gate(float g) {
    task.g = g;
    return *this;
  }
  void to_operands(char* out) {
    task.operands = true;
    task.out = out;
    kernels().linear(task);
  }
  void to_bytes(int8_t* out) {
    task.out = out;
    kernels().linear(task);
  }
  void to_feature(int16_t* out, const int16_t* residual, const int64_t* site = nullptr) {
    task.out = out;
    task.residual = residual;
    task.out_site = site;
    kernels().linear(task);
  }
};

int64_t output_bytes(Epilogue epilogue) {
  return epilogue == Epilogue::add || epilogue == Epilogue::feature ? 2 : epilogue == Epilogue::mean ? 4 : 1;
}

// Intel's server cores issue two byte products a cycle and need the sums of a taller tile to keep both busy.
bool tall_is_faster() {
#if defined(__x86_64__) && defined(__GNUC__)
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

}  // namespace

int quadtree_group(int parity, int step) {
  constexpr int kOrder[4] = {0, 3, 2, 1};
  return parity ^ kOrder[step];
}

std::vector<const Kernels*> all_kernels() {
  std::vector<const Kernels*> found;
  const Kernels *slower = avx512_kernels(), *faster = avx512_tall_kernels();
  if (!tall_is_faster()) std::swap(slower, faster);
  for (const Kernels* k :
       {&scalar_kernels(), wasm_kernels(), neon_kernels(), avx2_kernels(), slower, faster, amx_kernels()})
    if (k && k->supported()) found.push_back(k);
  return found;
}

const Kernels& fastest_kernels() {
  std::vector<const Kernels*> found = all_kernels();
  while (found.back()->start && !found.back()->start()) found.pop_back();  // the scalar ones have nothing to ask for
  return *found.back();
}

const Kernels& kernels() {
  const Kernels* current = in_use.load(std::memory_order_relaxed);
  if (!current) in_use.store(current = &fastest_kernels());
  return *current;
}

bool use_kernels(const Kernels& choice) {
  if (choice.start && !choice.start()) return false;
  in_use.store(&choice);
  return true;
}

std::vector<float> padded(const float* values, int64_t count) {
  std::vector<float> out(static_cast<size_t>(round_up(count, kParameterPad)), 0.0f);
  std::copy(values, values + count, out.begin());
  return out;
}

PackedLinear::PackedLinear(const void* w, int bits_, const int32_t* bias, const float* m, int o_, int k_)
    : o(o_),
      k(k_),
      bits(bits_),
      w_(static_cast<const char*>(w), static_cast<const char*>(w) + static_cast<int64_t>(o_) * k_ * (bits_ / 8)),
      bias_(bias, bias + o_),
      m_(m, m + o_) {}

void PackedLinear::pack(Order order, Slot& slot) const {
  const Kernels& kernel = kernels();
  const int half = o / 2;
  const auto count = order == Order::gate ? 2 * round_up(half, kLanes) : o;
  std::vector<int64_t> start;
  std::vector<int32_t> bias;
  for (int position = 0; position < round_up(count, kernel.group); ++position) {
    const int base = position / kernel.group * kernel.group, block = position / kLanes;
    const int inner = block / 2 * kLanes + position % kLanes;
    const int row = order == Order::plain     ? position
                    : order == Order::grouped ? base + kernel.grouped(position - base)
                    : inner < half            ? block % 2 * half + inner
                                              : o;
    start.push_back(row < o ? static_cast<int64_t>(row) * k : -1);
    bias.push_back(row < o ? bias_[static_cast<size_t>(row)] : 0);
    slot.m.push_back(row < o ? m_[static_cast<size_t>(row)] : 0.0f);
  }
  slot.bias.resize(bias.size());
  const int columns = static_cast<int>(count);
  slot.matrix = kernel.pack_rows(w_.data(), bits, start.data(), columns, k, bias.data(),
                                 slot.blocks.reserve(kernel.matrix_bytes(columns, k, bits)), slot.bias.data());
  slot.matrix.m = slot.m.data();
}

const Matrix& PackedLinear::matrix(Order order) const {
  Slot& slot = slots_[static_cast<size_t>(kernels().slot)][static_cast<size_t>(order)];
  slot.once.call([&] { pack(order, slot); });
  return slot.matrix;
}

PackedDepthwise::PackedDepthwise(const int8_t* w, const int32_t* bias, const float* m, int c_)
    : c(c_), w_(w, w + 9 * static_cast<int64_t>(c_)), bias_(bias, bias + c_), m_(padded(m, c_)) {}

void PackedDepthwise::row(const char* const rows[3], int width, char* out) const {
  const Kernels& kernel = kernels();
  Slot& slot = slots_[static_cast<size_t>(kernel.slot)];
  slot.once.call([&] {
    slot.bias.resize(static_cast<size_t>(round_up(c, kParameterPad)));
    kernel.pack_depthwise(w_.data(), bias_.data(), c, slot.w.reserve(kernel.depthwise_bytes(c)), slot.bias.data());
  });
  kernel.depthwise(rows, width, c, slot.w.reserve(0), slot.bias.data(), m_.data(), out);
}

PackedHead::PackedHead(const int8_t* w, const int32_t* bias, const float* m_mean, const float* m_row,
                       const int32_t* start, int size_, int c_)
    : c(c_), size(size_) {
  for (int64_t g = 0; g < 4; ++g) {
    const auto i = static_cast<size_t>(g);
    const int64_t first = 2 * g * size, second = first + size, at = g * size;
    mean[i] = std::make_unique<PackedLinear>(w + first * c, 8, bias + first, m_mean + at, size, c);
    row[i] = std::make_unique<PackedLinear>(w + second * c, 8, bias + second, m_row + at, size, c);
    offset[i].assign(static_cast<size_t>(round_up(size, kLanes)), 0);
    std::copy(start + at, start + at + size, offset[i].begin());
  }
}

PackedDecoded::PackedDecoded(const int16_t* w, const int32_t* bias, const float* m, int o, int size_, int step_)
    : size(size_), step(step_) {
  std::vector<int16_t> columns(static_cast<size_t>(int64_t{o} * step * size));
  for (int parity = 0; parity < 4; ++parity) {
    int16_t* to = columns.data();
    for (int64_t i = 0; i < o; ++i)
      for (int earlier = 0; earlier < step; ++earlier, to += size) {
        const int16_t* from = w + (i * 4 + quadtree_group(parity, earlier)) * size;
        std::copy(from, from + size, to);
      }
    linear[static_cast<size_t>(parity)] = std::make_unique<PackedLinear>(columns.data(), 16, bias, m, o, step * size);
  }
}

void operand(const int16_t* x, const float* m, int64_t rows, int c, int bits, void* out) {
  const std::vector<float> scale = padded(m, c);
  for_strips(rows, rows * c * kElementWork, [&](int64_t first, int count) {
    kernels().operand(x + first * c, scale.data(), count, c, bits, static_cast<char*>(out) + first * c * (bits / 8));
  });
}

void linear(const void* x, int64_t rows, const PackedLinear& p, Epilogue epilogue, const int16_t* residual, void* out) {
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
    Step(p, count, Epilogue::gate).from_bytes(x + first * p.k).with_gate(g).to_bytes(out + first * (p.o / 2));
  });
}

namespace {

int64_t products(const GatedFfn& ffn) {
  return int64_t{ffn.gate.k} * ffn.gate.o + int64_t{ffn.project.k} * ffn.project.o;
}

// A strip of it, in place too; multipliers in the order of Order::grouped.
void gated_strip(const int16_t* x, int rows, const float* m_in, const GatedFfn& ffn, int16_t* out) {
  char* hidden = operand_strip(Scratch::gated, ffn.project.k);
  Step(ffn.gate, rows, Epilogue::gate).from_feature(x, m_in).with_gate(ffn.g).to_operands(hidden);
  Step(ffn.project, rows, Epilogue::add).from_operands(hidden).to_feature(out, x);
}

}  // namespace

void gated_ffn(const int16_t* x, int64_t rows, const GatedFfn& ffn, int16_t* out) {
  const int c = ffn.gate.k;
  const std::vector<float> scale = grouped(ffn.m_in, c);
  for_strips(rows, rows * products(ffn),
             [&](int64_t first, int count) { gated_strip(x + first * c, count, scale.data(), ffn, out + first * c); });
}

void depthwise3x3(const int8_t* x, const Map& map, const PackedDepthwise& p, int8_t* out) {
  const int64_t pitch = map.w * map.c, site = kernels().strip_stride(map.c, 8), row_bytes = map.w * site;
  parallel_for(map.n * map.h, map.n * map.h * pitch * kElementWork, [&](int64_t i) {
    char* rows = scratch(Scratch::hidden, static_cast<size_t>(4 * row_bytes));
    const char* window[3] = {rows, rows + row_bytes, rows + 2 * row_bytes};
    for (int64_t dy = -1; dy <= 1; ++dy) {
      char* row = rows + (dy + 1) * row_bytes;
      std::memset(row, kernels().zero, static_cast<size_t>(row_bytes));
      if (i % map.h + dy < 0 || i % map.h + dy >= map.h) continue;
      for (int64_t s = 0; s < map.w; ++s) kernels().pack8(x + (i + dy) * pitch + s * map.c, map.c, row + s * site);
    }
    char* mixed = rows + 3 * row_bytes;
    p.row(window, static_cast<int>(map.w), mixed);
    for (int64_t s = 0; s < map.w; ++s) kernels().unpack8(mixed + s * site, map.c, out + i * pitch + s * map.c);
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
  const GatedFfn* ffn;  // what follows it, or null
  const float* ffn_in;
  int16_t* out;

  // Hidden row y of image n, zeros outside the map.
  void fill(int64_t n, int64_t y, char* hidden, int64_t site) const {
    if (y < 0 || y >= map.h) {
      std::memset(hidden, kernels().zero, static_cast<size_t>(map.w * site));
      return;
    }
    const int16_t* row = x + (n * map.h + y) * map.w * map.c;
    for (int64_t i = 0; i < map.w; i += kStrip) {
      const int count = static_cast<int>(std::min<int64_t>(kStrip, map.w - i));
      Step(expand, count, Epilogue::leaky).from_feature(row + i * map.c, m_in).to_operands(hidden + i * site);
    }
  }

  // Output rows [first, last) of image n: three hidden rows in a ring, so they never leave the cache.
  void rows(int64_t n, int64_t first, int64_t last) const {
    const int64_t site = kernels().strip_stride(expand.o, 8), pitch = map.w * site;
    char* ring = scratch(Scratch::hidden, static_cast<size_t>(3 * pitch));
    char* mixed = scratch(Scratch::mixed, static_cast<size_t>(pitch + kStrip * site));
    const auto slot = [&](int64_t y) { return ring + (y + 3) % 3 * pitch; };
    fill(n, first - 1, slot(first - 1), site);
    fill(n, first, slot(first), site);
    for (int64_t y = first; y < last; ++y) {
      fill(n, y + 1, slot(y + 1), site);
      const char* window[3] = {slot(y - 1), slot(y), slot(y + 1)};
      depthwise.row(window, static_cast<int>(map.w), mixed);
      const int64_t at = (n * map.h + y) * map.w * map.c;
      for (int64_t i = 0; i < map.w; i += kStrip) {
        const int count = static_cast<int>(std::min<int64_t>(kStrip, map.w - i));
        int16_t* to = out + at + i * map.c;
        Step(project, count, Epilogue::add).from_operands(mixed + i * site).to_feature(to, x + at + i * map.c);
        if (ffn) gated_strip(to, count, ffn_in, *ffn, to);
      }
    }
  }
};

}  // namespace

void depth_block(const int16_t* x, const Map& map, const float* m_in, const PackedLinear& expand,
                 const PackedDepthwise& depthwise, const PackedLinear& project, const GatedFfn* ffn, int16_t* out) {
  constexpr int64_t kTall = 32;  // every part computes two hidden rows twice
  const std::vector<float> scale = grouped(m_in, map.c);
  const std::vector<float> ffn_in = ffn ? grouped(ffn->m_in, map.c) : std::vector<float>();
  const DepthBlock block = {x, map, scale.data(), expand, depthwise, project, ffn, ffn_in.data(), out};
  const int64_t sites = map.n * map.h * map.w;
  if (sites == 0) return;
  const int64_t busy = divide_up(threads(), map.n);
  const int64_t parts = threads() == 1 ? 1 : std::clamp<int64_t>(map.h / kTall, std::min(busy, map.h), 2 * busy);
  const int64_t height = divide_up(map.h, parts);
  const int64_t per_map = divide_up(map.h, height);
  const int64_t work = 2 * int64_t{map.c} * expand.o + (ffn ? products(*ffn) : 0);
  parallel_for(map.n * per_map, sites * work, [&](int64_t i) {
    const int64_t first = i % per_map * height;
    block.rows(i / per_map, first, std::min(map.h, first + height));
  });
}

namespace {

struct Windows {
  const Map& map;
  const Attention& attention;
  int64_t ny, nx;
  int area, depth;

  Windows(const Map& m, const Attention& a)
      : map(m), attention(a), ny(m.h / a.window), nx(m.w / a.window), area(a.window * a.window), depth(m.c / a.heads) {}

  int64_t count() const { return map.n * ny * nx; }

  // Sites of window i, and which of the wrapped regions they lie in; true if all lie in one.
  bool locate(int64_t i, int64_t* site, uint8_t* region) const {
    const int64_t wx = i % nx, wy = i / nx % ny, n = i / (nx * ny);
    for (int j = 0; j < area; ++j) {  // output site of the rolled map: input (y + shift) mod h
      const int64_t y = wy * attention.window + j / attention.window + attention.shift;
      const int64_t x = wx * attention.window + j % attention.window + attention.shift;
      site[j] = (n * map.h + y % map.h) * map.w + x % map.w;
      region[j] = static_cast<uint8_t>(2 * (y >= map.h) + (x >= map.w));
    }
    return region[0] == region[area - 1];
  }

  // All heads of one window; `region` null where nothing wraps, `site` null for 0, 1, 2...
  void run(const int8_t* q, const int8_t* k, const int8_t* v, int64_t channels, const int64_t* site,
           const uint8_t* region, int8_t* out, int64_t out_channels) const {
    for (int head = 0; head < attention.heads; ++head)
      for (int first = 0; first < area; first += kStrip) {
        AttentionTask t = {};
        t.q = q + head * depth + (site ? 0 : first * channels);
        t.k = k + head * depth;
        t.v = v + head * depth;
        t.out = out + head * depth + (site ? 0 : first * out_channels);
        t.channels = channels;
        t.out_channels = out_channels;
        t.q_site = site ? site + first : nullptr;
        t.k_site = site;
        t.rows = std::min(kStrip, area - first);
        t.keys = area;
        t.depth = depth;
        t.m = attention.m;
        t.bias = attention.bias + (static_cast<int64_t>(head) * area + first) * area;
        t.q_region = region ? region + first : nullptr;
        t.k_region = region;
        t.table = attention.table;
        t.scratch = scratch(Scratch::strip, kernels().attention_bytes(t.rows, t.keys, depth));
        kernels().attention(t);
      }
  }
};

}  // namespace

void window_attention(const int8_t* q, const int8_t* k, const int8_t* v, const Map& map, const Attention& attention,
                      int8_t* out) {
  const Windows windows(map, attention);
  parallel_for(windows.count(), map.n * map.h * map.w * windows.area * map.c * 2, [&](int64_t i) {
    int64_t* site = scratch_of<int64_t>(Scratch::sites, windows.area);
    uint8_t* region = scratch_of<uint8_t>(Scratch::regions, windows.area);
    const bool whole = windows.locate(i, site, region);
    windows.run(q, k, v, map.c, site, whole ? nullptr : region, out, map.c);
  });
}

void window_block(const int16_t* x, const Map& map, const float* m_in, const PackedLinear& qkv,
                  const Attention& attention, const PackedLinear& project, int16_t* out) {
  const std::vector<float> scale = grouped(m_in, map.c);
  const Windows windows(map, attention);
  const int64_t area = windows.area, c = map.c, together = std::max<int64_t>(1, kStrip / area);
  parallel_for(divide_up(windows.count(), together), map.n * map.h * map.w * c * (4 * c + 2 * area), [&](int64_t i) {
    const int64_t first = i * together, count = std::min(together, windows.count() - first), rows = count * area;
    int64_t* site = scratch_of<int64_t>(Scratch::sites, rows);
    uint8_t* region = scratch_of<uint8_t>(Scratch::regions, rows);
    int8_t* hidden = scratch_of<int8_t>(Scratch::hidden, rows * 3 * c);
    int8_t* mixed = scratch_of<int8_t>(Scratch::mixed, rows * c);
    bool whole[kStrip];
    for (int64_t j = 0; j < count; ++j) whole[j] = windows.locate(first + j, site + j * area, region + j * area);
    for (int64_t r = 0; r < rows; r += kStrip) {
      const int size = static_cast<int>(std::min<int64_t>(kStrip, rows - r));
      Step(qkv, size, Epilogue::act).from_feature(x, scale.data(), site + r).to_bytes(hidden + r * 3 * c);
    }
    for (int64_t j = 0; j < count; ++j) {
      const int8_t* q = hidden + j * area * 3 * c;
      const uint8_t* regions = whole[j] ? nullptr : region + j * area;
      windows.run(q, q + c, q + 2 * c, 3 * c, nullptr, regions, mixed + j * area * c, c);
    }
    for (int64_t r = 0; r < rows; r += kStrip) {
      const int size = static_cast<int>(std::min<int64_t>(kStrip, rows - r));
      Step(project, size, Epilogue::add).from_bytes(mixed + r * c).to_feature(out, x, site + r);
    }
  });
}

void token_attention(const int8_t* q, const int8_t* k, const int8_t* v, int64_t n, int64_t queries, int64_t keys, int c,
                     int heads, float m, const uint8_t* table, int8_t* out) {
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
    t.channels = t.out_channels = c;
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

namespace {

// The general attention over a strip of queries, from and to plain bytes.
void token_strip(const int8_t* q, int rows, const int8_t* k, const int8_t* v, int tokens, int c,
                 const Attention& attention, int8_t* out) {
  for (int head = 0; head < attention.heads; ++head) {
    AttentionTask t = {};
    t.depth = c / attention.heads;
    t.q = q + head * t.depth;
    t.k = k + head * t.depth;
    t.v = v + head * t.depth;
    t.out = out + head * t.depth;
    t.channels = t.out_channels = c;
    t.rows = rows;
    t.keys = tokens;
    t.m = attention.m;
    t.table = attention.table;
    t.wide = true;
    t.scratch = scratch(Scratch::strip, kernels().attention_bytes(rows, tokens, t.depth));
    kernels().attention(t);
  }
}

}  // namespace

void token_block(const int16_t* x, const Map& map, const int8_t* k, const int8_t* v, int tokens, const float* m_in,
                 const PackedLinear& query, const Attention& attention, const PackedLinear& project, int16_t* out) {
  const std::vector<float> scale = grouped(m_in, map.c);
  const int c = map.c;
  const int64_t sites = map.h * map.w, size = tokens > 4096 ? 12 : strip_rows(map.n * sites);
  const int64_t strips = divide_up(sites, size);
  const bool few =
      kernels().tokens && tokens <= kFewTokens && attention.heads <= kFewHeads && c == attention.heads * kFewDepth;
  const size_t packed_bytes = few ? kernels().tokens_bytes(attention.heads) : 0;
  char* packed = scratch(Scratch::tokens, packed_bytes * static_cast<size_t>(map.n));
  for (int64_t n = 0; few && n < map.n; ++n) {
    kernels().pack_tokens(k + n * tokens * c, v + n * tokens * c, attention.heads, tokens,
                          packed + static_cast<size_t>(n) * packed_bytes);
  }
  parallel_for(map.n * strips, map.n * sites * c * (2 * c + 2 * int64_t{tokens}), [&](int64_t i) {
    const int64_t n = i / strips, first = i % strips * size;
    const int rows = static_cast<int>(std::min(size, sites - first));
    const int16_t* feature = x + (n * sites + first) * c;
    char* hidden = operand_strip(Scratch::hidden, c);
    char* mixed = operand_strip(Scratch::mixed, c);
    Step start(query, rows, Epilogue::act), end(project, rows, Epilogue::add);
    start.from_feature(feature, scale.data());
    if (few) {
      start.to_operands(hidden);
      const char* own = packed + static_cast<size_t>(n) * packed_bytes;
      kernels().tokens({own, attention.heads, tokens, attention.m, attention.table, rows, hidden, mixed});
      end.from_operands(mixed);
    } else {
      int8_t* q = reinterpret_cast<int8_t*>(hidden);
      int8_t* mean = reinterpret_cast<int8_t*>(mixed);
      start.to_bytes(q);
      token_strip(q, rows, k + n * tokens * c, v + n * tokens * c, tokens, c, attention, mean);
      end = Step(project, rows, Epilogue::add).from_bytes(mean);
    }
    end.to_feature(out + (n * sites + first) * c, feature);
  });
}

namespace {

// body(image, parity, strip's sites as row numbers of the map, their count): strips of sites of one parity.
template <class F>
void for_parities(const Map& map, int64_t work, F&& body) {
  const int64_t half = map.w / 2, sites = map.h / 2 * half;
  const int64_t size = strip_rows(map.n * sites * 4), strips = divide_up(sites, size);
  parallel_for(map.n * 4 * strips, work, [&](int64_t i) {
    const int64_t first = i / 4 % strips * size, n = i / (strips * 4);
    const int parity = static_cast<int>(i % 4);
    const int count = static_cast<int>(std::min(size, sites - first));
    int64_t* site = scratch_of<int64_t>(Scratch::sites, count);
    for (int j = 0; j < count; ++j) {
      const int64_t y = (first + j) / half * 2 + (parity >> 1), x = (first + j) % half * 2 + (parity & 1);
      site[j] = (n * map.h + y) * map.w + x;
    }
    body(parity, site, count);
  });
}

}  // namespace

void decoded_linear(const int16_t* y_hat, const Map& map, const float* m, const PackedDecoded& p,
                    const int16_t* residual, int16_t* out) {
  const std::vector<float> scale = padded(m, map.c);
  const PackedLinear& any = *p.linear[0];
  for_parities(map, map.n * map.h * map.w * any.k * any.o, [&](int parity, const int64_t* site, int count) {
    const PackedLinear& layer = *p.linear[static_cast<size_t>(parity)];
    const int64_t stride = kernels().strip_stride(layer.k, 16);
    char* strip = operand_strip(Scratch::hidden, layer.k, 16);
    for (int j = 0; j < count; ++j)
      for (int step = 0; step < p.step; ++step) {
        const int group = quadtree_group(parity, step) * p.size;
        char* to = strip + j * stride + step * p.size * 2;
        kernels().operand(y_hat + site[j] * map.c + group, scale.data() + group, 1, p.size, 16, to);
      }
    Step(layer, count, Epilogue::add).from_operands(strip).to_feature(out, residual, site);
  });
}

void head_params(const int8_t* t, const Map& map, const PackedHead& p, int step, int skip, int64_t valid_h,
                 int64_t valid_w, int32_t* mean, uint8_t* row) {
  for_parities(map, map.n * map.h * map.w * map.c * p.size * 2, [&](int parity, const int64_t* site, int count) {
    const auto group = static_cast<size_t>(quadtree_group(parity, step));
    LinearTask task = strip_task(*p.mean[group], Epilogue::mean);
    task.x = t;
    task.rows = count;
    task.x_site = task.out_site = site;
    task.out = mean;
    kernels().linear(task);
    task.w = p.row[group]->matrix(Order::plain);
    task.source = Source::operand;  // as the first product left them
    task.x = task.scratch;
    task.epilogue = Epilogue::row;
    task.offset = p.offset[group].data();
    task.skip = skip;
    task.out = row;
    kernels().linear(task);
    for (int j = 0; j < count; ++j) {
      if (site[j] / map.w % map.h < valid_h && site[j] % map.w < valid_w) continue;
      std::memset(row + site[j] * p.size, kSkipRow, static_cast<size_t>(p.size));
    }
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
      std::memcpy(to + s * group_bytes, from + (s * 4 + group) * group_bytes, static_cast<size_t>(group_bytes));
    }
  });
}

namespace {

// body(first site of an image row, its two channel groups, their two parameter rows) for all rows of a map of groups.
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
    body(i * map.w, group, rows);
  });
}

}  // namespace

void residuals(const int16_t* y, const int32_t* mean, const float* gain, const float* finer, const Map& map, int step,
               int32_t* out) {
  const int size = map.c / 4;
  for_group_rows(map, gain, step, [&](int64_t site, const int group[2], const float* const gains[2]) {
    const int64_t at = site * size;
    kernels().residuals(y + 4 * at, mean + at, gains, group, finer ? finer + site : nullptr, static_cast<int>(map.w),
                        size, out + at);
  });
}

void reconstruct(const int16_t* q, const int32_t* mean, const float* inv, const float* coarser, const Map& map,
                 int step, int16_t* y_hat) {
  const int size = map.c / 4;
  for_group_rows(map, inv, step, [&](int64_t site, const int group[2], const float* const rows[2]) {
    const int64_t at = site * size;
    kernels().reconstruct(q + at, mean + at, rows, group, coarser ? coarser + site : nullptr, static_cast<int>(map.w),
                          size, y_hat + 4 * at);
  });
}

void neighbour_mean(const int16_t* z, const Map& map, const float* m, int top, int left, int step, int16_t* out) {
  const int reach = step / 2;
  const int corners[4][2] = {{-1, -1}, {-1, 1}, {1, -1}, {1, 1}}, sides[4][2] = {{-1, 0}, {1, 0}, {0, -1}, {0, 1}};
  const auto& ways = top == left ? corners : sides;
  const int64_t rows = divide_up(map.h - top, step), columns = divide_up(map.w - left, step);
  parallel_for(map.n * rows, map.n * rows * columns * map.c * kElementWork, [&](int64_t row) {
    const int16_t* const picture = z + row / rows * map.h * map.w * map.c;
    const int64_t y = top + row % rows * step;
    for (int64_t column = 0; column < columns; ++column) {
      const int16_t* from[4];
      int count = 0;
      for (const auto& way : ways) {
        const int64_t v = y + way[0] * reach, u = left + column * step + way[1] * reach;
        if (v >= 0 && v < map.h && u >= 0 && u < map.w) from[count++] = picture + (v * map.w + u) * map.c;
      }
      const float* const weight = m + (count - 1) * map.c;
      int16_t* const to = out + (row * columns + column) * map.c;
      for (int i = 0; i < map.c; ++i) {
        int32_t total = 0;
        for (int k = 0; k < count; ++k) total += from[k][i];
        constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: floats have steps of 1 there
        const float r = std::min(std::max(static_cast<float>(total) * weight[i], -32767.0f), 32767.0f);
        to[i] = static_cast<int16_t>((r + kMagic) - kMagic);
      }
    }
  });
}

void coarseness(const uint8_t* row, const int32_t* offset, const Map& map, int skip, int strength, int8_t* out) {
  const int first = std::min(map.c, kAqChannels);
  std::array<int32_t, 4> typical{};  // of the groups of the four parities in step 0
  for (int p = 0; p < 4; ++p)
    for (int i = 0; i < first; ++i) typical[static_cast<size_t>(p)] += offset[quadtree_group(p, 0) * map.c + i];
  parallel_for(map.n * map.h, map.n * map.h * map.w * first * kElementWork, [&](int64_t y) {
    for (int64_t x = 0; x < map.w; ++x) {
      const int64_t site = y * map.w + x;
      int32_t total = 0;
      for (int i = 0; i < first; ++i) {
        const int32_t r = row[site * map.c + i];
        total += r == kSkipRow ? skip - 1 : r;
      }
      total = 16 * total - typical[static_cast<size_t>((y % map.h & 1) * 2 + (x & 1))];
      out[site] = static_cast<int8_t>(std::clamp((total * strength + 2048) >> 12, -kAqReach, kAqReach));
    }
  });
}

namespace {

// Of one site. Bytes throughout, and nothing that a store of bytes could change, or compilers would not use vectors.
void coarser_site(const uint8_t* __restrict from, int size, int by, uint8_t skip, uint8_t* __restrict to) {
  constexpr uint8_t kLast = kMaxRow, kNone = kSkipRow;
  const auto down = static_cast<uint8_t>(std::max(by, 0)), up = static_cast<uint8_t>(std::max(-by, 0));
  for (int i = 0; i < size; ++i) {
    const uint8_t less = from[i] > down ? static_cast<uint8_t>(from[i] - down) : uint8_t{0};
    const auto more = static_cast<uint8_t>(less + up);  // of a row at most 127 + 128
    const uint8_t r = more < kLast ? more : kLast;
    const uint8_t kept = r < skip ? kNone : r;
    to[i] = from[i] == kNone ? kNone : kept;
  }
}

}  // namespace

void coarser_rows(const uint8_t* row, const int8_t* coarse, int64_t sites, int size, int skip, uint8_t* out) {
  constexpr int64_t kRun = 64;
  parallel_for(divide_up(sites, kRun), sites * size * kElementWork, [&](int64_t run) {
    for (int64_t site = run * kRun; site < std::min(sites, (run + 1) * kRun); ++site) {
      coarser_site(row + site * size, size, coarse[site], static_cast<uint8_t>(skip), out + site * size);
    }
  });
}

namespace {

// body(first element of a run, their number)
template <class F>
void for_runs(int64_t count, F&& body) {
  constexpr int64_t kRun = 1 << 14;
  parallel_for(divide_up(count, kRun), count * kElementWork,
               [&](int64_t i) { body(i * kRun, std::min(kRun, count - i * kRun)); });
}

}  // namespace

void add(const int16_t* x, const int16_t* y, int64_t count, int16_t* out) {
  for_runs(count, [&](int64_t at, int64_t n) { kernels().add_rows(x + at, y + at, n, out + at); });
}

void act_slope(const int8_t* e, const int8_t* h, bool leaky, int64_t count, int8_t* out) {
  for_runs(count, [&](int64_t at, int64_t n) { kernels().act_slope(e + at, h + at, leaky, n, out + at); });
}

void gate_slope(const int8_t* e, const int8_t* uv, float g, const float* m, int64_t rows, int half, int8_t* out) {
  const std::vector<float> scales[2] = {padded(m, half), padded(m + half, half)};
  const float* const both[2] = {scales[0].data(), scales[1].data()};
  parallel_for(divide_up(rows, kStrip), 2 * rows * half * kElementWork, [&](int64_t i) {
    const int64_t at = i * kStrip * half, count = std::min<int64_t>(kStrip, rows - i * kStrip);
    kernels().gate_slope(e + at, uv + 2 * at, g, both, count, half, out + 2 * at);
  });
}

void add_slope(const int16_t* slope, const int16_t* d, const int8_t* h, int64_t count, int16_t* out) {
  for_runs(count, [&](int64_t at, int64_t n) { kernels().add_slope(slope + at, d + at, h + at, n, out + at); });
}

namespace {

// body(run of s * c elements in the larger map, the same run among the patches), both as element offsets.
template <class F>
void for_runs(const Map& map, int s, F&& body) {
  const int64_t run = static_cast<int64_t>(s) * map.c, across = map.w / s;
  // h is a multiple of s, so images need no extra care.
  parallel_for(map.n * map.h / s, map.n * map.h * map.w * map.c * kElementWork, [&](int64_t i) {
    for (int64_t dy = 0; dy < s; ++dy)
      for (int64_t x = 0; x < across; ++x)
        body(((i * s + dy) * across + x) * run, ((i * across + x) * s + dy) * run, run);
  });
}

}  // namespace

void patches_from_image(const uint8_t* image, const Map& map, int size, int16_t* out) {
  for_runs(map, size, [&](int64_t from, int64_t to, int64_t run) {
    for (int64_t j = 0; j < run; ++j) out[to + j] = static_cast<int16_t>(image[from + j] - 128);
  });
}

namespace {

constexpr int64_t kRestoreWork =
    256;  // products that the features of a pixel, and three weighted sums, take as long as

// Rows of a picture, each colour by itself and wider by kRingReach on both sides.
class Planes {
 public:
  Planes(int64_t rows, int64_t width)
      : width_(width), stride_(width + 2 * kRingReach), values_(static_cast<size_t>(3 * rows * stride_)) {}

  void load(int64_t row, const uint8_t* pixels) {
    int16_t* to[3];
    for (int c = 0; c < 3; ++c) to[c] = values_.data() + (3 * row + c) * stride_ + kRingReach;
    kernels().colours(pixels, width_, to);
    for (int16_t* colour : to)
      for (int64_t x = 1; x <= kRingReach; ++x) {
        colour[-x] = colour[0];
        colour[width_ - 1 + x] = colour[width_ - 1];
      }
  }

  // Around row + kRingReach.
  RingRows around(int64_t row) const {
    RingRows out;
    for (int64_t y = 0; y <= 2 * kRingReach; ++y)
      for (int64_t c = 0; c < 3; ++c) out.at[y][c] = values_.data() + (3 * (row + y) + c) * stride_ + kRingReach;
    return out;
  }

 private:
  int64_t width_, stride_;
  std::vector<int16_t> values_;
};

}  // namespace

void restore(const uint8_t* picture, int64_t height, int64_t width, const int8_t* w, int rings, uint8_t* out) {
  constexpr int64_t kBand = 32;
  parallel_for(divide_up(height, kBand), height * width * kRestoreWork, [&](int64_t band) {
    const int64_t top = band * kBand, rows = std::min(kBand, height - top);
    Planes planes(rows + 2 * kRingReach, width);
    for (int64_t y = 0; y < rows + 2 * kRingReach; ++y)
      planes.load(y, picture + std::clamp<int64_t>(top + y - kRingReach, 0, height - 1) * width * 3);
    for (int64_t y = 0; y < rows; ++y)
      kernels().restore(planes.around(y), static_cast<int>(width), w, rings, out + (top + y) * width * 3);
  });
}

void restore_sums(const uint8_t* picture, const uint8_t* image, int64_t height, int64_t width, int64_t stride,
                  int64_t* sums) {
  constexpr int64_t kRows = 16, kAll = kRingFeatures + 3, kSums = kRingFeatures * kAll;
  const int64_t rows = divide_up(height, stride), tasks = divide_up(rows, kRows);
  std::vector<int64_t> parts(static_cast<size_t>(tasks * kSums));
  parallel_for(tasks, rows * width * kRestoreWork, [&](int64_t task) {
    Planes planes(2 * kRingReach + 1, width);
    for (int64_t i = task * kRows; i < std::min(rows, (task + 1) * kRows); ++i) {
      for (int64_t y = 0; y <= 2 * kRingReach; ++y)
        planes.load(y, picture + std::clamp<int64_t>(i * stride + y - kRingReach, 0, height - 1) * width * 3);
      kernels().restore_sums(planes.around(0), static_cast<int>(width), image + i * stride * width * 3,
                             parts.data() + task * kSums);
    }
  });
  for (int64_t a = 0; a < kRingFeatures; ++a)
    for (int64_t b = a; b < kAll; ++b) {
      int64_t sum = 0;
      for (int64_t task = 0; task < tasks; ++task) sum += parts[static_cast<size_t>(task * kSums + a * kAll + b)];
      sums[a * kAll + b] = sum;
      if (b < kRingFeatures) sums[b * kAll + a] = sum;
    }
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
