#include "dca_model.h"

#include <algorithm>
#include <cmath>

namespace dca::decoder {
namespace {

constexpr int kQualityRange = 10000;
constexpr int kRowsPerOctave = 12;
constexpr int kRowOffset = 13607;                     // log2 10 in 1/4096
constexpr float kOperandOne = 16, kFeatureOne = 256;  // of operands and of the entropy model's features

int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b < 0); }

// 2^(log2 / 4096): a table entry times a power of two, exact on every machine.
float exp2_of(const float* table, int64_t log2) {
  return std::ldexp(table[log2 & (kLog2One - 1)], static_cast<int>(log2 >> 12));
}

bool is_matrix(const Tensor& t) { return t.spec.shape.size() == 2; }

std::string base_of(const std::string& name) { return name.substr(0, name.rfind('.')); }

std::unique_ptr<PackedLinear> packed(const Tensor& w, const int32_t* bias, const float* m) {
  return std::make_unique<PackedLinear>(w.bytes.data(), w.spec.type == Type::int8 ? 8 : 16, bias, m,
                                        static_cast<int>(w.spec.shape[0]), static_cast<int>(w.spec.shape[1]));
}

// Piecewise linear between the knots of a tensor, in integers.
std::vector<int64_t> interpolated(const Tensor& t, int quality) {
  const int position = quality * (kAnchors - 1), low = std::min(position / kQualityRange, kAnchors - 2);
  const int64_t f = position - low * kQualityRange;
  const int32_t* knot = t.as<int32_t>() + low * t.last();
  std::vector<int64_t> out;
  for (int64_t c = 0; c < t.last(); ++c) {
    const int64_t sum = int64_t{knot[c]} * (kQualityRange - f) + int64_t{knot[c + t.last()]} * f;
    out.push_back(floor_divide(sum + kQualityRange / 2, kQualityRange));
  }
  return out;
}

}  // namespace

Model::Model(Weights given)
    : weights(std::move(given)),
      tables(weights.at("tables.freq").as<uint16_t>(), weights.at("tables.shift").as<uint8_t>()) {
  int64_t widest = 0;
  for (const auto& [name, w] : weights.tensors) {
    if (!ends(name, ".w")) continue;
    const std::string base = base_of(name);
    widest = std::max(widest, w.last());
    if (ends(base, ".heads") || weights.has(base + ".slope")) continue;  // those depend on the quality
    const auto* bias = weights.at(base + ".b").as<int32_t>();
    const auto* m = weights.at(base + ".m").as<float>();
    if (!is_matrix(w)) {
      depthwise[base] = std::make_unique<PackedDepthwise>(w.as<int8_t>(), bias, m, static_cast<int>(w.last()));
    } else if (base.compare(0, 16, "context.decoded.") == 0) {
      const int step = base[16] - '0';
      decoded[static_cast<size_t>(step)] = std::make_unique<PackedDecoded>(
          w.as<int16_t>(), bias, m, static_cast<int>(w.spec.shape[0]), weights.config.group(), step + 1);
    } else {
      linears[base] = packed(w, bias, m);
    }
  }
  to_operand.assign(static_cast<size_t>(widest), kOperandOne / kFeatureOne);
  const auto* table = weights.at("tables.exp2").as<float>();
  for (int r = -kAqReach; r <= kAqReach; ++r) {
    const int64_t log2 = floor_divide(2 * r * kLog2One + kRowsPerOctave, 2 * kRowsPerOctave);
    factors[static_cast<size_t>(r + kAqReach)] = exp2_of(table, log2);
  }
  if (weights.config.regional_levels == 0) return;
  const Tensor& weight = weights.at("factorised.regional.weight");
  for (int64_t kind = 0; kind < weight.spec.shape[0]; ++kind) {
    std::vector<float>& m = neighbours.emplace_back();
    for (int sites = 1; sites <= 4; ++sites)
      for (int64_t c = 0; c < weight.last(); ++c)
        m.push_back(weight.as<float>()[kind * weight.last() + c] / static_cast<float>(sites));
  }
}

Quality::Quality(const Model& model, int quality) {
  const Weights& weights = model.weights;
  const auto* table = weights.at("tables.exp2").as<float>();
  const auto* dequantise = weights.at("latent.dequantise").as<float>();
  const std::vector<int64_t> log2 = interpolated(weights.at("latent.log2_gain"), quality);
  for (size_t c = 0; c < log2.size(); ++c) inverse.push_back(dequantise[c] * exp2_of(table, -log2[c]));
  for (const std::string& latent : weights.config.latents()) {
    add_rows(model, quality, latent);
    for (const int64_t gain : interpolated(weights.at("factorised." + latent + ".log2_gain"), quality))
      hyper_inverse[latent].push_back(exp2_of(table, -gain));
  }
  add_conditional(model, quality);
  add_heads(model, log2);
}

// Table rows of a hyper latent: of sites without a mean, and of each kind with one.
void Quality::add_rows(const Model& model, int quality, const std::string& latent) {
  const Weights& weights = model.weights;
  const std::string name = "factorised." + latent;
  const std::vector<int64_t> scale = interpolated(weights.at(name + ".log2_scale"), quality);
  const int kinds = 2 * weights.config.levels(latent);
  const int32_t* wider = kinds ? weights.at(name + ".log2_wider").as<int32_t>() : nullptr;
  for (int kind = -1; kind < kinds; ++kind)
    for (size_t c = 0; c < scale.size(); ++c) {
      const int64_t more = kind < 0 ? 0 : wider[static_cast<size_t>(kind) * scale.size() + c];
      const int64_t row = ((scale[c] + more + kRowOffset) * kRowsPerOctave + kLog2One / 2) >> 12;
      rows[latent].push_back(
          static_cast<uint8_t>(row < weights.skip ? kSkipRow : std::clamp<int64_t>(row, 0, kMaxRow)));
    }
}

// Layers whose biases depend on the quality.
void Quality::add_conditional(const Model& model, int quality) {
  const Weights& weights = model.weights;
  const int half = kQualityRange / 2;
  for (const auto& [name, slope] : weights.tensors) {
    if (!ends(name, ".slope")) continue;
    const std::string base = base_of(name);
    const auto* start = weights.at(base + ".b").as<int32_t>();
    std::vector<int32_t> bias;
    for (int64_t i = 0; i < slope.size(); ++i) {
      const int64_t change = floor_divide(int64_t{slope.as<int32_t>()[i]} * (quality - half) + half / 2, half);
      bias.push_back(static_cast<int32_t>(start[i] + change));
    }
    linears[base] = packed(weights.at(base + ".w"), bias.data(), weights.at(base + ".m").as<float>());
  }
}

void Quality::add_heads(const Model& model, const std::vector<int64_t>& log2) {
  const Weights& weights = model.weights;
  const auto* table = weights.at("tables.exp2").as<float>();
  const int size = weights.config.group();
  for (const int64_t gain : log2) {
    offsets.push_back(static_cast<int32_t>(((gain + kRowOffset) * 16 * kRowsPerOctave + kLog2One / 2) >> 12));
  }
  for (int core = 0; core < weights.config.cores(); ++core) {
    const std::string name = "context.cores." + std::to_string(core) + ".heads";
    const auto* m = weights.at(name + ".m").as<float>();
    std::vector<float> mean, scale;
    for (int g = 0; g < 4; ++g)
      for (int i = 0; i < size; ++i) {
        mean.push_back(m[2 * g * size + i] * exp2_of(table, log2[static_cast<size_t>(g * size + i)]));
        scale.push_back(m[(2 * g + 1) * size + i]);
      }
    heads.push_back(std::make_unique<PackedHead>(weights.at(name + ".w").as<int8_t>(),
                                                 weights.at(name + ".b").as<int32_t>(), mean.data(), scale.data(),
                                                 offsets.data(), size, weights.config.context_width));
  }
}

}  // namespace dca::decoder
