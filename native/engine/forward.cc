// The forward pass: which kernel computes what from where to where. x is quantized for its next reader where it is made.
#include "engine/forward.h"

namespace flyweight {

namespace {

// Whether the time goes into reading the weights: few tokens, and more than a core's second cache holds. Then they are
// read in one go, and outputs made int8 afterwards; the bits are the same.
bool streamed(const Matrix& m, int n_tokens) {
  constexpr std::size_t kCache = 1 << 20;
  return n_tokens < kBlock && m.panel_bytes() * std::size_t(m.panels()) > kCache;
}

}  // namespace

// x (n, columns of l) -> q, as l takes it.
void Engine::quantize(const Linear& l, const float* x, int x_stride, const Quantized& q, const Team& team) const {
  team.split(q.n_tokens, kBlock,
             [&](int from, int to, int) { kernels_.quantize(x, x_stride, l.matrix.columns, q, from, to); });
}

// y = activation(x W^T + b); where l multiplies integers, w.input holds x already.
void Engine::multiply(const Linear& l, const float* x, int x_stride, int n, Activation a, float* y, int y_stride,
                      Workspace& w, const Team& team) const {
  const Matrix& m = l.matrix;
  const Quantized q = w.input.view(n, m.columns, l.inverse);
  team.split(m.panels(), 1, [&](int from, int to, int) {
    if (l.integer) {
      kernels_.multiply(m, q, from, to, a, y, y_stride);
    } else {
      kernels_.multiply_float(m, x, x_stride, n, from, to, a, y, y_stride);
    }
  });
}

void Engine::linear(const Linear& l, const float* x, int x_stride, int n, Activation a, float* y, int y_stride,
                    Workspace& w, const Team& team) const {
  if (l.integer) quantize(l, x, x_stride, w.input.view(n, l.matrix.columns, l.inverse), team);
  multiply(l, x, x_stride, n, a, y, y_stride, w, team);
}

// x, and w.input for qkv -> w.attended.
void Engine::attention(const Layer& layer, const Group& g, Workspace& w, const Team& team) const {
  const int width = layer.heads * config_.head_size, stride = round_up(3 * width, kPanel);
  multiply(layer.qkv, w.x.get(), round_up(config_.hidden, kPiece), g.n_tokens, Activation::none, w.y.get(), stride, w,
           team);
  each_head(layer.heads, g, team, [&](int token, int length, int head, int last, int thread) {
    Attention a;
    a.qkv = w.y.get() + std::size_t(token) * std::size_t(stride);
    a.out = w.attended.get() + std::size_t(token) * std::size_t(round_up(width, kPiece));
    a.qkv_stride = stride;
    a.out_stride = round_up(width, kPiece);
    a.n_tokens = length;
    a.heads = layer.heads;
    a.size = config_.head_size;
    a.bias = layer.relative_bias.size() ? layer.relative_bias.get() : nullptr;
    a.reach = config_.max_positions;
    a.scratch = w.attention.get() + w.scratch * std::size_t(thread);
    kernels_.attend(a, head, last);
  });
}

// What is not finite in a token's input is not finite in its output: scales NaN, or 1.
void Engine::mark(const Quantized& from, const Quantized& to) {
  for (int t = 0; t < from.n_tokens; ++t) to.scale[t] = 1.0f + 0.0f * from.scale[t];
}

// x, and w.input for qkv -> int8 queries, keys and values in w.parts.
void Engine::integer_parts(const Layer& layer, const Group& g, Workspace& w, const Team& team) const {
  const int width = layer.heads * config_.head_size, stride = round_up(3 * width, kPanel), n = g.n_tokens;
  const Matrix& m = layer.qkv.matrix;
  Quantized parts[3];
  for (int i = 0; i < 3; ++i) {
    parts[i] = w.parts[i].view(n, width, layer.inverses[i]);
    parts[i].lanes = nullptr;
  }
  if (!layer.parts_from_sums || streamed(m, n)) {
    multiply(layer.qkv, w.x.get(), round_up(config_.hidden, kPiece), n, Activation::none, w.y.get(), stride, w, team);
    for (int i = 0; i < 3; ++i)
      team.split(n, kBlock, [&](int from, int to, int) {
        kernels_.quantize(w.y.get() + i * width, stride, width, parts[i], from, to);
      });
    return;
  }
  const Quantized q = w.input.view(n, m.columns, layer.qkv.inverse);
  const int count = m.panels() / 3;
  team.split(m.panels(), 1, [&](int from, int to, int) {
    for (int i = 0; i < 3; ++i) {
      const int begin = std::max(from, i * count), end = std::min(to, (i + 1) * count);
      if (begin < end)
        kernels_.multiply_to_int8(m, q, begin, end, Activation::none, w.y.get(), stride, parts[i], i * count);
    }
  });
  for (const Quantized& part : parts) mark(q, part);
}

// The same as `attention` with integer products.
void Engine::integer_attention(const Layer& layer, const Group& g, Workspace& w, const Team& team) const {
  const int stride = round_up(layer.heads * config_.head_size, kPiece);
  integer_parts(layer, g, w, team);
  each_head(layer.heads, g, team, [&](int token, int length, int head, int last, int thread) {
    const std::size_t at = std::size_t(token) * std::size_t(stride);
    IntegerAttention a;
    a.q = w.parts[0].rows.get() + at;
    a.k = w.parts[1].rows.get() + at;
    a.v = w.parts[2].rows.get() + at;
    a.out = w.attended.get() + at;
    a.stride = a.out_stride = stride;
    a.n_tokens = length;
    a.heads = layer.heads;
    a.size = config_.head_size;
    a.factor = layer.factor;
    a.v_scale = layer.v_scale;
    for (Int8Room& part : w.parts)  // all tokens of a message see one that is not finite
      for (int t = token; t < token + length; ++t) a.v_scale = a.v_scale * part.scale[std::size_t(t)];
    a.bias = layer.relative_bias.size() ? layer.relative_bias.get() : nullptr;
    a.reach = config_.max_positions;
    a.scratch = w.attention.get() + w.scratch * std::size_t(thread);
    kernels_.attend_integers(a, head, last);
  });
}

// x, and w.input for up -> w.attended, which attention no longer needs.
void Engine::feed_forward(const Layer& layer, const Group& g, Workspace& w, const Team& team) const {
  const int n = g.n_tokens, stride = round_up(layer.ffn, kPanel), rows = round_up(config_.hidden, kPanel);
  float *y = w.y.get(), *out = w.attended.get();
  const Matrix &up = layer.up.matrix, &down = layer.down.matrix;
  if (!layer.down_from_sums || streamed(up, n)) {
    multiply(layer.up, w.x.get(), round_up(config_.hidden, kPiece), n, config_.activation, y, stride, w, team);
    linear(layer.down, y, stride, n, Activation::none, out, rows, w, team);
    return;
  }
  const Quantized from_x = w.input.view(n, up.columns, layer.up.inverse);
  const Quantized between = w.wide.view(n, down.columns, layer.down.inverse);
  team.split(up.panels(), 1, [&](int from, int to, int) {
    kernels_.multiply_to_int8(up, from_x, from, to, config_.activation, y, stride, between, 0);
  });
  mark(from_x, between);
  team.split(down.panels(), 1, [&](int from, int to, int) {
    kernels_.multiply(down, between, from, to, Activation::none, out, rows);
  });
}

// x = norm(x + y), and x as its next reader takes it; y_stride 0 adds one vector to all tokens.
void Engine::finish(const PaddedNorm& norm, const float* y, int y_stride, const Linear* reader, const Group& g,
                    Workspace& w, const Team& team) const {
  const int hidden = config_.hidden, stride = round_up(hidden, kPiece);
  float* x = w.x.get();
  const Quantized q = w.input.view(g.n_tokens, hidden, reader ? reader->inverse : 0.0f);
  team.split(g.n_tokens, kBlock, [&](int from, int to, int) {
    kernels_.add_norm(x + std::size_t(from) * std::size_t(stride), stride, y + std::size_t(from) * std::size_t(y_stride),
                      y_stride, to - from, norm.norm);
    if (reader && reader->integer) kernels_.quantize(x, stride, hidden, q, from, to);
  });
}

void Engine::transformer(const Layer& layer, const Group& g, Workspace& w, const Team& team) const {
  const int rows = round_up(config_.hidden, kPanel);
  if (layer.heads) {
    if (layer.integer_attention) {
      integer_attention(layer, g, w, team);
    } else {
      attention(layer, g, w, team);
    }
    const int attended = round_up(layer.heads * config_.head_size, kPiece);
    linear(layer.out, w.attended.get(), attended, g.n_tokens, Activation::none, w.y.get(), rows, w, team);
    finish(layer.attention_norm, w.y.get(), rows, layer.attention_reader, g, w, team);
  } else {
    finish(layer.attention_norm, layer.out.bias.get(), 0, layer.attention_reader, g, w, team);
  }
  if (layer.ffn) {
    feed_forward(layer, g, w, team);
    finish(layer.norm, w.attended.get(), rows, layer.reader, g, w, team);
  } else {
    finish(layer.norm, layer.down.bias.get(), 0, layer.reader, g, w, team);
  }
}

namespace {

// Of each token and the one before it in its message, or none; src/flyweight/positions.py has the same. Hash: the
// finalizer of MurmurHash3, whose every output bit depends on every input bit.
std::int32_t bucket_of(std::uint32_t before, std::uint32_t id, int n) {
  std::uint32_t h = before * 0x9E3779B1u + id;
  h ^= h >> 16;
  h *= 0x85EBCA6Bu;
  h ^= h >> 13;
  h *= 0xC2B2AE35u;
  h ^= h >> 16;
  return std::int32_t(h % std::uint32_t(n));
}

}  // namespace

void Engine::make_buckets(const Group& g, int n, std::int32_t* buckets) {
  const std::int32_t* id = g.ids;
  for (int i = 0; i < g.n; ++i) {
    std::uint32_t before = 0xFFFFFFFFu;
    for (int t = 0; t < g.lengths[i]; ++t, before = std::uint32_t(*id++)) *buckets++ = bucket_of(before, std::uint32_t(*id), n);
  }
}

void Engine::embed(const Group& g, Workspace& w, const Team& team) const {
  const int stride = round_up(config_.hidden, kPiece);
  for (int i = 0, t = 0; i < g.n; ++i)
    for (int place = 0; place < g.lengths[i]; ++place) w.places[std::size_t(t++)] = place;
  if (ngrams_.embedding.rows) make_buckets(g, ngrams_.embedding.rows, w.buckets.get());
  // Narrower embeddings go to `attended`, which no layer needs yet, and come back projected.
  float* const embedded = config_.embedding ? w.attended.get() : w.x.get();
  const int embedded_stride = config_.embedding ? round_up(config_.embedding, kPiece) : stride;
  team.split(g.n_tokens, 4, [&](int from, int to, int) {
    const Rows tables[] = {{&words_.embedding, g.ids + from},
                           {&positions_.embedding, w.places.get() + from},
                           {&ngrams_.embedding, w.buckets.get() + from}};
    kernels_.embed(tables, ngrams_.embedding.rows ? 3 : 2, to - from, norm_.norm,
                   embedded + std::size_t(from) * std::size_t(embedded_stride), embedded_stride);
  });
  if (config_.embedding)
    linear(projection_, embedded, embedded_stride, g.n_tokens, Activation::none, w.x.get(), stride, w, team);
}

void Engine::forward(const Group& g, Workspace& w, const Team& team) const {
  if (integers_) return forward_integers(g, w, team);
  const int hidden = config_.hidden;
  embed(g, w, team);
  if (first_reader_ && first_reader_->integer)
    quantize(*first_reader_, w.x.get(), round_up(hidden, kPiece), w.input.view(g.n_tokens, hidden, first_reader_->inverse), team);
  for (const Layer& layer : layers_) switch (layer.kind) {
      case LayerKind::transformer: transformer(layer, g, w, team); break;
      case LayerKind::lstm: lstm(layer, g, w, team); break;
      case LayerKind::convolution: convolution(layer, g, w, team); break;
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
    } else if (config_.pooling == Pooling::max) {
      kernels_.most(message, stride, g.lengths[i], hidden, to);
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
