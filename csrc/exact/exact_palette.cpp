#include "exact_palette.h"

#include <algorithm>
#include <vector>

namespace dca::exact {
namespace {

constexpr int kKept = 1024;               // colours that others may become
constexpr int64_t kBitsOfColour = 20;     // that a colour less saves
constexpr int64_t kBitsOfPixels = 26;     // and, in 1/256, the part of the entropy of its pixels
constexpr int64_t kMostError = 3 << 18;   // what the error of a pixel costs: more is seen where colours are smooth
constexpr uint32_t kUnused = 0xffffffff;  // no colour

struct Colour {
  uint32_t value, pixels, merged;
};

// Calls work(offset of its first sample, pixels) for every row of every block inside.
template <class F>
void for_runs(const Shape& shape, const uint8_t* inside, F&& work) {
  const int across = (shape.width + kBlock - 1) / kBlock;
  for (int y = 0; y < shape.height; ++y)
    for (int x = 0; x < shape.width; x += kBlock)
      if (inside[static_cast<size_t>(y / kBlock) * across + x / kBlock])
        work((static_cast<size_t>(y) * shape.width + x) * shape.channels, std::min(kBlock, shape.width - x));
}

uint32_t value_of(const uint8_t* sample, int channels) {
  return channels == 1 ? sample[0]
                       : static_cast<uint32_t>(sample[0]) << 16 | static_cast<uint32_t>(sample[1]) << 8 | sample[2];
}

int64_t squared(uint32_t a, uint32_t b) {
  int64_t sum = 0;
  for (int shift = 0; shift < 24; shift += 8) {
    const int64_t e = static_cast<int64_t>(a >> shift & 255) - static_cast<int64_t>(b >> shift & 255);
    sum += e * e;
  }
  return sum;
}

// A colour's number by its value; open addressing.
class Index {
 public:
  uint32_t& at(uint32_t value, std::vector<Colour>& colours) {
    if (2 * (colours.size() + 1) > places_.size()) grow(colours);
    size_t place = hash(value);
    while (places_[place] != kUnused && colours[places_[place]].value != value) place = (place + 1) & mask_;
    return places_[place];
  }

 private:
  size_t hash(uint32_t value) const { return (value * kGolden >> 32) & mask_; }

  void grow(const std::vector<Colour>& colours) {
    places_.assign(std::max<size_t>(1024, 4 * places_.size()), kUnused);
    mask_ = places_.size() - 1;
    for (uint32_t i = 0; i < colours.size(); ++i) {
      size_t place = hash(colours[i].value);
      while (places_[place] != kUnused) place = (place + 1) & mask_;
      places_[place] = i;
    }
  }

  std::vector<uint32_t> places_;
  size_t mask_ = 0;
};

}  // namespace

void merge_colours(const uint8_t* samples, const Shape& shape, const uint8_t* inside, int64_t price, uint8_t* merged) {
  const int channels = shape.channels;
  std::vector<Colour> colours;
  Index index;
  for_runs(shape, inside, [&](size_t at, int pixels) {
    for (const uint8_t *s = samples + at, *end = s + static_cast<size_t>(pixels) * channels; s != end; s += channels) {
      const uint32_t value = value_of(s, channels);
      uint32_t& number = index.at(value, colours);
      if (number == kUnused) {
        number = static_cast<uint32_t>(colours.size());
        colours.push_back({value, 0, value});
      }
      ++colours[number].pixels;
    }
  });

  std::vector<uint32_t> order(colours.size());
  for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    const Colour &x = colours[a], &y = colours[b];
    return x.pixels != y.pixels ? x.pixels > y.pixels : x.value < y.value;
  });
  struct Kept {
    uint32_t value;
    uint64_t pixels;
  };
  std::vector<Kept> kept;
  for (const uint32_t number : order) {
    Colour& colour = colours[number];
    int64_t least = int64_t{1} << 40;
    Kept* nearest = nullptr;
    for (Kept& k : kept) {
      const int64_t distance = squared(k.value, colour.value);
      if (distance < least) least = distance, nearest = &k;
    }
    if (nearest != nullptr) {
      const auto together = std::min<uint64_t>(0xffffffff, nearest->pixels + colour.pixels);
      const int64_t rarity = log2_of(static_cast<uint32_t>(together)) - log2_of(colour.pixels);
      const int64_t saved = kBitsOfColour * 256 + (colour.pixels * rarity * kBitsOfPixels >> 8);
      if (price * least < std::min((saved << 12) / colour.pixels, kMostError)) {
        colour.merged = nearest->value;
        nearest->pixels += colour.pixels;
        continue;
      }
    }
    if (kept.size() < kKept) kept.push_back({colour.value, colour.pixels});
  }

  std::fill(merged, merged + static_cast<size_t>(shape.height) * shape.width * channels, uint8_t{0});
  for_runs(shape, inside, [&](size_t at, int pixels) {
    const size_t end = at + static_cast<size_t>(pixels) * channels;
    for (; at != end; at += channels) {
      const uint32_t value = colours[index.at(value_of(samples + at, channels), colours)].merged;
      if (channels == 3)
        merged[at] = static_cast<uint8_t>(value >> 16), merged[at + 1] = static_cast<uint8_t>(value >> 8);
      merged[at + channels - 1] = static_cast<uint8_t>(value);
    }
  });
}

}  // namespace dca::exact
