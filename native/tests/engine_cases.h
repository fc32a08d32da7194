// A small model with random weights, made without Python or a file, and random messages for it.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "tests/kernel_cases.h"

namespace cases {

// An emulator runs these tests (CMakeLists.txt says so): a hundred times slower, and it cannot fork among threads.
inline bool emulated() { return std::getenv("FLYWEIGHT_EMULATED") != nullptr; }
inline int rounds(int n) { return emulated() ? 1 + n / 20 : n; }

// Of which parts a model is made: t, l, c for layers that are a transformer's, an LSTM, a convolution.
struct Parts {
  std::string layers = "ttt";
  int hidden = 20, ngrams = 0;
};

// What an engine reads. Every array has its own memory without slack: the address sanitizer sees what lies beyond.
struct Sample {
  // weights: the form of all matrices, or "mixed"; "static" forms have input scales, and attention is integer then, in
  // a mixed model every other one; "sparse" ones, of what is multiplied, may end in "blocks". Sizes that neither 16 nor 64
  // divides; embedding: as in Config.
  explicit Sample(const std::string& weights, Pooling pooling = Pooling::mean, int embedding_width = 0, int n_intents = 5,
                  const Parts& parts = {})
      : weights_(weights) {
    config.hidden = parts.hidden;
    config.ngrams = parts.ngrams;
    config.embedding = embedding_width;
    config.head_size = 5;
    config.vocab_size = 50;
    config.max_positions = 100;
    config.n_intents = n_intents;
    config.n_tags = 7;
    for (std::size_t i = 0; i < parts.layers.size(); ++i) {
      const char kind = parts.layers[i];
      constexpr int kHeads[] = {3, 0, 2}, kFfn[] = {70, 33, 0}, kWidths[] = {3, 1, 15};
      config.kinds.push_back(kind == 't' ? LayerKind::transformer : kind == 'l' ? LayerKind::lstm : LayerKind::convolution);
      config.heads.push_back(kind == 't' ? kHeads[i % 3] : 0);
      config.ffn.push_back(kind == 't' ? kFfn[i % 3] : 0);
      config.widths.push_back(kind == 'c' ? kWidths[i % 3] : 0);
    }
    config.pooling = pooling;
    config.norm_eps = 1e-6f;
    config.worth_a_thread = 1;
    for (int i = 0; i < 2 * config.max_positions - 1; ++i) config.buckets.push_back(i * 8 / (2 * config.max_positions));
    embedding("embeddings.words", config.vocab_size);
    embedding("embeddings.positions", config.max_positions);
    if (config.ngrams) embedding("embeddings.ngrams", config.ngrams);
    norm("embeddings.norm", looked_up());
    if (config.embedding) linear("embeddings.projection", config.hidden, config.embedding);
    for (std::size_t i = 0; i < config.heads.size(); ++i) {
      const std::string layer = "layers." + std::to_string(i);
      if (config.kinds[i] == LayerKind::lstm) {
        const int units = config.hidden / 2;
        linear(layer + ".lstm.input", 8 * units, config.hidden);
        recurrent(layer + ".lstm.forward", units);
        recurrent(layer + ".lstm.backward", units);
        norm(layer + ".lstm.norm", config.hidden);
        continue;
      }
      if (config.kinds[i] == LayerKind::convolution) {
        linear(layer + ".convolution", config.hidden, config.widths[i] * config.hidden);
        norm(layer + ".convolution.norm", config.hidden);
        continue;
      }
      const int width = config.heads[i] * config.head_size;
      linear(layer + ".attention.qkv", 3 * width, config.hidden);
      linear(layer + ".attention.out", config.hidden, width);
      linear(layer + ".ffn.up", config.ffn[i], config.hidden);
      linear(layer + ".ffn.down", config.hidden, config.ffn[i]);
      norm(layer + ".attention.norm", config.hidden);
      norm(layer + ".ffn.norm", config.hidden);
      vectors[layer + ".attention.relative_bias"] = floats(std::size_t(8 * config.heads[i]), 0.0f, 1.0f);
    }
    if (pooling > Pooling::cls) linear("heads.pooler", config.hidden, config.hidden);
    linear("heads.intent", config.n_intents, config.hidden);
    linear("heads.tags", config.n_tags, config.hidden);
  }

  Engine engine(const Kernels* level) const { return Engine(config, matrices, vectors, *level); }

  Span<float> floats(std::size_t n, float mean, float spread) {
    kept_.emplace_back(n);
    for (float& x : kept_.back()) x = mean + spread * random_float();
    return {kept_.back().get(), n};
  }

  Config config;
  Matrices matrices;
  Vectors vectors;

 private:
  int looked_up() const { return config.embedding ? config.embedding : config.hidden; }

  std::string form() {
    static const char* const kAll[] = {"int8",  "float32",     "4 bits",        "int8 with shift",   "static 4 bits",
                                       "1 bit", "static int8", "static 2 bits", "2 bits, 3 centres", "static int8 with shift"};
    return weights_ == "mixed" ? kAll[n_matrices_++ % std::size(kAll)] : weights_;
  }

  static std::string without(const char* prefix, const std::string& form) {
    return form.starts_with(prefix) ? form.substr(std::string(prefix).size()) : form;
  }

  template <class T>
  Span<T> bytes(std::size_t n) {
    bytes_.emplace_back(n);
    for (std::uint8_t& x : bytes_.back()) {
      x = std::uint8_t(random_int(0, 255));
      if (x == 0x80) x = 0;  // -128 is no weight
    }
    return {reinterpret_cast<const T*>(bytes_.back().get()), n};
  }

  // Scales and tables of integer weights, `tables` of them.
  void integers(MatrixSource& m, const std::string& form, int tables) {
    m.values = form.rfind("int8", 0) == 0 ? Values::int8 : Values::codes;
    m.bits = m.values == Values::int8 ? (m.block ? 8 : 0) : form[0] - '0';
    m.shift = form == "int8 with shift" ? -21 : 0;
    m.scale = floats(m.shift ? 1 : std::size_t(tables), 0.003f, 0.001f);
    const int centres = form == "2 bits, 3 centres" ? 3 : 1 << m.bits;
    if (m.values == Values::codes) m.table = bytes<std::int8_t>(std::size_t(tables * centres));
  }

  void linear(const std::string& name, int rows, int columns) {
    MatrixSource m;
    const std::string full = rows && columns ? form() : "float32", dense = without("sparse ", full);
    const std::string chosen = without("static ", dense);
    if (chosen != dense) m.input_scale = 0.02f;
    if (name.ends_with(".qkv") && (weights_ == "mixed" ? n_mixed_attentions_++ % 2 == 0 : chosen != dense))
      m.output_scales = {0.03f, 0.02f, 0.025f};
    m.rows = rows;
    m.columns = columns;
    m.bias = floats(std::size_t(rows), 0.0f, 0.3f);
    const int panels = round_up(rows, kPanel) / kPanel;
    if (chosen == "float32") {
      const Span<float> w = floats(std::size_t(panels * kPanel * columns), 0.0f, 0.4f);
      m.data = {reinterpret_cast<const std::uint8_t*>(w.data), w.size * sizeof(float)};
    } else if (dense != full) {
      m.integer = true;
      m.block = full.ends_with("blocks") ? 4 : 1;
      integers(m, chosen, rows);
      survivors(m);
    } else {
      m.integer = true;
      integers(m, chosen, rows);
      const int held = m.values == Values::codes ? 512 / m.bits : kPiece;
      m.data = bytes<std::uint8_t>(std::size_t(panels * kPanel * kPiece * (round_up(columns, held) / held)));
    }
    matrices[name] = m;
  }

  // Every other bit of the mask or so.
  void survivors(MatrixSource& m) {
    const int n_bits = round_up(m.columns, kPiece) / m.block;
    const Exact<std::uint8_t> mask(std::size_t(round_up(m.rows, kPanel) * n_bits / 8));
    int n = 0;
    for (int r = 0; r < m.rows; ++r)
      for (int i = 0; i * m.block < m.columns; ++i)
        if (random_int(0, 1)) mask[std::size_t(r * n_bits + i) / 8] |= std::uint8_t(1 << i % 8), n += m.block;
    m.mask = bytes<std::uint8_t>(mask.size());
    std::copy(mask.begin(), mask.end(), const_cast<std::uint8_t*>(m.mask.data));
    m.data = bytes<std::uint8_t>(std::size_t((n * m.bits + 7) / 8 + 64));
  }

  // Of hidden states: no bias, and their own steps.
  void recurrent(const std::string& name, int units) {
    linear(name, 4 * units, units);
    matrices[name].bias = {};
    if (matrices[name].integer) matrices[name].input_scale = 1.0f / 127.0f;
  }

  void embedding(const std::string& name, int rows) {
    MatrixSource m;
    const std::string chosen = without("static ", without("sparse ", form()));
    m.rows = rows;
    m.columns = looked_up();
    if (chosen == "float32") {
      const Span<float> w = floats(std::size_t(rows * looked_up()), 0.0f, 1.0f);
      m.data = {reinterpret_cast<const std::uint8_t*>(w.data), w.size * sizeof(float)};
    } else {
      integers(m, chosen, rows);
      const int bits = m.values == Values::int8 ? 8 : m.bits;
      m.data = bytes<std::uint8_t>(std::size_t(rows * ((looked_up() * bits + 7) / 8)));
    }
    matrices[name] = m;
  }

  void norm(const std::string& name, int columns) {
    vectors[name + ".weight"] = floats(std::size_t(columns), 1.0f, 0.3f);
    vectors[name + ".bias"] = floats(std::size_t(columns), 0.0f, 0.3f);
  }

  std::string weights_;
  std::size_t n_matrices_ = 0, n_mixed_attentions_ = 0;
  std::vector<Exact<float>> kept_;
  std::vector<Exact<std::uint8_t>> bytes_;
};

constexpr const char* kWeights[] = {"float32", "int8",        "int8 with shift",        "4 bits",        "2 bits, 3 centres",
                                    "1 bit",   "static int8", "static int8 with shift", "static 4 bits", "mixed"};

// Messages one after another, as Engine::logits takes them.
struct Messages {
  std::vector<std::int32_t> ids, lengths, first, n_words;

  void add(int length, const Config& config) {
    lengths.push_back(length);
    for (int i = 0; i < length; ++i) ids.push_back(random_int(0, config.vocab_size - 1));
    n_words.push_back(random_int(0, length));
    for (int i = 0; i < n_words.back(); ++i) first.push_back(random_int(0, length - 1));
  }
  void add(const Messages& from, std::size_t which) {
    const auto part = [which](const auto& sizes, const auto& values, auto& to) {
      std::size_t at = 0;
      for (std::size_t i = 0; i < which; ++i) at += std::size_t(sizes[i]);
      to.insert(to.end(), values.begin() + std::ptrdiff_t(at), values.begin() + std::ptrdiff_t(at) + sizes[which]);
    };
    part(from.lengths, from.ids, ids);
    part(from.n_words, from.first, first);
    lengths.push_back(from.lengths[which]);
    n_words.push_back(from.n_words[which]);
  }
  int size() const { return int(lengths.size()); }
};

// Of one message after another: intent logits, then those of its words.
inline Exact<float> logits(const Engine& engine, const Messages& m, int threads = 1) {
  const auto n_intents = std::size_t(engine.config().n_intents), n_tags = std::size_t(engine.config().n_tags);
  const Exact<float> intent(m.lengths.size() * n_intents), tags(m.first.size() * n_tags);
  engine.logits(m.ids.data(), m.lengths.data(), m.size(), m.first.data(), m.n_words.data(), threads, intent.get(),
                tags.get());
  Exact<float> all(intent.size() + tags.size());
  float *to = all.get(), *tag = tags.get();
  for (std::size_t i = 0; i < m.lengths.size(); ++i) {
    to = std::copy_n(intent.get() + i * n_intents, n_intents, to);
    const std::size_t n = std::size_t(m.n_words[i]) * n_tags;
    to = std::copy_n(tag, n, to);
    tag += n;
  }
  return all;
}

// The logits of message `which` within what `logits` gave for all.
inline const float* part(const Exact<float>& all, const Messages& m, const Config& c, int which, std::size_t* n) {
  const float* at = all.get();
  for (int i = 0; i < which; ++i) at += c.n_intents + m.n_words[std::size_t(i)] * c.n_tags;
  *n = std::size_t(c.n_intents + m.n_words[std::size_t(which)] * c.n_tags);
  return at;
}

}  // namespace cases
