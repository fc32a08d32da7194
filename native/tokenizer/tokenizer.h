// Text -> token ids and where its words begin, equal to the `tokenizers` package for what a TokenizerSpec can say.
//
//   text -> added tokens that match raw text -> normalizer -> added tokens that match normalized text
//        -> words (BertPreTokenizer, ByteLevel or Metaspace) -> pieces (WordPiece, BPE or Unigram) -> limit
//        -> special tokens
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flyweight {

// One message. A word is known by its first sub-token; words beyond the limit are absent, and so are words whose tokens
// cover no character. The vectors of words have one length. What is a word behind a Metaspace: tokenizer/package.py.
struct Encoding {
  std::vector<std::int32_t> ids;     // with special tokens
  std::vector<std::int32_t> first;   // per word: index in `ids` of its first sub-token
  std::vector<std::int32_t> starts;  // per word: [start, end) in code points of the text
  std::vector<std::int32_t> ends;
};

struct AddedToken {
  std::string content;
  std::int32_t id = 0;
  bool single_word = false, lstrip = false, rstrip = false;
  bool normalized = false;  // matches the normalized text, after going through the normalizer itself
};

struct BertNormalizer {
  bool clean_text = true, handle_chinese_chars = true, strip_accents = true, lowercase = true;
};

// A normalizer of Unigram models.
struct NormalizerStep {
  enum Kind : std::uint8_t { charsmap, squeeze, strip } kind = charsmap;
  std::string table;               // charsmap: its bytes
  char32_t blank = ' ';            // squeeze: what two blanks or more become
  bool left = false, right = false;  // strip: which ends lose their white space
};

// What a Metaspace puts its blank in front of, unless there is one: every word, the message's first one, none.
enum class Prepend : std::uint8_t { always, first, never };

enum class Pieces : std::uint8_t { word_piece, byte_level_bpe, unigram };

// The fields of a tokenizer.json. Strings are UTF-8; the views need to live only until the Tokenizer is made.
struct TokenizerSpec {
  std::vector<std::pair<std::string_view, std::int32_t>> vocab;  // distinct strings, distinct ids
  std::vector<AddedToken> added;

  Pieces pieces = Pieces::word_piece;
  // BertPreTokenizer and WordPiece
  std::string unk_token = "[UNK]", prefix = "##";
  std::size_t max_chars_per_word = 100;
  // ByteLevel and BPE
  std::vector<std::pair<std::string_view, std::string_view>> merges;
  bool ignore_merges = false, add_prefix_space = false, use_regex = true;
  // Metaspace and Unigram. splits: round its blanks; splits_white_space: round all white space, before that.
  std::vector<double> scores;  // of each entry of vocab
  std::int32_t unk_id = -1;
  Prepend prepend = Prepend::always;
  bool splits = true, splits_white_space = false;
  std::vector<NormalizerStep> steps;

  bool normalizes = true;  // not with Unigram
  BertNormalizer normalizer;

  // Post-processing: ids before and after the message; offsets without white space (ByteLevel, RobertaProcessing).
  std::vector<std::int32_t> before, after;
  bool trim_offsets = false, trim_keeps_prefix_space = false;
  std::size_t max_tokens = 0;  // special tokens included
};

class Tokenizer {
 public:
  // Throws std::invalid_argument where the spec asks for what this tokenizer does not do.
  explicit Tokenizer(const TokenizerSpec& spec);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Any bytes: what is no UTF-8 counts as U+FFFD, one for each maximal part, as in Python's errors="replace".
  // Safe to call from many threads. Allocates nothing once `out` and the thread's scratch have grown to the message.
  void encode(std::string_view text, Encoding& out) const;

  // No id is larger: who looks ids up in a table checks its rows once.
  std::int32_t largest_id() const;

  struct Parts;  // what it is made of: tokenizer.cc

 private:
  std::unique_ptr<const Parts> parts_;
};

}  // namespace flyweight
