// Round trips and hostile streams through every kernel of the coder, for use with sanitizers:
//   g++ -std=c++17 -O1 -g -pthread -fsanitize=address,undefined -fno-sanitize-recover=all -I csrc/coder
//       tests/fuzz/rans_sanitize.cpp csrc/coder/rans_{scalar,avx2,avx512,coder}.cpp -o rans_sanitize
//   ./rans_sanitize [mutated streams, default 100000] [seed, default 1]
// Any disagreement between two kernels, any fault but rans::Error, ends the run with an error.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "rans_coder.h"

namespace {

using namespace dca::rans;

std::mt19937 generator;

uint32_t below(uint32_t n) { return static_cast<uint32_t>(generator() % n); }

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::exit(1);
}

// The division by reciprocal, at the places where it could be wrong: around multiples of freq.
void check_reciprocals() {
  struct Sink {
    void put(bool, uint16_t) {}
  } sink;
  for (uint32_t freq = 1; freq < kSlots; ++freq) {
    const SymbolEntry entry = symbol_entry(0, freq, false);
    const uint32_t quotients = 1u << (32 - kProbBits);
    for (uint32_t i = 0; i < 64; ++i) {
      const uint32_t quotient = i < 8 ? i : i < 16 ? quotients - 1 - (i - 8) : below(quotients);
      for (const uint32_t x : {quotient * freq, quotient * freq + freq / 2, quotient * freq + freq - 1}) {
        const uint32_t coded = encode_step(x, entry, sink);
        require(coded >> kProbBits == x / freq && coded % kSlots == x % freq, "encode_step divides exactly");
      }
    }
  }
}

// Rows of all kinds: a few or many symbols, gaps between them, low bits, frequent and rare escapes.
struct Model {
  std::vector<uint16_t> freq = std::vector<uint16_t>(kTableRows * kSymbols);
  std::vector<uint8_t> shift = std::vector<uint8_t>(kTableRows);

  Model() {
    for (int row = 0; row < kTableRows; ++row) {
      uint16_t* f = freq.data() + row * kSymbols;
      shift[row] = static_cast<uint8_t>(below(3) == 0 ? below(kMaxShift + 1) : 0);
      int left = kSlots - (f[kEscape] = static_cast<uint16_t>(below(8) == 0 ? 1 + below(2000) : 1));
      for (uint32_t radius = below(2) == 0 ? 3 : 127; left > 0;) {
        const uint32_t symbol = kCenter - radius + below(2 * radius + 1);
        const int add = std::min<int>({left, 1 + static_cast<int>(below(700)), kSlots - 1 - f[symbol]});
        f[symbol] = static_cast<uint16_t>(f[symbol] + add);
        left -= add;
      }
    }
  }
};

// Values as they are, or those that a search of a trellis finds.
struct Signal {
  std::vector<int16_t> values;
  std::vector<uint8_t> rows;
  bool trellis;

  Signal(size_t size, int groups) : values(size), rows(size), trellis(below(2) == 0) {
    const uint32_t skipped = below(101);
    for (size_t i = 0; i < size; ++i) {
      rows[i] = static_cast<uint8_t>(below(100) < skipped ? kSkipRow : below(kRows));
      values[i] = static_cast<int16_t>(below(16) == 0 ? below(65536) : below(21) - 10);
    }
    if (trellis) search(groups);
  }

 private:
  void search(int groups) {
    std::vector<int32_t> residuals(rows.size()), charges(2 * kRows * kSymbols);
    for (int32_t& residual : residuals) {
      residual = static_cast<int32_t>(below(16) == 0 ? generator() : below(8001) - 4000);
    }
    const uint32_t most = below(2) == 0 ? kMaxCharge : 30000;
    for (int32_t& charge : charges) charge = static_cast<int32_t>(below(most + 1));
    for (const Path* path : available_paths()) {
      std::vector<int16_t> found(rows.size());
      quantise(*path, residuals.data(), rows.data(), rows.size(), charges.data(), groups, 1, found.data());
      require(path == available_paths().front() || found == values, "all searches find the same");
      values = found;
    }
  }
};

struct Result {
  std::string fault;
  std::vector<int16_t> values;

  bool operator==(const Result& other) const { return fault == other.fault && values == other.values; }
};

Result decode(const Tables& tables, const Path& path, const std::string& stream, const std::vector<Signal>& signals,
              int threads) {
  Result result;
  try {
    // An exact heap copy: a read outside of it is a read the sanitizer sees.
    const std::vector<uint8_t> bytes(stream.begin(), stream.end());
    Decoder decoder(tables, path, bytes.data(), bytes.size(), threads);
    for (const Signal& signal : signals) {
      std::vector<int16_t> values(signal.rows.size());
      decoder.decode(signal.rows.data(), values.size(), values.data(), signal.trellis, &signal == &signals.back());
      result.values.insert(result.values.end(), values.begin(), values.end());
    }
    decoder.finish();
  } catch (const Error& error) {
    result.fault = error.what();
  }
  return result;
}

std::string encode_all(const Tables& tables, const std::vector<Signal>& signals, int lanes, int groups, int threads) {
  std::vector<Part> parts;
  for (const Signal& s : signals) parts.push_back({s.values.data(), s.rows.data(), s.rows.size(), s.trellis});
  const std::string stream = encode(tables, kScalarPath, parts, lanes, groups, 1);
  for (const Path* path : available_paths()) {
    require(encode(tables, *path, parts, lanes, groups, threads) == stream, "all encoders write the same stream");
  }
  return stream;
}

std::vector<int16_t> expected(const std::vector<Signal>& signals) {
  std::vector<int16_t> values;
  for (const Signal& s : signals) {
    for (size_t i = 0; i < s.rows.size(); ++i) values.push_back(s.rows[i] == kSkipRow ? int16_t{0} : s.values[i]);
  }
  return values;
}

std::string round_trip(const Tables& tables, const std::vector<Signal>& signals, int lanes, int groups, int threads) {
  const std::string stream = encode_all(tables, signals, lanes, groups, threads);
  for (const Path* path : available_paths()) {
    const Result result = decode(tables, *path, stream, signals, threads);
    require(result.fault.empty(), "every decoder accepts the stream");
    require(result.values == expected(signals), "every decoder returns the values");
  }
  return stream;
}

std::string mutated(std::string stream) {
  switch (below(4)) {
    case 0:
      stream.resize(below(static_cast<uint32_t>(stream.size()) + 1));
      break;
    case 1:
      stream.insert(below(static_cast<uint32_t>(stream.size()) + 1), 1 + below(5), static_cast<char>(below(256)));
      break;
    case 2:  // the header and the states
      for (uint32_t i = 0; i < 3; ++i) stream[below(std::min<uint32_t>(12, stream.size()))] ^= 1 << below(8);
      break;
    default:
      for (uint32_t i = 1 + below(8); i > 0; --i) stream[below(stream.size())] = static_cast<char>(below(256));
  }
  return stream;
}

std::vector<Signal> random_signals(uint32_t largest, int groups) {
  std::vector<Signal> signals;
  for (uint32_t i = 1 + below(3); i > 0; --i) signals.emplace_back(below(largest + 1), groups);
  return signals;
}

}  // namespace

int main(int argc, char** argv) {
  const long mutations = argc > 1 ? std::atol(argv[1]) : 100000;
  generator.seed(argc > 2 ? static_cast<uint32_t>(std::atol(argv[2])) : 1);
  check_reciprocals();
  const Model model;
  const Tables tables(model.freq.data(), model.shift.data());
  for (int log2 = 0; log2 <= 5; ++log2) {
    for (const size_t size : {0, 1, (1 << log2) - 1, 1 << log2, (1 << log2) + 1, 333, 9000}) {
      for (const int groups : {1, 3, kMaxGroups})
        round_trip(tables, {Signal(size, groups), Signal(7, groups)}, 1 << log2, groups, 1);
    }
  }
  round_trip(tables, {Signal(300000, 5), Signal(300000, 5)}, kMaxLanes, 5, 4);
  long refused = 0;
  for (long i = 0; i < mutations;) {
    const int groups = 1 + static_cast<int>(below(4));
    const std::vector<Signal> signals = random_signals(120, groups);
    const std::string stream = round_trip(tables, signals, 1 << below(6), groups, 1);
    for (int j = 0; j < 20; ++j, ++i) {
      const std::string hostile = mutated(stream);
      const Result first = decode(tables, kScalarPath, hostile, signals, 1);
      refused += first.fault.empty() ? 0 : 1;
      for (const Path* path : available_paths()) {
        require(decode(tables, *path, hostile, signals, 1) == first, "all decoders agree on a hostile stream");
      }
    }
  }
  std::printf("%ld hostile streams, %ld refused; paths:", mutations, refused);
  for (const Path* path : available_paths()) std::printf(" %s", path->name);
  std::printf("\n");
  return 0;
}
