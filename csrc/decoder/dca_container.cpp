#include "dca_container.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace dca::decoder {
namespace {

constexpr uint8_t kMagic[6] = {0x89, 'D', 'C', 'A', '\r', '\n'};
constexpr size_t kCrcBytes = 4, kFirstField = sizeof kMagic + 1;
constexpr int kGray = 1, kSections = 2, kRestoration = 4, kExact = 8, kHighFlags = 4;
constexpr int kMaxSide = 65535, kMaxQuality = 10000, kReservedQuality = 0xc000, kMaxCoefficient = 127;
constexpr uint64_t kMaxSectionBytes = 1 << 24;  // of all but alpha and layer, which grow with the picture
constexpr int kAncillary = 128;                 // the first tag of sections that a reader passes over
constexpr int kLayerDigestBytes = 4, kNumberBytes = 5;
constexpr const char* kNames[kTags] = {"", "ICC", "EXIF", "XMP", "ALPHA", "LAYER"};

// Magic and version.
void check_start(Span data) {
  const size_t seen = std::min(data.size, sizeof kMagic);
  if (seen == 0 || std::memcmp(data.data, kMagic, seen) != 0) {
    fail(DCA_NOT_A_DCA_FILE, "the first bytes are not those of a .dca file");
  }
  if (data.size <= sizeof kMagic) fail(DCA_TRUNCATED_STREAM, "the file ends after %zu bytes, inside the header", seen);
  const int version = data.data[sizeof kMagic];
  if (version != kFormatVersion) {
    fail(DCA_UNSUPPORTED_VERSION, "format version %d; this library reads version %d", version, kFormatVersion);
  }
  if (data.size < kFirstField + kCrcBytes) {
    fail(DCA_TRUNCATED_STREAM, "the file ends after %zu bytes, inside the header", data.size);
  }
}

// Rice codes of the coefficients, with the parameters of `head`, as a writer makes them.
std::vector<uint8_t> packed(const std::vector<int>& numbers, int k, int head) {
  std::vector<uint8_t> bytes{static_cast<uint8_t>(head)};
  int held = 0;
  const auto put = [&](int bit) {
    if (held == 0) bytes.push_back(0);
    bytes.back() = static_cast<uint8_t>(bytes.back() | bit << held);
    held = (held + 1) % 8;
  };
  for (const int n : numbers) {
    const int u = n >= 0 ? 2 * n : -2 * n - 1;
    for (int i = 0; i < u >> k; ++i) put(1);
    put(0);
    for (int i = 0; i < k; ++i) put(u >> i & 1);
  }
  return bytes;
}

// The parameter with which the codes take the fewest bits.
int best_parameter(const std::vector<int>& numbers) {
  int best = 0;
  int64_t least = INT64_MAX;
  for (int k = 0; k < 8; ++k) {
    int64_t bits = 0;
    for (const int n : numbers) bits += ((n >= 0 ? 2 * n : -2 * n - 1) >> k) + 1 + k;
    if (bits < least) least = bits, best = k;
  }
  return best;
}

std::vector<int8_t> read_restoration(Reader& reader) {
  const size_t start = reader.at();
  const int head = reader.byte();
  const int rings = head & 3, k = head >> 2 & 7, shift = head >> 5;
  if (rings == 0) reader.refuse(DCA_CORRUPT_STREAM, "malformed restoration at byte %zu", start);
  int bits = 0, known = 0;
  const auto take = [&] {
    if (known == 0) bits = reader.byte(), known = 8;
    const int bit = bits & 1;
    bits >>= 1, --known;
    return bit;
  };
  std::vector<int> numbers;
  while (numbers.size() < 18 * static_cast<size_t>(rings)) {
    int ones = 0;
    while (take()) {
      if (++ones << k > 2 * kMaxCoefficient) {
        reader.refuse(DCA_CORRUPT_STREAM, "a coefficient of the restoration at byte %zu is too large", reader.at());
      }
    }
    int u = ones << k;
    for (int i = 0; i < k; ++i) u |= take() << i;
    numbers.push_back(u & 1 ? -(u / 2) - 1 : u / 2);
  }
  bool small = true, halves = true;  // whether coefficients are within their range, and numbers could all be halved
  std::vector<int8_t> coefficients;
  for (const int n : numbers) {
    small = small && std::abs(n) <= kMaxCoefficient >> shift;
    halves = halves && n % 2 == 0;
    coefficients.push_back(static_cast<int8_t>(n * (1 << shift)));
  }
  const std::vector<uint8_t> again = packed(numbers, k, head);
  const bool same =
      again.size() == reader.at() - start && std::equal(again.begin(), again.end(), reader.bytes().data + start);
  if (!small || !same || (halves && shift < 7) || best_parameter(numbers) != k) {
    reader.refuse(DCA_CORRUPT_STREAM, "malformed restoration at byte %zu", start);
  }
  return coefficients;
}

std::array<Span, kTags> read_sections(Reader& reader) {
  std::array<Span, kTags> sections;
  int previous = 0;
  for (int tag; (tag = reader.byte()) != 0; previous = tag) {
    if (tag <= previous) {
      reader.refuse(DCA_CORRUPT_STREAM, "section tag %d after %d at byte %zu", tag, previous, reader.at() - 1);
    }
    if (tag >= kTags && tag < kAncillary) reader.refuse(DCA_UNSUPPORTED_VERSION, "unknown section tag %d", tag);
    const char* name = tag < kTags ? kNames[tag] : "ancillary";
    const uint64_t size = reader.number(kNumberBytes);
    if (size == 0) reader.refuse(DCA_CORRUPT_STREAM, "empty %s section at byte %zu", name, reader.at());
    if (size > kMaxSectionBytes && tag != kAlpha && tag != kLayer) {
      reader.refuse(DCA_LIMIT_EXCEEDED, "%s section of %llu bytes, %llu allowed", name,
                    static_cast<unsigned long long>(size), static_cast<unsigned long long>(kMaxSectionBytes));
    }
    const Span payload = reader.take(size);
    if (tag < kTags) sections[static_cast<size_t>(tag)] = payload;
  }
  if (previous == 0) reader.refuse(DCA_CORRUPT_STREAM, "the flags promise sections, but there are none");
  return sections;
}

File read_fields(Reader& reader, uint64_t max_pixels) {
  File file;
  const int flags = reader.byte(), high = flags >> kHighFlags;
  file.exact = (flags & kExact) != 0;
  file.gray = (flags & kGray) != 0;
  if (file.exact && (high > 1 || (flags & kRestoration) != 0)) {
    reader.refuse(DCA_UNSUPPORTED_VERSION, "unknown flags %#04x", static_cast<unsigned>(flags));
  }
  (file.exact ? file.depth : file.aq) = file.exact ? 8 * (1 + high) : high;
  std::memcpy(file.model_id.data(), reader.take(4).data, 4);
  const uint64_t width = reader.number(kNumberBytes), height = reader.number(kNumberBytes);
  const Span quality = reader.take(2);
  file.quality = quality.data[0] | quality.data[1] << 8;
  if (file.quality & kReservedQuality) {
    reader.refuse(DCA_UNSUPPORTED_VERSION, "unknown bits of the quality, %#06x", static_cast<unsigned>(file.quality));
  }
  if (width > kMaxSide || height > kMaxSide) {
    reader.refuse(DCA_LIMIT_EXCEEDED, "%llu x %llu pixels: a side has at most %d",
                  static_cast<unsigned long long>(width), static_cast<unsigned long long>(height), kMaxSide);
  }
  if (width < 1 || height < 1) {
    reader.refuse(DCA_CORRUPT_STREAM, "size %llu x %llu", static_cast<unsigned long long>(width),
                  static_cast<unsigned long long>(height));
  }
  file.width = static_cast<int>(width);
  file.height = static_cast<int>(height);
  if (file.quality > kMaxQuality) {
    reader.refuse(DCA_CORRUPT_STREAM, "quality %d is outside 0..%d hundredths", file.quality, kMaxQuality);
  }
  if (file.exact && file.model_id != std::array<uint8_t, 4>{}) {
    reader.refuse(DCA_CORRUPT_STREAM, "an exact file with the fields of a model");
  }
  if (width * height > max_pixels) {
    reader.refuse(DCA_LIMIT_EXCEEDED, "%d x %d pixels exceed the limit of %llu", file.width, file.height,
                  static_cast<unsigned long long>(max_pixels));
  }
  const uint32_t header = crc32(0, reader.bytes().data, reader.at());
  file.digest = little32(reader.take(4).data);
  const size_t start = reader.at();
  if (flags & kRestoration) file.restoration = read_restoration(reader);
  file.digest ^= crc32(header, reader.bytes().data + start, reader.at() - start);
  if (flags & kSections) file.sections = read_sections(reader);
  if (file.exact && file.has(kLayer)) reader.refuse(DCA_CORRUPT_STREAM, "an exact file with a layer");
  file.stream = reader.rest();
  return file;
}

}  // namespace

File parse(Span data, uint64_t max_pixels) {
  check_start(data);
  const Span body = data.part(0, data.size - kCrcBytes);
  const bool intact = crc32(0, body.data, body.size) == little32(body.data + body.size);
  Reader reader(body, kFirstField, DCA_TRUNCATED_STREAM, !intact);
  File file = read_fields(reader, max_pixels);
  if (!intact) reader.refuse(DCA_CORRUPT_STREAM, "checksum mismatch");
  return file;
}

uint64_t graphic_blocks(Span layer) {
  if (layer.data == nullptr) return 0;
  Reader reader(layer, 0, DCA_CORRUPT_STREAM);
  reader.take(kLayerDigestBytes);
  return reader.number(kNumberBytes);
}

}  // namespace dca::decoder
