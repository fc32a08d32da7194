"""A narrower residual stream: what every layer reads and writes, D numbers a token, becomes D' of them.

    x' = P^T x            what is written: rows of Wo and W2, columns of the embeddings      P (D, D')
    W' = W R, b' = b + W r           what is read (Wq, Wk, Wv, W1, heads): x ~ R x' + r, least squares on messages
    LayerNorm'(z') ~ P^T LayerNorm(z)      its weight and bias number by number, least squares on messages

P keeps some of the D numbers (columns of the identity), or is a rotation onto the largest principal components. Neither
is exact: each LayerNorm takes mean and deviation over fewer numbers and scales them one by one. The errors of one fit
are seen by the next, which is made on what the sliced model gives. Sources: selection CoFi, Xia et al. 2022,
arXiv:2204.00408; rotation SliceGPT, Ashkboos et al. 2024, arXiv:2401.15024.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyweight.errors import ConfigError
from flyweight.model.linear import Linear
from flyweight.model.nlu import NLUModel, pad
from flyweight.model.surgery import unpacked_copy
from flyweight.model.survivors import before_cut
from flyweight.tokenizer import Encoded

DAMP = 1e-4  # of the mean square, added to every square
BATCH = 32  # messages of like length at once
WHO = "a narrower residual stream"  # for errors


@torch.no_grad()
def sliced(model: NLUModel, write: Tensor, encoded: Sequence[Encoded]) -> NLUModel:
    """A new model that writes P^T x: write = P (D, D'). encoded: messages that it is fitted on, in evaluation mode.

    Kept are the states of both models at one layer, batch by batch: n_tokens x (D + D') floats.
    Errors: ConfigError for packed or masked matrices, layers that are no transformers, and max pooling.
    """
    if model.pooling == "max":
        raise ConfigError(f"{WHO} is fitted to means or single tokens, but pooling is 'max'; leave it out")
    found = unpacked_copy(model).to("cpu").eval()
    dense = found.copy()
    found.card.survivors = before_cut(model).to_dict()  # heads and neurons are still those of the model as it was
    batches = _batches(encoded)
    _write(found, write)
    both = [(_Stage(dense, batch), _Stage(found, batch)) for batch in batches]
    for (theirs, _), (ours, readers) in zip(_sites(dense), _sites(found), strict=True):
        if isinstance(ours, nn.LayerNorm):
            _fit_norm(ours, ((small.at(ours)[0], large.at(theirs)[1] @ write) for large, small in both))
        moments = _moments((ours(small.at(ours)[0]), large.at(theirs)[1]) for large, small in both)
        for reader in readers:
            _read(reader, *moments)
        for large, small in both:
            large.passed(theirs)
            small.passed(ours)
    if found.pooler is not None:
        _narrow_pooler(found, dense, both, write.shape[1])
    return found


@torch.no_grad()
def hidden_moments(model: NLUModel, encoded: Sequence[Encoded]) -> Tensor:
    """(D, D): mean over the model's states of their second moments about zero, each divided by its trace."""
    model = model.copy().to("cpu").eval()
    stages = [_Stage(model, batch) for batch in _batches(encoded)]
    total = torch.zeros(model.encoder.config.hidden, model.encoder.config.hidden)
    for module, _ in _sites(model):
        h = torch.zeros_like(total)
        for stage in stages:
            y = stage.at(module)[1]
            h.addmm_(y.t(), y)
            stage.passed(module)
        total += h / h.trace()
    return total


def _batches(encoded: Sequence[Encoded]) -> list[tuple[Tensor, Tensor]]:
    """ids (B, T), mask (B, T) of messages of like length: a long one makes no other longer."""
    ordered = sorted((e.ids for e in encoded), key=len)
    return [pad(ordered[at : at + BATCH]) for at in range(0, len(ordered), BATCH)]


def _sites(model: NLUModel) -> list[tuple[nn.Module, list[Linear]]]:
    """Modules whose outputs are the states of the residual stream, in order, and the matrices that read each."""
    encoder = model.encoder
    modules: list[nn.Module] = [encoder.norm if encoder.projection is None else encoder.projection]
    readers: list[list[Linear]] = []
    for layer in encoder.transformer_layers(WHO):
        modules += [layer.attention.norm, layer.ffn.norm]
        readers += [[layer.attention.qkv], [layer.ffn.up]]
    heads = [model.intent_head if model.pooler is None else model.pooler, model.tag_head]
    return list(zip(modules, [*readers, [head for head in heads if head is not None]], strict=True))


class _Reached(Exception):  # noqa: N818 - no error
    """A module is through: what lies behind need not fit yet."""


class _Stage:
    """Where a batch is on its way through a model: x (B, T, D), which layer `first` sees, once it is embedded."""

    def __init__(self, model: NLUModel, batch: tuple[Tensor, Tensor]):
        self.encoder, (self.ids, self.mask) = model.encoder, batch
        self.first, self.x = 0, torch.empty(0)
        self.embedded = False

    def at(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """What a site of this stage is given and gives, at the real tokens: each (tokens, D)."""
        given, gives = self._through(module)
        return given[self.mask], gives[self.mask]

    def passed(self, module: nn.Module) -> None:
        """The site is fitted: go on to the next layer, where it is the last one of its layer."""
        if not self.embedded:
            self.x, self.embedded = self._through(module)[1], True
        elif module is self.encoder.transformer_layers(WHO)[self.first].ffn.norm:
            self.x = self._through(module)[1]
            self.first += 1

    def _through(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """Input and output of the module (B, T, D); nothing behind it is run."""
        found: list[tuple[Tensor, Tensor]] = []

        def catch(_: Any, inputs: tuple[Tensor], y: Tensor) -> None:
            found.append((inputs[0], y))
            raise _Reached

        handle = module.register_forward_hook(catch)
        try:
            if self.embedded:
                self.encoder.states_from(self.first, self.x, self.mask)
            else:
                self.encoder.embed(self.ids)
        except _Reached:
            pass
        finally:
            handle.remove()
        return found[0]


def _write(model: NLUModel, write: Tensor) -> None:
    """Everything that writes to the residual stream writes P^T x; norms are new (in place)."""
    encoder, width = model.encoder, write.shape[1]
    encoder.config = replace(encoder.config, hidden=width)
    eps = encoder.config.norm_eps
    layers = encoder.transformer_layers(WHO)
    writers = [m for layer in layers for m in (layer.attention.out, layer.ffn.down)]
    if encoder.projection is None:
        tables = [encoder.words, encoder.positions, *([] if encoder.ngrams is None else [encoder.ngrams])]
        for table in tables:
            table.weight = nn.Parameter(table.weight @ write)
        encoder.norm = nn.LayerNorm(width, eps=eps)
    else:
        writers.append(encoder.projection)
    for writer in writers:
        writer.weight = nn.Parameter(write.t() @ writer.weight)
        if writer.bias is not None:
            writer.bias = nn.Parameter(write.t() @ writer.bias)
    for layer in layers:
        layer.attention.norm, layer.ffn.norm = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
    model.eval()


Pairs = Iterable[tuple[Tensor, Tensor]]  # batch by batch


def _fit_norm(norm: nn.LayerNorm, pairs: Pairs) -> None:
    """weight_j, bias_j: least squares of normed z_j against wanted_j, number by number (in place).

    pairs: z, wanted, each (tokens, D').
    """
    count, sums = 0, torch.zeros(4, norm.normalized_shape[0], dtype=torch.float64)
    for z, wanted in pairs:
        n, y = F.layer_norm(z, norm.normalized_shape, eps=norm.eps).double(), wanted.double()
        sums += torch.stack([n.sum(0), y.sum(0), n.square().sum(0), (n * y).sum(0)])
        count += len(z)
    mean_n, mean_y, mean_nn, mean_ny = sums / count
    weight = (mean_ny - mean_n * mean_y) / (mean_nn - mean_n.square() + DAMP)
    norm.weight = nn.Parameter(weight.float())
    norm.bias = nn.Parameter((mean_y - weight * mean_n).float())


def _moments(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """x^T x (D' + 1, D' + 1) and x^T y (D' + 1, D), float64, x with a 1 behind. pairs: (tokens, D'), (tokens, D)."""
    h, g = torch.zeros(()), torch.zeros(())
    for small, y in pairs:
        x = F.pad(small, (0, 1), value=1.0)
        h, g = h + (x.t() @ x).double(), g + (x.t() @ y).double()
    return h, g


def _read(reader: Linear, h: Tensor, g: Tensor) -> None:
    """W' = W R, b' = b + W r with y ~ small R^T + r (in place). h, g: as `_moments` gives them."""
    width = len(h) - 1
    if reader.bias is None:
        h, g = h[:width, :width], g[:width]
    damp = DAMP * h.diagonal().mean()
    found = torch.linalg.solve(h + damp * torch.eye(len(h)), g).float()  # (D' or D' + 1, D)
    if reader.bias is not None:
        reader.bias = nn.Parameter(reader.bias + reader.weight @ found[-1])
    reader.weight = nn.Parameter(reader.weight @ found[:width].t())


def _narrow_pooler(model: NLUModel, dense: NLUModel, both: Sequence[tuple[_Stage, _Stage]], width: int) -> None:
    """The pooler gives the outputs that the intent head weighs most, and the head is fitted to them (in place).

    both: the dense model and this one behind their last layers, batch by batch.
    """
    assert model.pooler is not None
    assert model.pooler.bias is not None
    wanted = [dense.pool(large.x, large.mask) for large, _ in both]  # (B, D) each
    weighed = dense.intent_head.weight.square().sum(dim=0) * torch.cat(wanted).var(dim=0, unbiased=False)
    kept = weighed.argsort(descending=True, stable=True)[:width].sort().values
    model.pooler.weight = nn.Parameter(model.pooler.weight[kept])
    model.pooler.bias = nn.Parameter(model.pooler.bias[kept])
    pooled = [model.pool(small.x, small.mask) for _, small in both]
    _read(model.intent_head, *_moments(zip(pooled, wanted, strict=True)))
