// Takes the place of libFuzzer where there is no Clang: its options, but mutations that no coverage guides.
//
//   HARNESS [-runs=N] [-max_total_time=SECONDS] [-seed=N] [-max_len=BYTES] [-artifact_prefix=PATH] [FILE or FOLDER ...]
//
// runs every file once, and then mutations of them; those given alone are what `-runs=0` runs. The input that an error
// ends with is written to PATH crash-input.
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <string>

#include "input.h"

extern "C" {
int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
int LLVMFuzzerInitialize(int* argc, char*** argv);
void __sanitizer_set_death_callback(void (*callback)());
}

namespace {

using fuzz::Bytes;

std::mt19937 generator;
Bytes current;
std::string artifact = "crash-input";

size_t below(size_t n) { return generator() % n; }

void keep() {
  if (std::FILE* file = std::fopen(artifact.c_str(), "wb")) {
    std::fwrite(current.data(), 1, current.size(), file);
    std::fclose(file);
    std::fprintf(stderr, "the input is in %s\n", artifact.c_str());
  }
}

void aborted(int) {
  keep();
  std::_Exit(77);
}

void run(Bytes input) {
  current = std::move(input);
  const Bytes exact(current);  // in memory of its own size: what lies behind it is not read unseen
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

// Bits, bytes, numbers, and ranges that are cut out, repeated or taken from another input.
Bytes mutated(Bytes bytes, const Bytes& other, size_t most) {
  for (size_t n = 1 + below(5); n > 0; --n) {
    const size_t at = below(bytes.size() + 1), size = std::min(1 + below(9), bytes.size() - at);
    const auto from = bytes.begin() + static_cast<std::ptrdiff_t>(at);
    const auto end = from + static_cast<std::ptrdiff_t>(size);
    const size_t kind = size == 0 ? 5 : below(8);
    if (kind == 0) {
      *from = static_cast<uint8_t>(*from ^ 1 << below(8));
    } else if (kind < 3) {
      *from = static_cast<uint8_t>(below(2) ? generator() : below(2) ? 0 : 255);
    } else if (kind == 3) {
      bytes.erase(from, end);
    } else if (kind == 4) {
      const Bytes copy(from, end);
      bytes.insert(from, copy.begin(), copy.end());
    } else if (kind == 5) {
      for (size_t more = 1 + below(8); more > 0; --more) bytes.push_back(static_cast<uint8_t>(generator()));
    } else if (kind == 6) {
      if (!other.empty()) bytes[at] = other[below(other.size())];
    } else if (below(8) == 0) {
      bytes.resize(at);
    }
  }
  if (bytes.size() > most) bytes.resize(most);
  return bytes;
}

}  // namespace

int main(int argc, char** argv) {
  using Clock = std::chrono::steady_clock;
  long runs = -1, seconds = 0;
  size_t most = 4096;
  std::vector<Bytes> seeds;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    if (argument[0] != '-') {
      if (!std::filesystem::is_directory(argument)) {
        seeds.push_back(fuzz::content_of(argv[i]));
        continue;
      }
      std::vector<std::string> files;  // in an order that does not change
      for (const auto& entry : std::filesystem::directory_iterator(argument)) files.push_back(entry.path().string());
      std::sort(files.begin(), files.end());
      for (const std::string& file : files) seeds.push_back(fuzz::content_of(file.c_str()));
      continue;
    }
    const std::string name = argument.substr(1, equals - 1), value = argument.substr(equals + 1);
    if (name == "runs") runs = std::stol(value);
    if (name == "max_total_time") seconds = std::stol(value);
    if (name == "seed") generator.seed(static_cast<uint32_t>(std::stoul(value)));
    if (name == "max_len") most = std::stoul(value);
    if (name == "artifact_prefix") artifact = value + "crash-input";
  }
  __sanitizer_set_death_callback(keep);
  std::signal(SIGABRT, aborted);
  LLVMFuzzerInitialize(&argc, &argv);
  const Clock::time_point end = Clock::now() + std::chrono::seconds(seconds);
  for (const Bytes& seed : seeds) run(seed);
  seeds.emplace_back();
  long done = static_cast<long>(seeds.size()) - 1;
  while ((runs < 0 || done < runs) && (seconds == 0 || Clock::now() < end)) {
    run(mutated(seeds[below(seeds.size())], seeds[below(seeds.size())], most));
    ++done;
  }
  std::printf("stat::number_of_executed_units: %ld\n", done);
  return 0;
}
