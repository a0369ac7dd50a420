// Weights with other values, shapes, types, names and configurations, under a right identity: they are refused with one
// error, or decode without a fault. DCA_WEIGHTS names the file that is changed, a small one.
//
// An input is a list of changes, and then the stream of a picture.
#include <cmath>
#include <string>

#include "../../csrc/decoder/dca_walk.h"
// For the parts that are no other file's business: the tensors as they are stored, and their identity.
#include "../../csrc/decoder/dca_weights.cpp"
#include "input.h"

using namespace dca::decoder;
using fuzz::Input;
using fuzz::require;

namespace {

fuzz::Bytes content;
Json own_header, own_facts;

std::string text_of(const Json& value) {
  std::string out;
  switch (value.kind) {
    case Json::Kind::null:
      return "null";
    case Json::Kind::boolean:
      return value.number ? "true" : "false";
    case Json::Kind::number:
      return std::to_string(value.number);
    case Json::Kind::string:
      return json_text(value.string);
    case Json::Kind::array:
      for (const Json& item : value.items) out += (out.empty() ? "" : ",") + text_of(item);
      return "[" + out + "]";
    case Json::Kind::object:
      for (const auto& [name, member] : value.members) {
        out += (out.empty() ? "" : ",") + json_text(name) + ":" + text_of(member);
      }
  }
  return "{" + out + "}";
}

Json of_number(int64_t number) {
  Json value;
  value.kind = Json::Kind::number;
  value.number = number;
  return value;
}

Json of_string(const std::string& string) {
  Json value;
  value.kind = Json::Kind::string;
  value.string = string;
  return value;
}

int64_t any_number(Input& input) {
  const int64_t small = input.below(256);
  switch (input.below(4)) {
    case 0:
      return small;
    case 1:
      return -small;
    case 2:
      return int64_t{1} << small % 62;
    default:
      return static_cast<int32_t>(input.number(4));
  }
}

struct Change {
  Json header = own_header, facts = own_facts;
  std::map<std::string, std::string> tensors;  // their bytes, where they are others than in the file
};

// Another value of a type, at the place of one or of every one.
void change_values(Input& input, std::string& bytes, const std::string& type) {
  const size_t size = type == "F32" || type == "I32" ? 4 : type == "I16" ? 2 : 1;
  const size_t count = bytes.size() / size;
  if (count == 0) return;
  uint32_t value = input.number(4);
  if (type == "F32") {
    const float some[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 65504.0f, 65503.9f, -65503.9f, 1e-45f, 1.0f, 2.0f};
    if (const uint32_t which = input.below(16); which < std::size(some)) std::memcpy(&value, &some[which], 4);
  } else if (input.below(2)) {
    value = input.below(2) ? 0x7fffffffu >> (32 - 8 * size) : 0x80000000u >> (32 - 8 * size);
  }
  const bool all = input.below(4) == 0;
  const size_t at = input.number(4) % count;
  for (size_t i = all ? 0 : at; i < (all ? count : at + 1); ++i) std::memcpy(&bytes[i * size], &value, size);
}

void change(Input& input, Change& made) {
  auto& members = made.header.members;
  auto tensor = std::next(members.begin(), static_cast<std::ptrdiff_t>(input.number(2) % members.size()));
  const std::string name = tensor->first;
  auto& config = made.facts.members["config"].members;
  const uint32_t kind = input.below(16);
  if (kind < 3) {
    if (config.empty()) return;
    auto value = std::next(config.begin(), input.below(static_cast<uint32_t>(config.size())));
    const uint32_t how = input.below(8);
    if (how == 0) {
      config.erase(value);
    } else if (how == 1) {
      value->second = Json();
    } else if (how < 4) {
      auto other = std::next(config.begin(), input.below(static_cast<uint32_t>(config.size())));
      value->second = other->second;
    } else if (!value->second.items.empty()) {
      Json& item = value->second.items[input.below(static_cast<uint32_t>(value->second.items.size()))];
      how < 6 ? item = of_number(any_number(input)) : item = value->second.items.front();
    } else {
      value->second = of_number(how == 4 ? any_number(input) : value->second.number + any_number(input));
    }
  } else if (kind == 3) {
    made.facts.members["skip"] = of_number(any_number(input));
  } else if (name == "__metadata__" || made.tensors.count(name) == 0) {
    return;
  } else if (kind < 11) {
    change_values(input, made.tensors[name], tensor->second.members["dtype"].string);
  } else if (kind == 11) {
    Json& shape = tensor->second.members["shape"];
    if (shape.items.empty() || input.below(8) == 0) shape.items.push_back(of_number(1));
    const size_t at = input.below(static_cast<uint32_t>(shape.items.size()));
    shape.items[at] = of_number(input.below(2) ? any_number(input) : shape.items.front().number);
  } else if (kind == 12) {
    const char* const types[] = {"I8", "U8", "I16", "I32", "F32", "F16", "I64", ""};
    tensor->second.members["dtype"] = of_string(types[input.below(8)]);
  } else if (kind == 13) {
    std::string& bytes = made.tensors[name];
    bytes.resize(input.below(2) ? 2 * bytes.size() : input.below(static_cast<uint32_t>(bytes.size()) + 1));
  } else if (kind == 14) {
    made.tensors.erase(name);
    members.erase(tensor);
  } else {
    const std::string other = name + (input.below(2) ? "x" : ".w");
    members[other] = tensor->second;
    made.tensors[other] = made.tensors[name];
  }
}

// A file of what is there now, with the identity that its reader computes.
fuzz::Bytes written(Change& made) {
  std::string data;
  for (const auto& [name, bytes] : made.tensors) {
    Json& offsets = made.header.members[name].members["data_offsets"];
    offsets.items = {of_number(static_cast<int64_t>(data.size())),
                     of_number(static_cast<int64_t>(data.size() + bytes.size()))};
    data += bytes;
  }
  auto& metadata = made.header.members["__metadata__"].members;
  metadata["dca_fast"] = of_string(text_of(made.facts));
  try {
    Stock stock;
    for (const auto& [name, entry] : made.header.members) {
      if (name == "__metadata__") continue;
      stock.emplace(name, stored(name, entry, {reinterpret_cast<const uint8_t*>(data.data()), data.size()}));
    }
    const Config config = Config::of(made.facts.members["config"]);
    const int skip = static_cast<int>(made.facts.members["skip"].number);
    metadata["identity"] = of_string(hexadecimal(identity_of(config, skip, stock)));
  } catch (const Error&) {  // so it is refused, whatever its identity
  }
  const std::string header = text_of(made.header);
  fuzz::Bytes file(8 + header.size() + data.size());
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<uint8_t>(uint64_t{header.size()} >> (8 * i));
  std::copy(header.begin(), header.end(), file.begin() + 8);
  std::copy(data.begin(), data.end(), file.begin() + 8 + static_cast<std::ptrdiff_t>(header.size()));
  return file;
}

// Two pictures with these weights: whatever the stream holds, and all pixels of a latent.
void use(const std::shared_ptr<const Model>& model, int quality, const fuzz::Bytes& stream) {
  const Program program(model, quality);
  const dca::rans::Path& path = *dca::rans::available_paths().front();
  for (const auto& [height, width] : {std::pair(1, 1), std::pair(17, 70)}) {
    const Grid grid = Grid::of(height, width);
    try {
      decode_latent(program, path, {stream.data(), stream.size()}, grid, {0, 0, grid.w, grid.h}, quality % 16, 1);
    } catch (const Error&) {
    } catch (const dca::rans::Error&) {
    }
    Words y_hat(int64_t{grid.h} * grid.w * program.config().latent);
    for (int64_t i = 0; i < y_hat.size(); ++i) {
      y_hat[i] =
          static_cast<int16_t>(stream.empty() ? 32767 : 257 * (stream[static_cast<size_t>(i) % stream.size()] - 128));
    }
    program.synthesise(y_hat.data(), grid.h, grid.w, 0, grid.valid_h);
    for (const int reduce : {8, 16})
      if (program.previews(reduce)) program.preview(y_hat, grid.h, grid.w, reduce);
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  content = fuzz::weights_content();
  const uint64_t size = little32(content.data());
  own_header = parse_json({reinterpret_cast<const char*>(content.data()) + 8, static_cast<size_t>(size)});
  own_facts = parse_json(own_header.members["__metadata__"].members["dca_fast"].string);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  Change made;
  const size_t start = 8 + static_cast<size_t>(little32(content.data()));
  for (auto& [name, entry] : made.header.members) {
    if (name == "__metadata__") continue;
    const auto& range = entry.members["data_offsets"].items;
    const auto* from = reinterpret_cast<const char*>(content.data()) + start;
    made.tensors[name] = {from + range[0].number, from + range[1].number};
  }
  const int quality = static_cast<int>(input.below(10001));
  for (uint32_t changes = input.below(4); changes > 0; --changes) change(input, made);
  const fuzz::Bytes file = written(made);
  try {
    use(std::make_shared<Model>(read_weights({file.data(), file.size()})), quality, input.rest());
  } catch (const Error& refused) {
    require(refused.status == DCA_BAD_WEIGHTS, "weights have one kind of error");
  }
  return 0;
}
