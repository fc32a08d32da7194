#include "tokenizer/normalize.h"

#include <algorithm>
#include <array>

#include "tokenizer/unicode.h"

namespace flyweight {
namespace {

namespace u = unicode;

// What becomes of an ASCII character; kDrop: clean_text removes it. By options: 1 clean_text, 2 lowercase.
constexpr std::uint16_t kDrop = 0x100;
using AsciiMap = std::array<std::uint16_t, 128>;
constexpr std::array<AsciiMap, 4> kAscii = [] {
  std::array<AsciiMap, 4> maps{};
  for (int options = 0; options < 4; ++options)
    for (std::uint16_t c = 0; c < 128; ++c) {
      const bool control = c == 127 || (c < 32 && c != '\t' && c != '\n' && c != '\r');
      std::uint16_t to = c;
      if (options & 1) to = control ? kDrop : c < 32 ? ' ' : c;
      if ((options & 2) && c >= 'A' && c <= 'Z') to = c + 32;
      maps[options][c] = to;
    }
  return maps;
}();

void normalize_ascii(std::string_view text, std::uint32_t first_char, const BertNormalizer& options, Normalized& out) {
  const AsciiMap& map = kAscii[(options.clean_text ? 1 : 0) + (options.lowercase ? 2 : 0)];
  char* bytes = out.bytes.data() + 1;
  std::uint32_t* source = out.source.data() + 1;
  std::size_t n = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const std::uint16_t to = map[static_cast<unsigned char>(text[i])];
    bytes[n] = static_cast<char>(to);
    source[n] = first_char + static_cast<std::uint32_t>(i);
    n += to < kDrop;
  }
  out.end = 1 + n;
}

// clean_text, handle_chinese_chars and the decomposition of strip_accents: text -> out.chars. True: marks to reorder.
bool read(std::string_view text, std::uint32_t first_char, const BertNormalizer& options, Normalized& out) {
  out.chars.clear();
  bool has_marks = false;
  std::uint32_t hangul[3];
  std::uint32_t source = first_char;
  for (const char* p = text.data(); p != text.data() + text.size(); ++source) {
    char32_t c = u::next(p);
    std::uint16_t flags = u::class_of(c).flags;
    if (options.clean_text) {
      if (flags & u::kControl) continue;
      if (flags & u::kSpace) c = ' ', flags = u::kSpace;  // U+2000 would decompose
    }
    const bool spaced = options.handle_chinese_chars && (flags & u::kCjk);
    if (spaced) out.chars.push_back({' ', source, false});
    if (options.strip_accents && (flags & u::kHasNfd)) {
      bool inserted = false;
      for (const char32_t part : u::decomposed(c, hangul)) {
        out.chars.push_back({part, source, inserted});
        inserted = true;
        has_marks |= u::class_of(part).ccc != 0;
      }
    } else {
      out.chars.push_back({c, source, false});
      has_marks |= u::class_of(c).ccc != 0;
    }
    if (spaced) out.chars.push_back({' ', source, false});
  }
  return has_marks && options.strip_accents;
}

// Canonical order: runs of combining characters are sorted by class. Like the crate behind `tokenizers`, characters get
// their sources afterwards: each one that was not inserted takes the next source in turn, an inserted one the last.
void reorder(std::vector<Normalized::Char>& chars) {
  static thread_local std::vector<std::uint32_t> kept;
  std::vector<std::uint32_t> much;  // not kept
  std::vector<std::uint32_t>& sources = chars.size() > (1 << 16) ? much : kept;
  sources.clear();
  for (const auto& x : chars)
    if (!x.inserted) sources.push_back(x.source);
  const auto ccc = [](const Normalized::Char& x) { return u::class_of(x.c).ccc; };
  for (auto run = chars.begin(); run != chars.end();) {
    if (ccc(*run) == 0) {
      ++run;
      continue;
    }
    const auto run_end = std::find_if(run, chars.end(), [&](const auto& x) { return ccc(x) == 0; });
    // Insertion sort: stable and without allocation. A run is short in any language; a hostile one is bounded below.
    if (run_end - run <= 64) {
      for (auto i = run; i != run_end; ++i)
        std::rotate(std::upper_bound(run, i, *i, [&](const auto& x, const auto& y) { return ccc(x) < ccc(y); }), i, i + 1);
    } else {
      std::stable_sort(run, run_end, [&](const auto& x, const auto& y) { return ccc(x) < ccc(y); });
    }
    run = run_end;
  }
  std::size_t taken = 0;
  for (auto& x : chars) {
    if (!x.inserted) ++taken;
    x.source = sources[taken ? taken - 1 : 0];
  }
}

// Drops marks, lowers, and writes UTF-8.
void write(const BertNormalizer& options, Normalized& out) {
  std::size_t n = 1;
  const auto put = [&](char32_t c, std::uint32_t source) {
    const std::size_t size = u::put(c, out.bytes.data() + n);
    std::fill_n(out.source.data() + n, size, source);
    n += size;
  };
  // a character gives at most 4 bytes, or 2 x 4 where it lowers to two
  const std::size_t room = 1 + 8 * out.chars.size();
  if (out.bytes.size() < room) out.bytes.resize(room), out.source.resize(room);
  for (const auto& [c, source, inserted] : out.chars) {
    const std::uint16_t flags = u::class_of(c).flags;
    if (options.strip_accents && (flags & u::kMark)) continue;
    if (options.lowercase && (flags & u::kHasLower)) {
      for (const char32_t part : u::lower(c)) put(part, source);
    } else {
      put(c, source);
    }
  }
  out.end = n;
}

}  // namespace

void normalize(std::string_view text, std::uint32_t first_char, const BertNormalizer* normalizer, Normalized& out) {
  const std::size_t room = 1 + text.size();
  if (out.bytes.size() < room) out.bytes.resize(room), out.source.resize(room);
  if (normalizer && u::is_ascii(text)) return normalize_ascii(text, first_char, *normalizer, out);
  if (normalizer) {
    if (read(text, first_char, *normalizer, out)) reorder(out.chars);
    return write(*normalizer, out);
  }
  std::copy(text.begin(), text.end(), out.bytes.begin() + 1);
  std::uint32_t source = first_char - 1;
  for (std::size_t i = 0; i < text.size(); ++i) {
    source += !u::continues(text[i]);
    out.source[1 + i] = source;
  }
  out.end = room;
}

}  // namespace flyweight
