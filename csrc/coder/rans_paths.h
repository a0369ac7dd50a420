// One record of kernels per instruction set; all of them read and write the same streams.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rans.h"

namespace dca::rans {

// Kernels may read (decoder) or write (encoder) this many bytes beyond what they use.
constexpr size_t kSlack = 256;

struct TableView {
  const uint32_t* slots;       // [rows * kSlots], slot_entry
  const SymbolEntry* symbols;  // [rows * kSymbols]; uncodable symbols hold the entry of the escape
  const uint8_t* shift;        // [rows]
  int first_shift;             // lowest row with a shift in any table, kRows if there is none
};

// A trellis sees the tables of both sets as one of 2 * kRows rows: those of set 1 have this bit.
constexpr int kSetBit = kRows;

// What a search keeps of a round: for each chain the ways into its states, a bit each, and four bits more.
constexpr size_t kTrailBytes = kChains * (kTrellisStates / 8 + 1);

struct Path {
  const char* name;

  // Copies rows that are not kSkipRow to `dense` until `capacity` of them or the end is reached.
  // Returns how many rows were read; `count` = how many were kept, -1 if one is not a table row.
  // Writes up to kSlack bytes too far, as all packing kernels do.
  size_t (*pack_rows)(const uint8_t* rows, size_t n, size_t capacity, uint8_t* dense, ptrdiff_t& count);
  // Copies the values, or residuals, whose row is not kSkipRow.
  void (*pack_values)(const uint8_t* rows, const int16_t* values, size_t n, int16_t* dense);
  void (*pack_residuals)(const uint8_t* rows, const int32_t* residuals, size_t n, int32_t* dense);
  // The reverse: spreads `dense` over the coded positions and writes 0 to the others.
  void (*unpack_values)(const uint8_t* rows, const int16_t* dense, size_t n, int16_t* values);

  // Decodes `count` symbols in rounds of `lanes`, reading words from `words` on. Returns the end of what
  // was read, or nullptr as soon as a round has read beyond `end`.
  const uint8_t* (*decode)(const TableView& tables, int lanes, uint32_t* states, const uint8_t* words,
                           const uint8_t* end, const uint8_t* rows, size_t count, int16_t* values);
  // Encodes `count` symbols from the last round to the first, writing words downwards from `words`;
  // there must be room. Returns the start of what was written.
  uint8_t* (*encode)(const TableView& tables, int lanes, uint32_t* states, uint8_t* words, const uint8_t* rows,
                     const int16_t* values, size_t count);

  // Decodes a block of a trellis's part from the states of `width` chains on, and leaves those at its end. At most
  // `width` lanes; whole rounds of chains, except in the last block of a part.
  const uint8_t* (*decode_trellis)(const TableView& tables, int lanes, uint32_t* states, const uint8_t* words,
                                   const uint8_t* end, const uint8_t* rows, size_t count, int16_t* values,
                                   uint16_t* chains, int width);
  // Prepares such a block for `encode`: values become indices, and rows get the bits of sets. Returns whether
  // every value was on the grid of its state.
  bool (*to_indices)(uint8_t* rows, int16_t* values, size_t count, uint16_t* chains, int width);
  // Finds the values of kChains chains, whose symbols come in turn. Arrays go on to whole rounds, with rows below
  // kRows; `trail` is scratch, kTrailBytes for each round.
  void (*search)(const int32_t* charges, const int32_t* residuals, const uint8_t* rows, size_t count, uint8_t* trail,
                 int16_t* values);
  // The same for one chain, or nullptr: arrays go on to whole rounds of 32, `trail` has kTrailBytes for each 32
  // symbols.
  void (*search_one)(const int32_t* charges, const int32_t* residuals, const uint8_t* rows, size_t count,
                     uint8_t* trail, int16_t* values);
};

// Second and third sweep of a decoder round whose buckets are in `values`: low bits, then escapes.
const uint8_t* decode_rest(const TableView& tables, int lanes, uint32_t* states, const uint8_t* words,
                           const uint8_t* rows, int16_t* values);
// The same backwards, before the frequency step of the round.
uint8_t* encode_rest(const TableView& tables, int lanes, uint32_t* states, uint8_t* words, const SymbolEntry* entries,
                     const uint8_t* rows, const int16_t* values);

extern const Path kScalarPath;
// nullptr where the processor or the build cannot run it.
const Path* avx2_path();
const Path* avx512_path();

}  // namespace dca::rans
