// What the harnesses of this folder share: an input that is drawn from, and the way a fault is reported.
//
// Each harness is a program for libFuzzer: LLVMFuzzerTestOneInput, with AddressSanitizer and
// UndefinedBehaviorSanitizer. Without Clang, main.cpp takes the place of libFuzzer. tests/fuzz/run.py builds and runs
// them all.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

namespace fuzz {

using Bytes = std::vector<uint8_t>;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "failed: %s\n", what);
  std::abort();
}

inline void require(bool condition, const char* what) {
  if (!condition) fail(what);
}

inline Bytes content_of(const char* path) {
  std::ifstream file(path, std::ios::binary);
  require(bool(file), path);
  return Bytes(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

// The weights file that the environment names.
inline Bytes weights_content() {
  const char* path = std::getenv("DCA_WEIGHTS");
  require(path != nullptr, "DCA_WEIGHTS names no weights");
  return content_of(path);
}

// Numbers from the bytes of an input, zeros behind its end. What an input is too short for is drawn from a generator
// that its first two bytes seed.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : at_(data), end_(data + size) {
    const uint32_t seed = byte();
    generator_.seed(seed | static_cast<uint32_t>(byte()) << 8);
  }

  bool empty() const { return at_ == end_; }
  uint8_t byte() { return empty() ? uint8_t{0} : *at_++; }
  uint32_t number(uint32_t bytes) { return bytes == 0 ? 0 : byte() | number(bytes - 1) << 8; }
  uint32_t below(uint32_t n) { return number(n <= 256 ? 1 : n <= 65536 ? 2 : 4) % n; }
  uint32_t drawn() { return static_cast<uint32_t>(generator_()); }
  uint32_t drawn_below(uint32_t n) { return drawn() % n; }
  Bytes rest() {
    const Bytes out(at_, end_);
    at_ = end_;
    return out;
  }

  // The rest as changes of a stream: bytes that are set, taken out or put in, or where it ends.
  template <class Stream>
  Stream changed(Stream stream) {
    while (!empty() && !stream.empty()) {
      const uint32_t kind = below(8), place = number(2), value = byte();
      // Near the start, where headers are, or anywhere.
      const size_t at = kind & 1 ? place % stream.size() : place % std::min<size_t>(stream.size(), 64);
      const auto from = stream.begin() + static_cast<std::ptrdiff_t>(at);
      using Byte = typename Stream::value_type;
      if (kind < 4) {
        *from = static_cast<Byte>(value);
      } else if (kind < 6) {
        *from = static_cast<Byte>(static_cast<uint8_t>(*from) ^ 1 << value % 8);
      } else if (value % 4 == 0) {
        stream.resize(at);
      } else if (value % 4 == 1) {
        stream.erase(from);
      } else {
        stream.insert(from, static_cast<Byte>(value));
      }
    }
    return stream;
  }

 private:
  const uint8_t *at_, *end_;
  std::minstd_rand generator_;
};

}  // namespace fuzz
