// Layers that are no transformer's, max pooling and pairs of tokens: numbers made by hand, every level like the scalar one,
// equal bits in every batch and over any threads, and what is refused.
#include <cmath>
#include <limits>

#include "tests/engine_cases.h"

using namespace cases;

namespace {

const Kernels* const kScalar = scalar_kernels();

enum class By { int8, floats, nothing };  // what gives the products with the token before
constexpr By kBy[] = {By::int8, By::floats, By::nothing};

// A step of an LSTM, without slack beyond the vectors of 16 that may be read.
struct CellData {
  CellData(int n_units, By what)
      : units(n_units), by(what), input(size()), products(size()), scales(size()), c(round_up(units, kLanes)), sums(size()) {
    fill_random(input);
    fill_random(products);
    fill_random(c);
    for (float& x : input) x *= 6.0f;
    for (float& x : products) x *= 3.0f;
    for (float& x : scales) x = 1e-5f * (1.0f + random_float());
    for (std::int32_t& sum : sums) sum = random_int(-900000, 900000);
  }
  std::size_t size() const { return std::size_t(3 * units + round_up(units, kLanes)); }

  // c, h, out and q of one step.
  Exact<float> step(const Kernels* level) const {
    const Exact<float> after(c.size()), h(c.size()), out(std::size_t(units), -1.0f);
    const Exact<std::int8_t> q(c.size());
    std::copy(c.begin(), c.end(), after.get());
    Cells cells;
    cells.input = input.get();
    if (by == By::int8) cells.sums = sums.get();
    if (by == By::floats) cells.products = products.get();
    cells.scales = scales.get();
    cells.c = after.get(), cells.h = h.get(), cells.out = out.get(), cells.q = q.get();
    cells.units = units;
    level->lstm_cells(cells);
    Exact<float> all(std::size_t(4 * units));
    std::copy_n(after.get(), units, all.get());
    std::copy_n(h.get(), units, all.get() + units);
    std::copy_n(out.get(), units, all.get() + 2 * units);
    for (int i = 0; i < units; ++i) all[std::size_t(3 * units + i)] = float(plain(level, q[std::size_t(i)]));
    return all;
  }
  // What is stored, without what a level adds to it.
  static int plain(const Kernels* level, std::int8_t stored) {
    return std::int8_t(level->row_sums ? std::uint8_t(stored) ^ 0x80 : stored);
  }

  int units;
  By by;
  Exact<float> input, products, scales, c;
  Exact<std::int32_t> sums;
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

Messages messages(const Config& config, std::initializer_list<int> lengths) {
  Messages m;
  for (int length : lengths) m.add(length, config);
  return m;
}

// Batches, single messages and threads at all levels against the scalar one.
void check_equal_bits(const Sample& sample, const Messages& all, const std::string& what) {
  const Engine plain = sample.engine(kScalar);
  const Exact<float> wanted = logits(plain, all);
  CHECK(std::all_of(wanted.begin(), wanted.end(), [](float x) { return std::isfinite(x); }));
  for (const Kernels* level : all_levels()) {
    const Engine engine = sample.engine(level);
    bool equal = true;
    for (int threads : {1, 2, 4}) equal &= same(logits(engine, all, threads), wanted);
    for (int i = 0; i < all.size(); ++i) {
      Messages one;
      one.add(all, std::size_t(i));
      std::size_t n = 0;
      const float* alone = part(wanted, all, sample.config, i, &n);
      equal &= same(logits(engine, one, 1 + i % 3).get(), alone, n);
    }
    if (!equal) check::fail(__FILE__, __LINE__, std::string(level->name) + " differs: " + what);
  }
}

std::string refusal(const Config& config, const Matrices& matrices, const Vectors& vectors) {
  try {
    Engine(config, matrices, vectors, *kScalar);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

}  // namespace

// z = 0 but for g = 100: c = sigmoid(0) 3 + sigmoid(0) tanh(100) = 2, h = tanh(2) / 2. Then sums of 4 by 1/2, and -2.
TEST(lstm_cells_give_the_numbers_made_by_hand) {
  for (const Kernels* level : all_levels()) {
    Exact<float> input(3 + kLanes), c(kLanes, 3.0f), h(kLanes), scales(3 + kLanes, 0.5f), products(3 + kLanes, 2.0f), out(1);
    const Exact<std::int32_t> sums(3 + kLanes, 4);
    const Exact<std::int8_t> q(kLanes);
    input[2] = 100.0f;
    Cells cells;
    cells.input = input.get(), cells.scales = scales.get();
    cells.c = c.get(), cells.h = h.get(), cells.out = out.get(), cells.q = q.get();
    cells.units = 1;
    level->lstm_cells(cells);
    CHECK_EQUAL(c[0], 2.0f);
    CHECK(std::fabs(out[0] - 0.5 * std::tanh(2.0)) < 2e-7);
    CHECK_EQUAL(h[0], out[0]);
    CHECK_EQUAL(CellData::plain(level, q[0]), 61);  // 127 * 0.482014
    input.fill(-2.0f);
    cells.sums = sums.get();
    level->lstm_cells(cells);  // all z are 0
    CHECK_EQUAL(c[0], 1.0f);
    CHECK(std::fabs(out[0] - 0.5 * std::tanh(1.0)) < 2e-7);
    cells.sums = nullptr;
    cells.products = products.get();
    level->lstm_cells(cells);
    CHECK_EQUAL(c[0], 0.5f);
  }
}

TEST(lstm_cells_have_the_values_of_double_precision) {
  for (const By by : kBy) {
    const CellData data(37, by);
    const Exact<float> found = data.step(kScalar);
    for (int i = 0; i < data.units; ++i) {
      double z[4];
      for (int gate = 0; gate < 4; ++gate) {
        const int at = gate * data.units + i;
        z[gate] = data.input[at];
        if (by == By::int8) z[gate] += double(data.sums[at]) * double(data.scales[at]);
        if (by == By::floats) z[gate] += data.products[at];
      }
      const double c = sigmoid(z[1]) * data.c[i] + sigmoid(z[0]) * std::tanh(z[2]), h = sigmoid(z[3]) * std::tanh(c);
      CHECK(std::fabs(found[i] - c) < 4e-6);  // z up to 24: half a unit in the last place is 1e-6, times the slope
      CHECK(std::fabs(found[data.units + i] - h) < 4e-6);
      CHECK_EQUAL(found[data.units + i], found[2 * data.units + i]);
      CHECK_EQUAL(found[3 * data.units + i], std::nearbyint(found[data.units + i] * 127.0f));
    }
  }
}

TEST(every_level_computes_lstm_cells_like_the_scalar_one) {
  for (int units : {1, 10, 15, 16, 17, 64, 75, 150})
    for (const By by : kBy) {
      CellData data(units, by);
      const float extremes[] = {0.0f, -0.0f, 88.0f, -88.0f, 1e-40f, 3e38f, -3e38f, 1e-7f};
      for (std::size_t i = 0; i < data.input.size(); i += 3) data.input[i] = extremes[i / 3 % std::size(extremes)];
      const Exact<float> wanted = data.step(kScalar);
      for (const Kernels* level : fast_levels())
        if (!same(data.step(level), wanted))
          check::fail(__FILE__, __LINE__, std::string(level->name) + " differs: units " + std::to_string(units));
    }
}

TEST(lstm_cells_keep_what_is_not_finite) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (const Kernels* level : all_levels())
    for (float bad : {inf, -inf, nan})
      for (int gate = 0; gate < 4; ++gate) {
        CellData data(20, By::floats);
        data.input[std::size_t(gate * 20 + 17)] = bad;
        const Exact<float> found = data.step(level);
        for (int i = 0; i < 20; ++i) CHECK_EQUAL(std::isnan(found[std::size_t(20 + i)]), i == 17);
      }
}

// W = [[1, -3, 5], [127, -127, 0]] - shift, h in steps [2, -4, 1]: 2 + 12 + 5 = 19, 762; less the shift by -1, the sum of h.
TEST(products_with_one_token_are_the_numbers_made_by_hand) {
  for (const Kernels* level : all_levels())
    for (int shift : {0, 7}) {
      const Exact<std::int8_t> weights(64), q(4, std::int8_t(level->row_sums ? -128 : 0));
      const Exact<std::int32_t> start(kPanel), sums(kPanel, -1);
      const int w[2][3] = {{1, -3, 5}, {127, -127, 0}}, x[] = {2, -4, 1};
      for (int r = 0; r < 2; ++r)
        for (int k = 0; k < 3; ++k) {
          weights[std::size_t(4 * r + k)] = std::int8_t(w[r][k]);
          if (level->row_sums) start[std::size_t(r)] -= 128 * w[r][k];
        }
      for (std::size_t k = 0; k < 3; ++k) q[k] = std::int8_t(q[k] + x[k]);
      level->multiply_one({weights.get(), start.get(), 2, 3, shift}, q.get(), true, sums.get());
      CHECK_EQUAL(sums[0], 19 + shift);
      CHECK_EQUAL(sums[1], 762 + shift);
    }
}

TEST(every_level_multiplies_one_token_like_plain_sums) {
  for (int rows : {1, 16, 60, 128, 200, 600})
    for (int columns : {1, 4, 15, 64, 150})
      for (bool extreme : {false, true}) {
        const int padded = round_up(rows, kPanel), groups = round_up(columns, 4) / 4;
        const Exact<std::int8_t> weights(std::size_t(padded * groups * 4)), plain(std::size_t(round_up(columns, kLanes)));
        for (std::int8_t& w : weights) w = std::int8_t(extreme ? 127 : random_int(-127, 127));
        for (std::int8_t& x : plain) x = std::int8_t(extreme ? -127 : random_int(-127, 127));
        const auto at = [&](int r, int k) -> std::int8_t& {
          return weights[std::size_t(((r / kPanel * groups + k / 4) * kPanel + r % kPanel) * 4 + k % 4)];
        };
        for (int r = 0; r < padded; ++r)
          for (int k = 0; k < 4 * groups; ++k)
            if (r >= rows || k >= columns) at(r, k) = 0;
        const Exact<std::int32_t> wanted(padded);
        for (int r = 0; r < padded; ++r)
          for (int k = 0; k < columns; ++k) wanted[std::size_t(r)] += at(r, k) * plain[std::size_t(k)];
        for (const Kernels* level : all_levels()) {
          const Exact<std::int32_t> start(padded);
          const Exact<std::int8_t> q(plain.size());
          for (std::size_t k = 0; k < q.size(); ++k)
            q[k] = std::int8_t(level->row_sums ? std::uint8_t(plain[k]) ^ 0x80 : plain[k]);
          for (int r = 0; level->row_sums && r < rows; ++r)
            for (int k = 0; k < columns; ++k) start[std::size_t(r)] -= 128 * at(r, k);
          for (bool up : {true, false}) {
            const Exact<std::int32_t> found(padded, -1);
            level->multiply_one({weights.get(), start.get(), rows, columns, 0}, q.get(), up, found.get());
            if (std::memcmp(found.get(), wanted.get(), std::size_t(padded) * 4) != 0)
              check::fail(__FILE__, __LINE__, std::string(level->name) + " differs: " + std::to_string(rows) + " x " +
                                                  std::to_string(columns));
          }
        }
      }
}

TEST(every_level_takes_the_largest_like_the_scalar_one) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const float x[] = {1, -2, nan, -5, 4, -3, 4, inf, 2, -1, 5, -inf};
  const float by_hand[] = {4, -1, nan, nan};
  for (const Kernels* level : all_levels()) {
    float out[4];
    level->most(x, 4, 3, 4, out);
    CHECK(same(out, by_hand, 4));
  }
  for (int columns : {1, 16, 33, 300})
    for (int n : {1, 7, 70}) {
      const Exact<float> values(std::size_t(n - 1) * std::size_t(columns + 2) + std::size_t(columns)), wanted(columns);
      fill_random(values);
      kScalar->most(values.get(), columns + 2, n, columns, wanted.get());
      for (const Kernels* level : fast_levels()) {
        const Exact<float> found(columns);
        level->most(values.get(), columns + 2, n, columns, found.get());
        CHECK(same(found, wanted));
      }
    }
}

TEST(engine_layers_of_all_kinds_give_equal_bits) {
  constexpr const char* kSparse[] = {"sparse int8", "sparse 4 bits, blocks", "sparse static 2 bits", "sparse static int8, blocks"};
  std::vector<std::string> forms(std::begin(kWeights), std::end(kWeights));
  forms.insert(forms.end(), std::begin(kSparse), std::end(kSparse));
  for (const std::string& weights : forms) {
    const Sample sample(weights, Pooling::max, 0, 5, {"clt", 70, 31});
    check_equal_bits(sample, messages(sample.config, {1, 3, 60, 17, 2, 16, 1, 33, 5}), weights);
  }
  struct Kind {
    const char* layers;
    int hidden, ngrams, embedding;
    Pooling pooling;
  };
  const Kind kinds[] = {{"", 20, 31, 0, Pooling::max},     {"", 70, 1, 0, Pooling::mean},       {"l", 2, 0, 0, Pooling::cls},
                        {"ll", 128, 0, 37, Pooling::mean}, {"ccc", 20, 7, 0, Pooling::max},     {"c", 64, 0, 0, Pooling::cls_tanh},
                        {"tlc", 20, 0, 3, Pooling::max},   {"l", 150, 1000, 0, Pooling::mean}};
  for (const Kind& kind : kinds) {
    const Sample sample("mixed", kind.pooling, kind.embedding, 5, {kind.layers, kind.hidden, kind.ngrams});
    check_equal_bits(sample, messages(sample.config, {7, 1, 20, 20, 2}), std::string("layers '") + kind.layers + "'");
  }
}

TEST(engine_lstm_of_many_messages_gives_equal_bits) {
  const Sample sample("int8", Pooling::mean, 0, 5, {"l"});
  Messages all = messages(sample.config, {15});
  for (int i = 0; i < 80; ++i) all.add(1, sample.config);
  check_equal_bits(sample, all, "many messages");
}

// One unit a direction, tokens alike: x = [0, 0] behind a norm of weight 0, so that all gates' inputs are their biases.
TEST(engine_lstm_has_the_numbers_made_by_hand) {
  Sample s("float32", Pooling::mean, 0, 2, {"l", 2});
  const auto fill = [&](Span<float> values, std::initializer_list<float> with) {
    std::size_t i = 0;
    for (std::size_t n = 0; n < values.size; ++n) const_cast<float*>(values.data)[n] = std::data(with)[i++ % with.size()];
  };
  fill(s.vectors["embeddings.norm.weight"], {0.0f});
  fill(s.vectors["embeddings.norm.bias"], {0.0f});
  fill(s.matrices["layers.0.lstm.input"].bias, {0.0f, 0.0f, 100.0f, 0.0f, 0.0f, 0.0f, -100.0f, 0.0f});
  for (const char* direction : {"forward", "backward"}) {
    MatrixSource& m = s.matrices[std::string("layers.0.lstm.") + direction];  // only i hears h: i = 2 h, or -2 h
    const Exact<float> w(16);
    w[0] = direction[0] == 'f' ? 2.0f : -2.0f;
    std::copy(w.begin(), w.end(), const_cast<float*>(reinterpret_cast<const float*>(m.data.data)));
  }
  fill(s.vectors["layers.0.lstm.norm.weight"], {1.0f});
  fill(s.vectors["layers.0.lstm.norm.bias"], {0.0f});
  // Forward: c = 1/2, h = tanh(1/2) / 2 =: a; then c = 1/4 + sigmoid(2 a). Backward is its mirror, so x + h is [h, -h'],
  // and the norm of two numbers u > v is [1, -1] but for eps: 1 / sqrt(1 + eps / d^2), d = (u - v) / 2.
  const double a = 0.5 * std::tanh(0.5), b = 0.5 * std::tanh(0.25 + 1 / (1 + std::exp(-2 * a)));
  const double d = 0.5 * (a + b), normed = d / std::sqrt(d * d + double(s.config.norm_eps));
  for (const char* head : {"heads.intent"}) {
    MatrixSource& m = s.matrices[head];
    const Exact<float> w(32);
    w[0] = 1.0f, w[17] = 1.0f;  // intents read features 0 and 1
    std::copy(w.begin(), w.end(), const_cast<float*>(reinterpret_cast<const float*>(m.data.data)));
    fill(m.bias, {0.0f});
  }
  Messages m;
  m.ids = {3, 4}, m.lengths = {2}, m.n_words = {0};
  for (const Kernels* level : all_levels()) {
    const Exact<float> found = logits(s.engine(level), m);
    CHECK(std::fabs(found[0] - normed) < 1e-6 && std::fabs(found[1] + normed) < 1e-6);
  }
}

// Weights that pick one column each: intent i is relu of feature i of the token before, at and after, by the middle token.
TEST(engine_convolution_sees_neighbours_and_zeros_beyond_the_ends) {
  Sample s("float32", Pooling::cls, 0, 5, {"c", 2});
  s.config.activation = Activation::relu;
  const auto data = [&](const std::string& name) {
    return const_cast<float*>(reinterpret_cast<const float*>(s.matrices[name].data.data));
  };
  const auto zero = [&](const std::string& name) {
    std::fill_n(data(name), s.matrices[name].data.size / sizeof(float), 0.0f);
  };
  for (const char* name : {"embeddings.words", "embeddings.positions", "layers.0.convolution", "heads.intent"}) zero(name);
  for (const char* name : {"embeddings.norm.bias", "layers.0.convolution.norm.bias"})
    std::fill_n(const_cast<float*>(s.vectors[name].data), 2, 0.0f);
  std::fill_n(const_cast<float*>(s.vectors["embeddings.norm.weight"].data), 2, 1.0f);
  std::fill_n(const_cast<float*>(s.vectors["layers.0.convolution.norm.weight"].data), 2, 1.0f);
  for (const char* name : {"layers.0.convolution", "heads.intent"})
    std::fill_n(const_cast<float*>(s.matrices[name].bias.data), s.matrices[name].bias.size, 0.0f);
  for (int id = 0; id < 50; ++id) data("embeddings.words")[2 * id + id % 2] = 2.0f;  // normed: even ids [1, -1], odd [-1, 1]
  // feature 0 gets 3 x_{t-1}[0], feature 1 gets 5 x_{t+1}[1]; columns x_{t-1}, x_t, x_{t+1} by two, 16 rows a column
  data("layers.0.convolution")[0 * kPanel + 0] = 3.0f;
  data("layers.0.convolution")[5 * kPanel + 1] = 5.0f;
  data("heads.intent")[0] = 1.0f;
  // cls is token 0: no token before it. id 1: x = [-1, 1]; + [0, 5 relu(x_1[1])]: odd 1 next -> [-1, 6], even -> [-1, 1]
  // and alone -> [-1, 1]: all are normed to [-1, 1]. id 0: x = [1, -1]; odd next -> [1, 4]: normed [-1, 1]; even -> [1, -1].
  const struct {
    std::vector<std::int32_t> ids;
    float wanted;
  } cases[] = {{{1, 1}, -1.0f}, {{0, 1}, -1.0f}, {{0, 2}, 1.0f}, {{0}, 1.0f}, {{1}, -1.0f}};
  Messages all;
  for (const auto& one : cases) {
    all.ids.insert(all.ids.end(), one.ids.begin(), one.ids.end());
    all.lengths.push_back(int(one.ids.size()));
    all.n_words.push_back(0);
  }
  for (const Kernels* level : all_levels()) {
    const Exact<float> found = logits(s.engine(level), all);
    for (std::size_t i = 0; i < std::size(cases); ++i) CHECK(std::fabs(found[i * 5] - cases[i].wanted) < 1e-5);
  }
}

// Buckets of pairs (id before or none, id) of the ids 3, 4, 3 by 1000, from Python's arithmetic of the same formula.
TEST(engine_looks_up_the_bucket_of_each_pair) {
  Sample s("float32", Pooling::max, 0, 5, {"", 2, 1000});
  const auto data = [&](const std::string& name) {
    return const_cast<float*>(reinterpret_cast<const float*>(s.matrices[name].data.data));
  };
  for (const char* name : {"embeddings.words", "embeddings.positions", "embeddings.ngrams"})
    std::fill_n(data(name), s.matrices[name].data.size / sizeof(float), 0.0f);
  const std::int32_t ids[] = {3, 4, 3};
  const int buckets[] = {238, 410, 831};
  Messages m;
  m.ids.assign(ids, ids + 3);
  m.lengths = {3}, m.n_words = {3}, m.first = {0, 1, 2};
  const Exact<float> zeros = logits(s.engine(kScalar), m);
  for (int t = 0; t < 3; ++t) {  // a row that is not zero is seen by its token alone
    data("embeddings.ngrams")[2 * buckets[t]] = 1.0f;
    for (const Kernels* level : all_levels()) {
      const Exact<float> found = logits(s.engine(level), m);
      for (int word = 0; word < 3; ++word)
        CHECK_EQUAL(same(found.get() + 5 + word * 7, zeros.get() + 5 + word * 7, 7), word != t);
    }
    data("embeddings.ngrams")[2 * buckets[t]] = 0.0f;
  }
}

TEST(engine_what_is_not_finite_stays_with_its_message_in_all_kinds) {
  for (const char* weights : {"float32", "int8", "4 bits", "static int8"})
    for (const char* layers : {"l", "c", "lc", ""})
      for (Pooling pooling : {Pooling::max, Pooling::mean}) {
        Sample s(weights, pooling, 0, 5, {layers, 20, 11});
        MatrixSource& words = s.matrices["embeddings.words"];
        words.values = Values::float32;
        const Span<float> values = s.floats(50 * 20, 0.0f, 1.0f);
        for (int i = 0; i < 20; ++i) const_cast<float*>(values.data)[7 * 20 + i] = 3e38f;
        words.data = {reinterpret_cast<const std::uint8_t*>(values.data), values.size * sizeof(float)};
        words.table = {};
        Messages clean = messages(s.config, {3, 9, 1, 20}), spoilt;
        for (auto& id : clean.ids) id = id == 7 ? 8 : id;
        spoilt = clean;
        spoilt.ids[5] = 7;  // of the second message
        for (const Kernels* level : all_levels()) {
          const Engine engine = s.engine(level);
          const Exact<float> wanted = logits(engine, clean), found = logits(engine, spoilt);
          for (int i = 0; i < clean.size(); ++i) {
            std::size_t n = 0;
            const float* a = part(found, clean, s.config, i, &n);
            if (i == 1) {
              for (int j = 0; j < 5; ++j) CHECK(!std::isfinite(a[j]));
            } else {
              CHECK(same(a, part(wanted, clean, s.config, i, &n), n));
            }
          }
          CHECK(same(logits(engine, clean), wanted));
        }
      }
}

TEST(engine_refuses_layers_that_do_not_fit) {
  const Sample s("int8", Pooling::max, 0, 5, {"clt", 20, 31});
  const auto said = [&](auto change) {
    Config config = s.config;
    Matrices matrices = s.matrices;
    Vectors vectors = s.vectors;
    change(config, matrices, vectors);
    return refusal(config, matrices, vectors);
  };
  const auto config = [&](auto change) { return said([&](Config& c, Matrices&, Vectors&) { change(c); }); };
  const auto matrix = [&](const char* name, auto change) {
    return said([&](Config&, Matrices& m, Vectors&) { change(m.at(name)); });
  };
  CHECK_EQUAL(config([](Config&) {}), "accepted");
  CHECK_EQUAL(config([](Config& c) { c.widths.pop_back(); }), "3 layers by kinds, 2 by widths; they must be as many");
  CHECK_EQUAL(config([](Config& c) { c.kinds.push_back(LayerKind::lstm); }), "4 layers by kinds, 3 by heads; they must be as many");
  for (int width : {-3, 0, 2, 17, std::numeric_limits<int>::max()})
    CHECK_EQUAL(config([=](Config& c) { c.widths[0] = width; }),
                "layers.0: its width is " + std::to_string(width) + "; allowed: odd numbers from 1 to 15");
  CHECK_EQUAL(config([](Config& c) { c.widths[0] = 5; }), "layers.0.convolution: is 20 x 60; the model says 20 x 100");
  CHECK_EQUAL(config([](Config& c) { c.widths[2] = 3; }), "layers.2: has a width; only a convolution may have one");
  CHECK_EQUAL(config([](Config& c) { c.heads[1] = 1; }), "layers.1: has heads or an ffn; only a transformer's layer may have them");
  CHECK_EQUAL(config([](Config& c) { c.ffn[0] = 1; }), "layers.0: has heads or an ffn; only a transformer's layer may have them");
  CHECK_EQUAL(config([](Config& c) { c.ngrams = -1; }), "ngrams is -1; allowed: 1 to 2^29");
  CHECK_EQUAL(config([](Config& c) { c.ngrams = 30; }), "embeddings.ngrams: is 31 x 20; the model says 30 x 20");
  CHECK_EQUAL(config([](Config& c) { c.kinds[1] = LayerKind::transformer; }), "layers.1.attention.qkv: is missing");
  CHECK_EQUAL(config([](Config& c) { c.integer_only = true; }), "embeddings.ngrams: are not computed in integers; the model is integer_only");
  for (const char* name : {"embeddings.ngrams", "layers.0.convolution", "layers.1.lstm.input", "layers.1.lstm.forward", "layers.1.lstm.backward"}) {
    CHECK_EQUAL(said([&](Config&, Matrices& m, Vectors&) { m.erase(name); }), std::string(name) + ": is missing");
    CHECK(matrix(name, [](MatrixSource& m) { m.rows += 1; }).find("; the model says ") != std::string::npos);
    CHECK(matrix(name, [](MatrixSource& m) { m.data.size -= 1; }).find("data (bytes) has ") != std::string::npos);
  }
  for (const char* name : {"layers.0.convolution.norm.weight", "layers.1.lstm.norm.bias"})
    CHECK_EQUAL(said([&](Config&, Matrices&, Vectors& v) { v.erase(name); }), std::string(name) + ": is missing");
  const char* const recurrent = "layers.1.lstm.forward";
  for (float scale : {0.0f, 0.02f})
    CHECK_EQUAL(matrix(recurrent, [=](MatrixSource& m) { m.input_scale = scale; }),
                std::string(recurrent) + ": its input scale is " + std::to_string(scale) + "; that of hidden states is 1/127");
  const float bias[40] = {};
  CHECK_EQUAL(matrix(recurrent, [&](MatrixSource& m) { m.bias = {bias, 40}; }),
              std::string(recurrent) + ": has a bias; the gates have it from their input");
  const Sample odd("int8", Pooling::mean, 0, 5, {"", 21});
  Config with_lstm = odd.config;
  with_lstm.kinds = {LayerKind::lstm};
  with_lstm.heads = with_lstm.ffn = with_lstm.widths = {0};
  CHECK_EQUAL(refusal(with_lstm, odd.matrices, odd.vectors),
              "layers.0: an LSTM has two directions of hidden / 2 units; hidden is 21, it must be even and at most 65536");
  for (const char* layers : {"l", "c"}) {
    Sample integers("static int8", Pooling::mean, 0, 5, {layers});
    integers.config.integer_only = true;
    CHECK_EQUAL(refusal(integers.config, integers.matrices, integers.vectors),
                "layers.0: is no transformer's; others are not computed in integers; the model is integer_only");
  }
}
