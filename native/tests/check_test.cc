// The test helper itself, and the build flags that results depend on.
#include "tests/check.h"

#include <cstdint>
#include <stdexcept>

namespace {
void refuse() { throw std::runtime_error("found 3, at most 2"); }
}  // namespace

TEST(check_macros_accept_what_holds) {
  CHECK(1 + 1 == 2);
  CHECK_EQUAL(std::int8_t{-128}, -128);
  CHECK_EQUAL(std::string("a"), "a");
  CHECK_EQUAL((std::vector<int>{1, 2}), (std::vector<int>{1, 2}));
  CHECK_THROWS(refuse(), std::runtime_error, "at most 2");
}

// a = 1 + 2^-12: a*a = 1 + 2^-11 + 2^-24, a tie that rounds to even, 1 + 2^-11. Fused, a*a - 1 - 2^-11 is 2^-24.
TEST(products_and_sums_are_not_fused) {
  volatile float a = 1.0f + 0x1p-12f, c = -(1.0f + 0x1p-11f);
  const float x = a, y = c;
  CHECK_EQUAL(x * x + y, 0.0f);
}
