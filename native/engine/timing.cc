#include "engine/timing.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <stdexcept>

#include "engine/build.h"
#include "engine/cpu.h"
#include "engine/forward.h"

namespace flyweight {

double best_seconds(const MatrixSource& source, int n_tokens, int calls, const Kernels& kernels) {
  if (n_tokens < 1 || n_tokens > 1024 || calls < 1)
    throw std::invalid_argument("tokens must be from 1 to 1024, calls at least 1");
  const FloatEnvironment pinned;
  const Linear l = make_linear({{"matrix", source}}, "matrix", source.rows, source.columns, kernels);
  if (!l.integer) throw std::invalid_argument("float activations are not timed");
  const int columns = source.columns, stride = round_up(columns, kPiece), rows = round_up(source.rows, kPanel);
  const std::size_t n = std::size_t(round_up(n_tokens, kBlock));
  Buffer<float> x(n * std::size_t(stride)), y(n * std::size_t(rows));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = float(int(i * 37 % 255) - 127);  // time depends on no value
  Int8Room room(n, std::size_t(stride));
  const Quantized q = room.view(n_tokens, columns, l.inverse);
  kernels.quantize(x.get(), stride, columns, q, 0, n_tokens);
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < calls; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    kernels.multiply(l.matrix, q, 0, l.matrix.panels(), Activation::none, y.get(), rows);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

}  // namespace flyweight
