// The integer network of a decoder at one quality, over the operations of csrc/ops: dca_fast/network/program.py.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "dca_model.h"

namespace dca::decoder {

// Memory of so many elements, aligned for vectors; what is in it at first is anything.
template <class T>
class Array {
 public:
  Array() = default;
  explicit Array(int64_t size) : data_(static_cast<T*>(::operator new(bytes_of(size), kAlignment))), size_(size) {}
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  T& operator[](int64_t i) { return data_.get()[i]; }
  const T& operator[](int64_t i) const { return data_.get()[i]; }
  int64_t size() const { return size_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  static size_t bytes_of(int64_t size) {
    if (static_cast<uint64_t>(size) > SIZE_MAX / sizeof(T)) throw std::bad_alloc();  // where addresses have 32 bits
    return static_cast<size_t>(size) * sizeof(T);
  }
  struct Free {
    void operator()(T* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

using Words = Array<int16_t>;
using Operands = Array<int8_t>;

// Sites of a hyper latent that are coded together: those at rows top, top + stride, ... and columns left, left +
// stride, ...; `kind` numbers how they are predicted from sites stride / 2 away, -1: not at all.
struct Part {
  int kind, top, left, stride;
};

// A hyper latent: its values in 1/256 of a quantiser step, and how it is coded.
struct Hyper {
  std::string name;
  Map map;  // global: one row of tokens
  std::vector<Part> parts;
  std::vector<uint8_t> rows;  // [1 + kinds, entries]; of the global one an entry for each channel of each token
  bool silent;                // no symbol is worth coding at this quality: it is zero
};

// What c needs of the hyper latents.
struct Features {
  Operands regional;         // [h, w, D]
  Words local;               // [h, w, D], or none
  Operands keys, values;     // [tokens, D], or none
  std::vector<Words> token;  // of each c: what silent tokens add to every site, [D]
};

// Of a step: [h, w, M / 4] each.
struct Prediction {
  Array<int32_t> mean;
  Array<uint8_t> rows;
};

// How y is quantised at each site, [h, w]: so many rows coarser, and by what factor.
struct Adaptation {
  Operands coarse;
  Array<float> coarser;
};

class Program {
 public:
  Program(std::shared_ptr<const Model> model, int quality) : model_(std::move(model)), at_(*model_, quality) {}

  const Config& config() const { return model_->weights.config; }
  const rans::Tables& tables() const { return model_->tables; }
  int skip() const { return model_->weights.skip; }
  const float* inverse() const { return at_.inverse.data(); }

  // The hyper latents of a tile of h x w sites, in the order of the stream.
  std::vector<Hyper> hypers(int h, int w) const;
  // Means of a part that has some, from what z_hat holds.
  Words neighbour_mean(const Hyper& hyper, const Part& part, const Words& z_hat) const;
  // z_hat of `hypers`, in their order.
  Features features(const std::vector<Hyper>& hypers, const std::vector<Words>& z_hat) const;
  Prediction predict(int step, const Words& y_hat, const Features& features, const Map& map, int valid_h,
                     int valid_w) const;
  // From the rows of step 0.
  Adaptation adaptation(const Prediction& prediction, const Map& map, int strength) const;

  // Latent rows around one that its pixels depend on.
  int reach() const;
  // Pixels of latent rows [first, last) of y_hat [h, w, M]: [16 (last - first), 16 w, 3].
  Array<uint8_t> synthesise(const int16_t* y_hat, int h, int w, int first, int last) const;
  // Whether the weights have a layer for a preview with a pixel for so many by so many, and its pixels:
  // [16 h / reduce, 16 w / reduce, 3].
  bool previews(int reduce) const { return model_->weights.has("preview." + std::to_string(reduce) + ".w"); }
  Array<uint8_t> preview(const Words& y_hat, int h, int w, int reduce) const;

 private:
  const float* floats(const std::string& name) const { return model_->weights.at(name).as<float>(); }
  const PackedLinear& linear(const std::string& name) const;
  GatedFfn gated(const std::string& name) const;
  Attention attention(int window, int shift, const int32_t* bias) const;

  Words block(const int16_t* x, const Map& map, const std::string& name) const;
  Words blocks(Words x, const Map& map, const std::string& name, int count) const;
  void ffn(Words& x, int64_t rows, const std::string& name) const;
  Words feature(const Operands& x, int64_t rows, const std::string& name) const;
  Words wide(const int16_t* x, int64_t rows, const std::string& name) const;
  Operands operand(const Words& x, int c) const;
  Array<uint8_t> pixels(const int16_t* x, int64_t h, int64_t w, const std::string& name, int side) const;
  Words scaled(const std::string& latent, const Words& z) const;
  Operands regional_feature(const Words& z, const Map& map) const;
  Words local_feature(const Hyper& hyper, const Words& z) const;
  void global_features(const Hyper& hyper, const Words& z, Features& out) const;
  Words stage(const std::string& stage, int core, Words x, const Features& features, const Map& map) const;

  std::shared_ptr<const Model> model_;
  const Quality at_;
};

// The programs of the qualities that were used last.
class Programs {
 public:
  explicit Programs(std::shared_ptr<const Model> model) : model_(std::move(model)) {}
  const Model& model() const { return *model_; }
  std::shared_ptr<const Program> at(int quality);

 private:
  static constexpr size_t kKept = 8;
  std::shared_ptr<const Model> model_;
  std::mutex mutex_;
  std::list<std::pair<int, std::shared_ptr<const Program>>> kept_;  // the last one first
};

}  // namespace dca::decoder
