// The kernels for AVX-512 with the products of layers on AMX: a tile of 16 rows of 64 bytes against one of 64 x 16
// weights is one instruction. 16-bit operands and weights are two bytes each, which makes four products of bytes.
#include "cpu_kernels.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxint8intrin.h>)
#define AMX
#endif
#endif

#ifdef AMX

#define TILE_ROWS 4
#define KERNELS amx_kernels
#define KERNELS_NAME "amx"
#define KERNELS_SLOT 3
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

constexpr int kDeep = 64;         // bytes of a row of a tile
constexpr int kTall = 16;         // rows of a tile
constexpr int kSums = 3 * kTall;  // rows of sums that wait for their epilogue, at most
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
      char* to = blocks + i / kGroup * group + j / kDeep * planes * kPlane + j % kDeep / 4 * kPitch + i % kGroup * 4 + j % 4;
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

// 32 rows (or 16) of bytes against two tiles of columns: sums in registers 0 to 3.
template <bool BOTH>
INLINE void multiply_bytes(const char* a, int64_t stride, const char* w, int64_t deep) {
  _tile_zero(0);
  _tile_zero(1);
  if (BOTH) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t i = 0; i < deep; i += kDeep, w += kPlane) {
    _tile_loadd(4, a + i, stride);
    _tile_loadd(6, w, kPitch);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(7, w + 64, kPitch);
    _tile_dpbusd(1, 4, 7);
    if (BOTH) {
      _tile_loadd(5, a + i + kTall * stride, stride);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
  }
}

// 16 rows of high and low bytes: sums of high * high in 0 and 1, of both high * low in 2 and 3, of low * low in 4 and 5.
INLINE void multiply_words(const char* a, int64_t stride, const char* w, int64_t deep) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  for (int64_t i = 0; i < deep; i += kDeep, w += 2 * kPlane) {
    _tile_loadd(6, a + i, stride);
    _tile_loadd(7, w, kPitch);
    _tile_dpbssd(0, 6, 7);
    _tile_loadd(7, w + 64, kPitch);
    _tile_dpbssd(1, 6, 7);
    _tile_loadd(7, w + kPlane, kPitch);
    _tile_dpbsud(2, 6, 7);
    _tile_loadd(7, w + kPlane + 64, kPitch);
    _tile_dpbsud(3, 6, 7);
    _tile_loadd(6, a + stride / 2 + i, stride);
    _tile_dpbuud(5, 6, 7);
    _tile_loadd(7, w + kPlane, kPitch);
    _tile_dpbuud(4, 6, 7);
    _tile_loadd(7, w, kPitch);
    _tile_dpbusd(2, 6, 7);
    _tile_loadd(7, w + 64, kPitch);
    _tile_dpbusd(3, 6, 7);
  }
}

INLINE void store_sums(int32_t* sums, bool words, bool both) {
  _tile_stored(0, sums, kPitch);
  _tile_stored(1, sums + kTall, kPitch);
  if (words || both) {
    _tile_stored(2, sums + kTall * kGroup, kPitch);
    _tile_stored(3, sums + kTall * kGroup + kTall, kPitch);
  }
  if (words) {
    _tile_stored(4, sums + 2 * kTall * kGroup, kPitch);
    _tile_stored(5, sums + 2 * kTall * kGroup + kTall, kPitch);
  }
}

// The epilogue of one block runs while the tiles of the next one multiply.
template <bool WORDS, class E>
struct Blocks {
  const E& epilogue;
  int rows;
  alignas(64) int32_t sums[2][kSums * kGroup];
  int side = 0, row = -1, col = 0;
  const int32_t* bias = nullptr;

  Blocks(const E& e, int r) : epilogue(e), rows(r) {}

  INLINE void finish() const {
    constexpr int kMost = WORDS ? kTall : 2 * kTall;
    const int count = rows - row < kMost ? rows - row : kMost;
    const int32_t* p = sums[side];
    I16 start[kTileBlocks];
    UNROLL for (int j = 0; j < kTileBlocks; ++j) start[j] = load(bias + j * kLanes);
    for (int i = 0; i < count; i += kTileRows, p += kTileRows * kGroup) {
      Tile acc;
      UNROLL for (int r = 0; r < kTileRows; ++r) {
        UNROLL for (int j = 0; j < kTileBlocks; ++j) {
          const int32_t* q = p + r * kGroup + j * kLanes;
          I16 sum = add(start[j], load(q + (WORDS ? 2 * kTall * kGroup : 0)));
          if (WORDS) {
            sum = add(sum, _mm512_slli_epi32(load(q + kTall * kGroup), 8));
            sum = add(sum, _mm512_slli_epi32(load(q), 16));
          }
          acc[r][j] = sum;
        }
      }
      epilogue(row + i, col, acc);
    }
  }

  INLINE void next(int new_row, int new_col, const int32_t* new_bias, bool both) {
    if (row >= 0) finish();
    side ^= 1;
    row = new_row;
    col = new_col;
    bias = new_bias;
    store_sums(sums[side], WORDS, both);
  }
};

template <bool WORDS, class E>
SEPARATE void tiles(const Matrix& w, const char* strip, int64_t stride, int rows, const E& epilogue) {
  constexpr int kStep = WORDS ? kTall : 2 * kTall;
  const int64_t deep = round_up(w.k, kDeep);
  const char* blocks = w.blocks;
  Blocks<WORDS, E> waiting(epilogue, rows);
  for (int col = 0; col < w.o; col += kGroup, blocks += deep * kGroup * (WORDS ? 2 : 1))
    for (int row = 0; row < rows; row += kStep) {
      const char* a = strip + row * stride;
      const bool both = rows - row > kTall;
      if (WORDS) {
        multiply_words(a, stride, blocks, deep);
      } else if (both) {
        multiply_bytes<true>(a, stride, blocks, deep);
      } else {
        multiply_bytes<false>(a, stride, blocks, deep);
      }
      waiting.next(row, col, w.bias + col, both);
    }
  if (waiting.row >= 0) waiting.finish();
}

template <class E>
void layer_product(const Matrix& w, const char* strip, int64_t stride, int rows, const E& epilogue) {
  struct alignas(64) Shape {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {kDeep, kDeep, kDeep, kDeep, kDeep, kDeep, kDeep, kDeep};
    uint8_t rows[16] = {kTall, kTall, kTall, kTall, kTall, kTall, kTall, kTall};
  };
  static const Shape shape;
  // Every time, because others use the tiles of this thread as well; and the loads below don't say what they read.
  asm volatile("" ::: "memory");
  _tile_loadconfig(&shape);
  if (w.step == 4) {
    tiles<false>(w, strip, stride, rows, epilogue);
  } else {
    tiles<true>(w, strip, stride, rows, epilogue);
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

// Linux lets a process use the tiles once it has asked.
bool supported() {
  constexpr int kRequest = 0x1023, kTileData = 18;
  constexpr unsigned kTiles = 1u << 24, kBytesOnTiles = 1u << 25;
  unsigned a, b, c, d;
  if (!avx512_supported() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  return (d & kTiles) && (d & kBytesOnTiles) && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

}  // namespace
}  // namespace dca

#else

namespace dca {
const Kernels* amx_kernels() { return nullptr; }
}  // namespace dca

#endif
