// A layer that sees each token and its neighbours: x = norm(x + activation(W [x_{t-r} ; ... ; x_{t+r}] + b)), zeros beyond
// the ends of the message (Kim 2014, with a residual).
#include <stdexcept>

#include "engine/build.h"
#include "engine/forward.h"

namespace flyweight {

void Engine::make_convolution(Layer& layer, const std::string& name, int width, const Matrices& matrices,
                              const Vectors& vectors) {
  const int hidden = config_.hidden;
  if (width < 1 || width > kMaxWidth || width % 2 == 0)
    throw std::invalid_argument(name + ": its width is " + std::to_string(width) + "; allowed: odd numbers from 1 to " +
                                std::to_string(kMaxWidth));
  if (std::int64_t(width) * hidden > kMaxColumns)
    throw std::invalid_argument(name + ": width times hidden is above " + std::to_string(kMaxColumns));
  layer.width = width;
  layer.convolution = make(name + ".convolution", hidden, width * hidden, matrices);
  layer.norm = make_norm(vectors, name + ".convolution.norm", hidden, config_.norm_eps);
}

void Engine::convolution(const Layer& layer, const Group& g, Workspace& w, const Team& team) const {
  const int hidden = config_.hidden, rows = round_up(hidden, kPanel), reach = layer.width / 2;
  const std::size_t columns = std::size_t(hidden), x_stride = std::size_t(round_up(hidden, kPiece));
  const int stride = round_up(layer.width * hidden, kPiece);
  const float* x = w.x.get();
  float* to = w.attended.get();
  for (int i = 0; i < g.n; x += std::size_t(g.lengths[i++]) * x_stride)
    for (int t = 0; t < g.lengths[i]; ++t, to += stride)
      for (int j = 0; j < layer.width; ++j) {
        const int neighbour = t + j - reach;
        float* part = to + std::size_t(j) * columns;
        if (neighbour < 0 || neighbour >= g.lengths[i]) {
          std::fill_n(part, columns, 0.0f);
        } else {
          std::copy_n(x + std::size_t(neighbour) * x_stride, columns, part);
        }
      }
  linear(layer.convolution, w.attended.get(), stride, g.n_tokens, config_.activation, w.y.get(), rows, w, team);
  finish(layer.norm, w.y.get(), rows, layer.reader, g, w, team);
}

}  // namespace flyweight
