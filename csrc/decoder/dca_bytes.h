// Bytes that nobody has vouched for: a cursor over them, their checksums, and the error that says what is wrong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "dca.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "files and weights are read as they lie in memory, which is little-endian"
#endif

#if defined(__GNUC__)
#define DCA_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define DCA_PRINTF(text, first)
#endif

namespace dca::decoder {

struct Error : std::runtime_error {
  Error(dca_status what, const std::string& message) : std::runtime_error(message), status(what) {}
  dca_status status;
};

[[noreturn]] DCA_PRINTF(2, 3) void fail(dca_status status, const char* format, ...);

struct Span {
  const uint8_t* data = nullptr;
  size_t size = 0;

  Span from(size_t begin) const { return {data + begin, size - begin}; }
  Span part(size_t begin, size_t count) const { return {data + begin, count}; }
};

uint32_t little32(const uint8_t* from);

// A cursor that never reads past its end.
class Reader {
 public:
  // cut: the status of what ends too early. damaged: with a wrong checksum around the bytes, which then is the reason
  // for everything else that is wrong with them.
  Reader(Span bytes, size_t at, dca_status cut, bool damaged = false)
      : bytes_(bytes), at_(at), cut_(cut), damaged_(damaged) {}

  size_t at() const { return at_; }
  Span bytes() const { return bytes_; }
  uint8_t byte() { return *take(1).data; }
  Span take(uint64_t size);
  Span rest() { return take(bytes_.size - at_); }
  // A LEB128 number in the fewest bytes, at most so many.
  uint64_t number(int most);
  [[noreturn]] DCA_PRINTF(3, 4) void refuse(dca_status status, const char* format, ...) const;

 private:
  Span bytes_;
  size_t at_;
  dca_status cut_;
  bool damaged_;
};

// Of more bytes, going on from a value; the same as zlib's.
uint32_t crc32(uint32_t value, const void* bytes, size_t size);

class Sha256 {
 public:
  void add(const void* bytes, size_t size);
  void add(const std::string& text) { add(text.data(), text.size()); }
  // Ends the message; 32 bytes.
  std::string digest();

 private:
  void block(const uint8_t* bytes);
  uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint64_t size_ = 0;
  uint8_t pending_[64];
};

}  // namespace dca::decoder
