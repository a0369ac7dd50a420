// What a caller is told of an exception.
#pragma once

#include <exception>

#include "dca.h"

namespace dca::decoder {

dca_error described(const std::exception& exception);

}  // namespace dca::decoder
