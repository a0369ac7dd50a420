// Files against the whole C library, from bytes to pixels, with the weights that DCA_WEIGHTS names.
//
// Inputs are .dca files. What a hostile writer would put right is put right, so that changes reach the decoders: the
// start, the model id, the checksum, and of files with a network the digest of the symbols that they hold.
#include <cstring>
#include <string>

#include "../../csrc/decoder/dca_picture.h"
#include "../../csrc/decoder/dca_walk.h"
#include "input.h"

using namespace dca::decoder;
using fuzz::Bytes;
using fuzz::require;

namespace {

constexpr uint64_t kPixels = 1 << 14;
// A decoder keeps the networks of so many qualities; to make one takes longer than to decode a small picture.
constexpr int kQualities[] = {0, 1, 1249, 3334, 5000, 7777, 9999, 10000};

dca_decoder* decoder = nullptr;
std::unique_ptr<Programs> programs;

// A part, anywhere, of a picture that was decoded whole.
void decode_part(const Bytes& file, const dca_info& whole, const uint8_t* picture) {
  const uint32_t left = picture[0] % whole.width, top = picture[whole.row_bytes - 1] % whole.height;
  const uint32_t width = 1 + file.back() % (whole.width - left),
                 height = 1 + file[file.size() / 2] % (whole.height - top);
  dca_info info;
  void* pixels = nullptr;
  const dca_status status =
      dca_decode_region(decoder, file.data(), file.size(), left, top, width, height, &info, &pixels, nullptr);
  require(status == DCA_OK && info.width == width && info.height == height, "a part of a picture that decodes");
  const size_t pixel = whole.row_bytes / whole.width;
  for (uint32_t y = 0; y < height; ++y) {
    const uint8_t* from = picture + (top + y) * whole.row_bytes + left * pixel;
    const auto* part = static_cast<uint8_t*>(pixels) + y * info.row_bytes;
    require(std::memcmp(part, from, info.row_bytes) == 0, "a part is that of the whole");
  }
  dca_free(pixels);
}

void decode(const Bytes& file, int reduce) {
  dca_info info;
  dca_error error;
  void* pixels = nullptr;
  const dca_status status = dca_decode_preview(decoder, file.data(), file.size(), reduce, &info, &pixels, &error);
  require(status == error.status && (status == DCA_OK) == (pixels != nullptr), "what was returned");
  require(status != DCA_OUT_OF_MEMORY && status < DCA_BAD_WEIGHTS, "a file has the error of a file");
  require(std::memchr(error.message, 0, sizeof error.message) != nullptr, "the message has an end");
  if (pixels == nullptr) return;
  uint8_t sum = 0;  // reads all of it, and the metadata
  for (size_t i = 0; i < info.row_bytes * info.height; ++i) sum ^= static_cast<uint8_t*>(pixels)[i];
  for (const dca_bytes& block : {info.icc, info.exif, info.xmp})
    for (size_t i = 0; i < block.size; ++i) sum ^= block.data[i];
  volatile uint8_t kept = sum;
  (void)kept;
  if (reduce == 1) decode_part(file, info, static_cast<uint8_t*>(pixels));
  dca_free(pixels);
}

void put32(uint8_t* to, uint32_t value) {
  for (size_t i = 0; i < 4; ++i) to[i] = static_cast<uint8_t>(value >> (8 * i));
}

void seal(Bytes& file) { put32(file.data() + file.size() - 4, crc32(0, file.data(), file.size() - 4)); }

// Where the digest of the symbols stands: behind two numbers in LEB128 and the quality.
size_t digest_at(const Bytes& file) {
  size_t at = 12;
  for (int number = 0; number < 2; ++number)
    while (file[at++] >= 0x80) continue;
  return at + 2;
}

// Puts right what can be; files that are too short stay as they are.
void mend(Bytes& file) {
  constexpr uint8_t start[] = {0x89, 'D', 'C', 'A', '\r', '\n', kFormatVersion};
  constexpr uint8_t exact = 8;
  if (file.size() < 24) return;
  std::copy(std::begin(start), std::end(start), file.begin());
  const auto& id = programs->model().weights.model_id;
  file[7] & exact ? std::fill_n(file.begin() + 8, 4, uint8_t{0}) : std::copy(id.begin(), id.end(), file.begin() + 8);
  seal(file);
  try {
    File parsed = parse({file.data(), file.size()}, kPixels);
    if (parsed.exact) return;
    const int quality = kQualities[parsed.quality % 8];
    file[digest_at(file) - 2] = static_cast<uint8_t>(quality);
    file[digest_at(file) - 1] = static_cast<uint8_t>(quality >> 8);
    seal(file);
    parsed = parse({file.data(), file.size()}, kPixels);
    const auto program = programs->at(parsed.quality);
    const Grid grid = Grid::of(parsed.height, parsed.width);
    const Latent latent = decode_latent(*program, *dca::rans::available_paths().front(), parsed.stream, grid,
                                        {0, 0, grid.w, grid.h}, parsed.aq, 1);
    uint8_t* digest = file.data() + digest_at(file);
    put32(digest, little32(digest) ^ parsed.digest ^ latent.digest);
    seal(file);
  } catch (const Error&) {
  } catch (const dca::rans::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  const Bytes weights = fuzz::weights_content();
  const dca_options options{1, kPixels, nullptr};
  require(dca_decoder_new(weights.data(), weights.size(), &options, &decoder, nullptr) == DCA_OK, "weights");
  programs = std::make_unique<Programs>(std::make_shared<Model>(read_weights({weights.data(), weights.size()})));
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes file(data, data + size);
  decode(file, 1);
  mend(file);
  const size_t last = size == 0 ? 0 : data[size - 1];  // of a checksum, which is mended: it has no other meaning
  decode(file, last % 2 ? 1 : 1 << last / 2 % 5);
  return 0;
}
