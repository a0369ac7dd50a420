// Fewer colours, near those that are there: what an encoder of blocks with loss does before it codes them.
// dca_fast/exact/palette.py is the definition.
#pragma once

#include <cstdint>

#include "exact_coder.h"

namespace dca::exact {

// Writes samples whose rarer colours have become more frequent ones, where these save more bits than the error is
// worth. price: of a squared error of one sample, in 2^-20 bits, at most 2^20. Pixels outside of the blocks become
// zeros.
void merge_colours(const uint8_t* samples, const Shape& shape, const uint8_t* inside, int64_t price, uint8_t* merged);

}  // namespace dca::exact
