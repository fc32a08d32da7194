// The scalar level: the specification of every other level, bit for bit.
#include "kernels/integer_only.h"
#include "kernels/kernels.h"

namespace flyweight {
namespace {

// a b + c rounded once, on any machine. The product of two 24-bit numbers is exact in double; the sum is rounded to
// odd (TwoSum gives the error's sign), so that rounding to float afterwards is the only rounding (Boldo & Melquiond
// 2008). libm's fma can take 180 ns where the hardware has none.
inline float exact_fma(float a, float b, float c) {
  const double p = double(a) * double(b), wide = double(c);
  double s = p + wide;
  const double from_c = s - p;
  const double error = (p - (s - from_c)) + (wide - from_c);
  if (error == 0.0 || error != error) return float(s);  // exact, or NaN and infinities
  std::int64_t bits;
  __builtin_memcpy(&bits, &s, sizeof bits);
  if ((bits & 1) == 0) {
    bits += (error > 0.0) == (s > 0.0) ? 1 : -1;
    __builtin_memcpy(&s, &bits, sizeof bits);
  }
  return float(s);
}

struct V {
  float v[kLanes];

  template <class F>
  static V make(F f) {
    V r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = f(i);
    return r;
  }
  static V set(float x) {
    return make([x](int) { return x; });
  }
  static V load(const float* p) {
    return make([p](int i) { return p[i]; });
  }
  static V load_n(const float* p, int n) {
    return make([p, n](int i) { return i < n ? p[i] : 0.0f; });
  }
  void store(float* p) const {
    for (int i = 0; i < kLanes; ++i) p[i] = v[i];
  }
  void store_n(float* p, int n) const {
    for (int i = 0; i < n; ++i) p[i] = v[i];
  }
  static V from_i8(const std::int8_t* p) {
    return make([p](int i) { return float(p[i]); });
  }
  static V from_table(const float* table, const std::uint8_t* codes) {
    return make([=](int i) { return table[codes[i]]; });
  }
  static V from_i32(const std::int32_t* p) {
    return make([p](int i) { return float(p[i]); });
  }
  void to_i8(std::int8_t* p) const {
    for (int i = 0; i < kLanes; ++i) p[i] = std::int8_t(v[i]);
  }
  void to_u8(std::uint8_t* p) const {
    for (int i = 0; i < kLanes; ++i) p[i] = std::uint8_t(v[i]);
  }
  float sum() const {
    V r = *this;
    for (int half = kLanes / 2; half; half /= 2)
      for (int i = 0; i < half; ++i) r.v[i] = r.v[i] + r.v[i + half];
    return r.v[0];
  }
  float max_lane() const {
    float r = v[0];
    for (int i = 1; i < kLanes; ++i) r = r > v[i] ? r : v[i];
    return r;
  }
};

inline V operator+(V a, V b) {
  return V::make([&](int i) { return a.v[i] + b.v[i]; });
}
inline V operator-(V a, V b) {
  return V::make([&](int i) { return a.v[i] - b.v[i]; });
}
inline V operator*(V a, V b) {
  return V::make([&](int i) { return a.v[i] * b.v[i]; });
}
inline V operator/(V a, V b) {
  return V::make([&](int i) { return a.v[i] / b.v[i]; });
}
inline V fma(V a, V b, V c) {
  return V::make([&](int i) { return exact_fma(a.v[i], b.v[i], c.v[i]); });
}
inline V max(V a, V b) {
  return V::make([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline V min(V a, V b) {
  return V::make([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline V abs(V a) {
  return V::make([&](int i) { return __builtin_fabsf(a.v[i]); });
}
inline V copysign(V a, V sign) {
  return V::make([&](int i) { return __builtin_copysignf(a.v[i], sign.v[i]); });
}
inline V round(V a) {  // adding 2^23 leaves no room for a fraction
  return V::make([&](int i) {
    return __builtin_copysignf((__builtin_fabsf(a.v[i]) + 0x1p23f) - 0x1p23f, a.v[i]);
  });
}
inline V pow2(V a) {
  return V::make([&](int i) {
    if (!(a.v[i] >= -126.0f && a.v[i] <= 127.0f)) return a.v[i];  // NaN stays NaN
    const std::int32_t bits = (std::int32_t(a.v[i]) + 127) << 23;
    float r;
    __builtin_memcpy(&r, &bits, sizeof r);
    return r;
  });
}

#include "kernels/floats.inc"
#include "kernels/products.inc"

// The same of a sparse matrix: 0 where the mask has no bit, else the next survivor. The engine brings it none (see
// Kernels::sparse): this is what the other ways are compared with.
inline void decode_sparse_row_of(const Matrix& m, int row, std::int8_t* w) {
  const int n_bits = round_up(m.columns, kPiece) / m.block;
  const std::uint8_t* mask = m.mask + std::size_t(row) * std::size_t(n_bits / 8);
  std::size_t next = m.starts[row];
  for (int k = 0; k < m.columns; ++k) {
    const int bit = k / m.block;
    w[k] = 0;
    if ((mask[bit / 8] >> bit % 8 & 1) == 0) continue;
    const std::size_t at = next++ * std::size_t(m.bits);  // the bits of this survivor begin there
    const int code = m.data[at / 8] >> at % 8 & ((1 << m.bits) - 1);
    w[k] = std::int8_t(m.values == Values::int8 ? code : m.tables[std::size_t(row) * m.table_stride + code]);
  }
}

// The int8 weights of one row, columns in order.
inline void decode_row_of(const Matrix& m, int row, std::int8_t* w) {
  if (m.block) return decode_sparse_row_of(m, row, w);
  const int held = m.values == Values::codes ? 512 / m.bits : kPiece;  // columns of a piece
  const std::uint8_t* piece = m.data + m.panel_bytes() * (row / kPanel) + row % kPanel * kPiece;
  for (int first = 0; first < m.columns; first += held, piece += kPanel * kPiece)
    for (int inside = 0; inside < held && first + inside < m.columns; ++inside) {
      const std::uint8_t byte = piece[inside % kPiece];
      const int code = byte >> (inside / kPiece * m.bits % 8) & ((1 << m.bits) - 1);
      w[first + inside] =
          std::int8_t(m.values == Values::int8 ? byte : m.tables[std::size_t(row) * m.table_stride + code]);
    }
}

void multiply(const Matrix& m, const Quantized& x, int from, int to, Activation a, float* y, int y_stride) {
  std::int8_t w[kMaxColumns];
  for (int p = from; p < to; ++p) {
    for (int row = p * kPanel; row < (p + 1) * kPanel; ++row) {
      decode_row_of(m, row, w);
      for (int t = 0; t < x.n_tokens; ++t) {
        const std::int8_t* q = x.rows + std::size_t(t) * x.stride;
        std::int32_t sum = 0;
        for (int k = 0; k < m.columns; ++k) sum += w[k] * q[k];
        sum -= m.shift * x.sum[t];
        float* to = y + std::size_t(t) * y_stride + row;
        if (!m.scales) {
          __builtin_memcpy(to, &sum, sizeof sum);
          continue;
        }
        *to = exact_fma(float(sum), x.scale[t] * m.scales[row], m.bias[row]);
      }
    }
    activate(a, y + p * kPanel, y_stride, x.n_tokens);
  }
}

constexpr int kOffset = 0;
#include "kernels/integers.inc"

void multiply_to_int8(const Matrix& m, const Quantized& x, int from, int to, Activation a, float* y, int y_stride,
                      const Quantized& out, int first) {
  outputs_to_int8(m, x, from, to, 1, a, y, y_stride, out, first, 0);
}

// 16 rows of a panel += four columns by four activations.
struct Sums {
  std::int32_t v[kPanel];
  static Sums load(const std::int32_t* from) {
    Sums s;
    for (int r = 0; r < kPanel; ++r) s.v[r] = from[r];
    return s;
  }
  void store(std::int32_t* to) const {
    for (int r = 0; r < kPanel; ++r) to[r] = v[r];
  }
  void add(const std::int8_t* w, const std::int8_t* q) {
    for (int i = 0; i < 4 * kPanel; ++i) v[i / 4] += w[i] * q[i % 4];
  }
};
#include "kernels/lstm.inc"

inline void pack_tokens(const Quantized&, int, int) {}
#include "kernels/integer_only.inc"

constexpr Kernels kKernels = {"scalar", embed, add_norm, quantize_rows, multiply, multiply_to_int8,
                              multiply_float, attend, attend_integers, mean, most, lstm_cells,
                              multiply_one, nullptr, false, &kIntegers};

}  // namespace

const Kernels* scalar_kernels() { return &kKernels; }

}  // namespace flyweight
