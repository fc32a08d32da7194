// Metaspace, Unigram and charsmaps on numbers worked out by hand, and on random and spoilt bytes. Equality with the
// `tokenizers` package is tests/test_tokenizer_unigram.py.
#include <cmath>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/tokenizer_cases.h"
#include "tokenizer/charsmap.h"
#include "tokenizer/number.h"
#include "tokenizer/unigram.h"

using namespace cases;
using flyweight::NormalizerStep;
using flyweight::package_number;
using flyweight::Prepend;

namespace {

// The lowest score is -6: an unknown character costs 16.
TokenizerSpec unigram() {
  TokenizerSpec spec;
  spec.vocab = {{"<unk>", 0}, {"▁", 1}, {"▁to", 2}, {"▁Ber", 3}, {"lin", 4}, {".", 5}, {"a", 6},
                {"b", 7},     {"ab", 8}, {"▁a", 9}, {"aa", 10},  {"X", 11},  {"京", 12}};
  spec.scores = {0, -4, -3, -5, -5, -4, -1, -2, -2.5, -3, -2, -6, -5};
  spec.pieces = flyweight::Pieces::unigram;
  spec.unk_id = 0;
  spec.normalizes = false;
  spec.max_tokens = 16;
  return spec;
}

// The table of a charsmap of two ASCII keys: "A" -> "ab" and U+0001 -> "". Root at 0 with offset 2, so the keys lie at
// 0x43 and 0x03; theirs is 0x80, so the values lie at 0xC3 and 0x83.
std::string two_keys() {
  std::vector<std::uint32_t> units(256);
  units[0] = 2u << 10;
  units[0x43] = 0x80u << 10 | 1u << 8 | 'A';
  units[0x03] = 0x80u << 10 | 1u << 8 | 1;
  units[0xC3] = 1u << 31 | 0;  // the place of "ab" in the pool
  units[0x83] = 1u << 31 | 2;  // of its end: nothing
  std::string bytes;
  const auto put = [&](std::uint32_t n) {
    for (int i = 0; i < 4; ++i) bytes += static_cast<char>(n >> 8 * i);
  };
  put(1024);
  for (const std::uint32_t unit : units) put(unit);
  return bytes + std::string("ab\0", 3);
}

NormalizerStep charsmap(const std::string& table) { return {NormalizerStep::charsmap, table, ' ', false, false}; }
NormalizerStep squeeze(char32_t blank) { return {NormalizerStep::squeeze, "", blank, false, false}; }
NormalizerStep strip(bool left, bool right) { return {NormalizerStep::strip, "", ' ', left, right}; }

}  // namespace

TEST(unigram_pieces_by_hand) {
  const Tokenizer t(unigram());
  CHECK_EQUAL(encoded(t, ""), " |  |");
  CHECK_EQUAL(encoded(t, "to Berlin."), "2 3 4 5 | 0 1 3 | 0-2 3-9 9-10");
  CHECK_EQUAL(encoded(t, "ab"), "9 7 | 0 | 0-2");      // -3 - 2 against -4 - 2.5 and -4 - 1 - 2
  CHECK_EQUAL(encoded(t, "aaa"), "9 10 | 0 | 0-3");    // -3 - 2 and -3 - 1 - 1: of equals the one found first
  CHECK_EQUAL(encoded(t, "☃☃a"), "1 0 6 | 1 2 | 0-2 2-3");  // unknown characters side by side are one piece
  CHECK_EQUAL(encoded(t, "a<unk>☃"), "9 0 | 0 1 | 0-1 1-7");  // "<unk>" in a text too: it costs nothing
  CHECK_EQUAL(encoded(t, "a'b"), "9 0 7 | 0 1 2 | 0-1 1-2 2-3");
  CHECK_EQUAL(encoded(t, "京京b"), "1 12 12 7 | 1 2 3 | 0-1 1-2 2-3");
  CHECK_EQUAL(encoded(t, " to "), "2 1 | 0 | 1-3");
  CHECK_EQUAL(encoded(t, "  "), "1 1 |  |");
  CHECK_EQUAL(encoded(t, "a\ta"), "9 0 6 | 0 2 | 0-1 2-3");  // an unknown piece of white space alone
}

TEST(unigram_unknown_pieces_may_spell_an_entry) {
  TokenizerSpec spec = unigram();  // as scores of logarithms cannot: 100 - 10 twice beats 100
  spec.vocab = {{"<unk>", 0}, {"xy", 1}};
  spec.scores = {100, 100};
  spec.prepend = Prepend::never;
  CHECK_EQUAL(encoded(Tokenizer(spec), "xy"), "1 | 0 | 0-2");
  CHECK_EQUAL(encoded(Tokenizer(spec), "xyx"), "0 | 0 | 0-3");
}

TEST(metaspace_by_hand) {
  TokenizerSpec spec = unigram();
  spec.prepend = Prepend::never;
  CHECK_EQUAL(encoded(Tokenizer(spec), "ab to"), "8 2 | 0 1 | 0-2 3-5");
  spec.prepend = Prepend::first;
  spec.added = {{"<m>", 13, false, false, false, false}};
  CHECK_EQUAL(encoded(Tokenizer(spec), "a<m>a"), "9 13 6 | 0 1 2 | 0-1 1-4 4-5");  // only what begins at 0
  spec.prepend = Prepend::always;
  CHECK_EQUAL(encoded(Tokenizer(spec), "a<m>a"), "9 13 9 | 0 1 2 | 0-1 1-4 4-5");
  spec.vocab.push_back({"a▁", 14});
  spec.scores.push_back(-1);
  CHECK_EQUAL(encoded(Tokenizer(spec), "aa aa"), "9 6 9 6 | 0 2 | 0-2 3-5");
  spec.splits = false;
  CHECK_EQUAL(encoded(Tokenizer(spec), "aa aa"), "9 14 10 | 0 2 | 0-2 3-5");
  spec.splits_white_space = true;
  CHECK_EQUAL(encoded(Tokenizer(spec), " aa\n\taa"), "9 6 9 6 | 0 2 | 1-3 5-7");
}

TEST(metaspace_limit_by_hand) {
  TokenizerSpec spec = unigram();
  spec.before = {2};
  spec.after = {5};
  spec.max_tokens = 4;
  CHECK_EQUAL(encoded(Tokenizer(spec), "to Berlin."), "2 2 3 5 | 1 2 | 0-2 3-6");
  spec.max_tokens = 2;
  CHECK_EQUAL(encoded(Tokenizer(spec), "to Berlin."), "2 5 |  |");
}

TEST(normalizer_steps_by_hand) {
  TokenizerSpec spec = unigram();
  spec.prepend = Prepend::never;
  spec.steps = {charsmap(two_keys())};
  CHECK_EQUAL(encoded(Tokenizer(spec), "A"), "8 | 0 | 0-1");
  // "aba": the b that was inserted stands for U+0001, too, which is gone
  CHECK_EQUAL(encoded(Tokenizer(spec), "A\x01" "a"), "8 6 | 0 1 | 0-2 2-3");
  // "ba": where nothing is in front, those behind are taken to be one place further left
  CHECK_EQUAL(encoded(Tokenizer(spec), "\x01" "ba"), "7 6 | 0 1 | 0-1 1-2");
  CHECK_EQUAL(encoded(Tokenizer(spec), "\x01\x01"), " |  |");
  spec.steps = {squeeze(' ')};
  CHECK_EQUAL(encoded(Tokenizer(spec), "a   a"), "6 9 | 0 1 | 0-1 4-5");
  spec.steps = {squeeze(0x2581)};
  CHECK_EQUAL(encoded(Tokenizer(spec), "a   a b"), "6 9 1 7 | 0 1 3 | 0-1 4-5 6-7");
  spec.steps = {strip(true, true)};
  CHECK_EQUAL(encoded(Tokenizer(spec), " \ta "), "6 | 0 | 2-3");
  CHECK_EQUAL(encoded(Tokenizer(spec), " \n "), " |  |");
  spec.steps = {strip(false, true), squeeze(' ')};
  CHECK_EQUAL(encoded(Tokenizer(spec), "  a  "), "9 | 0 | 2-3");
}

TEST(unigram_refuses_what_it_cannot_do) {
  const auto said = [](auto change) {
    TokenizerSpec spec = unigram();
    change(spec);
    try {
      const Tokenizer made(spec);
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK_EQUAL(said([](TokenizerSpec&) {}), "");
  CHECK_EQUAL(said([](TokenizerSpec& s) { s.unk_id = 99; }), "unk_id is not in the vocabulary");
  CHECK_EQUAL(said([](TokenizerSpec& s) { s.scores[3] = NAN; }), "a score that is not finite");
  CHECK_EQUAL(said([](TokenizerSpec& s) { s.scores.pop_back(); }), "there must be one score for each token");
  CHECK_EQUAL(said([](TokenizerSpec& s) { s.vocab[3].first = "a"; }), "two tokens of the same text");
  CHECK_EQUAL(said([](TokenizerSpec& s) { s.trim_offsets = true; }), "trim_offsets behind a Metaspace");
  CHECK_EQUAL(said([](TokenizerSpec& s) { s.added = {{"▁▁", 13, false, false, false, false}}; }),
              "an added token of blanks alone");
  const std::string whole = two_keys();
  for (const std::string& table : {std::string(), whole.substr(0, 3), std::string(8, '\0'), whole.substr(0, 1027)})
    CHECK_EQUAL(said([&](TokenizerSpec& s) { s.steps = {charsmap(table)}; }), "a charsmap that is cut off");
  CHECK_EQUAL(said([](TokenizerSpec& s) { s.steps = {charsmap(two_keys() + "\xFF")}; }),
              "a charsmap whose replacements are no UTF-8");
}

TEST(numbers_are_read_as_the_package_reads_them) {
  CHECK_EQUAL(package_number("0"), 0.0);
  CHECK_EQUAL(package_number("-12"), -12.0);
  CHECK_EQUAL(package_number("0.5"), 0.5);
  CHECK_EQUAL(package_number("1e-7"), 1e-7);
  CHECK_EQUAL(package_number("2.5E+21"), 2.5e21);
  CHECK_EQUAL(package_number("-3.436805248260498"), -3.436805248260498);
  CHECK_EQUAL(package_number("-3.7457361221313477"), -0x1.df74480000001p+1);  // the nearest ends in 0
  CHECK_EQUAL(package_number("-12.345678901234567890123"), -12.345678901234567);
  for (const char* text : {"", "-", "x", "1x", ".5", "1e400", "1e-400", "99999999999999999999", "1 ", "+1", "0x1"})
    CHECK_THROWS(package_number(text), std::invalid_argument, "a score that is no number, or one too large");
}

// Tables with spoilt bytes, and messages of all kinds: nothing is read outside of them, no text comes out broken.
TEST(unigram_takes_any_bytes) {
  const std::vector<std::string> parts{" ",  "  ", "to", "Ber", "lin", "a", "ab", "A", "\x01", "\r\n", "▁", "京", "<m>",
                                       "\xCC\x81", "\xE2\x80\x8D", "\xF0\x9F\x98\x80", "\xEA\xB0\x81", "\xE1\x84\x80",
                                       "\xE0\xA4\x95", "\xE0\xA5\x8D", "\xD8\x80", "\xED\xA0\x80", std::string(1, '\0')};
  std::mt19937 random(2);
  for (int round = 0; round < 60; ++round) {
    TokenizerSpec spec = unigram();
    std::string table = two_keys();
    for (int i = round; i > 0; --i) table[4 + random() % (table.size() - 7)] = static_cast<char>(random());
    spec.steps = {charsmap(table), strip(round & 1, round & 2), squeeze(round & 4 ? ' ' : 0x2581)};
    spec.prepend = static_cast<Prepend>(round % 3);
    spec.splits = round & 8;
    spec.splits_white_space = round & 16;
    spec.before = {2};
    spec.added = {{"<m>", 13, true, true, true, true}, {"A\xCC\x81", 14, false, true, false, false}};
    const Tokenizer tokenizer(spec);
    Encoding e;
    for (int n = 0; n < 300; ++n) {
      std::string text;
      for (unsigned i = random() % 30; i > 0; --i)
        if (random() % 8) text += parts[random() % parts.size()];
        else text += static_cast<char>(random());
      const std::vector<char> exact(text.begin(), text.end());
      tokenizer.encode({exact.data(), exact.size()}, e);
      check_sound(e, spec, text);
    }
  }
}
