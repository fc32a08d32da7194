// ByteLevel's words, and byte pairs' pieces of them.
#include "tokenizer/encoder.h"
#include "tokenizer/unicode.h"

namespace flyweight {

namespace u = unicode;

namespace {

enum Run : std::uint8_t { kLetters, kNumbers, kOthers, kSpaces };
Run run_of(char32_t c) {
  if (c < 0x80) {
    if ((c | 32) >= 'a' && (c | 32) <= 'z') return kLetters;
    if (c >= '0' && c <= '9') return kNumbers;
    return c == ' ' || (c >= 9 && c <= 13) ? kSpaces : kOthers;
  }
  const std::uint16_t flags = u::class_of(c).flags;
  return flags & u::kLetter ? kLetters : flags & u::kNumber ? kNumbers : flags & u::kSpace ? kSpaces : kOthers;
}

}  // namespace

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
void Encoder::byte_level_words(std::size_t a, std::size_t b) {
  if (parts_.add_prefix_space && bytes()[a] != ' ') {
    // The byte in front is free: what it belonged to is done with. The space belongs to the first character.
    --a;
    work_.text.bytes[a] = ' ';
    work_.text.source[a] = work_.text.source[a + 1];
  }
  while (a < b && !full()) {
    const std::size_t end = parts_.use_regex ? byte_level_end(a, b) : b;
    Hash h = kHashStart;
    for (std::size_t i = a; i < end; ++i) h = hash_step(h, static_cast<unsigned char>(bytes()[i]));
    begin_word();
    parts_.bpe->split({bytes() + a, end - a}, h, work_.pieces, work_.bpe);
    write_pieces(a);
    a = end;
  }
}

// End of the pattern's match that begins at byte a of the text that ends at b.
std::size_t Encoder::byte_level_end(std::size_t a, std::size_t b) const {
  const char* const base = bytes();
  const auto at = [&](std::size_t i) { return i < b ? base[i] : '\0'; };
  if (base[a] == '\'') {
    const char x = at(a + 1), y = at(a + 2);
    if (x == 's' || x == 't' || x == 'm' || x == 'd') return a + 2;
    if ((x == 'r' && y == 'e') || (x == 'v' && y == 'e') || (x == 'l' && y == 'l')) return a + 3;
  }
  const char* p = base + a;
  const char* const end = base + b;
  Run run = run_of(u::next(p));
  if (run == kSpaces && base[a] == ' ' && p != end) {
    const char* q = p;
    const Run following = run_of(u::next(q));
    if (following != kSpaces) run = following, p = q;
  }
  const char* last = base + a;  // beginning of the last character of the run
  std::size_t n = 1;
  while (p != end) {
    const char* q = p;
    if (run_of(u::next(q)) != run) break;
    last = p, p = q, ++n;
  }
  // \s+(?!\S): white space leaves its last character to what comes behind it
  if (run == kSpaces && p != end && n > 1) p = last;
  return static_cast<std::size_t>(p - base);
}

}  // namespace flyweight
