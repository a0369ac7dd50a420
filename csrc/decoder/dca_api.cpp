// The C interface: arguments checked, exceptions turned to errors.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <thread>

#include "../exact/exact_coder.h"
#include "dca.h"
#include "dca_errors.h"
#include "dca_picture.h"

using namespace dca::decoder;
namespace rans = dca::rans;

struct dca_decoder {
  std::unique_ptr<Programs> programs;  // null without weights
  Settings settings;
  uint64_t max_pixels;
};

namespace dca::decoder {

dca_error described(const std::exception& exception) {
  dca_error error{DCA_CORRUPT_STREAM, ""};
  if (const auto* own = dynamic_cast<const Error*>(&exception)) {
    error.status = own->status;
  } else if (const auto* coder = dynamic_cast<const rans::Error*>(&exception)) {
    error.status = coder->fault == rans::Fault::kTruncated ? DCA_TRUNCATED_STREAM : DCA_CORRUPT_STREAM;
  } else if (dynamic_cast<const exact::Error*>(&exception) == nullptr) {
    error.status = DCA_OUT_OF_MEMORY;  // nothing else is thrown here
    std::snprintf(error.message, sizeof error.message, "not enough memory");
    return error;
  }
  std::snprintf(error.message, sizeof error.message, "%s", exception.what());
  return error;
}

}  // namespace dca::decoder

namespace {

constexpr int kMostThreads = 256;

// Runs what may throw.
template <class F>
dca_status guarded(dca_error* error, F&& work) {
  dca_error found{DCA_OK, ""};
  try {
    work();
  } catch (const std::exception& exception) {
    found = described(exception);
  }
  if (error != nullptr) *error = found;
  return found.status;
}

void require(bool condition, const char* problem) {
  if (!condition) fail(DCA_BAD_ARGUMENT, "%s", problem);
}

Span span_of(const void* bytes, size_t size) {
  static const uint8_t none = 0;
  require(bytes != nullptr || size == 0, "there is no memory of this size");
  return {size == 0 ? &none : static_cast<const uint8_t*>(bytes), size};
}

// The instruction set of the network's kernels for this process; the entropy decoder's that goes with it.
const rans::Path& choose(const char* isa) {
  const auto paths = rans::available_paths();
  if (isa == nullptr) return *paths.front();
  for (const dca::Kernels* kernels : dca::all_kernels()) {
    if (std::strcmp(kernels->name, isa) != 0) continue;
    if (!dca::use_kernels(*kernels)) break;
    const std::string name = std::strcmp(isa, "amx") == 0 || std::strcmp(isa, "avx512-tall") == 0 ? "avx512" : isa;
    const auto same = std::find_if(paths.begin(), paths.end(), [&](const auto* path) { return name == path->name; });
    return same != paths.end() ? **same : rans::kScalarPath;
  }
  fail(DCA_NOT_AVAILABLE, "this machine cannot run the instruction set %s", isa);
}

dca_bytes section(const File& file, Tag tag) { return {file.sections[tag].data, file.sections[tag].size}; }

dca_info info_of(const File& file, const View& view) {
  dca_info info{};
  info.width = static_cast<uint32_t>(view.width());
  info.height = static_cast<uint32_t>(view.height());
  info.channels = channels_of(file);
  info.depth = file.depth;
  info.quality = file.quality;
  info.exact = file.exact;
  std::copy(file.model_id.begin(), file.model_id.end(), info.model_id);
  info.graphic_blocks = static_cast<size_t>(graphic_blocks(file.sections[kLayer]));
  info.row_bytes = row_bytes(file, view);
  info.icc = section(file, kIcc);
  info.exif = section(file, kExif);
  info.xmp = section(file, kXmp);
  return info;
}

struct Released {
  void operator()(void* p) const { std::free(p); }
};

// Decodes to memory of its own what `choose` makes a view of, once the file is verified.
template <class Choose>
void decode_new(const dca_decoder* decoder, Span bytes, dca_info* info, void** pixels, Choose&& choose) {
  const File file = parse(bytes, decoder->max_pixels);
  const View view = choose(file);
  const size_t stride = row_bytes(file, view), rows = static_cast<size_t>(view.height());
  std::unique_ptr<void, Released> memory;
  decode_picture(file, decoder->programs.get(), decoder->settings, view, [&] {
    memory.reset(std::malloc(stride * rows));
    if (memory == nullptr) throw std::bad_alloc();
    return Target{static_cast<uint8_t*>(memory.get()), stride};
  });
  if (info != nullptr) *info = info_of(file, view);
  *pixels = memory.release();
}

}  // namespace

int dca_format_version(void) { return kFormatVersion; }

dca_status dca_decoder_new(const void* weights, size_t size, const dca_options* options, dca_decoder** decoder,
                           dca_error* error) {
  if (decoder != nullptr) *decoder = nullptr;
  return guarded(error, [&] {
    require(decoder != nullptr, "there is nowhere to put the decoder");
    const dca_options given = options == nullptr ? dca_options{} : *options;
    require(given.threads >= 0 && given.threads <= kMostThreads, "threads must be 0 to 256");
    auto made = std::make_unique<dca_decoder>();
    made->settings.threads =
        given.threads > 0 ? given.threads : static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 256u));
    made->settings.path = &choose(given.isa);
    made->max_pixels = given.max_pixels > 0 ? given.max_pixels : kDefaultMaxPixels;
    if (weights != nullptr || size > 0) {
      made->programs = std::make_unique<Programs>(std::make_shared<Model>(read_weights(span_of(weights, size))));
    }
    *decoder = made.release();
  });
}

void dca_decoder_free(dca_decoder* decoder) { delete decoder; }

void dca_decoder_model(const dca_decoder* decoder, uint8_t model_id[4]) {
  if (model_id == nullptr) return;
  std::memset(model_id, 0, 4);
  if (decoder != nullptr && decoder->programs)
    std::copy_n(decoder->programs->model().weights.model_id.begin(), 4, model_id);
}

dca_status dca_inspect(const void* file, size_t size, dca_info* info, dca_error* error) {
  return guarded(error, [&] {
    require(info != nullptr, "there is nowhere to put what the file says");
    const File parsed = parse(span_of(file, size), kMostPixels);
    *info = info_of(parsed, View::of(parsed));
  });
}

dca_status dca_decode(const dca_decoder* decoder, const void* file, size_t size, dca_info* info, void** pixels,
                      dca_error* error) {
  return dca_decode_preview(decoder, file, size, 1, info, pixels, error);
}

dca_status dca_decode_preview(const dca_decoder* decoder, const void* file, size_t size, int reduce, dca_info* info,
                              void** pixels, dca_error* error) {
  if (pixels != nullptr) *pixels = nullptr;
  return guarded(error, [&] {
    require(decoder != nullptr && pixels != nullptr, "there is no decoder, or nowhere to put the pixels");
    require(reduce > 0 && reduce <= 16 && (reduce & (reduce - 1)) == 0, "reduce must be 1, 2, 4, 8 or 16");
    decode_new(decoder, span_of(file, size), info, pixels,
               [&](const File& parsed) { return View::of(parsed, reduce); });
  });
}

dca_status dca_decode_region(const dca_decoder* decoder, const void* file, size_t size, uint32_t left, uint32_t top,
                             uint32_t width, uint32_t height, dca_info* info, void** pixels, dca_error* error) {
  if (pixels != nullptr) *pixels = nullptr;
  return guarded(error, [&] {
    require(decoder != nullptr && pixels != nullptr, "there is no decoder, or nowhere to put the pixels");
    require(width > 0 && height > 0, "a region has at least one pixel");
    decode_new(decoder, span_of(file, size), info, pixels, [&](const File& parsed) {
      const auto within = [](uint32_t first, uint32_t count, int side) {
        return first <= static_cast<uint32_t>(side) && count <= static_cast<uint32_t>(side) - first;
      };
      require(within(left, width, parsed.width) && within(top, height, parsed.height),
              "the region is not within the picture");
      return View{{static_cast<int>(left), static_cast<int>(top), static_cast<int>(width), static_cast<int>(height)},
                  1};
    });
  });
}

dca_status dca_decode_to(const dca_decoder* decoder, const void* file, size_t size, void* pixels, size_t stride,
                         dca_error* error) {
  return guarded(error, [&] {
    require(decoder != nullptr && pixels != nullptr, "there is no decoder, or nowhere to put the pixels");
    const File parsed = parse(span_of(file, size), decoder->max_pixels);
    const size_t sample = static_cast<size_t>(parsed.depth) / 8;
    require(stride >= row_bytes(parsed, View::of(parsed)) && stride % sample == 0,
            "the stride is smaller than a row, or splits samples");
    require(reinterpret_cast<uintptr_t>(pixels) % sample == 0, "pixels of 16 bits need an even address");
    decode_picture(parsed, decoder->programs.get(), decoder->settings, View::of(parsed),
                   [&] { return Target{static_cast<uint8_t*>(pixels), stride}; });
  });
}

void dca_free(void* pixels) { std::free(pixels); }
