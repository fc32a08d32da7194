"""What a student is made of: chosen layers, the strongest heads and neurons, principal components, means of pieces."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from random_models import all_logits, random_model, same_bits, variant
from torch import nn

from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError
from flyweight.model.encoder import ConvolutionShape, Layer, LayerShape, LSTMShape
from flyweight.model.nlu import NLUModel
from flyweight.model.small import train_tokenizer
from flyweight.model.students import (
    Sizes,
    chosen_layers,
    factorized,
    head_norms,
    least_squares,
    light_student,
    neuron_norms,
    principal_rows,
    strongest,
    transformer_student,
    with_vocabulary,
)
from flyweight.tokenizer import Encoded
from flyweight.tokenizer.spec import vocabulary


@pytest.fixture
def parent(tiny_model: NLUModel) -> NLUModel:
    return random_model(tiny_model, layers=((3, 37), (4, 20), (2, 21), (3, 30)))


@pytest.fixture
def encoded(parent: NLUModel, tiny_data: NLUData) -> list[Encoded]:
    return parent.tokenizer.encode_batch([m.text for m in tiny_data.train])


def texts(data: NLUData) -> list[str]:
    return [m.text for m in data.messages[::4]]


@pytest.mark.parametrize(
    ("n_layers", "count", "wanted"),
    [
        (6, 1, [0]),
        (6, 2, [0, 5]),
        (12, 3, [0, 6, 11]),  # 5.5 to the even one
        (12, 4, [0, 4, 7, 11]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (2, 5, [0, 0, 0, 1, 1]),  # deeper: 0, .25, .5, .75, 1
        (6, 0, []),
        (0, 0, []),
    ],
)
def test_first_last_and_evenly_between(n_layers: int, count: int, wanted: list[int]) -> None:
    assert chosen_layers(n_layers, count) == wanted


def test_no_layer_can_be_made_of_none() -> None:
    with pytest.raises(
        ConfigError, match=r"^student: layers is 2; the model it is made of has none; allowed: none, or"
    ):
        chosen_layers(0, 2)


def test_of_equally_strong_ones_the_first() -> None:
    assert strongest(torch.tensor([1.0, 3.0, 1.0, 2.0]), 3) == [0, 1, 3]
    assert strongest(torch.tensor([1.0, 3.0]), 0) == []


def test_strength_by_hand(parent: NLUModel) -> None:
    layer = parent.encoder.layers[0]
    assert isinstance(layer, Layer)
    d = parent.encoder.config.head_size
    with torch.no_grad():
        layer.attention.qkv.weight.zero_()
        layer.attention.out.weight.zero_()
        # V rows of head 1 hold one 3 and one 4 (norm 5), its columns of Wo one 2.
        layer.attention.qkv.weight[2 * 3 * d + d, 0] = 3.0
        layer.attention.qkv.weight[2 * 3 * d + d + 1, 5] = 4.0
        layer.attention.out.weight[0, d] = 2.0
        layer.ffn.up.weight.zero_()
        layer.ffn.down.weight.zero_()
        layer.ffn.up.weight[7, :2] = torch.tensor([3.0, 4.0])
        layer.ffn.down.weight[3, 7] = -0.5
    assert head_norms(layer).tolist() == [0.0, 10.0, 0.0]
    assert neuron_norms(layer).tolist() == [0.0] * 7 + [2.5] + [0.0] * 29


def test_least_squares_by_hand() -> None:
    """y = 2 x + 1 exactly: the damping, 1e-4 of the mean square, moves it by less than 1e-2."""
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    found = least_squares(x, 2 * x + 1)
    assert found.bias is not None
    assert found.weight.item() == pytest.approx(2.0, abs=1e-2)
    assert found.bias.item() == pytest.approx(1.0, abs=1e-2)


def test_nothing_asked_for_is_the_parent(parent: NLUModel, tiny_data: NLUData) -> None:
    found = transformer_student(parent, Sizes(), ())
    assert same_bits(parent, found, texts(tiny_data))
    # and so is what is as large as the parent
    sizes = Sizes(layers=4, hidden=28, ffn=37, embedding=28)
    assert same_bits(parent, transformer_student(parent, sizes, ()), texts(tiny_data))


def test_layers_are_those_of_the_parent(parent: NLUModel) -> None:
    found = transformer_student(parent, Sizes(layers=2), ())
    assert found.encoder.config.layers == (LayerShape(heads=3, ffn=37), LayerShape(heads=3, ffn=30))
    for ours, theirs in ((0, 0), (1, 3)):
        a, b = found.encoder.layers[ours].state_dict(), parent.encoder.layers[theirs].state_dict()
        assert all(torch.equal(v, b[k]) for k, v in a.items())
    assert torch.equal(found.intent_head.weight, parent.intent_head.weight)


def test_repeated_layers_share_nothing(parent: NLUModel) -> None:
    found = transformer_student(parent, Sizes(layers=7), ())
    first, second = (found.encoder.layers[i] for i in (0, 1))  # both the parent's first: 0, .5
    assert isinstance(first, Layer)
    assert isinstance(second, Layer)
    assert torch.equal(first.ffn.up.weight, second.ffn.up.weight)
    with torch.no_grad():
        first.ffn.up.weight.zero_()
    assert second.ffn.up.weight.abs().max() > 0


def test_a_narrower_student(parent: NLUModel, encoded: list[Encoded], tiny_data: NLUData) -> None:
    found = transformer_student(parent, Sizes(hidden=14), encoded)
    # heads and neurons in proportion, to the even number where it is a half; one head at least
    assert found.encoder.config.layers == tuple(
        LayerShape(heads=heads, ffn=ffn) for heads, ffn in ((2, 18), (2, 10), (1, 10), (2, 15))
    )
    assert found.encoder.config.hidden == 14
    assert found.card.survivors is None
    assert all(np.isfinite(a).all() for a in all_logits(found, texts(tiny_data)))


def test_the_strongest_heads_and_neurons_stay(parent: NLUModel, encoded: list[Encoded]) -> None:
    layer = parent.encoder.layers[1]
    assert isinstance(layer, Layer)
    with torch.no_grad():
        for j in (2, 17):
            layer.ffn.up.weight[j] *= 100
    found = transformer_student(parent, Sizes(ffn=2), ())
    cut = found.encoder.layers[1]
    assert isinstance(cut, Layer)
    assert torch.equal(cut.ffn.up.weight, layer.ffn.up.weight[[2, 17]])
    assert torch.equal(cut.ffn.down.weight, layer.ffn.down.weight[:, [2, 17]])


@pytest.mark.parametrize(
    ("sizes", "what"),
    [
        (Sizes(hidden=29), "hidden is 29; the model it is made of has 28; allowed: up to 28"),
        (Sizes(ffn=38), "ffn is 38; the model it is made of has 37; allowed: up to 37"),
        (Sizes(embedding=29), "embedding is 29; the model it is made of has 28; allowed: up to 28"),
    ],
)
def test_more_than_the_parent_has_is_refused(parent: NLUModel, sizes: Sizes, what: str) -> None:
    with pytest.raises(ConfigError, match=f"^student: {what}, or base=small$"):
        transformer_student(parent, sizes, ())


def test_principal_rows_keep_what_varies(parent: NLUModel, encoded: list[Encoded]) -> None:
    """Rows that vary along two directions lose nothing at width 2: their inner products stay."""
    basis = torch.linalg.qr(torch.randn(28, 2, generator=torch.Generator().manual_seed(0))).Q
    basis -= basis.mean(dim=0)
    weights = torch.randn(len(parent.encoder.words.weight), 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        parent.encoder.words.weight.copy_(weights @ basis.t())
        parent.encoder.positions.weight.zero_()
    words, positions = principal_rows(parent, 2, encoded)
    theirs = parent.encoder.words.weight.detach()
    assert torch.allclose(words @ words.t(), theirs @ theirs.t(), atol=1e-4)
    assert torch.equal(positions, torch.zeros(40, 2))


def test_factorized_embeddings_are_fitted(parent: NLUModel, encoded: list[Encoded]) -> None:
    """The narrower, the worse. 27 of 28: nothing is lost but the mean of 27 numbers, which LayerNorm takes away."""
    ids = torch.from_numpy(encoded[0].ids)[None].long()
    with torch.no_grad():
        wanted = parent.encoder.embed(ids)
        errors = []
        for width in (4, 14, 27):
            found = factorized(parent, width, encoded)
            assert found.encoder.config.embedding == width
            assert found.encoder.words.weight.shape[1] == width
            errors.append(float((found.encoder.embed(ids) - wanted).square().mean() / wanted.square().mean()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1 / 27


def test_a_new_vocabulary_is_made_of_the_old_rows(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    parent = variant(tiny_model, "plain")
    source = train_tokenizer((m.text for m in tiny_data.train), 250)
    found = with_vocabulary(parent, source)
    old, new = (vocabulary(json.loads(m.tokenizer.source)) for m in (parent, found))
    rows, made = parent.encoder.words.weight, found.encoder.words.weight
    assert found.encoder.config.vocab_size == len(made) == found.tokenizer.n_ids
    shared = [token for token in new if token in old]
    assert "[CLS]" in shared
    assert all(torch.equal(made[new[token]], rows[old[token]]) for token in shared)
    assert torch.equal(parent.encoder.words.weight, rows)


def test_a_token_that_was_two_is_their_mean(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    small = train_tokenizer((m.text for m in tiny_data.train), 200)
    large = train_tokenizer((m.text for m in tiny_data.train), 400)
    parent = with_vocabulary(variant(tiny_model, "plain"), small)
    with torch.no_grad():
        parent.encoder.words.weight.copy_(torch.randn(parent.encoder.words.weight.shape))
    found = with_vocabulary(parent, large)
    old, new = (vocabulary(json.loads(m.tokenizer.source)) for m in (parent, found))
    token = next(t for t in new if t not in old and not t.startswith("##"))
    pieces = parent.tokenizer.encode(token).ids[1:-1]
    assert len(pieces) > 1
    wanted = parent.encoder.words.weight[torch.from_numpy(pieces).long()].mean(dim=0)
    assert torch.allclose(found.encoder.words.weight[new[token]], wanted)


@pytest.mark.parametrize(
    ("kind", "layers"),
    [("bilstm", (LSTMShape(),)), ("cnn", (ConvolutionShape(width=5),)), ("bag", ())],
)
def test_other_kinds_keep_the_embeddings(
    kind: str, layers: tuple[object, ...], parent: NLUModel, encoded: list[Encoded], tiny_data: NLUData
) -> None:
    found = light_student(parent, kind, Sizes(layers=1, hidden=12), 50, encoded)
    config = found.encoder.config
    assert (config.hidden, config.embedding, config.layers, config.ngrams) == (12, 0, layers, 50)
    words, _ = principal_rows(parent, 12, encoded)
    assert torch.equal(found.encoder.words.weight, words)
    assert isinstance(found.encoder.words.weight, nn.Parameter)
    assert found.labels == parent.labels
    assert all(np.isfinite(a).all() for a in all_logits(found, texts(tiny_data)))


def test_layers_wider_than_the_embeddings_have_a_projection(parent: NLUModel, encoded: list[Encoded]) -> None:
    found = light_student(parent, "cnn", Sizes(layers=2, hidden=40), 0, encoded)
    assert (found.encoder.config.hidden, found.encoder.config.embedding) == (40, 28)
    with pytest.raises(ConfigError, match=r"^student: embedding is 29; the model it is made of has 28"):
        light_student(parent, "cnn", Sizes(layers=2, hidden=40, embedding=29), 0, encoded)
