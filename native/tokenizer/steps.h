// The normalizer in front of a Metaspace: a charsmap, runs of blanks made one, white space taken off the ends.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <variant>
#include <vector>

#include "tokenizer/charsmap.h"
#include "tokenizer/normalize.h"
#include "tokenizer/tokenizer.h"

namespace flyweight {

class Steps {
 public:
  explicit Steps(const std::vector<NormalizerStep>& steps);

  // As flyweight::normalize. `made` is scratch.
  void normalize(std::string_view text, std::uint32_t first_char, Normalized& out,
                 std::vector<Charsmap::Made>& made) const;

 private:
  struct Squeeze {
    char32_t blank;
  };
  struct Strip {
    bool left, right;
  };
  bool keeps(std::string_view text) const;

  std::vector<std::variant<Charsmap, Squeeze, Strip>> steps_;
  std::array<bool, 256> kept_{};  // bytes that all steps leave where they are, but for blanks side by side and at the ends
  bool squeezes_ = false, strips_ = false;
};

}  // namespace flyweight
