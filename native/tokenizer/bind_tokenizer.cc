// flyweight._native.Tokenizer. src/flyweight/tokenizer.py reads tokenizer.json and hands its fields over.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>

#include "tokenizer/bind_tokenizer.h"
#include "tokenizer/number.h"
#include "tokenizer/unicode.h"

namespace nb = nanobind;

namespace flyweight {
namespace {

// The UTF-8 of a str, which keeps it as long as it lives.
std::string_view view(nb::handle text) {
  Py_ssize_t size = 0;
  const char* bytes = PyUnicode_Check(text.ptr()) ? PyUnicode_AsUTF8AndSize(text.ptr(), &size) : nullptr;
  if (!bytes) {
    PyErr_Clear();
    throw std::invalid_argument("a token that is no Unicode text");
  }
  return {bytes, static_cast<std::size_t>(size)};
}

std::int32_t token_id(nb::handle number) {
  const long id = PyLong_CheckExact(number.ptr()) ? PyLong_AsLong(number.ptr()) : -1;
  if (id < 0 || id > 0x7FFFFFFF) {
    PyErr_Clear();
    throw std::invalid_argument("a token id that is no number below 2^31");
  }
  return static_cast<std::int32_t>(id);
}

// "a b" or ["a", "b"]
std::pair<std::string_view, std::string_view> merge(nb::handle item) {
  if (PyUnicode_Check(item.ptr())) {
    const std::string_view both = view(item);
    const std::size_t space = both.find(' ');
    if (space == both.npos || both.find(' ', space + 1) != both.npos)
      throw std::invalid_argument("a merge that is not two words");
    return {both.substr(0, space), both.substr(space + 1)};
  }
  if (!PyList_Check(item.ptr()) || PyList_GET_SIZE(item.ptr()) != 2)
    throw std::invalid_argument("a merge that is not two words");
  return {view(PyList_GET_ITEM(item.ptr(), 0)), view(PyList_GET_ITEM(item.ptr(), 1))};
}

// Of a token: an int, or a number with a fraction as it is written (a subclass of str, see tokenizer/spec.py).
double score(nb::handle number) {
  if (PyLong_CheckExact(number.ptr()) || (PyUnicode_Check(number.ptr()) && !PyUnicode_CheckExact(number.ptr())))
    return package_number(view(nb::str(number)));
  throw std::invalid_argument("a score that is no number, or one too large");
}

void fill_vocabulary(nb::handle vocab, TokenizerSpec& spec) {
  if (PyDict_Check(vocab.ptr())) {
    PyObject *key, *value;
    for (Py_ssize_t at = 0; PyDict_Next(vocab.ptr(), &at, &key, &value);)
      spec.vocab.emplace_back(view(key), token_id(value));
    return;
  }
  std::int32_t id = 0;
  for (nb::handle item : nb::cast<nb::list>(vocab)) {
    if (!PyList_Check(item.ptr()) || PyList_GET_SIZE(item.ptr()) != 2)
      throw std::invalid_argument("an entry that is not a token and its score");
    spec.vocab.emplace_back(view(PyList_GET_ITEM(item.ptr(), 0)), id++);
    spec.scores.push_back(score(PyList_GET_ITEM(item.ptr(), 1)));
  }
}

// ("charsmap", bytes), ("squeeze", blank) or ("strip", left, right)
NormalizerStep step(nb::handle item) {
  const auto fields = nb::cast<nb::tuple>(item);
  const std::string_view kind = view(fields[0]);
  NormalizerStep found;
  if (kind == "charsmap") {
    const auto table = nb::cast<nb::bytes>(fields[1]);
    found.table.assign(table.c_str(), table.size());
  } else if (kind == "squeeze") {
    const char* blank = view(fields[1]).data();
    found.kind = NormalizerStep::squeeze;
    found.blank = unicode::next(blank);
  } else {
    found.kind = NormalizerStep::strip;
    found.left = nb::cast<bool>(fields[1]);
    found.right = nb::cast<bool>(fields[2]);
  }
  return found;
}

// (unk_id, what the blank is put in front of, splits, splits white space)
void fill_unigram(nb::handle fields, TokenizerSpec& spec) {
  const auto held = nb::cast<nb::tuple>(fields);
  spec.pieces = Pieces::unigram;
  spec.unk_id = token_id(held[0]);
  const std::string_view prepend = view(held[1]);
  spec.prepend = prepend == "always" ? Prepend::always : prepend == "first" ? Prepend::first : Prepend::never;
  spec.splits = nb::cast<bool>(held[2]);
  spec.splits_white_space = nb::cast<bool>(held[3]);
}

void make(Tokenizer* self, nb::object vocab, nb::list added, nb::object normalizer, nb::list steps,
          nb::object word_piece, nb::object byte_level_bpe, nb::object unigram, std::vector<std::int32_t> before,
          std::vector<std::int32_t> after, bool trim_offsets, bool trim_keeps_prefix_space, std::size_t max_tokens) {
  TokenizerSpec spec;
  fill_vocabulary(vocab, spec);
  for (nb::handle item : steps) spec.steps.push_back(step(item));
  for (nb::handle item : added) {
    const auto [content, id, single_word, lstrip, rstrip, normalized] =
        nb::cast<std::tuple<nb::str, nb::int_, bool, bool, bool, bool>>(item);
    spec.added.push_back({std::string(view(content)), token_id(id), single_word, lstrip, rstrip, normalized});
  }
  spec.normalizes = !normalizer.is_none();
  if (spec.normalizes) {
    const auto [clean, cjk, strip, lower] = nb::cast<std::tuple<bool, bool, bool, bool>>(normalizer);
    spec.normalizer = {clean, cjk, strip, lower};
  }
  if (!word_piece.is_none() + !byte_level_bpe.is_none() + !unigram.is_none() != 1)
    throw std::invalid_argument("give word_piece, byte_level_bpe or unigram, one of them");
  nb::tuple held;  // the views of unk_token and merges need their strings
  if (!unigram.is_none()) {
    fill_unigram(unigram, spec);
  } else if (!byte_level_bpe.is_none()) {
    spec.pieces = Pieces::byte_level_bpe;
    held = nb::cast<nb::tuple>(byte_level_bpe);
    for (nb::handle item : nb::cast<nb::list>(held[0])) spec.merges.push_back(merge(item));
    spec.ignore_merges = nb::cast<bool>(held[1]);
    spec.add_prefix_space = nb::cast<bool>(held[2]);
    spec.use_regex = nb::cast<bool>(held[3]);
  } else {
    held = nb::cast<nb::tuple>(word_piece);
    spec.unk_token = view(held[0]);
    spec.prefix = view(held[1]);
    spec.max_chars_per_word = nb::cast<std::size_t>(held[2]);
  }
  spec.before = std::move(before);
  spec.after = std::move(after);
  spec.trim_offsets = trim_offsets;
  spec.trim_keeps_prefix_space = trim_keeps_prefix_space;
  spec.max_tokens = max_tokens;
  new (self) Tokenizer(spec);
}

template <class To>
nb::object array(const std::vector<std::int32_t>& values) {
  auto* copy = new To[values.size()];
  std::copy(values.begin(), values.end(), copy);
  nb::capsule owner(copy, [](void* p) noexcept { delete[] static_cast<To*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, To, nb::ndim<1>>(copy, {values.size()}, owner));
}

}  // namespace

const Encoding& encoding(const Tokenizer& self, nb::handle text) {
  static thread_local Encoding out;
  Py_ssize_t size = 0;
  if (PyBytes_Check(text.ptr())) {
    self.encode({PyBytes_AS_STRING(text.ptr()), static_cast<std::size_t>(PyBytes_GET_SIZE(text.ptr()))}, out);
  } else if (!PyUnicode_Check(text.ptr())) {
    throw nb::type_error("a message is str");
  } else if (const char* const bytes = PyUnicode_AsUTF8AndSize(text.ptr(), &size)) {
    self.encode({bytes, static_cast<std::size_t>(size)}, out);
  } else {  // half a surrogate pair is no UTF-8: counts as U+FFFD
    PyErr_Clear();
    std::string repaired;
    const Py_ssize_t n = PyUnicode_GetLength(text.ptr());
    for (Py_ssize_t i = 0; i < n; ++i) {
      const Py_UCS4 c = PyUnicode_ReadChar(text.ptr(), i);
      char utf8[4];
      repaired.append(utf8, unicode::put(c >= 0xD800 && c < 0xE000 ? 0xFFFD : c, utf8));
    }
    self.encode(repaired, out);
  }
  return out;
}

namespace {

nb::tuple encode(const Tokenizer& self, nb::handle text) {
  // A copy: making Python objects may collect garbage, which may run anything, this in this thread too.
  const Encoding out = encoding(self, text);
  nb::list words;
  for (std::size_t i = 0; i < out.starts.size(); ++i) words.append(nb::make_tuple(out.starts[i], out.ends[i]));
  return nb::make_tuple(array<std::int32_t>(out.ids), array<std::int64_t>(out.first), words);
}

}  // namespace
}  // namespace flyweight

void bind_tokenizer(nanobind::module_& m) {
  using flyweight::Tokenizer;
  nb::class_<Tokenizer>(m, "Tokenizer", "Text -> token ids and the words' spans; made by flyweight.tokenizer.")
      .def("__init__", &flyweight::make, nb::arg("vocab"), nb::arg("added"), nb::kw_only(),
           nb::arg("normalizer").none() = nb::none(), nb::arg("steps") = nb::list(),
           nb::arg("word_piece").none() = nb::none(), nb::arg("byte_level_bpe").none() = nb::none(),
           nb::arg("unigram").none() = nb::none(), nb::arg("before"), nb::arg("after"), nb::arg("trim_offsets"),
           nb::arg("trim_keeps_prefix_space"), nb::arg("max_tokens"),
           "The fields of a tokenizer.json; ValueError for what is not supported.")
      .def("encode", &flyweight::encode, nb::arg("text"),
           "(ids int32 with special tokens, first int64 index in ids of each word, words [start, end) in characters)")
      .def_prop_ro("largest_id", &Tokenizer::largest_id)
      .def(
          "count",
          [](const Tokenizer& self, nb::handle text) { return flyweight::encoding(self, text).ids.size(); },
          nb::arg("text"), "Number of ids: the same work, without making arrays of it.");
}
