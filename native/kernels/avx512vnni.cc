// AVX-512 with VNNI and VBMI (Ice Lake, Zen 4 and later): vpdpbusd multiplies unsigned weights (weight + 128) by int8
// activations; 128 * sum(activations) is subtracted from the exact sum.
//
// Two orientations, the same sums:
//   k in lanes       for few tokens: a vector holds 64 columns of one row; sums are added across lanes at the end.
//                    Work is proportional to the tokens.
//   tokens in lanes  for 16 tokens: a vector holds four columns of 16 tokens, weights are broadcast four at a time.
//                    Nothing to add across lanes; 1 to 3 blocks share one broadcast. The next unit of weights is
//                    decoded into a small ring between the products, so that decoding and memory cost no time of
//                    their own.
#include <immintrin.h>

#include "kernels/kernels.h"

namespace flyweight {
namespace {

#include "kernels/avx512.inc"
#include "kernels/floats.inc"

constexpr int kUnsigned = 128;
constexpr int kAhead = 4096;      // bytes that weights are prefetched ahead of decoding
constexpr int kMostInK = 5;       // tokens of one pass with k in lanes: 4 rows x 5 sums, 4 tables, 4 pieces of 32 registers
constexpr int kFewest = 12;       // tokens from which a block is computed with tokens in lanes

// Tokens that go with tokens in lanes: whole blocks, and a last one that is full enough.
inline int in_lanes(int n_tokens) {
  const int whole = n_tokens / kBlock * kBlock;
  return n_tokens - whole >= kFewest ? n_tokens : whole;
}

void quantize(const float* x, int stride, int columns, const Quantized& out, int from, int to) {
  for (int t = from; t < to; ++t)
    quantize_token(x + std::size_t(t) * stride, columns, out.stride, out.rows + std::size_t(t) * out.stride,
                   out.scale + t, out.sum + t);
  const int packed = in_lanes(out.n_tokens);
  for (int t = from; t < to && t < packed; t += kBlock) pack_lanes(out, t / kBlock);
}

// One row's 64-byte piece -> 8 / bits vectors of 64 unsigned weights each.
template <int bits>
inline void decode(__m512i piece, __m512i table, __m512i (&w)[8 / bits]) {
  if constexpr (bits == 8) {
    w[0] = _mm512_xor_si512(piece, table);  // the "table" is 128 in every byte: int8 -> unsigned
  } else {
    for (int j = 0; j < 8 / bits; ++j) {
      w[j] = _mm512_permutexvar_epi8(piece, table);
      piece = _mm512_srli_epi16(piece, bits);
    }
  }
}

template <int bits>
inline __m512i decoding_table(const Matrix& m, int row) {
  if constexpr (bits == 8) return _mm512_set1_epi8(char(0x80));
  return row_table(m, row);
}

// k in lanes ---------------------------------------------------------------------------------------------------------

// Adds the 16 lanes of 4 accumulators: lane group i of the result holds partial sums of rows 0..3.
inline __m512i add_lanes(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

// Four such results (rows 0..3, 4..7, 8..11, 12..15) -> the sums of 16 rows.
inline __m512i add_groups(const __m512i* g) {
  const __m512i a = _mm512_add_epi32(_mm512_shuffle_i32x4(g[0], g[1], 0x88), _mm512_shuffle_i32x4(g[0], g[1], 0xdd));
  const __m512i b = _mm512_add_epi32(_mm512_shuffle_i32x4(g[2], g[3], 0x88), _mm512_shuffle_i32x4(g[2], g[3], 0xdd));
  return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

template <int bits, int NT>
inline void few_tokens(const Matrix& m, const Quantized& x, int panel, int token, float* y, int y_stride) {
  constexpr int planes = 8 / bits;
  const int n_planes = x.stride / kPiece, n_units = m.pieces();
  const std::uint8_t* data = m.data + m.panel_bytes() * panel;
  const std::int8_t* q = x.rows + std::size_t(token) * x.stride;
  const std::size_t ahead = m.panel_bytes();
  __m512i partial[NT][4];
  for (int g = 0; g < 4; ++g) {
    __m512i sum[4][NT], table[4];
    for (int r = 0; r < 4; ++r) {
      table[r] = decoding_table<bits>(m, panel * kPanel + 4 * g + r);
      for (int t = 0; t < NT; ++t) sum[r][t] = _mm512_setzero_si512();
    }
    const std::uint8_t* piece = data + g * 4 * kPiece;
    const auto unit = [&](int first, int count) __attribute__((always_inline)) {
      __m512i w[4][planes];
      for (int r = 0; r < 4; ++r) {
        _mm_prefetch(reinterpret_cast<const char*>(piece + r * kPiece + ahead), _MM_HINT_T0);
        decode<bits>(_mm512_loadu_si512(piece + r * kPiece), table[r], w[r]);
      }
#pragma GCC unroll 8
      for (int j = 0; j < planes; ++j) {
        if (j >= count) break;
        const std::int8_t* columns = q + std::size_t(first + j) * kPiece;
        for (int t = 0; t < NT; ++t) {
          const __m512i v = _mm512_loadu_si512(columns + std::size_t(t) * x.stride);
          for (int r = 0; r < 4; ++r) sum[r][t] = _mm512_dpbusd_epi32(sum[r][t], w[r][j], v);
        }
      }
      piece += kPanel * kPiece;
    };
    const int whole = n_planes / planes;
    for (int u = 0; u < whole; ++u) unit(u * planes, planes);
    if (whole < n_units) unit(whole * planes, n_planes - whole * planes);
    for (int t = 0; t < NT; ++t) partial[t][g] = add_lanes(sum[0][t], sum[1][t], sum[2][t], sum[3][t]);
  }
  const Finish finish(m, panel, kUnsigned);
  for (int t = 0; t < NT; ++t)
    finish(add_groups(partial[t]), x, token + t, y + std::size_t(token + t) * y_stride + panel * kPanel);
}

template <int bits>
inline void some_tokens(const Matrix& m, const Quantized& x, int panel, int token, float* y, int y_stride) {
  static_assert(kMostInK == 5);
  while (token < x.n_tokens) {
    const int left = x.n_tokens - token, passes = (left + kMostInK - 1) / kMostInK, n = (left + passes - 1) / passes;
    switch (n) {
      case 1: few_tokens<bits, 1>(m, x, panel, token, y, y_stride); break;
      case 2: few_tokens<bits, 2>(m, x, panel, token, y, y_stride); break;
      case 3: few_tokens<bits, 3>(m, x, panel, token, y, y_stride); break;
      case 4: few_tokens<bits, 4>(m, x, panel, token, y, y_stride); break;
      default: few_tokens<bits, 5>(m, x, panel, token, y, y_stride); break;
    }
    token += n;
  }
}

// tokens in lanes ----------------------------------------------------------------------------------------------------

// Decodes one row's piece of a unit into the ring: planes of (16 rows, 64 columns).
template <int bits>
inline void decode_to(std::uint8_t* ring, const Matrix& m, const std::uint8_t* unit, int row, int panel) {
  __m512i w[8 / bits];
  const std::uint8_t* piece = unit + row * kPiece;
  _mm_prefetch(reinterpret_cast<const char*>(piece + kAhead), _MM_HINT_T0);
  decode<bits>(_mm512_loadu_si512(piece), decoding_table<bits>(m, panel * kPanel + row), w);
  for (int j = 0; j < 8 / bits; ++j) _mm512_store_si512(ring + j * kPanel * kPiece + row * kPiece, w[j]);
}

// Sums of rows [first, first + ROWS) of a panel and NB blocks of tokens -> sums (NB, 16 rows, 16 tokens).
template <int bits, int ROWS, int NB>
inline void blocks_of_tokens(const Matrix& m, const Quantized& x, int panel, int first, int block,
                             std::int32_t* sums) {
  constexpr int planes = 8 / bits, unit_bytes = planes * kPanel * kPiece, steps = planes * 16;
  alignas(64) std::uint8_t ring[2 * unit_bytes];
  const int n_planes = x.stride / kPiece, n_units = m.pieces();
  const std::uint8_t* data = m.data + m.panel_bytes() * panel;
  const std::size_t block_bytes = std::size_t(kBlock) * x.stride;
  const std::int8_t* columns = x.lanes + block * block_bytes;
  __m512i sum[ROWS][NB];
  for (int r = 0; r < ROWS; ++r)
    for (int b = 0; b < NB; ++b) sum[r][b] = _mm512_setzero_si512();
  for (int r = 0; r < ROWS; ++r) decode_to<bits>(ring, m, data, first + r, panel);
  for (int u = 0; u < n_units; ++u) {
    const std::uint8_t* now = ring + (u & 1) * unit_bytes + first * kPiece;
    std::uint8_t* later = ring + (~u & 1) * unit_bytes;
    const bool more = u + 1 < n_units;
    const std::uint8_t* next = data + std::size_t(u + 1) * kPanel * kPiece;
    for (int j = 0; j < planes && u * planes + j < n_planes; ++j) {
      for (int i = 0; i < 16; ++i) {  // four columns of the plane
        const int step = j * 16 + i;
        if (more && step % (steps / ROWS) == 0) decode_to<bits>(later, m, next, first + step / (steps / ROWS), panel);
        __m512i v[NB];
#pragma GCC unroll 3
        for (int b = 0; b < NB; ++b) v[b] = _mm512_load_si512(columns + b * block_bytes);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
          std::int32_t four;
          __builtin_memcpy(&four, now + r * kPiece + 4 * i, 4);
          const __m512i w = _mm512_set1_epi32(four);
#pragma GCC unroll 3
          for (int b = 0; b < NB; ++b) sum[r][b] = _mm512_dpbusd_epi32(sum[r][b], w, v[b]);
        }
        columns += kPiece;
      }
      now += kPanel * kPiece;
    }
  }
  for (int b = 0; b < NB; ++b)
    for (int r = 0; r < ROWS; ++r)
      _mm512_store_si512(sums + (b * kPanel + first + r) * kBlock, sum[r][b]);
}

template <int bits, int NB>
inline void many_tokens(const Matrix& m, const Quantized& x, int panel, int block, float* y, int y_stride) {
  alignas(64) std::int32_t sums[NB * kPanel * kBlock];
  if constexpr (NB == 1) {
    blocks_of_tokens<bits, 16, 1>(m, x, panel, 0, block, sums);
  } else {
    blocks_of_tokens<bits, 8, NB>(m, x, panel, 0, block, sums);
    blocks_of_tokens<bits, 8, NB>(m, x, panel, 8, block, sums);
  }
  const Finish finish(m, panel, kUnsigned);
  for (int b = 0; b < NB; ++b) {
    __m512i s[16];
    for (int r = 0; r < 16; ++r) s[r] = _mm512_load_si512(sums + (b * kPanel + r) * kBlock);
    transpose(s);
    const int token = (block + b) * kBlock, n = x.n_tokens - token < kBlock ? x.n_tokens - token : kBlock;
    for (int t = 0; t < n; ++t)
      finish(s[t], x, token + t, y + std::size_t(token + t) * y_stride + panel * kPanel);
  }
}

template <int bits>
void multiply_form(const Matrix& m, const Quantized& x, int from, int to, Activation a, float* y, int y_stride) {
  const int lanes = in_lanes(x.n_tokens), blocks = (lanes + kBlock - 1) / kBlock;
  for (int panel = from; panel < to; ++panel) {
    int block = 0;
    for (; blocks - block >= 3 && blocks - block != 4; block += 3)
      many_tokens<bits, 3>(m, x, panel, block, y, y_stride);
    for (; blocks - block >= 2; block += 2) many_tokens<bits, 2>(m, x, panel, block, y, y_stride);
    if (block < blocks) many_tokens<bits, 1>(m, x, panel, block, y, y_stride);
    some_tokens<bits>(m, x, panel, lanes, y, y_stride);
    activate(a, y + panel * kPanel, y_stride, x.n_tokens);
  }
}

void multiply(const Matrix& m, const Quantized& x, int from, int to, Activation a, float* y, int y_stride) {
  switch (m.bits) {
    case 8: return multiply_form<8>(m, x, from, to, a, y, y_stride);
    case 4: return multiply_form<4>(m, x, from, to, a, y, y_stride);
    case 2: return multiply_form<2>(m, x, from, to, a, y, y_stride);
    default: return multiply_form<1>(m, x, from, to, a, y, y_stride);
  }
}

constexpr Kernels kKernels = {"avx512-vnni", kUnsigned,      embed,  add_norm, quantize,
                              multiply,      multiply_float, attend, mean};

}  // namespace

const Kernels* avx512vnni_kernels() { return &kKernels; }

}  // namespace flyweight
