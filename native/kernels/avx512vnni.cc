// AVX-512 with VNNI and VBMI (Ice Lake, Zen 4 and later): vpdpbusd multiplies unsigned activations (q + 128) by int8
// weights; 128 * (sum of the row's weights), known from loading, is subtracted from the exact sum.
//
// Two orientations, the same sums:
//   k in lanes       for few tokens: a vector holds 64 columns of one row; sums are added across lanes at the end.
//                    Work is proportional to the tokens.
//   tokens in lanes  for 16 tokens: a vector holds four columns of 16 tokens, four weights are broadcast by the product
//                    itself (an embedded broadcast: free, where one into a register costs a third). int8 weights are
//                    read where they lie; the next unit of codes is decoded between the products, so that decoding
//                    and memory cost little time of their own.
#include <immintrin.h>

#include "kernels/integer_only.h"
#include "kernels/kernels.h"

namespace flyweight {
namespace {

#include "kernels/avx512.inc"
#include "kernels/floats.inc"
#include "kernels/products.inc"
#include "kernels/avx512_sparse.inc"

// Bytes that weights are prefetched ahead of their use: int8 from memory 38 ns a tile at 16 KB, 41 at 4 KB, 57 at 2 KB.
constexpr int kAhead = 16384, kAheadCodes = 4096;
constexpr int kFewest = 12;   // tokens from which a block is computed with tokens in lanes

void quantize(const float* x, int stride, int columns, const Quantized& out, int from, int to) {
  quantize_rows(x, stride, columns, out, from, to);
  const int packed = out.lanes ? in_blocks(out.n_tokens, kFewest) : 0;
  for (int t = from; t < to && t < packed; t += kBlock) pack_lanes(out, t / kBlock);
}

// Matrix::panel_bytes without divisions, which small models would feel at every panel.
template <int bits>
inline std::size_t panel_bytes(const Matrix& m) {
  constexpr int held = 512 / bits;
  return std::size_t((m.columns + held - 1) / held) * kPanel * kPiece;
}

template <int bits>
void sums_of_rows(const Matrix& m, std::int32_t* sums) {
  const int n_planes = round_up(m.columns, kPiece) / kPiece;
  const __m512i ones = _mm512_set1_epi8(1);
  for (int row = 0; row < m.panels() * kPanel; ++row) {
    const std::uint8_t* piece = m.data + m.panel_bytes() * (row / kPanel) + row % kPanel * kPiece;
    const __m512i table = decoding_table<bits>(m, row);
    __m512i sum = _mm512_setzero_si512();
    for (int plane = 0; plane < n_planes; plane += 8 / bits, piece += kPanel * kPiece) {
      __m512i w[8 / bits];
      decode<bits>(_mm512_loadu_si512(piece), table, w);
      for (int j = 0; j < 8 / bits && plane + j < n_planes; ++j) sum = _mm512_dpbusd_epi32(sum, ones, w[j]);
    }
    sums[row] = _mm512_reduce_add_epi32(sum);
  }
}

void row_sums(const Matrix& m, std::int32_t* sums) {
  if (m.block) return sparse_row_sums(m, sums, row_sums);
  with_bits(m.bits, [&](auto bits) { sums_of_rows<bits.value>(m, sums); });
}

// sum += u8 activations times int8 weights. As assembly: gcc 12 moves its accumulators about and spills them.
inline void add_product(__m512i& sum, __m512i activations, __m512i weights) {
  __asm__("vpdpbusd %1, %2, %0" : "+v"(sum) : "v"(weights), "v"(activations));
}

typedef std::int32_t Four __attribute__((may_alias));  // four int8 weights

// The same with four weights that are broadcast from memory.
inline void add_product(__m512i& sum, __m512i activations, const std::uint8_t* weights) {
  __asm__("vpdpbusd %1%{1to16%}, %2, %0" : "+v"(sum) : "m"(*reinterpret_cast<const Four*>(weights)), "v"(activations));
}

// k in lanes ---------------------------------------------------------------------------------------------------------

// Half and all of adding the 16 lanes of 4 accumulators: lane group i of the result holds partial sums of rows 0..3.
inline __m512i add_pair(__m512i a, __m512i b) {
  return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
}
inline __m512i add_pairs(__m512i ab, __m512i cd) {
  return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

// Four such results (rows 0..3, 4..7, 8..11, 12..15) -> the sums of 16 rows.
inline __m512i add_groups(const __m512i* g) {
  const __m512i a = _mm512_add_epi32(_mm512_shuffle_i32x4(g[0], g[1], 0x88), _mm512_shuffle_i32x4(g[0], g[1], 0xdd));
  const __m512i b = _mm512_add_epi32(_mm512_shuffle_i32x4(g[2], g[3], 0x88), _mm512_shuffle_i32x4(g[2], g[3], 0xdd));
  return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

// The last NT tokens, from `token` on. Weights are read once: from a cache or memory, a second pass costs more than fewer
// rows at a time. 4 rows x 5 sums, or 2 x 11, a table and two pieces a row fit in 32 registers.
template <int bits, int NT>
void few_tokens(const Matrix& m, const Quantized& x, int panel, int token, float* y, int y_stride) {
  constexpr int planes = 8 / bits, rows = NT > 5 ? 2 : 4;
  const int n_planes = x.stride / kPiece, whole = n_planes / planes;
  const std::uint8_t* data = m.data + panel_bytes<bits>(m) * panel;
  const std::int8_t* q = x.rows + std::size_t(token) * x.stride;
  __m512i pairs[NT][8];
  for (int first = 0; first < kPanel; first += rows) {
    // gcc 12 keeps addresses that it has no register for in vector registers; here none may be there.
    __asm__ volatile("" ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
                     "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22",
                     "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31");
    __m512i sum[rows][NT], table[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      table[r] = decoding_table<bits>(m, panel * kPanel + first + r);
#pragma GCC unroll 11
      for (int t = 0; t < NT; ++t) sum[r][t] = _mm512_setzero_si512();
    }
    const std::uint8_t* piece = data + first * kPiece;
    const std::uint8_t* soon = data + panel_bytes<bits>(m) + panel_bytes<bits>(m) / kPanel * first;  // of the next panel, in order
    const std::int8_t* columns = q;
    const auto unit = [&](int count) __attribute__((always_inline)) {
      __m512i w[rows];
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        _mm_prefetch(reinterpret_cast<const char*>(soon + r * kPiece), _MM_HINT_T0);
        w[r] = _mm512_loadu_si512(piece + r * kPiece);
      }
#pragma GCC unroll 8
      for (int j = 0; j < planes; ++j) {
        if (j >= count) break;
        __m512i v[rows];
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
          if constexpr (bits == 8) {
            v[r] = w[r];
          } else {
            v[r] = _mm512_permutexvar_epi8(w[r], table[r]);
            if (j + 1 < planes) w[r] = _mm512_srli_epi16(w[r], bits);
          }
        }
#pragma GCC unroll 11
        for (int t = 0; t < NT; ++t) {
          const __m512i u = _mm512_loadu_si512(columns + std::size_t(t) * x.stride);
#pragma GCC unroll 4
          for (int r = 0; r < rows; ++r) add_product(sum[r][t], u, v[r]);
        }
        columns += kPiece;
      }
      piece += kPanel * kPiece;
      soon += rows * kPiece;
    };
    for (int u = 0; u < whole; ++u) unit(planes);
    if constexpr (planes > 1) {
      if (whole * planes < n_planes) unit(n_planes - whole * planes);
    }
#pragma GCC unroll 11
    for (int t = 0; t < NT; ++t)
#pragma GCC unroll 2
      for (int r = 0; r < rows; r += 2) pairs[t][(first + r) / 2] = add_pair(sum[r][t], sum[r + 1][t]);
  }
  const Finish finish(m, panel);
  for (int t = 0; t < NT; ++t) {
    __m512i groups[4];
    for (int g = 0; g < 4; ++g) groups[g] = add_pairs(pairs[t][2 * g], pairs[t][2 * g + 1]);
    finish(add_groups(groups), x, token + t, y + std::size_t(token + t) * y_stride + panel * kPanel);
  }
}

template <int bits>
inline void some_tokens(const Matrix& m, const Quantized& x, int panel, int token, float* y, int y_stride) {
  static_assert(kFewest == 12);
  switch (x.n_tokens - token) {
    case 0: return;
    case 1: return few_tokens<bits, 1>(m, x, panel, token, y, y_stride);
    case 2: return few_tokens<bits, 2>(m, x, panel, token, y, y_stride);
    case 3: return few_tokens<bits, 3>(m, x, panel, token, y, y_stride);
    case 4: return few_tokens<bits, 4>(m, x, panel, token, y, y_stride);
    case 5: return few_tokens<bits, 5>(m, x, panel, token, y, y_stride);
    case 6: return few_tokens<bits, 6>(m, x, panel, token, y, y_stride);
    case 7: return few_tokens<bits, 7>(m, x, panel, token, y, y_stride);
    case 8: return few_tokens<bits, 8>(m, x, panel, token, y, y_stride);
    case 9: return few_tokens<bits, 9>(m, x, panel, token, y, y_stride);
    case 10: return few_tokens<bits, 10>(m, x, panel, token, y, y_stride);
    default: return few_tokens<bits, 11>(m, x, panel, token, y, y_stride);
  }
}

// tokens in lanes ----------------------------------------------------------------------------------------------------

// Four columns of 16 tokens by 16 rows; w points at the columns of row 0, rows lie 64 bytes apart.
inline void add_products(__m512i (&sum)[16], const std::int8_t* columns, const std::uint8_t* w) {
  const __m512i v = _mm512_load_si512(columns);
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) add_product(sum[r], v, w + r * kPiece);
}

inline void clear(__m512i (&sum)[16]) {
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) sum[r] = _mm512_setzero_si512();
}

inline void store(__m512i* to, const __m512i (&sum)[16]) {
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) to[r] = sum[r];
}

// The sums of one panel and one block, (16 rows, 16 tokens), given int8 weights as planes of (16 rows, 64 columns).
inline void multiply_planes(__m512i* sums, const std::uint8_t* w, int n_planes, const std::int8_t* columns) {
  __m512i sum[16];  // apart from `sums`, so that they stay in registers
  clear(sum);
  for (int plane = 0; plane < n_planes; ++plane, w += kPanel * kPiece)
    for (int i = 0; i < 16; ++i, columns += kPiece) {
      _mm_prefetch(reinterpret_cast<const char*>(w + kAhead + i * kPiece), _MM_HINT_T0);
      add_products(sum, columns, w + 4 * i);
    }
  store(sums, sum);
}

// Decoded codes: a ring of two units, and which of them is multiplied next. A unit is what one piece a row holds:
// 8 / bits planes of (16 rows, 64 columns).
template <int bits>
struct Ring {
  static constexpr int unit_bytes = 8 / bits * kPanel * kPiece;
  alignas(64) std::uint8_t units[2 * unit_bytes];
  int turn = 0;
  std::uint8_t* now() { return units + turn * unit_bytes; }
  std::uint8_t* later() { return units + (turn ^ 1) * unit_bytes; }
};

// The same from codes whose first unit is decoded already: each further unit is decoded while the one before is
// multiplied, and at the end the first of `next_panel`.
template <int bits>
inline void multiply_codes(__m512i* sums, const Matrix& m, int panel, int next_panel, int n_planes,
                           const std::int8_t* columns, Ring<bits>& ring) {
  constexpr int held = 8 / bits;
  const std::uint8_t* unit = m.data + panel_bytes<bits>(m) * panel;
  __m512i sum[16];
  clear(sum);
  for (int left = n_planes; left > 0; left -= held, ring.turn ^= 1) {
    const std::uint8_t* now = ring.now();
    std::uint8_t* later = ring.later();
    const bool last = left <= held;
    unit = last ? m.data + panel_bytes<bits>(m) * next_panel : unit + kPanel * kPiece;
    const int count = last ? left : held, decoded = last ? next_panel : panel;
    for (int row = 0; row < kPanel; ++row) {  // a row of the next unit for every `count` vectors of columns
      decode_to<bits, kAheadCodes>(later, m, unit, row, decoded);
      for (int j = 0; j < count; ++j, columns += kPiece) {
        const int at = row * count + j;
        add_products(sum, columns, now + at / 16 * kPanel * kPiece + at % 16 * 4);
      }
    }
  }
  store(sums, sum);
}

// Calls put(integer sums (16 rows, 16 tokens), block) for each block.
template <int bits, class Put>
inline void blocks(const Matrix& m, const Quantized& x, int n_blocks, int panel, int next_panel, Ring<bits>& ring,
                   Put put) {
  const int n_planes = x.stride / kPiece;
  for (int b = 0; b < n_blocks; ++b) {
    const std::int8_t* columns = x.lanes + std::size_t(b) * kBlock * x.stride;
    __m512i sum[16];
    if constexpr (bits == 8) {
      multiply_planes(sum, m.data + panel_bytes<bits>(m) * panel, n_planes, columns);
    } else {
      multiply_codes<bits>(sum, m, panel, b + 1 < n_blocks ? panel : next_panel, n_planes, columns, ring);
    }
    put(sum, b);
  }
}

#include "kernels/avx512_sparse_products.inc"

// Calls block(sums, number of the block, panel) for the tokens in lanes and rest(panel) behind the others' outputs.
template <int bits, class Block, class Rest>
inline void each_panel(const Matrix& m, const Quantized& x, int from, int to, float* y, int y_stride, Block block,
                       Rest rest) {
  if (m.block) return each_sparse_panel<bits>(m, x, from, to, y, y_stride, block, rest);
  const int lanes = in_blocks(x.n_tokens, kFewest), n_blocks = (lanes + kBlock - 1) / kBlock;
  Ring<bits> ring;
  if (bits != 8 && n_blocks && from < to && m.columns)
    for (int r = 0; r < kPanel; ++r) decode_to<bits, kAheadCodes>(ring.now(), m, m.data + panel_bytes<bits>(m) * from, r, from);
  for (int panel = from; panel < to; ++panel) {
    blocks<bits>(m, x, n_blocks, panel, panel + 1 < to ? panel + 1 : panel, ring,
                 [&](__m512i(&sums)[16], int b) { block(sums, b, panel); });
    some_tokens<bits>(m, x, panel, lanes, y, y_stride);
    rest(panel);
  }
}

template <int bits>
void multiply_form(const Matrix& m, const Quantized& x, int from, int to, Activation a, float* y, int y_stride) {
  const auto block = [&](__m512i(&sums)[16], int b, int panel) {
    const Finish finish(m, panel);
    transpose(sums);
    const int token = b * kBlock, n = x.n_tokens - token;
    float* to = y + std::size_t(token) * y_stride + panel * kPanel;
#pragma GCC unroll 16
    for (int t = 0; t < kBlock; ++t, to += y_stride) {  // unrolled, so that the sums stay in registers
      if (t == n) break;
      finish(sums[t], x, token + t, to);
    }
  };
  each_panel<bits>(m, x, from, to, y, y_stride, block,
                   [&](int panel) { activate(a, y + panel * kPanel, y_stride, x.n_tokens); });
}

void multiply(const Matrix& m, const Quantized& x, int from, int to, Activation a, float* y, int y_stride) {
  with_bits(m.bits, [&](auto bits) { multiply_form<bits.value>(m, x, from, to, a, y, y_stride); });
}

// outputs as int8 ----------------------------------------------------------------------------------------------------

#define FLYWEIGHT_OWN_TO_INT8
#include "kernels/avx512_attention.inc"
#include "kernels/avx512_int8_outputs.inc"
#include "kernels/integers.inc"

template <int bits>
void multiply_form_to_int8(const Matrix& m, const Quantized& x, int from, int to, Activation a, float* y, int y_stride,
                           const Quantized& out, int first) {
  const int lanes = in_blocks(x.n_tokens, kFewest);
  const auto block = [&](__m512i(&sums)[16], int b, int panel) {
    put_block(m, x, sums, a, panel, b * kBlock, out, (panel - first) * kPanel);
  };
  each_panel<bits>(m, x, from, to, y, y_stride, block, [&](int panel) {
    const int held = kPiece / kPanel, last = (panel - first) % held;  // panels of 64 columns, and which of them this is
    if (lanes == x.n_tokens || (last < held - 1 && panel + 1 < to)) return;
    const int begin = panel - last > from ? panel - last : from;
    put_tokens(y + begin * kPanel, y_stride, (panel + 1 - begin) * kPanel, a, lanes, x.n_tokens, out,
               (begin - first) * kPanel);
  });
  if (out.lanes && to == m.panels()) fill_columns(out, lanes, (to - first) * kPanel);
}

void multiply_to_int8(const Matrix& m, const Quantized& x, int from, int to, Activation a, float* y, int y_stride,
                      const Quantized& out, int first) {
  with_bits(m.bits, [&](auto bits) { multiply_form_to_int8<bits.value>(m, x, from, to, a, y, y_stride, out, first); });
}

#include "kernels/lstm.inc"

inline void pack_tokens(const Quantized& out, int from, int to) {
  const int packed = in_blocks(out.n_tokens, kFewest);
  for (int t = from; t < to && t < packed; t += kBlock) pack_lanes(out, t / kBlock);
}
#include "kernels/integer_only.inc"

constexpr Kernels kKernels = {"avx512-vnni", embed, add_norm, quantize, multiply, multiply_to_int8,
                              multiply_float, attend, attend_integers, mean, most, lstm_cells,
                              multiply_one, row_sums, true, &kIntegers};

}  // namespace

const Kernels* avx512vnni_kernels() { return &kKernels; }

}  // namespace flyweight
