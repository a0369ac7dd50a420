// What takes bytes apart before anything is decoded: the container, tables of tiles, JSON, configurations and headers
// of weights.
//
// An input that begins as a .dca file does goes to the container, with its checksum mended; one that begins with T is
// the stream of a picture in tiles, behind their number; one that begins with a brace goes to JSON and, as it may be
// one, to a configuration; any other is a weights file.
#include <string>

#include "../../csrc/decoder/dca_config.h"
#include "../../csrc/decoder/dca_container.h"
#include "../../csrc/decoder/dca_walk.h"
#include "../../csrc/decoder/dca_weights.h"
#include "input.h"

using namespace dca::decoder;
using fuzz::require;

namespace {

void container(fuzz::Bytes file) {
  const uint32_t crc = file.size() < 4 ? 0 : crc32(0, file.data(), file.size() - 4);
  for (size_t i = 0; i < 4 && file.size() >= 4; ++i) file[file.size() - 4 + i] = static_cast<uint8_t>(crc >> (8 * i));
  dca_info info;
  dca_error error;
  const dca_status status = dca_inspect(file.data(), file.size(), &info, &error);
  require(status == error.status && (status == DCA_OK) == (error.message[0] == 0), "a status and its message");
  try {
    const File parsed = parse({file.data(), file.size()}, kMostPixels);
    const uint8_t* end = file.data() + file.size();
    const auto inside = [&](Span span) { return span.data >= file.data() && span.size <= size_t(end - span.data); };
    require(inside(parsed.stream), "the stream lies in the file");
    for (int tag = kIcc; tag < kTags; ++tag) {
      require(!parsed.has(static_cast<Tag>(tag)) || inside(parsed.sections[tag]), "sections lie in the file");
    }
    require(parsed.width >= 1 && parsed.height >= 1 && parsed.restoration.size() % 18 == 0, "fields are in range");
  } catch (const Error& refused) {
    require(refused.status == status, "both find the same fault");
  }
}

void tile_table(Span stream, size_t count) {
  try {
    const std::vector<TileStream> tiles = tile_streams(stream, count);
    require(tiles.size() == count, "as many as there are");
    const uint8_t* at = tiles.front().bytes.data;
    require(at > stream.data, "streams lie behind the table");
    for (const TileStream& tile : tiles) {
      require(tile.bytes.data == at, "streams follow each other");
      at += tile.bytes.size;
    }
    require(at == stream.data + stream.size, "the last one takes the rest");
  } catch (const Error& refused) {
    require(refused.status == DCA_TRUNCATED_STREAM || refused.status == DCA_CORRUPT_STREAM, "the error of a stream");
  }
}

void check_strings(const Json& value) {
  require(parse_json(json_text(value.string)).string == value.string, "a string comes back");
  for (const Json& item : value.items) check_strings(item);
  for (const auto& [name, member] : value.members) {
    require(parse_json(json_text(name)).string == name, "a name comes back");
    check_strings(member);
  }
}

void json(const std::string& text) {
  const Json value = parse_json(text);
  check_strings(value);
  const Config config = Config::of(value);
  require(parse_json(config.decoder_text()).kind == Json::Kind::object, "a configuration has a text");
  require(!layout_of(config).empty() && preview_layouts(config).size() == 2, "a configuration has tensors");
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) { return 0; }

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 0 && data[0] == 0x89) {
    container({data, data + size});
    return 0;
  }
  if (size > 1 && data[0] == 'T') {
    tile_table({data + 2, size - 2}, 2 + size_t{data[1]});
    return 0;
  }
  try {
    if (size > 0 && data[0] == '{') {
      json({data, data + size});
    } else {
      read_weights({data, size});
    }
  } catch (const Error& refused) {
    require(refused.status == DCA_BAD_WEIGHTS, "weights have one kind of error");
  }
  return 0;
}
