"""A model folder's tokenizer: its tokenizer.json, or one made of the older files that fine-tuned models often have.

    tokenizer.json               taken as it is
    vocab.txt                    WordPiece (BERT, DistilBERT, ELECTRA, MPNet); lower case as tokenizer_config.json says
    vocab.json + merges.txt      byte-level BPE (RoBERTa)

A SentencePiece model alone, and tokens that were added behind the vocabulary, are refused, with the way to a
tokenizer.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flyweight.data.source import listed
from flyweight.errors import CheckpointError
from flyweight.tokenizer import Tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "added_tokens.json",
)
SPECIAL = {"cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "pad": "[PAD]", "mask": "[MASK]"}
CONVERT = (
    "write one with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER), "
    "then name the folder again"
)


def load_tokenizer(folder: Path, max_tokens: int) -> Tokenizer:
    """The tokenizer of a model folder, messages cut at `max_tokens`. Errors: CheckpointError."""
    path = folder / "tokenizer.json"
    if path.is_file() or not any((folder / name).is_file() for name in ("vocab.txt", "vocab.json")):
        if not path.is_file() and any(folder.glob("*.model")):
            raise CheckpointError(f"{folder} has a SentencePiece model, but no tokenizer.json; {CONVERT}")
        return Tokenizer.from_file(path, max_tokens)
    settings = _settings(folder / "tokenizer_config.json")
    try:
        if (folder / "vocab.txt").is_file():
            source = _word_piece(folder, settings)
        else:
            source = _byte_level_bpe(folder, settings)
    except CheckpointError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{folder}: the vocabulary cannot be read ({' '.join(str(error).split())})") from error
    return Tokenizer(source, max_tokens)


def _settings(path: Path) -> dict[str, Any]:
    """A JSON object of a file; empty without the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def _added(folder: Path, settings: dict[str, Any], vocab: Mapping[str, int]) -> list[str]:
    """Tokens that are never split, beside the special ones: those of later training. Errors: CheckpointError."""
    decoder = settings.get("added_tokens_decoder")
    tokens = list(decoder.values()) if isinstance(decoder, dict) else []
    more = settings.get("additional_special_tokens")
    tokens += more if isinstance(more, list) else []
    tokens += _settings(folder / "added_tokens.json")
    found = [t for t in map(_content, tokens) if t]
    behind = [t for t in found if t not in vocab]
    if behind:
        raise CheckpointError(f"{folder} adds tokens to its vocabulary ({listed(behind)}); {CONVERT}")
    return found


def _word_piece(folder: Path, settings: dict[str, Any]) -> str:
    from tokenizers import Tokenizer as Package
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    path = folder / "vocab.txt"
    lines = path.read_text(encoding="utf-8").split("\n")
    vocab = {line.rstrip("\r"): i for i, line in enumerate(lines) if line or i < len(lines) - 1}
    named = {key: _token(settings, key, default) for key, default in SPECIAL.items()}
    missing = [named[key] for key in ("cls", "sep", "unk") if named[key] not in vocab]
    if missing:
        raise CheckpointError(f"{path} lacks the special token {missing[0]!r}; {CONVERT}")
    made = Package(models.WordPiece(vocab, unk_token=named["unk"]))
    made.normalizer = normalizers.BertNormalizer(
        lowercase=bool(settings.get("do_lower_case", True)),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    cls, sep = ((named[key], vocab[named[key]]) for key in ("cls", "sep"))
    made.post_processor = processors.TemplateProcessing(single=f"{cls[0]} $A {sep[0]}", special_tokens=[cls, sep])
    made.add_special_tokens([t for t in [*named.values(), *_added(folder, settings, vocab)] if t in vocab])
    return str(made.to_str())


def _byte_level_bpe(folder: Path, settings: dict[str, Any]) -> str:
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
    from tokenizers import Tokenizer as Package

    if not (folder / "merges.txt").is_file():
        raise CheckpointError(f"{folder} has a vocab.json, but no merges.txt; both are needed, or a tokenizer.json")
    vocab, merges = models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    spaced = bool(settings.get("add_prefix_space", False))
    named = {key: _token(settings, key, f"<{key}>") for key in ("pad", "unk", "mask")}
    named |= {"cls": _token(settings, "cls", "<s>"), "sep": _token(settings, "sep", "</s>")}
    missing = [named[key] for key in ("cls", "sep") if named[key] not in vocab]
    if missing:
        raise CheckpointError(f"{folder / 'vocab.json'} lacks the special token {missing[0]!r}; {CONVERT}")
    made = Package(models.BPE(vocab, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    made.decoder = decoders.ByteLevel()
    cls, sep = ((named[key], vocab[named[key]]) for key in ("cls", "sep"))
    made.post_processor = processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=spaced)
    # As in transformers 4 the mask takes the blank before it along.
    tokens = [AddedToken(t, lstrip=key == "mask", normalized=False) for key, t in named.items() if t in vocab]
    made.add_special_tokens([*tokens, *_added(folder, settings, vocab)])
    return str(made.to_str())


def _token(settings: dict[str, Any], key: str, default: str) -> str:
    """A special token by its entry in tokenizer_config.json."""
    return _content(settings.get(f"{key}_token")) or default


def _content(entry: object) -> str | None:
    """The text of a token's entry, a text or {"content": text}."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else None
