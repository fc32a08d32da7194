// The Python module flyweight._native: the engine and the tokenizer, and nothing that computes.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/answer.h"
#include "engine/cpu.h"
#include "engine/engine.h"
#include "tokenizer/bind_tokenizer.h"

namespace nb = nanobind;
using namespace flyweight;

namespace {

using Ints = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu, nb::ro>;
template <class T>
using Flat = nb::ndarray<const T, nb::c_contig, nb::device::cpu, nb::ro>;

std::vector<std::string> names(const std::vector<const Kernels*>& levels) {
  std::vector<std::string> found;
  for (const Kernels* level : levels) found.emplace_back(level->name);
  return found;
}

template <class T>
T field(const nb::dict& from, const char* name) {
  if (!from.contains(name)) throw std::invalid_argument(std::string("field '") + name + "' is missing");
  return nb::cast<T>(from[name]);
}

template <class T>
Span<T> span(const nb::handle& value, std::vector<nb::object>& keep) {
  if (value.is_none()) return {};
  const auto array = nb::cast<Flat<T>>(value);
  keep.push_back(nb::borrow(value));
  return {array.data(), array.size()};
}

Span<std::uint8_t> bytes(const nb::handle& value, std::vector<nb::object>& keep) {
  const auto array = nb::cast<nb::ndarray<nb::c_contig, nb::device::cpu, nb::ro>>(value);
  keep.push_back(nb::borrow(value));
  return {static_cast<const std::uint8_t*>(array.data()), array.nbytes()};
}

template <class E>
E choice(const std::string& found, const char* what, std::initializer_list<std::pair<const char*, E>> allowed) {
  for (const auto& [name, value] : allowed)
    if (found == name) return value;
  throw std::invalid_argument(std::string(what) + " '" + found + "' is unknown");
}

Config config_of(const nb::dict& from) {
  Config c;
  c.hidden = field<int>(from, "hidden");
  c.head_size = field<int>(from, "head_size");
  c.vocab_size = field<int>(from, "vocab_size");
  c.max_positions = field<int>(from, "max_positions");
  c.n_intents = field<int>(from, "n_intents");
  c.n_tags = field<int>(from, "n_tags");
  c.heads = field<std::vector<int>>(from, "heads");
  c.ffn = field<std::vector<int>>(from, "ffn");
  c.norm_eps = field<float>(from, "norm_eps");
  c.activation = choice<Activation>(
      field<std::string>(from, "activation"), "activation",
      {{"gelu", Activation::gelu}, {"gelu_tanh", Activation::gelu_tanh}, {"relu", Activation::relu}});
  c.pooling = choice<Pooling>(field<std::string>(from, "pooling"), "pooling",
                              {{"mean", Pooling::mean}, {"cls", Pooling::cls}, {"cls+tanh", Pooling::cls_tanh}});
  if (!from["buckets"].is_none()) {
    const auto buckets = nb::cast<Ints>(from["buckets"]);
    c.buckets.assign(buckets.data(), buckets.data() + buckets.size());
  }
  return c;
}

MatrixSource matrix_of(const nb::dict& from, std::vector<nb::object>& keep) {
  MatrixSource m;
  m.values = choice<Values>(field<std::string>(from, "form"), "form",
                            {{"float32", Values::float32}, {"int8", Values::int8}, {"codes", Values::codes}});
  m.integer = choice<bool>(field<std::string>(from, "activations"), "activations", {{"int8", true}, {"float", false}});
  m.rows = field<int>(from, "rows");
  m.columns = field<int>(from, "columns");
  m.bits = field<int>(from, "bits");
  m.shift = field<int>(from, "shift");
  m.data = bytes(from["data"], keep);
  m.scale = span<float>(from["scale"], keep);
  m.bias = span<float>(from["bias"], keep);
  const nb::object table = from["table"];
  if (!table.is_none()) {
    if (m.scale.data) {
      m.table = span<std::int8_t>(table, keep);
    } else {
      m.float_table = span<float>(table, keep);
    }
  }
  return m;
}

// An engine, and the arrays whose memory it reads.
struct Model {
  std::vector<nb::object> keep;
  std::unique_ptr<Engine> engine;

  Model(const nb::dict& config, const nb::dict& matrices, const nb::dict& vectors, const std::string& level) {
    const Kernels* kernels = nullptr;
    for (const Kernels* usable : usable_levels())
      if (level == usable->name) kernels = usable;
    if (!kernels) throw std::invalid_argument("level '" + level + "' cannot run here");
    Matrices all;
    for (const auto& [name, entry] : matrices)
      all[nb::cast<std::string>(name)] = matrix_of(nb::cast<nb::dict>(entry), keep);
    Vectors rest;
    for (const auto& [name, values] : vectors) rest[nb::cast<std::string>(name)] = span<float>(values, keep);
    engine = std::make_unique<Engine>(config_of(config), all, rest, *kernels);
  }
};

template <class T>
nb::ndarray<nb::numpy, T> new_array(std::initializer_list<std::size_t> shape) {
  std::size_t size = 1;
  for (const std::size_t n : shape) size *= n;
  auto* data = new T[size ? size : 1];
  const nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return nb::ndarray<nb::numpy, T>(data, shape, owner);
}

nb::tuple logits(const Model& model, const Ints& ids, const Ints& lengths, const Ints& first, const Ints& n_words,
                 int threads) {
  const Config& c = model.engine->config();
  const std::size_t n = lengths.size();
  std::int64_t n_ids = 0, n_all_words = 0;
  for (std::size_t i = 0; i < n; ++i) n_ids += lengths.data()[i];
  for (std::size_t i = 0; i < n_words.size(); ++i) n_all_words += n_words.data()[i];
  if (n_words.size() != n || n_ids != std::int64_t(ids.size()) || n_all_words != std::int64_t(first.size()))
    throw std::invalid_argument("ids, lengths, first and n_words do not belong together");
  auto intent = new_array<float>({n, std::size_t(c.n_intents)});
  auto tags = new_array<float>({c.n_tags ? first.size() : 0, std::size_t(c.n_tags)});
  {
    const nb::gil_scoped_release released;
    model.engine->logits(ids.data(), lengths.data(), int(n), first.data(), n_words.data(), threads,
                         static_cast<float*>(intent.data()), static_cast<float*>(tags.data()));
  }
  return nb::make_tuple(intent, tags);
}

template <class T>
nb::list list_of(const std::vector<T>& values) {
  nb::list found;
  for (const T value : values) found.append(value);
  return found;
}

// Text in, answer out, in one call: (intents in rank order, their confidences, words' spans, a tag per word), or None
// where the logits are not finite. Words and tags are empty without an entity, which most messages have none of.
nb::object answer(const Model& model, const Tokenizer& tokenizer, nb::handle text, float temperature, int threads) {
  const Encoding& encoded = encoding(tokenizer, text);
  const Config& c = model.engine->config();
  static thread_local std::vector<float> intent, tags;
  static thread_local Answer found;
  intent.resize(std::size_t(c.n_intents));
  const std::int32_t n_words = c.n_tags ? std::int32_t(encoded.first.size()) : 0;
  tags.resize(std::size_t(n_words) * std::size_t(c.n_tags));
  const auto length = std::int32_t(encoded.ids.size());
  bool sound = false;
  {
    const nb::gil_scoped_release released;
    model.engine->logits(encoded.ids.data(), &length, 1, encoded.first.data(), &n_words, threads, intent.data(),
                         tags.data());
    sound = found.decode(intent.data(), c.n_intents, temperature, tags.data(), n_words, c.n_tags);
  }
  if (!sound) return nb::none();
  nb::list words, path;
  if (std::any_of(found.path.begin(), found.path.end(), [](int tag) { return tag != 0; })) {
    for (std::size_t i = 0; i < found.path.size(); ++i) words.append(nb::make_tuple(encoded.starts[i], encoded.ends[i]));
    path = list_of(found.path);
  }
  return nb::make_tuple(list_of(found.order), list_of(found.confidences), words, path);
}

}  // namespace

NB_MODULE(_native, m) {
  bind_tokenizer(m);
  m.def("levels", [] { return names(usable_levels()); },
        "Names of the instruction-set levels that this CPU can run, slowest first.");
  m.def("built", [] { return names(built_levels()); }, "Names of the levels that this build holds.");
  nb::class_<Model>(m, "Engine", "A model whose weights stay where they lie; see native/engine/engine.h.")
      .def(nb::init<const nb::dict&, const nb::dict&, const nb::dict&, const std::string&>(), nb::arg("config"),
           nb::arg("matrices"), nb::arg("vectors"), nb::arg("level"))
      .def_prop_ro("level", [](const Model& model) { return model.engine->level(); })
      .def("logits", &logits, nb::arg("ids"), nb::arg("lengths"), nb::arg("first"), nb::arg("n_words"),
           nb::arg("threads") = 1,
           "int32 arrays -> (intent (B, C), tags (W, n_tags)) float32; the GIL is released.")
      .def("answer", &answer, nb::arg("tokenizer"), nb::arg("text"), nb::arg("temperature"), nb::arg("threads") = 1,
           "One message -> (intents in rank order, confidences, word spans, tags), or None: logits are not finite.");
}
