// A layer of two LSTMs, one that reads a message from first to last and one from last to first (Hochreiter & Schmidhuber
// 1997; Graves & Schmidhuber 2005): x = norm(x + [h forward ; h backward]). What the tokens give to the gates is one
// product for all of them; what h gives is one a token.
#include <stdexcept>

#include "engine/build.h"
#include "engine/forward.h"

namespace flyweight {
namespace {

constexpr std::size_t kInStep = 16384;  // bytes of one direction

}  // namespace

void Engine::make_lstm(Layer& layer, const std::string& name, const Matrices& matrices, const Vectors& vectors) {
  const int hidden = config_.hidden, units = hidden / 2;
  if (hidden % 2 || hidden > kMaxColumns)
    throw std::invalid_argument(name + ": an LSTM has two directions of hidden / 2 units; hidden is " +
                                std::to_string(hidden) + ", it must be even and at most " + std::to_string(kMaxColumns));
  layer.input = make(name + ".lstm.input", 8 * units, hidden, matrices);
  for (int i = 0; i < 2; ++i) {
    const std::string whole = name + (i ? ".lstm.backward" : ".lstm.forward");
    layer.recurrent[i] = make_recurrent(matrices, make(whole, 4 * units, units, matrices), whole, kernels_);
  }
  layer.norm = make_norm(vectors, name + ".lstm.norm", hidden, config_.norm_eps);
  units_ = units;
}

// Directions [from, to) of one message, in step, since neither waits for the other: gates in w.y -> h in w.attended.
void Engine::read(const Layer& layer, int from, int to, int token, int length, int thread, Workspace& w) const {
  const std::size_t rows = std::size_t(round_up(8 * units_, kPanel)), hidden = std::size_t(round_up(config_.hidden, kPanel));
  Cells cells[2];
  for (int i = from; i < to; ++i) {
    State& s = w.states[std::size_t(2 * thread + i)];
    std::fill_n(s.c.get(), s.c.size(), 0.0f);
    cells[i].scales = layer.recurrent[i].linear.scales.get();
    cells[i].c = s.c.get();
    cells[i].units = units_;
    if (layer.recurrent[i].linear.integer) {
      cells[i].q = s.q.get();
    } else {
      cells[i].h = s.h.get();
    }
  }
  for (int step = 0; step < length; ++step)
    for (int i = from; i < to; ++i) {
      State& s = w.states[std::size_t(2 * thread + i)];
      const Recurrent& recurrent = layer.recurrent[i];
      const std::size_t at = std::size_t(token + (i ? length - 1 - step : step));
      if (step && cells[i].q) {
        kernels_.multiply_one(recurrent.lanes, s.q.get(), step % 2 == 0, s.sums.get());
        cells[i].sums = s.sums.get();
      } else if (step) {
        const Matrix& m = recurrent.linear.matrix;
        kernels_.multiply_float(m, s.h.get(), 0, 1, 0, m.panels(), Activation::none, s.products.get(), 0);
        cells[i].products = s.products.get();
      }
      cells[i].input = w.y.get() + at * rows + i * 4 * units_;
      cells[i].out = w.attended.get() + at * hidden + i * units_;
      kernels_.lstm_cells(cells[i]);
    }
}

void Engine::lstm(const Layer& layer, const Group& g, Workspace& w, const Team& team) const {
  multiply(layer.input, w.x.get(), round_up(config_.hidden, kPiece), g.n_tokens, Activation::none, w.y.get(),
           round_up(8 * units_, kPanel), w, team);
  // In step only where the weights of both stay in a first cache: else each would drive out the other's.
  const int at_once = layer.recurrent[0].weights.size() <= kInStep ? 2 : 1;
  each_head(2, g, team, [&](int token, int length, int from, int to, int thread) {
    for (int next; from < to; from = next) {
      next = std::min(from + at_once, to);
      read(layer, from, next, token, length, thread, w);
    }
  });
  finish(layer.norm, w.attended.get(), round_up(config_.hidden, kPanel), layer.reader, g, w, team);
}

}  // namespace flyweight
