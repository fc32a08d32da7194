#include "engine/timing.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <stdexcept>

#include "engine/build.h"
#include "engine/cpu.h"
#include "engine/forward.h"

namespace flyweight {

std::vector<double> best_seconds(const std::vector<MatrixSource>& sources, int n_tokens, double seconds,
                                 const Kernels& kernels) {
  if (n_tokens < 1 || n_tokens > 1024 || !(seconds > 0.0 && seconds <= 60.0))
    throw std::invalid_argument("tokens must be from 1 to 1024, seconds above 0 and at most 60");
  if (sources.empty()) return {};
  const FloatEnvironment pinned;
  const int columns = sources[0].columns, stride = round_up(columns, kPiece), rows = round_up(sources[0].rows, kPanel);
  std::vector<Linear> matrices;
  for (const MatrixSource& source : sources) {
    matrices.push_back(make_linear({{"matrix", source}}, "matrix", sources[0].rows, columns, kernels));
    if (!matrices.back().integer) throw std::invalid_argument("float activations are not timed");
  }
  const std::size_t n = std::size_t(round_up(n_tokens, kBlock));
  Buffer<float> x(n * std::size_t(stride)), y(n * std::size_t(rows));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = float(int(i * 37 % 255) - 127);  // time depends on no value
  Int8Room room(n, std::size_t(stride));
  const Quantized q = room.view(n_tokens, columns, matrices[0].inverse);
  kernels.quantize(x.get(), stride, columns, q, 0, n_tokens);
  std::vector<double> best(sources.size(), std::numeric_limits<double>::infinity()), spent(sources.size());
  while (*std::min_element(spent.begin(), spent.end()) < seconds)
    for (std::size_t i = 0; i < matrices.size(); ++i) {
      const auto begin = std::chrono::steady_clock::now();
      kernels.multiply(matrices[i].matrix, q, 0, matrices[i].matrix.panels(), Activation::none, y.get(), rows);
      const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      best[i] = std::min(best[i], took);
      spent[i] += took;
    }
  return best;
}

}  // namespace flyweight
