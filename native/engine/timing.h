// How long one matrix takes here: what an exporter asks before it chooses how to store it.
#pragma once

#include "engine/engine.h"

namespace flyweight {

// The best of `calls` products of a matrix with int8 activations of n_tokens tokens, in seconds: one thread, weights in
// whatever cache holds them. Errors: std::invalid_argument.
double best_seconds(const MatrixSource&, int n_tokens, int calls, const Kernels&);

}  // namespace flyweight
