// A zeroed, 64-byte aligned array that never moves.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>

namespace flyweight {

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t size)
      : size_(size), data_(static_cast<T*>(::operator new(bytes() + kAlign, std::align_val_t(kAlign)))) {
    std::memset(static_cast<void*>(data_.get()), 0, bytes() + kAlign);
  }
  T* get() { return data_.get(); }
  const T* get() const { return data_.get(); }
  T& operator[](std::size_t i) { return data_.get()[i]; }
  std::size_t size() const { return size_; }
  std::size_t bytes() const { return size_ * sizeof(T); }

 private:
  static constexpr std::size_t kAlign = 64;
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t(kAlign)); }
  };
  std::size_t size_ = 0;
  std::unique_ptr<T, Free> data_;
};

}  // namespace flyweight
