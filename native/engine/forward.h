// What a forward pass works on: its messages, its threads and its memory. For engine.cc and forward.cc alone.
#pragma once

#include <algorithm>

#include "engine/engine.h"
#include "engine/pool.h"

namespace flyweight {

// What follows the pooler; none where there is no pooler.
inline Activation behind_pooler(Pooling pooling) {
  switch (pooling) {
    case Pooling::cls_tanh: return Activation::tanh;
    case Pooling::cls_relu: return Activation::relu;
    case Pooling::cls_gelu: return Activation::gelu;
    default: return Activation::none;
  }
}

// Messages that are computed together, and where their results go.
struct Engine::Group {
  const std::int32_t *ids = nullptr, *lengths = nullptr, *first = nullptr, *n_words = nullptr;
  int n = 0, n_tokens = 0, n_all_words = 0;
  float *intent = nullptr, *tags = nullptr;
};

// How many threads share one group.
class Engine::Team {
 public:
  explicit Team(int n_threads) : n_threads_(n_threads) {}

  // job(from, to, thread) over [0, n) in parts that begin at multiples of `unit`.
  template <class Job>
  void split(int n, int unit, Job&& job) const {
    const int units = (n + unit - 1) / unit, parts = std::min(n_threads_, units);
    if (parts <= 1) {
      if (n > 0) job(0, n, 0);
      return;
    }
    Pool::instance().run(parts, [&](int i) {
      const int from = int(std::int64_t(units) * i / parts) * unit;
      const int to = std::min(n, int(std::int64_t(units) * (i + 1) / parts) * unit);
      job(from, to, i);
    });
  }

 private:
  int n_threads_;
};

// Memory of quantized activations.
struct Int8Room {
  Buffer<std::int8_t> rows, lanes;
  Buffer<float> scale;
  Buffer<std::int32_t> sum;

  Int8Room() = default;
  Int8Room(std::size_t n, std::size_t width) : rows(n * width), lanes(n * width), scale(n), sum(n) {}
  Quantized view(int n_tokens, int columns, float inverse) {
    return {rows.get(), lanes.get(), scale.get(), sum.get(), n_tokens, round_up(columns, kPiece), inverse};
  }
};

// What one direction of an LSTM knows of the tokens behind it, and what its last one gives to the next.
struct State {
  Buffer<float> c, h, products;
  Buffer<std::int32_t> sums;
  Buffer<std::int8_t> q;

  State() = default;
  explicit State(int units)
      : c(std::size_t(units)), h(std::size_t(units)), products(std::size_t(round_up(4 * units, kPanel))),
        sums(products.size()), q(std::size_t(units)) {}
};

// Everything a forward pass writes; made once, used by one caller at a time.
struct Engine::Workspace {
  int capacity, n_threads;
  std::size_t scratch;
  Buffer<float> x, y, attended, pooled, attention;
  Buffer<std::int32_t> places, buckets;
  Buffer<std::int32_t> values, sums, words;  // of integer-only models, in place of x, y, pooled
  Int8Room input;     // of most matrices
  Int8Room wide;      // of `down`, where `up` gives it
  Int8Room parts[3];  // queries, keys and values of integer attention
  std::vector<State> states;  // of an LSTM: two directions of each thread

  Workspace(const Engine& engine, int n_tokens, int threads)
      : capacity(n_tokens), n_threads(threads),
        scratch((engine.attention_room() + 15) / 16 * 16) {
    const std::size_t n = std::size_t(round_up(n_tokens, kBlock)), width = std::size_t(engine.width_);
    const std::size_t hidden = std::size_t(round_up(engine.config_.hidden, kPiece));
    x = Buffer<float>(n * hidden);
    y = Buffer<float>(n * std::size_t(engine.height_));
    attended = Buffer<float>(n * width);
    pooled = Buffer<float>(n * hidden);
    attention = Buffer<float>(scratch * std::size_t(threads));
    places = Buffer<std::int32_t>(n);
    if (engine.config_.ngrams) buckets = Buffer<std::int32_t>(n);
    for (int i = 0; engine.units_ && i < 2 * threads; ++i) states.emplace_back(round_up(engine.units_, kPiece));
    if (engine.integers_) {
      values = Buffer<std::int32_t>(n * std::max(hidden, width));
      sums = Buffer<std::int32_t>(n * std::size_t(std::max(engine.height_, engine.width_)));
      words = Buffer<std::int32_t>(n * hidden);
    }
    input = Int8Room(n, width);
    wide = Int8Room(n, std::size_t(engine.wide_width_));
    for (Int8Room& part : parts) part = Int8Room(n, std::size_t(engine.parts_width_));
  }
};

// job(first token of the message, its length, head, last head, thread) until all heads of all messages are done.
template <class Job>
void Engine::each_head(int heads, const Group& g, const Team& team, Job job) const {
  team.split(g.n * heads, 1, [&](int from, int to, int thread) {
    int message = 0, token = 0;
    for (int at = 0; at < to; ++message) {  // items are (message, head)
      const int head = std::max(from - at, 0), last = std::min(to - at, heads);
      if (head < last) job(token, g.lengths[message], head, last, thread);
      at += heads;
      token += g.lengths[message];
    }
  });
}

}  // namespace flyweight
