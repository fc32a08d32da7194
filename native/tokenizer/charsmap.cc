#include "tokenizer/charsmap.h"

#include <algorithm>
#include <stdexcept>

#include "tokenizer/unicode.h"

namespace flyweight {
namespace {

namespace u = unicode;

constexpr std::size_t kLongestCluster = 5;  // bytes of one that is looked up whole
constexpr char32_t kJoiner = 0x200D;

std::uint32_t unit_at(std::string_view bytes, std::size_t at) {
  std::uint32_t unit = 0;
  for (std::size_t i = 0; i < 4; ++i) unit |= std::uint32_t(static_cast<unsigned char>(bytes[at + i])) << 8 * i;
  return unit;
}

bool syllable(char32_t c) { return c >= 0xAC00 && c < 0xD7A4; }

// Where grapheme clusters end (UAX 29). Regional indicators are left out: a pair of them is longer than any cluster that
// is looked up whole, and so is each one with a mark.
class Clusters {
 public:
  // One character; true: it is in the cluster of those before it.
  bool goes_on(char32_t c) {
    const std::uint16_t now = u::class_of(c).cluster;
    const bool joined = joins(c, now);
    if (now & u::kPictographic) pictographic_ = 1;
    else if (pictographic_ == 1 && c == kJoiner) pictographic_ = 2;
    else if (!(pictographic_ == 1 && (now & u::kExtends))) pictographic_ = 0;
    if (now & u::kConsonant) conjunct_ = 1;
    else if (conjunct_ && (now & u::kLinker)) conjunct_ = 2;
    else if (!(now & u::kConjunct)) conjunct_ = 0;
    last_ = c;
    before_ = now;
    return joined;
  }

 private:
  bool joins(char32_t c, std::uint16_t now) const {
    if (last_ == '\r') return c == '\n';
    if ((before_ | now) & u::kBreaks) return false;
    if (now & u::kAttaches || before_ & u::kPrepends) return true;
    if (conjunct_ == 2 && (now & u::kConsonant)) return true;
    if (pictographic_ == 2 && (now & u::kPictographic)) return true;
    if (before_ & u::kHangulL) return (now & (u::kHangulL | u::kHangulV)) || syllable(c);
    const bool open = syllable(last_) && (last_ - 0xAC00) % 28 == 0;  // no trailing consonant yet
    if (now & u::kHangulV) return (before_ & u::kHangulV) || open;
    if (now & u::kHangulT) return (before_ & (u::kHangulV | u::kHangulT)) || syllable(last_);
    return false;
  }

  char32_t last_ = 0;
  std::uint16_t before_ = u::kBreaks;
  int pictographic_ = 0;  // 1: one and what extends it, 2: and a joiner
  int conjunct_ = 0;      // 1: a consonant and what extends it, 2: a linker among that
};

}  // namespace

Charsmap::Charsmap(std::string_view bytes) {
  const auto size = bytes.size() < 4 ? std::size_t(0) : std::size_t(unit_at(bytes, 0)) / 4;
  if (size == 0 || (bytes.size() - 4) / 4 < size) throw std::invalid_argument("a charsmap that is cut off");
  for (std::size_t i = 0; i < size; ++i) units_.push_back(unit_at(bytes, 4 + 4 * i));
  pool_ = bytes.substr(4 + 4 * size);
  if (!u::is_valid(pool_)) throw std::invalid_argument("a charsmap whose replacements are no UTF-8");
  for (unsigned char c = 0; c < 128; ++c) {
    const char one = static_cast<char>(c);
    keeps_[c] = c != '\r' && !replacement({&one, 1});  // "\r\n" is one cluster
  }
}

std::optional<std::string_view> Charsmap::replacement(std::string_view text) const {
  const auto offset = [](std::uint32_t unit) { return std::size_t(unit >> 10) << (unit >> 6 & 8); };
  std::size_t at = offset(units_[0]);
  for (const char c : text) {
    const std::uint32_t label = static_cast<unsigned char>(c);
    at ^= label;
    if (!label || at >= units_.size() || (units_[at] & 0x800000FF) != label) return {};
    const bool ends = units_[at] >> 8 & 1;
    at ^= offset(units_[at]);
    if (!ends) continue;
    const std::size_t begin = at < units_.size() ? units_[at] & 0x7FFFFFFF : pool_.size();
    if (begin >= pool_.size() || u::continues(pool_[begin])) return {};  // a broken table
    return std::string_view(pool_).substr(begin, std::min(pool_.find('\0', begin), pool_.size()) - begin);
  }
  return {};
}

// Appends what becomes of n_chars characters; false where they stay.
bool Charsmap::replace(std::string_view text, int n_chars, std::vector<Made>& made) const {
  const auto found = replacement(text);
  if (!found) return false;
  int n_new = 0;
  for (const char* p = found->data(); p != found->data() + found->size(); ++n_new)
    made.push_back({u::next(p), n_new < n_chars ? 0 : 1, 0});
  // The last one stands for those that are gone, too; where all are, it is the one before them.
  if (n_new < n_chars && !made.empty()) made.back().change -= n_chars - n_new;
  return true;
}

void Charsmap::apply(std::vector<Normalized::Char>& chars, std::vector<Made>& made) const {
  made.clear();
  bool changed = false;
  Clusters clusters;
  char bytes[kLongestCluster + 4];
  for (std::size_t a = 0, b; a < chars.size(); a = b) {
    std::size_t size = u::put(chars[a].c, bytes);
    if (a == 0) clusters.goes_on(chars[a].c);  // the others have been seen as the end of the cluster before
    for (b = a + 1; b < chars.size() && clusters.goes_on(chars[b].c); ++b)
      if (size <= kLongestCluster) size += u::put(chars[b].c, bytes + size);
    if (size <= kLongestCluster && replace({bytes, size}, int(b - a), made)) {
      changed = true;
      continue;
    }
    for (std::size_t i = a; i < b; ++i) {
      if (replace({bytes, u::put(chars[i].c, bytes)}, 1, made)) changed = true;
      else made.push_back({chars[i].c, 0, 0});
    }
  }
  if (!changed) return;
  std::size_t taken = 0;  // characters that those so far stand for
  for (Made& x : made) {
    const std::size_t at = x.change > 0 && taken ? taken - 1 : std::min(taken, chars.size() - 1);
    x.source = chars[at].source;
    if (x.change <= 0) taken += std::size_t(1 - x.change);
  }
  chars.clear();
  for (const Made& x : made) chars.push_back({x.c, x.source, false});
}

}  // namespace flyweight
