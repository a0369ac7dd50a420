#include "dca_walk.h"

#include <algorithm>
#include <cstring>

namespace dca::decoder {
namespace {

constexpr int64_t kTileSites = 144;  // of a side of a tile, about
constexpr size_t kDigestBytes = 4;

int divide_up(int a, int b) { return (a + b - 1) / b; }

// How many tiles a side, or an area, has: the quotient rounded to the nearest, halves upwards, at least 1.
int64_t tile_count(int64_t sites, int64_t of_tile) {
  return std::max<int64_t>(1, (2 * sites + of_tile) / (2 * of_tile));
}

// The walk over one tile. Values come from the entropy decoder, whose rows the network predicts.
class Walk {
 public:
  Walk(const Program& program, rans::Decoder& decoder, const Grid& grid, int aq)
      : program_(program), decoder_(decoder), grid_(grid), aq_(aq) {}

  Latent run() {
    const std::vector<Hyper> hypers = program_.hypers(grid_.h, grid_.w);
    std::vector<Words> z_hat;
    for (const Hyper& hyper : hypers) z_hat.push_back(hyper_latent(hyper));
    const Features features = program_.features(hypers, z_hat);
    Words y_hat = steps(features);
    decoder_.finish();
    return {std::move(y_hat), digest_};
  }

 private:
  Words values(const uint8_t* rows, int64_t count, bool trellis, bool last) {
    Words out(count);
    decoder_.decode(rows, static_cast<size_t>(count), out.data(), trellis, last);
    digest_ = crc32(digest_, out.data(), static_cast<size_t>(count) * sizeof(int16_t));
    return out;
  }

  Words hyper_latent(const Hyper& hyper) {
    const Map& map = hyper.map;
    Words z_hat(map.h * map.w * map.c);
    std::memset(z_hat.data(), 0, static_cast<size_t>(z_hat.size()) * sizeof(int16_t));
    for (const Part& part : hyper.parts) {
      if (part.top < map.h && part.left < map.w) hyper_part(hyper, part, z_hat);
    }
    return z_hat;
  }

  void hyper_part(const Hyper& hyper, const Part& part, Words& z_hat) {
    const Map& map = hyper.map;
    const int64_t down = (map.h - part.top + part.stride - 1) / part.stride;
    const int64_t across = (map.w - part.left + part.stride - 1) / part.stride, line = across * map.c;
    Words mean;
    if (part.kind >= 0) mean = program_.neighbour_mean(hyper, part, z_hat);
    // A row for each channel; of the global latent for each channel of each token.
    const bool global = hyper.name == "global";
    const uint8_t* own = hyper.rows.data() + (global ? 0 : (part.kind + 1) * map.c);
    Array<uint8_t> rows(down * line);
    for (int64_t y = 0; y < down; ++y)
      for (int64_t x = 0; x < across; ++x) {
        uint8_t* to = rows.data() + y * line + x * map.c;
        const bool outside = hyper.name == "local" && (y >= grid_.valid_h || x >= grid_.valid_w);
        outside ? std::memset(to, kSkipRow, static_cast<size_t>(map.c))
                : std::memcpy(to, own + (global ? x * map.c : 0), static_cast<size_t>(map.c));
      }
    const Words v = values(rows.data(), rows.size(), false, false);
    for (int64_t i = 0; i < v.size(); ++i) {
      const int64_t y = part.top + i / line * part.stride, x = part.left + i % line / map.c * part.stride;
      const int32_t z = int32_t{v[i]} * 256 + (part.kind >= 0 ? mean[i] : 0);
      z_hat[(y * map.w + x) * map.c + i % map.c] = static_cast<int16_t>(std::clamp(z, -32767, 32767));
    }
  }

  Words steps(const Features& features) {
    const Map map{1, grid_.h, grid_.w, program_.config().latent};
    const int64_t sites = map.h * map.w;
    const int group = program_.config().group();
    Words y_hat(sites * map.c);  // every step writes a quarter, and reads those before
    Adaptation adaptation;
    for (int step = 0; step < kSteps; ++step) {
      Prediction prediction = program_.predict(step, y_hat, features, map, grid_.valid_h, grid_.valid_w);
      if (aq_ > 0) {
        if (step == 0) adaptation = program_.adaptation(prediction, map, aq_);
        Array<uint8_t> rows(prediction.rows.size());
        coarser_rows(prediction.rows.data(), adaptation.coarse.data(), sites, group, program_.skip(), rows.data());
        prediction.rows = std::move(rows);
      }
      const Words v = values(prediction.rows.data(), prediction.rows.size(), true, step == kSteps - 1);
      reconstruct(v.data(), prediction.mean.data(), program_.inverse(), aq_ > 0 ? adaptation.coarser.data() : nullptr,
                  map, step, y_hat.data());
    }
    return y_hat;
  }

  const Program& program_;
  rans::Decoder& decoder_;
  const Grid& grid_;
  const int aq_;
  uint32_t digest_ = 0;
};

}  // namespace

Grid Grid::of(int height, int width) {
  const int sites = kAlign / kStride;
  return {0,
          0,
          divide_up(height, kAlign) * sites,
          divide_up(width, kAlign) * sites,
          divide_up(height, kStride),
          divide_up(width, kStride)};
}

std::vector<Grid> Grid::tiles() const {
  const int64_t shorter = tile_count(std::min(h, w), kTileSites);
  const int64_t longer = tile_count(int64_t{h} * w, shorter * kTileSites * kTileSites);
  const int64_t down = h <= w ? shorter : longer, across = h <= w ? longer : shorter;
  const auto cut = [](int64_t side, int64_t i, int64_t n) { return static_cast<int>(side / 4 * i / n * 4); };
  std::vector<Grid> out;
  for (int64_t y = 0; y < down; ++y)
    for (int64_t x = 0; x < across; ++x) {
      const int first = cut(h, y, down), bottom = cut(h, y + 1, down);
      const int begin = cut(w, x, across), right = cut(w, x + 1, across);
      out.push_back({first, begin, bottom - first, right - begin, std::min(bottom, valid_h) - first,
                     std::min(right, valid_w) - begin});
    }
  return out;
}

Area Area::around(int reach, int most_width, int most_height) const {
  const int first = std::max(0, left - reach), begin = std::max(0, top - reach);
  return {first, begin, std::min(most_width, right() + reach) - first, std::min(most_height, bottom() + reach) - begin};
}

std::vector<TileStream> tile_streams(Span stream, size_t count) {
  if (stream.size < count * (kDigestBytes + 1) - 1) {
    fail(DCA_TRUNCATED_STREAM, "the stream ends inside the table of its %zu tiles", count);
  }
  Reader reader(stream, 0, DCA_TRUNCATED_STREAM);
  std::vector<TileStream> tiles(count);
  std::vector<uint64_t> sizes;
  for (TileStream& tile : tiles) {
    tile.digest = little32(reader.take(kDigestBytes).data);
    if (sizes.size() + 1 < count) sizes.push_back(reader.number(5));
  }
  uint64_t left = stream.size - reader.at();
  for (const uint64_t size : sizes) {
    if (size > left) fail(DCA_TRUNCATED_STREAM, "the stream ends inside its %zu tiles", count);
    left -= size;
  }
  sizes.push_back(left);
  for (size_t i = 0; i < count; ++i) tiles[i].bytes = reader.take(static_cast<size_t>(sizes[i]));
  return tiles;
}

Latent decode_latent(const Program& program, const rans::Path& path, Span stream, const Grid& grid, const Area& area,
                     int aq, int threads) {
  const auto walked = [&](Span bytes, const Grid& part) {
    rans::Decoder decoder(program.tables(), path, bytes.data, bytes.size, threads);
    return Walk(program, decoder, part, aq).run();
  };
  const std::vector<Grid> tiles = grid.tiles();
  const int channels = program.config().latent;
  Latent out{Words(), 0};
  const auto keep = [&](const Words& y_hat, const Grid& tile) {
    if (out.y_hat.size() == 0) out.y_hat = Words(int64_t{area.height} * area.width * channels);
    const int left = std::max(area.left, tile.left), right = std::min(area.right(), tile.left + tile.w);
    for (int y = std::max(area.top, tile.top); y < std::min(area.bottom(), tile.top + tile.h); ++y) {
      const int64_t from = int64_t{y - tile.top} * tile.w + left - tile.left;
      const int64_t to = int64_t{y - area.top} * area.width + left - area.left;
      std::copy_n(y_hat.data() + from * channels, int64_t{right - left} * channels, out.y_hat.data() + to * channels);
    }
  };
  if (tiles.size() == 1) {
    Latent whole = walked(stream, grid);
    if (area.width == grid.w && area.height == grid.h) return whole;
    keep(whole.y_hat, grid);
    out.digest = whole.digest;
    return out;
  }
  const std::vector<TileStream> streams = tile_streams(stream, tiles.size());
  for (size_t i = 0; i < tiles.size(); ++i) {
    const Grid& tile = tiles[i];
    out.digest = crc32(out.digest, &streams[i].digest, kDigestBytes);
    if (tile.left >= area.right() || tile.left + tile.w <= area.left || tile.top >= area.bottom() ||
        tile.top + tile.h <= area.top) {
      continue;
    }
    const Latent part = walked(streams[i].bytes, tile);
    if (part.digest != streams[i].digest) {
      fail(DCA_CORRUPT_STREAM, "the decoded symbols of tile %zu do not have its digest", i);
    }
    keep(part.y_hat, tile);
  }
  return out;
}

}  // namespace dca::decoder
