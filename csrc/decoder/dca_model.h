// The layers of a network: those that serve every quality, and what depends on it (`settings` of
// dca_fast/network/program.py).
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../coder/rans_coder.h"
#include "../ops/cpu_ops.h"
#include "dca_weights.h"

namespace dca::decoder {

using Linears = std::map<std::string, std::unique_ptr<PackedLinear>>;

// What serves every quality: the weights, and the layers that do not depend on it.
struct Model {
  explicit Model(Weights weights);
  const Weights weights;
  const rans::Tables tables;
  Linears linears;
  std::map<std::string, std::unique_ptr<PackedDepthwise>> depthwise;
  std::array<std::unique_ptr<PackedDecoded>, kSteps - 1> decoded;
  std::vector<float> to_operand;                // multipliers from a feature of the entropy model to an operand
  std::vector<std::vector<float>> neighbours;   // of each kind of part: multipliers of one to four sites around, [4, C]
  std::array<float, 2 * kAqReach + 1> factors;  // 2^(r / 12), r from -kAqReach on
};

// At a quality in hundredths, 0 to 10000.
struct Quality {
  Quality(const Model& model, int quality);
  std::vector<float> inverse;  // multipliers of y
  Linears linears;             // layers with biases of this quality
  std::vector<std::unique_ptr<PackedHead>> heads;
  std::vector<int32_t> offsets;                      // of every head, [4, M / 4]
  std::map<std::string, std::vector<uint8_t>> rows;  // of hyper latents: [1 + kinds, entries], without a mean first
  std::map<std::string, std::vector<float>> hyper_inverse;  // multipliers of hyper latents

 private:
  void add_rows(const Model& model, int quality, const std::string& latent);
  void add_conditional(const Model& model, int quality);
  void add_heads(const Model& model, const std::vector<int64_t>& log2);
};

}  // namespace dca::decoder
