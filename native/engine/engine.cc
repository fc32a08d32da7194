#include "engine/engine.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "engine/build.h"
#include "engine/cpu.h"
#include "engine/forward.h"
#include "engine/integer_only.h"
#include "engine/pool.h"

namespace flyweight {
namespace {

// Tokens that go through the layers together: six blocks, weights are read once for them, and the widest
// intermediate of a MiniLM (96 x 1536 floats) stays in a core's cache.
constexpr int kGroupTokens = 96;
constexpr int kMaxThreads = 256;  // of one call; results do not depend on it

}  // namespace

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
  if (config.ngrams) positive(config.ngrams, "ngrams");
  for (const auto& [n, what] : {std::pair{config.heads.size(), "heads"}, {config.ffn.size(), "ffn"}, {config.widths.size(), "widths"}})
    if (n != config.kinds.size())
      throw std::invalid_argument(std::to_string(config.kinds.size()) + " layers by kinds, " + std::to_string(n) + " by " +
                                  what + "; they must be as many");
  if (config.worth_a_thread < 1) throw std::invalid_argument("worth_a_thread is below 1");
  for (const auto& [name, matrix] : matrices)
    if (!matrix.output_scales.empty() && !name.ends_with(".attention.qkv"))
      throw std::invalid_argument(name + ": has output scales; only .attention.qkv may have them");
  const FloatEnvironment pinned;
  const int hidden = config.hidden, looked_up = config.embedding ? config.embedding : hidden;
  words_ = make_lookup(matrices, "embeddings.words", config.vocab_size, looked_up);
  positions_ = make_lookup(matrices, "embeddings.positions", config.max_positions, looked_up);
  if (config.ngrams) ngrams_ = make_lookup(matrices, "embeddings.ngrams", config.ngrams, looked_up);
  norm_ = make_norm(vectors, "embeddings.norm", looked_up, config.norm_eps);
  width_ = height_ = round_up(hidden, kPiece);
  if (config.embedding) projection_ = make("embeddings.projection", hidden, config.embedding, matrices);
  for (std::size_t i = 0; i < config.kinds.size(); ++i) {
    const std::string name = "layers." + std::to_string(i);
    Layer layer;
    layer.kind = config.kinds[i];
    if (layer.kind != LayerKind::transformer && (config.heads[i] || config.ffn[i]))
      throw std::invalid_argument(name + ": has heads or an ffn; only a transformer's layer may have them");
    if (layer.kind != LayerKind::convolution && config.widths[i])
      throw std::invalid_argument(name + ": has a width; only a convolution may have one");
    switch (layer.kind) {
      case LayerKind::transformer: make_transformer(layer, name, i, matrices, vectors); break;
      case LayerKind::lstm: make_lstm(layer, name, matrices, vectors); break;
      case LayerKind::convolution: make_convolution(layer, name, config.widths[i], matrices, vectors); break;
    }
    layers_.push_back(std::move(layer));
  }
  link_readers();
  if (behind_pooler(config.pooling) != Activation::none) pooler_ = make("heads.pooler", hidden, hidden, matrices);
  intent_ = make("heads.intent", config.n_intents, hidden, matrices);
  if (config.n_tags) tags_ = make("heads.tags", config.n_tags, hidden, matrices);
  if (config.integer_only) integers_ = std::make_unique<const IntegerOnly>(*this, matrices);
}

Engine::~Engine() = default;

// A matrix that will be multiplied: the workspace has room for its input and output.
Linear Engine::make(const std::string& name, int rows, int columns, const Matrices& matrices) {
  width_ = std::max(width_, round_up(columns, kPiece));
  height_ = std::max(height_, round_up(rows, kPanel));
  n_weights_ += std::int64_t(rows) * columns;
  return make_linear(matrices, name, rows, columns, kernels_);
}

void Engine::make_transformer(Layer& layer, const std::string& name, std::size_t i, const Matrices& matrices,
                              const Vectors& vectors) {
  const int hidden = config_.hidden;
  const std::int64_t width = std::int64_t(config_.heads[i]) * config_.head_size;
  if (config_.heads[i] < 0 || config_.ffn[i] < 0 || width > kMaxColumns || config_.ffn[i] > kMaxColumns)
    throw std::invalid_argument(name + ": heads or ffn below 0, or wider than " + std::to_string(kMaxColumns));
  layer.heads = config_.heads[i];
  layer.ffn = config_.ffn[i];
  layer.qkv = make(name + ".attention.qkv", 3 * int(width), hidden, matrices);
  layer.out = make(name + ".attention.out", hidden, int(width), matrices);
  layer.up = make(name + ".ffn.up", layer.ffn, hidden, matrices);
  layer.down = make(name + ".ffn.down", hidden, layer.ffn, matrices);
  if (const std::vector<float>& scales = matrices.at(name + ".attention.qkv").output_scales; !scales.empty())
    make_integer_attention(layer, name + ".attention.qkv", scales, config_);
  layer.down_from_sums = layer.up.integer && layer.down.inverse != 0.0f && layer.down.matrix.shift == 0;
  parts_width_ = std::max(parts_width_, layer.integer_attention ? round_up(int(width), kPiece) : 0);
  wide_width_ = std::max(wide_width_, layer.down_from_sums || config_.integer_only ? round_up(layer.ffn, kPiece) : 0);
  layer.attention_norm = make_norm(vectors, name + ".attention.norm", hidden, config_.norm_eps);
  layer.norm = make_norm(vectors, name + ".ffn.norm", hidden, config_.norm_eps);
  if (!config_.buckets.empty())
    layer.relative_bias = make_relative_bias(vectors, name + ".attention.relative_bias", config_, layer.heads);
}

// Who reads x next, after the embeddings and after each norm: it is quantized for them where it is made. A norm whose x
// only the next norm reads has none, and so has one before a convolution, which reads several tokens as one vector, and
// the last one: the heads read single tokens, or what pooling makes of them.
void Engine::link_readers() {
  const Linear** reader = &first_reader_;
  for (Layer& layer : layers_) {
    if (layer.kind == LayerKind::lstm) *reader = &layer.input;
    if (layer.heads) *reader = &layer.qkv;
    if (layer.ffn) layer.attention_reader = &layer.up;
    reader = &layer.reader;
  }
}

// Floats of attention's scratch, of one thread.
std::size_t Engine::attention_room() const {
  const int n = config_.max_positions, size = config_.head_size;
  const std::size_t integers = parts_width_ ? integer_attention_scratch(n, size) : 0;
  return std::max(attention_scratch(n, size), integers);
}

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

}  // namespace flyweight
