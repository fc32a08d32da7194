// Quantized matrix products: the scalar level against numbers made by hand, every other level against the scalar one.
#include "tests/kernel_cases.h"

#include <cmath>
#include <cstdio>
#include <limits>

using namespace cases;

namespace {

const Kernels* const kScalar = scalar_kernels();
constexpr Activation kActivations[] = {Activation::none, Activation::relu, Activation::gelu, Activation::gelu_tanh,
                                       Activation::tanh};

// y (n_tokens, 16 panels) of the first n tokens of x (at least n, columns), quantized by the same level.
Exact<float> multiplied(const Kernels* level, Weights& weights, const Exact<float>& x, int n, Activation a) {
  const Matrix& m = weights.for_level(level);
  Tokens tokens(n, m.columns);
  level->quantize(x.get(), m.columns, m.columns, tokens.view(), 0, n);
  const int stride = m.panels() * kPanel;
  Exact<float> y(std::size_t(n) * stride, -1.0f);
  level->multiply(m, tokens.view(), 0, m.panels(), a, y.get(), stride);
  return y;
}

// All levels give, for the first n tokens alone, what the scalar one gives for them among all tokens of x.
void compare(Weights& weights, const Exact<float>& x, int n_all, const std::vector<int>& counts, Activation a,
             const char* what) {
  const Exact<float> wanted = multiplied(kScalar, weights, x, n_all, a);
  const Matrix m = weights.for_level(kScalar);
  for (const Kernels* level : fast_levels())
    for (int n : counts) {
      const Exact<float> found = multiplied(level, weights, x, n, a);
      if (same(found.get(), wanted.get(), found.size())) continue;
      check::fail(__FILE__, __LINE__, std::string(level->name) + " differs: " + what + ", " + std::to_string(m.rows) +
                                          " x " + std::to_string(m.columns) + ", " + std::to_string(n) +
                                          " tokens, activation " + std::to_string(int(a)));
    }
}

// Levels that need row sums store q + 128.
std::int8_t q(const Kernels* level, std::int8_t stored) {
  return std::int8_t(level->row_sums ? stored ^ -128 : stored);
}

Exact<float> random_tokens(int n, int columns) {
  Exact<float> x(std::size_t(n) * columns);
  fill_random(x);
  return x;
}

}  // namespace

TEST(levels_are_named) {
  std::printf("levels tested:");
  for (const Kernels* level : all_levels()) std::printf(" %s", level->name);
  std::printf("\n");
}

TEST(quantize_gives_the_numbers_made_by_hand) {
  const float x[] = {-10, -3, 5, 2, 0, 0, 0, 0, 0x1p-101f, -0x1p-101f, 0, 0};
  const std::int8_t wanted[] = {-127, -38, 64, 25, 0, 0, 0, 0, 0, 0, 0, 0};
  for (const Kernels* level : all_levels()) {
    Tokens tokens(3, 4);
    level->quantize(x, 4, 4, tokens.view(), 0, 3);
    for (int t = 0; t < 3; ++t) {
      for (int k = 0; k < 64; ++k) CHECK_EQUAL(q(level, tokens.rows[t * 64 + k]), k < 4 ? wanted[t * 4 + k] : 0);
      CHECK_EQUAL(tokens.sum[t], t == 0 ? -76 : 0);
      CHECK_EQUAL(tokens.scale[t], t == 0 ? 10.0f / 127.0f : 0.0f);
    }
  }
}

TEST(multiply_gives_the_numbers_made_by_hand) {
  Weights weights({"int8", 8, 3, false}, 2, 4);
  const std::int8_t rows[2][4] = {{1, 2, 3, 4}, {-127, 127, 0, 3}};
  for (int r = 0; r < 2; ++r) std::memcpy(&weights.data[r * kPiece], rows[r], 4);
  weights.scales[0] = 2.0f, weights.scales[1] = 0.25f, weights.bias[0] = 0.5f, weights.bias[1] = -1.0f;
  Exact<float> x(4);
  const float values[] = {-10, -3, 5, 2};  // q -127, -38, 64, 25; sum -76
  std::memcpy(x.get(), values, sizeof values);
  for (const Kernels* level : all_levels()) {
    const Exact<float> y = multiplied(level, weights, x, 1, Activation::none);
    // -127 - 76 + 192 + 100 = 89; -127 * -127 + 127 * -38 + 75 = 11378; each less the shift's 3 * -76
    CHECK_EQUAL(y[0], std::fma(89.0f + 228.0f, 10.0f / 127.0f * 2.0f, 0.5f));
    CHECK_EQUAL(y[1], std::fma(11378.0f + 228.0f, 10.0f / 127.0f * 0.25f, -1.0f));
    for (int r = 2; r < kPanel; ++r) CHECK_EQUAL(y[r], 0.0f);  // rows beyond the matrix
  }
}

TEST(codes_lie_in_planes_of_64_columns) {
  for (int bits : {4, 2, 1}) {
    const int held = 512 / bits;  // columns of a piece
    Weights weights({"codes", bits, 0, false}, 1, 2 * held);
    weights.data.fill(0);
    weights.data[7] = std::uint8_t(1 << bits);              // column 64 + 7 has code 1
    weights.data[kPanel * kPiece + 63] = 1;                 // column held + 63
    for (int c = 0; c < 16; ++c) weights.centres[c] = c % (1 << bits) == 1 ? -50 : 0;
    weights.scales[0] = 127.0f, weights.bias[0] = 0.0f;
    for (const Kernels* level : all_levels())
      for (int k : {0, 7, 63, 64 + 6, 64 + 7, 64 + 8, held + 62, held + 63}) {
        Exact<float> x(2 * held);
        x[k] = 1.0f;
        const float wanted = k == 64 + 7 || k == held + 63 ? 127.0f * -50.0f : 0.0f;
        CHECK_EQUAL(multiplied(level, weights, x, 1, Activation::none)[0], wanted);
      }
  }
}

TEST(every_level_multiplies_like_the_scalar_one) {
  std::vector<int> counts = {31, 32, 33, 40, 47, 48, 49, 64, 70};
  for (int n = 1; n <= 17; ++n) counts.push_back(n);
  for (const Form& form : kForms)
    for (int columns : {1, 63, 64, 65, 200, 256, 300, 384}) {
      Weights weights(form, 37, columns);
      compare(weights, random_tokens(70, columns), 70, counts, Activation::none, form.name);
    }
}

TEST(every_level_activates_like_the_scalar_one) {
  for (const Form& form : {kForms[0], kForms[2]})
    for (Activation a : kActivations) {
      Weights weights(form, 70, 65);
      for (int r = 0; r < 70; ++r) weights.scales[r] *= float(1 << r % 8);  // also the ends of the polynomials
      compare(weights, random_tokens(37, 65), 37, {1, 5, 16, 37}, a, form.name);
    }
}

TEST(every_level_multiplies_large_matrices_like_the_scalar_one) {
  for (const Form& form : {kForms[0], kForms[2], kForms[3], kForms[7]})
    for (int columns : {768, 3072}) {
      Weights weights(form, 17, columns);
      compare(weights, random_tokens(33, columns), 33, {1, 2, 4, 7, 16, 33}, Activation::none, form.name);
    }
}

// Levels that take several panels at a time, with a rest.
TEST(every_level_multiplies_many_panels_like_the_scalar_one) {
  for (const Form& form : {kForms[0], kForms[2], kForms[3], kForms[6]})
    for (int panels : {2, 4, 11}) {
      Weights weights(form, panels * kPanel - 3, 330);
      compare(weights, random_tokens(84, 330), 84, {4, 5, 16, 20, 32, 37, 48, 64, 80, 84}, Activation::relu, form.name);
    }
}

// All weights and activations +-127, as many columns as allowed: sums up to 65536 * 127 * 127 = 1.06e9, as unsigned
// weights 65536 * 255 * 127 = 2.12e9 < 2^31. -128 only occurs in a damaged file, and gives the same bits too.
TEST(extremes_do_not_overflow) {
  for (int columns : {64, 384, kMaxColumns})
    for (const Form& form : {kForms[0], kForms[2], kForms[6]})
      for (int sign : {1, -1}) {
        const int n = columns == kMaxColumns ? 17 : 33;
        Weights weights(form, 16, columns);
        for (std::size_t i = 0; i < weights.centres.size(); ++i)
          weights.centres[i] = i / 16 % 2 ? 127 : -127;
        if (form.bits == 8)
          for (std::size_t i = 0; i < weights.data.size(); ++i) {
            const int row = int(i / kPiece) % kPanel;
            weights.data[i] = std::uint8_t(row == 5 ? -128 : row % 2 ? 127 : -127);
          }
        Exact<float> x(std::size_t(n) * columns, float(sign));
        compare(weights, x, n, {1, 3, n - 1, n}, Activation::none, "extremes");
      }
}

TEST(batches_give_what_single_tokens_give) {
  for (const Form& form : {kForms[1], kForms[2], kForms[5]}) {
    const int n = 45, columns = 130;
    Weights weights(form, 20, columns);
    const Exact<float> x = random_tokens(n, columns);
    for (const Kernels* level : all_levels()) {
      const Exact<float> together = multiplied(level, weights, x, n, Activation::gelu);
      for (int t = 0; t < n; ++t) {
        Exact<float> one(columns);
        std::memcpy(one.get(), &x[std::size_t(t) * columns], columns * sizeof(float));
        const Exact<float> y = multiplied(level, weights, one, 1, Activation::gelu);
        CHECK(same(y.get(), &together[std::size_t(t) * 32], 32));
      }
    }
  }
}

TEST(parts_of_a_matrix_and_of_the_tokens_may_be_computed_apart) {
  const int n = 37, columns = 100, stride = 64, y_stride = 5 * kPanel;
  Weights weights(kForms[2], 4 * kPanel, columns);
  Exact<float> x(std::size_t(n - 1) * 128 + columns);
  fill_random(x);
  for (const Kernels* level : fast_levels()) {
    const Matrix& m = weights.for_level(level);
    Tokens whole(n, columns), parts(n, columns);
    level->quantize(x.get(), 128, columns, whole.view(), 0, n);
    level->quantize(x.get(), 128, columns, parts.view(), 16, n);
    level->quantize(x.get(), 128, columns, parts.view(), 0, 16);
    Exact<float> once(std::size_t(n - 1) * y_stride + stride, -1.0f), twice(once.size(), -1.0f);
    level->multiply(m, whole.view(), 0, 4, Activation::relu, once.get(), y_stride);
    level->multiply(m, parts.view(), 1, 4, Activation::relu, twice.get(), y_stride);
    for (int t = 0; t < n; ++t)
      for (int r = 0; r < kPanel; ++r) CHECK_EQUAL(twice[t * y_stride + r], -1.0f);  // panel 0 is not touched
    level->multiply(m, parts.view(), 0, 1, Activation::relu, twice.get(), y_stride);
    CHECK(same(once, twice));
    for (int t = 0; t + 1 < n; ++t)
      for (int r = stride; r < y_stride; ++r) CHECK_EQUAL(once[t * y_stride + r], -1.0f);
  }
}

TEST(every_level_quantizes_like_the_scalar_one) {
  for (int columns : {1, 15, 16, 17, 63, 64, 65, 127, 300, 768})
    for (int n : {1, 15, 16, 20}) {
      Exact<float> x = random_tokens(n, columns);
      for (int k = 0; k < columns; ++k) x[k] *= 1e-33f;                     // absmax below 2^-100
      for (int k = 0; n > 1 && k < columns; ++k) x[columns + k] *= 3e38f;   // near the largest float
      for (int k = 0; n > 15 && k < columns; ++k) x[15 * columns + k] = float(k % 255 - 127) + 0.5f;  // ties
      Tokens wanted(n, columns);
      kScalar->quantize(x.get(), columns, columns, wanted.view(), 0, n);
      for (const Kernels* level : fast_levels()) {
        Tokens found(n, columns);
        level->quantize(x.get(), columns, columns, found.view(), 0, n);
        for (std::int8_t& stored : found.rows) stored = q(level, stored);
        CHECK(std::memcmp(found.rows.get(), wanted.rows.get(), wanted.rows.size()) == 0);
        CHECK(std::memcmp(found.sum.get(), wanted.sum.get(), n * sizeof(std::int32_t)) == 0);
        CHECK(same(found.scale, wanted.scale));
      }
    }
}

TEST(what_is_not_finite_comes_out_as_nan) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (const Kernels* level : all_levels())
    for (float odd : {nan, -nan, inf, -inf})
      for (int n : {3, 17})
        for (int at : {0, 66}) {
          Weights weights(kForms[4], 16, 67);
          Exact<float> x = random_tokens(n, 67);
          const Exact<float> before = multiplied(level, weights, x, n, Activation::gelu);
          x[67 + at] = odd;  // token 1
          for (Activation a : kActivations) {
            const Exact<float> y = multiplied(level, weights, x, n, a);
            for (int r = 0; r < kPanel; ++r) CHECK(std::isnan(y[kPanel + r]));
          }
          const Exact<float> after = multiplied(level, weights, x, n, Activation::gelu);
          CHECK(same(after.get(), before.get(), kPanel));  // the others do not notice
          CHECK(same(&after[2 * kPanel], &before[2 * kPanel], std::size_t(n - 2) * kPanel));
        }
}
