// What does not fit is refused in one line, before anything beyond it is read.
#include <algorithm>
#include <limits>

#include "tests/engine_cases.h"

using namespace cases;

namespace {

std::string refusal(const Config& config, const Matrices& matrices, const Vectors& vectors) {
  try {
    Engine(config, matrices, vectors, *scalar_kernels());
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

bool says(const std::string& text, const std::string& part) {
  if (text.find(part) != text.npos && text.find('\n') == text.npos) return true;
  std::fprintf(stderr, "'%s' does not say '%s'\n", text.c_str(), part.c_str());
  return false;
}

}  // namespace

TEST(engine_refuses_matrices_that_do_not_fit) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinite = std::numeric_limits<float>::infinity();
  const Sample all[] = {Sample("float32"), Sample("int8 with shift"), Sample("4 bits", Pooling::cls_relu, 37),
                        Sample("2 bits, 3 centres")};
  for (const Sample& s : all) {
    CHECK_EQUAL(refusal(s.config, s.matrices, s.vectors), "accepted");
    for (const auto& entry : s.matrices) {
      const std::string name = entry.first;
      const bool looked_up = name == "embeddings.words" || name == "embeddings.positions";
      const auto changed = [&](auto change) {
        Matrices copy = s.matrices;
        change(copy[name]);
        return refusal(s.config, copy, s.vectors);
      };
      Matrices without = s.matrices;
      without.erase(name);
      CHECK(says(refusal(s.config, without, s.vectors), name + ": is missing"));
      for (int by : {-1, 1}) {
        CHECK(says(changed([&](MatrixSource& m) { m.rows += by; }), "; the model says "));
        CHECK(says(changed([&](MatrixSource& m) { m.columns += by; }), "; the model says "));
        if (entry.second.data.size)
          CHECK(says(changed([&](MatrixSource& m) { m.data.size += std::size_t(by); }), "data (bytes) has "));
        if (entry.second.scale.size > 1)
          CHECK(says(changed([&](MatrixSource& m) { m.scale.size += std::size_t(by); }), "scale has "));
        if (entry.second.table.size)
          CHECK(says(changed([&](MatrixSource& m) { m.table.size += std::size_t(by); }), "table"));
        if (!looked_up && entry.second.bias.size)
          CHECK(says(changed([&](MatrixSource& m) { m.bias.size += std::size_t(by); }), "bias"));
      }
      CHECK(says(changed([](MatrixSource& m) { m.rows = -1; }), "; the model says "));
      CHECK(says(changed([](MatrixSource& m) { m.data = {}; }), entry.second.data.size ? "data (bytes)" : "accepted"));
      CHECK(says(changed([](MatrixSource& m) { m.shift = 128; }), "shift"));
      for (float bad : {nan, infinite, -infinite}) {
        const auto spoilt = [&](Span<float> values) {
          const Exact<float> copy(values.size);
          std::copy_n(values.data, values.size, copy.get());
          copy[values.size - 1] = bad;
          return changed([&](MatrixSource& m) {
            (values.data == m.scale.data ? m.scale : m.bias) = {copy.get(), copy.size()};
          });
        };
        if (entry.second.scale.size) CHECK(says(spoilt(entry.second.scale), "NaN or infinite"));
        if (entry.second.bias.size) CHECK(says(spoilt(entry.second.bias), "NaN or infinite"));
        if (entry.second.values == Values::float32 && entry.second.data.size) {
          const Exact<float> copy(entry.second.data.size / sizeof(float), 1.0f);
          copy[copy.size() - 1] = bad;
          const auto* data = reinterpret_cast<const std::uint8_t*>(copy.get());
          CHECK(says(changed([&](MatrixSource& m) { m.data.data = data; }), "NaN or infinite"));
        }
      }
      if (entry.second.values != Values::float32) {
        CHECK(says(changed([](MatrixSource& m) { m.scale = {}; }), "scale"));
        CHECK(says(changed([](MatrixSource& m) { m.integer = !m.integer; }), looked_up ? "looked up" : "float activations"));
      }
      if (entry.second.values == Values::codes)
        for (int bits : {-1, 0, 3, 9, 64}) {
          const std::string text = changed([&](MatrixSource& m) { m.bits = bits; });
          CHECK(says(text, looked_up && bits == 3 ? "data (bytes)" : "bits"));
        }
    }
  }
}

TEST(engine_refuses_vectors_and_sizes_that_do_not_fit) {
  const Sample s("mixed");
  for (const auto& [name, vector] : s.vectors) {
    Vectors copy = s.vectors;
    copy.erase(name);
    CHECK(says(refusal(s.config, s.matrices, copy), name + ": is missing"));
    if (vector.size == 0) continue;  // a relative bias of no heads
    copy = s.vectors;
    copy[name].size -= 1;
    CHECK(says(refusal(s.config, s.matrices, copy), name));
    const Exact<float> spoilt(vector.size, std::numeric_limits<float>::quiet_NaN());
    copy[name] = {spoilt.get(), spoilt.size()};
    CHECK(says(refusal(s.config, s.matrices, copy), "NaN or infinite"));
  }
  const auto with = [&](auto change) {
    Config c = s.config;
    change(c);
    return refusal(c, s.matrices, s.vectors);
  };
  const int kMost = std::numeric_limits<int>::max();
  for (int n : {-1, 0, kMost, -kMost - 1}) {
    CHECK(says(with([=](Config& c) { c.hidden = n; }), "hidden is "));
    CHECK(says(with([=](Config& c) { c.head_size = n; }), "head_size is "));
    CHECK(says(with([=](Config& c) { c.vocab_size = n; }), "vocab_size is "));
    CHECK(says(with([=](Config& c) { c.max_positions = n; }), "max_positions is "));
    if (n) CHECK(says(with([=](Config& c) { c.n_intents = n; }), "n_intents is "));
    if (n) CHECK(says(with([=](Config& c) { c.embedding = n; }), "embedding is "));
    if (n) CHECK(says(with([=](Config& c) { c.n_tags = n; }), "n_tags is "));
    if (n) CHECK(says(with([=](Config& c) { c.heads[0] = n; }), "layers.0: heads or ffn below 0, or wider than 65536"));
    if (n) CHECK(says(with([=](Config& c) { c.ffn[1] = n; }), "layers.1: heads or ffn below 0, or wider than 65536"));
  }
  CHECK(says(with([](Config& c) { c.n_intents = 0; }), "heads.intent: is 5 x 20; the model says 0 x 20"));
  CHECK(says(with([](Config& c) { c.n_intents = c.n_tags = 0; }), "n_intents is 0; allowed: 1 to 2^29"));
  CHECK(says(with([](Config& c) { c.embedding = 21; }), "embeddings.words: is 50 x 20; the model says 50 x 21"));
  CHECK(says(with([](Config& c) { c.embedding = 20; }), "embeddings.projection: is missing"));
  CHECK(says(with([](Config& c) { c.pooling = Pooling::cls_gelu; }), "heads.pooler: is missing"));
  CHECK(says(with([](Config& c) { c.head_size = 1 << 29; }), "head_size is "));
  CHECK(says(with([](Config& c) { c.ffn.pop_back(); }), "they must be as many"));
  CHECK(says(with([](Config& c) { c.buckets.pop_back(); }), "buckets has 198 entries; it must have 199"));
  for (int bucket : {-1, 8, kMost}) CHECK(says(with([=](Config& c) { c.buckets[7] = bucket; }), "is unknown"));
  for (float eps : {0.0f, -1.0f, 1.0f, std::numeric_limits<float>::quiet_NaN()})
    CHECK(says(with([=](Config& c) { c.norm_eps = eps; }), "norm_eps is "));
  CHECK(says(with([](Config& c) { c.max_positions += 1; }), "embeddings.positions: is 100 x 20; the model says 101 x 20"));
}

TEST(engine_refuses_messages_that_do_not_fit) {
  const Sample s("int8");
  const Engine engine = s.engine(all_levels()[0]);
  const auto said = [&](std::vector<std::int32_t> lengths, std::int32_t id, std::vector<std::int32_t> words,
                        std::int32_t first) {
    Messages m;
    m.lengths = lengths;
    m.n_words = words;
    m.ids.assign(400, id);
    m.first.assign(400, first);
    std::vector<float> intent(50), tags(4000);
    try {
      engine.logits(m.ids.data(), m.lengths.data(), m.size(), m.first.data(), m.n_words.data(), 1, intent.data(),
                    tags.data());
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  CHECK_EQUAL(said({2, 100}, 49, {2, 0}, 1), "accepted");
  CHECK_EQUAL(said({}, 49, {}, 1), "accepted");
  for (int length : {0, -1, 101, std::numeric_limits<int>::max()})
    CHECK(says(said({2, length}, 4, {0, 0}, 0), "message 1 has " + std::to_string(length) + " tokens; allowed: 1 to 100"));
  for (int id : {-1, 50, std::numeric_limits<int>::min()})
    CHECK(says(said({2}, id, {0}, 0), "token id " + std::to_string(id) + "; allowed: 0 to 49"));
  for (int n : {-1, 3}) CHECK(says(said({2}, 0, {n}, 0), "more words than tokens"));
  for (int first : {-1, 2}) CHECK(says(said({2}, 0, {1}, first), "a word begins outside of its message"));
}
