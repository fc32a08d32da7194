#include "tokenizer/number.h"

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace flyweight {

double package_number(std::string_view text) {
  const auto refuse = [&] { throw std::invalid_argument("a score that is no number, or one too large"); };
  std::size_t i = 0;
  const auto at = [&](char c) { return i < text.size() && text[i] == c; };
  const auto at_digit = [&] { return i < text.size() && text[i] >= '0' && text[i] <= '9'; };
  const bool negative = at('-');
  i += negative;
  if (!at_digit()) refuse();
  std::uint64_t digits = 0;
  const auto take = [&] {  // false: no room for it
    const auto digit = static_cast<std::uint64_t>(text[i] - '0');
    if (digits > (UINT64_MAX - digit) / 10) return false;
    digits = digits * 10 + digit;
    return true;
  };
  int exponent = 0;
  for (; at_digit(); ++i)
    if (!take()) refuse();
  if (at('.')) {
    bool room = true;
    for (++i; at_digit(); ++i)
      if (room && (room = take())) --exponent;
  }
  if (at('e') || at('E')) {
    ++i;
    const bool minus = at('-');
    i += minus || at('+');
    int written = 0;
    for (; at_digit() && written < 1000; ++i) written = written * 10 + (text[i] - '0');
    exponent += minus ? -written : written;
  }
  if (i < text.size() || exponent > 308 || exponent < -308) refuse();
  // strtod rounds to the nearest double, and finds no point that a locale could spell otherwise.
  const double power = std::strtod(("1e" + std::to_string(std::abs(exponent))).c_str(), nullptr);
  const double value = exponent < 0 ? double(digits) / power : double(digits) * power;
  return negative ? -value : value;
}

}  // namespace flyweight
