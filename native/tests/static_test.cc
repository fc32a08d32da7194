// Activations in steps known beforehand, outputs as int8, integer attention: the scalar level against numbers made by
// hand and double precision, every other level against the scalar one.
#include <cmath>
#include <cstring>
#include <limits>

#include "tests/kernel_cases.h"

using namespace cases;

namespace {

const Kernels* const kScalar = scalar_kernels();
constexpr Activation kActivations[] = {Activation::none, Activation::relu, Activation::gelu, Activation::gelu_tanh,
                                       Activation::tanh};

std::int8_t q(const Kernels* level, std::int8_t stored) { return std::int8_t(level->row_sums ? stored ^ -128 : stored); }

Quantized with_step(Quantized view, float step) {
  view.inverse = 1.0f / step;
  return view;
}

// What the next matrix makes of the int8 outputs of `weights`, which is all that counts of them.
Exact<float> two_products(const Kernels* level, Weights& weights, Weights& next, const Exact<float>& x, int n, Activation a) {
  const Matrix& m = weights.for_level(level);
  Tokens in(n, m.columns), between(n, m.rows);
  level->quantize(x.get(), m.columns, m.columns, with_step(in.view(), 0.01f), 0, n);
  const int stride = m.panels() * kPanel, cut = m.panels() / 2;
  Exact<float> room(std::size_t(n) * stride, -1.0f);
  const Quantized out = with_step(between.view(), 0.05f);
  level->multiply_to_int8(m, in.view(), cut, m.panels(), a, room.get(), stride, out, 0);
  level->multiply_to_int8(m, in.view(), 0, cut, a, room.get(), stride, out, 0);
  between.scale.fill(1.0f);
  between.sum.fill(0);
  const Matrix& second = next.for_level(level);
  Exact<float> y(std::size_t(n) * second.panels() * kPanel);
  level->multiply(second, between.view(), 0, second.panels(), Activation::none, y.get(), second.panels() * kPanel);
  return y;
}

// Queries, keys and values (n, heads, size) as a level stores them, and its answer.
struct IntegerAttentionData {
  int n, heads, size, stride;
  Exact<std::int8_t> parts[3];
  Exact<float> bias;

  IntegerAttentionData(int n_tokens, int n_heads, int head_size, bool with_bias)
      : n(n_tokens), heads(n_heads), size(head_size), stride(round_up(heads * size, kPiece)),
        bias(with_bias ? heads * (2 * (n + 2) - 1) : 0) {
    for (Exact<std::int8_t>& part : parts) {
      part = Exact<std::int8_t>(std::size_t(n) * stride);
      for (std::int8_t& b : part) b = std::int8_t(random_int(-127, 127));
    }
    fill_random(bias);
  }

  Exact<float> run(const Kernels* level, int from, int to, float factor = 3e-5f) const {
    Exact<std::int8_t> stored[3];
    for (int i = 0; i < 3; ++i) {
      stored[i] = Exact<std::int8_t>(parts[i].size());
      for (std::size_t at = 0; at < parts[i].size(); ++at) stored[i][at] = q(level, parts[i][at]);
    }
    const int out_stride = heads * size + 3;
    Exact<float> out(std::size_t(n - 1) * out_stride + heads * size, -1.0f), scratch(integer_attention_scratch(n, size));
    IntegerAttention a;
    a.q = stored[0].get(), a.k = stored[1].get(), a.v = stored[2].get();
    a.out = out.get();
    a.stride = stride, a.out_stride = out_stride;
    a.n_tokens = n, a.heads = heads, a.size = size;
    a.factor = factor, a.v_scale = 0.02f;
    a.bias = bias.size() ? bias.get() : nullptr;
    a.reach = n + 2;
    a.scratch = scratch.get();
    level->attend_integers(a, from, to);
    return out;
  }
};

}  // namespace

// Steps of 1/4: -2.5 steps are -2, 2.5 are 2, 3.5 are 4; 200 and infinity are clamped, and the latter marks its token.
TEST(quantize_in_given_steps_gives_the_numbers_made_by_hand) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const float x[] = {-0.625f, 0.625f, 0.875f, 200.0f, -200.0f, 0, 0, 31.75f, 0, 1, inf, 0, nan, 0, 0, -1};
  const int wanted[] = {-2, 2, 4, 127, -127, 0, 0, 127, 0, 4, 127, 0, 127, 0, 0, -4};
  for (const Kernels* level : all_levels()) {
    Tokens tokens(4, 4);
    level->quantize(x, 4, 4, with_step(tokens.view(), 0.25f), 0, 4);
    for (int t = 0; t < 4; ++t)
      for (int k = 0; k < 64; ++k) CHECK_EQUAL(int(q(level, tokens.rows[t * 64 + k])), k < 4 ? wanted[t * 4 + k] : 0);
    for (int t = 0; t < 2; ++t) CHECK_EQUAL(tokens.scale[t], 1.0f);
    CHECK_EQUAL(tokens.sum[0], 131);
    CHECK_EQUAL(tokens.sum[1], 0);
    CHECK(std::isnan(tokens.scale[2]) && std::isnan(tokens.scale[3]));
  }
}

TEST(every_level_quantizes_in_given_steps_like_the_scalar_one) {
  for (int columns : {1, 15, 16, 17, 63, 64, 65, 127, 300, 768})
    for (int n : {1, 15, 16, 20}) {
      Exact<float> x(std::size_t(n) * columns);
      fill_random(x);
      for (int k = 0; k < columns; ++k) x[k] = (float(k % 259 - 129) + 0.5f) * 0.0078125f;  // ties, beyond the ends
      for (int k = 0; n > 1 && k < columns; ++k) x[columns + k] *= 3e38f;
      for (int k = 0; n > 15 && k < columns; ++k) x[15 * columns + k] *= 1e-38f;
      Tokens wanted(n, columns);
      kScalar->quantize(x.get(), columns, columns, with_step(wanted.view(), 0.0078125f), 0, n);
      for (const Kernels* level : fast_levels()) {
        Tokens found(n, columns);
        level->quantize(x.get(), columns, columns, with_step(found.view(), 0.0078125f), 0, n);
        for (std::int8_t& stored : found.rows) stored = q(level, stored);
        CHECK(std::memcmp(found.rows.get(), wanted.rows.get(), wanted.rows.size()) == 0);
        CHECK(std::memcmp(found.sum.get(), wanted.sum.get(), n * sizeof(std::int32_t)) == 0);
        CHECK(same(found.scale, wanted.scale));
      }
    }
}

// Weights 1 and -3, steps 1/4 in and 1/2 out, scale 1/2 by weight: 5 steps -> 5 * 0.125 + 0.5 = 1.125, 2.25 steps -> 2.
TEST(outputs_in_given_steps_are_the_numbers_made_by_hand) {
  Weights weights({"int8", 8, 0, false}, 3, 1);
  const std::int8_t rows[] = {1, -3, 127};
  for (int r = 0; r < 3; ++r) weights.data[r * kPiece] = std::uint8_t(rows[r]);
  for (int r = 0; r < 3; ++r) weights.scales[r] = 0.125f, weights.bias[r] = r ? 0.0f : 0.5f;
  const float x = 1.25f;
  for (const Kernels* level : all_levels())
    for (int n : {1, 16}) {
      const Matrix& m = weights.for_level(level);
      const Exact<float> all(n, x), room(std::size_t(n) * kPanel);
      Tokens in(n, 1), out(n, kPanel);
      level->quantize(all.get(), 1, 1, with_step(in.view(), 0.25f), 0, n);
      Quantized rows_only = with_step(out.view(), 0.5f);
      rows_only.lanes = nullptr;
      level->multiply_to_int8(m, in.view(), 0, 1, Activation::none, room.get(), kPanel, rows_only, 0);
      for (int t = 0; t < n; ++t) {
        const int wanted[] = {2, -4, 127, 0};  // -1.875 is -3.75 steps; 79.375 is clamped
        for (int r = 0; r < 4; ++r) CHECK_EQUAL(int(q(level, out.rows[t * kPiece + r])), wanted[r]);
      }
    }
}

TEST(every_level_gives_int8_outputs_like_the_scalar_one) {
  for (const Form& form : kForms)
    for (int rows : {5, 37, 64, 200})
      for (Activation a : kActivations) {
        if (a != Activation::none && (rows != 37 || form.bits == 1)) continue;
        const int columns = rows == 64 ? 300 : 65;
        Weights weights(form, rows, columns), next(kForms[2], 21, rows);
        Exact<float> x(std::size_t(37) * columns);
        fill_random(x);
        for (int k = 0; k < columns; ++k) x[columns + k] *= 1e30f;
        for (int r = 0; r < rows; ++r) weights.scales[r] *= r % 8 ? 0.1f : 1e36f;  // also far beyond the steps
        const Exact<float> wanted = two_products(kScalar, weights, next, x, 37, a);
        for (const Kernels* level : fast_levels())
          for (int n : {1, 2, 5, 8, 14, 15, 16, 17, 20, 31, 32, 37}) {
            const Exact<float> found = two_products(level, weights, next, x, n, a);
            if (!same(found.get(), wanted.get(), found.size()))
              check::fail(__FILE__, __LINE__, std::string(level->name) + " differs: " + form.name + ", " +
                                                  std::to_string(rows) + " rows, " + std::to_string(n) +
                                                  " tokens, activation " + std::to_string(int(a)));
          }
      }
}

TEST(every_level_gives_rows_of_int8_parts_like_the_scalar_one) {
  for (int panels : {1, 3}) {
    const int n = 35, columns = 70, width = panels * kPanel, stride = 128;
    Weights weights(kForms[0], 3 * width, columns);
    Exact<float> x(std::size_t(n) * columns);
    fill_random(x);
    Exact<std::int8_t> wanted;
    std::vector<const Kernels*> levels = {kScalar};
    for (const Kernels* level : fast_levels()) levels.push_back(level);
    for (const Kernels* level : levels)
      for (int tokens : {n, 16, 5}) {
        const Matrix& m = weights.for_level(level);
        Tokens in(tokens, columns);
        level->quantize(x.get(), columns, columns, with_step(in.view(), 0.01f), 0, tokens);
        Exact<float> room(std::size_t(tokens) * 3 * width);
        Exact<std::int8_t> found(std::size_t(tokens) * stride, q(level, 0));
        Quantized out{found.get(), nullptr, nullptr, nullptr, tokens, stride, 1.0f / 0.5f};
        level->multiply_to_int8(m, in.view(), panels, 2 * panels, Activation::none, room.get(), 3 * width, out, panels);
        for (std::int8_t& stored : found) stored = q(level, stored);
        if (!wanted.size()) wanted = std::move(found);
        else CHECK(std::memcmp(found.get(), wanted.get(), found.size()) == 0);
      }
    int n_different = 0;
    for (std::size_t i = 1; i < std::size_t(width); ++i) n_different += wanted[i] != wanted[0];
    CHECK(n_different > width / 2);
  }
}

// One head of one number: q 2, keys 0 and 3, values 100 and -50; scores 0 and 6 factor, so that e = 255 exp(-6 factor), 255.
TEST(integer_attention_gives_the_numbers_made_by_hand) {
  IntegerAttentionData data(2, 1, 1, false);
  for (int t = 0; t < 2; ++t) data.parts[0][std::size_t(t) * kPiece] = std::int8_t(2);
  data.parts[1][0] = 0, data.parts[1][kPiece] = 3;
  data.parts[2][0] = 100, data.parts[2][kPiece] = -50;
  for (const Kernels* level : all_levels()) {
    const Exact<float> even = data.run(level, 0, 1, 0.0f), one = data.run(level, 0, 1, 100.0f);
    const Exact<float> half = data.run(level, 0, 1, 0.11552453f);  // exp(-6 factor) is 0.5: 127.5 to 128, or 127 below
    CHECK_EQUAL(even[0], float(255 * 100 - 255 * 50) * (0.02f / 510.0f));
    CHECK_EQUAL(one[0], float(-50 * 255) * (0.02f / 255.0f));
    CHECK(half[0] == float(128 * 100 - 255 * 50) * (0.02f / 383.0f) || half[0] == float(127 * 100 - 255 * 50) * (0.02f / 382.0f));
  }
}

TEST(integer_attention_has_the_values_of_double_precision) {
  for (bool with_bias : {false, true}) {
    const IntegerAttentionData data(19, 2, 7, with_bias);
    const Exact<float> out = data.run(kScalar, 0, 2);
    const auto at = [&](int part, int t, int head, int d) { return double(data.parts[part][t * data.stride + head * 7 + d]); };
    for (int h = 0; h < 2; ++h)
      for (int i = 0; i < 19; ++i) {
        double s[19], top = -1e30, total = 0;
        for (int j = 0; j < 19; ++j) {
          s[j] = 0;
          for (int d = 0; d < 7; ++d) s[j] += at(0, i, h, d) * at(1, j, h, d) * double(3e-5f);
          if (with_bias) s[j] += data.bias[h * (2 * 21 - 1) + 20 + i - j];
          top = std::max(top, s[j]);
        }
        for (double& e : s) total += e = 255 * std::exp(e - top);
        for (int d = 0; d < 7; ++d) {
          double wanted = 0;
          for (int j = 0; j < 19; ++j) wanted += s[j] / total * at(2, j, h, d) * 0.02;
          // e is off by half a step of 255 at most, total by 19 such halves: of values up to 2.54
          CHECK(std::fabs(out[i * 17 + h * 7 + d] - wanted) < 2 * 2.54 * 19 * 0.5 / total + 1e-5);
        }
      }
  }
}

TEST(every_level_attends_with_integers_like_the_scalar_one) {
  for (int size : {1, 7, 16, 24, 32, 48, 64, 80})
    for (int n : {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 70})
      for (bool with_bias : {false, true}) {
        const IntegerAttentionData data(n, 2, size, with_bias);
        const Exact<float> wanted = data.run(kScalar, 0, 2), first = data.run(kScalar, 0, 1);
        for (const Kernels* level : fast_levels()) {
          if (!same(data.run(level, 0, 2), wanted) || !same(data.run(level, 0, 1), first))
            check::fail(__FILE__, __LINE__, std::string(level->name) + " differs: size " + std::to_string(size) + ", " +
                                                std::to_string(n) + " tokens");
        }
      }
}

// All +-127: sums up to 255 * 127 * size as unsigned keys, and exponentials that are all 255.
TEST(extremes_of_integer_attention_do_not_overflow) {
  for (int size : {32, 512}) {
    IntegerAttentionData data(33, 1, size, false);
    for (int part = 0; part < 3; ++part)
      for (std::size_t i = 0; i < data.parts[part].size(); ++i) data.parts[part][i] = part == 1 && i % 5 == 0 ? -127 : 127;
    const Exact<float> wanted = data.run(kScalar, 0, 1, 1e-9f);
    CHECK_EQUAL(wanted[0], float(33 * 255 * 127) * (0.02f / float(33 * 255)));
    for (const Kernels* level : fast_levels()) CHECK(same(data.run(level, 0, 1, 1e-9f), wanted));
  }
}
