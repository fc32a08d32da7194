#include "engine/answer.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "engine/cpu.h"

namespace flyweight {

bool Answer::decode(const float* intent, int n_intents, float temperature, const float* tags, int n_words,
                    int n_tags) {
  const FloatEnvironment pinned;
  const auto finite = [](double x) { return std::isfinite(x); };
  const std::size_t width = std::size_t(n_tags);
  if (!std::all_of(intent, intent + n_intents, finite) ||
      !std::all_of(tags, tags + width * std::size_t(n_words), finite))
    return false;

  probabilities_.assign(intent, intent + n_intents);
  for (double& x : probabilities_) x = double(float(x) / temperature);
  if (!std::all_of(probabilities_.begin(), probabilities_.end(), finite)) return false;
  double top = -HUGE_VAL;  // of no intents, nothing is made
  for (const double x : probabilities_) top = std::max(top, x);
  double total = 0;
  for (double& x : probabilities_) total += x = std::exp(x - top);
  ranked_.clear();
  for (int i = 0; i < n_intents; ++i) ranked_.emplace_back(probabilities_[std::size_t(i)] / total, i);
  // Equal confidences in index order: what a stable sort gives, without its memory.
  std::sort(ranked_.begin(), ranked_.end(),
            [](const auto& a, const auto& b) { return a.first != b.first ? a.first > b.first : a.second < b.second; });
  order.clear();
  confidences.clear();
  for (const auto& [p, i] : ranked_) {
    order.push_back(i);
    confidences.push_back(p);
  }

  // Viterbi: I-x follows only B-x or I-x, any other tag the best one; ties take the lower index, B before I.
  path.assign(std::size_t(n_words), 0);
  if (!n_words) return true;
  parents_.resize(std::size_t(n_words) * width);
  score_.assign(width, 0.0);
  carried_.resize(width);
  for (int t = 0; t < n_words; ++t) {
    const float* row = tags + std::size_t(t) * width;
    int* parents = parents_.data() + std::size_t(t) * width;
    const int best = int(std::max_element(score_.begin(), score_.end()) - score_.begin());
    for (std::size_t tag = 0; tag < width; ++tag) {
      const bool inside = tag && tag % 2 == 0;
      int parent = best;
      if (inside && t) parent = int(score_[tag - 1] >= score_[tag] ? tag - 1 : tag);
      parents[tag] = parent;
      carried_[tag] = (inside && !t ? -HUGE_VAL : score_[std::size_t(parent)]) + double(row[tag]);
    }
    std::swap(score_, carried_);
  }
  int last = int(std::max_element(score_.begin(), score_.end()) - score_.begin());
  for (int t = n_words; t-- > 0;) {
    path[std::size_t(t)] = last;
    last = parents_[std::size_t(t) * width + std::size_t(last)];
  }
  return true;
}

}  // namespace flyweight
