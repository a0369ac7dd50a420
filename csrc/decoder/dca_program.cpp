#include "dca_program.h"

#include <algorithm>
#include <cmath>

namespace dca::decoder {
namespace {

constexpr float kOperandOne = 16;
constexpr float kGate = 1 / kOperandOne;  // product of two operands -> operand

std::vector<Part> coarse_to_fine(int levels) {
  std::vector<Part> parts{{-1, 0, 0, 1 << levels}};
  for (int level = levels - 1; level >= 0; --level) {
    const int reach = 1 << level;
    for (const auto& [top, left] : {std::pair(reach, reach), std::pair(0, reach), std::pair(reach, 0)})
      parts.push_back({2 * level + (top != left), top, left, 2 * reach});
  }
  return parts;
}

Operands half_of(const Operands& x, int64_t rows, int half, int which) {
  Operands out(rows * half);
  for (int64_t r = 0; r < rows; ++r) std::copy_n(x.data() + (2 * r + which) * half, half, out.data() + r * half);
  return out;
}

}  // namespace

const PackedLinear& Program::linear(const std::string& name) const {
  const auto own = at_.linears.find(name);
  return own != at_.linears.end() ? *own->second : *model_->linears.at(name);
}

GatedFfn Program::gated(const std::string& name) const {
  return {floats(name + ".m_in"), linear(name + ".expand"), kGate, linear(name + ".project")};
}

Attention Program::attention(int window, int shift, const int32_t* bias) const {
  const int heads = config().heads, d = config().context_width / heads;
  const auto score = static_cast<float>(kOperandOne / (kOperandOne * kOperandOne * std::sqrt(static_cast<double>(d))));
  return {heads, window, shift, score, bias, model_->weights.at("tables.softmax").as<uint8_t>()};
}

// Layers.

Words Program::block(const int16_t* x, const Map& map, const std::string& name) const {
  const std::string depth = name + ".depth";
  const GatedFfn ffn = gated(name + ".ffn");
  Words out(map.h * map.w * map.c);
  depth_block(x, map, floats(depth + ".m_in"), linear(depth + ".expand"), *model_->depthwise.at(depth + ".depthwise"),
              linear(depth + ".project"), &ffn, out.data());
  return out;
}

Words Program::blocks(Words x, const Map& map, const std::string& name, int count) const {
  for (int i = 0; i < count; ++i) x = block(x.data(), map, name + "." + std::to_string(i));
  return x;
}

void Program::ffn(Words& x, int64_t rows, const std::string& name) const {
  gated_ffn(x.data(), rows, gated(name), x.data());
}

Words Program::feature(const Operands& x, int64_t rows, const std::string& name) const {
  const PackedLinear& layer = linear(name);
  Words out(rows * layer.o);
  dca::linear(x.data(), rows, layer, Epilogue::feature, nullptr, out.data());
  return out;
}

Words Program::wide(const int16_t* x, int64_t rows, const std::string& name) const {
  const PackedLinear& layer = linear(name);
  Words out(rows * layer.o);
  dca::linear(x, rows, layer, Epilogue::feature, nullptr, out.data());
  return out;
}

Operands Program::operand(const Words& x, int c) const {
  Operands out(x.size());
  dca::operand(x.data(), model_->to_operand.data(), x.size() / c, c, 8, out.data());
  return out;
}

// The stages, in the order of the data.

std::vector<Hyper> Program::hypers(int h, int w) const {
  const Config& c = config();
  std::vector<Hyper> out;
  for (const char* name : {"global", "local", "regional"}) {
    if (at_.rows.count(name) == 0) continue;
    const std::string latent = name;
    const Map map = latent == "global"  ? Map{1, 1, c.tokens, c.latent / c.tokens}
                    : latent == "local" ? Map{1, h, w, c.local}
                                        : Map{1, h / 4, w / 4, c.regional};
    const std::vector<uint8_t>& rows = at_.rows.at(latent);
    const bool silent = std::all_of(rows.begin(), rows.end(), [](uint8_t row) { return row == kSkipRow; });
    out.push_back({latent, map, coarse_to_fine(c.levels(latent)), rows, silent});
  }
  return out;
}

Words Program::neighbour_mean(const Hyper& hyper, const Part& part, const Words& z_hat) const {
  const Map& map = hyper.map;
  const int64_t down = (map.h - part.top + part.stride - 1) / part.stride;
  const int64_t across = (map.w - part.left + part.stride - 1) / part.stride;
  Words mean(down * across * map.c);
  const std::vector<float>& m = model_->neighbours[static_cast<size_t>(part.kind)];
  dca::neighbour_mean(z_hat.data(), map, m.data(), part.top, part.left, part.stride, mean.data());
  return mean;
}

// A hyper latent as a feature.
Words Program::scaled(const std::string& latent, const Words& z) const {
  const std::vector<float>& m = at_.hyper_inverse.at(latent);
  const auto entries = static_cast<int64_t>(m.size());
  Words out(z.size());
  dca::operand(z.data(), m.data(), z.size() / entries, static_cast<int>(entries), 16, out.data());
  return out;
}

Operands Program::regional_feature(const Words& z, const Map& map) const {
  const std::string name = "hyper.regional";
  const int c = map.c, d = config().context_width;
  const Map twice{1, 2 * map.h, 2 * map.w, c}, whole{1, 4 * map.h, 4 * map.w, d};
  Words x(twice.h * twice.w * c);
  depth_to_space(wide(scaled("regional", z).data(), map.h * map.w, name + ".synthesis_in").data(), twice, 2, 2,
                 x.data());
  x = block(x.data(), twice, name + ".synthesis_block");
  Words out(whole.h * whole.w * d);
  depth_to_space(feature(operand(x, c), twice.h * twice.w, name + ".synthesis_up").data(), whole, 2, 2, out.data());
  return operand(out, d);
}

Words Program::local_feature(const Hyper& hyper, const Words& given) const {
  const Config& c = config();
  const std::string name = "hyper.local.synthesis_blocks";
  const int d = c.context_width;
  Map map = hyper.map;
  Words z = scaled("local", given);
  // Sites that are all alike give the same in every window.
  if (hyper.silent) map.h = map.w = c.window;
  const int64_t sites = map.h * map.w;
  Words x = wide(z.data(), sites, "hyper.local.synthesis_in");
  map.c = d;
  for (int i = 0; i < c.local_blocks; ++i) {
    const std::string layer = name + ".attention." + std::to_string(i);
    const Attention windows =
        attention(c.window, i % 2 * c.window / 2, model_->weights.at(layer + ".bias").as<int32_t>());
    Words next(x.size());
    window_block(x.data(), map, model_->to_operand.data(), linear(layer + ".qkv"), windows, linear(layer + ".out"),
                 next.data());
    ffn(next, sites, name + ".ffn." + std::to_string(i));
    x = std::move(next);
  }
  x = feature(operand(x, d), sites, "context.local");
  if (!hyper.silent) return x;
  Words everywhere(hyper.map.h * hyper.map.w * d);
  for (int64_t i = 0; i < everywhere.size(); i += d) std::copy_n(x.data(), d, everywhere.data() + i);
  return everywhere;
}

void Program::global_features(const Hyper& hyper, const Words& z, Features& out) const {
  const int d = config().context_width, tokens = config().tokens;
  const Words x = wide(scaled("global", z).data(), tokens, "hyper.global.synthesis_in");
  const PackedLinear& layer = linear("hyper.global.synthesis_kv");
  Operands both(int64_t{tokens} * layer.o);
  dca::linear(operand(x, d).data(), tokens, layer, Epilogue::act, nullptr, both.data());
  out.keys = half_of(both, tokens, d, 0);
  out.values = half_of(both, tokens, d, 1);
  if (!hyper.silent) return;
  // Tokens that are all alike give the same everywhere.
  for (int core = 0; core < config().cores(); ++core) {
    out.token.push_back(feature(out.values, 1, "context.cores." + std::to_string(core) + ".global_attention.out"));
  }
}

Features Program::features(const std::vector<Hyper>& hypers, const std::vector<Words>& z_hat) const {
  Features out;
  for (size_t i = 0; i < hypers.size(); ++i) {
    if (hypers[i].name == "regional") out.regional = regional_feature(z_hat[i], hypers[i].map);
    if (hypers[i].name == "local") out.local = local_feature(hypers[i], z_hat[i]);
    if (hypers[i].name == "global") global_features(hypers[i], z_hat[i], out);
  }
  return out;
}

Words Program::stage(const std::string& stage, int core, Words x, const Features& features, const Map& map) const {
  const std::string name = "context.cores." + std::to_string(core);
  const int64_t sites = map.h * map.w;
  if (stage == "regional") return blocks(std::move(x), map, name + ".regional_blocks", config().context_blocks);
  if (stage == "local") {
    if (!config().merge_once) add(x.data(), features.local.data(), x.size(), x.data());
    ffn(x, sites, name + ".local_ffn");
    return x;
  }
  Words next(x.size());
  if (!features.token.empty()) {
    const Words& token = features.token[static_cast<size_t>(core)];
    for (int64_t i = 0; i < next.size(); i += map.c) std::copy_n(token.data(), map.c, next.data() + i);
    add(x.data(), next.data(), x.size(), next.data());
  } else {
    token_block(x.data(), map, features.keys.data(), features.values.data(), config().tokens, model_->to_operand.data(),
                linear(name + ".global_attention.query"), attention(0, 0, nullptr),
                linear(name + ".global_attention.out"), next.data());
  }
  ffn(next, sites, name + ".global_ffn");
  return next;
}

Prediction Program::predict(int step, const Words& y_hat, const Features& features, const Map& map, int valid_h,
                            int valid_w) const {
  const Config& c = config();
  const int64_t sites = map.h * map.w;
  const Map inner{1, map.h, map.w, c.context_width};
  Words x = feature(features.regional, sites, "context.feature." + std::to_string(step));
  if (step > 0) {
    Words with(x.size());
    decoded_linear(y_hat.data(), map, floats("latent.operand16"), *model_->decoded[static_cast<size_t>(step - 1)],
                   x.data(), with.data());
    x = std::move(with);
  }
  const int core = c.shared ? 0 : step;
  if (c.merge_once && features.local.size() > 0) add(x.data(), features.local.data(), x.size(), x.data());
  for (const std::string& name : c.stages()) x = stage(name, core, std::move(x), features, inner);
  Prediction out{Array<int32_t>(sites * c.group()), Array<uint8_t>(sites * c.group())};
  head_params(operand(x, inner.c).data(), inner, *at_.heads[static_cast<size_t>(core)], step, skip(), valid_h, valid_w,
              out.mean.data(), out.rows.data());
  return out;
}

Adaptation Program::adaptation(const Prediction& prediction, const Map& map, int strength) const {
  const int64_t sites = map.h * map.w;
  Adaptation out{Operands(sites), Array<float>(sites)};
  const Map rows{1, map.h, map.w, config().group()};
  coarseness(prediction.rows.data(), at_.offsets.data(), rows, skip(), strength, out.coarse.data());
  for (int64_t i = 0; i < sites; ++i) out.coarser[i] = model_->factors[static_cast<size_t>(out.coarse[i] + kAqReach)];
  return out;
}

int Program::reach() const {
  const auto [fine, coarse] = config().synthesis_blocks;
  return coarse + (fine + 1) / 2;
}

Array<uint8_t> Program::synthesise(const int16_t* y_hat, int h, int w, int first, int last) const {
  const Config& c = config();
  const auto [fine, coarse] = c.synthesis_blocks;
  const int begin = std::max(0, first - reach()), end = std::min(h, last + reach());
  const Map at_16{1, end - begin, w, c.latent};
  Words seen(at_16.h * at_16.w * at_16.c);
  std::copy_n(y_hat + int64_t{begin} * w * c.latent, seen.size(), seen.data());
  const Words x = blocks(std::move(seen), at_16, "synthesis.blocks16", coarse);
  const int top = std::max(0, first - (fine + 1) / 2), bottom = std::min(h, last + (fine + 1) / 2);
  const int64_t sites = int64_t{bottom - top} * w;
  const Map at_8{1, 2 * (bottom - top), 2 * w, c.width};
  Words split(4 * sites * c.width);
  depth_to_space(wide(x.data() + int64_t{top - begin} * w * c.latent, sites, "synthesis.split").data(), at_8, 2, 2,
                 split.data());
  const Words y = blocks(std::move(split), at_8, "synthesis.blocks8", fine);
  const int64_t skipped = int64_t{first - top} * 2 * at_8.w * c.width;
  return pixels(y.data() + skipped, 2 * (last - first), at_8.w, "synthesis.pixels", kStride / 2);
}

Array<uint8_t> Program::preview(const Words& y_hat, int h, int w, int reduce) const {
  return pixels(y_hat.data(), h, w, "preview." + std::to_string(reduce), kStride / reduce);
}

// Of features [h, w, C]: blocks of so many pixels a side.
Array<uint8_t> Program::pixels(const int16_t* x, int64_t h, int64_t w, const std::string& name, int side) const {
  const PackedLinear& layer = linear(name);
  const Map picture{1, h * side, w * side, 3};
  Array<uint8_t> patches(h * w * layer.o), out(picture.h * picture.w * 3);
  dca::linear(x, h * w, layer, Epilogue::pixels, nullptr, patches.data());
  depth_to_space(patches.data(), picture, side, 1, out.data());
  return out;
}

std::shared_ptr<const Program> Programs::at(int quality) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = std::find_if(kept_.begin(), kept_.end(), [&](const auto& kept) { return kept.first == quality; });
  if (found != kept_.end()) {
    kept_.splice(kept_.begin(), kept_, found);
  } else {
    kept_.emplace_front(quality, std::make_shared<const Program>(model_, quality));
    if (kept_.size() > kKept) kept_.pop_back();
  }
  return kept_.front().second;
}

}  // namespace dca::decoder
