// Constants of an integer-only model, made once at load of the floats that the file holds. For engine.cc, forward.h and
// integer_only.cc alone.
#pragma once

#include "engine/engine.h"
#include "kernels/integer_only.h"

namespace flyweight {

// Of a matrix: its outputs' ratios and bias, and what makes its int8 input of steps of 2^-10.
struct IntegerLinear {
  Buffer<std::int32_t> multipliers, bias;
  std::int32_t shift = 31;
  Ratio input;
  Ratios ratios() const { return {multipliers.get(), bias.get(), shift}; }
};

struct OwnedNorm {
  Buffer<std::int32_t> weight;
  Buffer<std::int64_t> bias;
  int columns = 0;
  IntegerNorm view() const { return {weight.get(), bias.get(), columns}; }
};

struct OwnedRows {
  Buffer<std::int32_t> multipliers;
  IntegerRows rows;
};

struct Engine::IntegerOnly {
  struct Block {
    IntegerLinear qkv, out, up, down;
    OwnedNorm attention_norm, ffn_norm;
    Ratio scores;
    std::int64_t average = 0;  // as in IntegerScores
    Buffer<std::int32_t> relative_bias;
  };
  OwnedRows words, positions;
  OwnedNorm norm;
  IntegerLinear projection, intent, tags;
  std::vector<Block> blocks;

  // Of an engine whose other parts are made. Errors: std::invalid_argument where not all is static int8.
  IntegerOnly(const Engine&, const Matrices&);
};

}  // namespace flyweight
