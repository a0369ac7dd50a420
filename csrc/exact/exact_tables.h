// Constants of the exact-colour coder (docs/spec/exact.md). All of them are integers, or follow from integers.
#pragma once

#include <cstdint>

namespace dca::exact {

// 65536 / (1 + e^-x) at x = -8, -7.75, ... 8.
constexpr int kKnots[65] = {22,    28,    36,    47,    60,    77,    98,    126,   162,   208,   267,   342,   439,
                            562,   720,   922,   1179,  1506,  1921,  2446,  3108,  3938,  4971,  6249,  7812,  9702,
                            11955, 14595, 17625, 21025, 24743, 28693, 32768, 36843, 40793, 44511, 47911, 50941, 53581,
                            55834, 57724, 59287, 60565, 61598, 62428, 63090, 63615, 64030, 64357, 64614, 64816, 64974,
                            65097, 65194, 65269, 65328, 65374, 65410, 65438, 65459, 65476, 65489, 65500, 65508, 65514};

// How fast a probability follows: by 1 / (n + 2) at first, then more slowly.
constexpr int kDivisors[32] = {2,  3,  4,  5,  6,  7,  8,  9,  10,  12,  14,  16,  18,  20,  24,  28,
                               32, 36, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384};

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15;

// log2 of x > 0 in 1/256, rounded down, by repeated squaring.
inline int log2_of(uint32_t x) {
  int whole = 31;
  for (; (x & 0x80000000u) == 0; x <<= 1) --whole;
  uint64_t mantissa = x;  // within 1..2, in 1/2^31
  for (int i = 0; i < 8; ++i) {
    mantissa = (mantissa * mantissa) >> 31;
    const int carry = static_cast<int>(mantissa >> 32);
    whole = whole << 1 | carry;
    mantissa >>= carry;
  }
  return whole;
}

struct Tables {
  int16_t squash[4096] = {};   // of a logit in 1/256, + 2048: a probability in 1/65536, minus 1/2
  int16_t stretch[4096] = {};  // of a probability in 1/4096: a logit in 1/256
  uint8_t level[4096] = {};    // half octaves of x + 1
  int16_t weight[256] = {};    // of a prediction, by its recent errors
  uint64_t factor[37] = {};    // of the neighbours in a hash

  constexpr Tables() {
    int32_t wide[4096] = {};
    for (int i = 0; i < 4096; ++i) {
      const int left = kKnots[i >> 6], right = kKnots[(i >> 6) + 1];
      wide[i] = left + ((right - left) * (i & 63) + 32) / 64;
      squash[i] = static_cast<int16_t>(wide[i] - 32768);
    }
    for (int p = 0, i = 0; p < 4096; ++p) {
      while (i < 4095 && wide[i] < p * 16 + 8) ++i;
      stretch[p] = static_cast<int16_t>(i - 2048);
    }
    for (int x = 0, n = 0; x < 4096; ++x) {
      while ((x + 1) >> n != 0) ++n;
      level[x] = static_cast<uint8_t>(n < 2 ? 0 : 2 * n - 3 + ((x + 1) >> (n - 2) & 1));
    }
    for (int i = 0; i < 256; ++i) weight[i] = static_cast<int16_t>(65536 / (i * i + 8));
    uint64_t f = kGolden;
    for (int i = 0; i < 37; ++i) {
      factor[i] = f;
      f = f * 0xD1342543DE82EF95 + 2;
    }
  }
};

inline constexpr Tables kTables;

}  // namespace dca::exact
