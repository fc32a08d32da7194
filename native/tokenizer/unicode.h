// UTF-8 in and out, and what the tables know about a code point.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <string>
#include <string_view>

#include "tokenizer/unicode_tables.h"

namespace flyweight::unicode {

constexpr const Class& class_of(char32_t c) { return kClasses[kBlocks[kBlockOf[c >> 7] * 128 + (c & 127)]]; }
inline bool is(char32_t c, std::uint16_t flag) { return (class_of(c).flags & flag) != 0; }

inline bool is_ascii(std::string_view text) {
  std::size_t i = 0;
  for (; i + 8 <= text.size(); i += 8) {
    std::uint64_t eight;
    std::memcpy(&eight, text.data() + i, 8);
    if (eight & 0x8080808080808080) return false;
  }
  unsigned char all = 0;
  for (; i < text.size(); ++i) all |= static_cast<unsigned char>(text[i]);
  return all < 0x80;
}

inline bool continues(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

inline std::size_t count(std::string_view text) {  // code points
  return text.size() - static_cast<std::size_t>(std::count_if(text.begin(), text.end(), continues));
}

// The code point at p, which moves behind it. Only for valid UTF-8.
inline char32_t next(const char*& p) {
  const auto byte = [&p] { return static_cast<unsigned char>(*p++); };
  const char32_t a = byte();
  if (a < 0x80) return a;
  const char32_t b = byte() & 0x3F;
  if (a < 0xE0) return (a & 0x1F) << 6 | b;
  const char32_t c = byte() & 0x3F;
  if (a < 0xF0) return (a & 0x0F) << 12 | b << 6 | c;
  return (a & 0x07) << 18 | b << 12 | c << 6 | (byte() & 0x3F);
}

// The code point that ends before p, which moves to its beginning.
inline char32_t previous(const char*& p) {
  do --p;
  while (continues(*p));
  const char* read = p;
  return next(read);
}

inline std::size_t put(char32_t c, char* to) {  // bytes written, 1 to 4
  if (c < 0x80) return to[0] = static_cast<char>(c), 1;
  const auto tail = [c](int shift) { return static_cast<char>(0x80 | ((c >> shift) & 0x3F)); };
  if (c < 0x800) return to[0] = static_cast<char>(0xC0 | c >> 6), to[1] = tail(0), 2;
  if (c < 0x10000) return to[0] = static_cast<char>(0xE0 | c >> 12), to[1] = tail(6), to[2] = tail(0), 3;
  return to[0] = static_cast<char>(0xF0 | c >> 18), to[1] = tail(12), to[2] = tail(6), to[3] = tail(0), 4;
}

// Length of the valid sequence at the beginning of `text`, or 0; then `bad` is the length of the maximal part of one.
inline std::size_t valid_length(std::string_view text, std::size_t& bad) {
  const auto at = [text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned a = at(0);
  bad = 1;
  if (a < 0x80) return 1;
  const std::size_t size = a < 0xC2 ? 0 : a < 0xE0 ? 2 : a < 0xF0 ? 3 : a < 0xF5 ? 4 : 0;
  for (std::size_t i = 1; i < size; ++i, ++bad) {
    if (i == text.size()) return 0;
    // no overlong form, no surrogate, nothing above U+10FFFF: only the second byte tells
    const unsigned low = i > 1 ? 0x80 : a == 0xE0 ? 0xA0 : a == 0xF0 ? 0x90 : 0x80;
    const unsigned high = i > 1 ? 0xBF : a == 0xED ? 0x9F : a == 0xF4 ? 0x8F : 0xBF;
    if (at(i) < low || at(i) > high) return 0;
  }
  return size;
}

inline bool is_valid(std::string_view text) {
  std::size_t bad;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t n = valid_length(text.substr(i), bad);
    if (n == 0) return false;
    i += n;
  }
  return true;
}

inline void repair(std::string_view text, std::string& to) {
  to.clear();
  std::size_t bad;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t n = valid_length(text.substr(i), bad);
    to.append(n ? text.substr(i, n) : std::string_view("\xEF\xBF\xBD"));  // U+FFFD
    i += n ? n : bad;
  }
}

// What replaces c, as a range of code points; `hangul` holds it where it is computed.
struct Range {
  const std::uint32_t* begin_;
  const std::uint32_t* end_;
  const std::uint32_t* begin() const { return begin_; }
  const std::uint32_t* end() const { return end_; }
};

inline Range lower(char32_t c) {  // c has kHasLower
  const auto i = std::lower_bound(std::begin(kLowerFrom), std::end(kLowerFrom), c) - std::begin(kLowerFrom);
  return {kLowerPool + kLowerStart[i], kLowerPool + kLowerStart[i + 1]};
}

inline Range decomposed(char32_t c, std::uint32_t (&hangul)[3]) {  // c has kHasNfd
  if (c >= 0xAC00 && c < 0xD7A4) {
    const std::uint32_t i = c - 0xAC00;
    hangul[0] = 0x1100 + i / 588;
    hangul[1] = 0x1161 + i % 588 / 28;
    hangul[2] = 0x11A7 + i % 28;
    return {hangul, hangul + (i % 28 ? 3 : 2)};
  }
  const auto i = std::lower_bound(std::begin(kNfdFrom), std::end(kNfdFrom), c) - std::begin(kNfdFrom);
  return {kNfdPool + kNfdStart[i], kNfdPool + kNfdStart[i + 1]};
}

}  // namespace flyweight::unicode
