// A layer of two LSTMs, one that reads a message from first to last and one from last to first (Hochreiter & Schmidhuber
// 1997; Graves & Schmidhuber 2005): x = norm(x + [h forward ; h backward]). What the tokens give to the gates is one
// product for all of them; what h gives is one a step, for all messages of the group that are long enough.
#include <stdexcept>

#include "engine/build.h"
#include "engine/forward.h"

namespace flyweight {
namespace {

constexpr float kStep = 1.0f / 127.0f;  // of h, which lies in [-1, 1]

}  // namespace

void Engine::make_lstm(Layer& layer, const std::string& name, const Matrices& matrices, const Vectors& vectors) {
  const int hidden = config_.hidden, units = hidden / 2;
  if (hidden % 2 || hidden > kMaxColumns)
    throw std::invalid_argument(name + ": an LSTM has two directions of hidden / 2 units; hidden is " +
                                std::to_string(hidden) + ", it must be even and at most " + std::to_string(kMaxColumns));
  layer.input = make(name + ".lstm.input", 8 * units, hidden, matrices);
  for (int d = 0; d < 2; ++d) {
    const std::string whole = name + (d ? ".lstm.backward" : ".lstm.forward");
    Linear& recurrent = layer.recurrent[d] = make(whole, 4 * units, units, matrices);
    const MatrixSource& source = matrices.at(whole);
    if (source.bias.size) throw std::invalid_argument(whole + ": has a bias; the input of the gates has it");
    if (!recurrent.integer) continue;
    if (source.input_scale != kStep)
      throw std::invalid_argument(whole + ": its input scale is " + std::to_string(source.input_scale) +
                                  "; that of hidden states is 1/127");
    recurrent.matrix.scales = nullptr;
  }
  layer.norm = make_norm(vectors, name + ".lstm.norm", hidden, config_.norm_eps);
  units_ = units;
}

// One direction over all messages: gates in w.y -> h in its half of w.attended.
void Engine::read(const Layer& layer, int direction, const Group& g, Workspace& w) const {
  const Linear& recurrent = layer.recurrent[direction];
  const Matrix& m = recurrent.matrix;
  States& s = w.states[direction];
  const int rows = round_up(8 * units_, kPanel), hidden = round_up(config_.hidden, kPanel);
  Cells cells;
  cells.scales = recurrent.integer ? recurrent.scales.get() : nullptr;
  cells.units = units_;
  std::fill_n(s.c.get(), std::size_t(g.n) * std::size_t(s.stride), 0.0f);
  for (int step = 0, n = g.n, longest = g.lengths[w.order[0]]; step < longest; ++step) {
    while (g.lengths[w.order[std::size_t(n - 1)]] <= step) --n;
    if (step && recurrent.integer) {
      const Quantized q = s.input.view(n, units_, recurrent.inverse);
      kernels_.quantize(s.h.get(), s.stride, units_, q, 0, n);
      kernels_.multiply(m, q, 0, m.panels(), Activation::none, s.sums.get(), s.gates);
    } else if (step) {
      kernels_.multiply_float(m, s.h.get(), s.stride, n, 0, m.panels(), Activation::none, s.sums.get(), s.gates);
    }
    for (int i = 0; i < n; ++i) {
      const std::size_t at = std::size_t(i), message = std::size_t(w.order[at]);
      const std::size_t token = std::size_t(w.begins[message] + (direction ? g.lengths[message] - 1 - step : step));
      cells.input = w.y.get() + token * std::size_t(rows) + direction * 4 * units_;
      cells.sums = step ? s.sums.get() + at * std::size_t(s.gates) : nullptr;
      cells.c = s.c.get() + at * std::size_t(s.stride);
      cells.h = s.h.get() + at * std::size_t(s.stride);
      cells.out = w.attended.get() + token * std::size_t(hidden) + direction * units_;
      kernels_.lstm_cells(cells);
    }
  }
}

void Engine::lstm(const Layer& layer, const Group& g, Workspace& w, const Team& team) const {
  const int hidden = config_.hidden, rows = round_up(hidden, kPanel);
  multiply(layer.input, w.x.get(), round_up(hidden, kPiece), g.n_tokens, Activation::none, w.y.get(),
           round_up(8 * units_, kPanel), w, team);
  std::int32_t* order = w.order.get();
  for (int i = 0, token = 0; i < g.n; token += g.lengths[i++]) {
    w.begins[std::size_t(i)] = token;
    int at = i;  // as many messages as fit a group: sorted by insertion
    for (; at > 0 && g.lengths[order[at - 1]] < g.lengths[i]; --at) order[at] = order[at - 1];
    order[at] = i;
  }
  team.split(2, 1, [&](int from, int to, int) {
    for (int direction = from; direction < to; ++direction) read(layer, direction, g, w);
  });
  finish(layer.norm, w.attended.get(), rows, layer.reader, g, w, team);
}

}  // namespace flyweight
