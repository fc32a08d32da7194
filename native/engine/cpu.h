// What this CPU can run, and the floating-point environment that the numerics are pinned to.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace flyweight {

// Levels that this build holds, and those of them that this CPU and its system can run; slowest first.
std::vector<const Kernels*> built_levels();
std::vector<const Kernels*> usable_levels();
std::vector<const Kernels*> sparse_levels();  // of those built: Kernels::sparse

// Round to nearest even, denormals kept, for as long as the object lives; other libraries in this thread may have set
// flush-to-zero, which would change results.
class FloatEnvironment {
 public:
  FloatEnvironment();
  ~FloatEnvironment();
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
  std::uint64_t before_;
};

}  // namespace flyweight
