// A fixed set of strings -> ids. Its hash is extended byte by byte: those of all prefixes of a word cost one pass.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace flyweight {

// A token that covers bytes [begin, end).
struct Piece {
  std::int32_t id;
  std::uint32_t begin, end;
};

using Hash = std::uint64_t;
constexpr Hash kHashStart = 0x243F6A8885A308D3;  // bits of pi
inline Hash hash_step(Hash h, unsigned char byte) { return (h + byte) * 0x9E3779B97F4A7C15; }  // 2^64 / golden ratio

// Open addressing, at most half full. The high bits of the hash are the well-mixed ones: they give the slot.
class PieceTable {
 public:
  explicit PieceTable(std::size_t capacity) {
    while ((std::size_t{1} << bits_) < 2 * capacity) ++bits_;
    slots_.resize(std::size_t{1} << bits_);
  }

  void insert(std::string_view text, std::int32_t id) {
    Hash h = kHashStart;
    for (const char c : text) h = hash_step(h, static_cast<unsigned char>(c));
    std::size_t i = h >> (64 - bits_);
    while (slots_[i].id >= 0) i = next(i);
    slots_[i] = {static_cast<std::uint32_t>(h >> 8), id, static_cast<std::uint32_t>(bytes_.size()),
                 static_cast<std::uint32_t>(text.size())};
    bytes_.insert(bytes_.end(), text.begin(), text.end());
    longest_ = std::max(longest_, text.size());
  }

  // `h` is the hash of the `size` bytes at `text`. -1 where they are no entry.
  std::int32_t find(const char* text, std::size_t size, Hash h) const {
    for (std::size_t i = h >> (64 - bits_); slots_[i].id >= 0; i = next(i)) {
      const Slot& slot = slots_[i];
      if (slot.check == static_cast<std::uint32_t>(h >> 8) && slot.size == size &&
          std::memcmp(bytes_.data() + slot.offset, text, size) == 0)
        return slot.id;
    }
    return -1;
  }

  std::int32_t find(std::string_view text) const {
    Hash h = kHashStart;
    for (const char c : text) h = hash_step(h, static_cast<unsigned char>(c));
    return find(text.data(), text.size(), h);
  }

  std::size_t longest() const { return longest_; }  // bytes

 private:
  struct Slot {
    std::uint32_t check = 0;  // 32 more bits of the hash
    std::int32_t id = -1;     // -1: free
    std::uint32_t offset = 0, size = 0;
  };
  std::size_t next(std::size_t i) const { return (i + 1) & (slots_.size() - 1); }

  int bits_ = 4;
  std::vector<Slot> slots_;
  std::vector<char> bytes_;
  std::size_t longest_ = 0;
};

}  // namespace flyweight
