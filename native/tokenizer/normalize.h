// A stretch of text made ready for words: its bytes after BertNormalizer, and the character each byte came from.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace flyweight {

struct Normalized {
  // bytes[0] is room for ByteLevel's prefix space; the text is bytes[1 .. end).
  std::vector<char> bytes;
  std::vector<std::uint32_t> source;  // as long as bytes: index of the character in the message
  std::size_t end = 1;

  // used within normalize()
  struct Char {
    char32_t c;
    std::uint32_t source;
    bool inserted;  // by a decomposition, behind its first part
  };
  std::vector<Char> chars;
};

// `text` is valid UTF-8; `first_char` is the index of its first character in the message. Null: no normalizer.
void normalize(std::string_view text, std::uint32_t first_char, const BertNormalizer* normalizer, Normalized& out);

}  // namespace flyweight
