#include "dca_weights.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <tuple>

#include "../coder/rans.h"
#include "../ops/cpu_kernels.h"

namespace dca::decoder {
namespace {

constexpr int kWeightsFormat = 3;
constexpr int kIdentityFormat = 3;  // stays, so that a model keeps its id in other files
constexpr uint64_t kMostHeader = uint64_t{1} << 24;
constexpr double kAccumulator = 2147483647.0, kResult = 2147483648.0 - 1024;  // the latter's float is below 2^31
constexpr double kMultiplier = 65504;  // of 16-bit values, so that no result leaves 32 bits
constexpr int64_t kScoreLimit = 1 << 20, kLog2Limit = 1 << 18;

struct Stored {
  Spec spec;
  Span bytes;
};
using Stock = std::map<std::string, Stored>;

Type type_named(const std::string& name) {
  const char* const names[] = {"I8", "U8", "I16", "I32", "F32"};
  for (size_t i = 0; i < std::size(names); ++i)
    if (name == names[i]) return static_cast<Type>(i);
  return Type::other;
}

// A tensor of the header, `data` being all of their bytes.
Stored stored(const std::string& name, const Json& entry, Span data) {
  const Json *type = entry.find("dtype"), *shape = entry.find("shape"), *range = entry.find("data_offsets");
  const bool whole = type != nullptr && shape != nullptr && range != nullptr && entry.members.size() == 3 &&
                     type->kind == Json::Kind::string && shape->kind == Json::Kind::array && range->items.size() == 2;
  if (!whole) fail(DCA_BAD_WEIGHTS, "%s is not described", name.c_str());
  Stored out{{type_named(type->string), {}}, {}};
  const bool skipped = is_of_encoder(name);  // which may be of any type
  if (out.spec.type == Type::other && !skipped) fail(DCA_BAD_WEIGHTS, "%s is of another type", name.c_str());
  uint64_t bytes = bytes_of(out.spec.type);
  for (const Json& length : shape->items) {
    if (length.kind != Json::Kind::number) fail(DCA_BAD_WEIGHTS, "%s is not described", name.c_str());
    if (skipped) continue;
    if (length.number < 1 || length.number > 1 << 20 || bytes > data.size) {
      fail(DCA_BAD_WEIGHTS, "%s has another shape", name.c_str());
    }
    out.spec.shape.push_back(length.number);
    bytes *= static_cast<uint64_t>(length.number);
  }
  const Json &begin = range->items[0], &end = range->items[1];
  if (begin.kind != Json::Kind::number || end.kind != Json::Kind::number || begin.number < 0 ||
      end.number < begin.number || static_cast<uint64_t>(end.number) > data.size ||
      (!skipped && static_cast<uint64_t>(end.number - begin.number) != bytes)) {
    fail(DCA_BAD_WEIGHTS, "%s does not lie within the file", name.c_str());
  }
  out.bytes = data.part(static_cast<size_t>(begin.number), static_cast<size_t>(end.number - begin.number));
  return out;
}

// Tensors must follow each other without holes to the end of the file.
void check_cover(const Stock& stock, Span data) {
  std::vector<Span> parts;
  for (const auto& [name, tensor] : stock) parts.push_back(tensor.bytes);
  std::sort(parts.begin(), parts.end(),
            [](Span a, Span b) { return std::tie(a.data, a.size) < std::tie(b.data, b.size); });  // empty ones first
  const uint8_t* at = data.data;
  for (const Span part : parts) {
    if (part.data != at) fail(DCA_BAD_WEIGHTS, "tensors overlap, or leave holes");
    at += part.size;
  }
  if (at != data.data + data.size) fail(DCA_BAD_WEIGHTS, "bytes are left over behind the tensors");
}

// Of what decoders read (docs/spec/weights.md).
std::string identity_of(const Config& config, int skip, const Stock& stock) {
  Sha256 hash;
  hash.add("{\"config\": " + config.decoder_text() + ", \"format\": " + std::to_string(kIdentityFormat) +
           ", \"skip\": " + std::to_string(skip) + "}");
  for (const auto& [name, tensor] : stock) {
    if (is_of_encoder(name)) continue;
    std::string shape;
    for (const int64_t length : tensor.spec.shape) shape += (shape.empty() ? "" : ", ") + std::to_string(length);
    if (tensor.spec.shape.size() == 1) shape += ",";
    hash.add("\n" + name + " torch." + name_of(tensor.spec.type) + " (" + shape + ")\n");
    hash.add(tensor.bytes.data, tensor.bytes.size);
  }
  return hash.digest();
}

std::string hexadecimal(const std::string& bytes) {
  std::string out;
  for (const char byte : bytes)
    for (const int shift : {4, 0}) out.push_back("0123456789abcdef"[static_cast<uint8_t>(byte) >> shift & 15]);
  return out;
}

void check_layout(const Config& config, const Stock& stock) {
  const int blocks = config.context_blocks * config.cores() + (config.has("local") ? config.local_blocks : 0);
  if (static_cast<size_t>(blocks) > stock.size()) fail(DCA_BAD_WEIGHTS, "the file lacks most of %d blocks", blocks);
  Layout wanted = layout_of(config);  // a list of all that a configuration claims
  for (const Layout& preview : preview_layouts(config)) {
    const bool any = std::any_of(preview.begin(), preview.end(), [&](const auto& t) { return stock.count(t.first); });
    if (any) wanted.insert(preview.begin(), preview.end());
  }
  for (const auto& [name, spec] : wanted) {
    const auto given = stock.find(name);
    if (given == stock.end()) fail(DCA_BAD_WEIGHTS, "the file lacks %s", name.c_str());
    if (!(given->second.spec == spec)) fail(DCA_BAD_WEIGHTS, "%s has another type or shape", name.c_str());
  }
  for (const auto& [name, tensor] : stock) {
    if (!wanted.count(name) && !is_of_encoder(name)) fail(DCA_BAD_WEIGHTS, "the network has no %s", name.c_str());
  }
}

// Whether a tensor of integers has one beyond +-limit.
bool beyond(const Tensor& t, int64_t limit) {
  const auto* values = t.as<int32_t>();
  return std::any_of(values, values + t.size(), [&](int32_t v) { return std::abs(int64_t{v}) > limit; });
}

class Checks {
 public:
  explicit Checks(const std::map<std::string, Tensor>& tensors) : tensors_(tensors) {}

  void run() const {
    for (const auto& [name, t] : tensors_) {
      if (t.spec.type == Type::float32) {
        multipliers(name, t);
      } else if (ends(name, ".w")) {
        t.spec.type == Type::int8 ? layer<int8_t>(name, t, 127) : layer<int16_t>(name, t, 32767);
      } else if (ends(name, ".bias") && beyond(t, kScoreLimit)) {
        fail(DCA_BAD_WEIGHTS, "%s exceeds the range of attention scores", name.c_str());
      } else if (name.find(".log2_") != std::string::npos) {
        if (beyond(t, kLog2Limit)) fail(DCA_BAD_WEIGHTS, "%s is beyond %d octaves", name.c_str(), 64);
        if (ends(name, ".log2_gain")) gains(name, t);
      }
    }
    const auto* softmax = tensors_.at("tables.softmax").as<uint8_t>();
    if (softmax[0] != 127 || *std::max_element(softmax, softmax + kTableSize) > 127) {
      fail(DCA_BAD_WEIGHTS, "tables.softmax must start with its largest value, 127");
    }
    entropy_tables();
  }

 private:
  static void multipliers(const std::string& name, const Tensor& t) {
    for (const float *m = t.as<float>(), *end = m + t.size(); m != end; ++m) {
      if (!(std::abs(*m) < kMultiplier)) {
        fail(DCA_BAD_WEIGHTS, "%s is not finite, or larger than any multiplier", name.c_str());
      }
      if (name == "tables.exp2" && !(*m >= 1 && *m < 2)) fail(DCA_BAD_WEIGHTS, "tables.exp2 must be within 1 and 2");
    }
  }

  // Accumulators and results, whatever the operands.
  template <class T>
  void layer(const std::string& name, const Tensor& t, int64_t operand) const {
    const std::string base = name.substr(0, name.size() - 2);
    const bool depthwise = t.spec.shape.size() == 3 && t.spec.shape[0] == 3;
    const int64_t inner = depthwise ? 9 : t.last(), outputs = t.size() / inner;
    const auto* bias = tensors_.at(base + ".b").as<int32_t>();
    const auto* scale = tensors_.at(base + ".m").as<float>();
    const auto slope = tensors_.find(base + ".slope");
    const T* w = t.as<T>();
    for (int64_t i = 0; i < outputs; ++i) {
      int64_t total = 0;
      for (int64_t j = 0; j < inner; ++j) total += std::abs(int64_t{w[depthwise ? j * outputs + i : i * inner + j]});
      int64_t worst = operand * total + std::abs(int64_t{bias[i]});
      if (slope != tensors_.end()) worst += std::abs(int64_t{slope->second.as<int32_t>()[i]});
      if (static_cast<double>(worst) > kAccumulator) {
        fail(DCA_BAD_WEIGHTS, "%s can overflow a 32-bit accumulator", base.c_str());
      }
      // Heads clamp before they round, and their multipliers depend on the quality.
      if (!ends(base, ".heads") && !(static_cast<double>(worst) * std::abs(double{scale[i]}) < kResult)) {
        fail(DCA_BAD_WEIGHTS, "%s can overflow a 32-bit result", base.c_str());
      }
    }
  }

  // Those of every quality: they are linear between knots in octaves.
  void gains(const std::string& name, const Tensor& t) const {
    const bool y = name.compare(0, 7, "latent.") == 0;
    const auto* factors = y ? tensors_.at("latent.dequantise").as<float>() : nullptr;
    for (int64_t i = 0; i < t.size(); ++i) {
      const double octaves = double(t.as<int32_t>()[i]) / kLog2One;
      const double inverse = std::exp2(-octaves) * (y ? std::abs(double{factors[i % t.last()]}) : 1);
      if (!(std::exp2(octaves) < kMultiplier && inverse < kMultiplier)) {
        fail(DCA_BAD_WEIGHTS, "%s makes gains beyond %g", name.c_str(), kMultiplier);
      }
    }
  }

  void entropy_tables() const {
    const auto* freq = tensors_.at("tables.freq").as<uint16_t>();
    const auto* shift = tensors_.at("tables.shift").as<uint8_t>();
    for (int row = 0; row < rans::kTableRows; ++row, freq += rans::kSymbols) {
      uint32_t sum = 0, most = 0;
      for (int i = 0; i < rans::kSymbols; ++i) sum += freq[i], most = std::max<uint32_t>(most, freq[i]);
      if (sum != rans::kSlots || most >= rans::kSlots || freq[rans::kEscape] == 0 || shift[row] > rans::kMaxShift) {
        fail(DCA_BAD_WEIGHTS, "table row %d breaks the format", row);
      }
    }
  }

  const std::map<std::string, Tensor>& tensors_;
};

}  // namespace

Weights read_weights(Span file) {
  if (file.size < 8) fail(DCA_BAD_WEIGHTS, "no weights file: %zu bytes", file.size);
  const uint64_t size = little32(file.data) | static_cast<uint64_t>(little32(file.data + 4)) << 32;
  if (size > kMostHeader || size > file.size - 8) fail(DCA_BAD_WEIGHTS, "no weights file, or one that was cut");
  const Span data = file.from(8 + static_cast<size_t>(size));
  const Json header = parse_json({reinterpret_cast<const char*>(file.data + 8), static_cast<size_t>(size)});
  const Json* given = header.find("__metadata__");
  const Json* metadata = given == nullptr ? nullptr : given->find("dca_fast");
  const Json* claimed = given == nullptr ? nullptr : given->find("identity");
  if (metadata == nullptr || metadata->kind != Json::Kind::string) fail(DCA_BAD_WEIGHTS, "no dca-fast weights");
  for (const auto& [name, value] : given->members) {
    if (value.kind != Json::Kind::string) fail(DCA_BAD_WEIGHTS, "%s is not a string", name.c_str());
  }
  const Json facts = parse_json(metadata->string);
  const Json *format = facts.find("format"), *config = facts.find("config"), *skip = facts.find("skip");
  if (format == nullptr || format->kind != Json::Kind::number || format->number != kWeightsFormat) {
    fail(DCA_BAD_WEIGHTS, "weights of another format; this library reads format %d", kWeightsFormat);
  }
  Weights weights;
  weights.config = Config::of(config == nullptr ? Json() : *config);
  if (skip == nullptr || skip->kind != Json::Kind::number || skip->number < 0 || skip->number > kMaxRow + 1) {
    fail(DCA_BAD_WEIGHTS, "bad metadata: the first row that is coded");
  }
  weights.skip = static_cast<int>(skip->number);
  Stock stock;
  for (const auto& [name, entry] : header.members)
    if (name != "__metadata__") stock.emplace(name, stored(name, entry, data));
  check_cover(stock, data);
  check_layout(weights.config, stock);
  const std::string identity = identity_of(weights.config, weights.skip, stock);
  if (claimed == nullptr || claimed->string != hexadecimal(identity)) {
    fail(DCA_BAD_WEIGHTS, "the weights are damaged: they do not have the identity in their metadata");
  }
  std::copy_n(identity.begin(), 4, weights.model_id.begin());
  for (const auto& [name, tensor] : stock) {
    if (is_of_encoder(name)) continue;
    const auto* bytes = reinterpret_cast<const char*>(tensor.bytes.data);
    weights.tensors[name] = {tensor.spec, {bytes, bytes + tensor.bytes.size}};
  }
  Checks(weights.tensors).run();
  return weights;
}

}  // namespace dca::decoder
