// AMX-int8 (Sapphire Rapids and later): tdpbsud multiplies a tile of 16 rows x 64 int8 weights by a tile of 64 columns
// x 16 tokens of activations + 128. Weights are the first tile, so that 64 bytes of a row enter as they lie, or as they
// were decoded; `Quantized::lanes` are the second. The last few tokens go to the AVX-512 level, whose data is the same.
//
// The real instructions below are untested: no CPU with tiles has run them yet. With FLYWEIGHT_EMULATE_AMX the same file is built over an array of bytes instead of tiles, and so the tests run all the
// rest of it, bit for bit, on any CPU with AVX-512.
//
// Tiles sleep after 250 to 300 ns without a product, and waking them costs as much again: the next unit of weights is
// decoded a few rows at a time, between the products of the one before.
#include <immintrin.h>

#include "kernels/integer_only.h"
#include "kernels/kernels.h"

namespace flyweight {
#ifdef FLYWEIGHT_EMULATE_AMX
const Kernels* amx_emulated_kernels();
#endif
namespace {

#include "kernels/avx512.inc"
#include "kernels/floats.inc"
#include "kernels/products.inc"

constexpr int kAhead = 4096;                 // bytes that weights are prefetched ahead of their use
constexpr int kTile = kPanel * kPiece;       // bytes of a tile: a plane of a panel, 64 columns of a block
constexpr int kFewest = 5;                   // tokens from which a block is computed with tiles
constexpr int kGroup = 4;                    // panels whose sums are held together

// Tiles 0..3 hold sums, 4.. the activations of up to 3 blocks, 7 weights (or 6 and 7 in turn).
constexpr int columns_tile(int block) { return 4 + block; }
constexpr int weights_tile(int n_blocks, int panel) { return n_blocks < 3 ? 6 + panel % 2 : 7; }

#ifdef FLYWEIGHT_EMULATE_AMX

struct Tiles {
  alignas(64) std::uint8_t bytes[8][16][64];
  bool configured;
};
thread_local Tiles tiles;

inline void require(bool what) {
  if (!what) __builtin_trap();
}
inline void configure_tiles() {
  require(!tiles.configured);
  tiles.configured = true;
  __builtin_memset(tiles.bytes, 0x55, sizeof tiles.bytes);
}
inline void release_tiles() { tiles.configured = false; }
template <int tile>
inline void clear_tile() {
  require(tiles.configured);
  __builtin_memset(tiles.bytes[tile], 0, kTile);
}
template <int tile>
inline void load_tile(const void* from) {
  require(tiles.configured);
  __builtin_memcpy(tiles.bytes[tile], from, kTile);
}
template <int tile>
inline void store_tile(void* to) {
  require(tiles.configured);
  __builtin_memcpy(to, tiles.bytes[tile], kTile);
}
// sum[m][n] += sum over k < 16 and i < 4 of a[m][4 k + i] b[k][4 n + i], a signed and b unsigned bytes
template <int sum, int a, int b>
inline void multiply_tiles() {
  require(tiles.configured);
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) {
      std::int32_t total;
      __builtin_memcpy(&total, &tiles.bytes[sum][m][4 * n], 4);
      for (int k = 0; k < 64; ++k)
        total += std::int8_t(tiles.bytes[a][m][k]) * int(tiles.bytes[b][k / 4][4 * n + k % 4]);
      __builtin_memcpy(&tiles.bytes[sum][m][4 * n], &total, 4);
    }
}

#else

// Own assembly: gcc 12's intrinsics tell the compiler of no memory that tiles read or write.

struct alignas(64) Configuration {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(Configuration) == 64);

// On every call: other libraries in the thread may have set theirs.
inline void configure_tiles() {
  const Configuration configuration;
  __asm__ volatile("ldtilecfg %0" : : "m"(configuration) : "memory");
}
inline void release_tiles() { __asm__ volatile("tilerelease" : : : "memory"); }
template <int tile>
inline void clear_tile() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(tile) : "memory");
}
template <int tile>
inline void load_tile(const void* from) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(std::size_t(kPiece)), "i"(tile) : "memory");
}
template <int tile>
inline void store_tile(void* to) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(std::size_t(kPiece)), "i"(tile) : "memory");
}
template <int sum, int a, int b>
inline void multiply_tiles() {  // a signed and b unsigned bytes
  __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(b) : "memory");
}

#endif

void quantize(const float* x, int stride, int columns, const Quantized& out, int from, int to) {
  quantize_rows(x, stride, columns, out, from, to);
  const int packed = out.lanes ? in_blocks(out.n_tokens, kFewest) : 0;
  for (int t = from; t < to && t < packed; t += kBlock) pack_lanes(out, t / kBlock);
}

// Activations: 64 columns of NB blocks.
template <int NB>
inline void load_columns(const std::int8_t* columns, std::size_t block_bytes) {
  load_tile<columns_tile(0)>(columns);
  if constexpr (NB > 1) load_tile<columns_tile(1)>(columns + block_bytes);
  if constexpr (NB > 2) load_tile<columns_tile(2)>(columns + 2 * block_bytes);
}

// The sums of panel p of a group += one tile of weights times the loaded activations.
template <int NB, int p>
inline void add_products(const std::uint8_t* weights) {
  constexpr int a = weights_tile(NB, p);
  load_tile<a>(weights);
  multiply_tiles<p * NB, a, columns_tile(0)>();
  if constexpr (NB > 1) multiply_tiles<p * NB + 1, a, columns_tile(1)>();
  if constexpr (NB > 2) multiply_tiles<p * NB + 2, a, columns_tile(2)>();
}
template <int NP, int NB>
inline void add_products(int panel, const std::uint8_t* weights) {
  static_assert(NP * NB <= 4);
  if (panel == 0) return add_products<NB, 0>(weights);
  if constexpr (NP > 1)
    if (panel == 1) return add_products<NB, 1>(weights);
  if constexpr (NP > 2)
    if (panel == 2) return add_products<NB, 2>(weights);
  if constexpr (NP > 3) return add_products<NB, 3>(weights);
}

inline void prefetch_rows(const std::uint8_t* tile) {
  for (int r = 0; r < kPanel; ++r) _mm_prefetch(reinterpret_cast<const char*>(tile + r * kPiece), _MM_HINT_T0);
}

// Sums of NP panels and NB blocks in tiles 0..3, int8 weights from where they lie.
template <int NP, int NB>
inline void multiply_int8(const Matrix& m, int n_planes, const int* panels, const std::int8_t* columns,
                          std::size_t block_bytes) {
  for (int plane = 0; plane < n_planes; ++plane) {
    load_columns<NB>(columns + std::size_t(plane) * kTile, block_bytes);
    for (int p = 0; p < NP; ++p) {
      const std::uint8_t* weights = m.data + m.panel_bytes() * panels[p] + std::size_t(plane) * kTile;
      prefetch_rows(weights + kAhead);
      add_products<NP, NB>(p, weights);
    }
  }
}

// The same from codes. Units are taken in turn from the NP panels; while one is multiplied, the next is decoded to the
// other half of the ring: small, so that it stays in the first cache.
template <int bits, int NP, int NB>
inline void multiply_codes(const Matrix& m, int n_planes, const int* panels, const std::int8_t* columns,
                           std::size_t block_bytes) {
  constexpr int planes = 8 / bits, unit_bytes = planes * kTile;
  alignas(64) std::uint8_t ring[2 * unit_bytes];
  const auto unit_of = [&](int u, int p) { return m.data + m.panel_bytes() * panels[p] + std::size_t(u) * kTile; };
  std::uint8_t *now = ring, *later = ring + unit_bytes;
  for (int r = 0; r < kPanel; ++r) decode_to<bits, kAhead>(now, m, unit_of(0, 0), r, panels[0]);
  for (int u = 0; u * planes < n_planes; ++u) {
    const int count = n_planes - u * planes < planes ? n_planes - u * planes : planes;
    for (int p = 0; p < NP; ++p) {
      const int next_p = p + 1 < NP ? p + 1 : 0, next_u = next_p ? u : u + 1;
      const bool more = next_u * planes < n_planes;
      int row = 0;
      for (int j = 0; j < count; ++j) {
        if (more)
          for (; row < kPanel * (j + 1) / count; ++row)
            decode_to<bits, kAhead>(later, m, unit_of(next_u, next_p), row, panels[next_p]);
        load_columns<NB>(columns + std::size_t(u * planes + j) * kTile, block_bytes);
        add_products<NP, NB>(p, now + j * kTile);
      }
      std::uint8_t* done = now;
      now = later;
      later = done;
    }
  }
}

// Tile `tile`: sums (16 rows, 16 tokens) of a panel and a block -> outputs before the activation.
template <int tile>
inline void finish_tile(const Matrix& m, const Quantized& x, int panel, int block, float* y, int y_stride) {
  alignas(64) std::int32_t sums[kPanel * kBlock];
  store_tile<tile>(sums);
  __m512i s[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) s[r] = _mm512_load_si512(sums + r * kBlock);
  transpose(s);
  const Finish finish(m, panel);
  const int token = block * kBlock, n = x.n_tokens - token < kBlock ? x.n_tokens - token : kBlock;
  for (int t = 0; t < n; ++t) finish(s[t], x, token + t, y + std::size_t(token + t) * y_stride + panel * kPanel);
}

// Tiles lie as (panel, block).
template <int NP, int NB, int tile = 0>
inline void finish_tiles(const Matrix& m, const Quantized& x, const int* panels, int block, float* y, int y_stride) {
  finish_tile<tile>(m, x, panels[tile / NB], block + tile % NB, y, y_stride);
  if constexpr (tile + 1 < NP * NB) finish_tiles<NP, NB, tile + 1>(m, x, panels, block, y, y_stride);
}

template <int bits, int NP, int NB>
void multiply_group(const Matrix& m, const Quantized& x, const int* panels, int block, float* y, int y_stride) {
  const int n_planes = x.stride / kPiece;
  const std::size_t block_bytes = std::size_t(kBlock) * x.stride;
  const std::int8_t* columns = x.lanes + block * block_bytes;
  clear_tile<0>();
  clear_tile<1>();
  clear_tile<2>();
  clear_tile<3>();
  if constexpr (bits == 8) {
    multiply_int8<NP, NB>(m, n_planes, panels, columns, block_bytes);
  } else {
    multiply_codes<bits, NP, NB>(m, n_planes, panels, columns, block_bytes);
  }
  finish_tiles<NP, NB>(m, x, panels, block, y, y_stride);
}

// 1 to 4 panels, one block: all of them at once; more blocks share decoded weights instead, two or three at a time.
template <int bits>
inline void multiply_panels(const Matrix& m, const Quantized& x, const int* panels, int n_panels, int n_blocks,
                            float* y, int y_stride) {
  for (int block = 0; block < n_blocks;) {
    const int left = n_blocks - block;
    int p = 0;
    if (left == 1) {
      if (n_panels == kGroup) {
        multiply_group<bits, 4, 1>(m, x, panels, block, y, y_stride);
      } else {
        for (; p + 2 <= n_panels; p += 2) multiply_group<bits, 2, 1>(m, x, panels + p, block, y, y_stride);
        if (p < n_panels) multiply_group<bits, 1, 1>(m, x, panels + p, block, y, y_stride);
      }
      block += 1;
    } else if (left == 2 || left == 4) {
      for (; p + 2 <= n_panels; p += 2) multiply_group<bits, 2, 2>(m, x, panels + p, block, y, y_stride);
      if (p < n_panels) multiply_group<bits, 1, 2>(m, x, panels + p, block, y, y_stride);
      block += 2;
    } else {
      for (; p < n_panels; ++p) multiply_group<bits, 1, 3>(m, x, panels + p, block, y, y_stride);
      block += 3;
    }
  }
}

template <int bits>
void multiply_form(const Matrix& m, const Quantized& x, int from, int to, int n_tokens, float* y, int y_stride) {
  const int n_blocks = (n_tokens + kBlock - 1) / kBlock, quarter = (to - from) / kGroup;
  configure_tiles();
  for (int i = 0; i < quarter; ++i) {  // four far-apart streams of weights: memory gives more than to one
    const int panels[kGroup] = {from + i, from + quarter + i, from + 2 * quarter + i, from + 3 * quarter + i};
    multiply_panels<bits>(m, x, panels, kGroup, n_blocks, y, y_stride);
  }
  const int first = from + quarter * kGroup, rest[kGroup] = {first, first + 1, first + 2, first + 3};
  multiply_panels<bits>(m, x, rest, to - first, n_blocks, y, y_stride);
  release_tiles();
}

void multiply(const Matrix& m, const Quantized& x, int from, int to, Activation a, float* y, int y_stride) {
  const int n = in_blocks(x.n_tokens, kFewest);
  if (n > 0) {
    with_bits(m.bits, [&](auto bits) { multiply_form<bits.value>(m, x, from, to, n, y, y_stride); });
    for (int panel = from; panel < to; ++panel) activate(a, y + panel * kPanel, y_stride, n);
  }
  if (n == x.n_tokens) return;
  Quantized few = x;  // fewer than that level packs: it takes them from `rows`
  few.rows += std::size_t(n) * x.stride;
  few.scale += n;
  few.sum += n;
  few.n_tokens -= n;
  avx512vnni_kernels()->multiply(m, few, from, to, a, y + std::size_t(n) * y_stride, y_stride);
}

void row_sums(const Matrix& m, std::int32_t* sums) { avx512vnni_kernels()->row_sums(m, sums); }

#ifdef FLYWEIGHT_EMULATE_AMX
constexpr const char* kName = "amx-int8 (emulated tiles)";
#else
constexpr const char* kName = "amx-int8";
#endif

#include "kernels/avx512_attention.inc"
#include "kernels/integers.inc"

void multiply_to_int8(const Matrix& m, const Quantized& x, int from, int to, Activation a, float* y, int y_stride,
                      const Quantized& out, int first) {
  outputs_to_int8(m, x, from, to, to - from, a, y, y_stride, out, first, in_blocks(x.n_tokens, kFewest));
}

#include "kernels/lstm.inc"

inline void pack_tokens(const Quantized& out, int from, int to) {
  const int packed = in_blocks(out.n_tokens, kFewest);
  for (int t = from; t < to && t < packed; t += kBlock) pack_lanes(out, t / kBlock);
}
#include "kernels/integer_only.inc"

constexpr Kernels kKernels = {kName, embed, add_norm, quantize, multiply, multiply_to_int8,
                              multiply_float, attend, attend_integers, mean, most, lstm_cells,
                              multiply_one, row_sums, false, &kIntegers};

}  // namespace

#ifdef FLYWEIGHT_EMULATE_AMX
const Kernels* amx_emulated_kernels() { return &kKernels; }
#else
const Kernels* amx_kernels() { return &kKernels; }
#endif

}  // namespace flyweight
