#include "tokenizer/unigram.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "tokenizer/unicode.h"

namespace flyweight {

constexpr std::size_t kBlock = 256;          // places that the children of one node may take
constexpr std::size_t kWindow = 4 * kBlock;  // where room is looked for
constexpr double kUnknownPenalty = 10.0;  // below the lowest score of the vocabulary

Unigram::Unigram(const std::vector<std::pair<std::string_view, std::int32_t>>& vocab, const std::vector<double>& scores,
                 std::int32_t unk_id)
    : unk_id_(unk_id), unk_score_(std::numeric_limits<double>::infinity()) {
  if (scores.size() != vocab.size()) throw std::invalid_argument("there must be one score for each token");
  bool known = false;
  for (std::size_t i = 0; i < vocab.size(); ++i) {
    const auto id = std::size_t(vocab[i].second);
    if (!std::isfinite(scores[i])) throw std::invalid_argument("a score that is not finite");
    if (scores_.size() <= id) scores_.resize(id + 1);
    scores_[id] = scores[i];
    unk_score_ = std::min(unk_score_, scores[i]);
    known |= vocab[i].second == unk_id;
  }
  if (!known) throw std::invalid_argument("unk_id is not in the vocabulary");
  unk_score_ -= kUnknownPenalty;

  auto sorted = vocab;
  std::sort(sorted.begin(), sorted.end());
  build(sorted);
}

void Unigram::build(const std::vector<std::pair<std::string_view, std::int32_t>>& sorted) {
  struct Range {  // the entries that begin with the bytes of a node
    std::size_t from, to, depth;
    std::uint32_t node;
  };
  std::vector<std::uint32_t> free;  // places that were free when last looked at, ascending
  const auto grow = [&] {
    for (std::size_t i = 0; i < kBlock; ++i) free.push_back(std::uint32_t(nodes_.size() + i));
    nodes_.resize(nodes_.size() + kBlock);
    const auto stays = [&](std::uint32_t place) {  // what is free further back than some blocks stays so
      return nodes_[place].parent == kFree && place + kWindow >= nodes_.size();
    };
    free.erase(std::stable_partition(free.begin(), free.end(), stays), free.end());
  };
  grow();
  nodes_[0].parent = 0;
  std::vector<Range> ranges{{0, sorted.size(), 0, 0}};
  std::vector<Range> children;
  while (!ranges.empty()) {
    const Range range = ranges.back();
    ranges.pop_back();
    std::size_t from = range.from;
    const std::size_t to = range.to, depth = range.depth;
    if (sorted[from].first.size() == depth) {
      nodes_[range.node].id = sorted[from++].second;
      if (from < to && sorted[from].first.size() == depth) throw std::invalid_argument("two tokens of the same text");
    }
    if (from == to) continue;
    const auto byte_of = [&](const Range& child) { return static_cast<unsigned char>(sorted[child.from].first[depth]); };
    children.clear();
    while (from < to) {
      std::size_t end = from + 1;
      while (end < to && sorted[end].first[depth] == sorted[from].first[depth]) ++end;
      children.push_back({from, end, depth + 1, 0});
      from = end;
    }
    const auto has_room = [&](std::uint32_t offset) {
      const auto is_free = [&](const Range& child) { return nodes_[offset ^ byte_of(child)].parent == kFree; };
      return std::all_of(children.begin(), children.end(), is_free);
    };
    std::uint32_t offset = 0;
    for (std::size_t i = 0;; ++i) {
      if (i == free.size()) {
        grow();
        i = free.size() - kBlock;
      }
      offset = free[i] ^ byte_of(children[0]);
      if (has_room(offset)) break;
    }
    nodes_[range.node].offset = offset;
    for (Range& child : children) {
      child.node = offset ^ byte_of(child);
      nodes_[child.node].parent = range.node;
      ranges.push_back(child);
    }
  }
}

std::int32_t Unigram::find(std::string_view text) const {
  std::uint32_t node = 0;
  for (const char c : text)
    if (!(node = child(node, static_cast<unsigned char>(c)))) return -1;
  return nodes_[node].id;
}

void Unigram::split(std::string_view text, std::vector<Piece>& pieces, Work& work) const {
  pieces.clear();
  auto& best = work.best;
  best.assign(text.size() + 1, {0.0, -1, 0});
  const auto offer = [&](std::size_t start, std::size_t end, std::int32_t id, double score) {
    auto& node = best[end];
    score += best[start].score;
    if (node.start < 0 || score > node.score) node = {score, std::int32_t(start), id};  // of equals the first one
  };
  for (std::size_t start = 0; start < text.size();) {
    const char* p = text.data() + start;
    unicode::next(p);
    const auto next = std::size_t(p - text.data());
    bool has_single = false;
    std::uint32_t node = 0;
    for (std::size_t end = start; end < text.size();) {
      node = child(node, static_cast<unsigned char>(text[end++]));
      if (!node) break;
      const std::int32_t id = nodes_[node].id;
      if (id < 0) continue;
      offer(start, end, id, scores_[std::size_t(id)]);
      has_single |= end == next;
    }
    if (!has_single) offer(start, next, unk_id_, unk_score_);
    start = next;
  }
  // From the end: unknown pieces side by side become one, which may spell an entry then.
  bool unknown = false;
  for (std::size_t end = text.size(); end > 0;) {
    const auto& node = best[end];
    const auto start = std::uint32_t(node.start);
    if (unknown && node.id == unk_id_) pieces.back().begin = start;
    else pieces.push_back({node.id, start, std::uint32_t(end)});
    unknown = node.id == unk_id_;
    end = start;
  }
  std::reverse(pieces.begin(), pieces.end());
  for (Piece& piece : pieces)
    if (piece.id == unk_id_) {
      const std::int32_t id = find(text.substr(piece.begin, piece.end - piece.begin));
      if (id >= 0) piece.id = id;
    }
}

}  // namespace flyweight
