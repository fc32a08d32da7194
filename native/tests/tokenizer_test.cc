// The tokenizer on numbers worked out by hand, and on random bytes: it must hold under the sanitizers. Equality with the
// `tokenizers` package is tests/test_tokenizer_native.py.
#include <array>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tests/tokenizer_cases.h"
#include "tokenizer/unicode.h"

using namespace cases;

namespace {

TokenizerSpec word_piece() {
  TokenizerSpec spec;
  spec.vocab = {{"[UNK]", 0}, {"[CLS]", 1}, {"[SEP]", 2}, {"fly", 3},  {"##ing", 4}, {"to", 5},  {"koln", 6},
                {"##s", 7},   {"!", 8},     {"##in", 9},  {"f", 10},   {"##ly", 11}, {"中", 12}, {"i", 13}};
  spec.added = {{"[SEP]", 2, false, false, false, false}, {"<m>", 14, false, true, false, false}};
  spec.before = {1};
  spec.after = {2};
  spec.max_tokens = 12;
  return spec;
}

// ByteLevel's alphabet: the byte b is the character U+00b or, for the 68 that cannot be printed, U+0100 and up.
TokenizerSpec byte_level(std::vector<std::string>& strings) {
  strings.reserve(300);  // the views below must not move
  TokenizerSpec spec;
  char32_t moved = 0x100;
  for (char32_t b = 0; b < 256; ++b) {
    const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    char bytes[4];
    strings.emplace_back(bytes, flyweight::unicode::put(printable ? b : moved++, bytes));
    spec.vocab.emplace_back(strings.back(), static_cast<std::int32_t>(b));
  }
  for (const char* piece : {"he", "ll", "hell", "hello", "Ġh", "Ġhello"}) {
    strings.emplace_back(piece);
    spec.vocab.emplace_back(strings.back(), static_cast<std::int32_t>(spec.vocab.size()));
  }
  spec.merges = {{"h", "e"}, {"l", "l"}, {"he", "ll"}, {"hell", "o"}, {"Ġ", "hello"}};  // never "Ġh"
  spec.pieces = flyweight::Pieces::byte_level_bpe;
  spec.normalizes = false;
  spec.max_tokens = 64;
  return spec;
}

}  // namespace

TEST(tokenizer_word_pieces_by_hand) {
  const Tokenizer t(word_piece());
  CHECK_EQUAL(encoded(t, "Flying to Köln!"), "1 3 4 5 6 8 2 | 1 3 4 5 | 0-6 7-9 10-14 14-15");
  CHECK_EQUAL(encoded(t, ""), "1 2 |  |");
  CHECK_EQUAL(encoded(t, " \t "), "1 2 |  |");
  CHECK_EQUAL(encoded(t, "flyingx"), "1 0 2 | 1 | 0-7");                 // the whole word, or nothing of it
  CHECK_EQUAL(encoded(t, "a中to\xCC\x81"), "1 0 12 5 2 | 1 2 3 | 0-1 1-2 2-4");  // the accent is gone, its place stays
  CHECK_EQUAL(encoded(t, "to  <m>[SEP]to"), "1 5 14 2 5 2 | 1 2 3 4 | 0-2 2-7 7-12 12-14");
  CHECK_EQUAL(encoded(t, "to" + std::string(101, 'x')), "1 0 2 | 1 | 0-103");
  CHECK_EQUAL(encoded(t, std::string("t\0o", 3)), "1 5 2 | 1 | 0-3");
}

TEST(tokenizer_largest_id) {
  TokenizerSpec spec = word_piece();
  CHECK_EQUAL(Tokenizer(spec).largest_id(), 14);  // "<m>"
  spec.added.pop_back();
  CHECK_EQUAL(Tokenizer(spec).largest_id(), 13);
  spec.after = {99};
  CHECK_EQUAL(Tokenizer(spec).largest_id(), 99);
  spec.after = {-1};
  CHECK_THROWS(Tokenizer(spec), std::invalid_argument, "a special token with the id -1");
}

TEST(tokenizer_limit_by_hand) {
  TokenizerSpec spec = word_piece();
  spec.max_tokens = 4;
  CHECK_EQUAL(encoded(Tokenizer(spec), "to flying"), "1 5 3 2 | 1 2 | 0-2 3-6");  // a word cut short ends there
  spec.max_tokens = 2;
  CHECK_EQUAL(encoded(Tokenizer(spec), "to flying"), "1 2 |  |");
  spec.max_tokens = 1;
  CHECK_THROWS(Tokenizer(spec), std::invalid_argument, "a limit of 1 tokens for 2 special ones");
}

TEST(tokenizer_byte_pairs_by_hand) {
  std::vector<std::string> strings;
  TokenizerSpec spec = byte_level(strings);
  const Tokenizer plain(spec);
  for (int round = 0; round < 2; ++round) {  // the second time it is known which words are one piece
    CHECK_EQUAL(encoded(plain, "hello hello"), "259 261 | 0 1 | 0-5 5-11");
    CHECK_EQUAL(encoded(plain, " h"), "32 104 | 0 | 0-2");  // "Ġh" is in the vocabulary, but no merge makes it
  }
  CHECK_EQUAL(encoded(plain, "é"), "195 169 | 0 | 0-1");
  CHECK_EQUAL(encoded(plain, "I'll  x"), "73 39 257 32 32 120 | 0 1 3 4 | 0-1 1-4 4-5 5-7");
  spec.add_prefix_space = spec.trim_offsets = spec.trim_keeps_prefix_space = true;
  CHECK_EQUAL(encoded(Tokenizer(spec), "hello hello"), "261 261 | 0 1 | 0-5 6-11");
  // A long word goes through the heap, a short one does not: 48 bytes are the border.
  std::string word, ids;
  for (int i = 0; i < 40; ++i) word += "hello", ids += i ? " 259" : "259";
  CHECK_EQUAL(encoded(plain, word.substr(0, 45)), ids.substr(0, 35) + " | 0 | 0-45");
  CHECK_EQUAL(encoded(plain, word), ids + " | 0 | 0-200");
}

TEST(tokenizer_refuses_what_it_cannot_do) {
  TokenizerSpec spec = word_piece();
  spec.unk_token = "?";
  CHECK_THROWS(Tokenizer(spec), std::invalid_argument, "unk_token is not in the vocabulary");
  spec = word_piece();
  spec.vocab.push_back({"x", 3});
  CHECK_THROWS(Tokenizer(spec), std::invalid_argument, "two tokens with the id 3");
  spec = word_piece();
  spec.pieces = flyweight::Pieces::byte_level_bpe;
  CHECK_THROWS(Tokenizer(spec), std::invalid_argument, "no entry for the byte 0");
}

// Bytes of all kinds: spaces, letters, halves and wholes of UTF-8 sequences, added tokens. The scratch vectors are those
// of the thread, so every length follows every other one.
TEST(tokenizer_takes_any_bytes) {
  std::vector<std::string> strings;
  std::vector<TokenizerSpec> specs{word_piece(), word_piece(), byte_level(strings)};
  specs[1].normalizer = {false, false, true, false};
  specs[1].trim_offsets = true;
  specs.push_back(specs[2]);
  specs[3].normalizes = specs[3].add_prefix_space = specs[3].trim_offsets = true;
  specs[3].added = {{"<m>", 300, true, true, true, true}, {"\xF0\x9F\x98\x80", 301, false, true, true, false}};
  const std::vector<std::string> parts{" ", "fly", "ing", "\xCC\x81", "\xCC\xA3", "\xE1\x85\xA1", "\xEA\xB0\x81", "中",
                                       "\xF0\x9F\x98\x80", "<m>", "[SEP]", "\xED\xA0\x80", "\xF0\x9D\x85\xA5", "é",
                                       "'ll", "\n", std::string(1, '\0'), "\xCD\x84", "\xF4\x90", "!"};
  std::mt19937 random(1);
  for (const TokenizerSpec& spec : specs) {
    const Tokenizer tokenizer(spec);
    Encoding e;
    for (int n = 0; n < 4000; ++n) {
      std::string text;
      for (unsigned i = random() % 40; i > 0; --i)
        if (random() % 4) text += parts[random() % parts.size()];
        else text += static_cast<char>(random());
      // an exact copy on the heap: a read behind its end is found by the sanitizer
      const std::vector<char> exact(text.begin(), text.end());
      tokenizer.encode({exact.data(), exact.size()}, e);
      check_sound(e, spec, text);
    }
  }
}

TEST(tokenizer_is_shared_by_threads) {
  std::vector<std::string> strings;
  const TokenizerSpec spec = byte_level(strings);
  const Tokenizer tokenizer(spec);
  std::array<std::string, 4> found;
  std::vector<std::thread> threads;
  for (auto& result : found)
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) result = encoded(tokenizer, "hello h he hell hello " + std::to_string(i % 2));
    });
  for (auto& thread : threads) thread.join();
  for (const auto& result : found) CHECK_EQUAL(result, encoded(tokenizer, "hello h he hell hello 1"));
}
