#include "dca_picture.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "../exact/exact_model.h"
#include "dca_exact.h"
#include "dca_walk.h"

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
  Canvas(const File& file, int threads, int reduce, const std::function<Target()>& target)
      : width_(static_cast<size_t>(reduced(file.width, reduce))),
        colours_(static_cast<size_t>(file.colours())),
        block_(static_cast<size_t>(exact::kBlock / reduce)) {
    if (file.has(kLayer)) {
      layer_ = graphic_layer(file, threads);
      layer_->samples = shrunk(std::move(layer_->samples), file, reduce);
    }
    if (file.has(kAlpha)) alpha_ = shrunk(alpha_plane(file, threads), file, reduce);
    target_ = target();
  }

  // A row of the network, red, green and blue.
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
    const auto* alpha = reinterpret_cast<const Sample*>(alpha_->bytes.data()) + static_cast<size_t>(y) * width_;
    for (size_t x = 0; x < width_; ++x, from += colours_) {
      to = std::copy_n(from, colours_, to);
      *to++ = alpha[x];
    }
  }

 private:
  void put_blocks(int y) {  // a pixel of a preview lies in one block
    const size_t across = (width_ + block_ - 1) / block_;
    const uint8_t* inside = layer_->inside.data() + static_cast<size_t>(y) / block_ * across;
    const uint8_t* from = layer_->samples.bytes.data() + static_cast<size_t>(y) * width_ * colours_;
    for (size_t i = 0; i < across; ++i) {
      if (!inside[i]) continue;
      const size_t begin = i * block_, count = std::min(block_, width_ - begin);
      std::copy_n(from + begin * colours_, count * colours_, row_.begin() + static_cast<ptrdiff_t>(begin * colours_));
    }
  }

  const size_t width_, colours_, block_;
  Target target_;
  std::optional<GraphicLayer> layer_;
  std::optional<Samples> alpha_;
  std::vector<uint8_t> row_;
};

// The restoration filter over rows that come strip by strip: those are kept that the next rows depend on.
class Restored {
 public:
  Restored(const File& file, Canvas& canvas)
      : file_(file),
        canvas_(canvas),
        row_(static_cast<size_t>(file.width) * 3),
        rings_(static_cast<int>(file.restoration.size() / 18)) {}

  // So many rows more of the unfiltered picture, `pitch` bytes from one to the next.
  void add(const uint8_t* rows, int count, size_t pitch) {
    if (rings_ == 0) {
      for (int i = 0; i < count; ++i) canvas_.put_rgb(done_++, rows + static_cast<size_t>(i) * pitch);
      return;
    }
    for (int i = 0; i < count; ++i, rows += pitch) held_.insert(held_.end(), rows, rows + row_);
    known_ += count;
    const int last = known_ == file_.height ? known_ : known_ - kRingReach;
    if (last <= done_) return;
    const int first = known_ - static_cast<int>(held_.size() / row_);
    filtered_.resize(held_.size());
    restore(held_.data(), known_ - first, file_.width, file_.restoration.data(), rings_, filtered_.data());
    for (; done_ < last; ++done_) {
      canvas_.put_rgb(done_, filtered_.data() + static_cast<size_t>(done_ - first) * row_);
    }
    const int kept = std::max(first, done_ - kRingReach);
    held_.erase(held_.begin(), held_.begin() + static_cast<ptrdiff_t>(kept - first) * static_cast<ptrdiff_t>(row_));
  }

 private:
  const File& file_;
  Canvas& canvas_;
  const size_t row_;
  const int rings_;
  int known_ = 0, done_ = 0;  // rows: of the picture so far, and those that are filtered
  std::vector<uint8_t> held_, filtered_;
};

void exact_file(const File& file, const Settings& settings, int reduce, const std::function<Target()>& target) {
  const Samples samples = shrunk(exact_picture(file, settings.threads), file, reduce);
  const Canvas canvas(file, settings.threads, reduce, target);
  const int rows = reduced(file.height, reduce);
  const size_t row = samples.bytes.size() / static_cast<size_t>(rows);
  for (int y = 0; y < rows; ++y) {
    const uint8_t* from = samples.bytes.data() + static_cast<size_t>(y) * row;
    file.depth == 8 ? canvas.put<uint8_t>(y, from) : canvas.put<uint16_t>(y, reinterpret_cast<const uint16_t*>(from));
  }
}

// All of a picture's pixels from its latent, strip by strip.
void synthesised(const File& file, const Program& program, const Grid& grid, const Words& y_hat, Canvas& canvas) {
  Restored restored(file, canvas);
  const int pitch = grid.w * kStride;
  const int rows = static_cast<int>(std::max<int64_t>(1, kStripPixels / (int64_t{kStride} * pitch)));
  for (int top = 0; top < grid.valid_h; top += rows) {
    const int end = std::min(grid.valid_h, top + rows);
    const Array<uint8_t> strip = program.synthesise(y_hat.data(), grid.h, grid.w, top, end);
    const int count = std::min(file.height, end * kStride) - top * kStride;
    restored.add(strip.data(), count, static_cast<size_t>(pitch) * 3);
  }
}

// A preview that the weights have no layer for: means of decoded pixels.
void averaged(const File& file, Programs* programs, const Settings& settings, int reduce,
              const std::function<Target()>& target) {
  const size_t row = row_bytes(file, 1);
  std::vector<uint8_t> whole;
  decode_picture(file, programs, settings, 1, [&] {
    whole.resize(row * static_cast<size_t>(file.height));
    return Target{whole.data(), row};
  });
  const Target to = target();
  box_means(whole.data(), file.height, file.width, channels_of(file), reduce, [&](int y, const uint8_t* means) {
    std::memcpy(to.pixels + static_cast<size_t>(y) * to.stride, means, row_bytes(file, reduce));
  });
}

}  // namespace

void decode_picture(const File& file, Programs* programs, const Settings& settings, int reduce,
                    const std::function<Target()>& target) {
  if (file.exact) return exact_file(file, settings, reduce, target);
  const auto& id = file.model_id;
  if (programs == nullptr || programs->model().weights.model_id != id) {
    fail(DCA_UNKNOWN_MODEL, "made with model %02x%02x%02x%02x, which this decoder does not hold", id[0], id[1], id[2],
         id[3]);
  }
  set_threads(settings.threads);
  const std::shared_ptr<const Program> program = programs->at(file.quality);
  if (reduce > 1 && !program->previews(reduce)) return averaged(file, programs, settings, reduce, target);
  const Grid grid = Grid::of(file.height, file.width);
  const Latent latent = decode_latent(*program, *settings.path, file.stream, grid, file.aq, settings.threads);
  if (latent.digest != file.digest) {
    fail(DCA_CORRUPT_STREAM, "the decoded symbols do not have the digest in the header");
  }
  Canvas canvas(file, settings.threads, reduce, target);
  if (reduce == 1) return synthesised(file, *program, grid, latent.y_hat, canvas);
  const Array<uint8_t> small = program->preview(latent.y_hat, grid.h, grid.w, reduce);
  const int64_t row = int64_t{grid.w} * (kStride / reduce) * 3;
  for (int y = 0; y < reduced(file.height, reduce); ++y) canvas.put_rgb(y, small.data() + y * row);
}

}  // namespace dca::decoder
