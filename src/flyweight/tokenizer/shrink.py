"""A tokenizer.json with fewer tokens: which ones must stay with those wanted, and the file rewritten.

Two promises. A text that the old tokenizer cuts into kept tokens is cut the same by the new one. And text of characters
that have a token of their own holds no unknown token: these tokens (WordPiece: at a word's start and within it), bytes,
and tokens with a character that has none always stay.

    WordPiece   the longest match first: a match that stays was the longest before, and still is
    BPE         byte-level; with a token stay all those that are merged on the way to it. The merges kept are those
                whose parts and result are kept; they apply in the same order as before
    Unigram     the likeliest path; a path of kept tokens was the likeliest before. The least likely token stays, since
                an unknown character's score is counted from it

Ids are numbered anew, in the old order, without gaps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from typing import Any

from flyweight.errors import ConfigError
from flyweight.tokenizer.spec import UnsupportedError, parse, vocabulary

RESERVED = re.compile(r"\[unused\d+\]|<unused\d+>|madeupword\d+")  # rows that bases keep free
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
SCORES = "@scores@"  # stands for a Unigram vocabulary while the rest is written


def needed(source: str, wanted: Collection[int]) -> list[int]:
    """Ids that stay where the wanted ones do, ascending. Errors: ConfigError for a kind that cannot be rewritten."""
    spec = _spec(source)
    vocab, model, kind = vocabulary(spec), spec["model"], _kind(spec)
    added = {t["content"]: t["id"] for t in spec["added_tokens"]}
    kept = set(wanted) | set(added.values()) | set(_template_ids(spec))
    kept |= {vocab[t] for t in (model.get("unk_token"),) if t in vocab}
    if kind == "BPE":
        kept |= {i for token, i in vocab.items() if len(token) == 1}
        kept |= _merged_on_the_way(model, vocab, kept)
    else:
        prefix = model.get("continuing_subword_prefix", "") if kind == "WordPiece" else ""
        kept |= set(_fallback(vocab, prefix))
    if kind == "Unigram" and vocab:
        scores = [float(score) for _, score in model["vocab"]]
        kept |= {scores.index(min(scores)), *([] if model["unk_id"] is None else [model["unk_id"]])}
        kept |= {i for token, i in vocab.items() if BYTE.fullmatch(token)}
    known = set(vocab.values()) | set(added.values())
    return sorted(kept & known)


def first_tokens(source: str, count: int) -> list[int]:
    """Ids of the tokens with the lowest numbers, reserved ones left out. Errors: ConfigError."""
    ids = sorted(i for token, i in vocabulary(_spec(source)).items() if not RESERVED.fullmatch(token))
    return ids[:count]


def shrunk(source: str, kept: Collection[int]) -> tuple[str, list[int]]:
    """(the tokenizer.json with the tokens that `needed` names for `kept`, the old id of each new one)."""
    spec, order = _spec(source), needed(source, kept)
    vocab, model = vocabulary(spec), spec["model"]
    inside = set(vocab.values())
    # `tokenizers` gives an added token that is not in the vocabulary the next free number: these come last.
    order = [i for i in order if i in inside] + [i for i in order if i not in inside]
    new = {old: i for i, old in enumerate(order)}
    tokens = {token: new[i] for token, i in sorted(vocab.items(), key=lambda item: item[1]) if i in new}
    scores = ""
    if isinstance(model["vocab"], list):
        entries = (model["vocab"][i] for i in order if i in inside)
        # Scores as they were written: another spelling of a number may be read as another one.
        scores = "[" + ",".join(f"[{json.dumps(t, ensure_ascii=False)},{score}]" for t, score in entries) + "]"
        model["vocab"] = SCORES
        model["unk_id"] = None if model["unk_id"] is None else new[model["unk_id"]]
    else:
        model["vocab"] = tokens
    if "merges" in model:
        model["merges"] = [m for m in model["merges"] if all(t in tokens for t in _merge(m))]
    for token in spec["added_tokens"]:
        token["id"] = new[token["id"]]
    _renumber(spec["post_processor"], new)
    spec |= {"padding": None, "truncation": None}  # they may hold ids, and nobody looks at them
    return json.dumps(spec, ensure_ascii=False).replace(f'"{SCORES}"', scores, 1), order


def _spec(source: str) -> dict[str, Any]:
    """The tokenizer.json. Errors: ConfigError where it has parts that may hold ids nobody knows of."""
    try:
        return parse(source)
    except UnsupportedError as error:
        raise ConfigError(f"{error}; its vocabulary cannot be reduced: leave vocabulary out") from error


def _kind(spec: dict[str, Any]) -> str:
    """WordPiece, BPE (of bytes) or Unigram. Errors: ConfigError."""
    kind = spec["model"].get("type")
    if kind == "BPE" and not any(node.get("type") == "ByteLevel" for node in _nodes(spec["pre_tokenizer"])):
        kind = "BPE of characters"
    if kind not in ("WordPiece", "BPE", "Unigram"):
        raise ConfigError(
            f"the tokenizer is a {kind}; its vocabulary can be reduced for WordPiece, byte-level BPE and Unigram only: "
            "leave vocabulary out"
        )
    return str(kind)


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """All JSON objects within, itself first."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    for inner in node if isinstance(node, list) else ():
        yield from _nodes(inner)


def _fallback(vocab: Mapping[str, int], prefix: str) -> Iterator[int]:
    """Ids of single characters, and of tokens with a character that is no token where it stands there."""

    def alone(token: str) -> list[str]:
        """The token as single characters: WordPiece writes those within a word with the prefix."""
        inner = bool(prefix) and token.startswith(prefix) and len(token) > len(prefix)
        characters = token[len(prefix) :] if inner else token
        return [prefix + c if prefix and (inner or at) else c for at, c in enumerate(characters)]

    for token, i in vocab.items():
        pieces = alone(token)
        if len(pieces) == 1 or not all(piece in vocab for piece in pieces):
            yield i


def _merge(entry: Any) -> tuple[str, str, str]:
    """Both parts of a merge, and what they become."""
    left, right = entry if isinstance(entry, list) else entry.split(" ")
    return left, right, left + right


def _merged_on_the_way(model: dict[str, Any], vocab: Mapping[str, int], kept: Collection[int]) -> set[int]:
    """Ids of all tokens that are merged on the way from single characters to the kept ones."""
    ranks = {_merge(entry)[:2]: rank for rank, entry in enumerate(model["merges"])}
    tokens, found = {i: token for token, i in vocab.items()}, set()
    for i in kept:
        pieces = list(tokens.get(i, ""))
        while True:
            pairs = [(ranks.get(pair, len(ranks)), at) for at, pair in enumerate(pairwise(pieces))]
            rank, at = min(pairs, default=(len(ranks), 0))
            if rank == len(ranks):
                break
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
            found.add(vocab[pieces[at]])
    return found


def _template_ids(spec: dict[str, Any]) -> Iterator[int]:
    """Ids that the post-processor puts round a message."""
    for node in _nodes(spec["post_processor"]):
        yield from (i for i in node.get("ids", []) if type(i) is int)
        yield from (node[key][1] for key in ("cls", "sep") if isinstance(node.get(key), list))


def _renumber(post_processor: Any, new: Mapping[int, int]) -> None:
    """Write the new ids into a post-processor (in place)."""
    for node in _nodes(post_processor):
        if "ids" in node:
            node["ids"] = [new[i] for i in node["ids"]]
        for key in ("cls", "sep"):
            if isinstance(node.get(key), list):
                node[key] = [node[key][0], new[node[key][1]]]
