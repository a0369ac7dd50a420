// Threads that share decoders of several threads each, under ThreadSanitizer: every picture is that of one thread
// alone.
//
//   cmake -S csrc/decoder -B build/threads -DDCA_FUZZ=ON -DDCA_SANITIZERS=thread && cmake --build build/threads
//   --parallel build/threads/decoder_threads dca_fast/data/dca-s.safetensors 3 tests/golden/*.dca
//
// decodes each file three times on each of four threads.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "dca.h"

namespace {

using Bytes = std::vector<uint8_t>;
constexpr int kThreads = 4;

Bytes content_of(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

dca_decoder* decoder_of(const Bytes& weights, int threads) {
  const dca_options options{threads, 1 << 18, nullptr};
  dca_decoder* decoder = nullptr;
  if (dca_decoder_new(weights.data(), weights.size(), &options, &decoder, nullptr) != DCA_OK) std::abort();
  return decoder;
}

// The pixels of a file, or none if it is refused.
Bytes decoded(dca_decoder* decoder, const Bytes& file) {
  dca_info info;
  void* pixels = nullptr;
  if (dca_decode(decoder, file.data(), file.size(), &info, &pixels, nullptr) != DCA_OK) return {};
  const auto* bytes = static_cast<const uint8_t*>(pixels);
  Bytes copy(bytes, bytes + info.row_bytes * info.height);
  dca_free(pixels);
  return copy;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: decoder_threads WEIGHTS TIMES FILE ...\n");
    return 2;
  }
  const Bytes weights = content_of(argv[1]);
  const int times = std::atoi(argv[2]);
  std::vector<Bytes> files, expected;
  dca_decoder* alone = decoder_of(weights, 1);
  for (int i = 3; i < argc; ++i) {
    files.push_back(content_of(argv[i]));
    expected.push_back(decoded(alone, files.back()));
  }
  dca_decoder_free(alone);

  dca_decoder* shared[] = {decoder_of(weights, 2), decoder_of(weights, 3)};
  std::atomic<int> pictures{0}, wrong{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (int i = 0; i < times; ++i) {
        for (size_t n = 0; n < files.size(); ++n) {
          const size_t at = (n * 5 + thread * 3 + i) % files.size();
          wrong += decoded(shared[(thread + n) % 2], files[at]) != expected[at];
          ++pictures;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (dca_decoder* decoder : shared) dca_decoder_free(decoder);
  std::printf("%d pictures, %d wrong\n", pictures.load(), wrong.load());
  return wrong == 0 ? 0 : 1;
}
