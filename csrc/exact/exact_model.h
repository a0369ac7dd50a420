// One band of the exact-colour coder: the same walk for the encoder and the decoder. dca_fast/exact/colours.py and
// planes.py are the specification; everything is integer arithmetic.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#ifdef _MSC_VER
#include <intrin.h>
#endif

#include "exact_range.h"
#include "exact_tables.h"

namespace dca::exact {

struct Mode {
  bool candidates;  // colours that followed the same neighbours are proposed first
  bool index;       // with candidates: a colour that was there before is coded by its number
  int step;         // of the residuals; 1: without loss
};

constexpr int kBlock = 16;  // pixels of the side of a block

// Which blocks of a picture are coded, and what each of them takes; the first ones are those of the first row.
struct Blocks {
  const uint8_t* inside = nullptr;  // [rows, columns]; null: all are
  int64_t* spent = nullptr;         // [rows, columns], in 1/256 bits: the encoder adds to it; null: it does not
};

// How fast a probability follows: the last entries of the rates that its halves reach.
template <int kFast, int kSlow>
struct Limits {
  static constexpr int kLast = kSlow;
  struct Pair {
    int32_t fast, slow;
  };
  static constexpr std::array<Pair, kSlow + 1> kRates = [] {
    std::array<Pair, kSlow + 1> rates{};
    for (int i = 0; i <= kSlow; ++i) rates[i] = {65536 / kDivisors[std::min(i, kFast)], 65536 / kDivisors[i]};
    return rates;
  }();
};
using Single = Limits<11, 29>;
using OfFlat = Limits<17, 29>;
using OfColours = Limits<12, 26>;
using OfResiduals = Limits<18, 31>;

// Its halves minus 1/2: all zeros at the start.
struct Probability {
  int16_t fast = 0, slow = 0;
  uint16_t seen = 0;

  int p() const { return ((fast + slow) >> 1) + 32768; }

  template <class L>
  void update(int bit) {
    const int target = bit ? 32767 : -32768;
    const auto rate = L::kRates[seen];
    fast = static_cast<int16_t>(fast + (((target - fast) * rate.fast) >> 16));
    slow = static_cast<int16_t>(slow + (((target - slow) * rate.slow) >> 16));
    seen = static_cast<uint16_t>(seen + (seen < L::kLast));
  }
};

// Values that are all zeros at the start. A small picture reads few of them, and the system makes pages when they are.
// In WebAssembly, where only `new` may be called by several threads at a time, one thread has all bands.
template <class T>
class Zeros {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  void resize(size_t size) {
    values_.reset(static_cast<T*>(std::calloc(size, sizeof(T))));
    if (values_ == nullptr) throw std::bad_alloc();
  }
  T& operator[](size_t i) const { return values_[i]; }

 private:
  struct Free {
    void operator()(T* values) const { std::free(values); }
  };
  std::unique_ptr<T[], Free> values_;
};

template <int n>
struct Mixer {
  int32_t weight[n];
  Mixer() { std::fill(weight, weight + n, n == 2 ? 36000 : n == 3 ? 26000 : 22000); }
};

inline int bit_length(uint32_t x) {
#ifdef _MSC_VER
  unsigned long top = 0;
  return _BitScanReverse(&top, x) != 0 ? static_cast<int>(top) + 1 : 0;
#else
  return x == 0 ? 0 : 32 - __builtin_clz(x);
#endif
}

// 0, 1, 2, 3, ...: half octaves of x + 1.
inline int level_of(uint32_t x) {
  if (x < 4096) return kTables.level[x];
  const int n = bit_length(x + 1);
  return n < 2 ? 0 : 2 * n - 3 + static_cast<int>((x + 1) >> (n - 2) & 1);
}

constexpr int kLevels = 44;  // of sums of errors
constexpr int kTaps = 24;    // of the adaptive filter
constexpr int kPredictors = 8;
constexpr int kPad = 10;    // columns beside a row
constexpr int kRows = 8;    // rows of colours that contexts reach
constexpr int kOrders = 6;  // contexts that propose colours
constexpr int kOrderEnd[kOrders] = {1, 2, 4, 6, 14, 37};
constexpr int kMaxColours = 4096, kPlaces = 4 * kMaxColours;
constexpr int kMaxCandidates = 8;

struct Offset {
  int dx, dy;
};

// Of the neighbours in hashed contexts: order i takes the first kOrderEnd[i].
constexpr Offset kNeighbours[37] = {{-1, 0},  {0, -1},  {-1, -1}, {1, -1},  {-2, 0}, {0, -2},  {-3, 0}, {-2, -1},
                                    {2, -1},  {-1, -2}, {1, -2},  {0, -3},  {2, -2}, {-2, -2}, {-4, 0}, {-3, -1},
                                    {3, -1},  {-5, 0},  {-4, -1}, {4, -1},  {-6, 0}, {-5, -1}, {5, -1}, {-7, 0},
                                    {-6, -1}, {6, -1},  {-8, 0},  {-7, -1}, {7, -1}, {0, -4},  {0, -5}, {0, -6},
                                    {0, -7},  {-3, -3}, {3, -3},  {-5, -5}, {5, -5}};

template <class Sample, bool kEncode>
class Band {
 public:
  using Colour = std::conditional_t<sizeof(Sample) == 1, uint32_t, uint64_t>;
  using Sum = std::conditional_t<sizeof(Sample) == 1, int32_t, int64_t>;
  using Small = std::conditional_t<sizeof(Sample) == 1, int16_t, int32_t>;  // holds predictions in 1/8
  static constexpr int kDepth = 8 * sizeof(Sample);
  static constexpr int kMost = (1 << kDepth) - 1;
  static constexpr Colour kNone = Colour{1} << (3 * kDepth);
  static constexpr int kMid = 1 << (kDepth - 1);
  static constexpr int kBuckets = sizeof(Sample) == 1 ? 17 : 33;  // of magnitudes: level_of(2 * kMost) + 1
  static constexpr int kNodes = kBuckets + 11;                    // decisions: upwards, downwards, above the middle

  // Of the rows of a picture from `top` on; `blocks` begin with those of that row.
  Band(int width, int height, int channels, Mode mode, int top = 0, Blocks blocks = {})
      : width_(width), height_(height), channels_(channels), mode_(mode), top_(top), blocks_(blocks) {
    const int stride = width + 2 * kPad;
    for (auto& row : plane_rows_) row.resize(static_cast<size_t>(stride) * channels);
    const size_t planes = static_cast<size_t>(channels);
    magnitude_.resize(planes * kLevels * 8 * kNodes);
    pair_.resize(planes * 2048 * kNodes);
    expected_.resize(planes * 4096 * kNodes);
    sample_.resize((channels == 1 ? 256 : planes * 4096) * kNodes);
    low_expected_.resize(planes * 512 * kNodes * 4);
    sign_expected_.resize(planes * 512 * 16);
    sign_sample_.resize(planes * 512 * 16);
    residual_mixer_.resize(planes * kNodes * 12);
    low_.resize(planes * kNodes * kLevels * 4);
    sign_.resize(planes * 27 * 16 * 8);
    bias_.resize(planes * 2048);
    if (mode.candidates) start_candidates(stride);
  }

  // [height * width * channels], read by the encoder, written by the decoder.
  using Pixel = std::conditional_t<kEncode, const Sample*, Sample*>;

  // False where the stream says what cannot be.
  bool run(Pixel pixels) {
    start_planes();
    const int across = (width_ + kBlock - 1) / kBlock;
    for (int y = 0; y < height_; ++y) {
      start_row(y);
      const size_t first = static_cast<size_t>((top_ + y) / kBlock - top_ / kBlock) * across;
      for (int x = 0; x < width_; x += kBlock) {
        const int end = std::min(width_, x + kBlock);
        const size_t block = first + x / kBlock;
        if (blocks_.inside != nullptr && !blocks_.inside[block]) {
          leave_out(x, end);
          continue;
        }
        int64_t before = 0;
        if constexpr (kEncode) before = blocks_.spent != nullptr ? coder.spent() : 0;
        Pixel pixel = pixels + (static_cast<size_t>(y) * width_ + x) * channels_;
        if (!(mode_.candidates ? with_candidates(x, end, pixel) : without_candidates(x, end, pixel))) return false;
        if constexpr (kEncode)
          if (blocks_.spent != nullptr) blocks_.spent[block] += coder.spent() - before;
      }
    }
    return true;
  }

  std::conditional_t<kEncode, Encoder, Decoder> coder;

 private:
  struct Site {  // of one plane
    int32_t value, error;
    int16_t miss[kPredictors];
  };
  struct Slot {
    Colour first, second;
    uint16_t check;
    uint8_t trust;
  };

  bool with_candidates(int x, int end, Pixel pixel) {
    for (; x < end; ++x, pixel += channels_)
      if (!candidate_pixel(x, pixel)) return false;
    return true;
  }

  bool without_candidates(int x, int end, Pixel pixel) {
    for (; x < end; ++x, pixel += channels_) {
      int value[3];
      if constexpr (kEncode) to_planes(pixel, value);
      Sample made[3] = {};
      if (!residuals(x, value, 0) || !from_planes(value, made)) return false;
      if constexpr (!kEncode) std::copy(made, made + channels_, pixel);
    }
    return true;
  }

  // Pixels that are not coded: no colour, and the values of the one on their left.
  void leave_out(int x, int end) {
    for (int k = 0; k < channels_; ++k) {
      Site* here = site(k, 0, x);
      for (int i = 0; i < end - x; ++i) here[i] = Site{here[i - 1].value, 0, {}};
    }
  }

  // ---- single decisions ----

  int decide(Probability& c, int bit) {
    bit = coder.code(bit, std::min(65535 - 16, std::max(16, c.p())));
    c.update<Single>(bit);
    return bit;
  }

  template <int n>
  int mix(Probability* const (&c)[n], const Mixer<n>& m, int (&s)[n]) const {
    int64_t dot = 0;
    for (int i = 0; i < n; ++i) {
      s[i] = kTables.stretch[c[i]->p() >> 4];
      s[i] >>= c[i]->seen < 3;
      dot += static_cast<int64_t>(m.weight[i]) * s[i];
    }
    const int logit = static_cast<int>(std::min<int64_t>(2047, std::max<int64_t>(-2047, dot >> 16)));
    return kTables.squash[logit + 2048] + 32768;
  }

  template <class L, int n>
  int decide(Probability* const (&c)[n], Mixer<n>& m, int bit) {
    int s[n];
    const int p = mix(c, m, s);
    bit = coder.code(bit, p);
    const int error = ((bit << 16) - p) * 5;  // times s: below 2^30
    for (int i = 0; i < n; ++i) {
      m.weight[i] += (s[i] * error + (1 << 17)) >> 18;
      c[i]->template update<L>(bit);
    }
    return bit;
  }

  // ---- planes ----

  Site* site(int k, int up, int x) { return rows_[up] + static_cast<ptrdiff_t>(k) * (width_ + 2 * kPad) + x; }

  void start_planes() {
    for (int up = 0; up < 3; ++up) rows_[up] = plane_rows_[up].data() + kPad;
    for (auto& row : plane_rows_)
      for (size_t i = 0; i < row.size(); ++i) {
        row[i] = Site{};
        row[i].value = i < static_cast<size_t>(width_) + 2 * kPad ? kMid : 0;
      }
  }

  void start_row(int y) {
    std::rotate(rows_, rows_ + 2, rows_ + 3);
    for (int k = 0; k < channels_; ++k) {
      Site* above = site(k, 1, 0);
      Site* here = site(k, 0, 0);
      for (int i = 0; i < 3; ++i) {
        if (y > 0) above[width_ + i] = above[width_ - 1];
        here[-1 - i] = above[0];
      }
    }
    if (mode_.candidates) start_colours(y);
  }

  // Green and differences to it, or gray.
  void to_planes(const Sample* pixel, int* v) const {
    if (channels_ == 1) {
      v[0] = pixel[0];
    } else {
      v[0] = pixel[1], v[1] = pixel[0] - v[0], v[2] = pixel[2] - v[0];
    }
  }

  bool from_planes(const int* v, Sample* pixel) const {
    int c[3] = {v[0], 0, 0};
    if (channels_ == 3) c[0] = v[0] + v[1], c[1] = v[0], c[2] = v[0] + v[2];
    for (int k = 0; k < channels_; ++k) {
      if (mode_.step > 1) c[k] = std::min(kMost, std::max(0, c[k]));
      if ((c[k] & ~kMost) != 0) return false;
      pixel[k] = static_cast<Sample>(c[k]);
    }
    return true;
  }

  // Codes the planes of one pixel; `noise`: how many neighbours were coded so (0..4).
  bool residuals(int x, int* value, int noise) {
    int before[2] = {0, 0};  // residuals of the planes before
    for (int k = 0; k < channels_; ++k)
      if (!residual(k, x, value, before, noise)) return false;
    return true;
  }

  static int magnitude(int x) { return x < 0 ? -x : x; }
  static int sign_of(int x) { return (x > 0) - (x < 0); }

  bool residual(int k, int x, int* value, int (&before)[2], int noise) {
    Site* here = site(k, 0, x);
    const Site* up = site(k, 1, x);
    const Site* up2 = site(k, 2, x);
    const int w = here[-1].value, n = up[0].value, nw = up[-1].value, ne = up[1].value, ww = here[-2].value;
    const int nn = up2[0].value, nne = up2[1].value, nee = up[2].value;

    // Predictions in 1/8.
    const int highest = std::max(w, n), lowest = std::min(w, n);
    const Small predicted[kPredictors] = {
        small(8 * (nw >= highest  ? lowest
                   : nw <= lowest ? highest
                                  : w + n - nw)),
        small(8 * (w + n - nw)),
        small(4 * w + 4 * n + 2 * ne - 2 * nw),
        small(8 * (w + ne - n)),
        small(12 * n - 4 * nn + 4 * w - 4 * nw),
        small(12 * w - 4 * ww + 2 * ne - 2 * n),
        small(8 * (n + ne - nne)),
        small(2 * w + 2 * n + nw + ne + ww + nn),
    };
    int16_t missed[kPredictors];
    for (int i = 0; i < kPredictors; ++i) {
      missed[i] = static_cast<int16_t>(2 * here[-1].miss[i] + 2 * up[0].miss[i] + up[-1].miss[i] + up[1].miss[i] +
                                       here[-2].miss[i] + up2[0].miss[i]);
    }
    int16_t least = missed[0];
    for (int i = 1; i < kPredictors; ++i) least = std::min(least, missed[i]);
    const int shift = std::max(0, bit_length(static_cast<uint32_t>(least)) - 5);
    int16_t share[kPredictors];
    for (int i = 0; i < kPredictors; ++i) share[i] = kTables.weight[std::min(255, missed[i] >> shift)];
    Sum total = 0;
    int32_t weights = 0;
    for (int i = 0; i < kPredictors; ++i) {
      total += static_cast<Sum>(share[i]) * predicted[i];
      weights += share[i];
    }
    const int blend = static_cast<int>(total / weights);

    // The adaptive filter on differences to the blend.
    const int base = (blend + 4) >> 3;
    int16_t tap[kTaps];
    const auto clip = [](int v) {  // differences of 8 bits are far from the ends
      return static_cast<int16_t>(sizeof(Sample) == 1 ? v : std::min(16383, std::max(-16383, v)));
    };
    tap[0] = clip(w - base), tap[1] = clip(n - base), tap[2] = clip(nw - base), tap[3] = clip(ne - base);
    tap[4] = clip(ww - base), tap[5] = clip(nn - base), tap[6] = clip(nne - base), tap[7] = clip(nee - base);
    tap[8] = clip(here[-3].value - base), tap[9] = clip(up[-3].value - base), tap[10] = clip(up[3].value - base);
    tap[11] = clip(up[-2].value - base), tap[12] = clip(up2[-1].value - base), tap[13] = clip(up2[2].value - base);
    tap[14] = clip(up2[-2].value - base), tap[15] = 0;
    for (int j = 0; j < 2; ++j) {
      int16_t* more = tap + 16 + 4 * j;
      if (j < k) {
        const Site* other = site(j, 0, x);
        const Site* other_up = site(j, 1, x);
        const int o = other[0].value;
        more[0] = clip(o - other[-1].value), more[1] = clip(o - other_up[0].value);
        more[2] = clip(o - other_up[-1].value), more[3] = clip(o - other_up[1].value);
      } else {
        more[0] = more[1] = more[2] = more[3] = 0;
      }
    }
    int16_t* weight = filter_[k].data();
    Sum dot = 0, energy = 0;
    for (int i = 0; i < kTaps; ++i) {
      dot += static_cast<Sum>(tap[i]) * weight[i];
      energy += static_cast<Sum>(tap[i]) * tap[i];
    }
    const int span = k == 0 ? 0 : kMost;  // of the values below 0
    const int filtered = static_cast<int>(std::min<Sum>(8 * kMost, std::max<Sum>(-8 * span, blend + (dot >> 11))));

    // What the errors around say.
    const int ew = here[-1].error, en = up[0].error, enw = up[-1].error, ene = up[1].error;
    const uint32_t activity =
        static_cast<uint32_t>(2 * magnitude(before[0]) + 2 * magnitude(ew) + 2 * magnitude(en) + magnitude(enw) +
                              magnitude(ene) + magnitude(w - nw) + magnitude(n - nw) + magnitude(n - ne));
    const int level = std::min(kLevels - 1, level_of(activity));
    const int rounded = filtered >> 3;
    int32_t& bias = bias_[k * 2048 + std::min(15, level * 5 / 8) * 128 +
                          ((w > rounded) | (n > rounded) << 1 | (nw > rounded) << 2 | (ne > rounded) << 3 |
                           (nn > rounded) << 4 | (ww > rounded) << 5 | (k > 0 && before[0] > 0) << 6)];
    const int sharp = filtered + (bias >> 8);
    const int prediction = std::min(kMost, std::max(-span, (sharp + 4) >> 3));
    const int part = (sharp + 4) & 7;

    const int step = mode_.step;
    int r = 0;
    if constexpr (kEncode) {
      r = value[k] - prediction;
      if (step > 1) r = sign_of(r) * ((magnitude(r) + step / 2) / step);
    }
    r = code_residual(k, r, level, part, ew, en, before, noise, magnitude(n - ne), prediction,
                      prediction + (k == 0 ? 0 : value[0]));
    const int got = prediction + r * step;
    if (got < -span - step / 2 || got > kMost + step / 2) return false;
    value[k] = got;

    here[0].value = got;
    here[0].error = r;
    for (int i = 0; i < kPredictors; ++i)
      here[0].miss[i] = static_cast<int16_t>(std::min(4095, magnitude(8 * got - predicted[i]) >> kMissShift));
    bias += (((8 * got - filtered) * 256) - bias) >> 7;
    const int wrong = 8 * got - filtered;
    const Sum most = 8 * (kMost + 1) - 1;
    const Sum quotient = std::min(most, std::max<Sum>(-most, wrong)) * kStepSize / (energy + 32);
    const int pull = static_cast<int>(std::min<Sum>(kMostPull, std::max<Sum>(-kMostPull, quotient)));
    for (int i = 0; i < kTaps; ++i) {
      const int16_t kept = std::min<int16_t>(24000, std::max<int16_t>(-24000, weight[i]));
      weight[i] = static_cast<int16_t>(kept + static_cast<int16_t>((tap[i] * pull + 2048) >> 12));
    }
    before[1] = before[0];
    before[0] = r;
    return true;
  }
  static constexpr int kStepSize = 192 * 256;
  static constexpr int kMostPull = sizeof(Sample) == 1 ? 32767 : 2047;  // one change of a weight is below 8192
  static constexpr int kMissShift = sizeof(Sample) == 1 ? 0 : 4;

  static Small small(int v) { return static_cast<Small>(v); }

  int code_residual(int k, int r, int level, int part, int ew, int en, const int (&before)[2], int noise, int edge,
                    int expected, int sample) {
    const int l0 = std::min(7, level_of(static_cast<uint32_t>(magnitude(before[0]))));
    const int l1 = level_of(static_cast<uint32_t>(2 * magnitude(before[0]) + magnitude(before[1])));
    const int other = k == 0 ? noise : k == 1 ? l0 : std::min(7, l1);
    const int a = std::min(15, level_of(static_cast<uint32_t>(magnitude(ew))));
    const int b = std::min(15, level_of(static_cast<uint32_t>(magnitude(en))));
    const int flat = k == 0 ? std::min(7, level_of(static_cast<uint32_t>(edge)) / 2) : other;
    Probability* first = &magnitude_[((k * kLevels + level) * 8 + other) * static_cast<size_t>(kNodes)];
    Probability* second = &pair_[(k * 2048 + (a * 16 + b) * 8 + flat) * static_cast<size_t>(kNodes)];
    const int coarse = std::min(7, level / 2);
    const int offcentre = part < 4 ? 4 - part : part - 4;
    // Values that are rarer than others, by the difference and by the sample that is expected.
    const int difference = expected & 511;
    sample &= 511;
    Probability* third = &expected_[((k * 8 + coarse) * 512 + difference) * static_cast<size_t>(kNodes)];
    Probability* fourth = &sample_[(k == 0 ? std::min(31, level) * 8 + offcentre : (k * 8 + coarse) * 512 + sample) *
                                   static_cast<size_t>(kNodes)];
    Mixer<4>* mixer = &residual_mixer_[(k * 12 + std::min(11, level / 2)) * kNodes];

    // Magnitudes 0, 1, 2, then half octaves, in buckets: whether it is one from the middle on, then one by one.
    int m = magnitude(r), bucket = 0;
    if constexpr (kEncode) bucket = level_of(static_cast<uint32_t>(m));
    const int middle = std::max(0, 2 * coarse - 7);
    const auto is = [&](int node, bool truth) {
      Probability* c[4] = {first + node, second + node, third + node, fourth + node};
      return decide<OfResiduals>(c, mixer[node], truth);
    };
    if (middle == 0 || is(kBuckets + 7 + middle / 2, bucket >= middle)) {
      int i = middle;
      while (i < kBuckets - 1 && !is(i, bucket == i)) ++i;
      bucket = i;
    } else {
      int i = middle - 1;
      while (i > 0 && !is(kBuckets + i, bucket == i)) --i;
      bucket = i;
    }
    if (bucket < 3) {
      m = bucket;
    } else {  // m + 1 = 1x..., with as many bits below as the half octave has
      const int bits = (bucket - 1) / 2;
      const uint32_t top = 2u | ((bucket - 1) & 1);
      uint32_t number = top, whole = static_cast<uint32_t>(m + 1);
      for (int j = bits - 1; j >= 0; --j) {
        int bit = static_cast<int>(whole >> j & 1);
        if (j >= bits - 2) {
          const int node = j == bits - 1 ? 0 : 1 + static_cast<int>(number & 1);
          Probability* c[2] = {&low_[((k * kNodes + bucket) * kLevels + level) * 4 + node],
                               &low_expected_[((k * 512 + difference) * kNodes + bucket) * 4 + node]};
          bit = decide<OfResiduals>(c, low_mixer_[k], bit);
        } else {
          bit = coder.code(bit, 32768);
        }
        number = number << 1 | static_cast<uint32_t>(bit);
      }
      m = static_cast<int>(number) - 1;
    }
    if (m == 0) return 0;
    const int around = (sign_of(ew) + 1) * 9 + (sign_of(en) + 1) * 3 + (k == 0 ? 1 : sign_of(before[0]) + 1);
    const int nearby = std::min(15, m);
    Probability* c[3] = {&sign_[((k * 27 + around) * 16 + std::min(15, level / 2)) * 8 + part],
                         &sign_expected_[(k * 512 + difference) * 16 + nearby],
                         &sign_sample_[(k * 512 + sample) * 16 + nearby]};
    const int positive = decide<OfResiduals>(c, sign_mixer_[k * 8 + std::min(7, bucket)], r > 0);
    return positive ? m : -m;
  }

  // ---- candidates ----

  void start_candidates(int stride) {
    for (auto& row : colour_rows_) row.assign(stride, kOutside);
    for (auto& row : kind_rows_) row.assign(stride, 0);
    const int size = bit_length(static_cast<uint32_t>(width_) * static_cast<uint32_t>(height_));
    hash_bits_ = std::min(18, std::max(12, size + 1));
    slot_bits_ = std::min(16, std::max(10, size));
    for (auto& table : slots_) table.resize(size_t{1} << slot_bits_);
    by_order_.resize(kMaxCandidates * 7 * 6 * 7 * 4 * 2);
    by_pattern_.resize(kMaxCandidates * 64 * 16 * 5);
    by_colour_.resize(size_t{1} << hash_bits_);
    flat_run_.resize(16 * 64);
    flat_colour_.resize(size_t{1} << 14);
    run_.resize(static_cast<size_t>(width_));
    skip_.resize(64);
    known_.resize(40);
    if (mode_.index) {
      number_.resize(kMaxColours);
      for (auto& table : number_by_) table.resize(size_t{1} << hash_bits_);
      place_.resize(kPlaces);
    }
  }

  void start_colours(int y) {
    if (y == 0) return;  // all rows are outside
    colour_ring_ = (colour_ring_ + 1) % kRows;
    auto& row = colour_rows_[colour_ring_];
    std::fill(row.begin(), row.end(), kOutside);
    auto& kinds = kind_rows_[colour_ring_ & 1];
    std::fill(kinds.begin(), kinds.end(), 0);
  }

  static uint64_t scrambled(uint64_t sum) {
    sum ^= sum >> 32;
    sum *= kGolden;
    return sum ^ sum >> 29;
  }

  // Of two numbers, as `bits` bits.
  uint64_t hashed(uint64_t a, uint64_t b, int bits) const {
    return (scrambled(a * kTables.factor[0] + b * kTables.factor[1]) * kGolden) >> (64 - bits);
  }

  int number_of(Colour c) const {
    for (size_t at = hashed(c, 5, 14);; at = (at + 1) % kPlaces) {
      if (place_[at] == 0) return -1;
      if (colours_[place_[at] - 1] == c) return place_[at] - 1;
    }
  }

  void remember(Colour c) {
    if (static_cast<int>(colours_.size()) >= kMaxColours) return;
    for (size_t at = hashed(c, 5, 14);; at = (at + 1) % kPlaces) {
      if (place_[at] == 0) {
        colours_.push_back(c);
        place_[at] = static_cast<uint16_t>(colours_.size());
        return;
      }
      if (colours_[place_[at] - 1] == c) return;
    }
  }

  Colour colour_of(const Sample* pixel) const {
    Colour c = pixel[0];
    for (int k = 1; k < channels_; ++k) c = c << kDepth | pixel[k];
    return c;
  }

  void set_pixel(Sample* pixel, Colour c) const {
    for (int k = channels_ - 1; k >= 0; --k, c >>= kDepth) pixel[k] = static_cast<Sample>(c & kMost);
  }

  enum Kind : uint8_t { kFirst = 0, kLater = 1, kResidual = 2 };

  bool candidate_pixel(int x, Pixel pixel) {
    const Colour* row[kRows];
    for (int up = 0; up < kRows; ++up) row[up] = colour_rows_[(colour_ring_ + kRows - up) % kRows].data() + kPad + x;
    Colour current = 0;
    if constexpr (kEncode) current = colour_of(pixel);

    Colour w = row[0][-1], n = row[1][0], nw = row[1][-1], ne = row[1][1], ww = row[0][-2], nn = row[2][0];
    if (w == kOutside) w = n != kOutside ? n : nw != kOutside ? nw : ne;
    if (n == kOutside) n = w;
    if (nw == kOutside) nw = n;
    if (ne == kOutside) ne = n;
    if (ww == kOutside) ww = w;
    if (nn == kOutside) nn = n;

    // Where all neighbours agree, one decision.
    const bool flat = w != kOutside && w == n && w == nw && w == ne && w == ww && w == nn &&
                      (row[1][2] == w || row[1][2] == kOutside);
    bool hit = false;
    Kind kind = kFirst;
    if (flat) {
      const int wider = (row[3][0] == w) | (row[1][3] == w) << 1 | (row[0][-3] == w) << 2 | (row[2][1] == w) << 3;
      Probability* c[2] = {&flat_run_[wider * 64 + run_[x]], &flat_colour_[hashed(w, wider, 14)]};
      if (decide<OfFlat>(c, flat_mixer_, current == w)) {
        hit = true;
        current = w;
        run_[x] = static_cast<uint8_t>(std::min(63, run_[x] + 1));
      }
    }
    if (!hit) {
      run_[x] = 0;
      if (!unlike(x, row, pixel, flat, {w, n, nw, ne, ww, nn}, current, kind)) return false;
    }
    colour_rows_[colour_ring_][kPad + x] = current;
    kind_rows_[colour_ring_ & 1][kPad + x] = kind;
    if constexpr (!kEncode) set_pixel(pixel, current);
    if (kind != kResidual) {
      int value[3];
      to_planes(pixel, value);
      for (int k = 0; k < channels_; ++k) {
        *site(k, 0, x) = Site{value[k], 0, {}};
      }
    }
    return true;
  }

  struct Around {
    Colour w, n, nw, ne, ww, nn;
  };

  bool unlike(int x, const Colour* const (&row)[kRows], Pixel pixel, bool flat, const Around& a, Colour& current,
              Kind& kind) {
    uint64_t order[kOrders], sum = 0;
    for (int i = 0, j = 0; i < kOrders; ++i) {
      for (; j < kOrderEnd[i]; ++j) sum += row[-kNeighbours[j].dy][kNeighbours[j].dx] * kTables.factor[j];
      order[i] = scrambled(sum + static_cast<uint64_t>(i));
    }
    Slot* slot[kOrders];
    bool found[kOrders];
    int longest = -1;
    for (int i = 0; i < kOrders; ++i) {
      slot[i] = &slots_[i][order[i] >> (64 - slot_bits_)];
      found[i] = slot[i]->trust != 0 && slot[i]->check == static_cast<uint16_t>(order[i]);
      if (found[i]) longest = i;
    }
    Colour candidate[kMaxCandidates];
    int count = 0;
    const auto add = [&](Colour c) {
      if (c >= kNone || (flat && c == a.w) || count == kMaxCandidates) return;
      for (int i = 0; i < count; ++i)
        if (candidate[i] == c) return;
      candidate[count++] = c;
    };
    for (int i = kOrders - 1; i >= 0; --i)
      if (found[i]) add(slot[i]->first);
    for (int i = kOrders - 1; i >= 1; --i)
      if (found[i]) add(slot[i]->second);
    add(a.w), add(a.n), add(a.ne), add(a.nw);

    const uint8_t* kinds = kind_rows_[colour_ring_ & 1].data() + kPad + x;
    const uint8_t* kinds_up = kind_rows_[(colour_ring_ & 1) ^ 1].data() + kPad + x;
    const int history = (kinds[-1] == kResidual) | (kinds_up[0] == kResidual) << 1;
    const int noise = (history & 1) + (history >> 1) + (kinds_up[1] == kResidual) + (kinds_up[-1] == kResidual);
    const int pattern = (a.w == a.n) | (a.w == a.nw) << 1 | (a.n == a.ne) << 2 | (a.n == a.nw) << 3 |
                        (a.w == a.ww) << 4 | (a.n == a.nn) << 5;
    const int trust = longest < 0 ? 0 : kTrust[std::min<int>(21, slot[longest]->trust)];

    bool hit = false, skipped = false;
    int known = -1;
    if (kEncode && mode_.index) known = number_of(current);
    const int colours = static_cast<int>(colours_.size());
    if (noise == 4) {
      bool proposed = known >= 0;
      if constexpr (kEncode)
        for (int i = 0; i < count; ++i) proposed |= candidate[i] == current;
      skipped = decide(skip_[std::min(63, colours >> 6)], !proposed) != 0;
    }
    for (int i = 0; i < count && !skipped && !hit; ++i) {
      const Colour c = candidate[i];
      int agree = 0;
      for (int j = 0; j < kOrders; ++j) agree += found[j] && slot[j]->first == c;
      const int same = (c == a.w) | (c == a.n) << 1 | (c == a.ne) << 2 | (c == a.nw) << 3;
      Probability* p[3] = {
          &by_order_[((((i * 7 + longest + 1) * 6 + trust) * 7 + agree) * 4 + history) * 2 + (noise == 4)],
          &by_pattern_[((i * 64 + pattern) * 16 + same) * 5 + noise],
          &by_colour_[hashed(order[2], c * 8 + static_cast<uint64_t>(i), hash_bits_)]};
      if (decide<OfColours>(p, candidate_mixer_[i * 7 + longest + 1], c == current)) {
        hit = true;
        current = c;
        kind = i > 0 ? kLater : kFirst;
      }
    }
    if (!hit) {
      int is_known = 0;
      if (mode_.index && !skipped) is_known = decide(known_[noise * 8 + std::min(7, colours >> 4)], known >= 0);
      if (is_known) {
        kind = kLater;
        const int bits = bit_length(static_cast<uint32_t>(std::max(1, colours - 1)));
        uint32_t node = 1;
        for (int i = bits - 1; i >= 0; --i) {
          Probability* p[4] = {&number_[node], &number_by_[0][hashed(a.w, node, hash_bits_)],
                               &number_by_[1][hashed(order[1], node, hash_bits_)],
                               &number_by_[2][hashed(a.n * 3 + a.nw, node, hash_bits_)]};
          node = node << 1 | static_cast<uint32_t>(decide<OfColours>(p, number_mixer_[i], known >> i & 1));
        }
        known = static_cast<int>(node - (1u << bits));
        if (known >= colours) return false;
        current = colours_[known];
      } else {
        kind = kResidual;
        int value[3];
        if constexpr (kEncode) to_planes(pixel, value);
        Sample made[3] = {};
        if (!residuals(x, value, noise) || !from_planes(value, made)) return false;
        current = colour_of(made);
      }
      if (mode_.index) remember(current);
    }
    for (int i = 0; i < kOrders; ++i) {
      Slot& s = *slot[i];
      if (!found[i]) {
        s = Slot{current, kNone, static_cast<uint16_t>(order[i]), 1};
      } else if (s.first == current) {
        s.trust = static_cast<uint8_t>(std::min(60, s.trust + 1));
      } else if (s.trust > 1) {
        s.trust = static_cast<uint8_t>(s.trust >> 1);
        s.second = current;
      } else {
        s.second = s.first;
        s.first = current;
      }
    }
    return true;
  }

  static constexpr Colour kOutside = kNone + 1;
  static constexpr uint8_t kTrust[22] = {0, 0, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 5};
  int colour_ring_ = 0, hash_bits_ = 0, slot_bits_ = 0;
  std::array<std::vector<Colour>, kRows> colour_rows_;
  std::array<std::vector<uint8_t>, 2> kind_rows_;
  std::array<Zeros<Slot>, kOrders> slots_;
  Zeros<Probability> by_order_, by_pattern_, by_colour_, flat_run_, flat_colour_, skip_, known_, number_;
  std::array<Zeros<Probability>, 3> number_by_;
  std::array<Mixer<3>, kMaxCandidates * 7> candidate_mixer_;
  std::array<Mixer<4>, 12> number_mixer_;
  Mixer<2> flat_mixer_;
  Zeros<uint8_t> run_;
  std::vector<Colour> colours_;
  Zeros<uint16_t> place_;  // of colours, from 1 on

  const int width_, height_, channels_;
  const Mode mode_;
  const int top_;
  const Blocks blocks_;
  std::array<std::vector<Site>, 3> plane_rows_;
  Site* rows_[3];  // column 0 of the first plane: of the current row, of the one above, of the one above that
  Zeros<Probability> magnitude_, pair_, expected_, sample_, low_, low_expected_, sign_, sign_expected_, sign_sample_;
  std::vector<Mixer<4>> residual_mixer_;
  std::array<Mixer<3>, 24> sign_mixer_;
  std::array<Mixer<2>, 3> low_mixer_;
  Zeros<int32_t> bias_;
  alignas(16) std::array<std::array<int16_t, kTaps>, 3> filter_{};
};

}  // namespace dca::exact
