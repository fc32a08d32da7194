// Logits -> answer of one message: confidences in rank order, and the best legal tag of each word.
#pragma once

#include <utility>
#include <vector>

namespace flyweight {

struct Answer {
  std::vector<int> order;           // intents, the most likely first; a tie keeps the lower index first
  std::vector<double> confidences;  // in that order; p = softmax(logits / temperature)
  std::vector<int> path;            // a tag per word: O, then B and I of each label

  // False where a logit, by itself or over the temperature, is NaN or infinite: a damaged model, nothing is decoded.
  bool decode(const float* intent, int n_intents, float temperature, const float* tags, int n_words, int n_tags);

 private:
  std::vector<double> probabilities_, score_, carried_;
  std::vector<std::pair<double, int>> ranked_;
  std::vector<int> parents_;
};

}  // namespace flyweight
