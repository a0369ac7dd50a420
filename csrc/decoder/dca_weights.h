// The integer weights of a network: a safetensors file, checked before use, named by the hash of what decoders read.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <string>

#include "dca_bytes.h"
#include "dca_config.h"

namespace dca::decoder {

struct Tensor {
  Spec spec;
  std::vector<char> bytes;  // as aligned as any type

  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(bytes.data());
  }
  int64_t size() const { return static_cast<int64_t>(bytes.size() / bytes_of(spec.type)); }
  int64_t last() const { return spec.shape.back(); }
};

struct Weights {
  Config config;
  int skip = 0;  // first row of the scale table that is coded
  std::array<uint8_t, 4> model_id{};
  std::map<std::string, Tensor> tensors;  // those that decoders read, and latent.quantise

  const Tensor& at(const std::string& name) const { return tensors.at(name); }
  bool has(const std::string& name) const { return tensors.count(name) != 0; }
};

// Throws Error (DCA_BAD_WEIGHTS): another format, damaged, or values with which integers could overflow.
Weights read_weights(Span file);

}  // namespace dca::decoder
