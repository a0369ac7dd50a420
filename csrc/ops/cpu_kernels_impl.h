// The kernels, written once over 16 lanes. Each instruction set includes this file inside its own anonymous
// namespace after it has defined I16 and F16 (16 x int32, 16 x float), their operations, `dot`, `lookup`, and
//   kTileRows x kTileBlocks: accumulators of 16 lanes held in registers; kTileRows divides kStrip
//   kBytes: whether dot<4> (bytes times signed bytes) exists besides dot<2> (pairs of int16)
//   kByteOffset: what a signed byte is raised by to be an operand of dot<4>: 128 if that takes unsigned ones, else 0
//   KEEP(x): keeps x in its register from here on, where the compiler needs that said
//   START: Kernels::start, if there is something to ask for
//   STRIP_ALIGN: bytes to a multiple of which rows of 8-bit operands are padded, if not 32
//   OWN_TILE, OWN_PRODUCTS, OWN_STORES, OWN_DEPTHWISE, OWN_TOKENS: what it implements itself instead of the general
//   code below

#if defined(__GNUC__)  // where a call would take a tile of accumulators out of the registers
#define INLINE inline __attribute__((always_inline))
#define SEPARATE __attribute__((noinline))  // registers for nothing but the tile
#else
#define INLINE inline
#define SEPARATE
#endif

#ifndef KEEP
#define KEEP(x)
#endif

#ifndef START
#define START nullptr
#endif

#ifndef STRIP_ALIGN
#define STRIP_ALIGN (2 * kLanes)
#endif

constexpr int kGroup = kTileBlocks * kLanes;     // columns of a tile
constexpr int32_t kMasked = -(1 << 30);          // score of a pair that must not see each other
constexpr int kKeyChunk = 8192;                  // keys summed in 32 bits: 8192 * 127 * 127 < 2^31
constexpr int kNarrowBits = 23, kWideBits = 40;  // of the reciprocals of attention

// Partial vectors: n < 16 valid lanes.

template <class T>
inline void store_lanes(T* p, I16 v, int n) {
  if (n >= kLanes) return store(p, v);
  T tmp[kLanes];
  store(tmp, v);
  std::memcpy(p, tmp, static_cast<size_t>(n) * sizeof(T));
}

template <class T>
inline I16 load_lanes(const T* p, int n) {
  if (n >= kLanes) return load(p);
  T tmp[kLanes] = {};
  std::memcpy(tmp, p, static_cast<size_t>(n) * sizeof(T));
  return load(tmp);
}

inline I16 clamp(I16 v, int lo, int hi) { return min(max(v, set(lo)), set(hi)); }

using Tile = I16[kTileRows][kTileBlocks];

inline I16 requantise(I16 acc, F16 m, int limit) {
  return round_clamp(mul(to_float(acc), m), static_cast<float>(-limit), static_cast<float>(limit));
}

// Packed weights and strips of operands.

inline int step_of(int bits) { return kBytes && bits == 8 ? 4 : 2; }

size_t matrix_bytes(int o, int k, int bits) {
  const int step = step_of(bits);
  return static_cast<size_t>(round_up(o, kGroup) * (round_up(k, step) / step) * 4);
}

template <int STEP, class T, class P>
void pack_row_blocks(const T* w, const int64_t* start, int o, int k, P* out) {
  for (int base = 0; base < o; base += kGroup)
    for (int word = 0; word < k; word += STEP)
      for (int i = base; i < base + kGroup; ++i, out += STEP) {
        const int count = start[i] < 0 ? 0 : k - word < STEP ? k - word : STEP;
        const T* p = w + start[i] + word;
        if (count == STEP) {
          for (int j = 0; j < STEP; ++j) out[j] = p[j];
        } else {
          for (int j = 0; j < STEP; ++j) out[j] = j < count ? p[j] : T{0};
        }
      }
}

Matrix pack_rows(const void* w, int bits, const int64_t* start, int o, int k, const int32_t* bias, char* blocks,
                 int32_t* packed_bias) {
  const int step = step_of(bits);
  const int8_t* bytes = static_cast<const int8_t*>(w);
  int16_t* pairs = reinterpret_cast<int16_t*>(blocks);
  if (step == 4) {
    pack_row_blocks<4>(bytes, start, o, k, reinterpret_cast<int8_t*>(blocks));
  } else if (bits == 8) {
    pack_row_blocks<2>(bytes, start, o, k, pairs);
  } else {
    pack_row_blocks<2>(static_cast<const int16_t*>(w), start, o, k, pairs);
  }
  for (int i = 0; i < round_up(o, kGroup); ++i) {
    uint32_t excess = 0;  // an operand x goes in as x + kByteOffset, so kByteOffset * sum(w) has to come off
    if (kByteOffset && step == 4 && start[i] >= 0) {
      int32_t sum = 0;
      for (int j = 0; j < k; ++j) sum += bytes[start[i] + j];
      excess = static_cast<uint32_t>(kByteOffset) * static_cast<uint32_t>(sum);
    }
    packed_bias[i] = static_cast<int32_t>((bias ? static_cast<uint32_t>(bias[i]) : 0u) - excess);
  }
  return {blocks, packed_bias, nullptr, o, k, step};
}

template <class P>
inline void interleave(P* __restrict out, const int8_t* a, const int8_t* b, int n) {
  for (int i = 0; i < n; ++i) {
    out[2 * i] = a[i];
    out[2 * i + 1] = b[i];
  }
}

inline void interleave(int8_t* __restrict out, const int8_t* a, const int8_t* b, const int8_t* c, const int8_t* d,
                       int n) {
  for (int i = 0; i < n; ++i) {
    out[4 * i] = a[i];
    out[4 * i + 1] = b[i];
    out[4 * i + 2] = c[i];
    out[4 * i + 3] = d[i];
  }
}

// Element (i, j) is w[start[j] + i]; for operands of 0..127, the weights of attention, which are taken as they are.
Matrix pack_columns(const int8_t* w, const int64_t* start, int o, int k, char* blocks, int32_t* zero_bias) {
  static const int8_t zeros[kGroup] = {};
  const int step = step_of(8);
  char* out = blocks;
  for (int base = 0; base < o; base += kGroup) {
    const int n = o - base < kGroup ? o - base : kGroup;
    for (int word = 0; word < k; word += step, out += kGroup * 4) {
      if (n < kGroup) std::memset(out, 0, kGroup * 4);
      const int8_t* p[4];
      for (int j = 0; j < step; ++j) p[j] = word + j < k ? w + start[word + j] + base : zeros;
      if (step == 4) {
        interleave(reinterpret_cast<int8_t*>(out), p[0], p[1], p[2], p[3], n);
      } else {
        interleave(reinterpret_cast<int16_t*>(out), p[0], p[1], n);
      }
    }
  }
  for (int i = 0; i < round_up(o, kGroup); ++i) zero_bias[i] = 0;
  return {blocks, zero_bias, nullptr, o, k, step};
}

int64_t strip_stride(int k, int bits) { return round_up(k, STRIP_ALIGN) * (step_of(bits) == 4 ? 1 : 2); }

void pack8(const int8_t* x, int k, char* out) {
  if (kBytes) {
    for (int i = 0; i < k; ++i) out[i] = static_cast<char>(x[i] + kByteOffset);
  } else {
    int16_t* wide = reinterpret_cast<int16_t*>(out);
    for (int i = 0; i < k; ++i) wide[i] = x[i];
  }
}

void unpack8(const char* x, int k, int8_t* out) {
  if (kBytes) {
    for (int i = 0; i < k; ++i) out[i] = static_cast<int8_t>(x[i] - kByteOffset);
  } else {
    const int16_t* wide = reinterpret_cast<const int16_t*>(x);
    for (int i = 0; i < k; ++i) out[i] = static_cast<int8_t>(wide[i]);
  }
}

#ifndef OWN_STORES

using Operand = std::conditional_t<kBytes, int8_t, int16_t>;
static_assert(kByteOffset == 0);

inline int grouped(int position) { return position; }

// A row of one tile: floats already multiplied, to be rounded, clamped and stored. n columns exist.
inline void store_bytes(void* out, const F16* r, int n, bool operands) {
  for (int j = 0; j < kTileBlocks && j * kLanes < n; ++j) {
    const I16 v = round_clamp(r[j], -127.0f, 127.0f);
    if (operands) {
      store(static_cast<Operand*>(out) + j * kLanes, v);
    } else {
      store_lanes(static_cast<int8_t*>(out) + j * kLanes, v, n - j * kLanes);
    }
  }
}

template <bool RESIDUAL>
inline void store_words(int16_t* out, const F16* r, int n, const int16_t* residual) {
  for (int j = 0; j < kTileBlocks && j * kLanes < n; ++j) {
    const int at = j * kLanes;
    I16 v = round_clamp(r[j], -32767.0f, 32767.0f);
    if (RESIDUAL) v = clamp(add(v, load_lanes(residual + at, n - at)), -32767, 32767);
    store_lanes(out + at, v, n - at);
  }
}

inline void store_pixels(uint8_t* out, const F16* r, int n) {
  for (int j = 0; j < kTileBlocks && j * kLanes < n; ++j) {
    const I16 v = add(round_clamp(r[j], -32767.0f, 32767.0f), set(128));
    store_lanes(reinterpret_cast<int8_t*>(out) + j * kLanes, clamp(v, 0, 255), n - j * kLanes);
  }
}

inline void pack_features(const int16_t* x, const int64_t* site, int rows, const float* m, int k, char* out,
                          int64_t stride) {
  for (int r = 0; r < rows; ++r, out += stride) {
    const int16_t* row = x + (site ? site[r] : r) * k;
    for (int i = 0; i < k; i += kLanes) {
      const I16 v = requantise(load_lanes(row + i, k - i), loadf(m + i), 127);
      store(reinterpret_cast<Operand*>(out) + i, v);
    }
  }
}

#endif

// The strip of operands of a task: packed into its scratch, unless it is one already.
const char* pack_strip(const LinearTask& t, int64_t& stride) {
  const int k = t.w.k;
  stride = round_up(k, STRIP_ALIGN) * (t.w.step == 4 ? 1 : 2);
  if (t.source == Source::operand) return static_cast<const char*>(t.x);
  if (t.source == Source::int16 && !t.x_site && t.rows % kTileRows == 0 && k % 2 == 0) {
    stride = int64_t{2} * k;
    return static_cast<const char*>(t.x);
  }
  if (t.source == Source::feature) {
    pack_features(static_cast<const int16_t*>(t.x), t.x_site, t.rows, t.m_in, k, t.scratch, stride);
    return t.scratch;
  }
  char* strip = t.scratch;
  for (int r = 0; r < t.rows; ++r, strip += stride) {
    const int64_t at = (t.x_site ? t.x_site[r] : r) * k;
    if (t.source == Source::int8) {
      pack8(static_cast<const int8_t*>(t.x) + at, k, strip);
    } else {
      std::memcpy(strip, static_cast<const int16_t*>(t.x) + at, static_cast<size_t>(k) * 2);
    }
  }
  return t.scratch;
}

// Matrix product.

#ifdef OWN_TILE
template <int STEP, class E>
void tile(const char* a, int64_t stride, const char* w, int words, const int32_t* bias, int row, int col,
          const E& epilogue);
#else
template <int STEP, class E>
SEPARATE void tile(const char* a, int64_t stride, const char* w, int words, const int32_t* bias, int row, int col,
                   const E& epilogue) {
  Tile acc;
  UNROLL for (int i = 0; i < kTileRows; ++i) {
    UNROLL for (int j = 0; j < kTileBlocks; ++j) { acc[i][j] = load(bias + j * kLanes); }
  }
  const char* quad[3] = {a, a + 4 * stride, a + 8 * stride};
  const int64_t stride3 = 3 * stride;
  for (int word = 0; word < words; ++word, w += kGroup * 4) {
    I16 b[kTileBlocks];
    UNROLL for (int j = 0; j < kTileBlocks; ++j) b[j] = load(reinterpret_cast<const int32_t*>(w) + j * kLanes);
    UNROLL for (int i = 0; i < kTileRows; ++i) {
      const char* p = quad[i / 4] + (i % 4 == 3 ? stride3 : i % 4 * stride) + word * 4;
      int32_t operand;
      std::memcpy(&operand, p, 4);
      const I16 x = set(operand);
      UNROLL for (int j = 0; j < kTileBlocks; ++j) acc[i][j] = dot<STEP>(acc[i][j], x, b[j]);
    }
  }
  UNROLL for (int i = 0; i < kTileRows; ++i) {
    UNROLL for (int j = 0; j < kTileBlocks; ++j) { KEEP(acc[i][j]); }
  }
  epilogue(row, col, acc);
}
#endif

template <class E>
void product(const Matrix& w, const char* strip, int64_t stride, int rows, const E& epilogue) {
  const int words = static_cast<int>(round_up(w.k, w.step) / w.step);
  const int64_t group = static_cast<int64_t>(words) * kGroup * 4;
  const char* blocks = w.blocks;
  for (int col = 0; col < w.o; col += kGroup, blocks += group)
    for (int row = 0; row < rows; row += kTileRows) {
      const char* a = strip + row * stride;
      if (kBytes && w.step == 4) {
        tile<kBytes ? 4 : 2>(a, stride, blocks, words, w.bias + col, row, col, epilogue);
      } else {
        tile<2>(a, stride, blocks, words, w.bias + col, row, col, epilogue);
      }
    }
}

// Those of layers; attention, whose matrices are small and change all the time, has the ones above.
#ifdef OWN_PRODUCTS
size_t layer_bytes(int o, int k, int bits);
Matrix pack_layer(const void* w, int bits, const int64_t* start, int o, int k, const int32_t* bias, char* blocks,
                  int32_t* packed_bias);
const char* pack_layer_strip(const LinearTask& t, int64_t& stride);
template <class E>
void layer_product(const LinearTask& task, const char* strip, int64_t stride, const E& epilogue);
#else
constexpr auto layer_bytes = matrix_bytes;
constexpr auto pack_layer = pack_rows;
constexpr auto pack_layer_strip = pack_strip;
template <class E>
void layer_product(const LinearTask& task, const char* strip, int64_t stride, const E& epilogue) {
  product(task.w, strip, stride, task.rows, epilogue);
}
#endif

struct Scales {
  F16 m[kTileBlocks];
  explicit Scales(const float* p) { UNROLL for (int j = 0; j < kTileBlocks; ++j) m[j] = loadf(p + j * kLanes); }
};

template <bool LEAKY>
struct Act {
  const LinearTask& t;
  int64_t stride;  // bytes
  INLINE void operator()(int row, int col, const Tile& acc) const {
    const Scales scale(t.w.m + col);
    char* base = static_cast<char*>(t.out) + (t.operands && !kBytes ? 2 : 1) * col;
    UNROLL for (int i = 0; i < kTileRows; ++i) {
      if (row + i >= t.rows) continue;
      F16 r[kTileBlocks];
      UNROLL for (int j = 0; j < kTileBlocks; ++j) {
        r[j] = mul(to_float(acc[i][j]), scale.m[j]);
        if (LEAKY) r[j] = max(r[j], mul(r[j], setf(0.125f)));
      }
      store_bytes(base + (row + i) * stride, r, t.o - col, t.operands);
    }
  }
};

template <bool RESIDUAL>
struct Feature {
  const LinearTask& t;
  INLINE void operator()(int row, int col, const Tile& acc) const {
    const Scales scale(t.w.m + col);
    UNROLL for (int i = 0; i < kTileRows; ++i) {
      if (row + i >= t.rows) continue;
      F16 r[kTileBlocks];
      UNROLL for (int j = 0; j < kTileBlocks; ++j) r[j] = mul(to_float(acc[i][j]), scale.m[j]);
      const int64_t at = (t.out_site ? t.out_site[row + i] : row + i) * t.o + col;
      store_words<RESIDUAL>(static_cast<int16_t*>(t.out) + at, r, t.o - col, RESIDUAL ? t.residual + at : nullptr);
    }
  }
};

struct Pixels {
  const LinearTask& t;
  INLINE void operator()(int row, int col, const Tile& acc) const {
    const Scales scale(t.w.m + col);
    UNROLL for (int i = 0; i < kTileRows; ++i) {
      if (row + i >= t.rows) continue;
      F16 r[kTileBlocks];
      UNROLL for (int j = 0; j < kTileBlocks; ++j) r[j] = mul(to_float(acc[i][j]), scale.m[j]);
      store_pixels(static_cast<uint8_t*>(t.out) + static_cast<int64_t>(row + i) * t.o + col, r, t.o - col);
    }
  }
};

#ifdef OWN_STORES

struct Gate {
  const LinearTask& t;
  int64_t stride;
  int32_t* held;  // not needed
  INLINE void operator()(int row, int col, const Tile& acc) const;
};

#else

struct Gate {  // one block at a time: a first half waits for its second half
  const LinearTask& t;
  int64_t stride;
  int32_t* held;  // [kStrip, kLanes]
  INLINE void operator()(int row, int col, const Tile& acc) const {
    static_assert(kTileBlocks == 1, "the halves are apart");
    const Scales scale(t.w.m + col);
    const int c = col / (2 * kLanes) * kLanes;
    UNROLL for (int i = 0; i < kTileRows; ++i) {
      if (row + i >= t.rows) continue;
      const I16 v = requantise(acc[i][0], scale.m[0], 127);
      int32_t* u = held + (row + i) * kLanes;
      if (col % (2 * kLanes) == 0) {
        store(u, v);
        continue;
      }
      const F16 r = mul(to_float(mul(load(u), v)), setf(t.g));
      char* out = static_cast<char*>(t.out) + (row + i) * stride + (t.operands && !kBytes ? 2 : 1) * c;
      store_bytes(out, &r, t.o - c, t.operands);
    }
  }
};

#endif

// An epilogue of single vectors in plain order, as one of tiles.
template <class E>
struct Blockwise {
  const E& epilogue;
  int rows, cols;
  INLINE void operator()(int row, int col, const Tile& acc) const {
    UNROLL for (int j = 0; j < kTileBlocks; ++j) {
      const int c = col + j * kLanes;
      if (c >= cols) break;
      const F16 m = epilogue.scale(c);
      UNROLL for (int i = 0; i < kTileRows; ++i) {
        if (row + i < rows) epilogue(row + i, c, cols - c, acc[i][j], m);
      }
    }
  }
};

template <class E>
void blockwise_product(const Matrix& w, const char* strip, int64_t stride, int rows, const E& epilogue) {
  product(w, strip, stride, rows, Blockwise<E>{epilogue, rows, w.o});
}

struct Plain {
  const LinearTask& t;
  int64_t at(int row, int col) const { return (t.out_site ? t.out_site[row] : row) * t.o + col; }
  F16 scale(int col) const { return loadf(t.w.m + col); }
};

struct Mean : Plain {
  INLINE void operator()(int row, int col, int n, I16 acc, F16 m) const {
    store_lanes(static_cast<int32_t*>(t.out) + at(row, col), requantise(acc, m, kMeanLimit), n);
  }
};

struct Row : Plain {
  INLINE void operator()(int row, int col, int n, I16 acc, F16 m) const {
    const I16 scale = add(add(requantise(acc, m, kMeanLimit), load(t.offset + col)), set(8));
    const I16 index = clamp(sra<4>(scale), 0, kMaxRow);
    const I16 skipped = sra<31>(sub(index, set(t.skip)));  // all ones, the last byte of which is kSkipRow
    store_lanes(static_cast<int8_t*>(t.out) + at(row, col), bit_or(index, skipped), n);
  }
};

void linear(const LinearTask& t) {
  int64_t stride;
  const char* strip = pack_layer_strip(t, stride);
  const int64_t out_stride = t.operands ? strip_stride(t.o, 8) : t.o;
  switch (t.epilogue) {
    case Epilogue::act:
      return layer_product(t, strip, stride, Act<false>{t, out_stride});
    case Epilogue::leaky:
      return layer_product(t, strip, stride, Act<true>{t, out_stride});
    case Epilogue::gate: {
      alignas(64) int32_t held[kTileBlocks == 1 ? kStrip * kLanes : 1];
      return layer_product(t, strip, stride, Gate{t, out_stride, held});
    }
    case Epilogue::add:
      return layer_product(t, strip, stride, Feature<true>{t});
    case Epilogue::feature:
      return layer_product(t, strip, stride, Feature<false>{t});
    case Epilogue::pixels:
      return layer_product(t, strip, stride, Pixels{t});
    case Epilogue::mean:
      return layer_product(t, strip, stride, Blockwise<Mean>{{{t}}, t.rows, t.w.o});
    case Epilogue::row:
      return layer_product(t, strip, stride, Blockwise<Row>{{{t}}, t.rows, t.w.o});
  }
}

// Element by element.

void operand(const int16_t* x, const float* m, int64_t rows, int c, int bits, void* out) {
  for (int64_t r = 0; r < rows; ++r)
    for (int i = 0; i < c; i += kLanes) {
      const int64_t at = r * c + i;
      const I16 v = load_lanes(x + at, c - i);
      if (bits == 8) {
        store_lanes(static_cast<int8_t*>(out) + at, requantise(v, loadf(m + i), 127), c - i);
      } else {
        store_lanes(static_cast<int16_t*>(out) + at, requantise(v, loadf(m + i), 32767), c - i);
      }
    }
}

void add_rows(const int16_t* x, const int16_t* y, int64_t count, int16_t* out) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int n = count - i < kLanes ? static_cast<int>(count - i) : kLanes;
    store_lanes(out + i, clamp(add(load_lanes(x + i, n), load_lanes(y + i, n)), -32767, 32767), n);
  }
}

inline I16 unsaturated(I16 h) {  // all ones where |h| < 127
  return sra<31>(sub(max(h, sub(set(0), h)), set(127)));
}

void act_slope(const int8_t* e, const int8_t* h, bool leaky, int64_t count, int8_t* out) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int n = count - i < kLanes ? static_cast<int>(count - i) : kLanes;
    const I16 operand = load_lanes(h + i, n);
    I16 v = load_lanes(e + i, n);
    if (leaky) {
      const I16 change = sub(sra<3>(add(v, set(4))), v);
      v = add(v, bit_and(change, sra<31>(sub(operand, set(1)))));
    }
    store_lanes(out + i, bit_and(v, unsaturated(operand)), n);
  }
}

void gate_slope(const int8_t* e, const int8_t* uv, float g, const float* const m[2], int64_t rows, int half,
                int8_t* out) {
  for (int64_t r = 0; r < rows; ++r, e += half, uv += 2 * half, out += 2 * half)
    for (int i = 0; i < half; i += kLanes) {
      const I16 u = load_lanes(uv + i, half - i), v = load_lanes(uv + half + i, half - i);
      const I16 product = requantise(mul(u, v), setf(g), 127);
      const I16 slope = bit_and(load_lanes(e + i, half - i), unsaturated(product));
      const I16 first = bit_and(mul(slope, v), unsaturated(u)), second = bit_and(mul(slope, u), unsaturated(v));
      store_lanes(out + i, requantise(first, loadf(m[0] + i), 127), half - i);
      store_lanes(out + half + i, requantise(second, loadf(m[1] + i), 127), half - i);
    }
}

void add_slope(const int16_t* slope, const int16_t* d, const int8_t* h, int64_t count, int16_t* out) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int n = count - i < kLanes ? static_cast<int>(count - i) : kLanes;
    const I16 more = bit_and(load_lanes(d + i, n), unsaturated(load_lanes(h + i, n)));
    store_lanes(out + i, clamp(add(load_lanes(slope + i, n), more), -32767, 32767), n);
  }
}

void residuals(const int16_t* y, const int32_t* mean, const float* const gain[2], const int group[2],
               const float* finer, int width, int size, int32_t* out) {
  for (int x = 0; x < width; ++x)
    for (int i = 0; i < size; i += kLanes) {
      const int64_t at = static_cast<int64_t>(x) * size + i;
      const I16 value = load_lanes(y + 4 * (at - i) + group[x & 1] * size + i, size - i);
      I16 t = sub(requantise(value, loadf(gain[x & 1] + i), kMeanLimit), load_lanes(mean + at, size - i));
      if (finer) t = requantise(t, setf(finer[x]), kResidualLimit);
      store_lanes(out + at, t, size - i);
    }
}

void reconstruct(const int16_t* q, const int32_t* mean, const float* const inv[2], const int group[2],
                 const float* coarser, int width, int size, int16_t* y_hat) {
  for (int x = 0; x < width; ++x)
    for (int i = 0; i < size; i += kLanes) {
      const int64_t at = static_cast<int64_t>(x) * size + i;
      I16 t = mul(load_lanes(q + at, size - i), set(kTrellisStep));
      if (coarser) t = requantise(t, setf(coarser[x]), kValueLimit);
      t = add(t, load_lanes(mean + at, size - i));
      int16_t* out = y_hat + 4 * (at - i) + group[x & 1] * size + i;
      store_lanes(out, requantise(t, loadf(inv[x & 1] + i), 32767), size - i);
    }
}

// Depthwise 3x3.

#ifndef OWN_DEPTHWISE

inline size_t depthwise_bytes(int c) { return static_cast<size_t>(9 * round_up(c, kLanes)) * sizeof(int32_t); }

inline void pack_depthwise(const int8_t* w, const int32_t* bias, int c, char* packed, int32_t* padded_bias) {
  int32_t* out = reinterpret_cast<int32_t*>(packed);
  for (int tap = 0; tap < 9; ++tap)
    for (int i = 0; i < round_up(c, kLanes); ++i) *out++ = i < c ? w[tap * c + i] : 0;
  for (int i = 0; i < c; ++i) padded_bias[i] = bias[i];
}

inline void depthwise(const char* const rows[3], int width, int c, const char* w, const int32_t* bias, const float* m,
                      char* out) {
  static_assert(!kBytes, "operands are int16");
  const int32_t* weights = reinterpret_cast<const int32_t*>(w);
  const int64_t tap = round_up(c, kLanes), pitch = strip_stride(c, 8) / 2;
  for (int x = 0; x < width; ++x)
    for (int i = 0; i < c; i += kLanes) {
      I16 acc = load(bias + i);
      const int first = x == 0, last = x == width - 1 ? 1 : 2;
      for (int dy = 0; dy < 3; ++dy)
        for (int dx = first; dx <= last; ++dx) {
          const I16 v = load(reinterpret_cast<const int16_t*>(rows[dy]) + (x + dx - 1) * pitch + i);
          acc = add(acc, mul(v, load(weights + (dy * 3 + dx) * tap + i)));
        }
      store(reinterpret_cast<int16_t*>(out) + x * pitch + i, requantise(acc, loadf(m + i), 127));
    }
}

#endif

// Attention.

struct Scores {
  int32_t* out;
  int64_t stride;
  float m;
  F16 scale(int) const { return setf(m); }
  INLINE void operator()(int row, int col, int, I16 acc, F16 f) const {
    store(out + row * stride + col, requantise(acc, f, kMeanLimit));
  }
};

struct Means {  // 23-bit reciprocals: |acc| <= 127 * sum of weights, so the product stays below 2^30
  const AttentionTask& t;
  const int64_t* reciprocal;
  F16 scale(int) const { return setf(0.0f); }
  INLINE void operator()(int row, int col, int n, I16 acc, F16) const {
    const I16 product = mul(acc, set(static_cast<int32_t>(reciprocal[row])));
    int8_t* out = t.out + (t.q_site ? t.q_site[row] : row) * t.out_channels + col;
    store_lanes(out, sra<kNarrowBits>(add(product, set(1 << (kNarrowBits - 1)))), n);
  }
};

struct Sums {
  int64_t* out;
  int64_t stride;
  F16 scale(int) const { return setf(0.0f); }
  INLINE void operator()(int row, int col, int, I16 acc, F16) const {
    int32_t lanes[kLanes];
    store(lanes, acc);
    int64_t* p = out + row * stride + col;
    for (int i = 0; i < kLanes; ++i) p[i] += lanes[i];
  }
};

struct AttentionSpace {  // the parts of AttentionTask::scratch
  int64_t keys_padded, depth_padded, q_stride, e_stride;
  size_t size = 0;
  int64_t *key_at, *sums;
  int32_t *k_bias, *v_bias, *scores;
  char *k_blocks, *v_blocks, *q_strip, *e_strip;
  uint8_t *distance, *weight;

  AttentionSpace(char* base, int rows, int keys, int depth) {
    const int64_t rows_padded = round_up(rows, kTileRows);
    keys_padded = round_up(keys, kGroup);
    depth_padded = round_up(depth, kGroup);
    q_stride = strip_stride(depth, 8);
    e_stride = keys_padded * (step_of(8) == 4 ? 1 : 2);
    take(base, key_at, keys_padded);
    take(base, sums, rows_padded * depth_padded);
    take(base, k_bias, keys_padded);
    take(base, v_bias, depth_padded);
    take(base, scores, rows_padded * keys_padded);
    take(base, k_blocks, static_cast<int64_t>(matrix_bytes(keys, depth, 8)));
    take(base, v_blocks, static_cast<int64_t>(matrix_bytes(depth, keys < kKeyChunk ? keys : kKeyChunk, 8)));
    take(base, q_strip, rows_padded * q_stride);
    take(base, distance, rows_padded * keys_padded);
    take(base, weight, rows_padded * keys_padded);
    e_strip = reinterpret_cast<char*>(weight);  // bytes are operands as they are
    if (step_of(8) == 2) take(base, e_strip, rows_padded * e_stride);
  }

  template <class T>
  void take(char* base, T*& part, int64_t count) {
    part = reinterpret_cast<T*>(base + size);
    size += static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 64));
  }
};

size_t attention_bytes(int rows, int keys, int depth) {
  alignas(64) static char origin[64];
  return AttentionSpace(origin, rows, keys, depth).size;
}

// Scores of one query to their distances from the largest, at most 255.
void distances(const AttentionTask& t, const AttentionSpace& s, int row) {
  const int keys = t.keys, padded = static_cast<int>(s.keys_padded);
  int32_t* score = s.scores + static_cast<int64_t>(row) * padded;
  int8_t* distance = reinterpret_cast<int8_t*>(s.distance) + static_cast<int64_t>(row) * padded;
  const int32_t* bias = t.bias ? t.bias + static_cast<int64_t>(row) * keys : nullptr;
  const uint8_t* region = t.k_region;
  const uint8_t own = region ? t.q_region[row] : uint8_t{0};
  for (int j = 0; bias && j < keys; j += kLanes) {
    store(score + j, add(load(score + j), load_lanes(bias + j, keys - j)));
  }
  for (int j = 0; region && j < keys; ++j) score[j] = region[j] == own ? score[j] : kMasked;
  for (int j = keys; j < padded; ++j) score[j] = kMasked;
  I16 best = load(score);
  for (int j = kLanes; j < padded; j += kLanes) best = max(best, load(score + j));
  const I16 top = set(largest(best));
  for (int j = 0; j < padded; j += kLanes) store(distance + j, min(sub(top, load(score + j)), set(255)));
}

// Exponentials of one query into the operand strip; returns their sum.
int64_t weights(const AttentionTask& t, const AttentionSpace& s, int row) {
  const int keys = t.keys;
  uint8_t* weight = s.weight + row * s.keys_padded;
  const uint8_t* region = t.k_region;
  const uint8_t own = region ? t.q_region[row] : uint8_t{0};
  for (int j = 0; region && j < keys; ++j) weight[j] = region[j] == own ? weight[j] : uint8_t{0};
  int64_t sum = 0;
  for (int j = 0; j < keys; ++j) sum += weight[j];
  if (step_of(8) == 2) {
    int16_t* wide = reinterpret_cast<int16_t*>(s.e_strip + row * s.e_stride);
    for (int j = 0; j < keys; ++j) wide[j] = weight[j];
  }
  return sum;
}

void wide_means(const AttentionTask& t, const AttentionSpace& s, const int64_t* reciprocal) {
  const int step = step_of(8), depth = t.depth;
  std::memset(s.sums, 0, static_cast<size_t>(t.rows * s.depth_padded) * sizeof(int64_t));
  for (int first = 0; first < t.keys; first += kKeyChunk) {
    const int count = t.keys - first < kKeyChunk ? t.keys - first : kKeyChunk;
    const Matrix v = pack_columns(t.v, s.key_at + first, depth, count, s.v_blocks, s.v_bias);
    blockwise_product(v, s.e_strip + first * (step == 4 ? 1 : 2), s.e_stride, t.rows, Sums{s.sums, s.depth_padded});
  }
  for (int r = 0; r < t.rows; ++r) {
    int8_t* __restrict out = t.out + (t.q_site ? t.q_site[r] : r) * t.out_channels;
    const int64_t* sum = s.sums + r * s.depth_padded;
    const int64_t scale = reciprocal[r], half = int64_t{1} << (kWideBits - 1);
    for (int c = 0; c < depth; ++c) out[c] = static_cast<int8_t>((sum[c] * scale + half) >> kWideBits);
  }
}

void attention(const AttentionTask& t) {
  const AttentionSpace s(t.scratch, t.rows, t.keys, t.depth);
  for (int j = 0; j < t.keys; ++j) s.key_at[j] = (t.k_site ? t.k_site[j] : j) * t.channels;
  for (int64_t j = t.keys; j < s.keys_padded; ++j) s.key_at[j] = -1;
  for (int r = 0; r < t.rows; ++r) {
    const int8_t* q = t.q + (t.q_site ? t.q_site[r] : r) * t.channels;
    pack8(q, t.depth, s.q_strip + r * s.q_stride);
  }
  const Matrix k = pack_rows(t.k, 8, s.key_at, t.keys, t.depth, nullptr, s.k_blocks, s.k_bias);
  blockwise_product(k, s.q_strip, s.q_stride, t.rows, Scores{s.scores, s.keys_padded, t.m});
  const int64_t one = int64_t{1} << (t.wide ? kWideBits : kNarrowBits);
  int64_t reciprocal[kStrip];
  for (int r = 0; r < t.rows; ++r) distances(t, s, r);
  lookup(t.table, s.distance, s.weight, t.rows * s.keys_padded);
  for (int r = 0; r < t.rows; ++r) reciprocal[r] = one / weights(t, s, r);
  if (t.wide) return wide_means(t, s, reciprocal);
  const Matrix v = pack_columns(t.v, s.key_at, t.depth, t.keys, s.v_blocks, s.v_bias);
  blockwise_product(v, s.e_strip, s.e_stride, t.rows, Means{t, reciprocal});
}

void colours(const uint8_t* pixels, int64_t width, int16_t* const out[3]) {
  int16_t* __restrict red = out[0], * __restrict green = out[1], * __restrict blue = out[2];
  for (int64_t x = 0; x < width; ++x) {
    red[x] = pixels[3 * x];
    green[x] = pixels[3 * x + 1];
    blue[x] = pixels[3 * x + 2];
  }
}

// Sums over four neighbours of a pixel: of their differences from it, and of those within +-kRingLimit.
struct RingSums {
  int16_t plain, clamped;
};

inline RingSums operator+(RingSums a, RingSums b) {
  return {static_cast<int16_t>(a.plain + b.plain), static_cast<int16_t>(a.clamped + b.clamped)};
}

inline RingSums four(const int16_t* const (&around)[4], int i, int16_t middle) {
  RingSums sum{0, 0};
  for (int n = 0; n < 4; ++n) {
    const int16_t d = static_cast<int16_t>(around[n][i] - middle);
    const int16_t low = d < -kRingLimit ? int16_t{-kRingLimit} : d;
    sum = sum + RingSums{d, low > kRingLimit ? int16_t{kRingLimit} : low};
  }
  return sum;
}

// The features of `count` pixels of one colour: put(i, ring 1, ring 2, ring 3) takes those of each.
template <class Put>
inline void ring_features(const RingRows& rows, int c, int x, int count, Put put) {
  const auto at = [&](int dy, int dx) { return rows.at[kRingReach + dy][c] + x + dx; };
  const int16_t* const middle = at(0, 0);
  const int16_t* const corners[4] = {at(-1, -1), at(-1, 1), at(1, -1), at(1, 1)};
  const int16_t* const cross[4] = {at(-1, 0), at(0, -1), at(0, 1), at(1, 0)};
  const int16_t* const far[4] = {at(-2, 0), at(0, -2), at(0, 2), at(2, 0)};
  for (int i = 0; i < count; ++i) {
    const RingSums near = four(cross, i, middle[i]);
    put(i, four(corners, i, middle[i]) + near, near, four(far, i, middle[i]));
  }
}

// A plain and a clamped feature, or their weights, as `dot` takes them.
inline int32_t ring_pair(int16_t plain, int16_t clamped) {
  return static_cast<int32_t>(static_cast<uint16_t>(plain) | static_cast<uint32_t>(clamped) << 16);
}

void restore(const RingRows& rows, int width, const int8_t* w, int rings, uint8_t* out) {
  int32_t pairs[3 * kRings][kRingRun] = {}, weights[3][3 * kRings] = {}, sums[kRingRun];
  uint8_t found[3][kRingRun];
  for (int c = 0; c < 3; ++c)
    for (int r = 0; r < rings; ++r)
      for (int k = 0; k < 3; ++k) {
        const int8_t* of_ring = w + (c * rings + r) * 6 + k;
        weights[c][3 * r + k] = ring_pair(of_ring[0], of_ring[3]);
      }
  for (int x = 0; x < width; x += kRingRun) {
    const int count = width - x < kRingRun ? width - x : kRingRun;
    for (int c = 0; c < 3; ++c) {
      int32_t* __restrict one = pairs[c], * __restrict two = pairs[3 + c], * __restrict three = pairs[6 + c];
      ring_features(rows, c, x, count, [=](int i, RingSums a, RingSums b, RingSums d) {
        one[i] = ring_pair(a.plain, a.clamped);
        two[i] = ring_pair(b.plain, b.clamped);
        three[i] = ring_pair(d.plain, d.clamped);
      });
    }
    for (int c = 0; c < 3; ++c) {
      const int16_t* middle = rows.at[kRingReach][c] + x;
      for (int i = 0; i < count; i += kLanes) {  // pairs beyond `count` are left from before
        I16 acc = set(128);
        for (int j = 0; j < 3 * rings; ++j) acc = dot<2>(acc, load(pairs[j] + i), set(weights[c][j]));
        store(sums + i, sra<8>(acc));
      }
      for (int i = 0; i < count; ++i) {
        const int32_t v = middle[i] + sums[i];
        found[c][i] = static_cast<uint8_t>(v < 0 ? 0 : v > 255 ? 255 : v);
      }
    }
    uint8_t* __restrict to = out + int64_t{3} * x;
    for (int i = 0; i < count; ++i) {
      to[3 * i] = found[0][i];
      to[3 * i + 1] = found[1][i];
      to[3 * i + 2] = found[2][i];
    }
  }
}

void restore_sums(const RingRows& rows, int width, const uint8_t* image, int64_t* sums) {
  constexpr int kAll = kRingFeatures + 3;
  int16_t f[kAll][kRingRun];
  for (int x = 0; x < width; x += kRingRun) {
    const int count = width - x < kRingRun ? width - x : kRingRun;
    for (int c = 0; c < 3; ++c) {
      const auto of = [&](int ring) { return f[6 * ring + c]; };
      int16_t* __restrict one = of(0), * __restrict two = of(1), * __restrict three = of(2);
      ring_features(rows, c, x, count, [=](int i, RingSums a, RingSums b, RingSums d) {
        one[i] = a.plain;
        one[3 * kRingRun + i] = a.clamped;
        two[i] = b.plain;
        two[3 * kRingRun + i] = b.clamped;
        three[i] = d.plain;
        three[3 * kRingRun + i] = d.clamped;
      });
      for (int i = 0; i < count; ++i)
        f[kRingFeatures + c][i] = static_cast<int16_t>(image[3 * (x + i) + c] - rows.at[kRingReach][c][x + i]);
    }
    for (int a = 0; a < kRingFeatures; ++a)
      for (int b = a; b < kAll; ++b) {
        int32_t sum = 0;
        for (int i = 0; i < count; ++i) sum += int32_t{f[a][i]} * f[b][i];
        sums[a * kAll + b] += sum;
      }
  }
}

#ifndef OWN_TOKENS
constexpr decltype(Kernels::tokens_bytes) tokens_bytes = nullptr;
constexpr decltype(Kernels::pack_tokens) pack_tokens = nullptr;
constexpr decltype(Kernels::tokens) tokens = nullptr;
#endif

#define KERNEL_FIELDS                                                                                             \
  kGroup, kByteOffset, supported, START, grouped, layer_bytes, pack_layer, strip_stride, linear, operand, pack8,  \
      unpack8, depthwise_bytes, pack_depthwise, depthwise, attention_bytes, attention, tokens_bytes, pack_tokens, \
      tokens, add_rows, act_slope, gate_slope, add_slope, residuals, reconstruct, colours, restore, restore_sums
