// How a message becomes tokens: what a Tokenizer is made of, and one call of encode. Each pre-tokenizer with its pieces
// has a file: bert_words.cc, byte_level_words.cc, metaspace_words.cc.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/added.h"
#include "tokenizer/bpe.h"
#include "tokenizer/charsmap.h"
#include "tokenizer/normalize.h"
#include "tokenizer/pieces.h"
#include "tokenizer/steps.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/unigram.h"

namespace flyweight {

inline constexpr std::string_view kMetaspace = "\xE2\x96\x81";  // U+2581, which stands for a blank

inline bool only_blanks(std::string_view piece) {
  while (piece.starts_with(kMetaspace)) piece.remove_prefix(kMetaspace.size());
  return piece.empty();
}

// White space at both ends of a token, in characters, as trim_offsets counts it.
struct Edges {
  std::uint32_t leading = 0, trailing = 0;
};

struct Tokenizer::Parts {
  explicit Parts(const TokenizerSpec& spec);

  void fill_word_pieces(const TokenizerSpec& spec);
  void add_tokens(const std::vector<AddedToken>& tokens);
  void normalize(std::string_view text, std::uint32_t first_char, Normalized& out,
                 std::vector<Charsmap::Made>& made) const {
    if (unigram) steps.normalize(text, first_char, out, made);
    else flyweight::normalize(text, first_char, normalizer ? &*normalizer : nullptr, out);
  }

  std::optional<BertNormalizer> normalizer;
  Steps steps;
  AddedTokens raw, normalized;  // those that match raw text, those that match normalized text
  bool add_prefix_space, use_regex;
  Prepend prepend;
  bool splits, splits_white_space;
  PieceTable starts, inner;  // WordPiece: entries as written; those behind the prefix, without it
  std::int32_t unk_id = -1;
  std::size_t max_chars_per_word;
  std::optional<BytePairs> bpe;
  std::optional<Unigram> unigram;
  std::vector<std::int32_t> before, after;
  bool trim_offsets, trim_keeps_prefix_space;
  std::vector<Edges> token_edges;  // by id, where trim_offsets asks
  std::size_t max_tokens;
  std::int32_t largest_id = 0;
};

// Scratch of one thread: grows to the longest message and stays.
struct Work {
  std::string repaired;
  Normalized text;
  std::vector<Charsmap::Made> made;
  std::vector<Hash> hashes;   // [n]: of the first n bytes of a word
  std::vector<Piece> pieces;  // of a word
  BytePairs::Work bpe;
  Normalized spaced;                // text with the Metaspace's blanks
  std::vector<std::uint32_t> units;  // of each character of the message, see Encoder::find_units
  Unigram::Work unigram;
};

// The message goes in by pieces, tokens come out until the limit is reached.
class Encoder {
 public:
  Encoder(const Tokenizer::Parts& parts, Work& work, Encoding& out)
      : parts_(parts), work_(work), out_(out), n_before_(parts.before.size()),
        limit_(parts.max_tokens - parts.after.size()) {}

  bool full() const { return out_.ids.size() == limit_; }

  // Before all else: what the words behind a Metaspace are found by.
  void find_units(std::string_view message);

  // A stretch of the message without raw added tokens; `first_char` is the index of its first character.
  void stretch(std::string_view text, std::uint32_t first_char);

  // An added token, which is a word of its own: `text` is what it matched, characters [start, end) of the message.
  void added(std::string_view text, std::int32_t id, std::uint32_t start, std::uint32_t end);

 private:
  void words(std::size_t a, std::size_t b);
  void bert_words(std::size_t a, std::size_t b);
  void word_piece(std::size_t begin, std::size_t end, Hash h);
  void byte_level_words(std::size_t a, std::size_t b);
  std::size_t byte_level_end(std::size_t a, std::size_t b) const;
  void metaspace_words(std::size_t a, std::size_t b);
  void metaspace_word(std::size_t a, std::size_t b);
  void metaspace_pieces(std::size_t begin, std::size_t end);
  void metaspace_token(std::int32_t id, std::uint32_t start, std::uint32_t end);

  const char* bytes() const { return work_.text.bytes.data(); }

  void begin_word() { open_ = false; }

  void put_word(std::uint32_t start, std::uint32_t end) {
    out_.first.push_back(static_cast<std::int32_t>(out_.ids.size() - 1));
    out_.starts.push_back(static_cast<std::int32_t>(start));
    out_.ends.push_back(static_cast<std::int32_t>(end));
  }

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
    put_word(start, end);
  }

  // A token of the vocabulary that covers bytes [a, b) of the normalized text.
  void piece(std::int32_t id, std::size_t a, std::size_t b) {
    token(id, work_.text.source[a], work_.text.source[b - 1] + 1,
          parts_.trim_offsets ? parts_.token_edges[static_cast<std::size_t>(id)] : Edges{});
  }

  void write_pieces(std::size_t offset) {
    for (const auto& [id, a, b] : work_.pieces) {
      if (full()) return;
      piece(id, offset + a, offset + b);
    }
  }

  const Tokenizer::Parts& parts_;
  Work& work_;
  Encoding& out_;
  const std::size_t n_before_, limit_;
  bool open_ = false;  // the current word has an entry already
};

}  // namespace flyweight
