#include "rans_coder.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

namespace dca::rans {
namespace {

constexpr size_t kBlock = 4096;  // coded symbols at a time; whole rounds of any number of lanes and of chains
constexpr size_t kPositionsPerThread = 1 << 16;  // a thread with less to do does not pay for its start

using Chains = std::array<uint16_t, kChains>;  // states; all begin at 0 in every part of a group

// Scratch of one block: positions are packed to coded symbols here, so that rounds are dense.
struct Block {
  uint8_t rows[kBlock + kSlack];
  int16_t values[kBlock + kSlack];
};

constexpr size_t kStretch = 1 << 12;

// Coded values of at most kStretch positions: as many sums of bytes as compilers like to take at once.
size_t count_coded(const uint8_t* rows, size_t size) {
  constexpr size_t kSums = 32;
  static_assert(kStretch / kSums <= 255);
  uint8_t sums[kSums] = {};
  size_t count = 0, i = 0;
  for (; i + kSums <= size; i += kSums) {
    for (size_t j = 0; j < kSums; ++j) sums[j] = static_cast<uint8_t>(sums[j] + (rows[i + j] < kRows));
  }
  for (const uint8_t sum : sums) count += sum;
  for (; i < size; ++i) count += rows[i] < kRows;
  return count;
}

// How a part is shared out.
struct Cuts {
  std::array<size_t, kMaxGroups + 1> begin{};  // the positions from which on each group has its coded values
  size_t coded = 0;                            // values of all groups

  // Of one group.
  size_t coded_of(size_t g, size_t groups) const { return coded * (g + 1) / groups - coded * g / groups; }
  // Chains of each group, if the part is of a trellis.
  int width(size_t groups) const { return static_cast<int>(chains_of(coded, static_cast<uint32_t>(groups))); }
};

Cuts cut(const uint8_t* rows, size_t size, size_t groups) {
  Cuts cuts;
  cuts.begin[groups] = size;
  std::vector<size_t> before{0};  // coded values before each stretch
  for (size_t i = 0; i < size; i += kStretch) {
    before.push_back(before.back() + count_coded(rows + i, std::min(kStretch, size - i)));
  }
  cuts.coded = before.back();
  for (size_t g = 1; g < groups; ++g) {
    const size_t rank = cuts.coded * g / groups;
    const auto beyond = std::upper_bound(before.begin() + 1, before.end(), rank);
    size_t at = static_cast<size_t>(beyond - before.begin() - 1) * kStretch;
    for (size_t seen = *(beyond - 1); seen < rank; ++at) seen += rows[at] < kRows;
    cuts.begin[g] = std::min(at, size);
  }
  return cuts;
}

// Calls work(0) ... work(count - 1), on several threads if that pays; throws what one of them throws.
void for_each(size_t count, size_t positions, int threads, const std::function<void(size_t)>& work) {
  std::atomic<size_t> next{0};
  std::exception_ptr error;
  std::mutex mutex;
  const auto run = [&] {
    try {
      for (size_t i = next++; i < count; i = next++) work(i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      error = std::current_exception();
    }
  };
  const size_t useful = std::min(count, positions / kPositionsPerThread);
  std::vector<std::thread> helpers;
  try {
    for (size_t i = 1; i < std::min(useful, static_cast<size_t>(threads)); ++i) helpers.emplace_back(run);
  } catch (const std::exception&) {
    // No more threads, or no memory for them: those that started and this one share the work.
  }
  run();
  for (std::thread& helper : helpers) helper.join();
  if (error) std::rethrow_exception(error);
}

void put32(uint8_t* to, uint32_t value) {
  for (int i = 0; i < 4; ++i) to[i] = static_cast<uint8_t>(value >> (8 * i));
}

void put_size(std::string& to, size_t value) {
  for (; value >= 0x80; value >>= 7) to.push_back(static_cast<char>(value | 0x80));
  to.push_back(static_cast<char>(value));
}

// The stream of one group, built from its end.
class GroupEncoder {
 public:
  // Makes room for the worst case; the system provides pages only for what is written.
  GroupEncoder(size_t positions, size_t longest_part)
      : starts_(longest_part / kBlock + 2),
        room_(4 * kMaxLanes + 2 * kWordsPerSymbol * positions + kSlack),
        buffer_(new uint8_t[room_]),
        next_(buffer_.get() + room_) {
    std::fill_n(states_, kMaxLanes, kLower);
  }

  // Adds a part in front of those added before. `tail`: its first coded value of the tail; `width`: chains of a
  // trellis, else kChains.
  Outcome add(const TableView& tables, const Path& path, int lanes, const Part& part, size_t tail, int width) {
    Block block;
    Chains chains{};
    size_t blocks = 0, at = 0;
    ptrdiff_t count = 0;
    for (size_t read = 0; at < part.size; at += read) {
      starts_[blocks++] = {at, chains};
      read = path.pack_rows(part.rows + at, part.size - at, kBlock, block.rows, count);
      if (count < 0) return Outcome::kBadRow;
      if (part.trellis && !to_indices(path, part, at, read, count, block, chains, width)) return Outcome::kOffGrid;
    }
    for (size_t end = part.size; blocks > 0; end = at) {
      at = starts_[--blocks].position;
      path.pack_rows(part.rows + at, end - at, kBlock, block.rows, count);
      if (part.trellis) {
        to_indices(path, part, at, end - at, count, block, starts_[blocks].chains, width);
      } else {
        path.pack_values(part.rows + at, part.values + at, end - at, block.values);
      }
      const size_t first = blocks * kBlock, all = static_cast<size_t>(count);  // all blocks but the last one are full
      const size_t whole = std::clamp(tail, first, first + all) - first;       // not of the tail
      const auto encode = [&](size_t from, size_t to, int with) {
        next_ = path.encode(tables, std::min(with, width), states_, next_, block.rows + from, block.values + from,
                            to - from);
      };
      if (whole < all) {
        encode(whole, all, static_cast<int>(tail_lanes(static_cast<uint32_t>(lanes))));
        if (first <= tail) end_tail(lanes);
      }
      encode(0, whole, lanes);
    }
    return Outcome::kDone;
  }

  void close(int lanes) {
    next_ -= 4 * lanes;
    for (int lane = 0; lane < lanes; ++lane) put32(next_ + 4 * lane, states_[lane]);
  }

  size_t size() const { return static_cast<size_t>(buffer_.get() + room_ - next_); }
  const char* data() const { return reinterpret_cast<const char*>(next_); }

 private:
  // Lanes that have no part in the tail begin with its first words.
  void end_tail(int lanes) {
    const uint8_t* const end = buffer_.get() + room_;
    for (uint32_t lane = tail_lanes(static_cast<uint32_t>(lanes)); lane < static_cast<uint32_t>(lanes); ++lane) {
      if (next_ == end) return;
      states_[lane] = kLower | next_[0] | static_cast<uint32_t>(next_[1]) << 8;
      next_ += 2;
    }
  }

  // The first position of a block, and where its chains stand there.
  struct Start {
    size_t position;
    Chains chains;
  };

  static bool to_indices(const Path& path, const Part& part, size_t at, size_t read, ptrdiff_t count, Block& block,
                         Chains& chains, int width) {
    path.pack_values(part.rows + at, part.values + at, read, block.values);
    return path.to_indices(block.rows, block.values, static_cast<size_t>(count), chains.data(), width);
  }

  std::vector<Start> starts_;  // of the blocks of one part
  size_t room_;
  std::unique_ptr<uint8_t[]> buffer_;
  uint8_t* next_;
  uint32_t states_[kMaxLanes];
};

std::string join_groups(const std::vector<GroupEncoder>& encoders, int lanes) {
  int log2 = 0;
  while (1 << log2 < lanes) ++log2;
  std::string stream{static_cast<char>(log2), static_cast<char>(encoders.size())};
  size_t total = stream.size();
  for (size_t g = 0; g < encoders.size(); ++g) {
    if (g + 1 < encoders.size()) put_size(stream, encoders[g].size());
    total += encoders[g].size();
  }
  stream.reserve(stream.size() + total);
  for (const GroupEncoder& encoder : encoders) stream.append(encoder.data(), encoder.size());
  return stream;
}

// Memory that grows as it is asked for.
template <class T>
class Scratch {
 public:
  // Whether there is room for so many now; what was in it is lost.
  bool reserve(size_t count) {
    if (count <= count_) return true;
    room_.reset();  // first, so that there is never twice as much
    room_.reset(new (std::nothrow) T[count]);
    count_ = room_ != nullptr ? count : 0;
    return room_ != nullptr;
  }
  T* get() { return room_.get(); }
  size_t size() const { return count_; }

 private:
  std::unique_ptr<T[]> room_;
  size_t count_ = 0;
};

// The search of the chains of one or more groups that follow each other, at most kChains together: first those that
// have a symbol in the last round. A thread keeps its memory from call to call if it is not much: pages that the system
// has to clear cost more than the search.
class GroupSearch {
 public:
  // Of `size` positions. Symbols: where those of each group begin among all of them, and where the last one's end.
  Outcome run(const Path& path, const int32_t* residuals, const uint8_t* rows, size_t size, const int32_t* charges,
              const std::vector<size_t>& symbols, size_t width, int16_t* values) {
    ptrdiff_t coded = 0;
    if (!rows_.reserve(size + kSlack)) return Outcome::kNoMemory;
    path.pack_rows(rows, size, size, rows_.get(), coded);
    if (coded < 0) return Outcome::kBadRow;
    const size_t count = static_cast<size_t>(coded);
    if (!residuals_.reserve(count + kSlack) || !values_.reserve(count + kSlack)) return Outcome::kNoMemory;
    path.pack_residuals(rows, residuals, size, residuals_.get());
    const Outcome outcome = width == kChains ? search(path, charges, count) : search_few(path, charges, symbols, width);
    path.unpack_values(rows, values_.get(), size, values);
    if (trail_.size() > kKeptTrail) *this = GroupSearch();
    return outcome;
  }

 private:
  // A chain: its first symbol, and how many there are.
  struct Chain {
    size_t first, count;
  };

  // Symbols that come in turn from kChains chains.
  Outcome search(const Path& path, const int32_t* charges, size_t count) {
    if (!trail_.reserve((count / kChains + 1) * kTrailBytes + kSlack)) return Outcome::kNoMemory;
    std::fill_n(rows_.get() + count, kChains, uint8_t{0});
    std::fill_n(residuals_.get() + count, kChains, 0);
    path.search(charges, residuals_.get(), rows_.get(), count, trail_.get(), values_.get());
    return Outcome::kDone;
  }

  Outcome search_few(const Path& path, const int32_t* charges, const std::vector<size_t>& symbols, size_t width) {
    std::vector<Chain> chains;
    for (size_t g = 0; g + 1 < symbols.size(); ++g) {
      const size_t count = symbols[g + 1] - symbols[g];
      for (size_t c = 0; c < width; ++c)
        chains.push_back({symbols[g] - symbols[0] + c, (count + width - 1 - c) / width});
    }
    if (path.search_one != nullptr && chains.size() <= kOneByOne) return search_each(path, charges, chains, width);
    size_t rounds = 0, active = 0;
    for (const Chain& chain : chains) rounds = std::max(rounds, chain.count);
    const auto longest = [&](const Chain& chain) { return chain.count == rounds; };
    active = static_cast<size_t>(std::stable_partition(chains.begin(), chains.end(), longest) - chains.begin());
    if (rounds == 0) return Outcome::kDone;

    GroupSearch& wide = wide_ != nullptr ? *wide_ : *(wide_ = std::make_unique<GroupSearch>());
    const size_t all = rounds * kChains;
    if (!wide.rows_.reserve(all + kSlack) || !wide.residuals_.reserve(all + kSlack) ||
        !wide.values_.reserve(all + kSlack)) {
      return Outcome::kNoMemory;
    }
    std::fill_n(wide.rows_.get(), all, uint8_t{0});
    std::fill_n(wide.residuals_.get(), all, 0);
    const auto each = [&](const auto& visit) {
      for (size_t c = 0; c < chains.size(); ++c) {
        for (size_t i = 0; i < chains[c].count; ++i) visit(chains[c].first + i * width, i * kChains + c);
      }
    };
    each([&](size_t from, size_t to) {
      wide.rows_.get()[to] = rows_.get()[from];
      wide.residuals_.get()[to] = residuals_.get()[from];
    });
    const Outcome outcome = wide.search(path, charges, all - kChains + active);
    each([&](size_t to, size_t from) { values_.get()[to] = wide.values_.get()[from]; });
    if (wide.trail_.size() > kKeptTrail) wide_.reset();
    return outcome;
  }

  static constexpr size_t kOneByOne = 8;  // chains that are searched sooner one after the other

  Outcome search_each(const Path& path, const int32_t* charges, const std::vector<Chain>& chains, size_t width) {
    GroupSearch& one = wide_ != nullptr ? *wide_ : *(wide_ = std::make_unique<GroupSearch>());
    for (const Chain& chain : chains) {
      const size_t whole = (chain.count + kChains - 1) / kChains * kChains;
      if (!one.rows_.reserve(whole + kSlack) || !one.residuals_.reserve(whole + kSlack) ||
          !one.values_.reserve(whole + kSlack) || !one.trail_.reserve(whole / kChains * kTrailBytes + kSlack)) {
        return Outcome::kNoMemory;
      }
      for (size_t i = 0; i < whole; ++i) {
        const bool there = i < chain.count;
        one.rows_.get()[i] = there ? rows_.get()[chain.first + i * width] : 0;
        one.residuals_.get()[i] = there ? residuals_.get()[chain.first + i * width] : 0;
      }
      path.search_one(charges, one.residuals_.get(), one.rows_.get(), chain.count, one.trail_.get(), one.values_.get());
      for (size_t i = 0; i < chain.count; ++i) values_.get()[chain.first + i * width] = one.values_.get()[i];
    }
    return Outcome::kDone;
  }

  static constexpr size_t kKeptTrail = 16 << 20;
  Scratch<uint8_t> rows_, trail_;
  Scratch<int32_t> residuals_;
  Scratch<int16_t> values_;
  std::unique_ptr<GroupSearch> wide_;  // the same, spread over kChains
};

void require_done(Outcome outcome) {
  switch (outcome) {
    case Outcome::kBadRow:
      throw Error(Fault::kInput, "a row is neither a table row nor 255");
    case Outcome::kOffGrid:
      throw Error(Fault::kInput, "a value is not on the grid of its state");
    case Outcome::kNoMemory:
      throw std::bad_alloc();
    case Outcome::kTruncated:
      throw Error(Fault::kTruncated, "a coder group ends before its symbols");
    case Outcome::kDone:
      return;
  }
}

}  // namespace

Tables::Tables(const uint16_t* freq, const uint8_t* shift)
    : slots_(kTableRows * kSlots), symbols_(kTableRows * kSymbols), shift_(shift, shift + kTableRows) {
  for (int row = 0; row < kTableRows; ++row, freq += kSymbols) {
    if (shift[row] > kMaxShift || freq[kEscape] == 0) throw Error(Fault::kInput, "a table row breaks the format");
    if (shift[row] != 0) first_shift_ = std::min(first_shift_, row % kRows);
    uint32_t start = 0;
    for (uint32_t symbol = 0; symbol < kSymbols; start += freq[symbol++]) {
      if (freq[symbol] >= kSlots || start + freq[symbol] > kSlots) {
        throw Error(Fault::kInput, "a table row breaks the format");
      }
      for (uint32_t i = 0; i < freq[symbol]; ++i) {
        slots_[static_cast<size_t>(row) * kSlots + start + i] = slot_entry(symbol, freq[symbol], i);
      }
      if (freq[symbol] != 0) {
        symbols_[static_cast<size_t>(row) * kSymbols + symbol] = symbol_entry(start, freq[symbol], symbol == kEscape);
      }
    }
    if (start != kSlots) throw Error(Fault::kInput, "a table row breaks the format");
    SymbolEntry* entries = symbols_.data() + static_cast<size_t>(row) * kSymbols;
    std::replace_if(entries, entries + kEscape, [](const SymbolEntry& e) { return e.packed == 0; }, entries[kEscape]);
  }
}

std::vector<const Path*> available_paths() {
  std::vector<const Path*> paths{avx512_path(), avx2_path(), &kScalarPath};
  paths.erase(std::remove(paths.begin(), paths.end(), nullptr), paths.end());
  return paths;
}

std::string encode(const Tables& tables, const Path& path, const std::vector<Part>& parts, int lanes, int groups,
                   int threads) {
  const size_t count = static_cast<size_t>(groups);
  size_t positions = 0;
  for (const Part& part : parts) positions += part.size;
  std::vector<Cuts> cuts;
  for (const Part& part : parts) cuts.push_back(cut(part.rows, part.size, count));
  const auto own = [&](size_t i, size_t g) {
    const size_t begin = cuts[i].begin[g];
    return Part{parts[i].values + begin, parts[i].rows + begin, cuts[i].begin[g + 1] - begin, parts[i].trellis};
  };
  std::vector<GroupEncoder> encoders;
  for (size_t g = 0; g < count; ++g) {
    size_t total = 0, longest = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      const size_t size = own(i, g).size;
      total += size;
      longest = std::max(longest, size);
    }
    encoders.emplace_back(total, longest);
  }
  std::atomic<Outcome> outcome{Outcome::kDone};
  for_each(count, positions, threads, [&](size_t g) {
    for (size_t i = parts.size(); i-- > 0 && outcome == Outcome::kDone;) {
      const size_t symbols = cuts[i].coded_of(g, count), tail = i + 1 == parts.size() ? tail_begin(symbols) : symbols;
      const Outcome added = encoders[g].add(tables.view(parts[i].trellis), path, lanes, own(i, g), tail,
                                            parts[i].trellis ? cuts[i].width(count) : kChains);
      if (added != Outcome::kDone) outcome = added;
    }
    encoders[g].close(lanes);
  });
  require_done(outcome);
  return join_groups(encoders, lanes);
}

void quantise(const Path& path, const int32_t* residuals, const uint8_t* rows, size_t size, const int32_t* charges,
              int groups, int threads, int16_t* values) {
  const size_t count = static_cast<size_t>(groups);
  std::atomic<Outcome> outcome{Outcome::kDone};
  const Cuts cuts = cut(rows, size, count);
  const size_t width = static_cast<size_t>(cuts.width(count)), each = kChains / width;  // groups
  for_each((count + each - 1) / each, size, threads, [&](size_t i) {
    const size_t first = i * each, last = std::min(first + each, count), begin = cuts.begin[first];
    std::vector<size_t> symbols;
    for (size_t g = first; g <= last; ++g) symbols.push_back(cuts.coded * g / count);
    thread_local GroupSearch search;
    const Outcome found = search.run(path, residuals + begin, rows + begin, cuts.begin[last] - begin, charges, symbols,
                                     width, values + begin);
    if (found != Outcome::kDone) outcome = found;
  });
  require_done(outcome);
}

Decoder::Decoder(const Tables& tables, const Path& path, const uint8_t* stream, size_t size, int threads)
    : tables_(tables), path_(path), threads_(threads) {
  stream_.reserve(size + kSlack);
  stream_.assign(stream, stream + size);
  stream_.resize(size + kSlack);
  const Layout layout = read_layout(stream_.data(), size);
  lanes_ = layout.lanes;
  for (int g = 0; g < layout.groups; ++g) {
    uint8_t* begin = stream_.data() + layout.begin[g];
    Group group{{}, begin + 4 * lanes_, stream_.data() + layout.begin[g + 1], false};
    for (int lane = 0; lane < lanes_; ++lane) group.states[lane] = get32(begin + 4 * lane);
    groups_.push_back(group);
  }
}

Outcome Decoder::decode_group(Group& group, const uint8_t* rows, size_t size, int16_t* values, bool trellis,
                              size_t tail, int width) const {
  const TableView tables = tables_.view(trellis);
  Block block;
  Chains chains{};
  ptrdiff_t count = 0;
  const auto decode = [&](size_t from, size_t to, int lanes) {
    const uint8_t* const own = block.rows + from;
    const uint8_t* const next =
        trellis ? path_.decode_trellis(tables, std::min(lanes, width), group.states, group.next, group.end, own,
                                       to - from, block.values + from, chains.data(), width)
                : path_.decode(tables, lanes, group.states, group.next, group.end, own, to - from, block.values + from);
    if (next != nullptr) group.next += next - group.next;
    return next != nullptr;
  };
  size_t first = 0;  // coded value of the block
  for (size_t read = 0; size > 0; size -= read, rows += read, values += read, first += static_cast<size_t>(count)) {
    read = path_.pack_rows(rows, size, kBlock, block.rows, count);
    if (count < 0) return Outcome::kBadRow;
    const size_t all = static_cast<size_t>(count), whole = std::clamp(tail, first, first + all) - first;
    if (!decode(0, whole, lanes_)) return Outcome::kTruncated;
    if (whole < all && first <= tail) begin_tail(group);
    const int lanes = static_cast<int>(tail_lanes(static_cast<uint32_t>(lanes_)));
    if (whole < all && !decode(whole, all, lanes)) return Outcome::kTruncated;
    path_.unpack_values(rows, block.values, read, values);
  }
  return Outcome::kDone;
}

// Lanes that have no part in the tail give what their states are above kLower: the words that come next.
void Decoder::begin_tail(Group& group) const {
  group.spare = group.next == group.end;
  for (uint32_t lanes = static_cast<uint32_t>(lanes_), lane = lanes; lane-- > tail_lanes(lanes);) {
    uint32_t& state = group.states[lane];
    group.next -= 2;  // over states and words that were read before
    group.next[0] = static_cast<uint8_t>(state);
    group.next[1] = static_cast<uint8_t>(state >> 8);
    state = state >> 16 == 1 ? kLower : 0;  // finish() finds the wrong ones
  }
}

void Decoder::decode(const uint8_t* rows, size_t size, int16_t* values, bool trellis, bool last) {
  if (!usable_) throw Error(Fault::kCorrupt, "the decoder stopped at an earlier error");
  Outcome outcomes[kMaxGroups];
  const size_t count = groups_.size();
  const Cuts cuts = cut(rows, size, count);
  for_each(count, size, threads_, [&](size_t g) {
    const size_t begin = cuts.begin[g], tail = last ? tail_begin(cuts.coded_of(g, count)) : SIZE_MAX;
    outcomes[g] = decode_group(groups_[g], rows + begin, cuts.begin[g + 1] - begin, values + begin, trellis, tail,
                               cuts.width(count));
  });
  usable_ = std::all_of(outcomes, outcomes + count, [](Outcome outcome) { return outcome == Outcome::kDone; });
  if (usable_) return;
  const bool bad_row = std::count(outcomes, outcomes + count, Outcome::kBadRow) != 0;
  require_done(bad_row ? Outcome::kBadRow : Outcome::kTruncated);
}

void Decoder::finish() const {
  if (!usable_) throw Error(Fault::kCorrupt, "the decoder stopped at an earlier error");
  for (const Group& group : groups_) {
    if (std::any_of(group.states, group.states + lanes_, [](uint32_t state) { return state != kLower; })) {
      throw Error(Fault::kCorrupt, "the final coder states are wrong");
    }
    const bool unused = std::any_of<const uint8_t*>(group.next, group.end, [](uint8_t byte) { return byte != 0; });
    if (group.spare ? unused : group.next != group.end) throw Error(Fault::kCorrupt, "coder words are left over");
  }
}

}  // namespace dca::rans
