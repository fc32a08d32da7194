#include "tokenizer/tokenizer.h"

#include <stdexcept>

#include "tokenizer/encoder.h"
#include "tokenizer/unicode.h"

namespace flyweight {
namespace {

namespace u = unicode;

constexpr std::size_t kLargest = 1 << 16;  // bytes of a message whose scratch memory is kept

// U+0120 is ByteLevel's space.
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

}  // namespace

Tokenizer::Parts::Parts(const TokenizerSpec& spec)
    : steps(spec.steps), add_prefix_space(spec.add_prefix_space), use_regex(spec.use_regex), prepend(spec.prepend),
      splits(spec.splits), splits_white_space(spec.splits_white_space),
      starts(spec.pieces == Pieces::word_piece ? spec.vocab.size() : 0),
      inner(spec.pieces == Pieces::word_piece ? spec.vocab.size() : 0), max_chars_per_word(spec.max_chars_per_word),
      before(spec.before), after(spec.after), trim_offsets(spec.trim_offsets),
      trim_keeps_prefix_space(spec.trim_keeps_prefix_space), max_tokens(spec.max_tokens) {
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
  if (spec.pieces == Pieces::unigram) {
    if (trim_offsets) throw std::invalid_argument("trim_offsets behind a Metaspace");
    unigram.emplace(spec.vocab, spec.scores, spec.unk_id);
  } else if (spec.pieces == Pieces::byte_level_bpe) {
    bpe.emplace(spec.vocab, spec.merges, spec.ignore_merges);
  } else {
    fill_word_pieces(spec);
  }
  const auto seen_last = std::find(seen.rbegin(), seen.rend(), true);
  largest_id = static_cast<std::int32_t>(seen.rend() - seen_last) - 1;
  for (const auto* ids : {&before, &after})
    for (const std::int32_t id : *ids) {
      if (id < 0) throw std::invalid_argument("a special token with the id " + std::to_string(id));
      largest_id = std::max(largest_id, id);
    }
  add_tokens(spec.added);
}

void Tokenizer::Parts::fill_word_pieces(const TokenizerSpec& spec) {
  for (const auto& [text, id] : spec.vocab) {
    if (text == spec.unk_token) unk_id = id;
    if (text.empty()) continue;
    starts.insert(text, id);
    if (text.size() > spec.prefix.size() && text.starts_with(spec.prefix))
      inner.insert(text.substr(spec.prefix.size()), id);
  }
  if (unk_id < 0) throw std::invalid_argument("unk_token is not in the vocabulary");
}

void Tokenizer::Parts::add_tokens(const std::vector<AddedToken>& tokens) {
  Normalized text;
  std::vector<Charsmap::Made> made;
  for (const AddedToken& token : tokens) {
    if (token.id < 0) throw std::invalid_argument("an added token with the id " + std::to_string(token.id));
    if (unigram && only_blanks(token.content)) throw std::invalid_argument("an added token of blanks alone");
    largest_id = std::max(largest_id, token.id);
    if (!token.normalized) {
      raw.add(token);
      continue;
    }
    normalize(token.content, 0, text, made);
    AddedToken changed = token;
    changed.content.assign(text.bytes.data() + 1, text.end - 1);
    normalized.add(changed);
  }
}

void Encoder::stretch(std::string_view text, std::uint32_t first_char) {
  if (text.empty() || full()) return;
  parts_.normalize(text, first_char, work_.text, work_.made);
  const Normalized& ready = work_.text;
  parts_.normalized.split(
      {ready.bytes.data() + 1, ready.end - 1}, [&](std::size_t a, std::size_t b) { words(1 + a, 1 + b); },
      [&](std::size_t a, std::size_t b, std::int32_t id) {
        added({ready.bytes.data() + 1 + a, b - a}, id, ready.source[1 + a], ready.source[b] + 1);
      });
}

void Encoder::added(std::string_view text, std::int32_t id, std::uint32_t start, std::uint32_t end) {
  if (full()) return;
  begin_word();
  if (parts_.unigram) metaspace_token(id, start, end);
  else token(id, start, end, parts_.trim_offsets ? edges(text) : Edges{});
}

void Encoder::words(std::size_t a, std::size_t b) {
  if (parts_.unigram) metaspace_words(a, b);
  else if (parts_.bpe) byte_level_words(a, b);
  else bert_words(a, b);
}

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
  if (parts.unigram) encoder.find_units(text);
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
