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

from collections.abc import Iterator, Sequence
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


def keep_hidden(model: NLUModel, kept: Sequence[int], encoded: Sequence[Encoded]) -> NLUModel:
    """A new model with these numbers of the residual stream, fitted on messages. Errors: ConfigError as `sliced`."""
    hidden = model.encoder.config.hidden
    if not kept or len(set(kept)) < len(kept) or not set(kept) <= set(range(hidden)):
        raise ConfigError(
            f"{len(kept)} of {hidden} hidden numbers are to be kept; allowed: 1 or more of 0 to {hidden - 1}, each once"
        )
    return sliced(model, torch.eye(hidden)[:, sorted(kept)], encoded)


@torch.no_grad()
def sliced(model: NLUModel, write: Tensor, encoded: Sequence[Encoded]) -> NLUModel:
    """A new model that writes P^T x: write = P (D, D'). encoded: messages that it is fitted on, in evaluation mode.

    Errors: ConfigError for packed or masked matrices.
    """
    found = unpacked_copy(model).to("cpu").eval()
    dense = found.copy()
    found.card.survivors = before_cut(model).to_dict()  # heads and neurons are still those of the model as it was
    ids, mask = pad([e.ids for e in encoded])
    states = [y for _, y in _states(dense, ids, mask)]  # each (tokens, D)
    _write(found, write)
    for y, (module, readers) in zip(states, _sites(found), strict=True):
        if isinstance(module, nn.LayerNorm):
            _fit_norm(module, _seen(found, module, ids, mask), y @ write)
        small = module(_seen(found, module, ids, mask))
        for reader in readers:
            _read(reader, small, y)
    if found.pooler is not None:
        _narrow_pooler(found, dense, ids, mask, write.shape[1])
    return found


def hidden_moments(model: NLUModel, encoded: Sequence[Encoded]) -> Tensor:
    """(D, D): mean over the model's states of their second moments about zero, each divided by its trace."""
    ids, mask = pad([e.ids for e in encoded])
    total = torch.zeros(model.encoder.config.hidden, model.encoder.config.hidden)
    for _, y in _states(model.copy().to("cpu").eval(), ids, mask):
        h = y.t() @ y
        total += h / h.trace()
    return total


def _sites(model: NLUModel) -> list[tuple[nn.Module, list[Linear]]]:
    """Modules whose outputs are the states of the residual stream, in order, and the matrices that read each."""
    encoder = model.encoder
    modules: list[nn.Module] = [encoder.norm if encoder.projection is None else encoder.projection]
    readers: list[list[Linear]] = []
    for layer in encoder.layers:
        modules += [layer.attention.norm, layer.ffn.norm]
        readers += [[layer.attention.qkv], [layer.ffn.up]]
    heads = [model.intent_head if model.pooler is None else model.pooler, model.tag_head]
    return list(zip(modules, [*readers, [head for head in heads if head is not None]], strict=True))


@torch.no_grad()
def _states(model: NLUModel, ids: Tensor, mask: Tensor) -> Iterator[tuple[nn.Module, Tensor]]:
    """(module, what it gives at the real tokens (tokens, D)) for all sites, by one forward pass."""
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _: Any, y: Tensor) -> None:
        outputs[module] = y[mask]

    sites = [module for module, _ in _sites(model)]
    handles = [module.register_forward_hook(keep) for module in sites]
    try:
        model.encoder(ids, mask)
    finally:
        for handle in handles:
            handle.remove()
    yield from ((module, outputs[module]) for module in sites)


class _Reached(Exception):  # noqa: N818 - no error
    """A module is reached: its input is known, and what lies behind need not fit yet."""


def _seen(model: NLUModel, module: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """The module's input at the real tokens."""
    found: list[Tensor] = []

    def catch(_: Any, inputs: tuple[Tensor]) -> None:
        found.append(inputs[0][mask])
        raise _Reached

    handle = module.register_forward_pre_hook(catch)
    try:
        model.encoder(ids, mask)
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
    writers = [m for layer in encoder.layers for m in (layer.attention.out, layer.ffn.down)]
    if encoder.projection is None:
        for table in (encoder.words, encoder.positions):
            table.weight = nn.Parameter(table.weight @ write)
        encoder.norm = nn.LayerNorm(width, eps=eps)
    else:
        writers.append(encoder.projection)
    for writer in writers:
        writer.weight = nn.Parameter(write.t() @ writer.weight)
        if writer.bias is not None:
            writer.bias = nn.Parameter(write.t() @ writer.bias)
    for layer in encoder.layers:
        layer.attention.norm, layer.ffn.norm = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
    model.eval()


def _fit_norm(norm: nn.LayerNorm, z: Tensor, wanted: Tensor) -> None:
    """weight_j, bias_j: least squares of normed z_j (tokens,) against wanted_j, number by number (in place)."""
    n = F.layer_norm(z, norm.normalized_shape, eps=norm.eps)
    centred = n - n.mean(dim=0)
    weight = (centred * wanted).mean(dim=0) / (centred.square().mean(dim=0) + DAMP)
    norm.weight = nn.Parameter(weight)
    norm.bias = nn.Parameter(wanted.mean(dim=0) - weight * n.mean(dim=0))


def _read(reader: Linear, small: Tensor, y: Tensor) -> None:
    """W' = W R, b' = b + W r with y ~ small R^T + r (in place). small (tokens, D'), y (tokens, D)."""
    x = small if reader.bias is None else F.pad(small, (0, 1), value=1.0)
    h = (x.t() @ x).double()
    h.diagonal().add_(DAMP * float(h.diagonal().mean()))
    found = torch.linalg.solve(h, (x.t() @ y).double()).float()  # (D' or D' + 1, D)
    if reader.bias is not None:
        reader.bias = nn.Parameter(reader.bias + reader.weight @ found[-1])
    reader.weight = nn.Parameter(reader.weight @ found[: small.shape[1]].t())


def _narrow_pooler(model: NLUModel, dense: NLUModel, ids: Tensor, mask: Tensor, width: int) -> None:
    """The pooler gives the outputs that the intent head weighs most, and the head is fitted to them (in place)."""
    assert model.pooler is not None
    assert model.pooler.bias is not None
    wanted = dense.pool(dense.encoder(ids, mask), mask)  # (B, D)
    weighed = dense.intent_head.weight.square().sum(dim=0) * wanted.var(dim=0, unbiased=False)
    kept = weighed.argsort(descending=True, stable=True)[:width].sort().values
    model.pooler.weight = nn.Parameter(model.pooler.weight[kept])
    model.pooler.bias = nn.Parameter(model.pooler.bias[kept])
    _read(model.intent_head, model.pool(model.encoder(ids, mask), mask), wanted)
