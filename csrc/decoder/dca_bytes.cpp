#include "dca_bytes.h"

#include <algorithm>
#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "../coder/crc32.h"

namespace dca::decoder {
namespace {

std::string formatted(const char* format, va_list arguments) {
  char text[sizeof(dca_error::message)];
  std::vsnprintf(text, sizeof text, format, arguments);
  size_t end = std::strlen(text);
  if (end + 1 == sizeof text) {  // it may be cut inside a character
    while (end > 0 && (text[end - 1] & 0xc0) == 0x80) --end;
    if (end > 0 && (text[end - 1] & 0xc0) == 0xc0) --end;
  }
  return {text, end};
}

using Slices = std::array<std::array<uint32_t, 256>, 8>;

// Of a byte that is followed by 0 to 7 others.
constexpr Slices crc_slices() {
  Slices slices{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (0xedb88320u & (0u - (crc & 1u)));
    slices[0][i] = crc;
  }
  for (size_t k = 1; k < 8; ++k)
    for (size_t i = 0; i < 256; ++i) slices[k][i] = slices[k - 1][i] >> 8 ^ slices[0][slices[k - 1][i] & 255];
  return slices;
}

constexpr Slices kSlices = crc_slices();

uint32_t rotated(uint32_t x, int by) { return x >> by | x << (32 - by); }

}  // namespace

void fail(dca_status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const std::string text = formatted(format, arguments);
  va_end(arguments);
  throw Error(status, text);
}

uint32_t little32(const uint8_t* from) {
  return from[0] | static_cast<uint32_t>(from[1]) << 8 | static_cast<uint32_t>(from[2]) << 16 |
         static_cast<uint32_t>(from[3]) << 24;
}

Span Reader::take(uint64_t size) {
  if (size > bytes_.size - at_) {
    fail(cut_, "the file ends early: %llu bytes wanted at byte %zu", static_cast<unsigned long long>(size), at_);
  }
  const Span taken{bytes_.data + at_, static_cast<size_t>(size)};
  at_ += taken.size;
  return taken;
}

uint64_t Reader::number(int most) {
  const size_t start = at_;
  uint64_t value = 0;
  for (int i = 0; i < most; ++i) {
    if (at_ == bytes_.size) fail(cut_, "the file ends early: inside the number at byte %zu", start);
    const uint8_t byte = bytes_.data[at_++];
    value |= static_cast<uint64_t>(byte & 0x7f) << (7 * i);
    if (byte >= 0x80) continue;
    if (byte == 0 && i > 0) break;
    return value;
  }
  refuse(DCA_CORRUPT_STREAM, "malformed number at byte %zu", start);
}

void Reader::refuse(dca_status status, const char* format, ...) const {
  if (damaged_) fail(DCA_CORRUPT_STREAM, "checksum mismatch: the file was changed or cut short");
  va_list arguments;
  va_start(arguments, format);
  const std::string text = formatted(format, arguments);
  va_end(arguments);
  throw Error(status, text);
}

uint32_t crc32(uint32_t value, const void* bytes, size_t size) {
  const auto* p = static_cast<const uint8_t*>(bytes);
#ifdef DCA_CRC32
  static const bool products = __builtin_cpu_supports("pclmul") != 0;
  if (products) return rans::crc32(value, p, size);
#endif
  uint32_t crc = ~value;
  for (; size >= 8; size -= 8, p += 8) {
    const uint32_t low = little32(p) ^ crc, high = little32(p + 4);
    crc = kSlices[7][low & 255] ^ kSlices[6][low >> 8 & 255] ^ kSlices[5][low >> 16 & 255] ^ kSlices[4][low >> 24] ^
          kSlices[3][high & 255] ^ kSlices[2][high >> 8 & 255] ^ kSlices[1][high >> 16 & 255] ^ kSlices[0][high >> 24];
  }
  for (; size > 0; --size) crc = crc >> 8 ^ kSlices[0][(crc ^ *p++) & 255];
  return ~crc;
}

// FIPS 180-4.
void Sha256::block(const uint8_t* bytes) {
  static constexpr uint32_t kRound[64] = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
      0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
      0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
      0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
      0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
      0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
      0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
      0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
  uint32_t w[64];
  for (int i = 0; i < 16; ++i) {
    w[i] = static_cast<uint32_t>(bytes[4 * i]) << 24 | static_cast<uint32_t>(bytes[4 * i + 1]) << 16 |
           static_cast<uint32_t>(bytes[4 * i + 2]) << 8 | bytes[4 * i + 3];
  }
  for (int i = 16; i < 64; ++i) {
    const uint32_t a = w[i - 15], b = w[i - 2];
    w[i] =
        w[i - 16] + (rotated(a, 7) ^ rotated(a, 18) ^ a >> 3) + w[i - 7] + (rotated(b, 17) ^ rotated(b, 19) ^ b >> 10);
  }
  uint32_t s[8];
  std::copy(state_, state_ + 8, s);
  for (int i = 0; i < 64; i += 8)
    for (int j = 0; j < 8; ++j) {  // the eight words change places instead of moving
      const auto at = [&](int k) -> uint32_t& { return s[(k - j) & 7]; };
      const uint32_t e = at(4), a = at(0);
      const uint32_t first = at(7) + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & at(5)) ^ (~e & at(6))) +
                             kRound[i + j] + w[i + j];
      at(3) += first;
      at(7) = first + (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & at(1)) ^ (a & at(2)) ^ (at(1) & at(2)));
    }
  for (int i = 0; i < 8; ++i) state_[i] += s[i];
}

void Sha256::add(const void* bytes, size_t size) {
  const auto* p = static_cast<const uint8_t*>(bytes);
  size_t held = size_ % 64;
  size_ += size;
  if (held > 0) {
    const size_t more = std::min(size, 64 - held);
    std::memcpy(pending_ + held, p, more);
    if ((held += more) < 64) return;
    block(pending_);
    p += more, size -= more;
  }
  for (; size >= 64; p += 64, size -= 64) block(p);
  if (size > 0) std::memcpy(pending_, p, size);
}

std::string Sha256::digest() {
  const uint64_t bits = 8 * size_;
  const uint8_t one = 0x80, zero = 0;
  add(&one, 1);
  while (size_ % 64 != 56) add(&zero, 1);
  uint8_t length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
  add(length, 8);
  std::string out;
  for (const uint32_t word : state_)
    for (int i = 0; i < 4; ++i) out.push_back(static_cast<char>(word >> (24 - 8 * i)));
  return out;
}

}  // namespace dca::decoder
