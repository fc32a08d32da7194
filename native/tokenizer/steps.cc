#include "tokenizer/steps.h"

#include <algorithm>

#include "tokenizer/unicode.h"

namespace flyweight {
namespace {

namespace u = unicode;

using Chars = std::vector<Normalized::Char>;

// Two blanks or more become one, in the place of the last of them.
void squeeze(Chars& chars, char32_t blank) {
  std::size_t n = 0;
  for (std::size_t i = 0; i < chars.size(); ++i) {
    std::size_t last = i;
    while (chars[i].c == ' ' && last + 1 < chars.size() && chars[last + 1].c == ' ') ++last;
    chars[n] = chars[last];
    if (last > i) chars[n].c = blank;
    ++n;
    i = last;
  }
  chars.resize(n);
}

void strip(Chars& chars, bool left, bool right) {
  const auto stays = [](const Normalized::Char& x) { return !u::is(x.c, u::kSpace); };
  if (right) chars.erase(std::find_if(chars.rbegin(), chars.rend(), stays).base(), chars.end());
  if (left) chars.erase(chars.begin(), std::find_if(chars.begin(), chars.end(), stays));
}

}  // namespace

Steps::Steps(const std::vector<NormalizerStep>& steps) {
  std::fill_n(kept_.begin(), 128, true);
  for (const NormalizerStep& step : steps) {
    if (step.kind == NormalizerStep::charsmap) {
      steps_.emplace_back(Charsmap(step.table));
      for (unsigned char c = 0; c < 128; ++c) kept_[c] = kept_[c] && std::get<Charsmap>(steps_.back()).keeps(c);
    } else if (step.kind == NormalizerStep::squeeze) {
      steps_.emplace_back(Squeeze{step.blank});
      squeezes_ = true;
    } else {
      steps_.emplace_back(Strip{step.left, step.right});
      strips_ = true;
    }
  }
}

// Whether `text` stays as it is, as most messages do.
bool Steps::keeps(std::string_view text) const {
  bool all = true, blank = false, blanks = false;
  for (const char c : text) {
    all &= kept_[static_cast<unsigned char>(c)];
    blanks |= blank && c == ' ';
    blank = c == ' ';
  }
  if (!all || (squeezes_ && blanks)) return false;
  const auto white = [](char c) { return u::is(static_cast<unsigned char>(c), u::kSpace); };
  return !strips_ || text.empty() || (!white(text.front()) && !white(text.back()));
}

void Steps::normalize(std::string_view text, std::uint32_t first_char, Normalized& out,
                      std::vector<Charsmap::Made>& made) const {
  if (steps_.empty() || keeps(text)) return flyweight::normalize(text, first_char, nullptr, out);
  Chars& chars = out.chars;
  chars.clear();
  for (const char* p = text.data(); p != text.data() + text.size(); ++first_char)
    chars.push_back({u::next(p), first_char, false});
  for (const auto& step : steps_) {
    if (const auto* table = std::get_if<Charsmap>(&step)) table->apply(chars, made);
    else if (const auto* one = std::get_if<Squeeze>(&step)) squeeze(chars, one->blank);
    else if (const auto* ends = std::get_if<Strip>(&step)) strip(chars, ends->left, ends->right);
  }
  const std::size_t room = 1 + 4 * chars.size();
  if (out.bytes.size() < room) out.bytes.resize(room), out.source.resize(room);
  std::size_t n = 1;
  for (const auto& [c, source, inserted] : chars) {
    const std::size_t size = u::put(c, out.bytes.data() + n);
    std::fill_n(out.source.data() + n, size, source);
    n += size;
  }
  out.end = n;
}

}  // namespace flyweight
