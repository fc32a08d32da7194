// Checked construction of an engine's parts. Errors: std::invalid_argument.
#pragma once

#include <string>

#include "engine/engine.h"

namespace flyweight {

Linear make_linear(const Matrices&, const std::string& name, int rows, int columns, const Kernels&);
// rows (rows, columns) of a matrix without bias.
Recurrent make_recurrent(const Matrices&, Linear, const std::string& name, const Kernels&);
Lookup make_lookup(const Matrices&, const std::string& name, int rows, int columns);
// What integer attention needs beside qkv. `scales`: the steps of queries, keys and values.
void make_integer_attention(Layer&, const std::string& name, const std::vector<float>& scales, const Config&);
PaddedNorm make_norm(const Vectors&, const std::string& name, int columns, float eps);
Buffer<float> make_relative_bias(const Vectors&, const std::string& name, const Config&, int heads);

}  // namespace flyweight
