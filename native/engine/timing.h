// How long matrices take here: what an exporter asks before it chooses how to store one.
#pragma once

#include <vector>

#include "engine/engine.h"

namespace flyweight {

// The best product of each matrix with int8 activations of n_tokens tokens, in seconds: one thread, weights in whatever
// cache holds them. The matrices, all of one shape, take turns until each has had `seconds` (at least one product of each),
// so that what slows the machine down for a while slows all of them. Errors: std::invalid_argument.
std::vector<double> best_seconds(const std::vector<MatrixSource>&, int n_tokens, double seconds, const Kernels&);

}  // namespace flyweight
