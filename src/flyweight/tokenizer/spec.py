"""What a tokenizer.json asks for, against a list of what the native tokenizer does: its arguments, or why not."""

from __future__ import annotations

import base64
import json
from typing import Any

from flyweight.errors import CheckpointError

PRE_TOKENIZERS = {"WordPiece": ("BertPreTokenizer",), "BPE": ("ByteLevel",), "Unigram": ("Metaspace", "Sequence")}
BLANK = "\u2581"  # what a Metaspace writes for a blank
_BOOL = (False, True)
_BYTE_LEVEL = {"type": str, "add_prefix_space": _BOOL, "trim_offsets": _BOOL, "use_regex": _BOOL}


class UnsupportedError(Exception):
    """Something in a tokenizer.json that the native tokenizer does not do; the text says what was found."""


class Number(str):
    """A number with a fraction, as it is written: scores are read as `tokenizers` reads them, see native/tokenizer."""

    def __repr__(self) -> str:
        return str(self)


def parse(source: str) -> dict[str, Any]:
    """The tokenizer.json; `truncation` and `padding` are not looked at, our own limit replaces them."""
    try:
        spec = json.loads(source, parse_float=Number if '"Unigram"' in source else None)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"tokenizer.json cannot be read: {error}") from error
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise CheckpointError("tokenizer.json cannot be read: it is no JSON object with a 'model'")
    allowed: dict[str, Any] = dict.fromkeys(("truncation", "padding", "decoder"))
    allowed |= {"version": ("1.0",), "added_tokens": list, "model": dict}
    allowed |= dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor"), (None, dict))
    return _checked(spec, "tokenizer.json", allowed, {"truncation": None, "padding": None, "decoder": None})


def vocabulary(spec: dict[str, Any]) -> dict[str, int]:
    """The model's tokens and their ids, without added tokens."""
    entries = spec["model"]["vocab"]
    return {entry[0]: i for i, entry in enumerate(entries)} if isinstance(entries, list) else dict(entries)


def _checked(node: Any, where: str, allowed: dict[str, Any], defaults: dict[str, Any] | None = None) -> dict[str, Any]:
    """`node` with `defaults`, if it has exactly the keys of `allowed`, each with an allowed value.

    An allowed value is None (anything), a type, or a tuple of types and values. True is no int here.
    """
    if not isinstance(node, dict):
        raise UnsupportedError(f"{where} is {_short(node)}")
    if unknown := sorted(map(str, node.keys() - allowed.keys())):
        raise UnsupportedError(f"{where} has {unknown[0]!r}")
    full = (defaults or {}) | node
    for key, values in allowed.items():
        if key not in full:
            raise UnsupportedError(f"{where} has no {key!r}")
        choices = values if isinstance(values, tuple) else (values,)
        found = full[key]
        if values is not None and not any(
            type(found) is c if isinstance(c, type) else type(found) is type(c) and found == c for c in choices
        ):
            raise UnsupportedError(f"{where} has {key} = {_short(found)}")
    return full


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _type(node: Any, where: str, allowed: tuple[str, ...]) -> str:
    kind = node.get("type") if isinstance(node, dict) else node
    if kind not in allowed:
        raise UnsupportedError(f"{where} is {_short(kind)}; native are {', '.join(allowed)}")
    return str(kind)


def native_fields(spec: dict[str, Any], max_tokens: int) -> dict[str, Any]:
    """The arguments of the native tokenizer. Errors: UnsupportedError."""
    kind = _type(spec["model"], "model", tuple(PRE_TOKENIZERS))
    _type(spec["pre_tokenizer"], f"pre_tokenizer of a {kind} model", PRE_TOKENIZERS[kind])
    before, after, trim, keep = _post_processor(spec["post_processor"])
    if max_tokens < len(before) + len(after):
        raise UnsupportedError(f"a limit of {max_tokens} tokens for {len(before) + len(after)} special ones")
    common = {
        "vocab": spec["model"].get("vocab"),
        "before": before,
        "after": after,
        "trim_offsets": trim,
        "trim_keeps_prefix_space": keep,
        "max_tokens": max_tokens,
    }
    model = {"WordPiece": _word_piece, "BPE": _byte_level_bpe, "Unigram": _unigram}[kind](spec)
    return common | model | {"added": _added_tokens(spec["added_tokens"], vocabulary(spec))}


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
        raise UnsupportedError(f"WordPiece has max_input_chars_per_word = {model['max_input_chars_per_word']}")
    arguments = tuple(model[key] for key in list(allowed)[2:])
    return {"normalizer": _bert_normalizer(spec["normalizer"]), "word_piece": arguments}


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
    arguments = (model["merges"], model["ignore_merges"], pre["add_prefix_space"], pre["use_regex"])
    return {"normalizer": _bert_normalizer(spec["normalizer"]), "byte_level_bpe": arguments}


def _unigram(spec: dict[str, Any]) -> dict[str, Any]:
    splits_white_space, node = _metaspace(spec["pre_tokenizer"])
    allowed = {
        "type": str,
        "replacement": (BLANK,),
        "prepend_scheme": ("always", "first", "never"),
        "split": _BOOL,
        "add_prefix_space": _BOOL,  # of before 0.15, and says no more than prepend_scheme
        "str_rep": None,
    }
    optional = {"prepend_scheme": "always", "split": True, "add_prefix_space": True, "str_rep": BLANK}
    pre = _checked(node, "Metaspace", allowed, optional)
    if not pre["add_prefix_space"] and pre["prepend_scheme"] != "never":
        raise UnsupportedError(f"Metaspace has add_prefix_space = False, prepend_scheme = {pre['prepend_scheme']!r}")
    allowed = {"type": str, "vocab": list, "unk_id": int, "byte_fallback": (False,)}
    model = _checked(spec["model"], "Unigram", allowed, {"byte_fallback": False})
    for entry in model["vocab"]:
        if type(entry) is not list or not entry or type(entry[0]) is not str:
            raise UnsupportedError(f"Unigram has a token {_short(entry)}")
    return {
        "steps": _normalizer_steps(spec["normalizer"]),
        "unigram": (model["unk_id"], pre["prepend_scheme"], pre["split"], splits_white_space),
    }


def _metaspace(node: Any) -> tuple[bool, Any]:
    """(white space is split at before, the Metaspace)."""
    if node["type"] == "Metaspace":
        return False, node
    steps = _checked(node, "pre_tokenizer", {"type": str, "pretokenizers": list})["pretokenizers"]
    kinds = [_type(step, "pre_tokenizer in a Sequence", ("WhitespaceSplit", "Metaspace")) for step in steps]
    if kinds not in (["WhitespaceSplit", "Metaspace"], ["Metaspace"]):
        raise UnsupportedError(f"pre_tokenizer is a Sequence of {', '.join(kinds)}")
    for step in steps[:-1]:
        _checked(step, "WhitespaceSplit", {"type": str})
    return len(steps) > 1, steps[-1]


def _normalizer_steps(node: Any) -> list[tuple[Any, ...]]:
    """The normalizer of a Unigram model: ("charsmap", bytes), ("squeeze", blank), ("strip", left, right)."""
    if node is None:
        return []
    kind = _type(node, "normalizer of a Unigram model", ("Precompiled", "Replace", "Strip", "Sequence"))
    if kind == "Sequence":
        steps = _checked(node, kind, {"type": str, "normalizers": list})["normalizers"]
        return [found for step in steps for found in _normalizer_steps(step)]
    if kind == "Strip":
        found = _checked(node, kind, {"type": str, "strip_left": _BOOL, "strip_right": _BOOL})
        return [("strip", found["strip_left"], found["strip_right"])]
    if kind == "Replace":
        found = _checked(node, kind, {"type": str, "pattern": ({"Regex": " {2,}"},), "content": (" ", BLANK)})
        return [("squeeze", found["content"])]
    table = _checked(node, kind, {"type": str, "precompiled_charsmap": str})["precompiled_charsmap"]
    try:
        return [("charsmap", base64.b64decode(table, validate=True))]
    except ValueError as error:
        raise CheckpointError(
            f"tokenizer.json cannot be read: its precompiled_charsmap is no base64 ({error})"
        ) from error


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
            raise UnsupportedError(f"post_processor is a Sequence of {', '.join(kinds)}")
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
            raise UnsupportedError(f"{kind} has {key} = {_short(found[key])}")
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
            raise UnsupportedError(f"TemplateProcessing has {_short(step)}")
        [(kind, inner)] = step.items()
        if kind == "Sequence":
            _checked(inner, "Sequence", {"id": ("A",), "type_id": int})
            sides.append([])
        elif kind == "SpecialToken":
            name = _checked(inner, "SpecialToken", {"id": str, "type_id": int})["id"]
            where = f"special token {name!r}"
            ids = _checked(found["special_tokens"].get(name), where, {"id": str, "ids": list, "tokens": list})["ids"]
            if not all(map(_is_number, ids)):
                raise UnsupportedError(f"{where} has ids = {_short(ids)}")
            sides[-1] += ids
        else:
            raise UnsupportedError(f"TemplateProcessing has {kind!r}")
    if len(sides) != 2:
        raise UnsupportedError(f"TemplateProcessing has the message {len(sides) - 1} times")
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
            raise UnsupportedError(f"added token {content!r} has the id {token['id']}")
        ids[content] = token["id"]
    return [(t["content"], t["id"], *(t[flag] for flag in flags)) for t in found]
