// Drawn tables of the entropy coder, for harnesses and for the coder of the device.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../csrc/coder/rans.h"

namespace fuzz {

// Rows of all kinds: a few or many symbols, gaps between them, low bits, frequent and rare escapes.
// freq: [kTableRows * kSymbols], zeros; shift: [kTableRows]; below(n): a number less than n.
template <class Below>
void draw_tables(uint16_t* freq, uint8_t* shift, Below&& below) {
  using namespace dca::rans;
  for (int row = 0; row < kTableRows; ++row) {
    uint16_t* f = freq + row * kSymbols;
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

}  // namespace fuzz
