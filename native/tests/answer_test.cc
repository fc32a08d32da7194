// Logits -> answer, by hand and against all legal paths.
#include <cmath>
#include <limits>

#include "engine/answer.h"
#include "tests/kernel_cases.h"

using namespace cases;

namespace {

bool legal(const std::vector<int>& path) {
  for (std::size_t i = 0; i < path.size(); ++i) {
    const int tag = path[i], before = i ? path[i - 1] : 0;
    if (tag && tag % 2 == 0 && before != tag && before != tag - 1) return false;
  }
  return true;
}

double score(const std::vector<float>& tags, int n_tags, const std::vector<int>& path) {
  double sum = 0;
  for (std::size_t i = 0; i < path.size(); ++i) sum += double(tags[i * std::size_t(n_tags) + std::size_t(path[i])]);
  return sum;
}

double best_of_all(const std::vector<float>& tags, int n_tags, int n_words) {
  double best = -HUGE_VAL;
  std::vector<int> path(std::size_t(n_words), 0);
  for (;;) {
    if (legal(path)) best = std::max(best, score(tags, n_tags, path));
    std::size_t i = 0;
    while (i < path.size() && ++path[i] == n_tags) path[i++] = 0;
    if (i == path.size()) return best;
  }
}

}  // namespace

TEST(answer_ranks_intents_by_hand) {
  Answer answer;
  const float logits[] = {0, std::log(2.0f) * 2, 0, std::log(4.0f) * 2};  // over temperature 2: 1 2 1 4 of 8
  CHECK(answer.decode(logits, 4, 2.0f, nullptr, 0, 0));
  CHECK_EQUAL(answer.order, (std::vector<int>{3, 1, 0, 2}));
  const double wanted[] = {.5, .25, .125, .125};
  for (std::size_t i = 0; i < 4; ++i) CHECK(std::fabs(answer.confidences[i] - wanted[i]) < 1e-7);
  CHECK(answer.path.empty());
  const std::vector<float> equal(300, -3.25f);
  CHECK(answer.decode(equal.data(), 300, 1.0f, nullptr, 0, 0));
  for (int i = 0; i < 300; ++i) CHECK_EQUAL(answer.order[std::size_t(i)], i);
  const float far[] = {-1000, 1000, -2000};  // exp(-2000) is 0, as is exp(-3000): index order
  CHECK(answer.decode(far, 3, 1.0f, nullptr, 0, 0));
  CHECK_EQUAL(answer.order, (std::vector<int>{1, 0, 2}));
  CHECK_EQUAL(answer.confidences, (std::vector<double>{1, 0, 0}));
}

TEST(answer_of_a_model_without_intents_has_tags_alone) {
  Answer answer;
  const float tags[] = {0, 1, 0, 0, 0, 2};
  CHECK(answer.decode(nullptr, 0, 1.0f, tags, 2, 3));
  CHECK(answer.order.empty() && answer.confidences.empty());
  CHECK_EQUAL(answer.path, (std::vector<int>{1, 2}));
  CHECK(answer.decode(nullptr, 0, 1.0f, nullptr, 0, 3));
  CHECK(answer.order.empty() && answer.path.empty());
}

TEST(answer_tags_by_hand) {
  Answer answer;
  const float intent = 0;
  const auto path = [&](std::vector<float> tags, int n_words, int n_tags) {
    CHECK(answer.decode(&intent, 1, 1.0f, tags.data(), n_words, n_tags));
    return answer.path;
  };
  CHECK_EQUAL(path({0, 0, 9}, 1, 3), std::vector<int>{0});             // no I at the beginning
  CHECK_EQUAL(path({0, 1, 9, 0, 0, 9}, 2, 3), (std::vector<int>{1, 2}));  // B to let I follow
  CHECK_EQUAL(path({5, 0, 9, 0, 0, 4}, 2, 3), (std::vector<int>{0, 0}));  // which is not worth it
  CHECK_EQUAL(path({0, 1, 0, 0, 0, 0, 0, 0, 0, 3}, 2, 5), (std::vector<int>{3, 4}));  // I-b follows B-b, not B-a
  CHECK_EQUAL(path(std::vector<float>(12, 1.0f), 4, 3), (std::vector<int>{0, 0, 0, 0}));
  CHECK_EQUAL(path({2, 2, 2, 0, 0, 1, 0, 0, 1}, 3, 3), (std::vector<int>{1, 2, 2}));
  CHECK_EQUAL(path({2, 2, 2, 0, 0, 0, 0, 0, 1}, 3, 3), (std::vector<int>{0, 1, 2}));  // B before I where they tie
}

TEST(answer_takes_the_best_of_all_legal_paths) {
  Answer answer;
  const float intent = 0;
  for (int round = 0; round < 300; ++round) {
    const int n_tags = 1 + 2 * random_int(1, 2), n_words = random_int(1, 5);
    std::vector<float> tags(std::size_t(n_tags * n_words));
    for (float& x : tags) x = float(random_int(-3, 3)) * (round % 2 ? 1.0f : random_float());  // halves have ties
    CHECK(answer.decode(&intent, 1, 1.0f, tags.data(), n_words, n_tags));
    CHECK(legal(answer.path));
    CHECK_EQUAL(score(tags, n_tags, answer.path), best_of_all(tags, n_tags, n_words));
  }
}

TEST(answer_refuses_what_is_not_finite) {
  Answer answer;
  std::vector<float> intent(40, 1.0f), tags(15, 1.0f);
  const auto decoded = [&](float temperature) { return answer.decode(intent.data(), 40, temperature, tags.data(), 3, 5); };
  CHECK(decoded(1.0f));
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), HUGE_VALF, -HUGE_VALF}) {
    intent[39] = bad;
    CHECK(!decoded(1.0f));
    intent[39] = 1.0f;
    tags[14] = bad;
    CHECK(!decoded(1.0f));
    tags[14] = 1.0f;
  }
  for (std::size_t i = 0; i < 40; ++i) intent[i] = i % 2 ? 3e38f : float(i);
  CHECK(decoded(1.0f));
  CHECK(!decoded(1e-4f));  // infinite over the temperature: NaN has no order to be sorted by
  CHECK(!decoded(0.0f));
}
