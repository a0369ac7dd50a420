#include "dca_config.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "../coder/rans.h"
#include "../ops/cpu_kernels.h"
#include "dca_bytes.h"

namespace dca::decoder {
namespace {

constexpr int64_t kMostWidth = 4096, kMostLevels = 6, kMostBlocks = 64;

int64_t number_within(const std::string& name, const Json& value, int64_t least, int64_t most) {
  if (value.kind != Json::Kind::number || value.number < least || value.number > most) {
    fail(DCA_BAD_WEIGHTS, "bad metadata: %s must be a whole number within %lld..%lld", name.c_str(),
         static_cast<long long>(least), static_cast<long long>(most));
  }
  return value.number;
}

std::pair<int, int> two(const std::string& name, const Json& value, int64_t least, int64_t most) {
  if (value.kind != Json::Kind::array || value.items.size() != 2) {
    fail(DCA_BAD_WEIGHTS, "bad metadata: %s must be two numbers", name.c_str());
  }
  return {static_cast<int>(number_within(name, value.items[0], least, most)),
          static_cast<int>(number_within(name, value.items[1], least, most))};
}

const std::string& text(const std::string& name, const Json& value) {
  if (value.kind != Json::Kind::string) fail(DCA_BAD_WEIGHTS, "bad metadata: %s must be a string", name.c_str());
  return value.string;
}

void require(bool condition, const char* problem) {
  if (!condition) fail(DCA_BAD_WEIGHTS, "bad metadata: %s", problem);
}

// Puts a value where it belongs; whether there is such a name.
bool take(Config& c, const std::string& name, const Json& value) {
  int Config::* const numbers[] = {&Config::width,         &Config::latent,         &Config::latent_hidden,
                                   &Config::context_width, &Config::context_blocks, &Config::heads,
                                   &Config::window,        &Config::local_blocks,   &Config::local,
                                   &Config::regional,      &Config::tokens,         &Config::regional_levels};
  const char* const names[] = {"width",          "latent",   "latent_hidden", "context_width",
                               "context_blocks", "heads",    "window",        "local_blocks",
                               "local",          "regional", "tokens",        "regional_levels"};
  for (size_t i = 0; i < std::size(names); ++i) {
    if (name != names[i]) continue;
    const bool levels = name == "regional_levels";
    c.*numbers[i] = static_cast<int>(number_within(name, value, levels ? 0 : 1, levels ? kMostLevels : kMostWidth));
    return true;
  }
  if (name == "name") {
    c.name = text(name, value);
  } else if (name == "transforms") {
    c.transforms = text(name, value);
  } else if (name == "synthesis_blocks") {
    c.synthesis_blocks = two(name, value, 0, kMostBlocks);
  } else if (name == "contexts") {
    require(value.kind == Json::Kind::array, "contexts must be names");
    c.contexts.clear();
    for (const Json& item : value.items) c.contexts.push_back(text(name, item));
  } else if (name == "merge_once" || name == "shared") {
    require(value.kind == Json::Kind::boolean, "merge_once and shared must be true or false");
    (name == "shared" ? c.shared : c.merge_once) = value.number != 0;
  } else {
    return false;
  }
  return true;
}

constexpr const char* kNames[] = {
    "context_blocks", "context_width",    "contexts",   "heads",      "latent",   "latent_hidden",
    "local",          "local_blocks",     "merge_once", "name",       "regional", "regional_levels",
    "shared",         "synthesis_blocks", "tokens",     "transforms", "width",    "window"};

}  // namespace

Config Config::of(const Json& values) {
  Config c;
  require(values.kind == Json::Kind::object && values.find("name") != nullptr, "not a model configuration");
  for (const auto& [name, value] : values.members) {
    if (name.rfind("analysis_", 0) == 0) continue;  // the encoder's
    if (!take(c, name, value)) fail(DCA_BAD_WEIGHTS, "bad metadata: unknown %s", name.c_str());
  }
  for (const char* name : kNames) {
    if (values.find(name) == nullptr) fail(DCA_BAD_WEIGHTS, "bad metadata: no %s", name);
  }
  require(c.latent % (4 * c.tokens) == 0 && c.latent % 16 == 0, "latent must be divisible by 16 and by 4 * tokens");
  require(c.context_width % c.heads == 0, "context_width must be divisible by heads");
  std::set<std::string> known{"regional", "global", "local"};
  for (const std::string& context : c.contexts) require(known.erase(context) == 1, "contexts must be distinct ones");
  require(kAlign / kStride % c.window == 0, "window must divide 4");
  require(c.transforms == "patch", "only the patch transforms have an integer program");
  return c;
}

bool Config::has(const std::string& context) const {
  return std::find(contexts.begin(), contexts.end(), context) != contexts.end();
}

std::vector<std::string> Config::latents() const {
  std::vector<std::string> names{"regional"};
  for (const std::string& context : contexts)
    if (context != "regional") names.push_back(context);
  return names;
}

std::vector<std::string> Config::stages() const { return has("regional") ? contexts : latents(); }

int Config::channels(const std::string& name) const {
  return name == "local" ? local : name == "regional" ? regional : latent;
}

std::string Config::decoder_text() const {
  const auto number = [](int n) { return std::to_string(n); };
  const auto truth = [](bool b) { return std::string(b ? "true" : "false"); };
  std::string names;
  for (const std::string& context : contexts) names += (names.empty() ? "" : ", ") + json_text(context);
  const std::map<std::string, std::string> values{
      {"context_blocks", number(context_blocks)},
      {"context_width", number(context_width)},
      {"contexts", "[" + names + "]"},
      {"heads", number(heads)},
      {"latent", number(latent)},
      {"latent_hidden", number(latent_hidden)},
      {"local", number(local)},
      {"local_blocks", number(local_blocks)},
      {"merge_once", truth(merge_once)},
      {"name", json_text(name)},
      {"regional", number(regional)},
      {"regional_levels", number(regional_levels)},
      {"shared", truth(shared)},
      {"synthesis_blocks", "[" + number(synthesis_blocks.first) + ", " + number(synthesis_blocks.second) + "]"},
      {"tokens", number(tokens)},
      {"transforms", json_text(transforms)},
      {"width", number(width)},
      {"window", number(window)},
  };
  std::string out;
  for (const auto& [key, value] : values) out += (out.empty() ? "" : ", ") + json_text(key) + ": " + value;
  return "{" + out + "}";
}

size_t bytes_of(Type type) { return type == Type::int16 ? 2 : type == Type::int32 || type == Type::float32 ? 4 : 1; }

const char* name_of(Type type) {
  const char* const names[] = {"int8", "uint8", "int16", "int32", "float32", "of another type"};
  return names[static_cast<size_t>(type)];
}

bool ends(const std::string& name, const char* with) {
  const size_t size = std::strlen(with);
  return name.size() >= size && name.compare(name.size() - size, size, with) == 0;
}

bool is_of_encoder(const std::string& name) {
  const auto starts = [&](const char* with, size_t at) {
    return name.compare(at, std::string(with).size(), with) == 0;
  };
  if (starts("analysis.", 0) || name == "latent.operand8" || name == "latent.quantise") return true;
  if (!starts("hyper.", 0)) return false;
  const size_t at = name.find('.', 6);
  return at != std::string::npos && (starts("analysis_", at + 1) || starts("queries", at + 1));
}

namespace {

// Collects the tensors of layers by their names.
struct Layers {
  Layout tensors;

  void put(const std::string& name, Type type, std::vector<int64_t> shape) { tensors[name] = {type, std::move(shape)}; }

  void linear(const std::string& name, int inputs, int outputs, bool wide = false, bool conditional = false) {
    put(name + ".w", wide ? Type::int16 : Type::int8, {outputs, inputs});
    put(name + ".b", Type::int32, {outputs});
    put(name + ".m", Type::float32, {outputs});
    if (conditional) put(name + ".slope", Type::int32, {outputs});
  }

  void depth(const std::string& name, int channels, int hidden) {
    put(name + ".m_in", Type::float32, {channels});
    linear(name + ".expand", channels, hidden, false, true);
    put(name + ".depthwise.w", Type::int8, {3, 3, hidden});
    put(name + ".depthwise.b", Type::int32, {hidden});
    put(name + ".depthwise.m", Type::float32, {hidden});
    linear(name + ".project", hidden, channels);
  }

  void gated(const std::string& name, int channels, int hidden) {
    put(name + ".m_in", Type::float32, {channels});
    linear(name + ".expand", channels, 2 * hidden);
    linear(name + ".project", hidden, channels);
  }

  void block(const std::string& name, int channels, int hidden) {
    depth(name + ".depth", channels, hidden);
    gated(name + ".ffn", channels, hidden);
  }

  void blocks(const std::string& name, int count, int channels, int hidden) {
    for (int i = 0; i < count; ++i) block(name + "." + std::to_string(i), channels, hidden);
  }

  void windows(const std::string& name, const Config& c) {
    const int d = c.context_width, area = c.window * c.window;
    for (int i = 0; i < c.local_blocks; ++i) {
      const std::string attention = name + ".attention." + std::to_string(i);
      linear(attention + ".qkv", d, 3 * d);
      linear(attention + ".out", d, d);
      put(attention + ".bias", Type::int32, {c.heads, area, area});
      gated(name + ".ffn." + std::to_string(i), d, d);
    }
  }

  void transforms(const Config& c) {
    const int pixels = 3 * 8 * 8;
    blocks("synthesis.blocks8", c.synthesis_blocks.first, c.width, c.width);
    blocks("synthesis.blocks16", c.synthesis_blocks.second, c.latent, c.latent_hidden);
    linear("synthesis.split", c.latent, 4 * c.width, true);
    linear("synthesis.pixels", c.width, pixels, true);
    put("latent.operand16", Type::float32, {c.latent});
    put("latent.dequantise", Type::float32, {c.latent});
    put("latent.log2_gain", Type::int32, {kAnchors, c.latent});
  }

  void local(const Config& c) {
    const std::string name = "hyper.local";
    linear(name + ".synthesis_in", c.local, c.context_width, true);
    windows(name + ".synthesis_blocks", c);
  }

  void regional(const Config& c) {
    const std::string name = "hyper.regional";
    const int r = c.regional;
    block(name + ".synthesis_block", r, r);
    linear(name + ".synthesis_in", r, 4 * r, true);
    linear(name + ".synthesis_up", r, 4 * c.context_width);
  }

  void global(const Config& c) {
    const std::string name = "hyper.global";
    const int d = c.context_width, size = c.latent / c.tokens;
    linear(name + ".synthesis_in", size, d, true);
    linear(name + ".synthesis_kv", d, 2 * d);
  }

  void factorised(const std::string& latent, const Config& c) {
    const std::string name = "factorised." + latent;
    const int channels = c.channels(latent), kinds = 2 * c.levels(latent);
    for (const char* table : {".log2_scale", ".log2_gain"}) put(name + table, Type::int32, {kAnchors, channels});
    if (kinds == 0) return;
    put(name + ".log2_wider", Type::int32, {kinds, channels});
    put(name + ".weight", Type::float32, {kinds, channels});
  }

  void context(const Config& c) {
    const int d = c.context_width, outputs = 2 * c.group();
    for (int i = 0; i + 1 < kSteps; ++i) linear("context.decoded." + std::to_string(i), c.latent, d, true);
    for (int i = 0; i < kSteps; ++i) linear("context.feature." + std::to_string(i), d, d, false, true);
    if (c.has("local")) linear("context.local", d, d);
    for (int i = 0; i < c.cores(); ++i) {
      const std::string name = "context.cores." + std::to_string(i);
      blocks(name + ".regional_blocks", c.context_blocks, d, d);
      if (c.has("global")) {
        linear(name + ".global_attention.query", d, d);
        linear(name + ".global_attention.out", d, d);
        gated(name + ".global_ffn", d, d);
      }
      if (c.has("local")) gated(name + ".local_ffn", d, d);
      put(name + ".heads.w", Type::int8, {4, outputs, d});
      put(name + ".heads.b", Type::int32, {4, outputs});
      put(name + ".heads.m", Type::float32, {4, outputs});
    }
  }
};

}  // namespace

Layout layout_of(const Config& config) {
  Layers layers;
  layers.transforms(config);
  layers.regional(config);
  if (config.has("local")) layers.local(config);
  if (config.has("global")) layers.global(config);
  for (const std::string& latent : config.latents()) layers.factorised(latent, config);
  layers.context(config);
  layers.put("tables.exp2", Type::float32, {kLog2One});
  layers.put("tables.softmax", Type::uint8, {kTableSize});
  layers.put("tables.freq", Type::int16, {rans::kTableRows, rans::kSymbols});
  layers.put("tables.shift", Type::uint8, {rans::kTableRows});
  return layers.tensors;
}

std::vector<Layout> preview_layouts(const Config& config) {
  std::vector<Layout> parts;
  for (const int reduce : {8, 16}) {
    Layers layers;
    const int side = kStride / reduce;
    layers.linear("preview." + std::to_string(reduce), config.latent, 3 * side * side, true);
    parts.push_back(layers.tensors);
  }
  return parts;
}

}  // namespace dca::decoder
