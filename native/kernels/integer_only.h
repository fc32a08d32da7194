// What every level offers for models that compute with integers alone; src/flyweight/integer_only.py has the formulas, and
// integer_math.py the operations to the bit. One table of functions, written once over plain integers (integer_only.inc).
#pragma once

#include "kernels/kernels.h"

namespace flyweight {

constexpr int kValueLimit = 65535;   // of what lies between matrices, in steps of 2^-10
constexpr int kSumLimit = 1 << 24;   // of a matrix's outputs and its bias, before they are added
constexpr int kPartBits = 8;         // queries, keys and values are finer by that before they are rounded to int8
constexpr int kMaxNormed = 4096;     // columns of a norm: a normed value stays below 2^21 steps of 2^-14

// q * ratio to the nearest: (q multiplier + 2^(shift - 1)) >> shift; shift 1 to 61.
struct Ratio {
  std::int32_t multiplier = 0, shift = 31;
};

// The same for each output of a matrix, with one shift, and its bias: 16 entries a panel.
struct Ratios {
  const std::int32_t *multipliers = nullptr, *bias = nullptr;
  std::int32_t shift = 31;
};

// A table whose rows are looked up: q (rows, columns), row r times ratio r.
struct IntegerRows {
  const std::int8_t* q = nullptr;
  const std::int32_t* multipliers = nullptr;
  std::int32_t down = 31;  // the ratios' shift
  int columns = 0, shift = 0;
};

struct IntegerNorm {
  const std::int32_t* weight = nullptr;  // steps of 2^-14
  const std::int64_t* bias = nullptr;    // steps of 2^-28
  int columns = 0;
};

// What turns sums of queries by keys into the int8 input of the next matrix; `shape` is IntegerAttention but for its
// floats, and out: room for the sums of values, int32 (n, out_stride). bias: as there, steps of 2^-10, or null.
struct IntegerScores {
  IntegerAttention shape;
  Ratio ratio;
  std::int64_t average = 0;  // 2^30 times the step of values / that of the result
  const std::int32_t* bias = nullptr;
};

// x, sums and outputs are int32, token after token. Tokens [from, to): `from` a multiple of 16, `to` one too or the last.
struct IntegerKernels {
  // sums[t, r] of panels [from, to)
  void (*multiply)(const Matrix&, const Quantized&, int from, int to, std::int32_t* sums, int stride);
  void (*embed)(const IntegerRows& words, const IntegerRows& positions, const std::int32_t* ids,
                const std::int32_t* places, int n_tokens, const IntegerNorm&, std::int32_t* x, int stride);
  // x[t] = norm(x[t] + outputs of sums[t]); sums null: + the bias alone
  void (*add_norm)(std::int32_t* x, int stride, const std::int32_t* sums, int sums_stride, const Ratios&, int n_tokens,
                   const IntegerNorm&);
  // x[t] = outputs of sums[t]
  void (*outputs)(const std::int32_t* sums, int sums_stride, const Ratios&, int columns, int n_tokens, std::int32_t* x,
                  int stride);
  void (*quantize)(const std::int32_t* x, int stride, int columns, Ratio, const Quantized& out, int from, int to);
  // columns [first, first + columns) of sums -> rows of `out`, which are read by attention alone
  void (*part)(const std::int32_t* sums, int stride, const Ratios&, int first, int columns, const Quantized& out, int from,
               int to);
  // out = int8 of gelu (or relu) of the outputs of sums
  void (*activate)(const std::int32_t* sums, int stride, const Ratios&, int columns, bool relu, Ratio,
                   const Quantized& out, int from, int to);
  // heads [from, to) of one message, whose first token is `token` -> rows of `out`, which is whole after `pack`
  void (*attend)(const IntegerScores&, int from, int to, const Quantized& out, int token);
  void (*pack)(int columns, const Quantized& out, int from, int to);
};

}  // namespace flyweight
