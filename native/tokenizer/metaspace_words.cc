// Metaspace's words, Unigram's pieces of them, and which pieces are a word for entities.
#include <array>

#include "tokenizer/encoder.h"
#include "tokenizer/unicode.h"

namespace flyweight {

namespace u = unicode;

namespace {

constexpr std::uint32_t kWhite = 0;  // the unit of white space, and of what stands for it
constexpr char32_t kBlank = 0x2581;

constexpr std::array<std::uint16_t, 128> kAscii = [] {  // their flags
  std::array<std::uint16_t, 128> flags{};
  for (char32_t c = 0; c < 128; ++c) flags[c] = u::class_of(c).flags;
  return flags;
}();

}  // namespace

// A unit is a run of letters with the marks among and behind them, or another character with its marks: what
// metaspace_words of tokenizer/package.py says.
void Encoder::find_units(std::string_view message) {
  auto& units = work_.units;
  if (units.size() < message.size()) units.resize(message.size());
  std::uint32_t unit = kWhite;
  bool letters = false;
  std::size_t n = 0;
  for (const char* p = message.data(); p != message.data() + message.size(); ++n) {
    const char32_t c = u::next(p);
    const std::uint16_t flags = c < 0x80 ? kAscii[c] : u::class_of(c).flags;
    const bool letter = flags & u::kUnitLetter;
    if (!(n && (flags & u::kUnitMark))) {
      unit += !(letter && letters);
      letters = letter;
    }
    units[n] = flags & u::kSpace || c == kBlank ? kWhite : unit;
  }
}

void Encoder::metaspace_token(std::int32_t id, std::uint32_t start, std::uint32_t end) {
  out_.ids.push_back(id);
  const auto& units = work_.units;
  while (start < end && units[start] == kWhite) ++start;
  while (start < end && units[end - 1] == kWhite) --end;
  if (start >= end) return;
  const auto last = out_.ends.empty() ? 0 : static_cast<std::uint32_t>(out_.ends.back());
  const bool goes_on = start < last || (open_ && units[start] == units[last - 1]);
  open_ = true;
  if (goes_on) out_.ends.back() = static_cast<std::int32_t>(std::max(last, end));
  else put_word(start, end);
}

void Encoder::metaspace_words(std::size_t a, std::size_t b) {
  if (!parts_.splits_white_space) return metaspace_word(a, b);
  const char* const base = bytes();
  std::size_t begin = a;
  for (const char* p = base + a; p != base + b && !full();) {
    const auto at = static_cast<std::size_t>(p - base);
    const char32_t c = u::next(p);
    if (!((c < 0x80 ? kAscii[c] : u::class_of(c).flags) & u::kSpace)) continue;
    if (begin < at) metaspace_word(begin, at);
    begin = static_cast<std::size_t>(p - base);
  }
  if (begin < b && !full()) metaspace_word(begin, b);
}

void Encoder::metaspace_word(std::size_t a, std::size_t b) {
  const std::string_view text(bytes() + a, b - a);
  const auto& source = work_.text.source;
  Normalized& spaced = work_.spaced;
  const std::size_t room = kMetaspace.size() * (text.size() + 1);
  if (spaced.bytes.size() < room) spaced.bytes.resize(room), spaced.source.resize(room);
  std::size_t n = 0;
  const auto put = [&](std::string_view piece, std::uint32_t from) {
    std::copy(piece.begin(), piece.end(), spaced.bytes.begin() + static_cast<std::ptrdiff_t>(n));
    std::fill_n(spaced.source.begin() + static_cast<std::ptrdiff_t>(n), piece.size(), from);
    n += piece.size();
  };
  const bool has_blank = text.starts_with(' ') || text.starts_with(kMetaspace);
  const bool wants_blank = parts_.prepend == Prepend::always || (parts_.prepend == Prepend::first && source[a] == 0);
  if (wants_blank && !has_blank) put(kMetaspace, source[a]);
  std::size_t begin = 0;  // of the word at hand
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool is_blank = text[i] == ' ' || (text[i] == kMetaspace[0] && text.substr(i).starts_with(kMetaspace));
    if (!is_blank) {
      spaced.bytes[n] = text[i];
      spaced.source[n++] = source[a + i];
      continue;
    }
    if (parts_.splits && n > begin) {
      metaspace_pieces(begin, n);
      begin = n;
      if (full()) return;
    }
    put(kMetaspace, source[a + i]);
    if (text[i] != ' ') i += kMetaspace.size() - 1;
  }
  metaspace_pieces(begin, n);
}

// Of bytes [begin, end) of the text with blanks.
void Encoder::metaspace_pieces(std::size_t begin, std::size_t end) {
  const Normalized& spaced = work_.spaced;
  const std::string_view word(spaced.bytes.data() + begin, end - begin);
  begin_word();
  parts_.unigram->split(word, work_.pieces, work_.unigram);
  for (const Piece& piece : work_.pieces) {
    if (full()) return;
    if (only_blanks(word.substr(piece.begin, piece.end - piece.begin))) out_.ids.push_back(piece.id);
    else metaspace_token(piece.id, spaced.source[begin + piece.begin], spaced.source[begin + piece.end - 1] + 1);
  }
}

}  // namespace flyweight
