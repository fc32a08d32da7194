// A model that answers token ids with logits: the whole forward pass in one call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/buffer.h"
#include "kernels/kernels.h"

namespace flyweight {

// Memory that somebody else owns (the mapped file) and keeps alive as long as the engine.
template <class T>
struct Span {
  const T* data = nullptr;
  std::size_t size = 0;
};

// A matrix as it lies in the file. Sizes are in elements; tables are int8 with a scale, or float32.
struct MatrixSource {
  Values values = Values::float32;
  bool integer = false;     // int8 activations
  float input_scale = 0.0f;  // of static activations: their step; 0: one a token
  int rows = 0, columns = 0, bits = 0, shift = 0;
  int block = 0;             // sparse: columns of a bit of the mask, 1 or 4, as in kernels.h; 0: dense
  Span<std::uint8_t> data, mask;
  Span<std::int8_t> table;
  Span<float> float_table, scale, bias;
  std::vector<float> output_scales;  // of qkv: the steps of int8 queries, keys and values; empty: float attention
};

enum class Pooling : std::uint8_t { mean, max, cls, cls_tanh, cls_relu, cls_gelu };  // cls_f: f(heads.pooler x_cls + b)
enum class LayerKind : std::uint8_t { transformer, lstm, convolution };
constexpr int kMaxWidth = 15;  // tokens that a convolution sees, an odd number

struct Config {
  int hidden = 0, head_size = 0, vocab_size = 0, max_positions = 0;
  int embedding = 0;              // columns of the embeddings where a projection to `hidden` follows them; or 0
  int ngrams = 0;                 // rows of embeddings.ngrams, looked up by a token and the one before it; or 0
  int n_intents = 0, n_tags = 0;  // one of them may be 0: that head has no outputs
  std::vector<LayerKind> kinds;   // a layer each
  std::vector<int> heads, ffn;    // of a transformer's layer; 0: the part is gone, its bias and norm stay
  std::vector<int> widths;        // of a convolution
  Activation activation = Activation::gelu;
  Pooling pooling = Pooling::mean;
  float norm_eps = 0;
  bool integer_only = false;  // all is static int8, and what lies between in integers too; see integer_only.h
  std::int64_t worth_a_thread = 32 << 20;  // products of weights by tokens: about 0.1 ms of one core
  std::vector<std::int32_t> buckets;  // by distance key - query, from -(max_positions - 1) up; empty: no relative bias
};

using Matrices = std::map<std::string, MatrixSource>;
using Vectors = std::map<std::string, Span<float>>;

// A matrix ready to be multiplied: what must be laid out for the kernels is owned, the weights stay where they are.
struct Linear {
  Matrix matrix;
  bool integer = false;
  float inverse = 0.0f;  // static activations: 1 / step, which `scales` hold; 0: a scale a token
  Buffer<float> scales, bias;
  Buffer<std::uint8_t> tables;
  Buffer<std::int32_t> sums;
  Buffer<std::uint64_t> starts;
  Buffer<std::uint16_t> groups;
  Buffer<std::uint8_t> weights;  // of a sparse matrix that was made dense
};

// What the hidden state of an LSTM is multiplied by, token after token: int8 weights are laid out anew for that.
struct Recurrent {
  Linear linear;  // has no bias
  RowLanes lanes;
  Buffer<std::int8_t> weights;
  Buffer<std::int32_t> start;
};

struct Lookup {
  Embedding embedding;
  Buffer<float> table;
};

struct PaddedNorm {
  Norm norm;
  Buffer<float> weight, bias;
};

struct Layer {
  LayerKind kind = LayerKind::transformer;
  int heads = 0, ffn = 0;
  bool integer_attention = false;
  float inverses[3] = {};             // of the steps of queries, keys, values
  float factor = 0.0f, v_scale = 0.0f;  // as in IntegerAttention
  bool parts_from_sums = false;       // qkv gives int8 queries, keys and values itself, not by way of floats
  bool down_from_sums = false;        // so does `up` the input of `down`
  Linear qkv, out, up, down;
  Linear input;            // of an LSTM
  Recurrent recurrent[2];  // of its directions
  Linear convolution;
  int width = 0;  // of the convolution
  PaddedNorm attention_norm, norm;  // norm: the layer's last
  const Linear *attention_reader = nullptr, *reader = nullptr;  // that read x after these norms; or null
  Buffer<float> relative_bias;  // (heads, 2 max_positions - 1), the entry for query i and key j at reach - 1 + i - j
};

class Engine {
 public:
  // Errors: std::invalid_argument, one line, where sizes do not fit.
  Engine(const Config&, const Matrices&, const Vectors&, const Kernels&);
  ~Engine();

  // ids of all messages one after another; lengths (n) tokens of each; first: of each word, the index of its first
  // token within its message; n_words (n). intent (n, n_intents), tags (all words, n_tags).
  // Any number of callers at a time; n_threads beyond 256 counts as 256. Errors: std::invalid_argument, std::bad_alloc.
  void logits(const std::int32_t* ids, const std::int32_t* lengths, int n, const std::int32_t* first,
              const std::int32_t* n_words, int n_threads, float* intent, float* tags) const;

  const Config& config() const { return config_; }
  const char* level() const { return kernels_.name; }

 private:
  struct Workspace;
  struct IntegerOnly;
  struct Group;
  class Team;

  void forward(const Group&, Workspace&, const Team&) const;
  void forward_integers(const Group&, Workspace&, const Team&) const;
  void attend_integers(std::size_t layer, const Group&, Workspace&, const Team&) const;
  void integer_heads(const Group&, Workspace&, const Team&) const;
  void link_readers();
  void make_transformer(Layer&, const std::string& name, std::size_t, const Matrices&, const Vectors&);
  void make_lstm(Layer&, const std::string& name, const Matrices&, const Vectors&);
  void make_convolution(Layer&, const std::string& name, int width, const Matrices&, const Vectors&);
  Linear make(const std::string& name, int rows, int columns, const Matrices&);
  std::size_t attention_room() const;
  static void make_buckets(const Group&, int n, std::int32_t* buckets);
  void embed(const Group&, Workspace&, const Team&) const;
  void quantize(const Linear&, const float* x, int x_stride, const Quantized&, const Team&) const;
  void linear(const Linear&, const float* x, int x_stride, int n, Activation, float* y, int y_stride, Workspace&,
              const Team&) const;
  void multiply(const Linear&, const float* x, int x_stride, int n, Activation, float* y, int y_stride, Workspace&,
                const Team&) const;
  template <class Job>
  void each_head(int heads, const Group&, const Team&, Job) const;
  static void mark(const Quantized& from, const Quantized& to);
  void attention(const Layer&, const Group&, Workspace&, const Team&) const;
  void integer_parts(const Layer&, const Group&, Workspace&, const Team&) const;
  void integer_attention(const Layer&, const Group&, Workspace&, const Team&) const;
  void feed_forward(const Layer&, const Group&, Workspace&, const Team&) const;
  void transformer(const Layer&, const Group&, Workspace&, const Team&) const;
  void lstm(const Layer&, const Group&, Workspace&, const Team&) const;
  void read(const Layer&, int from, int to, int token, int length, int thread, Workspace&) const;
  void convolution(const Layer&, const Group&, Workspace&, const Team&) const;
  void finish(const PaddedNorm&, const float* y, int y_stride, const Linear* reader, const Group&, Workspace&,
              const Team&) const;
  void pool(const Group&, Workspace&, const Team&) const;
  void heads(const Group&, Workspace&, const Team&) const;
  std::unique_ptr<Workspace> workspace(int n_tokens, int n_threads) const;

  Config config_;
  const Kernels& kernels_;
  Lookup words_, positions_, ngrams_;
  PaddedNorm norm_;
  Linear projection_;
  std::vector<Layer> layers_;
  Linear pooler_, intent_, tags_;
  std::unique_ptr<const IntegerOnly> integers_;  // constants of an integer-only model; null for others
  const Linear* first_reader_ = nullptr;  // of the embeddings, within layers_
  int wide_width_ = 0, parts_width_ = 0;  // of Workspace::wide and parts; 0: none is needed
  int units_ = 0;   // of an LSTM's direction; 0: there is no LSTM
  int width_ = 0;   // widest input of a matrix
  std::int64_t n_weights_ = 0;  // of all matrices that are multiplied
  int height_ = 0;  // most outputs of a matrix, and padded
  mutable std::vector<std::unique_ptr<Workspace>> idle_;  // guarded by lock_for_forks()
};

}  // namespace flyweight
