"""Students: smaller models made of one that is there, so that their training does not begin from nothing.

    layers       k of n: layer round(i (n - 1) / (k - 1)) for i = 0, ..., k - 1; the first for k = 1; k > n repeats some
    heads        as many as fit the width, round(H D' / D); those with the largest |Wv_h| |Wo_h| (Frobenius norms)
    neurons      those with the largest |W1_j| |W2_j|
    width        rotated onto its D' principal components and fitted on messages (slicing.py)
    embeddings   rows projected onto the E principal components of what messages look up
    other kinds  BiLSTM, convolutions, a bag (nothing behind the embeddings, bigrams among them): embeddings as above
    tokens       a row of a new token is the mean of the rows of the pieces that the old tokenizer cuts it into

Layers that are repeated make a student deeper than its parent; together with a smaller width it is the deeper and
thinner one of FitNets (arXiv:1412.6550). Sources: layers Sanh et al. 2019, arXiv:1910.01108 and Jiao et al. 2019,
arXiv:1909.10351; static embeddings of a bag Ye et al. 2021, arXiv:2110.08536.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from flyweight.answers import Labels
from flyweight.errors import ConfigError
from flyweight.model.checkpoints import load_encoder, resolve_base
from flyweight.model.encoder import ConvolutionShape, EncoderConfig, Layer, LayerShape, LSTMShape, Shape
from flyweight.model.linear import Embedding, Linear
from flyweight.model.nlu import NLUModel, Pooling, pad
from flyweight.model.slicing import hidden_moments, sliced
from flyweight.model.small import MAX_POSITIONS
from flyweight.model.surgery import keep_heads, keep_neurons, reshaped, unpacked_copy
from flyweight.model.vocabularies import load_tokenizer
from flyweight.tokenizer import Encoded, Tokenizer
from flyweight.tokenizer.spec import vocabulary

HEAD_SIZE = 32  # of heads that are new
WIDTH = 5  # of convolutions: a token and two on each side
DAMP = 1e-4  # of the mean square, added to every square


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a student: numbers of layers, hidden width, FFN width, embedding width; None: the parent's."""

    layers: int | None = None
    hidden: int | None = None
    ffn: int | None = None
    embedding: int | None = None


def from_base(base: str, labels: Labels, max_tokens: int) -> NLUModel:
    """A pretrained encoder with new heads for the labels. Errors: CheckpointError."""
    folder = resolve_base(base)
    encoder = load_encoder(folder)
    tokenizer = load_tokenizer(folder, min(max_tokens, encoder.config.max_positions))
    model = NLUModel(encoder.config, tokenizer, labels)
    model.encoder.load_state_dict(encoder.state_dict())
    return model


def from_nothing(source: str, labels: Labels, max_tokens: int, sizes: Sizes) -> NLUModel:
    """A transformer with new weights: 2 layers of 128 and an FFN four times as wide where sizes say nothing else."""
    tokenizer = Tokenizer(source, min(max_tokens, MAX_POSITIONS))
    hidden = sizes.hidden or 128
    shape = LayerShape(
        heads=max(1, hidden // HEAD_SIZE),
        ffn=4 * hidden if sizes.ffn is None else sizes.ffn,
    )
    config = EncoderConfig(
        vocab_size=tokenizer.n_ids,
        hidden=hidden,
        head_size=HEAD_SIZE,
        layers=(shape,) * (2 if sizes.layers is None else sizes.layers),
        max_positions=MAX_POSITIONS,
        embedding=0 if sizes.embedding in (None, hidden) else cast(int, sizes.embedding),
    )
    return NLUModel(config, tokenizer, labels)


def transformer_student(parent: NLUModel, sizes: Sizes, encoded: Sequence[Encoded]) -> NLUModel:
    """A new transformer made of the parent's parts, fitted on messages where it is narrower.

    Errors: ConfigError for packed or masked matrices, and for more than the parent has of anything but layers.
    """
    model, config = unpacked_copy(parent), parent.encoder.config
    shapes = config.transformer_shapes("student")
    hidden, width = sizes.hidden or config.hidden, config.embedding or config.hidden
    _refuse_wider("hidden", hidden, config.hidden)
    _refuse_wider("embedding", sizes.embedding or width, width)
    _refuse_wider("ffn", sizes.ffn or 0, max((shape.ffn for shape in shapes), default=0))
    model.card.survivors = None  # a student is no part of one dense model
    if sizes.layers is not None:
        at = chosen_layers(len(shapes), sizes.layers)
        model.encoder.layers = nn.ModuleList(copy.deepcopy(model.encoder.layers[i]) for i in at)  # type: ignore[assignment]
        shapes = reshaped(model).encoder.config.transformer_shapes("student")
    heads: dict[int, list[int]] = {}
    neurons: dict[int, list[int]] = {}
    for i, (layer, shape) in enumerate(zip(model.encoder.transformer_layers("student"), shapes, strict=True)):
        n_heads = min(shape.heads, max(1, round(shape.heads * hidden / config.hidden)))
        ffn = round(shape.ffn * hidden / config.hidden) if sizes.ffn is None else min(shape.ffn, sizes.ffn)
        heads[i], neurons[i] = strongest(head_norms(layer), n_heads), strongest(neuron_norms(layer), ffn)
    model = keep_neurons(keep_heads(model, heads), neurons)
    if sizes.embedding is not None and sizes.embedding < width:
        model = factorized(model, sizes.embedding, encoded)
    if hidden < config.hidden:
        _, vectors = torch.linalg.eigh(hidden_moments(model, encoded).double())  # ascending
        model = sliced(model, vectors.flip(1)[:, :hidden].float(), encoded)
    model.card.survivors = None
    return model.eval()


def light_student(parent: NLUModel, kind: str, sizes: Sizes, ngrams: int, encoded: Sequence[Encoded]) -> NLUModel:
    """A new model of kind bilstm, cnn or bag: embeddings are the parent's, narrower, layers and heads new.

    Embeddings as wide as the layers need no projection: so they are where the parent's are wide enough and sizes say
    nothing else. sizes.layers and sizes.hidden are numbers. Without messages the parent's rows are taken as they are.
    Errors: ConfigError for embeddings wider than the parent's.
    """
    config, count, hidden = parent.encoder.config, sizes.layers or 0, sizes.hidden or 0
    most = config.embedding or config.hidden
    width = min(hidden, most) if sizes.embedding is None else sizes.embedding
    _refuse_wider("embedding", width, most)
    layers: dict[str, tuple[Shape, ...]] = {
        "bilstm": (LSTMShape(),) * count,
        "cnn": (ConvolutionShape(width=WIDTH),) * count,
        "bag": (),
    }
    pooling: dict[str, Pooling] = {"bilstm": "max", "cnn": "max", "bag": "mean"}
    config = replace(
        config,
        hidden=hidden,
        layers=layers[kind],
        embedding=0 if width == hidden else width,
        ngrams=ngrams,
        relative_buckets=0,
        integer_only=False,
    )
    model = NLUModel(config, parent.tokenizer, parent.labels, pooling=pooling[kind])
    tables = model.encoder.words, model.encoder.positions
    if encoded:
        rows = principal_rows(parent, width, encoded)
    else:
        rows = parent.encoder.words.weight.detach().clone(), parent.encoder.positions.weight.detach().clone()
    for table, found in zip(tables, rows, strict=True):
        table.weight = nn.Parameter(found)
    return model.eval()


def chosen_layers(n_layers: int, count: int) -> list[int]:
    """Which of n layers a student of `count` begins with: the first, the last, and evenly between."""
    if count and not n_layers:
        raise ConfigError(f"student: layers is {count!r}; the model it is made of has none; allowed: none, or 0")
    return [round(i * (n_layers - 1) / max(1, count - 1)) for i in range(count)]


def strongest(scores: Tensor, count: int) -> list[int]:
    """Indices of the `count` largest, ascending; of equal ones the first."""
    return sorted(scores.argsort(descending=True, stable=True)[:count].tolist())


def head_norms(layer: Layer) -> Tensor:
    """|Wv_h| |Wo_h| of each head, (H,)."""
    H, d = layer.attention.heads, layer.attention.head_size
    D = layer.attention.out.weight.shape[0]
    v = layer.attention.qkv.weight.detach().view(3, H, d, D)[2]
    o = layer.attention.out.weight.detach().view(D, H, d)
    return torch.linalg.vector_norm(v, dim=(1, 2)) * torch.linalg.vector_norm(o, dim=(0, 2))


def neuron_norms(layer: Layer) -> Tensor:
    """|W1_j| |W2_j| of each neuron, (n,)."""
    return layer.ffn.up.weight.detach().norm(dim=1) * layer.ffn.down.weight.detach().norm(dim=0)


@torch.no_grad()
def principal_rows(model: NLUModel, width: int, encoded: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Word and position rows projected onto the `width` principal components of words[id] + positions[t] in messages.

    -> (V, width), (max_positions, width). LayerNorm takes each row's mean away, and so does this before.
    """
    words, positions = (e.weight.detach().cpu().double() for e in (model.encoder.words, model.encoder.positions))
    words, positions = (w - w.mean(dim=1, keepdim=True) for w in (words, positions))
    x = torch.cat([words[torch.from_numpy(e.ids).long()] + positions[: len(e.ids)] for e in encoded])  # (tokens, E)
    _, vectors = torch.linalg.eigh(x.t() @ x)  # ascending
    basis = vectors.flip(1)[:, :width]
    return (words @ basis).float(), (positions @ basis).float()


@torch.no_grad()
def factorized(model: NLUModel, width: int, encoded: Sequence[Encoded]) -> NLUModel:
    """A new model with embeddings of `width` and a projection behind them, fitted on messages (least squares)."""
    found, encoder = model.copy(), model.encoder
    config = replace(encoder.config, embedding=width)
    found.encoder.words.weight, found.encoder.positions.weight = (
        nn.Parameter(rows) for rows in principal_rows(model, width, encoded)
    )
    found.encoder.norm = nn.LayerNorm(width, eps=config.norm_eps)
    found.encoder.projection, found.encoder.config = None, config
    wanted, given = model.copy().eval(), found.eval()
    x, y = [], []
    for e in encoded:
        ids, mask = pad([e.ids])
        y.append(wanted.encoder.embed(ids)[mask])
        x.append(given.encoder.embed(ids)[mask])
    found.encoder.projection = least_squares(torch.cat(x), torch.cat(y))
    return found


def least_squares(x: Tensor, y: Tensor) -> Linear:
    """The matrix and bias with the smallest |x W^T + b - y|^2; x (N, n_in), y (N, n_out)."""
    given = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64, device=x.device)], dim=1)
    h = given.t() @ given
    h += DAMP * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype, device=h.device)
    solution = torch.linalg.solve(h, given.t() @ y.double()).float()  # (n_in + 1, n_out)
    found = Linear(x.shape[1], y.shape[1])
    found.weight = nn.Parameter(solution[:-1].t().contiguous())
    found.bias = nn.Parameter(solution[-1].clone())
    return found


@torch.no_grad()
def with_vocabulary(model: NLUModel, source: str) -> NLUModel:
    """A new model with the tokenizer `source`; rows of tokens that it did not have are means of those of their pieces.

    What stands round a message keeps its rows, whatever its name.
    """
    model = unpacked_copy(model)
    old, new = model.tokenizer, Tokenizer(source, model.tokenizer.max_tokens)
    known, tokens = vocabulary(json.loads(old.source)), vocabulary(json.loads(source))
    ends, theirs = new.encode("").ids.tolist(), old.encode("").ids.tolist()
    around = dict(zip(ends, theirs, strict=True)) if len(ends) == len(theirs) == 2 else {}
    texts = [token.removeprefix("##") for token in tokens]
    rows = model.encoder.words.weight
    found = rows.mean(dim=0).repeat(new.n_ids, 1)
    for (token, i), pieces in zip(tokens.items(), old.encode_batch(texts), strict=True):
        inner = pieces.ids[1:-1] if len(theirs) == 2 else pieces.ids
        if i in around:
            found[i] = rows[around[i]]
        elif token in known:
            found[i] = rows[known[token]]
        elif len(inner):
            found[i] = rows[torch.from_numpy(inner).long()].mean(dim=0)
    words = Embedding(*found.shape)
    words.weight = nn.Parameter(found)
    model.tokenizer, model.encoder.words = new, words
    model.encoder.config = replace(model.encoder.config, vocab_size=new.n_ids)
    return model


def with_ngrams(model: NLUModel, ngrams: int) -> NLUModel:
    """The model with rows for so many hashed bigrams, which say nothing yet (in place); 0: as it is."""
    if ngrams:
        encoder = model.encoder
        encoder.ngrams = Embedding(ngrams, encoder.words.weight.shape[1])
        nn.init.zeros_(encoder.ngrams.weight)
        encoder.config = replace(encoder.config, ngrams=ngrams)
    return model


def _refuse_wider(name: str, value: int, most: int) -> None:
    if value > most:
        raise ConfigError(
            f"student: {name} is {value!r}; the model it is made of has {most}; allowed: up to {most}, or base=small"
        )
