// Byte-level byte pair encoding: the bytes of a word start as symbols, the pair of lowest rank is merged again and again.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/pieces.h"

namespace flyweight {

class BytePairs {
 public:
  // Scratch of one thread.
  struct Work {
    std::vector<std::uint32_t> ranks;
    // for long words
    struct Merge {
      std::uint32_t rank, position;
      std::int32_t left, right;  // the ids for which it was offered
      bool operator<(const Merge& other) const {  // std heaps keep the largest on top: lowest rank, then leftmost
        return rank != other.rank ? rank > other.rank : position > other.position;
      }
    };
    std::vector<Merge> heap;
    std::vector<std::int32_t> previous, following;
  };

  // `vocab` and `merges` in the alphabet of ByteLevel, where each byte is one printable character. Throws
  // std::invalid_argument where a byte or a merge is not in the vocabulary.
  BytePairs(const std::vector<std::pair<std::string_view, std::int32_t>>& vocab,
            const std::vector<std::pair<std::string_view, std::string_view>>& merges, bool ignore_merges);

  // Word -> pieces; `h` is the hash of its bytes.
  void split(std::string_view word, Hash h, std::vector<Piece>& pieces, Work& work) const;

 private:
  struct Pair {
    std::uint64_t key = kFree;  // left << 32 | right
    std::uint32_t rank = kNone;
    std::int32_t id = -1;
  };
  static constexpr std::uint64_t kFree = ~std::uint64_t{0};
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};
  const Pair& pair(std::int32_t left, std::int32_t right) const;
  void merge(std::string_view word, std::vector<Piece>& pieces, Work& work) const;
  void merge_long(std::vector<Piece>& pieces, Work& work) const;

  PieceTable whole_;  // by bytes: entries of the vocabulary that text can give
  std::array<std::int32_t, 256> byte_id_{};
  std::vector<Pair> pairs_;
  int pair_bits_ = 4;
  // Per id: does the word that spells it come out as this one piece? Found out once, when first asked.
  enum : std::uint8_t { kUnknown, kWhole, kSplit };
  std::unique_ptr<std::atomic<std::uint8_t>[]> outcome_;
};

}  // namespace flyweight
