// Integer-only models: constants of the file's floats, and the forward pass. Numbers are floats again behind the heads.
#include "engine/integer_only.h"

#include <cmath>
#include <stdexcept>

#include "engine/forward.h"

namespace flyweight {
namespace {

constexpr double kSteps = 1024.0, kEmbeddingSteps = 8192.0;  // of 1
constexpr double kGeluStep = 0.2888 / 8388608.0;              // of what `gelu` gives: 0.2888 2^-23

[[noreturn]] void refuse(const std::string& name, const std::string& found) {
  throw std::invalid_argument(name + ": " + found + "; the model is integer_only");
}

// integer_math.multipliers: ratio ~ m / 2^shift, one shift for all; the largest m lies in [2^30, 2^31). Below 2^-31 all
// count as 0, above 2^29 as that.
std::int32_t shift_of(double largest) {
  int exponent = 0;
  if (!(largest >= 0x1p-31)) return 31;
  std::frexp(std::min(largest, 0x1p29), &exponent);
  return 31 - exponent;
}

std::int32_t multiplier_of(double ratio, std::int32_t shift) {
  const double m = std::nearbyint(std::ldexp(std::min(std::max(ratio, 0.0), 0x1p29), shift));
  return std::int32_t(std::min(m, 0x1p31 - 1));
}

Ratio ratio_of(double ratio) {
  const std::int32_t shift = shift_of(ratio);
  return {multiplier_of(ratio, shift), shift};
}

std::int32_t fill(const std::vector<double>& ratios, Buffer<std::int32_t>& multipliers) {
  const std::int32_t shift = shift_of(ratios.empty() ? 0.0 : *std::max_element(ratios.begin(), ratios.end()));
  multipliers = Buffer<std::int32_t>(ratios.size());
  for (std::size_t i = 0; i < ratios.size(); ++i) multipliers[i] = multiplier_of(ratios[i], shift);
  return shift;
}

std::int32_t in_steps(double value, double limit) {
  return std::int32_t(std::min(std::max(std::nearbyint(value), -limit), limit));
}

OwnedNorm make_norm(const PaddedNorm& from) {
  OwnedNorm to;
  to.columns = from.norm.columns;
  if (to.columns > kMaxNormed) refuse("a norm", "has more than " + std::to_string(kMaxNormed) + " columns");
  to.weight = Buffer<std::int32_t>(from.weight.size());
  to.bias = Buffer<std::int64_t>(from.bias.size());
  const auto limited = [](float x) { return std::min(std::max(double(x), -0x1p15), 0x1p15); };
  for (std::size_t i = 0; i < std::size_t(to.columns); ++i) {
    const float weight = from.norm.weight[i], bias = from.norm.bias[i];
    if (!std::isfinite(weight) || !std::isfinite(bias)) refuse("a norm", "holds NaN or infinite values");
    to.weight[i] = std::int32_t(std::nearbyint(limited(weight) * 0x1p14));
    to.bias[i] = std::int64_t(std::nearbyint(limited(bias) * 0x1p28));
  }
  return to;
}

OwnedRows make_rows(const Lookup& from, const char* name) {
  const Embedding& e = from.embedding;
  if (e.values != Values::int8) refuse(name, "is not int8");
  OwnedRows to;
  std::vector<double> ratios(std::size_t(e.rows));
  for (std::size_t r = 0; r < ratios.size(); ++r)
    ratios[r] = double(e.scales[r * std::size_t(e.scale_stride)]) * kEmbeddingSteps;
  const std::int32_t down = fill(ratios, to.multipliers);
  to.rows = {reinterpret_cast<const std::int8_t*>(e.data), to.multipliers.get(), down, e.columns, e.shift};
  return to;
}

// steps: of equal parts of the outputs.
IntegerLinear make_linear(const Matrices& matrices, const std::string& name, const Linear& from,
                          const std::vector<double>& steps = {1 / kSteps}) {
  const Matrix& m = from.matrix;
  IntegerLinear to;
  const std::size_t n = std::size_t(m.panels()) * kPanel;
  to.bias = Buffer<std::int32_t>(n);
  const bool empty = !m.rows || !m.columns;
  if (!empty && from.inverse == 0.0f) refuse(name, "has no input scale");
  const double input_scale = double(matrices.at(name).input_scale);
  if (!empty) to.input = ratio_of(1 / kSteps / input_scale);
  std::vector<double> ratios(n);
  for (std::size_t r = 0; r < std::size_t(m.rows); ++r) {
    const double step = steps[r * steps.size() / std::size_t(m.rows)];
    ratios[r] = empty ? 0.0 : double(from.scales.get()[r]) / step;
    to.bias[r] = in_steps(double(from.bias.get()[r]) / step, kSumLimit);
  }
  to.shift = fill(ratios, to.multipliers);
  return to;
}

Ratio score_ratio(const Layer& layer) { return ratio_of(double(layer.factor) / (1 / kSteps)); }

}  // namespace

Engine::IntegerOnly::IntegerOnly(const Engine& engine, const Matrices& matrices)
    : words(make_rows(engine.words_, "embeddings.words")),
      positions(make_rows(engine.positions_, "embeddings.positions")),
      norm(make_norm(engine.norm_)) {
  const Config& c = engine.config_;
  if (c.ngrams) refuse("embeddings.ngrams", "are not computed in integers");
  if (c.pooling != Pooling::mean && c.pooling != Pooling::cls)
    refuse(c.pooling == Pooling::max ? "pooling max" : "heads.pooler", "is not computed in integers");
  if (c.max_positions > kMaxAttended) refuse("layers", "attend to more than " + std::to_string(kMaxAttended) + " tokens");
  if (c.embedding) projection = make_linear(matrices, "embeddings.projection", engine.projection_);
  for (std::size_t i = 0; i < engine.layers_.size(); ++i) {
    const std::string name = "layers." + std::to_string(i);
    const Layer& layer = engine.layers_[i];
    if (layer.kind != LayerKind::transformer) refuse(name, "is no transformer's; others are not computed in integers");
    Block block;
    std::vector<double> steps;
    for (const float s : matrices.at(name + ".attention.qkv").output_scales) steps.push_back(double(s) / (1 << kPartBits));
    if (layer.heads && steps.empty()) refuse(name + ".attention.qkv", "has no output scales");
    block.qkv = make_linear(matrices, name + ".attention.qkv", layer.qkv, steps.empty() ? std::vector<double>{1.0} : steps);
    block.out = make_linear(matrices, name + ".attention.out", layer.out);
    block.up = make_linear(matrices, name + ".ffn.up", layer.up);
    block.down = make_linear(matrices, name + ".ffn.down", layer.down);
    if (layer.ffn && c.activation != Activation::relu)
      block.down.input = ratio_of(kGeluStep / double(matrices.at(name + ".ffn.down").input_scale));
    block.attention_norm = make_norm(layer.attention_norm);
    block.ffn_norm = make_norm(layer.norm);
    if (layer.heads) {
      const double average = double(layer.v_scale) / double(matrices.at(name + ".attention.out").input_scale);
      block.scores = score_ratio(layer);
      block.average = std::int64_t(std::nearbyint(std::min(average, 256.0) * 65536.0)) << 14;
    }
    block.relative_bias = Buffer<std::int32_t>(layer.relative_bias.size());
    for (std::size_t at = 0; at < layer.relative_bias.size(); ++at)
      block.relative_bias[at] = in_steps(double(layer.relative_bias.get()[at]) * kSteps, kValueLimit);
    blocks.push_back(std::move(block));
  }
  if (c.n_intents) intent = make_linear(matrices, "heads.intent", engine.intent_);
  if (c.n_tags) tags = make_linear(matrices, "heads.tags", engine.tags_);
}

// The int8 input of qkv in w.input -> that of `out` there.
void Engine::attend_integers(std::size_t i, const Group& g, Workspace& w, const Team& team) const {
  const IntegerKernels& kernels = *kernels_.integers;
  const IntegerOnly::Block& block = integers_->blocks[i];
  const Layer& layer = layers_[i];
  const int width = layer.heads * config_.head_size, n = g.n_tokens, stride = round_up(3 * width, kPanel);
  const Matrix& m = layer.qkv.matrix;
  std::int32_t* sums = w.sums.get();
  const Quantized from_x = w.input.view(n, m.columns, layer.qkv.inverse);
  team.split(m.panels(), 1, [&](int from, int to, int) { kernels.multiply(m, from_x, from, to, sums, stride); });
  const int parts_stride = round_up(width, kPiece);
  team.split(n, kBlock, [&](int from, int to, int) {
    for (int part = 0; part < 3; ++part)
      kernels.part(sums, stride, block.qkv.ratios(), part * width, width, w.parts[part].view(n, width, 1.0f), from, to);
  });
  const Quantized out = w.input.view(n, width, layer.out.inverse);
  each_head(layer.heads, g, team, [&](int token, int length, int head, int last, int thread) {
    const std::size_t at = std::size_t(token) * std::size_t(parts_stride);
    IntegerScores s;
    s.shape.q = w.parts[0].rows.get() + at;
    s.shape.k = w.parts[1].rows.get() + at;
    s.shape.v = w.parts[2].rows.get() + at;
    s.shape.out = reinterpret_cast<float*>(sums + at);
    s.shape.stride = s.shape.out_stride = parts_stride;
    s.shape.n_tokens = length;
    s.shape.heads = layer.heads;
    s.shape.size = config_.head_size;
    s.shape.reach = config_.max_positions;
    s.shape.scratch = w.attention.get() + w.scratch * std::size_t(thread);
    s.ratio = block.scores;
    s.average = block.average;
    s.bias = block.relative_bias.size() ? block.relative_bias.get() : nullptr;
    kernels.attend(s, head, last, out, token);
  });
  team.split(n, kBlock, [&](int from, int to, int) { kernels.pack(width, out, from, to); });
}

void Engine::forward_integers(const Group& g, Workspace& w, const Team& team) const {
  const IntegerKernels& kernels = *kernels_.integers;
  const IntegerOnly& all = *integers_;
  const int n = g.n_tokens, hidden = config_.hidden, stride = round_up(hidden, kPiece), rows = round_up(hidden, kPanel);
  std::int32_t *x = w.values.get(), *sums = w.sums.get();
  const auto tokens = [&](auto job) { team.split(n, kBlock, [&](int from, int to, int) { job(from, to); }); };
  const auto multiply = [&](const Linear& l, Int8Room& room, int y_stride) {
    const Quantized q = room.view(n, l.matrix.columns, l.inverse);
    team.split(l.matrix.panels(), 1, [&](int from, int to, int) { kernels.multiply(l.matrix, q, from, to, sums, y_stride); });
  };
  const auto quantize = [&](const Linear& l, const IntegerLinear& constants, int x_stride) {
    const Quantized q = w.input.view(n, l.matrix.columns, l.inverse);
    tokens([&](int from, int to) { kernels.quantize(x, x_stride, l.matrix.columns, constants.input, q, from, to); });
  };
  const auto add_norm = [&](const IntegerLinear& constants, const OwnedNorm& norm, bool multiplied) {
    tokens([&](int from, int to) {
      kernels.add_norm(x + std::size_t(from) * std::size_t(stride), stride,
                       multiplied ? sums + std::size_t(from) * std::size_t(rows) : nullptr, rows, constants.ratios(), to - from,
                       norm.view());
    });
  };
  for (int i = 0, t = 0; i < g.n; ++i)
    for (int place = 0; place < g.lengths[i]; ++place) w.places[std::size_t(t++)] = place;
  const int embedded = config_.embedding ? round_up(config_.embedding, kPiece) : stride;  // of x, until it is projected
  tokens([&](int from, int to) {
    kernels.embed(all.words.rows, all.positions.rows, g.ids + from, w.places.get() + from, to - from, all.norm.view(),
                  x + std::size_t(from) * std::size_t(embedded), embedded);
  });
  if (config_.embedding) {
    quantize(projection_, all.projection, embedded);
    multiply(projection_, w.input, rows);
    tokens([&](int from, int to) {
      kernels.outputs(sums + std::size_t(from) * std::size_t(rows), rows, all.projection.ratios(), hidden, to - from,
                      x + std::size_t(from) * std::size_t(stride), stride);
    });
  }
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    const IntegerOnly::Block& block = all.blocks[i];
    if (layer.heads) {
      quantize(layer.qkv, block.qkv, stride);
      attend_integers(i, g, w, team);
      multiply(layer.out, w.input, rows);
    }
    add_norm(block.out, block.attention_norm, layer.heads > 0);
    if (layer.ffn) {
      const int wide = round_up(layer.ffn, kPanel);
      quantize(layer.up, block.up, stride);
      multiply(layer.up, w.input, wide);
      const Quantized between = w.wide.view(n, layer.ffn, layer.down.inverse);
      tokens([&](int from, int to) {
        kernels.activate(sums, wide, block.up.ratios(), layer.ffn, config_.activation == Activation::relu, block.down.input,
                         between, from, to);
      });
      multiply(layer.down, w.wide, rows);
    }
    add_norm(block.down, block.ffn_norm, layer.ffn > 0);
  }
  integer_heads(g, w, team);
}

// w.values -> logits: the head's products end as floats, as those of static int8 do.
void Engine::integer_heads(const Group& g, Workspace& w, const Team& team) const {
  const int hidden = config_.hidden, stride = round_up(hidden, kPiece);
  const std::size_t step = std::size_t(stride);
  const std::int32_t* x = w.values.get();
  std::int32_t* vectors = w.words.get();
  const auto classify = [&](const Linear& head, const IntegerLinear& constants, int n, int n_out, float* out) {
    const int rows = round_up(n_out, kPanel);
    const Quantized q = w.input.view(n, hidden, head.inverse);
    kernels_.integers->quantize(vectors, stride, hidden, constants.input, q, 0, n);
    team.split(head.matrix.panels(), 1, [&](int from, int to, int) {
      kernels_.multiply(head.matrix, q, from, to, Activation::none, w.y.get(), rows);
    });
    for (int i = 0; i < n; ++i)
      std::copy_n(w.y.get() + std::size_t(i) * std::size_t(rows), n_out, out + std::size_t(i) * std::size_t(n_out));
  };
  if (config_.n_intents) {
    for (int i = 0, t = 0; i < g.n; t += g.lengths[i++]) {
      const std::int32_t* message = x + std::size_t(t) * step;
      std::int32_t* to = vectors + std::size_t(i) * step;
      const std::int64_t length = g.lengths[i];
      for (int f = 0; f < hidden; ++f) {
        if (config_.pooling != Pooling::mean) {
          to[f] = message[f];
          continue;
        }
        std::int64_t sum = 0;
        for (std::int64_t token = 0; token < length; ++token) sum += message[std::size_t(token) * step + std::size_t(f)];
        const std::int64_t top = 2 * sum + length, found = top / (2 * length);  // to the nearest, halves up
        to[f] = std::int32_t(found - (top % (2 * length) < 0));
      }
    }
    classify(intent_, integers_->intent, g.n, config_.n_intents, g.intent);
  }
  if (!g.n_all_words) return;
  const std::int32_t* first = g.first;
  std::int32_t* to = vectors;
  for (int i = 0, t = 0; i < g.n; t += g.lengths[i++])
    for (int word = 0; word < g.n_words[i]; ++word, to += step)
      std::copy_n(x + std::size_t(t + *first++) * step, hidden, to);
  classify(tags_, integers_->tags, g.n_all_words, config_.n_tags, g.tags);
}

}  // namespace flyweight
