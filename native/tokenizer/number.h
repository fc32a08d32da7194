// A number of a JSON file as `tokenizers` reads it.
#pragma once

#include <string_view>

namespace flyweight {

// The digits as one integer, as many as 64 bits hold, times or over a power of ten. That rounds twice: of numbers with 17
// digits every seventh is a neighbour of the nearest double. Throws std::invalid_argument where the text is no number, or
// one beyond 64 bits or 10^+-308.
double package_number(std::string_view text);

}  // namespace flyweight
