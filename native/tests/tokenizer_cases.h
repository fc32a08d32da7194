// What the tests of tokenizers share.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tests/check.h"
#include "tokenizer/tokenizer.h"

namespace cases {

using flyweight::Encoding;
using flyweight::Tokenizer;
using flyweight::TokenizerSpec;

inline std::string shown(const std::vector<std::int32_t>& values) {
  std::string text;
  for (const auto value : values) text += (text.empty() ? "" : " ") + std::to_string(value);
  return text;
}

// "ids | first | start-end ..." of a text.
inline std::string encoded(const Tokenizer& tokenizer, std::string_view text) {
  Encoding e;
  tokenizer.encode(text, e);
  std::string words;
  for (std::size_t i = 0; i < e.starts.size(); ++i)
    words += " " + std::to_string(e.starts[i]) + "-" + std::to_string(e.ends[i]);
  return shown(e.ids) + " | " + shown(e.first) + " |" + words;
}

// What holds for every encoding of a text.
inline void check_sound(const Encoding& e, const TokenizerSpec& spec, std::string_view text) {
  CHECK(e.ids.size() <= spec.max_tokens && e.ids.size() >= spec.before.size() + spec.after.size());
  CHECK(e.first.size() == e.starts.size() && e.first.size() == e.ends.size());
  for (std::size_t i = 0; i < e.first.size(); ++i) {
    CHECK(e.starts[i] < e.ends[i] && e.ends[i] <= static_cast<std::int32_t>(text.size()));
    CHECK(e.first[i] < static_cast<std::int32_t>(e.ids.size()));
    CHECK(i == 0 || e.first[i - 1] < e.first[i]);
  }
}

}  // namespace cases
