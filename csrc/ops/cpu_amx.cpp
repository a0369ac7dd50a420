// The kernels for AVX-512 with the products of layers on AMX: a tile of 16 rows of 64 bytes against one of 64 x 16
// weights is one instruction. 16-bit operands and weights are two bytes each, which makes four products of bytes.
#include "cpu_kernels.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxint8intrin.h>) || (defined(__clang__) && __has_include(<amxintrin.h>))
#define AMX
#endif
#endif

#ifdef AMX

#define TILE_ROWS 4
#define KERNELS amx_kernels
#define KERNELS_NAME "amx"
#define KERNELS_SLOT 3
#define START start
#define STRIP_ALIGN 64  // rows of operands begin where a cache line does
#define OWN_PRODUCTS
#include "cpu_avx512.cpp"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target(TARGET))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#pragma GCC target("amx-tile,amx-int8")
#endif

namespace dca {
namespace {

constexpr int kDeep = 64;  // bytes of a row of a tile
constexpr int kTall = 16;  // rows of a tile
constexpr int kPlane = kDeep * kGroup;
constexpr int64_t kPitch = kGroup * 4;  // bytes from one row of weights, or of sums, to the next
static_assert(kGroup == 2 * kTall && kStrip % kTall == 0, "two tiles of columns, whole tiles of rows");

size_t layer_bytes(int o, int k, int bits) {
  return static_cast<size_t>(round_up(o, kGroup) * round_up(k, kDeep)) * static_cast<size_t>(bits / 8);
}

// Groups of columns, then 64 of k: the high bytes of 16-bit weights before the low ones; four of k to a column. Zeros
// where k ends, because operands are read on to the end of a tile.
Matrix pack_layer(const void* w, int bits, const int64_t* start, int o, int k, const int32_t* bias, char* blocks,
                  int32_t* packed_bias) {
  const int planes = bits / 8, columns = static_cast<int>(round_up(o, kGroup));
  const int64_t group = round_up(k, kDeep) * kGroup * planes;
  std::memset(blocks, 0, layer_bytes(o, k, bits));
  for (int i = 0; i < columns; ++i) {
    uint32_t sum = 0;
    for (int j = 0; start[i] >= 0 && j < k; ++j) {
      const int64_t from = start[i] + j;
      const int value = bits == 8 ? static_cast<const int8_t*>(w)[from] : static_cast<const int16_t*>(w)[from];
      char* to = blocks + i / kGroup * group + j / kDeep * planes * kPlane;
      to += j % kDeep / 4 * kPitch + i % kGroup * 4 + j % 4;
      *to = static_cast<char>(value >> (bits - 8));
      if (planes == 2) to[kPlane] = static_cast<char>(value);
      sum += static_cast<uint32_t>(value);
    }
    const uint32_t excess = bits == 8 ? 128u * sum : 0;  // of operands that are offset to unsigned bytes
    packed_bias[i] = static_cast<int32_t>((bias ? static_cast<uint32_t>(bias[i]) : 0u) - excess);
  }
  return {blocks, packed_bias, nullptr, o, k, bits == 8 ? 4 : 2};
}

// Rows of int16 to rows of high bytes followed by low bytes.
void split_words(const char* x, int64_t x_stride, const int64_t* site, int rows, int k, char* out, int64_t stride) {
  for (int r = 0; r < rows; ++r, out += stride) {
    const int16_t* row = reinterpret_cast<const int16_t*>(x + (site ? site[r] : r) * x_stride);
    for (int i = 0; i < k; i += 32) {
      const I16 v = _mm512_maskz_loadu_epi16(first_of_32(k - i), row + i);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm512_cvtepi16_epi8(_mm512_srli_epi16(v, 8)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + stride / 2 + i), _mm512_cvtepi16_epi8(v));
    }
  }
}

const char* pack_layer_strip(const LinearTask& t, int64_t& stride) {
  if (t.w.step == 4) return pack_strip(t, stride);
  stride = strip_stride(t.w.k, 16);
  const int64_t x_stride = t.source == Source::operand ? stride : int64_t{2} * t.w.k;
  split_words(static_cast<const char*>(t.x), x_stride, t.x_site, t.rows, t.w.k, t.scratch, stride);
  return t.scratch;
}

// A block is 16 rows of operands against 32 columns. While the tiles of one multiply, the epilogue of the one before
// runs, a few rows after every product: else the two units would wait for each other.
template <bool WORDS, class E>
struct Blocks {
  static constexpr int kPart = kTall * kGroup;
  const LinearTask& task;
  const E epilogue;
  const int64_t stride;
  alignas(64) int32_t sums[2][WORDS ? 3 * kPart : kPart];  // of words: high * high, the mixed ones, low * low
  int side = 0, row = 0, col = 0, done = kTall;

  Blocks(const LinearTask& t, const E& e, int64_t s) : task(t), epilogue(e), stride(s) {}

  INLINE I16 sum(const int32_t* p, I16 bias) const {
    if (!WORDS) return add(bias, load(p));
    const I16 mixed = _mm512_slli_epi32(load(p + kPart), 8), high = _mm512_slli_epi32(load(p), 16);
    return add(add(bias, load(p + 2 * kPart)), add(mixed, high));
  }

  // The epilogue of the last block up to this share of its rows.
  INLINE void finish(int part, int parts) {
    const int32_t* bias = task.w.bias + col;
    for (; done * parts < kTall * part; done += kTileRows) {
      Tile acc;
      UNROLL for (int r = 0; r < kTileRows; ++r) {
        UNROLL for (int j = 0; j < kTileBlocks; ++j) {
          acc[r][j] = sum(sums[side] + (done + r) * kGroup + j * kLanes, load(bias + j * kLanes));
        }
      }
      epilogue(row + done, col, acc);
    }
  }

  INLINE void bytes(const char* a, const char* w, int chunks, int32_t* out) {
    _tile_zero(0);
    _tile_zero(1);
    for (int i = 0; i < chunks; ++i, a += kDeep, w += kPlane) {
      _tile_loadd(2, a, stride);
      _tile_loadd(3, w, kPitch);
      _tile_dpbusd(0, 2, 3);
      _tile_loadd(4, w + kDeep, kPitch);
      _tile_dpbusd(1, 2, 4);
      finish(i + 1, chunks);
    }
    _tile_stored(0, out, kPitch);
    _tile_stored(1, out + kLanes, kPitch);
  }

  INLINE void words(const char* a, const char* w, int chunks, int half, int32_t* out) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    for (int i = 0; i < chunks; ++i, a += kDeep, w += 2 * kPlane) {
      _tile_loadd(3, a, stride);
      _tile_loadd(4, w, kPitch);
      _tile_dpbssd(0, 3, 4);
      _tile_loadd(5, w + kPlane, kPitch);
      _tile_dpbsud(1, 3, 5);
      _tile_loadd(6, a + stride / 2, stride);
      _tile_dpbusd(1, 6, 4);
      _tile_dpbuud(2, 6, 5);
      finish(half * chunks + i + 1, 2 * chunks);
    }
    _tile_stored(0, out, kPitch);
    _tile_stored(1, out + kPart, kPitch);
    _tile_stored(2, out + 2 * kPart, kPitch);
  }

  INLINE void next(int new_row, int new_col, const char* a, const char* w, int chunks) {
    int32_t* out = sums[side ^ 1];
    if constexpr (WORDS) {
      words(a, w, chunks, 0, out);
      words(a, w + kDeep, chunks, 1, out + kLanes);
    } else {
      bytes(a, w, chunks, out);
    }
    side ^= 1;
    row = new_row;
    col = new_col;
    done = 0;
  }
};

template <bool WORDS, class E>
SEPARATE void blocks(const LinearTask& t, const char* strip, int64_t stride, const E& epilogue) {
  const int chunks = static_cast<int>(round_up(t.w.k, kDeep) / kDeep);
  const char* w = t.w.blocks;
  Blocks<WORDS, E> last(t, epilogue, stride);
  for (int col = 0; col < t.w.o; col += kGroup, w += int64_t{chunks} * kPlane * (WORDS ? 2 : 1))
    for (int row = 0; row < t.rows; row += kTall) last.next(row, col, strip + row * stride, w, chunks);
  last.finish(1, 1);
}

template <class E>
void layer_product(const LinearTask& t, const char* strip, int64_t stride, const E& epilogue) {
  struct alignas(64) Shape {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {kDeep, kDeep, kDeep, kDeep, kDeep, kDeep, kDeep, kDeep};
    uint8_t rows[16] = {kTall, kTall, kTall, kTall, kTall, kTall, kTall, kTall};
  };
  static constexpr Shape shape;
  // Every time, because others use the tiles of this thread as well; and the loads below don't say what they read.
  asm volatile("" ::: "memory");
  _tile_loadconfig(&shape);
  if (t.w.step == 4) {
    blocks<false>(t, strip, stride, epilogue);
  } else {
    blocks<true>(t, strip, stride, epilogue);
  }
  _tile_release();
}

}  // namespace
}  // namespace dca

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace dca {
namespace {

constexpr int kTileData = 18;  // number of the state

// Looking must not change anything: a process that may use tiles needs larger stacks for its signals.
bool supported() {
  constexpr int kOfThisSystem = 0x1021;
  constexpr unsigned kTiles = 1u << 24, kBytesOnTiles = 1u << 25;
  unsigned a, b, c, d;
  if (!avx512_supported() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  uint64_t states = 0;
  if (!(d & kTiles) || !(d & kBytesOnTiles) || syscall(SYS_arch_prctl, kOfThisSystem, &states)) return false;
  return states >> kTileData & 1;
}

// Linux lets a process use the tiles once it has asked.
bool start() {
  constexpr int kRequest = 0x1023;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

}  // namespace
}  // namespace dca

#else

namespace dca {
const Kernels* amx_kernels() { return nullptr; }
}  // namespace dca

#endif
