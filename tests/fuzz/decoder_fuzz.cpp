// Hostile files and weights against the C library, under AddressSanitizer and UndefinedBehaviorSanitizer.
//
//   cmake -S csrc/decoder -B build/fuzz -DDCA_FUZZ=ON && cmake --build build/fuzz --parallel
//   build/fuzz/decoder_fuzz dca_fast/data/dca-s.safetensors 2000 1 tests/golden/*.dca
//
// mutates those files 2000 times from random seed 1. With -DDCA_FUZZ=ON and Clang it is a target of libFuzzer instead,
// which finds the weights in DCA_WEIGHTS: DCA_WEIGHTS=... build/fuzz/decoder_fuzz CORPUS.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "dca.h"
#include "dca_bytes.h"

namespace {

using Bytes = std::vector<uint8_t>;

dca_decoder* decoder = nullptr;
long counts[16] = {};  // by status

void fail(const char* what) {
  std::fprintf(stderr, "failed: %s\n", what);
  std::abort();
}

Bytes content_of(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(path);
  return Bytes(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

void start(const char* path) {
  const Bytes weights = content_of(path);
  const dca_options options{1, 1 << 15, nullptr};
  if (dca_decoder_new(weights.data(), weights.size(), &options, &decoder, nullptr) != DCA_OK) fail("weights");
}

// A part, anywhere, of a picture that was decoded whole.
void decode_part(const Bytes& file, const dca_info& whole, const uint8_t* picture) {
  const uint32_t left = picture[0] % whole.width, top = picture[whole.row_bytes - 1] % whole.height;
  const uint32_t width = 1 + file.back() % (whole.width - left),
                 height = 1 + file[file.size() / 2] % (whole.height - top);
  dca_info info;
  void* pixels = nullptr;
  if (dca_decode_region(decoder, file.data(), file.size(), left, top, width, height, &info, &pixels, nullptr) !=
          DCA_OK ||
      info.width != width || info.height != height) {
    fail("a part of a picture that decodes");
  }
  const size_t pixel = whole.row_bytes / whole.width;
  for (uint32_t y = 0; y < height; ++y) {
    const uint8_t* from = picture + (top + y) * whole.row_bytes + left * pixel;
    if (std::memcmp(static_cast<uint8_t*>(pixels) + y * info.row_bytes, from, info.row_bytes) != 0) fail("a part");
  }
  dca_free(pixels);
}

void decode(const Bytes& file, int reduce = 1) {
  dca_info info;
  dca_error error;
  void* pixels = nullptr;
  const dca_status status = dca_decode_preview(decoder, file.data(), file.size(), reduce, &info, &pixels, &error);
  if (status != error.status || (status == DCA_OK) != (pixels != nullptr)) fail("what was returned");
  if (std::memchr(error.message, 0, sizeof error.message) == nullptr) fail("the message has no end");
  ++counts[status];
  if (pixels == nullptr) return;
  uint8_t sum = 0;  // reads all of it, and the metadata
  for (size_t i = 0; i < info.row_bytes * info.height; ++i) sum ^= static_cast<uint8_t*>(pixels)[i];
  for (const dca_bytes& block : {info.icc, info.exif, info.xmp})
    for (size_t i = 0; i < block.size; ++i) sum ^= block.data[i];
  volatile uint8_t kept = sum;
  (void)kept;
  if (reduce == 1) decode_part(file, info, static_cast<uint8_t*>(pixels));
  dca_free(pixels);
  if (reduce == 1) decode(file, 2 << (file.size() & 3));
}

// As it is, and with the checksum that a hostile writer would put there.
void both(Bytes file) {
  decode(file);
  if (file.size() < 4) return;
  const uint32_t crc = dca::decoder::crc32(0, file.data(), file.size() - 4);
  for (size_t i = 0; i < 4; ++i) file[file.size() - 4 + i] = static_cast<uint8_t>(crc >> (8 * i));
  decode(file);
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  const char* path = std::getenv("DCA_WEIGHTS");
  if (path == nullptr) fail("DCA_WEIGHTS names no weights");
  start(path);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  both(Bytes(data, data + size));
  return 0;
}

#ifndef DCA_LIBFUZZER

namespace {

std::mt19937 generator;

size_t below(size_t n) { return generator() % n; }

// Bits, bytes, and ranges that are cut out, repeated or taken from elsewhere; many of them at the start.
Bytes mutated(Bytes bytes, size_t head) {
  for (size_t n = 1 + below(4); n > 0 && !bytes.empty(); --n) {
    const size_t at = below(below(2) ? bytes.size() : std::min(bytes.size(), head));
    const size_t size = std::min(1 + below(9), bytes.size() - at);
    const auto from = bytes.begin() + static_cast<ptrdiff_t>(at);
    switch (below(6)) {
      case 0:
        *from = static_cast<uint8_t>(*from ^ 1 << below(8));
        break;
      case 1:
        *from = static_cast<uint8_t>(below(2) ? generator() : below(2) ? 0 : 255);
        break;
      case 2:
        bytes.erase(from, from + static_cast<ptrdiff_t>(size));
        break;
      case 3: {
        const Bytes copy(from, from + static_cast<ptrdiff_t>(size));
        bytes.insert(from, copy.begin(), copy.end());
        break;
      }
      case 4:
        std::copy_n(bytes.begin() + static_cast<ptrdiff_t>(below(bytes.size() - size + 1)), size, from);
        break;
      default:
        if (below(8) == 0) bytes.resize(at);
    }
  }
  return bytes;
}

// Headers of weights files, with as much behind them as makes them a short file.
void weights(const Bytes& file) {
  const Bytes changed = mutated(file, 70000);
  dca_decoder* made = nullptr;
  const dca_status status = dca_decoder_new(changed.data(), changed.size(), nullptr, &made, nullptr);
  if ((status == DCA_OK) != (made != nullptr) || (status != DCA_OK && status != DCA_BAD_WEIGHTS)) fail("weights");
  dca_decoder_free(made);
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 5) {
    std::fprintf(stderr, "usage: decoder_fuzz WEIGHTS COUNT SEED FILE...\n");
    return 2;
  }
  start(arguments[1]);
  const Bytes own = content_of(arguments[1]);
  generator.seed(static_cast<uint32_t>(std::atoi(arguments[3])));
  std::vector<Bytes> files;
  for (int i = 4; i < count; ++i) files.push_back(content_of(arguments[i]));
  for (const Bytes& file : files) decode(file);
  for (int i = 0; i < std::atoi(arguments[2]); ++i) {
    both(mutated(files[below(files.size())], 48));
    if (i % 100 == 0) weights(own);
  }
  for (int i = 0; i <= DCA_OUT_OF_MEMORY; ++i) std::printf("status %d: %ld\n", i, counts[i]);
  dca_decoder_free(decoder);
  return 0;
}

#endif
