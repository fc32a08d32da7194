// The float half of the kernels: the scalar level against numbers made by hand and against double precision, every
// other level against the scalar one.
#include <cfloat>
#include <cmath>
#include <cstdint>

#include "tests/kernel_cases.h"

// The scalar level's own functions, a copy of this file's.
namespace specification {
namespace flyweight {
using namespace ::flyweight;
}
#include "kernels/scalar.cc"
}  // namespace specification

using namespace cases;
namespace spec = specification::flyweight;

namespace {

const Kernels* const kScalar = scalar_kernels();
constexpr Activation kActivations[] = {Activation::none, Activation::relu, Activation::gelu, Activation::gelu_tanh,
                                       Activation::tanh};

std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
float from_bits(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

void check_fma(float a, float b, float c) {
  const float found = spec::exact_fma(a, b, c), wanted = std::fma(a, b, c);
  if (bits_of(found) == bits_of(wanted) || (found != found && wanted != wanted)) return;
  char text[160];
  std::snprintf(text, sizeof text, "exact_fma(%a, %a, %a) is %a, wanted %a", a, b, c, found, wanted);
  check::fail(__FILE__, __LINE__, text);
}

// f over [from, to] against `exact`: the largest error, in units of the last place, or absolute.
struct Error {
  double ulp = 0, absolute = 0;
};
template <class F, class G>
Error error_of(F f, G exact, double from, double to) {
  Error worst;
  constexpr int n = 200000;
  for (int i = 0; i < n; i += kLanes) {
    float x[kLanes], y[kLanes];
    for (int j = 0; j < kLanes; ++j) x[j] = float(from + (to - from) * (i + j) / (n - 1));
    f(spec::V::load(x)).store(y);
    for (int j = 0; j < kLanes; ++j) {
      const double wanted = exact(double(x[j])), error = std::fabs(y[j] - wanted);
      const double unit = std::ldexp(1.0, std::max(std::ilogb(wanted), FLT_MIN_EXP - 1) - (FLT_MANT_DIG - 1));
      worst.absolute = std::max(worst.absolute, error);
      worst.ulp = std::max(worst.ulp, error / unit);
    }
  }
  return worst;
}

double gelu(double x) { return 0.5 * x * (1 + std::erf(x * std::sqrt(0.5))); }
double gelu_tanh(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
}

// A norm's weights, or random columns of a matrix that is looked up, without slack beyond the padding to 16.
struct NormData {
  explicit NormData(int n) : columns(n), weight(round_up(n, kLanes)), bias(round_up(n, kLanes)) {
    fill_random(weight);
    fill_random(bias);
  }
  Norm view() const { return {weight.get(), bias.get(), columns, 1e-5f}; }
  int columns;
  Exact<float> weight, bias;
};

struct EmbeddingData {
  Embedding view;
  Exact<std::uint8_t> data;
  Exact<float> scales, table;

  EmbeddingData(Values values, int bits, bool shared, int rows, int columns) {
    view.values = values;
    view.bits = bits;
    view.rows = rows;
    view.columns = columns;
    view.row_bytes = std::size_t(columns * bits + 7) / 8;
    data = Exact<std::uint8_t>(view.row_bytes * rows);
    scales = Exact<float>(shared ? 1 : rows);
    table = Exact<float>(values == Values::codes ? std::size_t(shared ? 1 : rows) << bits : 0);
    for (std::uint8_t& byte : data) byte = std::uint8_t(random_bits());
    fill_random(scales);
    fill_random(table);
    if (values == Values::float32)
      for (std::size_t i = 0; i < data.size(); i += 4) {
        const float x = random_float();
        std::memcpy(&data[i], &x, 4);
      }
    view.data = data.get();
    view.scales = scales.get();
    view.scale_stride = shared ? 0 : 1;
    view.shift = values == Values::int8 && shared ? 5 : 0;
    view.table = table.get();
    view.table_stride = shared ? 0 : std::size_t(1) << bits;
  }
};

// out (n, heads, size) of random queries, keys and values.
struct AttentionData {
  int n, heads, size, stride;
  Exact<float> qkv, bias;
  Attention view;

  AttentionData(int n_tokens, int n_heads, int head_size, bool with_bias)
      : n(n_tokens), heads(n_heads), size(head_size), stride(3 * heads * size + 5),
        qkv(std::size_t(n - 1) * stride + 3 * heads * size), bias(with_bias ? heads * (2 * (n + 2) - 1) : 0) {
    fill_random(qkv);
    fill_random(bias);
    for (float& x : qkv) x *= 4.0f;
    view.qkv = qkv.get();
    view.qkv_stride = stride;
    view.out_stride = heads * size + 3;
    view.n_tokens = n;
    view.heads = heads;
    view.size = size;
    view.bias = with_bias ? bias.get() : nullptr;
    view.reach = n + 2;
  }
  Exact<float> run(const Kernels* level, int from, int to) {
    Exact<float> out(std::size_t(n - 1) * view.out_stride + heads * size, -1.0f), scratch(attention_scratch(n, size));
    view.out = out.get();
    view.scratch = scratch.get();
    level->attend(view, from, to);
    return out;
  }
};

}  // namespace

TEST(exact_fma_rounds_once) {
  check_fma(1 + 0x1p-12f, 1 + 0x1p-12f, -(1 + 0x1p-11f));          // 2^-24 is left
  check_fma(1 + 0x1p-23f, 1 + 0x1p-23f, 0x1p-60f);                 // just above, and below, a tie
  check_fma(1 + 0x1p-12f, 1 + 0x1p-12f, 0x1p-80f);
  check_fma(1 + 0x1p-12f, 1 + 0x1p-12f, -0x1p-80f);
  check_fma(0x1p-75f, 0x1p-75f, 0x1p-149f);                        // half of the smallest subnormal, and a bit less
  check_fma(0x1p-75f, 0x1p-75f, -0x1p-149f);
  check_fma(0x1.8p-75f, 0x1.555554p-75f, 0x1p-126f);
  check_fma(FLT_MAX, 2.0f, -FLT_MAX);
  check_fma(FLT_MAX, 1 + 0x1p-23f, -0x1p104f);
  check_fma(FLT_MAX, 1.0f, 0x1p103f);                              // the tie between FLT_MAX and infinity
  check_fma(FLT_MAX, 1.0f, 0x1.fffffep102f);
  check_fma(0.0f, -1.0f, 0.0f);
  check_fma(0.0f, -1.0f, -0.0f);
  check_fma(INFINITY, 0.0f, 1.0f);
  check_fma(INFINITY, 1.0f, -INFINITY);
  check_fma(1.0f, 1.0f, -1.0f);
  for (int i = 0; i < 300000; ++i) {
    float x[3];
    const int spread = i % 3;
    for (float& f : x) {
      const std::uint32_t r = random_bits();
      if (spread == 0) f = from_bits(r);                                                // any bits, NaN too
      if (spread == 1) f = from_bits((r & 0x807fffff) | (127 - 12 + (r >> 9) % 24) << 23);  // near 1: sums cancel
      if (spread == 2) f = from_bits((r & 0x807ff000) | (64 - 12 + (r >> 9) % 24) << 23);   // ties, subnormal products
    }
    if (spread == 2) x[2] = i & 1 ? from_bits(random_bits() & 0x80ffffff) : x[2] * x[2];
    check_fma(x[0], x[1], x[2]);
    check_fma(x[0], x[1], -(x[0] * x[1]));
  }
}

TEST(functions_are_as_exact_as_they_say) {
  const auto exp = [](spec::V x) { return spec::exp(x); };
  CHECK(error_of(exp, [](double x) { return std::exp(x); }, -87, 88).ulp < 2);
  CHECK(error_of(exp, [](double x) { return std::exp(x); }, -1, 1).ulp < 2);
  const auto erf = [](spec::V x) { return spec::erf(x); };
  CHECK(error_of(erf, [](double x) { return std::erf(x); }, -6, 6).absolute < 5e-7);
  const auto tanh = [](spec::V x) { return spec::tanh(x); };
  CHECK(error_of(tanh, [](double x) { return std::tanh(x); }, -10, 10).absolute < 2e-7);
  // x / 2 times the error of erf or tanh, and two roundings of a result up to |x|
  const auto a = [](spec::V x) { return spec::activated<Activation::gelu>(x); };
  CHECK(error_of(a, gelu, -8, 8).absolute < 4 * 5e-7 + 8 * 0x1p-23);
  const auto b = [](spec::V x) { return spec::activated<Activation::gelu_tanh>(x); };
  CHECK(error_of(b, gelu_tanh, -8, 8).absolute < 4 * 4e-7 + 8 * 0x1p-23);
}

TEST(functions_have_the_values_made_by_hand) {
  float y[kLanes];
  spec::exp(spec::V::set(0.0f)).store(y);
  CHECK_EQUAL(y[0], 1.0f);
  spec::exp(spec::V::set(-1000.0f)).store(y);
  CHECK(y[0] > 0 && y[0] < 2e-38f);
  spec::erf(spec::V::set(0.0f)).store(y);
  CHECK_EQUAL(y[0], 0.0f);
  spec::tanh(spec::V::set(-100.0f)).store(y);
  CHECK_EQUAL(y[0], -1.0f);
  spec::activated<Activation::relu>(spec::V::set(-3.0f)).store(y);
  CHECK_EQUAL(y[0], 0.0f);
  spec::activated<Activation::gelu>(spec::V::set(-20.0f)).store(y);
  CHECK(std::fabs(y[0]) < 1e-5f);
  float counting[kLanes];
  for (int i = 0; i < kLanes; ++i) counting[i] = float(1 << i);
  CHECK_EQUAL(spec::V::load(counting).sum(), 65535.0f);
  CHECK_EQUAL(spec::V::load(counting).max_lane(), 32768.0f);
  for (float x : {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 0.49999997f, 8388607.0f / 2}) {
    spec::round(spec::V::set(x)).store(y);
    CHECK_EQUAL(y[0], std::nearbyint(x));
  }
}

TEST(every_level_multiplies_float_matrices_like_the_scalar_one) {
  for (int columns : {1, 7, 64, 300})
    for (Activation a : kActivations) {
      const int rows = 35, padded = 48, n = 19, x_stride = columns + 3;
      Exact<float> w(std::size_t(padded) * columns), bias(padded), x(std::size_t(n - 1) * x_stride + columns);
      fill_random(w), fill_random(bias), fill_random(x);
      for (float& f : x) f *= a == Activation::none ? 1.0f : 4.0f;
      Matrix m;
      m.rows = rows, m.columns = columns, m.bias = bias.get();
      m.data = reinterpret_cast<const std::uint8_t*>(w.get());
      Exact<float> wanted(n * padded);
      kScalar->multiply_float(m, x.get(), x_stride, n, 0, 3, a, wanted.get(), padded);
      for (const Kernels* level : fast_levels())
        for (int count : {1, 2, 7, 8, 9, 19}) {
          Exact<float> found(count * padded, -1.0f);
          level->multiply_float(m, x.get(), x_stride, count, 0, 1, a, found.get(), padded);
          level->multiply_float(m, x.get(), x_stride, count, 1, 3, a, found.get(), padded);
          CHECK(same(found.get(), wanted.get(), found.size()));
        }
    }
}

TEST(layer_norm_has_the_values_of_double_precision) {
  const int n = 5, columns = 100, stride = 112;
  NormData norm(columns);
  Exact<float> x(n * stride), y(stride);
  fill_random(x), fill_random(y);
  Exact<float> out(n * stride);
  std::memcpy(out.get(), x.get(), x.size() * sizeof(float));
  kScalar->add_norm(out.get(), stride, y.get(), 0, n, norm.view());
  for (int t = 0; t < n; ++t) {
    double mean = 0, square = 0;
    for (int f = 0; f < columns; ++f) mean += (double(x[t * stride + f]) + y[f]) / columns;
    for (int f = 0; f < columns; ++f) square += std::pow(double(x[t * stride + f]) + y[f] - mean, 2) / columns;
    for (int f = 0; f < columns; ++f) {
      const double c = double(x[t * stride + f]) + y[f] - mean;
      CHECK(std::fabs(out[t * stride + f] - (c / std::sqrt(square + 1e-5) * norm.weight[f] + norm.bias[f])) < 1e-5);
    }
  }
}

TEST(every_level_norms_like_the_scalar_one) {
  for (int columns : {1, 15, 16, 17, 100, 384, 768})
    for (int n : {1, 3, 4, 6}) {
      const int stride = round_up(columns, kLanes);
      NormData norm(columns);
      Exact<float> x(n * stride), y(n * stride);
      fill_random(x), fill_random(y);
      for (int y_stride : {0, stride}) {
        Exact<float> wanted(x.size());
        std::memcpy(wanted.get(), x.get(), x.size() * sizeof(float));
        kScalar->add_norm(wanted.get(), stride, y.get(), y_stride, n, norm.view());
        for (const Kernels* level : fast_levels()) {
          Exact<float> found(x.size());
          std::memcpy(found.get(), x.get(), x.size() * sizeof(float));
          level->add_norm(found.get(), stride, y.get(), y_stride, n, norm.view());
          for (int t = 0; t < n; ++t) CHECK(same(&found[t * stride], &wanted[t * stride], columns));
        }
      }
    }
}

TEST(every_level_embeds_like_the_scalar_one) {
  struct Kind {
    Values values;
    int bits;
  };
  for (const Kind& kind : {Kind{Values::float32, 32}, {Values::int8, 8}, {Values::codes, 1}, {Values::codes, 2},
                           {Values::codes, 3}, {Values::codes, 4}, {Values::codes, 5}, {Values::codes, 6},
                           {Values::codes, 7}, {Values::codes, 8}})
    for (bool shared : {false, true})
      for (int columns : {1, 16, 37, 128}) {
        const int n = 6, rows = 9, stride = round_up(columns, kLanes);
        EmbeddingData words(kind.values, kind.bits, shared, rows, columns);
        EmbeddingData places(kind.values, kind.bits, !shared, rows, columns);
        NormData norm(columns);
        const std::int32_t ids[n] = {0, 8, 3, 3, 1, 8}, at[n] = {0, 1, 2, 3, 4, 8};
        const Rows tables[] = {{&words.view, ids}, {&places.view, at}, {&words.view, at}};
        for (int n_tables : {2, 3}) {
          Exact<float> wanted(n * stride);
          kScalar->embed(tables, n_tables, n, norm.view(), wanted.get(), stride);
          for (const Kernels* level : fast_levels()) {
            Exact<float> found(n * stride);
            level->embed(tables, n_tables, n, norm.view(), found.get(), stride);
            for (int t = 0; t < n; ++t) CHECK(same(&found[t * stride], &wanted[t * stride], columns));
          }
        }
      }
}

// Rows 0 and 1 of words, [1, 3] and [-1, 5] as 3-bit codes; positions zero; the norm of [a, b] is [-1, 1] or [1, -1].
TEST(embed_gives_the_numbers_made_by_hand) {
  EmbeddingData words(Values::codes, 3, true, 2, 2), places(Values::float32, 32, true, 1, 2);
  words.data[0] = 2 | 7 << 3, words.data[1] = 5 | 0 << 3;
  for (int c = 0; c < 8; ++c) words.table[c] = 99.0f;
  words.table[2] = 1.0f, words.table[7] = 3.0f, words.table[5] = -1.0f, words.table[0] = 5.0f;
  places.data.fill(0);
  NormData norm(2);
  for (int f = 0; f < 2; ++f) norm.weight[f] = 2.0f, norm.bias[f] = 0.5f;
  const std::int32_t ids[] = {1, 0}, at[] = {0, 0};
  float x[2 * kLanes];
  Norm view = norm.view();
  view.eps = 0.0f;
  const Rows tables[] = {{&words.view, ids}, {&places.view, at}};
  kScalar->embed(tables, 2, 2, view, x, kLanes);
  for (int t = 0; t < 2; ++t) {
    CHECK_EQUAL(x[t * kLanes], -1.5f);
    CHECK_EQUAL(x[t * kLanes + 1], 2.5f);
  }
}

TEST(attention_has_the_values_of_double_precision) {
  for (bool with_bias : {false, true}) {
    AttentionData data(19, 2, 7, with_bias);
    const Exact<float> out = data.run(kScalar, 0, 2);
    const auto at = [&](int t, int part, int head, int d) {
      return double(data.qkv[t * data.stride + (part * data.heads + head) * data.size + d]);
    };
    for (int h = 0; h < 2; ++h)
      for (int i = 0; i < 19; ++i) {
        double p[19], sum = 0;
        for (int j = 0; j < 19; ++j) {
          double s = 0;
          for (int d = 0; d < 7; ++d) s += at(i, 0, h, d) * at(j, 1, h, d) / std::sqrt(7.0);
          if (with_bias) s += data.bias[h * (2 * data.view.reach - 1) + data.view.reach - 1 + i - j];
          sum += p[j] = std::exp(s);
        }
        for (int d = 0; d < 7; ++d) {
          double wanted = 0;
          for (int j = 0; j < 19; ++j) wanted += p[j] / sum * at(j, 2, h, d);
          CHECK(std::fabs(out[i * data.view.out_stride + h * 7 + d] - wanted) < 1e-4);  // |s| < 45: exp(s) to 45 ULP
        }
      }
  }
}

TEST(every_level_attends_like_the_scalar_one) {
  std::vector<int> counts = {1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 70};
  for (int size : {7, 8, 16, 32, 64})
    for (int n : counts)
      for (bool with_bias : {false, true}) {
        AttentionData data(n, 2, size, with_bias);
        const Exact<float> wanted = data.run(kScalar, 0, 2), first = data.run(kScalar, 0, 1);
        for (const Kernels* level : fast_levels()) {
          CHECK(same(data.run(level, 0, 2), wanted));
          CHECK(same(data.run(level, 0, 1), first));
        }
      }
}

TEST(every_level_takes_the_mean_like_the_scalar_one) {
  const float x[] = {1, 2, 30, 3, 4, 50};
  float out[3];
  kScalar->mean(x, 3, 2, 3, out);
  CHECK_EQUAL(out[0], 2.0f);
  CHECK_EQUAL(out[1], 3.0f);
  CHECK_EQUAL(out[2], 40.0f);
  for (int columns : {1, 16, 33, 300})
    for (int n : {1, 7, 70}) {
      Exact<float> values(std::size_t(n - 1) * (columns + 2) + columns), wanted(columns);
      fill_random(values);
      kScalar->mean(values.get(), columns + 2, n, columns, wanted.get());
      for (const Kernels* level : fast_levels()) {
        Exact<float> found(columns);
        level->mean(values.get(), columns + 2, n, columns, found.get());
        CHECK(same(found, wanted));
      }
    }
}

TEST(nan_passes_through_the_float_kernels_of_every_level) {
  for (const Kernels* level : all_levels()) {
    NormData norm(20);
    Exact<float> x(64, 1.0f), y(32, 1.0f);
    x[32 + 19] = NAN;
    level->add_norm(x.get(), 32, y.get(), 0, 2, norm.view());
    for (int f = 0; f < 20; ++f) CHECK(std::isfinite(x[f]) && std::isnan(x[32 + f]));
    AttentionData data(9, 1, 8, false);
    data.qkv[5 * data.stride + 8] = NAN;  // a key: all queries see it
    const Exact<float> out = data.run(level, 0, 1);
    for (int i = 0; i < 9; ++i) CHECK(std::isnan(out[i * data.view.out_stride]));
  }
}
