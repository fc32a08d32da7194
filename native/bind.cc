// The Python module flyweight._native: the engine and the tokenizer, and nothing that computes.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

#include "engine/answer.h"
#include "engine/cpu.h"
#include "engine/engine.h"
#include "engine/timing.h"
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

nb::object item(const nb::dict& from, const char* name) {
  if (!from.contains(name)) throw std::invalid_argument(std::string("field '") + name + "' is missing");
  return from[name];
}

template <class T>
T field(const nb::dict& from, const char* name) {
  const nb::object value = item(from, name);
  try {
    return nb::cast<T>(value);
  } catch (const std::bad_cast&) {
    throw std::invalid_argument(std::string("field '") + name + "' is of another type than it must be");
  }
}

// An array as it lies; never a converted copy, which nobody would keep alive.
template <class Array>
Array as_it_lies(const nb::handle& value, const std::string& name) {
  try {
    return nb::cast<Array>(value, false);
  } catch (const std::bad_cast&) {
    throw std::invalid_argument(name + " is no array of the type that it must have, without gaps");
  }
}

template <class T>
Span<T> span(const nb::handle& value, const std::string& name, std::vector<nb::object>& keep) {
  if (value.is_none()) return {};
  const auto array = as_it_lies<Flat<T>>(value, name);
  keep.push_back(nb::borrow(value));
  return {array.data(), array.size()};
}

Span<std::uint8_t> bytes(const nb::handle& value, const std::string& name, std::vector<nb::object>& keep) {
  const auto array = as_it_lies<nb::ndarray<nb::c_contig, nb::device::cpu, nb::ro>>(value, name);
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
  c.embedding = field<int>(from, "embedding");
  c.ngrams = field<int>(from, "ngrams");
  c.vocab_size = field<int>(from, "vocab_size");
  c.max_positions = field<int>(from, "max_positions");
  c.n_intents = field<int>(from, "n_intents");
  c.n_tags = field<int>(from, "n_tags");
  c.heads = field<std::vector<int>>(from, "heads");
  c.ffn = field<std::vector<int>>(from, "ffn");
  c.widths = field<std::vector<int>>(from, "widths");
  for (const std::string& kind : field<std::vector<std::string>>(from, "kinds"))
    c.kinds.push_back(choice<LayerKind>(kind, "kind of layer",
                                        {{"transformer", LayerKind::transformer},
                                         {"lstm", LayerKind::lstm},
                                         {"convolution", LayerKind::convolution}}));
  c.norm_eps = field<float>(from, "norm_eps");
  c.integer_only = field<bool>(from, "integer_only");
  c.activation = choice<Activation>(
      field<std::string>(from, "activation"), "activation",
      {{"gelu", Activation::gelu}, {"gelu_tanh", Activation::gelu_tanh}, {"relu", Activation::relu}});
  c.pooling = choice<Pooling>(field<std::string>(from, "pooling"), "pooling",
                              {{"mean", Pooling::mean},
                               {"max", Pooling::max},
                               {"cls", Pooling::cls},
                               {"cls+tanh", Pooling::cls_tanh},
                               {"cls+relu", Pooling::cls_relu},
                               {"cls+gelu", Pooling::cls_gelu}});
  if (const nb::object given = item(from, "buckets"); !given.is_none()) {
    const auto buckets = as_it_lies<Ints>(given, "buckets");
    c.buckets.assign(buckets.data(), buckets.data() + buckets.size());
  }
  return c;
}

MatrixSource matrix_of(const nb::dict& from, const std::string& name, std::vector<nb::object>& keep) {
  MatrixSource m;
  m.values = choice<Values>(field<std::string>(from, "form"), "form",
                            {{"float32", Values::float32}, {"int8", Values::int8}, {"codes", Values::codes}});
  m.integer = choice<bool>(field<std::string>(from, "activations"), "activations",
                           {{"int8", true}, {"static", true}, {"float", false}});
  if (field<std::string>(from, "activations") == "static") {
    m.input_scale = field<float>(from, "input_scale");
    if (m.input_scale == 0.0f) throw std::invalid_argument(name + ": input scale is 0; it must be above 0 and finite");
  }
  if (const nb::object scales = item(from, "output_scales"); !scales.is_none())
    m.output_scales = field<std::vector<float>>(from, "output_scales");
  m.rows = field<int>(from, "rows");
  m.columns = field<int>(from, "columns");
  m.bits = field<int>(from, "bits");
  m.shift = field<int>(from, "shift");
  m.block = field<int>(from, "block");
  const nb::object table = item(from, "table"), scale = item(from, "scale");
  m.data = bytes(item(from, "data"), name + ".data", keep);
  if (const nb::object mask = item(from, "mask"); m.block) m.mask = bytes(mask, name + ".mask", keep);
  m.scale = span<float>(scale, name + ".scale", keep);
  m.bias = span<float>(item(from, "bias"), name + ".bias", keep);
  if (scale.is_none()) {
    m.float_table = span<float>(table, name + ".table", keep);
  } else {
    m.table = span<std::int8_t>(table, name + ".table", keep);
  }
  return m;
}

const Kernels& kernels_of(const std::string& level) {
  for (const Kernels* usable : usable_levels())
    if (level == usable->name) return *usable;
  throw std::invalid_argument("level '" + level + "' cannot run here");
}

// An engine, and the arrays whose memory it reads.
struct Model {
  std::vector<nb::object> keep;
  std::unique_ptr<Engine> engine;

  Model(const nb::dict& config, const nb::dict& matrices, const nb::dict& vectors, const std::string& level) {
    const Kernels& kernels = kernels_of(level);
    Matrices all;
    for (const auto& [key, entry] : matrices) {
      const std::string name = nb::cast<std::string>(key);
      all[name] = matrix_of(field<nb::dict>(matrices, name.c_str()), name, keep);
    }
    Vectors rest;
    for (const auto& [key, values] : vectors) {
      const std::string name = nb::cast<std::string>(key);
      rest[name] = span<float>(values, name, keep);
    }
    engine = std::make_unique<Engine>(config_of(config), all, rest, kernels);
  }
};

std::vector<double> time_matrices(const nb::list& matrices, int tokens, double seconds, const std::string& level) {
  std::vector<nb::object> keep;
  std::vector<MatrixSource> sources;
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    const nb::object given = matrices[i];
    if (!nb::isinstance<nb::dict>(given)) throw std::invalid_argument("a matrix is no dict");
    sources.push_back(matrix_of(nb::cast<nb::dict>(given), "matrix", keep));
  }
  const nb::gil_scoped_release released;
  return best_seconds(sources, tokens, seconds, kernels_of(level));
}

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
  const auto is_sum = [](const Ints& parts, std::size_t whole) {  // each of them lies within the whole, too
    std::int64_t sum = 0;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      if (parts.data()[i] < 0) return false;
      sum += parts.data()[i];
    }
    return sum == std::int64_t(whole);
  };
  if (n_words.size() != n || !is_sum(lengths, ids.size()) || !is_sum(n_words, first.size()))
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

// What is computed for a call of `answers`; kept by each thread, so that its memory is.
struct Batch {
  std::vector<std::int32_t> ids, lengths, first, n_words, starts, ends;
  std::vector<float> intent, tags;
  Answer answer;

  void add(const Encoding& e, bool tagged) {
    ids.insert(ids.end(), e.ids.begin(), e.ids.end());
    lengths.push_back(std::int32_t(e.ids.size()));
    n_words.push_back(tagged ? std::int32_t(e.first.size()) : 0);
    if (!tagged) return;
    first.insert(first.end(), e.first.begin(), e.first.end());
    starts.insert(starts.end(), e.starts.begin(), e.starts.end());
    ends.insert(ends.end(), e.ends.begin(), e.ends.end());
  }
  void clear() {
    for (auto* v : {&ids, &lengths, &first, &n_words, &starts, &ends}) v->clear();
  }
};

// Texts in, answers out, in one call. For each message tuple_of(answer, words' spans, a tag per word), or None where the
// logits are not finite. Words and tags are empty where no word has a tag, as in most messages.
template <class TupleOf>
nb::list decoded(const Model& model, const Tokenizer& tokenizer, const nb::list& texts, float temperature, int threads,
                 TupleOf tuple_of) {
  if (!(temperature > 0.0f && std::isfinite(temperature)))
    throw std::invalid_argument("temperature is " + std::to_string(temperature) + "; allowed: above 0");
  // Taken out while it is used: making Python objects may collect garbage, which may run anything, this in this thread too.
  static thread_local Batch kept;
  Batch batch;
  std::swap(batch, kept);
  Answer& found = batch.answer;
  const Config& c = model.engine->config();
  const std::size_t n_intents = std::size_t(c.n_intents), n_tags = std::size_t(c.n_tags);
  batch.clear();
  for (const nb::handle text : texts) batch.add(encoding(tokenizer, text), c.n_tags != 0);
  batch.intent.resize(batch.lengths.size() * n_intents);
  batch.tags.resize(batch.first.size() * n_tags);
  {
    const nb::gil_scoped_release released;
    model.engine->logits(batch.ids.data(), batch.lengths.data(), int(batch.lengths.size()), batch.first.data(),
                         batch.n_words.data(), threads, batch.intent.data(), batch.tags.data());
  }
  nb::list all;
  std::size_t word = 0;
  for (std::size_t i = 0; i < batch.lengths.size(); ++i) {
    const std::size_t n_words = std::size_t(batch.n_words[i]);
    if (!found.decode(batch.intent.data() + i * n_intents, c.n_intents, temperature, batch.tags.data() + word * n_tags,
                      int(n_words), c.n_tags)) {
      all.append(nb::none());
    } else {
      nb::list words, path;
      if (std::any_of(found.path.begin(), found.path.end(), [](int tag) { return tag != 0; })) {
        for (std::size_t w = word; w < word + n_words; ++w) words.append(nb::make_tuple(batch.starts[w], batch.ends[w]));
        path = list_of(found.path);
      }
      all.append(tuple_of(found, words, path));
    }
    word += n_words;
  }
  if (batch.ids.size() <= 1 << 16) std::swap(batch, kept);  // a huge batch must not hold memory for ever
  return all;
}

// (intents in rank order, their confidences, words' spans, a tag per word)
nb::list answers(const Model& model, const Tokenizer& tokenizer, const nb::list& texts, float temperature, int threads) {
  return decoded(model, tokenizer, texts, temperature, threads, [](const Answer& a, const nb::list& words, const nb::list& path) {
    return nb::make_tuple(list_of(a.order), list_of(a.confidences), words, path);
  });
}

// One reference that the caller now owns, or Python's error.
nb::object owned(PyObject* made) {
  if (!made) throw nb::python_error();
  return nb::steal(made);
}

// ([{"name", "confidence"}] in rank order, words' spans, a tag per word). By Python's own calls: of 77 intents these are
// most of what a small model's answer takes.
nb::list rankings(const Model& model, const nb::tuple& names, const Tokenizer& tokenizer, const nb::list& texts,
                  float temperature, int threads) {
  if (names.size() != std::size_t(model.engine->config().n_intents))
    throw std::invalid_argument(std::to_string(names.size()) + " names for " +
                                std::to_string(model.engine->config().n_intents) + " intents");
  const nb::object name = owned(PyUnicode_InternFromString("name")), confidence = owned(PyUnicode_InternFromString("confidence"));
  return decoded(model, tokenizer, texts, temperature, threads, [&](const Answer& a, const nb::list& words, const nb::list& path) {
    const nb::object ranking = owned(PyList_New(Py_ssize_t(a.order.size())));
    for (std::size_t i = 0; i < a.order.size(); ++i) {
      const nb::object one = owned(PyDict_New()), p = owned(PyFloat_FromDouble(a.confidences[i]));
      if (PyDict_SetItem(one.ptr(), name.ptr(), PyTuple_GetItem(names.ptr(), a.order[i])) ||
          PyDict_SetItem(one.ptr(), confidence.ptr(), p.ptr()))
        throw nb::python_error();
      PyList_SetItem(ranking.ptr(), Py_ssize_t(i), nb::object(one).release().ptr());
    }
    return nb::make_tuple(ranking, words, path);
  });
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // objects that live until the interpreter ends are no fault of the user's
  bind_tokenizer(m);
  m.def("levels", [] { return names(usable_levels()); },
        "Names of the instruction-set levels that this CPU can run, slowest first.");
  m.def("built", [] { return names(built_levels()); }, "Names of the levels that this build holds.");
  m.def("sparse_levels", [] { return names(sparse_levels()); },
        "Names of the built levels that multiply sparse matrices as they are; the others make them dense at load.");
  m.def("time_matrices", [](const nb::list& matrices, int tokens, double seconds, const std::string& level) {
          return list_of(time_matrices(matrices, tokens, seconds, level));
        },
        nb::arg("matrices"), nb::arg("tokens"), nb::arg("seconds"), nb::arg("level"),
        "Seconds that each matrix, as Engine takes it, needs at best for so many tokens; all take turns until each has had "
        "`seconds`. One thread, the GIL is released.");
  nb::class_<Model>(m, "Engine", "A model whose weights stay where they lie; see native/engine/engine.h.")
      .def(nb::init<const nb::dict&, const nb::dict&, const nb::dict&, const std::string&>(), nb::arg("config"),
           nb::arg("matrices"), nb::arg("vectors"), nb::arg("level"))
      .def_prop_ro("level", [](const Model& model) { return model.engine->level(); })
      .def("logits", &logits, nb::arg("ids").noconvert(), nb::arg("lengths").noconvert(),
           nb::arg("first").noconvert(), nb::arg("n_words").noconvert(), nb::arg("threads") = 1,
           "int32 arrays -> (intent (B, C), tags (W, n_tags)) float32; the GIL is released.")
      .def("answers", &answers, nb::arg("tokenizer"), nb::arg("texts"), nb::arg("temperature"), nb::arg("threads") = 1,
           "Texts -> for each (intents in rank order, confidences, word spans, tags), or None: logits are not finite.")
      .def("rankings", &rankings, nb::arg("names"), nb::arg("tokenizer"), nb::arg("texts"), nb::arg("temperature"),
           nb::arg("threads") = 1, "The same with [{'name', 'confidence'}] in place of intents and confidences.");
}
