// From what lies in the file to what the kernels take; every size is checked before it is used.
#include "engine/build.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace flyweight {
namespace {

[[noreturn]] void refuse(const std::string& name, const std::string& found) {
  throw std::invalid_argument(name + ": " + found);
}

void expect(const std::string& name, const char* what, std::size_t found, std::size_t wanted) {
  if (found != wanted) {
    refuse(name, std::string(what) + " has " + std::to_string(found) + " entries; it must have " +
                     std::to_string(wanted));
  }
}

void expect_finite(const std::string& name, Span<float> values) {
  for (std::size_t i = 0; i < values.size; ++i)
    if (!std::isfinite(values.data[i])) refuse(name, "holds NaN or infinite values; weights must be finite");
}

const MatrixSource& source(const Matrices& matrices, const std::string& name, int rows, int columns) {
  const auto found = matrices.find(name);
  if (found == matrices.end()) refuse(name, "is missing");
  const MatrixSource& m = found->second;
  if (m.rows != rows || m.columns != columns) {
    refuse(name, "is " + std::to_string(m.rows) + " x " + std::to_string(m.columns) + "; the model says " +
                     std::to_string(rows) + " x " + std::to_string(columns));
  }
  if (m.columns > kMaxColumns) refuse(name, "has more than " + std::to_string(kMaxColumns) + " columns");
  if (m.shift < -127 || m.shift > 127) refuse(name, "has a shift beyond +-127");
  return m;
}

// `n` values repeated or spread to `padded` entries, zeros behind.
Buffer<float> spread(const std::string& name, const char* what, Span<float> values, int n, int padded) {
  if (values.size != 1) expect(name, what, values.size, std::size_t(n));
  expect_finite(name, values);
  Buffer<float> out{std::size_t(padded)};
  for (int i = 0; i < n; ++i) out[std::size_t(i)] = values.data[values.size == 1 ? 0 : i];
  return out;
}

std::size_t n_centres(const std::string& name, std::size_t table_size, int rows, int bits) {
  // A shared table has at most 2^bits entries; otherwise every row has its own.
  const std::size_t most = std::size_t(1) << bits;
  const std::size_t tables = table_size <= most ? 1 : std::size_t(rows);
  if (table_size == 0 || tables == 0 || table_size % tables || table_size / tables > most)
    refuse(name, "its table has " + std::to_string(table_size) + " entries for codes of " + std::to_string(bits) + " bits");
  return table_size / tables;
}

// Where each row's survivors begin, counted from the mask. Nothing of it lies in the file: a damaged one cannot point beyond
// the survivors.
void make_sparse(const std::string& name, const MatrixSource& from, Linear& to) {
  Matrix& m = to.matrix;
  if (from.block != 1 && from.block != 4) refuse(name, "has blocks of " + std::to_string(from.block) + "; allowed: 1 or 4");
  if (from.shift) refuse(name, "is sparse and has a shift");
  const int padded = m.panels() * kPanel, n_bits = round_up(m.columns, kPiece) / from.block;  // of a row
  const std::size_t row_bytes = std::size_t(n_bits) / 8;
  expect(name, "mask (bytes)", from.mask.size, row_bytes * std::size_t(padded));
  to.starts = Buffer<std::uint64_t>(std::size_t(padded) + 1);
  const auto bit = [&](int row, int i) {
    return from.mask.data[std::size_t(row) * row_bytes + std::size_t(i) / 8] >> i % 8 & 1;
  };
  std::uint64_t n = 0;
  for (int row = 0; row < padded; ++row) {
    const std::uint8_t* mask = from.mask.data + std::size_t(row) * row_bytes;
    std::uint64_t alive = 0;
    for (std::size_t i = 0; i < row_bytes; ++i) alive += std::uint64_t(std::popcount(mask[i]));
    for (int i = (m.columns + from.block - 1) / from.block; i < n_bits; ++i)
      if (bit(row, i)) refuse(name, "its mask has bits beyond the last column");
    if (row >= m.rows && alive) refuse(name, "its mask has bits beyond the last row");
    to.starts[std::size_t(row)] = n;
    n += alive * std::uint64_t(from.block);
  }
  to.starts[std::size_t(padded)] = n;
  constexpr std::size_t kTail = 64;  // bytes behind the last survivor that may be read
  expect(name, "data (bytes)", from.data.size, std::size_t((n * std::uint64_t(m.bits) + 7) / 8) + kTail);
  m.block = from.block;
  m.mask = from.mask.data;
  m.starts = to.starts.get();
}

// job(row, number of the bit) for every bit of the mask, in the order of the survivors.
template <class Job>
void each_bit(const Matrix& m, Job job) {
  const std::size_t row_bytes = std::size_t(round_up(m.columns, kPiece) / m.block) / 8;
  for (int row = 0; row < m.rows; ++row)
    for (std::size_t i = 0; i < row_bytes; ++i)
      for (unsigned bits = m.mask[std::size_t(row) * row_bytes + i]; bits; bits &= bits - 1)
        job(std::size_t(row), 8 * i + std::size_t(std::countr_zero(bits)));
}

// Which groups of four columns survive.
void make_groups(Linear& to) {
  Matrix& m = to.matrix;
  to.groups = Buffer<std::uint16_t>(std::size_t(m.starts[m.panels() * kPanel] / 4) + 16);
  std::size_t at = 0;
  each_bit(m, [&](std::size_t, std::size_t i) { to.groups[at++] = std::uint16_t(i * kPiece); });
  m.groups = to.groups.get();
}

// The same weights as int8 panels: a survivor is decoded where it belongs, all else is 0.
void make_dense(Linear& to) {
  Matrix& m = to.matrix;
  const std::size_t block = std::size_t(m.block), n_pieces = std::size_t(round_up(m.columns, kPiece) / kPiece);
  to.weights = Buffer<std::uint8_t>(std::size_t(m.panels()) * n_pieces * kPanel * kPiece);
  std::size_t next = 0;
  each_bit(m, [&](std::size_t row, std::size_t i) {
    const std::size_t column = i * block, piece = (row / kPanel * n_pieces + column / kPiece) * kPanel + row % kPanel;
    std::uint8_t* w = to.weights.get() + piece * kPiece + column % kPiece;
    for (std::size_t end = next + block; next < end; ++next, ++w) {
      const std::size_t bit = next * std::size_t(m.bits);
      const int code = m.data[bit / 8] >> bit % 8 & ((1 << m.bits) - 1);
      *w = m.values == Values::int8 ? std::uint8_t(code) : m.tables[row * std::size_t(m.table_stride) + std::size_t(code)];
    }
  });
  m.values = Values::int8;
  m.bits = 8;
  m.block = 0;
  m.data = to.weights.get();
  m.mask = nullptr;
  m.starts = nullptr;
  m.tables = nullptr;
  to.starts = {};
  to.tables = {};
}

// 1 / a static step. Errors where either is no number above 0.
float inverse_of(const std::string& name, const char* what, float step) {
  const float inverse = 1.0f / step;
  if (!(step > 0.0f && std::isfinite(step) && std::isfinite(inverse)))
    refuse(name, std::string(what) + " is " + std::to_string(step) + "; it must be above 0 and finite");
  return inverse;
}

}  // namespace

Linear make_linear(const Matrices& matrices, const std::string& name, int rows, int columns, const Kernels& kernels) {
  const MatrixSource& from = source(matrices, name, rows, columns);
  Linear to;
  Matrix& m = to.matrix;
  m.values = from.values;
  m.rows = rows;
  m.columns = columns;
  m.data = from.data.data;
  to.integer = from.integer;
  const int padded = round_up(rows, kPanel);
  if (from.bias.size) {
    to.bias = spread(name, "bias", from.bias, rows, padded);
    if (from.bias.size == 1 && rows != 1) refuse(name, "bias has 1 entry for " + std::to_string(rows) + " rows");
  } else {
    to.bias = Buffer<float>(std::size_t(padded));
  }
  m.bias = to.bias.get();
  if (from.input_scale != 0.0f && !from.integer) refuse(name, "has an input scale; float activations have none");
  if (from.block && from.values == Values::float32) refuse(name, "is sparse and has float weights");
  if (from.values == Values::float32) {
    if (from.integer) refuse(name, "has float weights; int8 activations need integer weights");
    expect(name, "data (bytes)", from.data.size, m.panel_bytes() * std::size_t(m.panels()));
    expect_finite(name, {reinterpret_cast<const float*>(from.data.data), from.data.size / sizeof(float)});
    return to;
  }
  if (!from.integer) refuse(name, "has integer weights; float activations need float weights");
  if (from.values == Values::codes && from.bits != 1 && from.bits != 2 && from.bits != 4)
    refuse(name, "has codes of " + std::to_string(from.bits) + " bits; products take 1, 2 or 4");
  m.bits = from.values == Values::codes ? from.bits : 8;
  m.shift = from.shift;
  if (from.block) {
    make_sparse(name, from, to);
  } else {
    expect(name, "data (bytes)", from.data.size, m.panel_bytes() * std::size_t(m.panels()));
  }
  if (from.scale.size == 0) refuse(name, "has no scale");
  to.scales = spread(name, "scale", from.scale, rows, padded);
  if (from.input_scale != 0.0f) {
    to.inverse = inverse_of(name, "input scale", from.input_scale);
    for (int r = 0; r < padded; ++r) to.scales[std::size_t(r)] *= from.input_scale;
    expect_finite(name, {to.scales.get(), to.scales.size()});
  }
  m.scales = to.scales.get();
  if (from.values == Values::codes) {
    const std::size_t k = n_centres(name, from.table.size, rows, m.bits), held = std::size_t(1) << m.bits;
    const std::size_t tables = from.table.size / k;
    to.tables = Buffer<std::uint8_t>(kPanel * (tables == 1 ? 1 : std::size_t(padded)));
    for (std::size_t r = 0; r < tables; ++r)
      for (std::size_t i = 0; i < std::size_t(kPanel); ++i) {  // 2^bits entries, repeated to 16
        const std::size_t code = i % held, at = code < k ? code : k - 1;
        to.tables[r * kPanel + i] = std::uint8_t(from.table.data[r * k + at]);
      }
    m.tables = to.tables.get();
    m.table_stride = tables == 1 ? 0 : kPanel;
  }
  if (m.block && !(kernels.sparse && columns <= kMaxSparseColumns)) make_dense(to);
  if (m.block == 4) make_groups(to);
  if (kernels.row_sums) {
    to.sums = Buffer<std::int32_t>(std::size_t(padded));
    kernels.row_sums(m, to.sums.get());
    m.sums = to.sums.get();
  }
  return to;
}

Recurrent make_recurrent(const Matrices& matrices, Linear linear, const std::string& name, const Kernels& kernels) {
  constexpr float kStep = 1.0f / 127.0f;  // of hidden states, which lie in [-1, 1]
  const MatrixSource& from = matrices.at(name);
  if (from.bias.size) refuse(name, "has a bias; the gates have it from their input");
  if (linear.integer && from.input_scale != kStep)
    refuse(name, "its input scale is " + std::to_string(from.input_scale) + "; that of hidden states is 1/127");
  Recurrent to;
  to.linear = std::move(linear);
  if (!to.linear.integer) return to;
  Matrix m = to.linear.matrix;
  to.lanes = {nullptr, nullptr, m.rows, m.columns, m.shift};
  m.scales = nullptr;  // sums as they are
  m.shift = 0;
  const std::size_t padded = std::size_t(m.panels()) * kPanel, groups = std::size_t(to.lanes.groups());
  to.weights = Buffer<std::int8_t>(padded * groups * 4);
  to.start = Buffer<std::int32_t>(padded);
  // Whatever the form of the weights: column k is the product with a vector that is 1 there and 0 elsewhere.
  const std::size_t width = std::size_t(round_up(m.columns, kPiece));
  Buffer<float> x(width), sums(padded);
  Buffer<std::int8_t> rows(width), lanes(width * kBlock);
  float scale = 0.0f;
  std::int32_t sum = 0;
  const Quantized q{rows.get(), lanes.get(), &scale, &sum, 1, int(width), 1.0f};
  for (int k = 0; k < m.columns; ++k) {
    x[std::size_t(k)] = 1.0f;
    kernels.quantize(x.get(), int(width), m.columns, q, 0, 1);
    kernels.multiply(m, q, 0, m.panels(), Activation::none, sums.get(), int(padded));
    x[std::size_t(k)] = 0.0f;
    for (std::size_t r = 0; r < std::size_t(m.rows); ++r) {
      std::int32_t w;
      std::memcpy(&w, &sums[r], sizeof w);
      to.weights[((r / kPanel * groups + std::size_t(k / 4)) * kPanel + r % kPanel) * 4 + std::size_t(k % 4)] = std::int8_t(w);
      if (kernels.row_sums) to.start[r] -= 128 * w;
    }
  }
  to.lanes.weights = to.weights.get();
  to.lanes.start = to.start.get();
  return to;
}

void make_integer_attention(Layer& layer, const std::string& name, const std::vector<float>& scales,
                            const Config& config) {
  expect(name, "output scales", scales.size(), 3);
  if (config.max_positions > kMaxAttended)
    refuse(name, "has output scales; they are for at most " + std::to_string(kMaxAttended) + " tokens");
  for (std::size_t i = 0; i < 3; ++i) layer.inverses[i] = inverse_of(name, "output scale", scales[i]);
  layer.factor = scales[0] * scales[1] * float(1.0 / std::sqrt(double(config.head_size)));
  if (!std::isfinite(layer.factor)) refuse(name, "its output scales are too large");
  layer.v_scale = scales[2];
  layer.integer_attention = layer.heads > 0;
  layer.parts_from_sums = layer.qkv.integer && layer.heads * config.head_size % kPanel == 0;
}

Lookup make_lookup(const Matrices& matrices, const std::string& name, int rows, int columns) {
  const MatrixSource& from = source(matrices, name, rows, columns);
  if (from.block) refuse(name, "is looked up; it cannot be sparse");
  if (from.integer || from.input_scale != 0.0f) refuse(name, "is looked up; its activations must be float");
  Lookup to;
  Embedding& e = to.embedding;
  e.values = from.values;
  e.rows = rows;
  e.columns = columns;
  e.data = from.data.data;
  e.shift = from.shift;
  e.bits = from.values == Values::float32 ? 32 : from.values == Values::int8 ? 8 : from.bits;
  if (e.bits < 1 || (from.values == Values::codes && e.bits > 8)) refuse(name, "has codes of more than 8 or no bits");
  e.row_bytes = (std::size_t(columns) * std::size_t(e.bits) + 7) / 8;
  expect(name, "data (bytes)", from.data.size, e.row_bytes * std::size_t(rows));
  if (from.values == Values::float32) {
    expect_finite(name, {reinterpret_cast<const float*>(from.data.data), from.data.size / sizeof(float)});
    return to;
  }
  const bool scaled = from.values == Values::int8 || from.table.size;
  if (scaled) {
    if (from.scale.size != 1) expect(name, "scale", from.scale.size, std::size_t(rows));
    expect_finite(name, from.scale);
  }
  if (from.values == Values::int8) {
    e.scales = from.scale.data;
    e.scale_stride = from.scale.size == 1 ? 0 : 1;
    return to;
  }
  const std::size_t size = from.table.size ? from.table.size : from.float_table.size;
  const std::size_t k = n_centres(name, size, rows, e.bits), tables = size / k, held = std::size_t(1) << e.bits;
  if (!from.table.size) expect_finite(name, from.float_table);
  if (!from.table.size && k == held) {
    e.table = from.float_table.data;
  } else {  // codes beyond the table, which no sound file has, find its last centre
    to.table = Buffer<float>(tables * held);
    for (std::size_t r = 0; r < tables; ++r)
      for (std::size_t i = 0; i < held; ++i) {
        const std::size_t at = r * k + (i < k ? i : k - 1);
        to.table[r * held + i] = from.table.size
                                     ? float(from.table.data[at]) * from.scale.data[from.scale.size == 1 ? 0 : r]
                                     : from.float_table.data[at];
      }
    e.table = to.table.get();
  }
  e.table_stride = tables == 1 ? 0 : held;
  if (scaled && tables == 1 && from.scale.size != 1) refuse(name, "has one table and several scales");
  return to;
}

PaddedNorm make_norm(const Vectors& vectors, const std::string& name, int columns, float eps) {
  PaddedNorm to;
  const int padded = round_up(columns, kLanes);
  const auto part = [&](const char* which) {
    const std::string whole = name + "." + which;
    const auto found = vectors.find(whole);
    if (found == vectors.end()) refuse(whole, "is missing");
    expect(whole, "vector", found->second.size, std::size_t(columns));
    return spread(whole, "vector", found->second, columns, padded);
  };
  to.weight = part("weight");
  to.bias = part("bias");
  to.norm = {to.weight.get(), to.bias.get(), columns, eps};
  return to;
}

Buffer<float> make_relative_bias(const Vectors& vectors, const std::string& name, const Config& config, int heads) {
  const auto found = vectors.find(name);
  if (found == vectors.end()) refuse(name, "is missing");
  const std::size_t n_heads = std::size_t(heads), reach = std::size_t(config.max_positions);
  const std::size_t n_buckets = n_heads ? found->second.size / n_heads : 0;
  expect(name, "vector", found->second.size, n_buckets * n_heads);
  expect_finite(name, found->second);
  expect(name, "buckets", config.buckets.size(), 2 * reach - 1);
  Buffer<float> to(n_heads * (2 * reach - 1) + kLanes);
  for (std::size_t at = 0; at < 2 * reach - 1; ++at) {
    const std::int32_t bucket = config.buckets[2 * reach - 2 - at];  // query - key ascending is key - query descending
    if (n_heads && (bucket < 0 || std::size_t(bucket) >= n_buckets)) refuse(name, "bucket " + std::to_string(bucket) + " is unknown");
    for (std::size_t h = 0; h < n_heads; ++h)
      to[h * (2 * reach - 1) + at] = found->second.data[std::size_t(bucket) * n_heads + h];
  }
  return to;
}

}  // namespace flyweight
