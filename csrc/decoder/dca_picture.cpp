#include "dca_picture.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "../exact/exact_model.h"
#include "dca_exact.h"

namespace dca::decoder {
namespace {

// Pixels that the synthesis makes at a time, about; fewer take less memory and some more work.
constexpr int64_t kStripPixels = sizeof(void*) == 4 ? int64_t{1} << 22 : int64_t{1} << 23;

// A picture, or a preview of it, of which samples have been decoded.
Samples shrunk(Samples samples, const File& file, int reduce) {
  if (reduce == 1) return samples;
  Samples out{samples.channels, samples.depth, {}};
  const auto keep = [&](int, const auto* row) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(row);
    const size_t count = static_cast<size_t>(reduced(file.width, reduce)) * samples.channels * sizeof *row;
    out.bytes.insert(out.bytes.end(), bytes, bytes + count);
  };
  if (samples.depth == 8) {
    box_means(samples.bytes.data(), file.height, file.width, samples.channels, reduce, keep);
  } else {
    const auto* deep = reinterpret_cast<const uint16_t*>(samples.bytes.data());
    box_means(deep, file.height, file.width, samples.channels, reduce, keep);
  }
  return out;
}

// The caller's rows, and what lies over the colours of the picture.
class Canvas {
 public:
  Canvas(const File& file, int threads, const View& view, const std::function<Target()>& target)
      : width_(static_cast<size_t>(view.width())),
        left_(static_cast<size_t>(view.area.left)),
        top_(static_cast<size_t>(view.area.top)),
        pitch_(static_cast<size_t>(reduced(file.width, view.reduce))),
        colours_(static_cast<size_t>(file.colours())),
        block_(static_cast<size_t>(exact::kBlock / view.reduce)) {
    if (file.has(kLayer)) {
      layer_ = graphic_layer(file, threads);
      layer_->samples = shrunk(std::move(layer_->samples), file, view.reduce);
    }
    if (file.has(kAlpha)) alpha_ = shrunk(alpha_plane(file, threads), file, view.reduce);
    target_ = target();
  }

  // Of the first pixel of a row of the view, among those of the picture.
  size_t place(int y) const { return (static_cast<size_t>(y) + top_) * pitch_ + left_; }

  // Row y of the view, of the network: red, green and blue.
  void put_rgb(int y, const uint8_t* rgb) {
    row_.assign(rgb, rgb + 3 * width_);
    if (colours_ == 1) {
      for (size_t x = 0; x < width_; ++x) {
        const uint8_t* p = rgb + 3 * x;
        row_[x] = static_cast<uint8_t>((19595u * p[0] + 38470u * p[1] + 7471u * p[2] + 32768u) >> 16);
      }
    }
    if (layer_) put_blocks(y);
    put<uint8_t>(y, row_.data());
  }

  // A row of colours as the file has them.
  template <class Sample>
  void put(int y, const Sample* from) const {
    auto* to = reinterpret_cast<Sample*>(target_.pixels + static_cast<size_t>(y) * target_.stride);
    if (!alpha_) {
      std::memcpy(to, from, width_ * colours_ * sizeof(Sample));
      return;
    }
    const auto* alpha = reinterpret_cast<const Sample*>(alpha_->bytes.data()) + place(y);
    for (size_t x = 0; x < width_; ++x, from += colours_) {
      to = std::copy_n(from, colours_, to);
      *to++ = alpha[x];
    }
  }

 private:
  void put_blocks(int y) {  // a pixel of a preview lies in one block
    const size_t across = (pitch_ + block_ - 1) / block_;
    const uint8_t* inside = layer_->inside.data() + (static_cast<size_t>(y) + top_) / block_ * across;
    const uint8_t* from = layer_->samples.bytes.data() + place(y) * colours_;
    for (size_t x = 0, end; x < width_; x = end) {
      const size_t block = (left_ + x) / block_;
      end = std::min(width_, (block + 1) * block_ - left_);
      if (inside[block]) std::copy(from + x * colours_, from + end * colours_, row_.data() + x * colours_);
    }
  }

  const size_t width_, left_, top_;  // of the view
  const size_t pitch_, colours_, block_;
  Target target_;
  std::optional<GraphicLayer> layer_;
  std::optional<Samples> alpha_;
  std::vector<uint8_t> row_;
};

// What an area depends on of the unfiltered picture.
Area seen_of(const File& file, const Area& area) {
  return area.around(file.restoration.empty() ? 0 : kRingReach, file.width, file.height);
}

// The restoration filter over rows that come strip by strip: those are kept that the next rows depend on.
class Restored {
 public:
  Restored(const File& file, const Area& area, Canvas& canvas)
      : file_(file),
        canvas_(canvas),
        rings_(static_cast<int>(file.restoration.size() / 18)),
        area_(area),
        seen_(seen_of(file, area)),
        row_(static_cast<size_t>(seen_.width) * 3) {}

  // So many rows more of what is seen, `pitch` bytes from one to the next.
  void add(const uint8_t* rows, int count, size_t pitch) {
    if (rings_ == 0) {
      for (int i = 0; i < count; ++i) canvas_.put_rgb(done_++, rows + static_cast<size_t>(i) * pitch);
      return;
    }
    for (int i = 0; i < count; ++i, rows += pitch) held_.insert(held_.end(), rows, rows + row_);
    known_ += count;
    const int last = known_ == seen_.height ? known_ : known_ - kRingReach;
    if (last <= done_) return;
    const int first = known_ - static_cast<int>(held_.size() / row_);
    filtered_.resize(held_.size());
    restore(held_.data(), known_ - first, seen_.width, file_.restoration.data(), rings_, filtered_.data());
    const size_t margin = static_cast<size_t>(area_.left - seen_.left) * 3;
    for (; done_ < last; ++done_) {
      const int y = seen_.top + done_ - area_.top;
      if (y < 0 || y >= area_.height) continue;
      canvas_.put_rgb(y, filtered_.data() + static_cast<size_t>(done_ - first) * row_ + margin);
    }
    const int kept = std::max(first, done_ - kRingReach);
    held_.erase(held_.begin(), held_.begin() + static_cast<ptrdiff_t>(kept - first) * static_cast<ptrdiff_t>(row_));
  }

 private:
  const File& file_;
  Canvas& canvas_;
  const int rings_;
  const Area area_, seen_;
  const size_t row_;
  int known_ = 0, done_ = 0;  // rows: of what is seen so far, and those that are filtered
  std::vector<uint8_t> held_, filtered_;
};

void exact_file(const File& file, const Settings& settings, const View& view, const std::function<Target()>& target) {
  const Samples samples = shrunk(exact_picture(file, settings.threads), file, view.reduce);
  const Canvas canvas(file, settings.threads, view, target);
  const size_t pixel = static_cast<size_t>(file.colours() * (file.depth / 8));
  for (int y = 0; y < view.height(); ++y) {
    const uint8_t* from = samples.bytes.data() + canvas.place(y) * pixel;
    file.depth == 8 ? canvas.put<uint8_t>(y, from) : canvas.put<uint16_t>(y, reinterpret_cast<const uint16_t*>(from));
  }
}

// The sites that touch pixels.
Area sites_of(const Area& pixels) {
  const int left = pixels.left / kStride, top = pixels.top / kStride;
  return {left, top, reduced(pixels.right(), kStride) - left, reduced(pixels.bottom(), kStride) - top};
}

// The pixels of an area from the latent of the sites in `known`, strip by strip.
void synthesised(const File& file, const Program& program, const Words& y_hat, const Area& known, const Area& area,
                 Canvas& canvas) {
  Restored restored(file, area, canvas);
  const Area seen = seen_of(file, area), sites = sites_of(seen);
  const int pitch = known.width * kStride;
  const int rows = static_cast<int>(std::max<int64_t>(1, kStripPixels / (int64_t{kStride} * pitch)));
  for (int top = sites.top; top < sites.bottom(); top += rows) {
    const int end = std::min(sites.bottom(), top + rows);
    const Array<uint8_t> strip =
        program.synthesise(y_hat.data(), known.height, known.width, top - known.top, end - known.top);
    const int first = std::max(seen.top, top * kStride), last = std::min(seen.bottom(), end * kStride);
    const int64_t skipped = int64_t{first - top * kStride} * pitch + seen.left - known.left * kStride;
    restored.add(strip.data() + 3 * skipped, last - first, static_cast<size_t>(pitch) * 3);
  }
}

// A preview that the weights have no layer for: means of decoded pixels.
void averaged(const File& file, Programs* programs, const Settings& settings, const View& view,
              const std::function<Target()>& target) {
  const size_t row = row_bytes(file, View::of(file));
  std::vector<uint8_t> whole;
  decode_picture(file, programs, settings, View::of(file), [&] {
    whole.resize(row * static_cast<size_t>(file.height));
    return Target{whole.data(), row};
  });
  const Target to = target();
  box_means(whole.data(), file.height, file.width, channels_of(file), view.reduce, [&](int y, const uint8_t* means) {
    std::memcpy(to.pixels + static_cast<size_t>(y) * to.stride, means, row_bytes(file, view));
  });
}

}  // namespace

void decode_picture(const File& file, Programs* programs, const Settings& settings, const View& view,
                    const std::function<Target()>& target) {
  constexpr size_t most = 8;  // bytes of a pixel: four channels of 16 bits
  if (uint64_t{static_cast<uint32_t>(file.height)} * static_cast<uint32_t>(file.width) > SIZE_MAX / most) {
    fail(DCA_LIMIT_EXCEEDED, "%d x %d pixels are more than this machine has addresses for", file.width, file.height);
  }
  if (file.exact) return exact_file(file, settings, view, target);
  const auto& id = file.model_id;
  if (programs == nullptr || programs->model().weights.model_id != id) {
    fail(DCA_UNKNOWN_MODEL, "made with model %02x%02x%02x%02x, which this decoder does not hold", id[0], id[1], id[2],
         id[3]);
  }
  set_threads(settings.threads);
  const std::shared_ptr<const Program> program = programs->at(file.quality);
  if (view.reduce > 1 && !program->previews(view.reduce)) return averaged(file, programs, settings, view, target);
  const Grid grid = Grid::of(file.height, file.width);
  const Area seen = seen_of(file, view.area);
  const Area known = sites_of(seen).around(program->reach(), grid.w, grid.h);
  const Latent latent = decode_latent(*program, *settings.path, file.stream, grid, known, file.aq, settings.threads);
  if (latent.digest != file.digest) {
    fail(DCA_CORRUPT_STREAM, "the decoded symbols do not have the digest in the header");
  }
  Canvas canvas(file, settings.threads, view, target);
  if (view.reduce == 1) return synthesised(file, *program, latent.y_hat, known, view.area, canvas);
  const Array<uint8_t> small = program->preview(latent.y_hat, known.height, known.width, view.reduce);
  const int64_t row = int64_t{known.width} * (kStride / view.reduce) * 3;
  for (int y = 0; y < view.height(); ++y) canvas.put_rgb(y, small.data() + y * row);
}

}  // namespace dca::decoder
