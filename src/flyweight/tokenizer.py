"""Text -> token ids, and where its words begin: the one tokenizer door of workshop and service.

A word is what the tokenizer's own pre-tokenizer makes (BERT: white space and every punctuation mark split);
entities are tagged on each word's first sub-token.

What a tokenizer.json asks for is read here against a list of what the native tokenizer does (native/tokenizer): BERT's
WordPiece and RoBERTa's byte-level BPE, with their added tokens and post-processors. Anything else, known or not, goes
to the `tokenizers` package, which the native one equals token by token.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flyweight.data.tags import Span
from flyweight.errors import CheckpointError, MissingExtraError

_SURROGATE = re.compile("[\ud800-\udfff]")
_BOOL = (False, True)


@dataclass(frozen=True)
class Encoded:
    """One message as the encoder sees it.

    ids (T,) int32 with the special tokens; `first` (W,) the index in `ids` of each word's first sub-token;
    `words` the W character spans. Words beyond the length limit are absent.
    """

    ids: np.ndarray
    first: np.ndarray
    words: list[Span]


class Tokenizer:
    """A `tokenizer.json` with a length limit; longer messages lose their tail, special tokens stay.

    `native` is the C++ tokenizer, which the engine calls without Python; where it is None, `refusal` says why and the
    `tokenizers` package does the work.
    """

    def __init__(self, source: str, max_tokens: int):
        """`source` is the text of a tokenizer.json. Errors: CheckpointError, MissingExtraError."""
        self.source, self.max_tokens = source, max_tokens
        self.native: Any = None
        self.refusal: str | None = None
        try:
            spec = _parse(source)
            self.native = _native_class()(**_native_fields(spec, max_tokens))
            self._vocab_size = len(spec["model"]["vocab"].keys() | {t["content"] for t in spec["added_tokens"]})
        except (_UnsupportedError, ValueError) as error:
            self.refusal = str(error)
            self._package = _open_package(source, max_tokens, self.refusal)
            self._vocab_size = int(self._package.get_vocab_size(with_added_tokens=True))

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[str, int]]:
        return type(self), (self.source, self.max_tokens)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tokenizer:
        return self  # nothing about it changes

    @classmethod
    def from_file(cls, path: Path, max_tokens: int) -> Tokenizer:
        """Read a tokenizer.json."""
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; a model folder needs a tokenizer.json")
        return cls(path.read_text(encoding="utf-8"), max_tokens)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._vocab_size

    @property
    def n_ids(self) -> int:
        """1 + the largest id: as many rows must the word embeddings have. Ids may have gaps."""
        if self.native is not None:
            return int(self.native.largest_id) + 1
        return 1 + max(self._package.get_vocab(with_added_tokens=True).values(), default=-1)

    @property
    def sha256(self) -> str:
        """Hash of the tokenizer.json text: recorded in the manifest."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def encode(self, text: str) -> Encoded:
        """Tokenize one message."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[Encoded]:
        """Tokenize several messages (no padding). Half a surrogate pair, which is no Unicode text, counts as U+FFFD."""
        if self.native is not None:
            return [Encoded(*self.native.encode(text)) for text in texts]
        try:
            found = self._package.encode_batch(texts)
        except TypeError:
            found = self._package.encode_batch([_SURROGATE.sub("\ufffd", text) for text in texts])
        return [_encoded(e) for e in found]


# the `tokenizers` package --------------------------------------------------------------------------------------------


def _open_package(source: str, max_tokens: int, refusal: str) -> Any:
    try:
        from tokenizers import Tokenizer as PackageTokenizer
    except ImportError as error:
        raise MissingExtraError("tokenizers", "tokenizers", f"this tokenizer.json ({refusal})") from error
    try:
        tokenizer = PackageTokenizer.from_str(source)
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"tokenizer.json cannot be read: {error}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def _encoded(encoding: object) -> Encoded:
    first: list[int] = []
    words: list[Span] = []
    last_word = None
    for i, (word, (start, end)) in enumerate(zip(encoding.word_ids, encoding.offsets, strict=True)):  # type: ignore[attr-defined]
        if word is None or end <= start:
            continue
        if word == last_word:
            words[-1] = (words[-1][0], end)
        else:
            first.append(i)
            words.append((start, end))
        last_word = word
    ids = np.asarray(encoding.ids, dtype=np.int32)  # type: ignore[attr-defined]
    return Encoded(ids, np.asarray(first, dtype=np.int64), words)


# the native tokenizer ------------------------------------------------------------------------------------------------


class _UnsupportedError(Exception):
    """Something in a tokenizer.json that the native tokenizer does not do; the text says what was found."""


def _native_class() -> Any:
    try:
        return importlib.import_module("flyweight._native").Tokenizer
    except (ImportError, AttributeError) as error:  # or built before there was a native tokenizer
        raise _UnsupportedError("flyweight._native was not built") from error


def _parse(source: str) -> dict[str, Any]:
    """The tokenizer.json; `truncation` and `padding` are not looked at, our own limit replaces them."""
    try:
        spec = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"tokenizer.json cannot be read: {error}") from error
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise CheckpointError("tokenizer.json cannot be read: it is no JSON object with a 'model'")
    allowed: dict[str, Any] = dict.fromkeys(("truncation", "padding", "decoder"))
    allowed |= {"version": ("1.0",), "added_tokens": list, "model": dict}
    allowed |= dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor"), (None, dict))
    return _checked(spec, "tokenizer.json", allowed, {"truncation": None, "padding": None, "decoder": None})


def _checked(node: Any, where: str, allowed: dict[str, Any], defaults: dict[str, Any] | None = None) -> dict[str, Any]:
    """`node` with `defaults`, if it has exactly the keys of `allowed`, each with an allowed value.

    An allowed value is None (anything), a type, or a tuple of types and values. True is no int here.
    """
    if not isinstance(node, dict):
        raise _UnsupportedError(f"{where} is {_short(node)}")
    if unknown := sorted(map(str, node.keys() - allowed.keys())):
        raise _UnsupportedError(f"{where} has {unknown[0]!r}")
    full = (defaults or {}) | node
    for key, values in allowed.items():
        if key not in full:
            raise _UnsupportedError(f"{where} has no {key!r}")
        choices = values if isinstance(values, tuple) else (values,)
        found = full[key]
        if values is not None and not any(
            type(found) is c if isinstance(c, type) else type(found) is type(c) and found == c for c in choices
        ):
            raise _UnsupportedError(f"{where} has {key} = {_short(found)}")
    return full


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _type(node: Any, where: str, allowed: tuple[str, ...]) -> str:
    kind = node.get("type") if isinstance(node, dict) else node
    if kind not in allowed:
        raise _UnsupportedError(f"{where} is {_short(kind)}; native are {', '.join(allowed)}")
    return str(kind)


def _native_fields(spec: dict[str, Any], max_tokens: int) -> dict[str, Any]:
    """The arguments of the native tokenizer. Errors: _UnsupportedError."""
    kind = _type(spec["model"], "model", ("WordPiece", "BPE"))
    wanted = {"WordPiece": "BertPreTokenizer", "BPE": "ByteLevel"}[kind]
    _type(spec["pre_tokenizer"], f"pre_tokenizer of a {kind} model", (wanted,))
    before, after, trim, keep = _post_processor(spec["post_processor"])
    if max_tokens < len(before) + len(after):
        raise _UnsupportedError(f"a limit of {max_tokens} tokens for {len(before) + len(after)} special ones")
    common = {
        "vocab": spec["model"].get("vocab"),
        "normalizer": _bert_normalizer(spec["normalizer"]),
        "before": before,
        "after": after,
        "trim_offsets": trim,
        "trim_keeps_prefix_space": keep,
        "max_tokens": max_tokens,
    }
    model = _word_piece(spec) if kind == "WordPiece" else _byte_level_bpe(spec)
    return common | model | {"added": _added_tokens(spec["added_tokens"], spec["model"]["vocab"])}


def _word_piece(spec: dict[str, Any]) -> dict[str, Any]:
    _checked(spec["pre_tokenizer"], "BertPreTokenizer", {"type": str})
    allowed = {
        "type": str,
        "vocab": dict,
        "unk_token": str,
        "continuing_subword_prefix": str,
        "max_input_chars_per_word": int,
    }
    model = _checked(spec["model"], "WordPiece", allowed)
    if not _is_number(model["max_input_chars_per_word"]):
        raise _UnsupportedError(f"WordPiece has max_input_chars_per_word = {model['max_input_chars_per_word']}")
    return {"word_piece": tuple(model[key] for key in list(allowed)[2:])}


def _byte_level_bpe(spec: dict[str, Any]) -> dict[str, Any]:
    pre = _checked(spec["pre_tokenizer"], "ByteLevel", _BYTE_LEVEL, {"use_regex": True})
    allowed = {
        "type": str,
        "vocab": dict,
        "merges": list,
        "dropout": (None,),
        "unk_token": (None, str),  # never used: all 256 bytes are in the vocabulary
        "continuing_subword_prefix": (None, ""),
        "end_of_word_suffix": (None, ""),
        "fuse_unk": _BOOL,
        "byte_fallback": (False,),
        "ignore_merges": _BOOL,
    }
    optional: dict[str, Any] = {
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
    }
    optional |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    model = _checked(spec["model"], "BPE", allowed, optional)
    return {"byte_level_bpe": (model["merges"], model["ignore_merges"], pre["add_prefix_space"], pre["use_regex"])}


_BYTE_LEVEL = {"type": str, "add_prefix_space": _BOOL, "trim_offsets": _BOOL, "use_regex": _BOOL}


def _bert_normalizer(node: Any) -> tuple[bool, bool, bool, bool] | None:
    if node is None:
        return None
    _type(node, "normalizer", ("BertNormalizer",))
    names = ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")
    allowed = {"type": str} | dict.fromkeys(names, _BOOL) | {"strip_accents": (None, *_BOOL)}
    found = _checked(node, "BertNormalizer", allowed, {"strip_accents": None})
    if found["strip_accents"] is None:
        found["strip_accents"] = found["lowercase"]
    clean, cjk, strip, lower = (found[name] for name in names)
    return clean, cjk, strip, lower


def _post_processor(node: Any) -> tuple[list[int], list[int], bool, bool]:
    """(ids before, ids after, trim offsets, a prefix space is kept) of a post-processor."""
    if node is None:
        return [], [], False, False
    processors = ("TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteLevel")
    kind = _type(node, "post_processor", (*processors, "Sequence"))
    if kind == "Sequence":
        steps = _checked(node, kind, {"type": str, "processors": list})["processors"]
        kinds = [_type(step, "post_processor in a Sequence", processors) for step in steps]
        # Trimming looks for the first token, which special tokens in front would hide: it comes first, if at all.
        if len(steps) > 2 or kinds[1:] not in ([], ["TemplateProcessing"]) or kinds[:-1] not in ([], ["ByteLevel"]):
            raise _UnsupportedError(f"post_processor is a Sequence of {', '.join(kinds)}")
        done = [_post_processor(step) for step in steps]
        ids = [(before, after) for before, after, _, _ in done]
        return *(ids[-1] if ids else ([], [])), any(d[2] for d in done), any(d[3] for d in done)
    if kind == "TemplateProcessing":
        return *_template(node), False, False
    if kind == "ByteLevel":
        found = _checked(node, kind, _BYTE_LEVEL, {"use_regex": True})
        return [], [], found["trim_offsets"], found["add_prefix_space"]
    allowed: dict[str, Any] = {"type": str, "sep": list, "cls": list}
    if kind == "RobertaProcessing":
        allowed |= {"trim_offsets": _BOOL, "add_prefix_space": _BOOL}
    found = _checked(node, kind, allowed)
    for key in ("cls", "sep"):
        if len(found[key]) != 2 or not isinstance(found[key][0], str) or not _is_number(found[key][1]):
            raise _UnsupportedError(f"{kind} has {key} = {_short(found[key])}")
    return (
        [found["cls"][1]],
        [found["sep"][1]],
        found.get("trim_offsets", False),
        found.get("add_prefix_space", False),
    )


def _template(node: dict[str, Any]) -> tuple[list[int], list[int]]:
    found = _checked(node, "TemplateProcessing", {"type": str, "single": list, "pair": list, "special_tokens": dict})
    sides: list[list[int]] = [[]]
    for step in found["single"]:
        if not isinstance(step, dict) or len(step) != 1:
            raise _UnsupportedError(f"TemplateProcessing has {_short(step)}")
        [(kind, inner)] = step.items()
        if kind == "Sequence":
            _checked(inner, "Sequence", {"id": ("A",), "type_id": int})
            sides.append([])
        elif kind == "SpecialToken":
            name = _checked(inner, "SpecialToken", {"id": str, "type_id": int})["id"]
            where = f"special token {name!r}"
            ids = _checked(found["special_tokens"].get(name), where, {"id": str, "ids": list, "tokens": list})["ids"]
            if not all(map(_is_number, ids)):
                raise _UnsupportedError(f"{where} has ids = {_short(ids)}")
            sides[-1] += ids
        else:
            raise _UnsupportedError(f"TemplateProcessing has {kind!r}")
    if len(sides) != 2:
        raise _UnsupportedError(f"TemplateProcessing has the message {len(sides) - 1} times")
    return sides[0], sides[1]


def _added_tokens(tokens: list[Any], vocab: dict[str, int]) -> list[tuple[str, int, bool, bool, bool, bool]]:
    """(content, id, single_word, lstrip, rstrip, normalized) of each added token."""
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    allowed = {"id": int, "content": str, "special": _BOOL} | dict.fromkeys(flags, _BOOL)
    found = [_checked(token, "added token", allowed) for token in tokens]
    ids: dict[str, int] = {}
    for token in found:
        content = token["content"]
        # `tokenizers` gives a new token the next free number, whatever the file says.
        free = max(len(vocab), max(ids.values(), default=-1) + 1)
        if token["id"] != vocab.get(content, free) or token["id"] in ids.values() or content in ids:
            raise _UnsupportedError(f"added token {content!r} has the id {token['id']}")
        ids[content] = token["id"]
    return [(t["content"], t["id"], *(t[flag] for flag in flags)) for t in found]
