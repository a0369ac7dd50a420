// Round trips and hostile streams through every kernel of the entropy coder, which must agree.
//
// The start of an input says what is coded: tables, rows, lanes, groups. The rest is a stream, or changes of one that
// an encoder wrote; or values and residuals, which are coded and decoded.
#include <memory>
#include <string>

#include "../../csrc/coder/rans_coder.h"
#include "input.h"
#include "tables.h"

using namespace dca::rans;
using fuzz::Bytes;
using fuzz::Input;
using fuzz::require;

namespace {

std::mt19937 generator;

uint32_t below(uint32_t n) { return static_cast<uint32_t>(generator() % n); }

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

struct Model {
  std::vector<uint16_t> freq = std::vector<uint16_t>(kTableRows * kSymbols);
  std::vector<uint8_t> shift = std::vector<uint8_t>(kTableRows);

  Model() { fuzz::draw_tables(freq.data(), shift.data(), below); }
};

// Values as they are, or those that a search of a trellis finds.
struct Signal {
  std::vector<int16_t> values;
  std::vector<uint8_t> rows;
  bool trellis;

  // `coded`: whether an encoder gets it, whose values then are those of a search.
  Signal(Input& input, size_t size, int groups, int threads, bool coded)
      : values(size), rows(size), trellis(input.below(coded ? 8 : 2) == 0) {  // a search takes long
    const uint32_t skipped = input.below(101), how = input.below(4);
    for (uint8_t& row : rows)
      row = static_cast<uint8_t>(input.drawn_below(100) < skipped ? kSkipRow : input.drawn_below(kRows));
    if (how == 0 && size > 0) rows[input.number(2) % size] = input.byte();  // which may be no row
    if (!coded) return;
    for (int16_t& value : values) {
      value = static_cast<int16_t>(input.drawn_below(16) == 0 ? input.drawn() : input.drawn_below(21) - 10);
      if (how == 1) value = static_cast<int16_t>(input.number(2));
    }
    if (trellis) search(input, how == 1, groups, threads);
  }

  bool codable() const {
    return std::all_of(rows.begin(), rows.end(), [](uint8_t row) { return row < kRows || row == kSkipRow; });
  }

 private:
  void search(Input& input, bool given, int groups, int threads) {
    std::vector<int32_t> residuals(rows.size());
    static std::vector<int32_t> charges(2 * kRows * kSymbols);  // to get so much memory, or to clear it, takes long
    for (int32_t& residual : residuals) {
      residual = static_cast<int32_t>(input.drawn_below(16) == 0 ? input.drawn() : input.drawn_below(8001) - 4000);
      if (given && !input.empty()) residual = static_cast<int32_t>(input.number(4));
    }
    const uint32_t most = input.below(2) == 0 ? kMaxCharge : 30000;
    const size_t step = 1 + input.byte() % 64;  // from one that costs something to the next
    const auto charge = [&](auto&& value) {
      for (size_t i = 0; i < charges.size(); i += step) charges[i] = value();
    };
    charge([&] { return static_cast<int32_t>(input.drawn_below(most + 1)); });
    try {
      for (const Path* path : available_paths()) {
        std::vector<int16_t> found(rows.size());
        quantise(*path, residuals.data(), rows.data(), rows.size(), charges.data(), groups, threads, found.data());
        require(path == available_paths().front() || found == values, "all searches find the same");
        values = found;
      }
    } catch (const Error& error) {
      require(error.fault == Fault::kInput && !codable(), "a search refuses rows that there are not");
    }
    charge([] { return 0; });
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

// Any bytes with a layout that fits, and states in range, so that words are reached.
std::string laid_out(const Bytes& bytes, int lanes, int groups) {
  std::string header{static_cast<char>(lanes == 1 ? 0 : __builtin_ctz(static_cast<uint32_t>(lanes))),
                     static_cast<char>(groups)};
  const size_t states = 4 * static_cast<size_t>(lanes);
  const size_t each = std::max(states, bytes.size() / static_cast<size_t>(groups) & ~size_t{1});
  std::string body(bytes.begin(), bytes.end());
  body.resize(std::max(body.size() + body.size() % 2, each * static_cast<size_t>(groups)));
  for (int group = 0; group < groups; ++group) {
    for (size_t at = group * each; at < group * each + states; at += 4) {
      if (body[at + 2] == 0 && body[at + 3] == 0) body[at + 2] = 1;
    }
    if (group + 1 == groups) break;
    size_t size = each;
    for (; size > 0x7f; size >>= 7) header.push_back(static_cast<char>(size | 0x80));
    header.push_back(static_cast<char>(size));
  }
  return header + body;
}

// Tables with entries that are others, which are refused unless they keep every rule.
void other_tables(Input& input) {
  Model model;
  for (uint32_t changes = 1 + input.below(3); changes > 0; --changes) {
    const uint32_t at = input.below(kTableRows * kSymbols);
    if (input.below(4) == 0) {
      model.shift[at / kSymbols] = input.byte();
    } else {
      model.freq[at] = static_cast<uint16_t>(input.number(2));
    }
  }
  bool right = true;
  for (int row = 0; row < kTableRows; ++row) {
    const uint16_t* f = model.freq.data() + row * kSymbols;
    uint32_t sum = 0;
    for (int i = 0; i < kSymbols; ++i) sum += f[i];
    right = right && sum == kSlots && *std::max_element(f, f + kSymbols) < kSlots && f[kEscape] > 0 &&
            model.shift[row] <= kMaxShift;
  }
  try {
    const Tables tables(model.freq.data(), model.shift.data());
    require(right, "tables that break a rule are refused");
  } catch (const Error& error) {
    require(error.fault == Fault::kInput && !right, "tables that keep the rules are taken");
  }
}

std::vector<std::unique_ptr<Tables>> all_tables;

}  // namespace

// What needs no input.
extern "C" int LLVMFuzzerInitialize(int*, char***) {
  check_reciprocals();
  for (int i = 0; i < 4; ++i) {
    const Model model;
    all_tables.push_back(std::make_unique<Tables>(model.freq.data(), model.shift.data()));
  }
  const Tables& tables = *all_tables.front();
  const auto check = [&](size_t size, size_t then, int lanes, int groups, int threads) {
    const uint8_t start[] = {1, 2, static_cast<uint8_t>(size), 30, 2, static_cast<uint8_t>(groups), 40, 2};
    Input input(start, sizeof start);
    round_trip(tables, {Signal(input, size, groups, threads, true), Signal(input, then, groups, threads, true)}, lanes,
               groups, threads);
  };
  for (int log2 = 0; log2 <= 5; ++log2) {
    for (const size_t size : {0, 1, (1 << log2) - 1, 1 << log2, (1 << log2) + 1, 333, 9000}) {
      for (const int groups : {1, 3, kMaxGroups}) check(size, 7, 1 << log2, groups, 1);
    }
  }
  check(40000, 40000, kMaxLanes, 5, 4);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const uint32_t kind = input.byte();
  if (kind == 255 && input.below(8) == 0) {  // to make tables takes long
    other_tables(input);
    return 0;
  }
  const Tables& tables = *all_tables[input.below(4)];
  const int lanes = 1 << input.below(6), threads = input.below(32) == 31 ? 2 : 1;
  const int groups = 1 + static_cast<int>(input.below(input.below(16) == 15 ? kMaxGroups : 4));
  std::vector<Signal> signals;
  const bool coded = kind % 4 == 3;  // to search a trellis takes the most of the time
  bool codable = coded;
  for (uint32_t i = 1 + input.below(3); i > 0; --i) {
    const uint32_t most = input.below(32) == 31 ? 1000 : 100;
    signals.emplace_back(input, input.below(coded ? most / 4 : most), groups, threads, coded);
    codable = codable && signals.back().codable();
  }
  std::string stream;
  if (kind % 4 == 0) {
    const Bytes rest = input.rest();
    stream.assign(rest.begin(), rest.end());
  } else if (!codable) {
    stream = laid_out(input.rest(), lanes, groups);
  } else {
    stream = input.changed(round_trip(tables, signals, lanes, groups, threads));
  }
  const Result first = decode(tables, kScalarPath, stream, signals, threads);
  for (const Path* path : available_paths()) {
    require(decode(tables, *path, stream, signals, threads) == first, "all decoders agree on a hostile stream");
  }
  return 0;
}
