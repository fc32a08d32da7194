// SentencePiece's table of replacements ("precompiled_charsmap"), used on one grapheme cluster after the other.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/normalize.h"

namespace flyweight {

class Charsmap {
 public:
  // What comes out of a cluster, and from where. change: above 0, it was inserted; below 0, as many more were removed.
  struct Made {
    char32_t c;
    std::int32_t change;
    std::uint32_t source;
  };

  // The bytes of the table: see charsmap.py. Throws std::invalid_argument where they are none.
  explicit Charsmap(std::string_view bytes);

  // As `tokenizers` 0.20 to 0.23: a cluster of at most five bytes, otherwise each of its characters, is replaced whole
  // by what the shortest key becomes that it begins with. `made` is scratch.
  void apply(std::vector<Normalized::Char>& chars, std::vector<Made>& made) const;

  // Whether an ASCII character stays among other such ones.
  bool keeps(unsigned char c) const { return keeps_[c]; }

 private:
  std::optional<std::string_view> replacement(std::string_view text) const;
  bool replace(std::string_view text, int n_chars, std::vector<Made>& made) const;

  std::vector<std::uint32_t> units_;
  std::string pool_;
  std::array<bool, 128> keeps_{};
};

}  // namespace flyweight
