// What a weights file says about its network, and which tensors it holds: dca_fast/config.py, network/layout.py.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "dca_json.h"

namespace dca::decoder {

constexpr int kSteps = 4;    // of the latent
constexpr int kAlign = 64;   // pixels to a multiple of which pictures are padded
constexpr int kStride = 16;  // pixels of a side of a latent site
constexpr int kAnchors = 9;  // knots of gains and scales over the quality axis
constexpr int kLog2One = 4096;

struct Config {
  std::string name, transforms;
  int width = 0, latent = 0, latent_hidden = 0;
  std::pair<int, int> synthesis_blocks;  // at 1/8 and 1/16
  int context_width = 0, context_blocks = 0, heads = 0, window = 0, local_blocks = 0;
  int local = 0, regional = 0, regional_levels = 0, tokens = 0;
  std::vector<std::string> contexts;
  bool merge_once = false, shared = false;

  // Throws Error (DCA_BAD_WEIGHTS) for values that make no sense, and for another network than this decoder's.
  static Config of(const Json& values);

  bool has(const std::string& context) const;
  std::vector<std::string> latents() const;  // hyper latents: the regional one and the contexts
  std::vector<std::string> stages() const;   // of c in order
  int cores() const { return shared ? 1 : kSteps; }
  int levels(const std::string& latent) const { return latent == "regional" ? regional_levels : 0; }
  int channels(const std::string& latent) const;  // entries of its tables
  int group() const { return latent / 4; }

  // The part of it that decoders look at, as Python's json.dumps writes it with sorted keys.
  std::string decoder_text() const;
};

enum class Type { int8, uint8, int16, int32, float32, other };

size_t bytes_of(Type type);
const char* name_of(Type type);

struct Spec {
  Type type;
  std::vector<int64_t> shape;
  bool operator==(const Spec& other) const { return type == other.type && shape == other.shape; }
};

using Layout = std::map<std::string, Spec>;

// Whether a name has this end.
bool ends(const std::string& name, const char* with);

// Every tensor of the weights of a configuration.
Layout layout_of(const Config& config);
// Those that weights hold besides, or do not: of each reduced picture.
std::vector<Layout> preview_layouts(const Config& config);
// Whether no decoder reads the tensor.
bool is_of_encoder(const std::string& name);

}  // namespace dca::decoder
