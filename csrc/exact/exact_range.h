// A binary range coder with 32 bits and 16-bit probabilities; carries go into the bytes that are written already.
// After G. N. N. Martin, "Range encoding" (1979), with binary decisions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "exact_tables.h"

namespace dca::exact {

class Encoder {
 public:
  // p: probability of a one in 1/65536, 1..65535. Returns the bit.
  int code(int bit, int p) {
    const uint32_t bound = static_cast<uint32_t>((static_cast<uint64_t>(range_) * static_cast<uint32_t>(p)) >> 16);
    if (bit) {
      range_ = bound;
    } else {
      const uint32_t sum = low_ + bound;
      if (sum < low_) carry();
      low_ = sum;
      range_ -= bound;
    }
    while (range_ < 1u << 24) {
      bytes_.push_back(static_cast<char>(low_ >> 24));
      low_ <<= 8;
      range_ <<= 8;
    }
    return bit;
  }

  // What was coded so far takes, in 1/256 bits.
  int64_t spent() const { return static_cast<int64_t>(8 * bytes_.size() + 32) * 256 - log2_of(range_); }

  // The shortest bytes that decode so when zeros follow.
  std::string finish() {
    for (int count = 0; count <= 4; ++count) {
      const uint64_t mask = (uint64_t{1} << (32 - 8 * count)) - 1;
      const uint64_t number = (low_ + mask) & ~mask;
      if (number >= static_cast<uint64_t>(low_) + range_) continue;
      if (number >> 32 != 0) carry();
      for (int i = 0; i < count; ++i) bytes_.push_back(static_cast<char>(number >> (24 - 8 * i)));
      break;
    }
    while (!bytes_.empty() && bytes_.back() == 0) bytes_.pop_back();
    return std::move(bytes_);
  }

 private:
  void carry() {
    for (size_t i = bytes_.size(); i-- > 0 && ++bytes_[i] == 0;) {
    }
  }

  uint32_t low_ = 0, range_ = 0xffffffff;
  std::string bytes_;
};

class Decoder {
 public:
  void start(const uint8_t* bytes, size_t size) {
    next_ = bytes;
    left_ = size;
    for (int i = 0; i < 4; ++i) code_ = code_ << 8 | take();
    proper_ = code_ < range_;
  }

  int code(int, int p) {
    const uint32_t bound = static_cast<uint32_t>((static_cast<uint64_t>(range_) * static_cast<uint32_t>(p)) >> 16);
    const int bit = code_ < bound;
    if (bit) {
      range_ = bound;
    } else {
      code_ -= bound;
      range_ -= bound;
    }
    while (range_ < 1u << 24) {
      code_ = code_ << 8 | take();
      range_ <<= 8;
    }
    return bit;
  }

  // Whether all bytes were used, and were such as an encoder makes.
  bool finished() const { return left_ == 0 && proper_; }

 private:
  uint32_t take() {
    if (left_ == 0) return 0;
    --left_;
    return *next_++;
  }

  uint32_t code_ = 0, range_ = 0xffffffff;
  const uint8_t* next_ = nullptr;
  size_t left_ = 0;
  bool proper_ = false;
};

}  // namespace dca::exact
