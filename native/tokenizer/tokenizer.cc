#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <array>
#include <optional>
#include <stdexcept>

#include "tokenizer/added.h"
#include "tokenizer/bpe.h"
#include "tokenizer/normalize.h"
#include "tokenizer/pieces.h"
#include "tokenizer/unicode.h"

namespace flyweight {
namespace {

namespace u = unicode;

// White space at both ends of a token, in characters, as trim_offsets counts it: U+0120 is ByteLevel's space.
struct Edges {
  std::uint32_t leading = 0, trailing = 0;
};

Edges edges(std::string_view token) {
  const auto space = [](char32_t c) { return c == 0x120 || u::is(c, u::kSpace); };
  Edges found;
  const char* const begin = token.data();
  const char* const end = begin + token.size();
  for (const char* p = begin; p != end && space(u::next(p)); ++found.leading) {
  }
  for (const char* p = end; p != begin && space(u::previous(p)); ++found.trailing) {
  }
  return found;
}

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

// Scratch of one thread: grows to the longest message and stays.
constexpr std::size_t kLargest = 1 << 16;  // bytes of a message whose scratch memory is kept

struct Work {
  std::string repaired;
  Normalized text;
  std::vector<Hash> hashes;   // [n]: of the first n bytes of a word
  std::vector<Piece> pieces;  // of a word
  BytePairs::Work bpe;
};

}  // namespace

struct Tokenizer::Parts {
  explicit Parts(const TokenizerSpec& spec);

  std::optional<BertNormalizer> normalizer;
  AddedTokens raw, normalized;  // those that match raw text, those that match normalized text
  bool byte_level, add_prefix_space, use_regex;
  PieceTable starts, inner;  // WordPiece: entries as written; those behind the prefix, without it
  std::int32_t unk_id = -1;
  std::size_t max_chars_per_word;
  std::optional<BytePairs> bpe;
  std::vector<std::int32_t> before, after;
  bool trim_offsets, trim_keeps_prefix_space;
  std::vector<Edges> token_edges;  // by id, where trim_offsets asks
  std::size_t max_tokens;
  std::int32_t largest_id = 0;
};

Tokenizer::Parts::Parts(const TokenizerSpec& spec)
    : byte_level(spec.byte_level), add_prefix_space(spec.add_prefix_space), use_regex(spec.use_regex),
      starts(spec.byte_level ? 0 : spec.vocab.size()), inner(spec.byte_level ? 0 : spec.vocab.size()),
      max_chars_per_word(spec.max_chars_per_word), before(spec.before), after(spec.after),
      trim_offsets(spec.trim_offsets), trim_keeps_prefix_space(spec.trim_keeps_prefix_space),
      max_tokens(spec.max_tokens) {
  if (spec.normalizes) normalizer = spec.normalizer;
  if (max_tokens < before.size() + after.size())
    throw std::invalid_argument("a limit of " + std::to_string(max_tokens) + " tokens for " +
                                std::to_string(before.size() + after.size()) + " special ones");
  // Ids index tables here: a vocabulary with far-flung ids would make them huge.
  const std::size_t limit = 4 * spec.vocab.size() + 65536;
  std::vector<bool> seen(limit);
  for (const auto& [text, id] : spec.vocab) {
    if (id < 0 || std::size_t(id) >= limit) throw std::invalid_argument("a token id of " + std::to_string(id));
    if (seen[id]) throw std::invalid_argument("two tokens with the id " + std::to_string(id));
    seen[id] = true;
    if (!trim_offsets) continue;
    if (token_edges.size() <= std::size_t(id)) token_edges.resize(id + 1);
    token_edges[id] = edges(text);
  }
  if (byte_level) {
    bpe.emplace(spec.vocab, spec.merges, spec.ignore_merges);
  } else {
    for (const auto& [text, id] : spec.vocab) {
      if (text == spec.unk_token) unk_id = id;
      if (text.empty()) continue;
      starts.insert(text, id);
      if (text.size() > spec.prefix.size() && text.starts_with(spec.prefix))
        inner.insert(text.substr(spec.prefix.size()), id);
    }
    if (unk_id < 0) throw std::invalid_argument("unk_token is not in the vocabulary");
  }
  const auto seen_last = std::find(seen.rbegin(), seen.rend(), true);
  largest_id = static_cast<std::int32_t>(seen.rend() - seen_last) - 1;
  for (const auto* ids : {&before, &after})
    for (const std::int32_t id : *ids) {
      if (id < 0) throw std::invalid_argument("a special token with the id " + std::to_string(id));
      largest_id = std::max(largest_id, id);
    }
  Normalized text;
  for (const AddedToken& token : spec.added) {
    if (token.id < 0) throw std::invalid_argument("an added token with the id " + std::to_string(token.id));
    largest_id = std::max(largest_id, token.id);
    if (!token.normalized) {
      raw.add(token);
      continue;
    }
    normalize(token.content, 0, normalizer ? &*normalizer : nullptr, text);
    AddedToken changed = token;
    changed.content.assign(text.bytes.data() + 1, text.end - 1);
    normalized.add(changed);
  }
}

namespace {

// One call of encode: the message goes in by pieces, tokens come out until the limit is reached.
class Encoder {
 public:
  Encoder(const Tokenizer::Parts& parts, Work& work, Encoding& out)
      : parts_(parts), work_(work), out_(out), n_before_(parts.before.size()),
        limit_(parts.max_tokens - parts.after.size()) {}

  bool full() const { return out_.ids.size() == limit_; }

  // A stretch of the message without raw added tokens; `first_char` is the index of its first character.
  void stretch(std::string_view text, std::uint32_t first_char) {
    if (text.empty() || full()) return;
    normalize(text, first_char, parts_.normalizer ? &*parts_.normalizer : nullptr, work_.text);
    const Normalized& ready = work_.text;
    parts_.normalized.split(
        {ready.bytes.data() + 1, ready.end - 1}, [&](std::size_t a, std::size_t b) { words(1 + a, 1 + b); },
        [&](std::size_t a, std::size_t b, std::int32_t id) {
          added({ready.bytes.data() + 1 + a, b - a}, id, ready.source[1 + a], ready.source[b] + 1);
        });
  }

  // An added token, which is a word of its own: `text` is what it matched, characters [start, end) of the message.
  void added(std::string_view text, std::int32_t id, std::uint32_t start, std::uint32_t end) {
    if (full()) return;
    begin_word();
    token(id, start, end, parts_.trim_offsets ? edges(text) : Edges{});
  }

 private:
  const char* bytes() const { return work_.text.bytes.data(); }

  void begin_word() { open_ = false; }

  void token(std::int32_t id, std::uint32_t start, std::uint32_t end, Edges edge) {
    const bool is_first = out_.ids.size() == n_before_;
    if (edge.leading) {
      const bool keep = (is_first || start == 0) && parts_.trim_keeps_prefix_space && edge.leading == 1;
      if (!keep) start = std::min(start + edge.leading, end);
    }
    if (edge.trailing && end >= edge.trailing) end = std::max(end - edge.trailing, start);
    out_.ids.push_back(id);
    if (end <= start) return;
    if (open_) {
      out_.ends.back() = static_cast<std::int32_t>(end);
      return;
    }
    open_ = true;
    out_.first.push_back(static_cast<std::int32_t>(out_.ids.size() - 1));
    out_.starts.push_back(static_cast<std::int32_t>(start));
    out_.ends.push_back(static_cast<std::int32_t>(end));
  }

  // A token of the vocabulary that covers bytes [a, b) of the normalized text.
  void piece(std::int32_t id, std::size_t a, std::size_t b) {
    token(id, work_.text.source[a], work_.text.source[b - 1] + 1,
          parts_.trim_offsets ? parts_.token_edges[id] : Edges{});
  }

  void words(std::size_t a, std::size_t b) {
    if (parts_.byte_level) byte_level_words(a, b);
    else bert_words(a, b);
  }

  void bert_words(std::size_t a, std::size_t b) {
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
  void word_piece(std::size_t begin, std::size_t end, Hash h) {
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

  void write_pieces(std::size_t offset) {
    for (const auto& [id, a, b] : work_.pieces) {
      if (full()) return;
      piece(id, offset + a, offset + b);
    }
  }

  // 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  void byte_level_words(std::size_t a, std::size_t b) {
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

  enum Run : std::uint8_t { kLetters, kNumbers, kOthers, kSpaces };
  static Run run_of(char32_t c) {
    if (c < 0x80) {
      if ((c | 32) >= 'a' && (c | 32) <= 'z') return kLetters;
      if (c >= '0' && c <= '9') return kNumbers;
      return c == ' ' || (c >= 9 && c <= 13) ? kSpaces : kOthers;
    }
    const std::uint16_t flags = u::class_of(c).flags;
    return flags & u::kLetter ? kLetters : flags & u::kNumber ? kNumbers : flags & u::kSpace ? kSpaces : kOthers;
  }

  // End of the pattern's match that begins at byte a of the text that ends at b.
  std::size_t byte_level_end(std::size_t a, std::size_t b) const {
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

  const Tokenizer::Parts& parts_;
  Work& work_;
  Encoding& out_;
  const std::size_t n_before_, limit_;
  bool open_ = false;  // the current word has an entry already
};

}  // namespace

Tokenizer::Tokenizer(const TokenizerSpec& spec) : parts_(std::make_unique<const Parts>(spec)) {}
Tokenizer::~Tokenizer() = default;
std::int32_t Tokenizer::largest_id() const { return parts_->largest_id; }

void Tokenizer::encode(std::string_view text, Encoding& out) const {
  static thread_local Work work;
  const Parts& parts = *parts_;
  out.ids.assign(parts.before.begin(), parts.before.end());
  out.first.clear();
  out.starts.clear();
  out.ends.clear();
  const bool ascii = u::is_ascii(text);
  if (!ascii && !u::is_valid(text)) {
    u::repair(text, work.repaired);
    text = work.repaired;
  }
  Encoder encoder(parts, work, out);
  std::uint32_t chars = 0;  // before the stretch or token at hand
  const auto length = [&](std::size_t a, std::size_t b) {
    return static_cast<std::uint32_t>(ascii ? b - a : u::count(text.substr(a, b - a)));
  };
  parts.raw.split(
      text,
      [&](std::size_t a, std::size_t b) {
        encoder.stretch(text.substr(a, b - a), chars);
        chars += length(a, b);
      },
      [&](std::size_t a, std::size_t b, std::int32_t id) {
        const std::uint32_t end = chars + length(a, b);
        encoder.added(text.substr(a, b - a), id, chars, end);
        chars = end;
      });
  out.ids.insert(out.ids.end(), parts.after.begin(), parts.after.end());
  if (text.size() > kLargest) work = Work();  // one huge message must not hold memory for ever
}

}  // namespace flyweight
