#include "engine/engine.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "engine/build.h"
#include "engine/cpu.h"
#include "engine/pool.h"

namespace flyweight {
namespace {

// Tokens that go through the layers together: six blocks, weights are read once for them, and the widest
// intermediate of a MiniLM (96 x 1536 floats) stays in a core's cache.
constexpr int kGroupTokens = 96;
constexpr int kMaxThreads = 256;  // of one call; results do not depend on it

std::string layer_name(std::size_t i) { return "layers." + std::to_string(i); }

// What follows the pooler; none where there is no pooler.
Activation behind_pooler(Pooling pooling) {
  switch (pooling) {
    case Pooling::cls_tanh: return Activation::tanh;
    case Pooling::cls_relu: return Activation::relu;
    case Pooling::cls_gelu: return Activation::gelu;
    default: return Activation::none;
  }
}

}  // namespace

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

// Everything a forward pass writes; made once, used by one caller at a time.
struct Engine::Workspace {
  int capacity, n_threads;
  std::size_t scratch;
  Buffer<float> x, y, attended, pooled, attention;
  Buffer<std::int8_t> rows, lanes;
  Buffer<float> scale;
  Buffer<std::int32_t> sum, places;
  Quantized quantized;

  Workspace(const Engine& engine, int n_tokens, int threads)
      : capacity(n_tokens), n_threads(threads),
        scratch((attention_scratch(engine.config_.max_positions, engine.config_.head_size) + 15) / 16 * 16) {
    const std::size_t n = std::size_t(round_up(n_tokens, kBlock)), width = std::size_t(engine.width_);
    const std::size_t hidden = std::size_t(round_up(engine.config_.hidden, kPiece));
    x = Buffer<float>(n * hidden);
    y = Buffer<float>(n * std::size_t(engine.height_));
    attended = Buffer<float>(n * width);
    pooled = Buffer<float>(n * hidden);
    attention = Buffer<float>(scratch * std::size_t(threads));
    rows = Buffer<std::int8_t>(n * width);
    lanes = Buffer<std::int8_t>(n * width);
    scale = Buffer<float>(n);
    sum = Buffer<std::int32_t>(n);
    places = Buffer<std::int32_t>(n);
    quantized = {rows.get(), lanes.get(), scale.get(), sum.get(), 0, 0};
  }
};

Engine::Engine(const Config& config, const Matrices& matrices, const Vectors& vectors, const Kernels& kernels)
    : config_(config), kernels_(kernels) {
  const auto positive = [](int n, const char* what) {
    if (n < 1 || n > 1 << 29) throw std::invalid_argument(std::string(what) + " is " + std::to_string(n) + "; allowed: 1 to 2^29");
  };
  positive(config.hidden, "hidden");
  positive(config.head_size, "head_size");
  positive(config.vocab_size, "vocab_size");
  positive(config.max_positions, "max_positions");
  if (config.embedding) positive(config.embedding, "embedding");
  if (config.n_intents || !config.n_tags) positive(config.n_intents, "n_intents");
  if (config.n_tags) positive(config.n_tags, "n_tags");
  if (config.head_size > kMaxColumns)
    throw std::invalid_argument("head_size is " + std::to_string(config.head_size) + "; allowed: 1 to " +
                                std::to_string(kMaxColumns));
  if (!(config.norm_eps > 0.0f && config.norm_eps < 1.0f))
    throw std::invalid_argument("norm_eps is " + std::to_string(config.norm_eps) + "; allowed: above 0 and below 1");
  if (config.heads.size() != config.ffn.size())
    throw std::invalid_argument(std::to_string(config.heads.size()) + " layers by heads, " +
                                std::to_string(config.ffn.size()) + " by ffn; they must be as many");
  if (config.worth_a_thread < 1) throw std::invalid_argument("worth_a_thread is below 1");
  const FloatEnvironment pinned;
  const int hidden = config.hidden, looked_up = config.embedding ? config.embedding : hidden;
  const auto norm = [&](const std::string& name, int columns) {
    return make_norm(vectors, name, columns, config.norm_eps);
  };
  words_ = make_lookup(matrices, "embeddings.words", config.vocab_size, looked_up);
  positions_ = make_lookup(matrices, "embeddings.positions", config.max_positions, looked_up);
  norm_ = norm("embeddings.norm", looked_up);
  width_ = height_ = round_up(hidden, kPiece);
  const auto linear = [&](const std::string& name, int rows, int columns) {
    width_ = std::max(width_, round_up(columns, kPiece));
    height_ = std::max(height_, round_up(rows, kPanel));
    n_weights_ += std::int64_t(rows) * columns;
    return make_linear(matrices, name, rows, columns, kernels);
  };
  if (config.embedding) projection_ = linear("embeddings.projection", hidden, config.embedding);
  for (std::size_t i = 0; i < config.heads.size(); ++i) {
    const std::string name = layer_name(i);
    const std::int64_t width = std::int64_t(config.heads[i]) * config.head_size;
    if (config.heads[i] < 0 || config.ffn[i] < 0 || width > kMaxColumns || config.ffn[i] > kMaxColumns)
      throw std::invalid_argument(name + ": heads or ffn below 0, or wider than " + std::to_string(kMaxColumns));
    Layer layer;
    layer.heads = config.heads[i];
    layer.ffn = config.ffn[i];
    layer.qkv = linear(name + ".attention.qkv", 3 * int(width), hidden);
    layer.out = linear(name + ".attention.out", hidden, int(width));
    layer.up = linear(name + ".ffn.up", layer.ffn, hidden);
    layer.down = linear(name + ".ffn.down", hidden, layer.ffn);
    layer.attention_norm = norm(name + ".attention.norm", hidden);
    layer.ffn_norm = norm(name + ".ffn.norm", hidden);
    if (!config.buckets.empty())
      layer.relative_bias = make_relative_bias(vectors, name + ".attention.relative_bias", config, layer.heads);
    layers_.push_back(std::move(layer));
  }
  if (behind_pooler(config.pooling) != Activation::none) pooler_ = linear("heads.pooler", hidden, hidden);
  intent_ = linear("heads.intent", config.n_intents, hidden);
  if (config.n_tags) tags_ = linear("heads.tags", config.n_tags, hidden);
}

Engine::~Engine() = default;

std::unique_ptr<Engine::Workspace> Engine::workspace(int n_tokens, int n_threads) const {
  int capacity = 32;  // a usual message; doubled where more is asked for
  {
    const std::lock_guard<std::mutex> lock(lock_for_forks());
    for (auto& w : idle_)
      if (w->capacity >= n_tokens && w->n_threads >= n_threads) {
        std::swap(w, idle_.back());
        auto found = std::move(idle_.back());
        idle_.pop_back();
        return found;
      }
    if (!idle_.empty()) {  // too small: the new one takes its place and does all that it did
      capacity = idle_.back()->capacity;
      n_threads = std::max(n_threads, idle_.back()->n_threads);
      idle_.pop_back();
    }
  }
  while (capacity < n_tokens) capacity *= 2;
  return std::make_unique<Workspace>(*this, capacity, n_threads);
}

void Engine::logits(const std::int32_t* ids, const std::int32_t* lengths, int n, const std::int32_t* first,
                    const std::int32_t* n_words, int n_threads, float* intent, float* tags) const {
  thread_local std::vector<Group> kept;  // keeps its memory from call to call
  std::vector<Group>& groups = kept;     // the caller's, in whatever thread it is looked at
  groups.clear();
  Group group;
  const auto begin = [&] {
    group = Group{ids, lengths, first, n_words, 0, 0, 0, intent, tags};
  };
  begin();
  for (int i = 0; i < n; ++i) {
    const int length = *lengths, n_first = config_.n_tags ? *n_words : 0;
    if (length < 1 || length > config_.max_positions)
      throw std::invalid_argument("message " + std::to_string(i) + " has " + std::to_string(length) +
                                  " tokens; allowed: 1 to " + std::to_string(config_.max_positions));
    for (int t = 0; t < length; ++t)
      if (ids[t] < 0 || ids[t] >= config_.vocab_size)
        throw std::invalid_argument("token id " + std::to_string(ids[t]) + "; allowed: 0 to " +
                                    std::to_string(config_.vocab_size - 1));
    if (n_first < 0 || n_first > length) throw std::invalid_argument("more words than tokens");
    for (int w = 0; w < n_first; ++w)
      if (first[w] < 0 || first[w] >= length) throw std::invalid_argument("a word begins outside of its message");
    if (group.n && group.n_tokens + length > kGroupTokens) {
      groups.push_back(group);
      begin();
    }
    group.n += 1;
    group.n_tokens += length;
    group.n_all_words += n_first;
    ids += length;
    first += n_first;
    lengths += 1;
    n_words += 1;
    intent += config_.n_intents;
    tags += std::size_t(n_first) * std::size_t(config_.n_tags);
  }
  if (group.n) groups.push_back(group);
  if (groups.empty()) return;
  std::int64_t n_tokens = 0;
  for (const Group& g : groups) n_tokens += g.n_tokens;
  const std::int64_t worth = n_tokens * n_weights_ / config_.worth_a_thread;
  n_threads = int(std::clamp<std::int64_t>(n_threads, 1, std::clamp<std::int64_t>(worth, 1, kMaxThreads)));
  // At least a group a thread: a thread takes whole groups and never waits for another. Fewer: all share each matrix.
  const int n_groups = int(groups.size()), teams = n_groups < n_threads ? 1 : n_threads;
  std::atomic<int> next{0};
  std::atomic<bool> out_of_memory{false};
  const auto take_groups = [&] {
    const FloatEnvironment pinned;
    const Team team(teams == 1 ? n_threads : 1);
    std::unique_ptr<Workspace> space;
    for (int g; (g = next.fetch_add(1)) < n_groups;) {
      const Group& chosen = groups[std::size_t(g)];
      if (!space || space->capacity < chosen.n_tokens) space = workspace(chosen.n_tokens, teams == 1 ? n_threads : 1);
      forward(chosen, *space, team);
    }
    if (space) {
      const std::lock_guard<std::mutex> lock(lock_for_forks());
      idle_.push_back(std::move(space));
    }
  };
  const auto compute = [&](int) {  // a worker must not throw
    try {
      take_groups();
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  };
  if (teams == 1) {
    compute(0);
  } else {
    Pool::instance().run(teams, compute);
  }
  if (out_of_memory) throw std::bad_alloc();
}

void Engine::linear(const Linear& l, const float* x, int x_stride, int n, Activation a, float* y, int y_stride,
                    Workspace& w, const Team& team) const {
  const Matrix& m = l.matrix;
  if (!l.integer) {
    team.split(m.panels(), 1, [&](int from, int to, int) {
      kernels_.multiply_float(m, x, x_stride, n, from, to, a, y, y_stride);
    });
    return;
  }
  Quantized q = w.quantized;
  q.n_tokens = n;
  q.stride = round_up(m.columns, kPiece);
  team.split(n, kBlock, [&](int from, int to, int) { kernels_.quantize(x, x_stride, m.columns, q, from, to); });
  team.split(m.panels(), 1, [&](int from, int to, int) { kernels_.multiply(m, q, from, to, a, y, y_stride); });
}

void Engine::attention(const Layer& layer, const Group& g, Workspace& w, const Team& team) const {
  const int width = layer.heads * config_.head_size, stride = round_up(3 * width, kPanel);
  team.split(g.n * layer.heads, 1, [&](int from, int to, int thread) {
    int message = 0, token = 0;
    for (int at = 0; at < to; ++message) {  // items are (message, head)
      const int head = std::max(from - at, 0), last = std::min(to - at, layer.heads);
      if (head < last) {
        Attention a;
        a.qkv = w.y.get() + std::size_t(token) * std::size_t(stride);
        a.out = w.attended.get() + std::size_t(token) * std::size_t(round_up(width, kPiece));
        a.qkv_stride = stride;
        a.out_stride = round_up(width, kPiece);
        a.n_tokens = g.lengths[message];
        a.heads = layer.heads;
        a.size = config_.head_size;
        a.bias = layer.relative_bias.size() ? layer.relative_bias.get() : nullptr;
        a.reach = config_.max_positions;
        a.scratch = w.attention.get() + w.scratch * std::size_t(thread);
        kernels_.attend(a, head, last);
      }
      at += layer.heads;
      token += g.lengths[message];
    }
  });
}

void Engine::forward(const Group& g, Workspace& w, const Team& team) const {
  const int n = g.n_tokens, hidden = config_.hidden, stride = round_up(hidden, kPiece);
  float *x = w.x.get(), *y = w.y.get();
  for (int i = 0, t = 0; i < g.n; ++i)
    for (int place = 0; place < g.lengths[i]; ++place) w.places[std::size_t(t++)] = place;
  // Narrower embeddings go to `attended`, which no layer needs yet, and come back projected.
  float* const embedded = config_.embedding ? w.attended.get() : x;
  const int embedded_stride = config_.embedding ? round_up(config_.embedding, kPiece) : stride;
  team.split(n, 4, [&](int from, int to, int) {
    kernels_.embed(words_.embedding, positions_.embedding, g.ids + from, w.places.get() + from, to - from, norm_.norm,
                   embedded + std::size_t(from) * std::size_t(embedded_stride), embedded_stride);
  });
  if (config_.embedding) linear(projection_, embedded, embedded_stride, n, Activation::none, x, stride, w, team);
  const auto add_norm = [&](const Norm& norm, const float* from_y, int y_stride) {
    team.split(n, 4, [&](int from, int to, int) {
      kernels_.add_norm(x + std::size_t(from) * std::size_t(stride), stride,
                        from_y + std::size_t(from) * std::size_t(y_stride), y_stride, to - from, norm);
    });
  };
  const int rows = round_up(hidden, kPanel);
  for (const Layer& layer : layers_) {
    if (layer.heads) {
      const int width = layer.heads * config_.head_size;
      linear(layer.qkv, x, stride, n, Activation::none, y, round_up(3 * width, kPanel), w, team);
      attention(layer, g, w, team);
      linear(layer.out, w.attended.get(), round_up(width, kPiece), n, Activation::none, y, rows, w, team);
      add_norm(layer.attention_norm.norm, y, rows);
    } else {
      add_norm(layer.attention_norm.norm, layer.out.bias.get(), 0);
    }
    if (layer.ffn) {
      // Up goes to `y`, down back to `attended`, which attention no longer needs.
      linear(layer.up, x, stride, n, config_.activation, y, round_up(layer.ffn, kPanel), w, team);
      linear(layer.down, y, round_up(layer.ffn, kPanel), n, Activation::none, w.attended.get(), rows, w, team);
      add_norm(layer.ffn_norm.norm, w.attended.get(), rows);
    } else {
      add_norm(layer.ffn_norm.norm, layer.down.bias.get(), 0);
    }
  }
  heads(g, w, team);
}

// A vector of each message: w.x -> w.pooled.
void Engine::pool(const Group& g, Workspace& w, const Team& team) const {
  const int hidden = config_.hidden, stride = round_up(hidden, kPiece), rows = round_up(hidden, kPanel);
  const std::size_t step = std::size_t(stride);
  float *y = w.y.get(), *pooled = w.pooled.get();
  for (int i = 0, t = 0; i < g.n; t += g.lengths[i++]) {
    const float* message = w.x.get() + std::size_t(t) * step;
    float* to = pooled + std::size_t(i) * step;
    if (config_.pooling == Pooling::mean) {
      kernels_.mean(message, stride, g.lengths[i], hidden, to);
    } else {
      std::copy(message, message + hidden, to);
    }
  }
  const Activation a = behind_pooler(config_.pooling);
  if (a == Activation::none) return;
  linear(pooler_, pooled, stride, g.n, a, y, rows, w, team);
  for (int i = 0; i < g.n; ++i)
    std::copy_n(y + std::size_t(i) * std::size_t(rows), hidden, pooled + std::size_t(i) * step);
}

void Engine::heads(const Group& g, Workspace& w, const Team& team) const {
  const int hidden = config_.hidden, stride = round_up(hidden, kPiece);
  const std::size_t step = std::size_t(stride);
  const float* x = w.x.get();
  float *y = w.y.get(), *pooled = w.pooled.get();
  const auto classify = [&](const Linear& head, int n, int n_out, float* out) {
    const int rows = round_up(n_out, kPanel);
    linear(head, pooled, stride, n, Activation::none, y, rows, w, team);
    for (int i = 0; i < n; ++i)
      std::copy_n(y + std::size_t(i) * std::size_t(rows), n_out, out + std::size_t(i) * std::size_t(n_out));
  };
  if (config_.n_intents) {
    pool(g, w, team);
    classify(intent_, g.n, config_.n_intents, g.intent);
  }
  if (!g.n_all_words) return;
  const std::int32_t* first = g.first;
  int word = 0;
  for (int i = 0, t = 0; i < g.n; t += g.lengths[i++])
    for (int end = word + g.n_words[i]; word < end; ++word) {
      const float* from = x + std::size_t(t + *first++) * step;
      std::copy(from, from + hidden, pooled + std::size_t(word) * step);
    }
  classify(tags_, g.n_all_words, config_.n_tags, g.tags);
}

}  // namespace flyweight
