"""Physical surgery: a new model without some heads, neurons, layers or tokens; the input is untouched.

    keep_heads     Wq, Wk, Wv (H*d, D) -> (H'*d, D), Wo (D, H*d) -> (D, H'*d), columns of the relative position bias
    keep_neurons   W1 (n, D) -> (n', D), W2 (D, n) -> (D, n')
    keep_layers    the others are gone, with their biases and norms
    keep_tokens    word rows (V, E) -> (V', E), the tokenizer to match (tokenizer/shrink.py)

The result computes what `encoder.masked` simulates, up to the order of float sums: a layer without heads or neurons
keeps the bias, residual and norm of that part. It is an ordinary model: it saves, loads, trains and exports.

Any subset may be kept, none included. What a packed or masked matrix holds belongs to its old shape, so that structure
is pruned first and packed afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from flyweight.errors import ConfigError
from flyweight.model.encoder import LayerShape
from flyweight.model.linear import Embedding, Linear
from flyweight.model.nlu import NLUModel
from flyweight.model.survivors import before_cut
from flyweight.tokenizer import Tokenizer
from flyweight.tokenizer.shrink import shrunk

Kept = Mapping[int, Sequence[int]]  # layer -> indices kept, in any order; layers that are absent stay as they are


def keep_heads(model: NLUModel, kept: Kept) -> NLUModel:
    """A new model with these heads only. Errors: ConfigError for packed matrices and for indices that are no heads."""
    model, survivors = unpacked_copy(model), before_cut(model)
    for i, heads in _checked(
        model, kept, [s.heads for s in model.encoder.config.transformer_shapes("removing heads")], "head"
    ).items():
        attention = model.encoder.transformer_layers("removing heads")[i].attention
        d = attention.head_size
        at = (heads[:, None] * d + torch.arange(d)).flatten()  # (H'*d,): where the kept heads' rows lie in Q
        all_rows = attention.heads * d
        attention.qkv = kept_rows(attention.qkv, torch.cat([at, at + all_rows, at + 2 * all_rows]))
        attention.out = kept_columns(attention.out, at)
        if attention.relative_bias is not None:
            attention.relative_bias = _parameter(attention.relative_bias, 1, heads)
        attention.heads = len(heads)
    model.card.survivors = survivors.with_heads(kept).to_dict()
    return reshaped(model)


def keep_neurons(model: NLUModel, kept: Kept) -> NLUModel:
    """A new model with these FFN neurons only. Errors: ConfigError as in keep_heads."""
    model, survivors = unpacked_copy(model), before_cut(model)
    for i, neurons in _checked(
        model, kept, [s.ffn for s in model.encoder.config.transformer_shapes("removing neurons")], "neuron"
    ).items():
        ffn = model.encoder.transformer_layers("removing neurons")[i].ffn
        ffn.up, ffn.down = kept_rows(ffn.up, neurons), kept_columns(ffn.down, neurons)
    model.card.survivors = survivors.with_neurons(kept).to_dict()
    return reshaped(model)


def keep_layers(model: NLUModel, kept: Sequence[int]) -> NLUModel:
    """A new model with these layers only, in their old order. Errors: ConfigError as in keep_heads."""
    model, survivors = unpacked_copy(model), before_cut(model)
    layers = _indices(kept, len(model.encoder.layers), "layer", "the model").tolist()
    model.encoder.layers = nn.ModuleList(model.encoder.layers[i] for i in layers)  # type: ignore[assignment]
    model.card.survivors = survivors.with_layers(layers).to_dict()
    return reshaped(model)


def keep_tokens(model: NLUModel, kept: Collection[int]) -> NLUModel:
    """A new model with these token ids and those its tokenizer needs beside them; ids are numbered anew.

    Errors: ConfigError for packed matrices, for bigrams, and for a tokenizer that cannot be rewritten.
    """
    if model.encoder.config.ngrams:
        raise ConfigError(
            "the model has rows of token bigrams, found by the tokens' ids: other ids would find other rows; "
            "make the vocabulary smaller first, then the student with bigrams"
        )
    model = unpacked_copy(model)
    source, order = shrunk(model.tokenizer.source, kept)
    model.tokenizer = Tokenizer(source, model.tokenizer.max_tokens)
    words = Embedding(len(order), model.encoder.words.weight.shape[1])
    words.weight = _parameter(model.encoder.words.weight, 0, torch.tensor(order, dtype=torch.int64))
    model.encoder.words = words.train(model.training)
    model.encoder.config = replace(model.encoder.config, vocab_size=len(order))
    return model


def unpacked_copy(model: NLUModel) -> NLUModel:
    """An independent copy whose matrices may change their shape. Errors: ConfigError where one is packed or masked."""
    for name, module, _ in model.matrices():
        masked = isinstance(module, Linear) and module.mask is not None
        if masked or module.form is not None or module.activations != "float":
            raise ConfigError(
                f"{name} is packed or masked; heads, neurons, layers and tokens are removed from float matrices only: "
                "prune structure first, then prune single weights and pack"
            )
    return model.copy()


def reshaped(model: NLUModel) -> NLUModel:
    """The model whose configuration says what its layers have become (in place)."""
    layers = model.encoder.transformer_layers("removing structure")
    shapes = tuple(LayerShape(heads=m.attention.heads, ffn=m.ffn.up.weight.shape[0]) for m in layers)
    model.encoder.config = replace(model.encoder.config, layers=shapes)
    return model


def kept_rows(matrix: Linear, rows: Tensor) -> Linear:
    """W (n_out, n_in), b (n_out,) -> those of the kept outputs."""
    found = Linear(matrix.weight.shape[1], len(rows), bias=matrix.bias is not None)
    found.weight = _parameter(matrix.weight, 0, rows)
    found.bias = None if matrix.bias is None else _parameter(matrix.bias, 0, rows)
    return found.train(matrix.training)


def kept_columns(matrix: Linear, columns: Tensor) -> Linear:
    """W (n_out, n_in) -> (n_out, len(columns)): those of the kept inputs; the bias stays."""
    found = Linear(len(columns), matrix.weight.shape[0], bias=matrix.bias is not None)
    found.weight, found.bias = _parameter(matrix.weight, 1, columns), matrix.bias
    return found.train(matrix.training)


def _parameter(tensor: nn.Parameter, dim: int, kept: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().index_select(dim, kept.to(tensor.device)).contiguous())


def _checked(model: NLUModel, kept: Kept, counts: Sequence[int], what: str) -> dict[int, Tensor]:
    """layer -> kept indices, ascending. Errors: ConfigError."""
    if unknown := sorted(set(kept) - set(range(len(counts)))):
        raise ConfigError(f"layer {unknown[0]} is none of the model's; allowed: 0 to {len(counts) - 1}")
    return {i: _indices(found, counts[i], what, f"layer {i}") for i, found in kept.items()}


def _indices(kept: Sequence[int], count: int, what: str, of: str) -> Tensor:
    """The kept indices, ascending, int64."""
    kept = sorted(int(i) for i in kept)
    odd = [i for i in kept if not 0 <= i < count]
    if odd or len(set(kept)) < len(kept):
        found = odd[0] if odd else next(i for i in kept if kept.count(i) > 1)
        raise ConfigError(f"{what} {found} of {of} is to be kept; allowed: 0 to {count - 1}, each once")
    return torch.tensor(kept, dtype=torch.int64)
