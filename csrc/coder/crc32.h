// CRC-32 as zlib computes it, for the digest of the symbols, with carry-less products: Gopal and others, "Fast CRC
// Computation for Generic Polynomials Using PCLMULQDQ Instruction" (Intel, 2009). It is in every encode and decode.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define DCA_CRC32
#include <immintrin.h>

namespace dca::rans {

// The register of the CRC (the complement of its value) after n more bytes.
inline uint32_t crc32_bytes(uint32_t crc, const uint8_t* p, size_t n) {
  for (; n > 0; --n) {
    crc ^= *p++;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (0xedb88320u & (0u - (crc & 1u)));
  }
  return crc;
}

// What x amounts to so many bytes further on as `factors` says, plus what stands there.
__attribute__((target("pclmul"))) inline __m128i crc32_fold(__m128i x, __m128i factors, const uint8_t* there) {
  const __m128i low = _mm_clmulepi64_si128(x, factors, 0x00), high = _mm_clmulepi64_si128(x, factors, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), _mm_loadu_si128(reinterpret_cast<const __m128i*>(there)));
}

__attribute__((target("pclmul"))) inline uint32_t crc32(uint32_t value, const uint8_t* p, size_t n) {
  uint32_t crc = ~value;
  if (n >= 64) {
    const __m128i by_64 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4);  // x^(512 +- 32) mod P, bits reversed
    const __m128i by_16 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);  // x^(128 +- 32)
    __m128i x[4];
    for (int i = 0; i < 4; ++i) x[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + i);
    x[0] = _mm_xor_si128(x[0], _mm_cvtsi32_si128(static_cast<int>(crc)));
    for (p += 64, n -= 64; n >= 64; p += 64, n -= 64)
      for (int i = 0; i < 4; ++i) x[i] = crc32_fold(x[i], by_64, p + 16 * i);
    alignas(16) uint8_t rest[16];
    __m128i all = x[0];
    for (int i = 1; i < 4; ++i) {
      _mm_store_si128(reinterpret_cast<__m128i*>(rest), x[i]);
      all = crc32_fold(all, by_16, rest);
    }
    for (; n >= 16; p += 16, n -= 16) all = crc32_fold(all, by_16, p);
    _mm_store_si128(reinterpret_cast<__m128i*>(rest), all);
    crc = crc32_bytes(0, rest, 16);
  }
  return ~crc32_bytes(crc, p, n);
}

}  // namespace dca::rans

#endif
