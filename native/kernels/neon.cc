// 64-bit Arm with the dot products of Armv8.2 (Cortex-A76, Neoverse N1, Apple M1 and later): sdot multiplies signed
// bytes, so nothing is stored with an offset. Its speed has not been measured: the tests run under an emulator.
//
// Two orientations, the same sums:
//   k in lanes       for few tokens: a vector holds 16 columns of one row; sums are added across lanes at the end.
//   tokens in lanes  for 16 tokens: four vectors hold four columns of them, and sdot broadcasts four weights by itself.
#include <arm_neon.h>

#include "kernels/integer_only.h"
#include "kernels/kernels.h"

namespace flyweight {
namespace {

constexpr int kVectors = 4;  // of 4 floats, in V

struct V {
  float32x4_t v[kVectors];

  template <class F>
  static V make(F f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  static V set(float x) {
    return make([x](int) { return vdupq_n_f32(x); });
  }
  static V load(const float* p) {
    return make([p](int i) { return vld1q_f32(p + 4 * i); });
  }
  static V load_n(const float* p, int n) {
    if (n == kLanes) return load(p);
    float whole[kLanes] = {};
    for (int i = 0; i < n; ++i) whole[i] = p[i];
    return load(whole);
  }
  void store(float* p) const {
    for (int i = 0; i < kVectors; ++i) vst1q_f32(p + 4 * i, v[i]);
  }
  void store_n(float* p, int n) const {
    if (n == kLanes) return store(p);
    float whole[kLanes];
    store(whole);
    for (int i = 0; i < n; ++i) p[i] = whole[i];
  }
  static V from_i8(const std::int8_t* p) {
    const int8x16_t q = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(q)), high = vmovl_s8(vget_high_s8(q));
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
  }
  static V from_table(const float* table, const std::uint8_t* codes) {
    float found[kLanes];
    for (int i = 0; i < kLanes; ++i) found[i] = table[codes[i]];
    return load(found);
  }
  static V from_i32(const std::int32_t* p) {
    return make([p](int i) { return vcvtq_f32_s32(vld1q_s32(p + 4 * i)); });
  }
  void to_u8(std::uint8_t* p) const { to_i8(reinterpret_cast<std::int8_t*>(p)); }  // which keeps the low 8 bits
  void to_i8(std::int8_t* p) const {
    const int16x8_t low = vcombine_s16(vmovn_s32(vcvtnq_s32_f32(v[0])), vmovn_s32(vcvtnq_s32_f32(v[1])));
    const int16x8_t high = vcombine_s16(vmovn_s32(vcvtnq_s32_f32(v[2])), vmovn_s32(vcvtnq_s32_f32(v[3])));
    vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
  }
  float sum() const {
    const float32x4_t four = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
  float max_lane() const {
    alignas(16) float lanes[kLanes];
    store(lanes);
    float r = lanes[0];
    for (int i = 1; i < kLanes; ++i) r = r > lanes[i] ? r : lanes[i];
    return r;
  }
};

inline V operator+(V a, V b) {
  return V::make([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
inline V operator-(V a, V b) {
  return V::make([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
inline V operator*(V a, V b) {
  return V::make([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
inline V operator/(V a, V b) {
  return V::make([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
}
inline V fma(V a, V b, V c) {
  return V::make([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
// vmaxq and vminq treat NaN and zeros differently than a > b ? a : b.
inline V max(V a, V b) {
  return V::make([&](int i) { return vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
inline V min(V a, V b) {
  return V::make([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
inline V abs(V a) {
  return V::make([&](int i) { return vabsq_f32(a.v[i]); });
}
inline V copysign(V a, V sign) {
  return V::make([&](int i) { return vbslq_f32(vdupq_n_u32(0x7fffffff), a.v[i], sign.v[i]); });
}
inline V round(V a) {
  return V::make([&](int i) { return vrndnq_f32(a.v[i]); });
}
inline V pow2(V a) {
  return V::make([&](int i) {
    const int32x4_t n = vaddq_s32(vcvtnq_s32_f32(a.v[i]), vdupq_n_s32(127));
    const float32x4_t power = vreinterpretq_f32_s32(vshlq_n_s32(n, 23));
    return vbslq_f32(vceqq_f32(a.v[i], a.v[i]), power, a.v[i]);  // NaN stays NaN
  });
}

// Transposes 4 x 4 numbers.
inline void transpose4(int32x4_t (&m)[4]) {
  const int32x4x2_t a = vtrnq_s32(m[0], m[1]), b = vtrnq_s32(m[2], m[3]);
  m[0] = vcombine_s32(vget_low_s32(a.val[0]), vget_low_s32(b.val[0]));
  m[1] = vcombine_s32(vget_low_s32(a.val[1]), vget_low_s32(b.val[1]));
  m[2] = vcombine_s32(vget_high_s32(a.val[0]), vget_high_s32(b.val[0]));
  m[3] = vcombine_s32(vget_high_s32(a.val[1]), vget_high_s32(b.val[1]));
}

#define FLYWEIGHT_OWN_TRANSPOSE
inline void transpose(V (&rows)[kLanes]) {
  V in[kLanes];
  for (int i = 0; i < kLanes; ++i) in[i] = rows[i];
  for (int i = 0; i < kVectors; ++i)
    for (int j = 0; j < kVectors; ++j) {
      int32x4_t m[4];
      for (int n = 0; n < 4; ++n) m[n] = vreinterpretq_s32_f32(in[4 * i + n].v[j]);
      transpose4(m);
      for (int n = 0; n < 4; ++n) rows[4 * j + n].v[i] = vreinterpretq_f32_s32(m[n]);
    }
}

#include "kernels/floats.inc"
#include "kernels/products.inc"

constexpr int kRows = 4;      // rows of one pass: 16 sums, 4 activations, 4 weights, 4 tables of 32 registers
constexpr int kMostInK = 4;   // tokens of one pass with k in lanes
constexpr int kFewest = 12;   // tokens from which a block is computed with tokens in lanes
constexpr int kAhead = 4096;  // bytes that weights are prefetched ahead of their use

// Four columns of four tokens become one vector of `lanes`.
inline void pack_lanes(const Quantized& x, int token) {
  const std::int8_t* rows = x.rows + std::size_t(token) * x.stride;
  std::int8_t* lanes = x.lanes + std::size_t(token / kBlock) * kBlock * x.stride + token % kBlock * 4;
  const int n = x.n_tokens - token;
  for (int k = 0; k < x.stride; k += 16) {
    int32x4_t m[4];
    for (int t = 0; t < 4; ++t)
      m[t] = t < n ? vreinterpretq_s32_s8(vld1q_s8(rows + std::size_t(t) * x.stride + k)) : vdupq_n_s32(0);
    transpose4(m);
    for (int i = 0; i < 4; ++i)
      vst1q_s8(lanes + std::size_t(k + 4 * i) * kBlock, vreinterpretq_s8_s32(m[i]));
  }
}

inline void pack_tokens(const Quantized& out, int from, int to) {
  const int packed = out.lanes ? in_blocks(out.n_tokens, kFewest) : 0;
  for (int block = from; block < to && block < packed; block += kBlock)
    for (int t = block; t < block + kBlock; t += 4) pack_lanes(out, t);
}

void quantize(const float* x, int stride, int columns, const Quantized& out, int from, int to) {
  quantize_rows(x, stride, columns, out, from, to);
  pack_tokens(out, from, to);
}

// 16 weights of plane j out of 16 bytes of a piece.
template <int bits>
inline int8x16_t decode(const std::uint8_t* piece, int j, int8x16_t table) {
  const uint8x16_t codes = vld1q_u8(piece);
  if constexpr (bits == 8) return vreinterpretq_s8_u8(codes);
  const uint8x16_t shifted = vshlq_u8(codes, vdupq_n_s8(std::int8_t(-j * bits)));  // to the right
  return vqtbl1q_s8(table, vandq_u8(shifted, vdupq_n_u8(15)));                     // tables repeat: 4 bits always do
}

template <int bits>
inline int8x16_t row_table(const Matrix& m, int row) {
  if constexpr (bits == 8) return vdupq_n_s8(0);
  return vld1q_s8(reinterpret_cast<const std::int8_t*>(m.tables + std::size_t(row) * m.table_stride));
}

// Calls step(weights of kRows rows, column) for all columns, 16 at a time, of rows [row, row + kRows) of a panel.
template <int bits, class F>
inline void each_weights(const Matrix& m, int n_planes, int panel, int row, F step) {
  constexpr int planes = 8 / bits;
  const std::uint8_t* unit = m.data + m.panel_bytes() * panel + row * kPiece;
  int8x16_t table[kRows];
  for (int r = 0; r < kRows; ++r) table[r] = row_table<bits>(m, panel * kPanel + row + r);
  for (int p = 0; p < n_planes; p += planes, unit += kPanel * kPiece) {
    for (int r = 0; r < kRows; ++r) __builtin_prefetch(unit + r * kPiece + kAhead);
    for (int j = 0; j < planes && p + j < n_planes; ++j)
      for (int k = 0; k < kPiece; k += 16) {
        int8x16_t w[kRows];
        for (int r = 0; r < kRows; ++r) w[r] = decode<bits>(unit + r * kPiece + k, j, table[r]);
        step(w, std::size_t(p + j) * kPiece + k);
      }
  }
}

// Integer sums of one token and 4 rows -> outputs before the activation.
inline void finish(int32x4_t sums, const Matrix& m, const Quantized& x, int token, int row, float* y, int y_stride) {
  const int32x4_t exact = vsubq_s32(sums, vdupq_n_s32(m.shift * x.sum[token]));
  if (!m.scales)
    return vst1q_s32(reinterpret_cast<std::int32_t*>(y + std::size_t(token) * y_stride + row), exact);
  const float32x4_t scale = vmulq_n_f32(vld1q_f32(m.scales + row), x.scale[token]);
  const float32x4_t result = vfmaq_f32(vld1q_f32(m.bias + row), vcvtq_f32_s32(exact), scale);
  vst1q_f32(y + std::size_t(token) * y_stride + row, result);
}

// k in lanes: sums of NT tokens.
template <int bits, int NT>
inline void few_tokens(const Matrix& m, const Quantized& x, int panel, int token, float* y, int y_stride) {
  const std::int8_t* q = x.rows + std::size_t(token) * x.stride;
  for (int row = 0; row < kPanel; row += kRows) {
    int32x4_t sum[NT][kRows];
    for (int t = 0; t < NT; ++t)
      for (int r = 0; r < kRows; ++r) sum[t][r] = vdupq_n_s32(0);
    each_weights<bits>(m, x.stride / kPiece, panel, row, [&](const int8x16_t(&w)[kRows], std::size_t column) {
      for (int t = 0; t < NT; ++t) {
        const int8x16_t columns = vld1q_s8(q + std::size_t(t) * x.stride + column);
        for (int r = 0; r < kRows; ++r) sum[t][r] = vdotq_s32(sum[t][r], w[r], columns);
      }
    });
    for (int t = 0; t < NT; ++t) {
      const int32x4_t added = vpaddq_s32(vpaddq_s32(sum[t][0], sum[t][1]), vpaddq_s32(sum[t][2], sum[t][3]));
      finish(added, m, x, token + t, panel * kPanel + row, y, y_stride);
    }
  }
}

// Four columns (`lane` of the 16 that w holds) of 16 tokens.
template <int lane>
inline void add_columns(int32x4_t (&sum)[kRows][4], const int8x16_t (&w)[kRows], const std::int8_t* columns) {
  for (int t = 0; t < 4; ++t) {
    const int8x16_t four = vld1q_s8(columns + lane * kPiece + 16 * t);
    for (int r = 0; r < kRows; ++r) sum[r][t] = vdotq_laneq_s32(sum[r][t], four, w[r], lane);
  }
}

// tokens in lanes: sums of 16 tokens.
template <int bits>
inline void many_tokens(const Matrix& m, const Quantized& x, int panel, int token, float* y, int y_stride) {
  const std::int8_t* columns = x.lanes + std::size_t(token) * x.stride;
  const int n = x.n_tokens - token < kBlock ? x.n_tokens - token : kBlock;
  for (int row = 0; row < kPanel; row += kRows) {
    int32x4_t sum[kRows][4];
    for (int r = 0; r < kRows; ++r)
      for (int t = 0; t < 4; ++t) sum[r][t] = vdupq_n_s32(0);
    each_weights<bits>(m, x.stride / kPiece, panel, row, [&](const int8x16_t(&w)[kRows], std::size_t column) {
      const std::int8_t* at = columns + column * kBlock;
      add_columns<0>(sum, w, at);
      add_columns<1>(sum, w, at);
      add_columns<2>(sum, w, at);
      add_columns<3>(sum, w, at);
    });
    for (int t = 0; t < n; t += 4) {
      int32x4_t by_token[4] = {sum[0][t / 4], sum[1][t / 4], sum[2][t / 4], sum[3][t / 4]};
      transpose4(by_token);
      for (int i = 0; i < 4 && t + i < n; ++i)
        finish(by_token[i], m, x, token + t + i, panel * kPanel + row, y, y_stride);
    }
  }
}

template <int bits>
inline void multiply_form(const Matrix& m, const Quantized& x, int from, int to, Activation a, float* y, int y_stride) {
  static_assert(kMostInK == 4);
  const int lanes = in_blocks(x.n_tokens, kFewest);
  for (int panel = from; panel < to; ++panel) {
    for (int t = 0; t < lanes; t += kBlock) many_tokens<bits>(m, x, panel, t, y, y_stride);
    for (int t = lanes; t < x.n_tokens; t += kMostInK) switch (x.n_tokens - t) {
        case 1: few_tokens<bits, 1>(m, x, panel, t, y, y_stride); break;
        case 2: few_tokens<bits, 2>(m, x, panel, t, y, y_stride); break;
        case 3: few_tokens<bits, 3>(m, x, panel, t, y, y_stride); break;
        default: few_tokens<bits, 4>(m, x, panel, t, y, y_stride); break;
      }
    activate(a, y + panel * kPanel, y_stride, x.n_tokens);
  }
}

void multiply(const Matrix& m, const Quantized& x, int from, int to, Activation a, float* y, int y_stride) {
  with_bits(m.bits, [&](auto bits) { multiply_form<bits.value>(m, x, from, to, a, y, y_stride); });
}

constexpr int kOffset = 0;
#include "kernels/integers.inc"

void multiply_to_int8(const Matrix& m, const Quantized& x, int from, int to, Activation a, float* y, int y_stride,
                      const Quantized& out, int first) {
  outputs_to_int8(m, x, from, to, 1, a, y, y_stride, out, first, in_blocks(x.n_tokens, kFewest));
}

// 16 rows of a panel += four columns by four activations.
struct Sums {
  int32x4_t v[kVectors];
  static Sums load(const std::int32_t* from) {
    return {{vld1q_s32(from), vld1q_s32(from + 4), vld1q_s32(from + 8), vld1q_s32(from + 12)}};
  }
  void store(std::int32_t* to) const {
    for (int i = 0; i < kVectors; ++i) vst1q_s32(to + 4 * i, v[i]);
  }
  void add(const std::int8_t* w, const std::int8_t* q) {
    std::int32_t four;
    __builtin_memcpy(&four, q, sizeof four);
    const int8x16_t by = vreinterpretq_s8_s32(vdupq_n_s32(four));
    for (int i = 0; i < kVectors; ++i) v[i] = vdotq_s32(v[i], vld1q_s8(w + kLanes * i), by);
  }
};
#include "kernels/lstm.inc"

#include "kernels/integer_only.inc"

constexpr Kernels kKernels = {"neon-dotprod", embed, add_norm, quantize, multiply, multiply_to_int8,
                              multiply_float, attend, attend_integers, mean, most, lstm_cells,
                              multiply_one, nullptr, false, &kIntegers};

}  // namespace

const Kernels* neon_kernels() { return &kKernels; }

}  // namespace flyweight
