// The kernels in portable C++: no intrinsics, any architecture.
#include <cstring>

#include "cpu_kernels.h"

#define UNROLL

namespace dca {
namespace {

constexpr int kTileRows = 2;
constexpr int kTileBlocks = 1;
constexpr bool kBytes = false;
constexpr int kByteOffset = 0;

struct I16 {
  int32_t v[kLanes];
};
struct F16 {
  float v[kLanes];
};

// Sums wrap modulo 2^32 like those of the vector units.
inline int32_t wrap_add(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}
inline int32_t wrap_mul(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) * static_cast<uint32_t>(b));
}

#define LANES(type, expression)                           \
  type out;                                               \
  for (int i = 0; i < kLanes; ++i) out.v[i] = expression; \
  return out

inline I16 set(int32_t x) { LANES(I16, x); }
template <class T>
inline I16 load(const T* p) {
  LANES(I16, p[i]);
}
inline F16 setf(float x) { LANES(F16, x); }
inline F16 loadf(const float* p) { LANES(F16, p[i]); }
template <class T>
inline void store(T* p, I16 x) {
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<T>(x.v[i]);
}
inline I16 add(I16 a, I16 b) { LANES(I16, wrap_add(a.v[i], b.v[i])); }
inline I16 sub(I16 a, I16 b) { LANES(I16, wrap_add(a.v[i], wrap_add(~b.v[i], 1))); }
inline I16 mul(I16 a, I16 b) { LANES(I16, wrap_mul(a.v[i], b.v[i])); }
inline I16 min(I16 a, I16 b) { LANES(I16, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
inline I16 max(I16 a, I16 b) { LANES(I16, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
inline I16 bit_and(I16 a, I16 b) { LANES(I16, a.v[i] & b.v[i]); }
inline I16 bit_or(I16 a, I16 b) { LANES(I16, a.v[i] | b.v[i]); }
template <int N>
inline I16 sra(I16 a) {
  LANES(I16, a.v[i] >> N);
}
inline F16 to_float(I16 a) { LANES(F16, static_cast<float>(a.v[i])); }
inline F16 mul(F16 a, F16 b) { LANES(F16, a.v[i] * b.v[i]); }
inline F16 max(F16 a, F16 b) { LANES(F16, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }

// Adding 1.5 * 2^23 leaves no fraction bits, so the addition itself rounds half to even; |limit| <= 2^22.
inline I16 round_clamp(F16 a, float lo, float hi) {
  constexpr float kMagic = 12582912.0f;
  I16 out;
  for (int i = 0; i < kLanes; ++i) {
    const float bounded = a.v[i] < lo ? lo : a.v[i] > hi ? hi : a.v[i];
    const float shifted = bounded + kMagic;
    out.v[i] = static_cast<int32_t>(shifted - kMagic);
  }
  return out;
}

inline int32_t largest(I16 a) {
  int32_t best = a.v[0];
  for (int i = 1; i < kLanes; ++i) best = best > a.v[i] ? best : a.v[i];
  return best;
}

template <int STEP>
inline I16 dot(I16 acc, I16 x, I16 w) {
  static_assert(STEP == 2, "pairs of int16 only");
  int16_t a[2 * kLanes], b[2 * kLanes];
  std::memcpy(a, &x, sizeof a);
  std::memcpy(b, &w, sizeof b);
  LANES(I16, wrap_add(acc.v[i], wrap_add(a[2 * i] * b[2 * i], a[2 * i + 1] * b[2 * i + 1])));
}

inline void lookup(const uint8_t* table, const uint8_t* index, uint8_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = table[index[i]];
}

bool supported() { return true; }

#include "cpu_kernels_impl.h"

}  // namespace

const Kernels& scalar_kernels() {
  static const Kernels kernels = {"scalar", 0, KERNEL_FIELDS};
  return kernels;
}

}  // namespace dca
