// SentencePiece's Unigram: of all ways to cut a text into pieces, the one whose scores add up to the most.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/pieces.h"

namespace flyweight {

class Unigram {
 public:
  // Scratch of one thread: of each byte, the best way to get there.
  struct Work {
    struct Node {
      double score;
      std::int32_t start, id;  // of the last piece; start -1: none ends here
    };
    std::vector<Node> best;
  };

  // scores: of each entry of `vocab`. Throws std::invalid_argument where two entries are the same text, `unk_id` is none
  // of them, or a score is not finite.
  Unigram(const std::vector<std::pair<std::string_view, std::int32_t>>& vocab, const std::vector<double>& scores,
          std::int32_t unk_id);

  // Valid UTF-8 -> pieces. Characters that no piece holds count as the unknown piece; those side by side are one.
  void split(std::string_view text, std::vector<Piece>& pieces, Work& work) const;

 private:
  // A node of a trie of bytes in a double array: the child of node n by byte b lies at offset ^ b, if n is the parent of
  // what lies there. The root is node 0.
  static constexpr std::uint32_t kFree = 0xFFFFFFFF;
  struct Node {
    std::uint32_t offset = 0, parent = kFree;
    std::int32_t id = -1;  // of the entry that ends here, or -1
  };
  void build(const std::vector<std::pair<std::string_view, std::int32_t>>& sorted);
  std::int32_t find(std::string_view text) const;
  std::uint32_t child(std::uint32_t node, unsigned char byte) const {  // 0: none
    const std::uint32_t at = nodes_[node].offset ^ byte;
    return nodes_[at].parent == node ? at : 0;
  }

  std::vector<Node> nodes_;
  std::vector<double> scores_;  // by id
  std::int32_t unk_id_;
  double unk_score_;
};

}  // namespace flyweight
