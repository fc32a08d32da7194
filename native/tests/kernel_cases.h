// Data for the tests of the kernels: buffers without slack, random matrices in every form, and what "the same" means.
#pragma once

#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "engine/cpu.h"
#include "kernels/integer_only.h"
#include "tests/check.h"

#ifdef FLYWEIGHT_HAVE_AMX_EMULATED
namespace flyweight {
const Kernels* amx_emulated_kernels();
}
#endif

namespace cases {

using namespace flyweight;

// Exactly n elements at a 64-byte border: what reads or writes past the end is seen by the address sanitizer.
template <class T>
class Exact {
 public:
  explicit Exact(std::size_t n = 0, T value = T()) : n_(n) {
    if (n == 0) return;
    data_.reset(static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64))));
    fill(value);
  }
  void fill(T value) {
    for (T& x : *this) x = value;
  }
  T* get() const { return data_.get(); }
  T* begin() const { return get(); }
  T* end() const { return get() + n_; }
  T& operator[](std::size_t i) const { return get()[i]; }
  std::size_t size() const { return n_; }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t(64)); }
  };
  std::size_t n_;
  std::unique_ptr<T, Free> data_;
};

inline std::uint32_t random_bits() {
  static std::mt19937 generator(1);
  return std::uint32_t(generator());
}
inline int random_int(int low, int high) { return low + int(random_bits() % unsigned(high - low + 1)); }
inline float random_float() { return float(random_int(-1000000, 1000000)) * 1e-6f; }

template <class T>
void fill_random(const Exact<T>& to) {
  for (std::size_t i = 0; i < to.size(); ++i) to[i] = T(random_float());
}

// Every level but the scalar one that this machine runs. The AMX level's logic runs over emulated tiles: its real tile
// instructions are tested only where the CPU has them.
inline std::vector<const Kernels*> fast_levels() {
  std::vector<const Kernels*> found;
  bool avx512 = false;
  for (const Kernels* level : usable_levels()) {
    if (level != scalar_kernels()) found.push_back(level);
    avx512 |= level->name == std::string("avx512-vnni");
  }
#ifdef FLYWEIGHT_HAVE_AMX_EMULATED
  if (avx512) found.push_back(amx_emulated_kernels());
#endif
  (void)avx512;
  return found;
}

inline std::vector<const Kernels*> all_levels() {
  std::vector<const Kernels*> found = fast_levels();
  found.push_back(scalar_kernels());
  return found;
}

// The same bits, or both NaN: which NaN it is may differ between machines.
inline bool same(const float* a, const float* b, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i)
    if (std::memcmp(a + i, b + i, sizeof(float)) != 0 && !(a[i] != a[i] && b[i] != b[i])) return false;
  return true;
}
inline bool same(const Exact<float>& a, const Exact<float>& b) {
  return a.size() == b.size() && same(a.get(), b.get(), a.size());
}

struct Form {
  const char* name;
  int bits;
  int shift;
  bool one_table;
};
constexpr Form kForms[] = {
    {"int8", 8, 0, false},   {"int8 with shift", 8, -29, false}, {"4 bits", 4, 0, false},
    {"2 bits", 2, 0, false}, {"4 bits, one table", 4, 0, true},  {"2 bits, one table", 2, 0, true},
    {"1 bit", 1, 0, false},  {"1 bit, one table", 1, 0, true},
};

// Random weights; what lies beyond the last row and column is random too, since no result may depend on it.
class Weights {
 public:
  Weights(const Form& form, int rows, int columns) : form_(form) {
    matrix_.values = form.bits == 8 ? Values::int8 : Values::codes;
    matrix_.bits = form.bits;
    matrix_.rows = rows;
    matrix_.columns = columns;
    matrix_.shift = form.shift;
    const int padded = matrix_.panels() * kPanel;
    data = Exact<std::uint8_t>(matrix_.panel_bytes() * matrix_.panels());
    for (std::size_t i = 0; i < data.size(); ++i) data[i] = std::uint8_t(random_bits());
    centres = Exact<std::int8_t>(form.one_table ? 16 : 16 * padded);
    for (std::size_t i = 0; i < centres.size(); i += 16)
      for (int c = 0; c < 16; ++c)
        centres[i + c] = c < 1 << form.bits ? std::int8_t(random_int(-127, 127)) : centres[i + c % (1 << form.bits)];
    scales = Exact<float>(padded);
    bias = Exact<float>(padded);
    for (int r = 0; r < rows; ++r) {
      scales[r] = 0.001f * (1.5f + random_float());
      bias[r] = random_float();
    }
  }

  // As `level` wants it; valid until the next call.
  const Matrix& for_level(const Kernels* level) {
    tables_ = Exact<std::uint8_t>(centres.size());
    for (std::size_t i = 0; i < centres.size(); ++i) tables_[i] = std::uint8_t(centres[i]);
    matrix_.data = data.get();
    matrix_.tables = tables_.get();
    matrix_.table_stride = form_.one_table ? 0 : 16;
    matrix_.scales = scales.get();
    matrix_.bias = bias.get();
    sums_ = Exact<std::int32_t>(scales.size());
    if (level->row_sums) level->row_sums(matrix_, sums_.get());
    matrix_.sums = level->row_sums ? sums_.get() : nullptr;
    return matrix_;
  }

  Exact<std::uint8_t> data;
  Exact<std::int8_t> centres;
  Exact<float> scales, bias;

 private:
  Form form_;
  Matrix matrix_;
  Exact<std::uint8_t> tables_;
  Exact<std::int32_t> sums_;
};

// int8 activations; everything holds rubbish before `quantize` fills it.
struct Tokens {
  Tokens(int n_tokens, int columns)
      : n(n_tokens), stride(round_up(columns, kPiece)), rows(std::size_t(n) * stride, 0x55),
        lanes(std::size_t(round_up(n, kBlock)) * stride, 0x55), scale(n, -1.0f), sum(n, -1) {}
  Quantized view() { return {rows.get(), lanes.get(), scale.get(), sum.get(), n, stride}; }

  int n, stride;
  Exact<std::int8_t> rows, lanes;
  Exact<float> scale;
  Exact<std::int32_t> sum;
};

}  // namespace cases
