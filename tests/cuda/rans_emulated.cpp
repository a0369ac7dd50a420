// The GPU coder, lane by lane on the CPU, against the CPU coder: searches, round trips and hostile streams, for use
// with sanitizers:
//   g++ -std=c++17 -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -I csrc/coder -I tests/cuda
//       -x c++ csrc/coder/rans_cuda.cu tests/cuda/rans_emulated.cpp csrc/coder/rans_{scalar,avx2,avx512,coder}.cpp
//       -pthread
//   ./a.out [rounds, default 200] [seed, default 1]
// Any difference, any access outside of a buffer, any lane that waits for one that never comes ends the run.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../fuzz/tables.h"
#include "rans_coder.h"

extern "C" {
uint64_t dca_rans_table_bytes();
uint64_t dca_rans_state_bytes();
uint64_t dca_rans_decode_bytes(uint32_t size);
uint64_t dca_rans_encode_bytes(uint32_t size);
uint64_t dca_rans_quantise_bytes(uint32_t size, uint32_t pictures);
void dca_rans_tables(const uint16_t* freq, const uint8_t* shift, void* host, uint32_t* searched);
int dca_rans_reset(const uint8_t* host, const uint64_t* ends, uint32_t pictures, uint8_t* staging, void* opened,
                   uint8_t* streams, void* states, char* message, void*);
int dca_rans_decode(const void* tables, uint32_t trellis, uint32_t last, uint32_t searched, uint32_t staged,
                    const uint8_t* streams, void* states, uint32_t pictures, uint32_t groups, const uint8_t* rows,
                    uint32_t size, int16_t* values, void* scratch, void*);
int dca_rans_finish(void* states, uint32_t pictures, void*);
int dca_rans_encode_open(void* states, uint32_t pictures, const int32_t* lanes, uint32_t groups, uint32_t words, void*);
int dca_rans_encode(const void* tables, uint32_t trellis, uint32_t last, void* states, uint32_t pictures,
                    uint32_t groups, const int16_t* values, const uint8_t* rows, uint32_t size, uint16_t* words,
                    void* scratch, void*);
int dca_rans_encode_close(void* states, uint32_t pictures, uint32_t groups, const uint16_t* words, uint8_t* out,
                          uint64_t room, void*);
int dca_rans_quantise(const int32_t* residuals, const uint8_t* rows, uint32_t size, uint32_t pictures,
                      const int32_t* charges, uint32_t groups, int16_t* values, void* scratch, void*);
}

namespace {

using namespace dca::rans;

std::mt19937 generator;

uint32_t below(uint32_t n) { return static_cast<uint32_t>(generator() % n); }

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::exit(1);
}

// Memory of exactly this size, aligned as a GPU allocation, with rubbish in it.
class Buffer {
 public:
  explicit Buffer(size_t size) : data_(static_cast<uint8_t*>(std::malloc(size + (size == 0)))) {
    std::memset(data_, 0xA5, size);
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }
  template <class T = uint8_t>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }

 private:
  uint8_t* data_;
};

struct Model {
  std::vector<uint16_t> freq = std::vector<uint16_t>(kTableRows * kSymbols);
  std::vector<uint8_t> shift = std::vector<uint8_t>(kTableRows);
  Buffer device{dca_rans_table_bytes()};
  uint32_t searched[2];  // in plain parts, in those of a trellis, beside runs
  std::unique_ptr<Tables> host;

  Model() {
    fuzz::draw_tables(freq.data(), shift.data(), below);
    std::memset(device.as(), 0, dca_rans_table_bytes());
    dca_rans_tables(freq.data(), shift.data(), device.as(), searched);
    host.reset(new Tables(freq.data(), shift.data()));
  }
};

struct Signal {
  std::vector<int16_t> values;
  std::vector<uint8_t> rows;
  bool trellis;

  // For a trellis `groups` of the stream, else 0.
  explicit Signal(size_t size, size_t groups = 0) : values(size), rows(size), trellis(groups > 0) {
    const uint32_t skipped = below(3) == 0 ? 100 : below(101), wild = 1 + below(32);
    for (size_t i = 0; i < size; ++i) {
      rows[i] = static_cast<uint8_t>(below(100) < skipped ? kSkipRow : below(kRows));
      values[i] = static_cast<int16_t>(below(wild) == 0 ? below(65536) : below(21) - 10);
    }
    std::vector<size_t> coded;
    for (size_t i = 0; i < size; ++i) {
      if (rows[i] != kSkipRow) coded.push_back(i);
    }
    for (size_t g = 0; g < groups; ++g) {
      const auto own = [&](size_t group) { return coded.begin() + coded.size() * group / groups; };
      put_on_grid({own(g), own(g + 1)}, chains_of(coded.size(), static_cast<uint32_t>(groups)));
    }
  }

  // The values of one group.
  void put_on_grid(const std::vector<size_t>& coded, size_t width) {
    uint32_t chains[kChains] = {};
    for (size_t j = 0; j < coded.size(); ++j) {
      uint32_t& chain = chains[j % width];
      int16_t& value = values[coded[j]];
      const int set = static_cast<int>(chain & 1), index = trellis_index(set, value);
      value = static_cast<int16_t>(trellis_value(set, index));
      chain = trellis_next(chain, index);
    }
  }
};

struct Result {
  uint32_t status = 0;  // of the device; for the CPU 1, 2 or 4 as the device would say
  std::vector<int16_t> values;
};

std::string encode_on_device(Model& model, const std::vector<Signal>& signals, int lanes, int groups) {
  Buffer state(dca_rans_state_bytes());
  uint32_t room = 0;
  for (const Signal& s : signals) room += 2 * static_cast<uint32_t>((s.rows.size() + groups - 1) / groups);
  Buffer words(2 * size_t{room} * groups), out(2 + 5 * groups + (4 * lanes + 2 * size_t{room}) * groups);
  const int32_t chosen = lanes;
  dca_rans_encode_open(state.as(), 1, &chosen, groups, room, nullptr);
  for (auto s = signals.rbegin(); s != signals.rend(); ++s) {
    const uint32_t size = static_cast<uint32_t>(s->rows.size());
    Buffer scratch(dca_rans_encode_bytes(size));
    dca_rans_encode(model.device.as(), s->trellis, s == signals.rbegin(), state.as(), 1, groups, s->values.data(),
                    s->rows.data(), size, words.as<uint16_t>(), scratch.as(), nullptr);
  }
  dca_rans_encode_close(state.as(), 1, groups, words.as<uint16_t>(), out.as(), 0, nullptr);
  require(state.as<uint32_t>()[0] == 0, "the encoder is content");
  return std::string(out.as<char>(), state.as<uint64_t>()[1]);
}

Result decode_on_device(Model& model, const std::string& stream, const std::vector<Signal>& signals, bool staged) {
  const std::vector<uint8_t> bytes(stream.begin(), stream.end());
  Buffer state(dca_rans_state_bytes()), device(bytes.size() + 2);
  Buffer opened(dca_rans_state_bytes()), staging(bytes.size() + 2);
  char message[80] = "";
  Result result;
  const uint64_t end = bytes.size();
  const int fault =
      dca_rans_reset(bytes.data(), &end, 1, staging.as(), opened.as(), device.as(), state.as(), message, nullptr);
  if (fault != 0) {
    require(fault == -1 || fault == -2, "only streams are refused");
    result.status = fault == -1 ? 2 : 4;
    return result;
  }
  for (const Signal& s : signals) {
    const uint32_t size = static_cast<uint32_t>(s.rows.size());
    Buffer scratch(dca_rans_decode_bytes(size));
    std::vector<int16_t> values(size, 0x5A5A);
    const uint32_t searched = model.searched[s.trellis], runs = (1 + s.trellis) * kRows << (1 + below(7));
    dca_rans_decode(model.device.as(), s.trellis, &s == &signals.back(), searched, staged ? searched + 4 * runs : 0,
                    device.as(), state.as(), 1, kMaxGroups, s.rows.data(), size, values.data(), scratch.as(), nullptr);
    result.values.insert(result.values.end(), values.begin(), values.end());
  }
  dca_rans_finish(state.as(), 1, nullptr);
  const uint32_t bits = state.as<uint32_t>()[0];
  require(bits < 16 && bits % 2 == 0, "a known status");
  result.status = bits & 2 ? 2 : bits != 0 ? 4 : 0;
  return result;
}

Result decode_on_host(const Model& model, const std::string& stream, const std::vector<Signal>& signals) {
  Result result;
  try {
    Decoder decoder(*model.host, kScalarPath, reinterpret_cast<const uint8_t*>(stream.data()), stream.size(), 1);
    for (const Signal& s : signals) {
      std::vector<int16_t> values(s.rows.size());
      decoder.decode(s.rows.data(), values.size(), values.data(), s.trellis, &s == &signals.back());
      result.values.insert(result.values.end(), values.begin(), values.end());
    }
    decoder.finish();
  } catch (const Error& error) {
    result.status = error.fault == Fault::kTruncated ? 2 : 4;
  }
  return result;
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

std::string round_trip(Model& model, const std::vector<Signal>& signals, int lanes, int groups) {
  std::vector<Part> parts;
  std::vector<int16_t> expected;
  for (const Signal& s : signals) {
    parts.push_back({s.values.data(), s.rows.data(), s.rows.size(), s.trellis});
    for (size_t i = 0; i < s.rows.size(); ++i) expected.push_back(s.rows[i] == kSkipRow ? int16_t{0} : s.values[i]);
  }
  const std::string stream = encode(*model.host, kScalarPath, parts, lanes, groups, 1);
  require(encode_on_device(model, signals, lanes, groups) == stream, "the device writes the stream of the CPU");
  const Result result = decode_on_device(model, stream, signals, below(2) == 0);
  require(result.status == 0, "the device accepts the stream");
  require(result.values == expected, "the device returns the values");
  return stream;
}

// In a batch of pictures of `each` positions.
void search(uint32_t each, int groups, uint32_t pictures = 1) {
  const uint32_t size = each * pictures;
  const Signal signal(size);
  std::vector<int32_t> residuals(size), charges(2 * kRows * kSymbols);
  const uint32_t most = 1 + below(kMaxCharge + 1);
  for (int32_t& residual : residuals) {
    residual = static_cast<int32_t>(below(10) == 0 ? generator() : below(8000) - 4000);
  }
  for (int32_t& charge : charges) charge = static_cast<int32_t>(below(most));
  std::vector<int16_t> on_host(size), on_device(size, 0x5A5A);
  Buffer scratch(dca_rans_quantise_bytes(size, pictures));
  for (uint32_t first = 0; first < size; first += each) {
    quantise(kScalarPath, residuals.data() + first, signal.rows.data() + first, each, charges.data(), groups, 1,
             on_host.data() + first);
  }
  dca_rans_quantise(residuals.data(), signal.rows.data(), size, pictures, charges.data(), static_cast<uint32_t>(groups),
                    on_device.data(), scratch.as(), nullptr);
  require(on_device == on_host, "device and CPU find the same values");
}

}  // namespace

int main(int argc, char** argv) {
  const long rounds = argc > 1 ? std::atol(argv[1]) : 200;
  generator.seed(argc > 2 ? static_cast<uint32_t>(std::atol(argv[2])) : 1);
  Model model;
  for (int log2 = 0; log2 <= 5; ++log2) {
    const int groups = 1 + log2;
    round_trip(model, {Signal(0), Signal(1500), Signal(1), Signal(1500, groups), Signal(1, groups)}, 1 << log2, groups);
  }
  round_trip(model, {Signal(3072), Signal(1024), Signal(3072, kMaxGroups)}, kMaxLanes, kMaxGroups);
  search(3072, kMaxGroups);
  round_trip(model, {Signal(0)}, kMaxLanes, kMaxGroups);
  long hostile = 0, refused = 0;
  for (long i = 0; i < rounds; ++i) {
    const int groups = 1 + static_cast<int>(below(4));
    const std::vector<Signal> signals{Signal(below(120)), Signal(below(300), groups * below(2))};
    const std::string stream = round_trip(model, signals, 1 << below(6), groups);
    search(below(600), groups);
    search(below(200), groups, 1 + below(5));
    for (int j = 0; j < 5; ++j, ++hostile) {
      const std::string bytes = mutated(stream);
      const Result device = decode_on_device(model, bytes, signals, j % 2 == 0);
      const Result host = decode_on_host(model, bytes, signals);
      require(device.status == host.status, "device and CPU find the same fault");
      require(device.status != 0 || device.values == host.values, "device and CPU return the same values");
      refused += device.status != 0;
    }
  }
  std::printf("%ld hostile streams, %ld refused\n", hostile, refused);
  return 0;
}
