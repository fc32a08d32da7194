// Products with sparse matrices: numbers made by hand, the same as a dense matrix with zeros, every level like the scalar one.
#include <cmath>
#include <vector>

#include "engine/build.h"
#include "tests/kernel_cases.h"

using namespace cases;

namespace {

const Kernels* const kScalar = scalar_kernels();

struct SparseForm {
  const char* name;
  int bits, block;
  bool one_table;
};
constexpr SparseForm kSparse[] = {
    {"int8", 8, 1, false},   {"int8 in blocks", 8, 4, false},   {"4 bits", 4, 1, false}, {"4 bits in blocks", 4, 4, true},
    {"2 bits", 2, 1, true}, {"2 bits in blocks", 2, 4, false}, {"1 bit", 1, 1, false},  {"1 bit in blocks", 1, 4, false},
};

// Random survivors under a random mask; some rows are empty, some full. No slack behind the 64 bytes that may be read.
class SparseWeights {
 public:
  SparseWeights(const SparseForm& form, int rows, int columns, double keep) : form_(form) {
    matrix_.values = form.bits == 8 ? Values::int8 : Values::codes;
    matrix_.bits = form.bits;
    matrix_.rows = rows;
    matrix_.columns = columns;
    matrix_.block = form.block;
    const int padded = matrix_.panels() * kPanel, n_bits = round_up(columns, kPiece) / form.block;
    mask = Exact<std::uint8_t>(std::size_t(padded * n_bits / 8));
    starts = Exact<std::uint64_t>(std::size_t(padded) + 1);
    std::uint64_t n = 0;
    for (int r = 0; r < padded; ++r) {
      starts[r] = n;
      for (int i = 0; r < rows && i * form.block < columns; ++i) {
        if (r % 7 == 3 || (r % 7 != 5 && random_int(0, 999) >= int(1000 * keep))) continue;
        mask[std::size_t(r * n_bits + i) / 8] |= std::uint8_t(1 << i % 8);
        n += std::uint64_t(form.block);
      }
    }
    starts[padded] = n;
    data = Exact<std::uint8_t>((n * std::uint64_t(form.bits) + 7) / 8 + 64);
    for (std::size_t i = 0; i < data.size(); ++i) data[i] = std::uint8_t(random_bits());
    centres = Exact<std::uint8_t>(form.one_table ? 16 : std::size_t(16 * padded));
    for (std::size_t i = 0; i < centres.size(); i += 16)
      for (int c = 0; c < 16; ++c)
        centres[i + c] = c < 1 << form.bits ? std::uint8_t(random_int(-127, 127)) : centres[i + c % (1 << form.bits)];
    scales = Exact<float>(padded);
    bias = Exact<float>(padded);
    for (int r = 0; r < rows; ++r) scales[r] = 0.001f * (1.5f + random_float()), bias[r] = random_float();
  }

  // As the engine hands it to a level; to the scalar one, the specification, as it lies.
  const Matrix& for_level(const Kernels* level) {
    if (level != kScalar) return made(level);
    matrix_.data = data.get();
    matrix_.mask = mask.get();
    matrix_.starts = starts.get();
    matrix_.tables = centres.get();
    matrix_.table_stride = form_.one_table ? 0 : 16;
    matrix_.scales = scales.get();
    matrix_.bias = bias.get();
    return matrix_;
  }

  Exact<std::uint8_t> mask, data, centres;
  Exact<std::uint64_t> starts;
  Exact<float> scales, bias;

 private:
  const Matrix& made(const Kernels* level) {
    const std::size_t rows = std::size_t(matrix_.rows), held = std::size_t(1) << form_.bits;
    MatrixSource from;
    from.values = matrix_.values;
    from.integer = true;
    from.rows = matrix_.rows, from.columns = matrix_.columns;
    from.bits = matrix_.bits, from.block = matrix_.block;
    from.data = {data.get(), data.size()};
    from.mask = {mask.get(), mask.size()};
    from.scale = {scales.get(), rows};
    from.bias = {bias.get(), rows};
    if (form_.bits < 8) {
      table_ = Exact<std::int8_t>(form_.one_table ? held : rows * held);
      for (std::size_t i = 0; i < table_.size(); ++i) table_[i] = std::int8_t(centres[i / held * 16 + i % held]);
      from.table = {table_.get(), table_.size()};
    }
    made_ = make_linear({{"m", from}}, "m", from.rows, from.columns, *level);
    return made_.matrix;
  }

  SparseForm form_;
  Matrix matrix_;
  Exact<std::int8_t> table_;
  Linear made_;
};

template <class W>
Exact<float> multiplied(const Kernels* level, W& weights, const Exact<float>& x, int n, Activation a) {
  const Matrix& m = weights.for_level(level);
  Tokens tokens(n, m.columns);
  level->quantize(x.get(), m.columns, m.columns, tokens.view(), 0, n);
  const int stride = m.panels() * kPanel;
  Exact<float> y(std::size_t(n) * stride, -1.0f);
  level->multiply(m, tokens.view(), 0, m.panels(), a, y.get(), stride);
  return y;
}

// Outputs as int8 of all tokens: rows, or, packed for products, what a second matrix makes of them.
Exact<float> two_products(const Kernels* level, SparseWeights& weights, SparseWeights& next, const Exact<float>& x, int n) {
  const Matrix& m = weights.for_level(level);
  Tokens tokens(n, m.columns), between(n, m.rows);
  level->quantize(x.get(), m.columns, m.columns, tokens.view(), 0, n);
  const int stride = m.panels() * kPanel;
  Exact<float> room(std::size_t(n) * stride, -1.0f);
  Quantized out = between.view();
  out.inverse = 40.0f;
  for (int t = 0; t < n; ++t) out.scale[t] = 1.0f, out.sum[t] = 0;
  level->multiply_to_int8(m, tokens.view(), 0, m.panels(), Activation::gelu, room.get(), stride, out, 0);
  const Matrix& second = next.for_level(level);
  Exact<float> y(std::size_t(n) * second.panels() * kPanel);
  level->multiply(second, out, 0, second.panels(), Activation::none, y.get(), second.panels() * kPanel);
  return y;
}

Exact<float> random_tokens(int n, int columns) {
  Exact<float> x(std::size_t(n) * columns);
  fill_random(x);
  return x;
}

void expect_same(const Kernels* level, const Exact<float>& found, const Exact<float>& wanted, const char* what, int rows,
                 int columns, int n) {
  if (same(found.get(), wanted.get(), found.size())) return;
  check::fail(__FILE__, __LINE__, std::string(level->name) + " differs: sparse " + what + ", " + std::to_string(rows) + " x " +
                                      std::to_string(columns) + ", " + std::to_string(n) + " tokens");
}

void compare(SparseWeights& weights, const Exact<float>& x, int n_all, const std::vector<int>& counts, Activation a,
             const char* what) {
  const Exact<float> wanted = multiplied(kScalar, weights, x, n_all, a);
  const Matrix m = weights.for_level(kScalar);
  for (const Kernels* level : fast_levels())
    for (int n : counts) expect_same(level, multiplied(level, weights, x, n, a), wanted, what, m.rows, m.columns, n);
}

}  // namespace

TEST(sparse_products_give_the_numbers_made_by_hand) {
  SparseWeights weights({"int8", 8, 1, false}, 3, 70, 0.0);
  weights.mask.fill(0);
  const int n_bits = 128;
  weights.mask[0] = 0b1010, weights.mask[8] = 0b100;  // row 0: columns 1, 3, 66; row 1 empty; row 2: column 0
  weights.mask[2 * n_bits / 8] = 1;
  for (int r = 0; r <= kPanel; ++r) weights.starts[r] = r == 0 ? 0 : r <= 2 ? 3 : 4;
  weights.data = Exact<std::uint8_t>(4 + 64);
  weights.data[0] = 5, weights.data[1] = std::uint8_t(-7), weights.data[2] = 100, weights.data[3] = 127;
  for (int r = 0; r < 3; ++r) weights.scales[r] = 1.0f, weights.bias[r] = 0.5f;
  Exact<float> x(70);
  x[0] = -127, x[1] = 3, x[3] = 10, x[66] = 2, x[69] = 1;  // scale 1: q = x
  for (const Kernels* level : all_levels()) {
    const Exact<float> y = multiplied(level, weights, x, 1, Activation::none);
    CHECK_EQUAL(y[0], 5 * 3 - 7 * 10 + 100 * 2 + 0.5f);
    CHECK_EQUAL(y[1], 0.5f);
    CHECK_EQUAL(y[2], -127.0f * 127.0f + 0.5f);
    for (int r = 3; r < kPanel; ++r) CHECK_EQUAL(y[r], 0.0f);
  }
}

TEST(sparse_codes_are_one_stream_of_bits) {
  for (int bits : {4, 2, 1}) {
    SparseWeights weights({"codes", bits, 1, false}, 1, 130, 0.0);
    weights.mask.fill(0xff);
    weights.mask[16] = 0b11;  // columns 128, 129
    for (std::size_t i = 17; i < weights.mask.size(); ++i) weights.mask[i] = 0;
    for (int r = 1; r <= kPanel; ++r) weights.starts[r] = 130;
    weights.data = Exact<std::uint8_t>(std::size_t(130 * bits + 7) / 8 + 64);
    weights.data[129 * bits / 8] = std::uint8_t(1 << 129 * bits % 8);  // the last column has code 1
    for (int c = 0; c < 16; ++c) weights.centres[c] = c % (1 << bits) == 1 ? 50 : std::uint8_t(-3);
    weights.scales[0] = 1.0f, weights.bias[0] = 0.0f;
    for (const Kernels* level : all_levels())
      for (int k : {0, 63, 64, 127, 128, 129}) {
        Exact<float> x(130);
        x[k] = 127.0f;
        CHECK_EQUAL(multiplied(level, weights, x, 1, Activation::none)[0], 127.0f * (k == 129 ? 50.0f : -3.0f));
      }
  }
}

TEST(sparse_products_are_those_of_a_dense_matrix_with_zeros) {
  for (int block : {1, 4})
    for (double keep : {0.0, 0.1, 0.6, 1.0}) {
      const int rows = 37, columns = 202;
      SparseWeights sparse({"int8", 8, block, false}, rows, columns, keep);
      Weights dense({"int8", 8, 0, false}, rows, columns);
      const Matrix m = sparse.for_level(kScalar);
      dense.data.fill(0);
      const int n_bits = round_up(columns, kPiece) / block, n_pieces = round_up(columns, kPiece) / kPiece;
      for (int r = 0; r < rows; ++r) {
        dense.scales[r] = sparse.scales[r], dense.bias[r] = sparse.bias[r];
        std::size_t next = m.starts[r];
        for (int k = 0; k < round_up(columns, kPiece); ++k)
          if (sparse.mask[std::size_t(r * n_bits + k / block) / 8] >> k / block % 8 & 1)
            dense.data[((std::size_t(r / kPanel) * n_pieces + k / kPiece) * kPanel + r % kPanel) * kPiece + k % kPiece] =
                sparse.data[next++];
        CHECK_EQUAL(next, std::size_t(m.starts[r + 1]));
      }
      const Exact<float> x = random_tokens(19, columns);
      for (const Kernels* level : all_levels())
        expect_same(level, multiplied(level, sparse, x, 19, Activation::none),
                    multiplied(kScalar, dense, x, 19, Activation::none), "against dense", rows, columns, 19);
    }
}

TEST(every_level_multiplies_sparse_matrices_like_the_scalar_one) {
  std::vector<int> counts = {31, 32, 33, 47, 48, 64, 70};
  for (int n = 1; n <= 17; ++n) counts.push_back(n);
  for (const SparseForm& form : kSparse)
    for (int columns : {1, 63, 64, 65, 200, 384})
      for (double keep : {0.08, 0.5}) {
        SparseWeights weights(form, 37, columns, keep);
        compare(weights, random_tokens(70, columns), 70, counts, Activation::none, form.name);
      }
}

TEST(every_level_multiplies_large_sparse_matrices_like_the_scalar_one) {
  for (const SparseForm& form : kSparse)
    for (int columns : {768, 3072, kMaxSparseColumns, kMaxSparseColumns + 64}) {
      SparseWeights weights(form, 17, columns, 0.2);
      compare(weights, random_tokens(35, columns), 35, {1, 2, 4, 8, 16, 20, 33, 35}, Activation::gelu, form.name);
    }
}

TEST(every_level_gives_int8_outputs_of_sparse_matrices_like_the_scalar_one) {
  for (const SparseForm& form : kSparse) {
    SparseWeights weights(form, 130, 100, 0.4), next(form, 20, 130, 0.4);
    const Exact<float> x = random_tokens(37, 100);
    const Exact<float> wanted = two_products(kScalar, weights, next, x, 37);
    for (const Kernels* level : fast_levels())
      for (int n : {1, 4, 11, 12, 16, 21, 32, 37})
        expect_same(level, two_products(level, weights, next, x, n), wanted, form.name, 130, 100, n);
  }
}

// All survivors and activations +-127: sums up to 4096 * 255 * 127 < 2^31.
TEST(extremes_of_sparse_matrices_do_not_overflow) {
  for (int block : {1, 4})
    for (int sign : {1, -1}) {
      SparseWeights weights({"int8", 8, block, false}, 16, kMaxSparseColumns, 1.0);
      for (std::size_t i = 0; i < weights.data.size(); ++i) weights.data[i] = std::uint8_t(i % 2 ? 127 : sign * 127);
      compare(weights, Exact<float>(std::size_t(17) * kMaxSparseColumns, float(sign)), 17, {1, 3, 16, 17}, Activation::none,
              "extremes");
    }
}
