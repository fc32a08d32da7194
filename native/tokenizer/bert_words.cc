// BertPreTokenizer's words, and WordPiece's pieces of them.
#include <array>

#include "tokenizer/encoder.h"
#include "tokenizer/unicode.h"

namespace flyweight {

namespace u = unicode;

namespace {

// What the pre-tokenizer does with an ASCII character: kInside a word, kGap between words, kAlone a word of its own.
enum : std::uint8_t { kInside, kGap, kAlone };
constexpr std::array<std::uint8_t, 128> kBertClass = [] {
  std::array<std::uint8_t, 128> classes{};
  for (int c = 0; c < 128; ++c) {
    const bool letter = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
    if (c == ' ' || (c >= 9 && c <= 13)) classes[c] = kGap;
    else if (c > 32 && c < 127 && !letter) classes[c] = kAlone;
  }
  return classes;
}();

}  // namespace

void Encoder::bert_words(std::size_t a, std::size_t b) {
  const char* const base = bytes();
  std::size_t begin = a;
  Hash h = kHashStart;
  const auto finish = [&](std::size_t end) {
    if (begin < end && !full()) word_piece(begin, end, h);
  };
  for (std::size_t i = a; i < b && !full();) {
    const auto byte = static_cast<unsigned char>(base[i]);
    std::size_t next = i + 1;
    std::uint8_t kind;
    if (byte < 0x80) {
      kind = kBertClass[byte];
    } else {
      const char* p = base + i;
      const std::uint16_t flags = u::class_of(u::next(p)).flags;
      next = static_cast<std::size_t>(p - base);
      kind = flags & u::kSpace ? kGap : flags & u::kPunctuation ? kAlone : kInside;
    }
    if (kind == kInside) {
      for (; i < next; ++i) h = hash_step(h, static_cast<unsigned char>(base[i]));
      continue;
    }
    finish(i);
    h = kHashStart;
    begin = next;
    if (kind == kAlone && !full()) {
      Hash alone = kHashStart;
      for (std::size_t j = i; j < next; ++j) alone = hash_step(alone, static_cast<unsigned char>(base[j]));
      word_piece(i, next, alone);
    }
    i = next;
  }
  finish(b);
}

// The longest entry that begins the word, then the longest that goes on, and so forth; [UNK] where none does.
void Encoder::word_piece(std::size_t begin, std::size_t end, Hash h) {
  begin_word();
  const char* const base = bytes();
  const std::size_t size = end - begin;
  if (size > parts_.max_chars_per_word && u::count({base + begin, size}) > parts_.max_chars_per_word)
    return piece(parts_.unk_id, begin, end);
  const std::int32_t whole = parts_.starts.find(base + begin, size, h);
  if (whole >= 0) return piece(whole, begin, end);

  auto& pieces = work_.pieces;  // nothing is written before the whole word has been covered
  pieces.clear();
  for (std::size_t a = begin; a < end;) {
    const PieceTable& table = a == begin ? parts_.starts : parts_.inner;
    const std::size_t longest = std::min(end - a, table.longest());
    if (work_.hashes.size() <= longest) work_.hashes.resize(longest + 1);
    Hash prefix = kHashStart;
    for (std::size_t n = 0; n < longest; ++n)
      work_.hashes[n + 1] = prefix = hash_step(prefix, static_cast<unsigned char>(base[a + n]));
    std::int32_t id = -1;
    std::size_t n = longest;
    for (; n > 0; --n) {
      if (a + n < end && u::continues(base[a + n])) continue;  // within a character
      id = table.find(base + a, n, work_.hashes[n]);
      if (id >= 0) break;
    }
    if (id < 0) return piece(parts_.unk_id, begin, end);
    pieces.push_back({id, static_cast<std::uint32_t>(a), static_cast<std::uint32_t>(a + n)});
    a += n;
  }
  write_pieces(0);
}

}  // namespace flyweight
