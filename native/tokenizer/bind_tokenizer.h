// The tokenizer's door to Python.
#pragma once

#include <nanobind/nanobind.h>

#include "tokenizer/tokenizer.h"

void bind_tokenizer(nanobind::module_& m);

namespace flyweight {

// A str, or bytes that need not be UTF-8, tokenized. The result lives until this thread's next call.
const Encoding& encoding(const Tokenizer& tokenizer, nanobind::handle text);

}  // namespace flyweight
