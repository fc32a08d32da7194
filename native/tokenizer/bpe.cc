#include "tokenizer/bpe.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "tokenizer/unicode.h"

namespace flyweight {
namespace {

// ByteLevel's alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100 and up in order.
// byte_of[c] is the byte of character c, -1 for characters outside the alphabet.
constexpr std::array<std::int16_t, 0x144> kByteOf = [] {
  std::array<std::int16_t, 0x144> byte_of{};
  for (auto& b : byte_of) b = -1;
  std::int16_t moved = 0x100;
  for (std::int16_t b = 0; b < 256; ++b) {
    const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    byte_of[printable ? b : moved++] = b;
  }
  return byte_of;
}();

// False where `text` has a character outside the alphabet: no text becomes such a token.
bool to_bytes(std::string_view text, std::string& bytes) {
  bytes.clear();
  for (const char* p = text.data(); p != text.data() + text.size();) {
    const char32_t c = unicode::next(p);
    if (c >= kByteOf.size() || kByteOf[c] < 0) return false;
    bytes += static_cast<char>(kByteOf[c]);
  }
  return !bytes.empty();
}

std::uint64_t key_of(std::int32_t left, std::int32_t right) {
  return std::uint64_t(std::uint32_t(left)) << 32 | std::uint32_t(right);
}

std::size_t slot_of(std::uint64_t key, int bits) {
  return ((key ^ key >> 32) * 0x9E3779B97F4A7C15) >> (64 - bits);
}

constexpr std::size_t kLongWord = 48;  // bytes: above, a heap beats looking through all pairs for the lowest rank

}  // namespace

BytePairs::BytePairs(const std::vector<std::pair<std::string_view, std::int32_t>>& vocab,
                     const std::vector<std::pair<std::string_view, std::string_view>>& merges, bool ignore_merges)
    : whole_(vocab.size()) {
  PieceTable written(vocab.size());  // by their spelling in the file: merges name them so
  std::int32_t largest = 0;
  std::string bytes;
  byte_id_.fill(-1);
  for (const auto& [text, id] : vocab) {
    written.insert(text, id);
    largest = std::max(largest, id);
    if (!to_bytes(text, bytes)) continue;
    whole_.insert(bytes, id);
    if (bytes.size() == 1) byte_id_[static_cast<unsigned char>(bytes[0])] = id;
  }
  for (int b = 0; b < 256; ++b)
    if (byte_id_[b] < 0) throw std::invalid_argument("no entry for the byte " + std::to_string(b));
  outcome_ = std::make_unique<std::atomic<std::uint8_t>[]>(std::size_t(largest) + 1);
  for (std::int32_t id = 0; id <= largest; ++id) outcome_[id] = ignore_merges ? kWhole : kUnknown;

  while ((std::size_t{1} << pair_bits_) < 2 * merges.size()) ++pair_bits_;
  pairs_.resize(std::size_t{1} << pair_bits_);
  std::string joined;
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    joined.assign(left).append(right);
    const std::int32_t a = written.find(left), b = written.find(right), ab = written.find(joined);
    if (a < 0 || b < 0 || ab < 0) throw std::invalid_argument("merge " + std::to_string(rank) + " is not in the vocabulary");
    std::size_t i = slot_of(key_of(a, b), pair_bits_);
    while (pairs_[i].key != kFree && pairs_[i].key != key_of(a, b)) i = (i + 1) & (pairs_.size() - 1);
    pairs_[i] = {key_of(a, b), static_cast<std::uint32_t>(rank), ab};  // a pair named twice has its last rank
  }
}

const BytePairs::Pair& BytePairs::pair(std::int32_t left, std::int32_t right) const {
  const std::uint64_t key = key_of(left, right);
  std::size_t i = slot_of(key, pair_bits_);
  while (pairs_[i].key != key && pairs_[i].key != kFree) i = (i + 1) & (pairs_.size() - 1);
  return pairs_[i];
}

void BytePairs::split(std::string_view word, Hash h, std::vector<Piece>& pieces, Work& work) const {
  pieces.clear();
  const std::int32_t id = whole_.find(word.data(), word.size(), h);
  const auto whole = [&] { pieces.push_back({id, 0, static_cast<std::uint32_t>(word.size())}); };
  if (id < 0) return merge(word, pieces, work);
  // Two threads may both find out; both write the same.
  const std::uint8_t known = outcome_[id].load(std::memory_order_relaxed);
  if (known == kWhole) return whole();
  merge(word, pieces, work);
  if (known == kUnknown)
    outcome_[id].store(pieces.size() == 1 ? kWhole : kSplit, std::memory_order_relaxed);
}

void BytePairs::merge(std::string_view word, std::vector<Piece>& pieces, Work& work) const {
  for (std::uint32_t i = 0; i < word.size(); ++i)
    pieces.push_back({byte_id_[static_cast<unsigned char>(word[i])], i, i + 1});
  if (word.size() > kLongWord) return merge_long(pieces, work);

  auto& ranks = work.ranks;  // ranks[i]: of the pair (i, i + 1)
  ranks.clear();
  for (std::size_t i = 0; i + 1 < pieces.size(); ++i) ranks.push_back(pair(pieces[i].id, pieces[i + 1].id).rank);
  while (!ranks.empty()) {
    const auto lowest = std::min_element(ranks.begin(), ranks.end());  // the leftmost of equal ones
    if (*lowest == kNone) break;
    const std::size_t i = static_cast<std::size_t>(lowest - ranks.begin());
    pieces[i].id = pair(pieces[i].id, pieces[i + 1].id).id;
    pieces[i].end = pieces[i + 1].end;
    pieces.erase(pieces.begin() + static_cast<std::ptrdiff_t>(i) + 1);
    ranks.erase(lowest);
    if (i > 0) ranks[i - 1] = pair(pieces[i - 1].id, pieces[i].id).rank;
    if (i < ranks.size()) ranks[i] = pair(pieces[i].id, pieces[i + 1].id).rank;
  }
}

// The same order of merges in O(n log n): a heap of candidate pairs, those that have changed since are passed over.
// A piece swallowed by its left neighbour has id -1.
void BytePairs::merge_long(std::vector<Piece>& pieces, Work& work) const {
  // No structured binding: clang before 16 does not let a lambda capture one.
  auto& heap = work.heap;
  auto &previous = work.previous, &following = work.following;
  const auto n = static_cast<std::int32_t>(pieces.size());
  heap.clear();
  previous.resize(pieces.size());
  following.resize(pieces.size());
  for (std::int32_t i = 0; i < n; ++i) previous[i] = i - 1, following[i] = i + 1;
  const auto offer = [&](std::int32_t i) {
    const std::int32_t j = following[i];
    if (j >= n) return;
    const Pair& found = pair(pieces[i].id, pieces[j].id);
    if (found.rank == kNone) return;
    heap.push_back({found.rank, std::uint32_t(i), pieces[i].id, pieces[j].id});
    std::push_heap(heap.begin(), heap.end());
  };
  for (std::int32_t i = 0; i < n; ++i) offer(i);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const Work::Merge top = heap.back();
    heap.pop_back();
    const auto i = static_cast<std::int32_t>(top.position);
    const std::int32_t j = following[i];
    if (pieces[i].id != top.left || j >= n || pieces[j].id != top.right) continue;
    pieces[i].id = pair(pieces[i].id, pieces[j].id).id;
    pieces[i].end = pieces[j].end;
    pieces[j].id = -1;
    following[i] = following[j];
    if (following[i] < n) previous[following[i]] = i;
    if (previous[i] >= 0) offer(previous[i]);
    offer(i);
  }
  pieces.erase(std::remove_if(pieces.begin(), pieces.end(), [](const Piece& x) { return x.id < 0; }), pieces.end());
}

}  // namespace flyweight
