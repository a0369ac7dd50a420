// Threads that share decoders of several threads each, and coders that have threads of their own, under
// ThreadSanitizer: every picture is that of one thread alone, every value comes back.
//
//   cmake -S csrc/decoder -B build/threads -DDCA_FUZZ=ON -DDCA_SANITIZERS=thread && cmake --build build/threads
//   --parallel build/threads/threads dca_fast/data/dca-s.safetensors 3 tests/golden/*.dca
//
// decodes each file three times on each of four threads, and runs as many rounds of the coders.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/coder/rans_coder.h"
#include "../../csrc/exact/exact_coder.h"
#include "../../csrc/ops/cpu_pool.h"
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

// Tables in which every symbol is as frequent as the others, but for the first one.
dca::rans::Tables even_tables() {
  using namespace dca::rans;
  std::vector<uint16_t> freq(kTableRows * kSymbols, kSlots / kSymbols);
  return Tables(freq.data(), std::vector<uint8_t>(kTableRows).data());
}

// Whether all values came back: through the entropy coder by every path, and through the threads of the pool, whose
// number changes under way.
bool round_of_coders(const dca::rans::Tables& tables, std::mt19937& draw, int threads) {
  using namespace dca::rans;
  std::vector<uint8_t> rows(1 + draw() % 40000);
  std::vector<int16_t> values(rows.size()), back(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i] = static_cast<uint8_t>(draw() % 3 ? draw() % kRows : kSkipRow);
    values[i] = static_cast<int16_t>(rows[i] == kSkipRow ? 0 : static_cast<int>(draw() % 21) - 10);
  }
  bool same = true;
  const int groups = 1 + static_cast<int>(draw() % 8);
  for (const Path* path : available_paths()) {
    const std::string stream = encode(tables, *path, {{values.data(), rows.data(), rows.size()}}, 8, groups, threads);
    Decoder decoder(tables, *path, reinterpret_cast<const uint8_t*>(stream.data()), stream.size(), threads);
    decoder.decode(rows.data(), rows.size(), back.data(), false, true);
    decoder.finish();
    same = same && back == values;
  }
  dca::set_threads(1 + static_cast<int>(draw() % 5));
  std::vector<int64_t> sums(64);
  for (int i = 0; i < 20; ++i) {
    dca::parallel_for(64, 2000000, [&](int64_t n) {
      dca::scratch(dca::Scratch::strip, 4096)[n] = static_cast<char>(n);
      sums[static_cast<size_t>(n)] += n;
    });
  }
  for (int64_t n = 0; n < 64; ++n) same = same && sums[static_cast<size_t>(n)] == 20 * n;
  return same;
}

// Two bands of a picture by two threads.
bool bands_come_back() {
  const dca::exact::Shape shape{2048, 1024, 1};
  const std::vector<uint8_t> samples(static_cast<size_t>(shape.height) * shape.width, 7);
  std::vector<uint8_t> back(samples.size());
  const std::string stream = dca::exact::encode(samples.data(), shape, {false, false, 1}, 2);
  const auto* bytes = reinterpret_cast<const uint8_t*>(stream.data());
  dca::exact::decode(dca::exact::layout_of(bytes, stream.size(), shape), shape, back.data(), 2);
  return back == samples;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: threads WEIGHTS TIMES FILE ...\n");
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

  const dca::rans::Tables tables = even_tables();
  std::atomic<int> rounds{0}, others{0};
  threads.clear();
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      std::mt19937 draw(static_cast<uint32_t>(thread));
      for (int i = 0; i < times; ++i, ++rounds) others += !round_of_coders(tables, draw, 1 + thread % 4);
    });
  }
  others += !bands_come_back();
  for (std::thread& thread : threads) thread.join();
  std::printf("%d rounds of the coders, %d wrong\n", rounds.load(), others.load());
  return wrong == 0 && others == 0 ? 0 : 1;
}
