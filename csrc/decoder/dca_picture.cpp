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

// The caller's rows, and what lies over the colours of the picture.
class Canvas {
 public:
  Canvas(const File& file, int threads, const std::function<Target()>& target) : file_(file) {
    if (file.has(kLayer)) layer_ = graphic_layer(file, threads);
    if (file.has(kAlpha)) alpha_ = alpha_plane(file, threads);
    target_ = target();
  }

  // A row of the network, red, green and blue.
  void put_rgb(int y, const uint8_t* rgb) {
    const auto width = static_cast<size_t>(file_.width);
    row_.assign(rgb, rgb + 3 * width);
    if (file_.gray) {
      for (size_t x = 0; x < width; ++x) {
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
    const auto width = static_cast<size_t>(file_.width), colours = static_cast<size_t>(file_.colours());
    if (!alpha_) {
      std::memcpy(to, from, width * colours * sizeof(Sample));
      return;
    }
    const auto* alpha = reinterpret_cast<const Sample*>(alpha_->bytes.data()) + static_cast<size_t>(y) * width;
    for (size_t x = 0; x < width; ++x, from += colours) {
      to = std::copy_n(from, colours, to);
      *to++ = alpha[x];
    }
  }

 private:
  void put_blocks(int y) {
    const auto width = static_cast<size_t>(file_.width), colours = static_cast<size_t>(file_.colours());
    const size_t block = exact::kBlock, across = (width + block - 1) / block;
    const uint8_t* inside = layer_->inside.data() + static_cast<size_t>(y) / block * across;
    const uint8_t* from = layer_->samples.bytes.data() + static_cast<size_t>(y) * width * colours;
    for (size_t i = 0; i < across; ++i) {
      if (!inside[i]) continue;
      const size_t begin = i * block, count = std::min(block, width - begin);
      std::copy_n(from + begin * colours, count * colours, row_.begin() + static_cast<ptrdiff_t>(begin * colours));
    }
  }

  const File& file_;
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

void exact_file(const File& file, const Settings& settings, const std::function<Target()>& target) {
  const Samples samples = exact_picture(file, settings.threads);
  const Canvas canvas(file, settings.threads, target);
  const size_t row = samples.bytes.size() / static_cast<size_t>(file.height);
  for (int y = 0; y < file.height; ++y) {
    const uint8_t* from = samples.bytes.data() + static_cast<size_t>(y) * row;
    file.depth == 8 ? canvas.put<uint8_t>(y, from) : canvas.put<uint16_t>(y, reinterpret_cast<const uint16_t*>(from));
  }
}

}  // namespace

void decode_picture(const File& file, Programs* programs, const Settings& settings,
                    const std::function<Target()>& target) {
  if (file.exact) return exact_file(file, settings, target);
  const auto& id = file.model_id;
  if (programs == nullptr || programs->model().weights.model_id != id) {
    fail(DCA_UNKNOWN_MODEL, "made with model %02x%02x%02x%02x, which this decoder does not hold", id[0], id[1], id[2],
         id[3]);
  }
  set_threads(settings.threads);
  const std::shared_ptr<const Program> program = programs->at(file.quality);
  const Grid grid = Grid::of(file.height, file.width);
  const Latent latent = decode_latent(*program, *settings.path, file.stream, grid, file.aq, settings.threads);
  if (latent.digest != file.digest) {
    fail(DCA_CORRUPT_STREAM, "the decoded symbols do not have the digest in the header");
  }
  Canvas canvas(file, settings.threads, target);
  Restored restored(file, canvas);
  const int pitch = grid.w * kStride, height = file.height;
  const int rows = static_cast<int>(std::max<int64_t>(1, kStripPixels / (int64_t{kStride} * pitch)));
  for (int top = 0; top < grid.valid_h; top += rows) {
    const int end = std::min(grid.valid_h, top + rows);
    const Array<uint8_t> strip = program->synthesise(latent.y_hat.data(), grid.h, grid.w, top, end);
    restored.add(strip.data(), std::min(height, end * kStride) - top * kStride, static_cast<size_t>(pitch) * 3);
  }
}

}  // namespace dca::decoder
