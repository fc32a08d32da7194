// What every instruction-set level offers: one table of functions, one file a level.
//
// The scalar level is the specification; all others give the same bits. Three rules make that hold:
//   integer sums are exact (int32), so any order of k or tokens is allowed;
//   element-wise float arithmetic is IEEE (fma, division, square root; no approximations, -ffp-contract=off);
//   float reductions have one order: 16 partial sums by index mod 16 and one tree (sums over features), or one
//   ascending chain (softmax, attention, float32 matrices, mean over tokens).
#pragma once

#include <cstddef>
#include <cstdint>

namespace flyweight {

constexpr int kPanel = 16;   // output rows of a weight panel
constexpr int kPiece = 64;   // bytes of one row that lie together in a panel; columns are padded to 64 in activations
constexpr int kBlock = 16;   // tokens of a block
constexpr int kLanes = 16;   // floats of a vector at every level; partial sums of a reduction

// sum_k |u8 activation| |int8 weight| <= 255 * 128 * 65536 = 2,139,095,040 < 2^31; float sums of q stay below 2^24.
constexpr int kMaxColumns = 65536;

// A sparse matrix of more columns is made dense at load: 16 rows decoded (64 KiB) fit the stack of any thread, musl's 128 KiB
// too, and 64 times the number of a group of four fits 16 bits.
constexpr int kMaxSparseColumns = 4096;

constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }

enum class Values : std::uint8_t { float32, int8, codes };
enum class Activation : std::uint8_t { none, relu, gelu, gelu_tanh, tanh };

// A matrix that is multiplied, W (rows, columns), in panels of 16 rows; P = ceil(rows / 16).
//   float32  data float (P, columns, 16)
//   int8     data int8 (P, ceil(columns / 64), 16, 64)
//   codes    data uint8 (P, ceil(columns / (512 / bits)), 16, 64): plane j of byte i, its bits [j bits, (j + 1) bits),
//            is the code of column 64 j + i of that piece
// Sparse (block 1 or 4): data holds the survivors alone, row after row: int8, or the bits of their codes one after another,
// lowest first; 64 bytes behind them may be read. mask uint8 (16 P, ceil(columns / 64), 8 / block): a bit says whether
// `block` columns survive, columns filled up to 64.
// scales and bias have 16 P entries (0 beyond `rows`). tables: 16 bytes a row (2^bits int8 centres, repeated); table_stride is
// 16, or 0 where all rows share one.
struct Matrix {
  Values values = Values::float32;
  int bits = 32;  // of a weight: 32, 8, or 4, 2, 1 for codes
  int rows = 0, columns = 0;
  const std::uint8_t* data = nullptr;
  const std::uint8_t* tables = nullptr;
  int table_stride = 0;
  const float* scales = nullptr;         // null: outputs are the exact sums, the bits of int32 in place of floats
  const float* bias = nullptr;
  const std::int32_t* sums = nullptr;  // what Kernels::row_sums said, 16 P entries; null where a level needs none
  int shift = 0;                       // int8: W = (q - shift) scale
  int block = 0;                       // columns of a bit of the mask, 1 or 4; 0: dense
  const std::uint8_t* mask = nullptr;
  const std::uint64_t* starts = nullptr;  // survivors before each row, 16 P + 1 entries
  const std::uint16_t* groups = nullptr;  // block 4: of each four survivors, 64 times which four columns; 16 more behind

  int panels() const { return round_up(rows, kPanel) / kPanel; }
  int pieces() const {  // 64-byte pieces of one row
    const int held = values == Values::codes ? 512 / bits : kPiece;
    return round_up(columns, held) / held;
  }
  std::size_t panel_bytes() const {
    if (values == Values::float32) return std::size_t(columns) * kPanel * sizeof(float);
    return std::size_t(pieces()) * kPanel * kPiece;
  }
};

// A matrix whose rows are looked up, row by row as in the file.
//   float32  values float (rows, columns)
//   int8     values int8 (rows, columns), W = (q - shift) scale[r * scale_stride]
//   codes    `bits` a code, lowest bit first, rows begin on byte borders; table float (1 or rows, 2^bits), scaled
struct Embedding {
  Values values = Values::float32;
  int bits = 32;
  int rows = 0, columns = 0;
  std::size_t row_bytes = 0;
  const std::uint8_t* data = nullptr;
  const float* scales = nullptr;
  int scale_stride = 0, shift = 0;
  const float* table = nullptr;
  std::size_t table_stride = 0;  // 2^bits, or 0 where all rows share one
};

// What each token looks up in one table.
struct Rows {
  const Embedding* table = nullptr;
  const std::int32_t* ids = nullptr;
};

struct Norm {
  const float *weight = nullptr, *bias = nullptr;  // `columns` entries, padded to 16
  int columns = 0;
  float eps = 0;
};

// int8 activations of n_tokens tokens; q = round(x * 127 / absmax), x ~ q * scale. A level may store q + 128.
// Static: q = round(x * inverse) clamped to +-127 with one step for all tokens, which Matrix::scales hold already;
// scale is 1 then. In both, what is not finite makes a token's scale NaN.
//   rows   (n_tokens, stride) token after token; columns beyond the matrix hold q = 0, stride is a multiple of 64
//   lanes  (blocks, stride / 4, 16, 4): four columns of 16 tokens together; a level may leave it unused
//   sum    sum of q over the columns of a token: pays for weights that are stored with an offset
struct Quantized {
  std::int8_t* rows = nullptr;
  std::int8_t* lanes = nullptr;
  float* scale = nullptr;
  std::int32_t* sum = nullptr;
  int n_tokens = 0, stride = 0;
  float inverse = 0.0f;  // static: 1 / step; 0: a scale a token
};

// Self-attention of one message. qkv (n, 3, heads, size) with token stride `qkv_stride`; out (n, heads, size).
// bias: per head a row of 2 * reach - 1 floats, the entry for query i and key j at reach - 1 + i - j; or null.
struct Attention {
  const float* qkv = nullptr;
  float* out = nullptr;
  int qkv_stride = 0, out_stride = 0;
  int n_tokens = 0, heads = 0, size = 0;
  const float* bias = nullptr;
  int reach = 0;
  float* scratch = nullptr;  // attention_scratch(n_tokens, size) floats, 64-byte aligned
};
constexpr std::size_t attention_scratch(int n_tokens, int size) {
  return std::size_t(kLanes) * (std::size_t(n_tokens) + std::size_t(size));
}

// The same with integer products. q, k, v (n, heads, size) as stored in Quantized::rows, token stride `stride`:
//   score = float(q . k) * factor (+ bias), e = round(255 exp(score - max)), out = float(sum of e v) * (v_scale / sum of e)
struct IntegerAttention {
  const std::int8_t *q = nullptr, *k = nullptr, *v = nullptr;
  float* out = nullptr;
  int stride = 0, out_stride = 0;
  int n_tokens = 0, heads = 0, size = 0;
  float factor = 0.0f, v_scale = 0.0f;
  const float* bias = nullptr;
  int reach = 0;
  float* scratch = nullptr;  // integer_attention_scratch(n_tokens, size) floats, 64-byte aligned
};
// (n, 16) scores; bytes: (size, 16) queries, (n, 16) exponentials, (n, size) values, columns of 16 and tokens of 4.
constexpr std::size_t integer_attention_scratch(int n_tokens, int size) {
  const std::size_t n = std::size_t(round_up(n_tokens, 4)), columns = std::size_t(round_up(size, kLanes));
  return kLanes * n + kLanes * columns / 4 + kLanes * n / 4 + n * columns / 4 + kLanes;
}
constexpr int kMaxAttended = 65536;  // tokens: sums of e v <= 65536 * 255 * 127 < 2^31, sums of e < 2^24, exact floats

// One token of one direction of an LSTM. All vectors have a part of `units` floats for each of the gates i, f, g, o in turn,
// but for c, h, out and q, which have one part; whole vectors of 16 are read and, but of out, written:
//   z = fma(float(sums), scales, input) of int8 weights, input + products of float ones, input where both are null
//   c = fma(sigmoid(f), c, sigmoid(i) tanh(g)), h = out = sigmoid(o) tanh(c); sigmoid(x) = 1 / (1 + exp(-x))
//   q = round(127 h), as activations are stored
// A z that is not finite makes h NaN, and c, hence all later tokens.
struct Cells {
  const float* input = nullptr;  // the token's share of the gates, bias within
  const std::int32_t* sums = nullptr;  // what the token before it gives
  const float *scales = nullptr, *products = nullptr;
  float *c = nullptr, *h = nullptr, *out = nullptr;
  std::int8_t* q = nullptr;
  int units = 0;
};

// Int8 weights laid out for one token at a time: W (rows, columns) = weights - shift. A vector holds four columns of the 16
// rows of a panel, so that no sum crosses lanes.
//   weights  int8 (P, ceil(columns / 4), 16, 4), 0 beyond the last row and column
//   start    16 P entries: minus 128 times the sum of the row's weights where activations are stored as q + 128, else 0
struct RowLanes {
  const std::int8_t* weights = nullptr;
  const std::int32_t* start = nullptr;
  int rows = 0, columns = 0, shift = 0;

  int panels() const { return round_up(rows, kPanel) / kPanel; }
  int groups() const { return round_up(columns, 4) / 4; }
};

struct IntegerKernels;  // integer_only.h

struct Kernels {
  const char* name;

  // x[t] = norm(sum over n_tables, in their order, of table[ids[t]])
  void (*embed)(const Rows*, int n_tables, int n_tokens, const Norm&, float* x, int stride);
  // x[t] = norm(x[t] + y[t]); y_stride 0 adds one vector to all tokens
  void (*add_norm)(float* x, int stride, const float* y, int y_stride, int n_tokens, const Norm&);
  // tokens [from, to) of x (n_tokens, stride) -> out; `from` a multiple of 16, `to` one too or the last token
  void (*quantize)(const float* x, int stride, int columns, const Quantized& out, int from, int to);
  // y[t, r] = activation(fma(float(sum), scale_x[t] * scale_w[r], bias[r])) for the rows of panels [from, to)
  void (*multiply)(const Matrix&, const Quantized&, int from, int to, Activation, float* y, int y_stride);
  // The same outputs as int8 in steps of 1 / out.inverse: row r in column r - 16 `first` of `out`. With out.lanes: as
  // `quantize` leaves them for products, but for scale and sum; without: rows alone. y is room for floats.
  void (*multiply_to_int8)(const Matrix&, const Quantized&, int from, int to, Activation, float* y, int y_stride,
                           const Quantized& out, int first);
  // y[t, r] = activation(chain over k of fma(x[t, k], W[r, k]) + bias[r])
  void (*multiply_float)(const Matrix&, const float* x, int x_stride, int n_tokens, int from, int to, Activation,
                         float* y, int y_stride);
  // heads [from, to) of one message
  void (*attend)(const Attention&, int from, int to);
  void (*attend_integers)(const IntegerAttention&, int from, int to);
  // out[f] = (sum over tokens of x[t, f]) / n_tokens
  void (*mean)(const float* x, int stride, int n_tokens, int columns, float* out);
  // out[f] = the largest x[t, f] of all tokens; NaN where one is not finite
  void (*most)(const float* x, int stride, int n_tokens, int columns, float* out);
  void (*lstm_cells)(const Cells&);
  // sums[r] = sum over k of q[k] W[r, k], of one token as `quantize` leaves it in rows; 16 P entries. up: the first rows
  // first; in turn with the last ones first, a matrix that does not fit a cache is found there in part.
  void (*multiply_one)(const RowLanes&, const std::int8_t* q, bool up, std::int32_t* sums);
  // The integer weights of each row added up, padding included: what a level needs that multiplies activations + 128;
  // null elsewhere.
  void (*row_sums)(const Matrix&, std::int32_t* sums);
  // Whether sparse matrices are multiplied as they are, those in blocks of four from Matrix::groups. Elsewhere decoding
  // costs more than the zeros do, 3 to 12 times a dense product, and they are made dense at load.
  bool sparse;
  const IntegerKernels* integers;
};

// The levels, slowest first; null where the compiler or the architecture has none.
const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avxvnni_kernels();
const Kernels* avx512vnni_kernels();
const Kernels* amx_kernels();
const Kernels* neon_kernels();

}  // namespace flyweight
