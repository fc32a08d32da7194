// Added tokens ("[SEP]", "<mask>"): found in text before it is cut into words, leftmost first, then longest.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"
#include "tokenizer/unicode.h"

namespace flyweight {

class AddedTokens {
 public:
  void add(const AddedToken& token) {
    if (token.content.empty()) throw std::invalid_argument("an added token that matches nothing");
    auto& bucket = by_first_byte_[static_cast<unsigned char>(token.content[0])];
    for (const AddedToken& other : bucket)
      if (other.content == token.content) throw std::invalid_argument("two added tokens that match the same text");
    // White space that one token strips and another one begins with would belong to both.
    const char* p = token.content.data();
    const char* q = p + token.content.size();
    spaced_ |= unicode::is(unicode::next(p), unicode::kSpace) || unicode::is(unicode::previous(q), unicode::kSpace);
    strips_ |= token.lstrip || token.rstrip;
    if (spaced_ && strips_)
      throw std::invalid_argument("an added token with white space at its edge beside one with lstrip or rstrip");
    const auto shorter = [&](const AddedToken& other) { return other.content.size() < token.content.size(); };
    bucket.insert(std::find_if(bucket.begin(), bucket.end(), shorter), token);
    any_ = true;
  }

  // Calls between(a, b) for every stretch [a, b) of bytes that is not empty and found(a, b, id) for every token, in
  // order. A single_word token beside a word character is no token, and nothing else is looked for within it.
  template <class Between, class Found>
  void split(std::string_view text, const Between& between, const Found& found) const {
    std::size_t done = 0;
    if (any_) {
      for (std::size_t i = 0; i < text.size();) {
        const AddedToken* const token = match(text, i);
        if (!token) {
          ++i;
          continue;
        }
        std::size_t start = i, stop = i + token->content.size();
        i = stop;
        if (token->single_word && beside_word(text, start, stop)) continue;
        if (token->lstrip) start = strip_left(text, start, done);
        if (token->rstrip) stop = strip_right(text, stop);
        if (done < start) between(done, start);
        found(start, stop, token->id);
        done = stop;
      }
    }
    if (done < text.size()) between(done, text.size());
  }

 private:
  const AddedToken* match(std::string_view text, std::size_t i) const {
    for (const AddedToken& token : by_first_byte_[static_cast<unsigned char>(text[i])])
      if (text.substr(i).starts_with(token.content)) return &token;
    return nullptr;
  }

  static bool beside_word(std::string_view text, std::size_t start, std::size_t stop) {
    const char* left = text.data() + start;
    if (start > 0 && unicode::is(unicode::previous(left), unicode::kWord)) return true;
    const char* right = text.data() + stop;
    return stop < text.size() && unicode::is(unicode::next(right), unicode::kWord);
  }

  static std::size_t strip_left(std::string_view text, std::size_t start, std::size_t done) {
    const char* p = text.data() + start;
    while (p != text.data() + done) {
      const char* q = p;
      if (!unicode::is(unicode::previous(q), unicode::kSpace)) break;
      p = q;
    }
    return static_cast<std::size_t>(p - text.data());
  }

  static std::size_t strip_right(std::string_view text, std::size_t stop) {
    const char* p = text.data() + stop;
    const char* const end = text.data() + text.size();
    while (p != end) {
      const char* q = p;
      if (!unicode::is(unicode::next(q), unicode::kSpace)) break;
      p = q;
    }
    return static_cast<std::size_t>(p - text.data());
  }

  std::array<std::vector<AddedToken>, 256> by_first_byte_;  // longest first
  bool any_ = false, spaced_ = false, strips_ = false;
};

}  // namespace flyweight
