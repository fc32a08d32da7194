"""LSTM, convolution, bigrams and max pooling in PyTorch: numbers by hand, torch's own LSTM, padding, JSON, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_models import KINDS, all_logits, largest_difference, random_model, same_bits, variant
from torch import Tensor, nn

from flyweight.artifact import RECURRENT_STEP
from flyweight.data.messages import NLUData
from flyweight.errors import CheckpointError, ConfigError
from flyweight.forms.int8 import int8_rows
from flyweight.model.convolution import ConvolutionLayer
from flyweight.model.encoder import ConvolutionShape, Encoder, EncoderConfig, LayerShape, LSTMShape, masked
from flyweight.model.linear import Recurrent, computes, quantize_static, set_computes, set_form
from flyweight.model.nlu import NLUModel, pad
from flyweight.model.recurrent import LSTMLayer
from flyweight.model.surgery import keep_heads, keep_layers, keep_tokens
from flyweight.positions import bigram_buckets
from flyweight.training.inputs import second_moment, stages
from flyweight.training.quantizers import DynamicInput, Int8Rows, RealTokens, StaticInput, pack_quantized

LN3 = math.log(3)  # sigmoid(ln 3) = 3/4, tanh(ln 3) = 4/5, tanh(ln 3 / 2) = 1/2


def mask_of(lengths: list[int], n_tokens: int) -> Tensor:
    """Additive mask (B, 1, 1, T)."""
    real = torch.arange(n_tokens)[None] < torch.tensor(lengths)[:, None]
    return torch.zeros(real.shape).masked_fill(~real, -math.inf)[:, None, None]


def bare_lstm(hidden: int) -> LSTMLayer:
    """Its output is x + [h forward ; h backward], without norm."""
    layer = LSTMLayer(hidden, 1e-12)
    layer.norm = nn.Identity()  # type: ignore[assignment]
    return layer


# LSTM ---------------------------------------------------------------------------------------------------------------


def test_lstm_by_hand() -> None:
    layer = bare_lstm(2).eval()  # one unit a direction
    assert layer.input.bias is not None
    with torch.no_grad():
        for weight in (layer.input.weight, layer.ahead.weight, layer.back.weight):
            weight.zero_()
        # forward i = 3/4, f = 1/2, g = 1/2, o = 3/4;  backward i = 1/2, f = 3/4, g = 4/5, o = 1/2
        layer.input.bias.copy_(torch.tensor([LN3, 0, LN3 / 2, LN3, 0, LN3, LN3, 0]))
    x = torch.zeros(2, 3, 2)
    y = layer(x, mask_of([3, 2], 3), None, 0.0)
    tanh = math.tanh
    # c_1 = 3/8, c_2 = 3/16 + 3/8 = 9/16, c_3 = 9/32 + 3/8 = 21/32
    forward = [0.75 * tanh(3 / 8), 0.75 * tanh(9 / 16), 0.75 * tanh(21 / 32)]
    # c_1 = 2/5, c_2 = 3/10 + 2/5 = 7/10, c_3 = 21/40 + 2/5 = 37/40; the last token is read first
    backward = [0.5 * tanh(2 / 5), 0.5 * tanh(7 / 10), 0.5 * tanh(37 / 40)]
    assert np.allclose(y[0, :, 0].tolist(), forward, atol=1e-6)
    assert np.allclose(y[0, :, 1].tolist(), backward[::-1], atol=1e-6)
    assert np.allclose(y[1, :2, 0].tolist(), forward[:2], atol=1e-6)
    assert np.allclose(y[1, :2, 1].tolist(), backward[1::-1], atol=1e-6)


def test_recurrent_weights_by_hand() -> None:
    """R is 0 but at g, where R h_1 = ln 3 / 2."""
    layer = bare_lstm(2).eval()
    assert layer.input.bias is not None
    h1 = 0.75 * math.tanh(0.5 * 0.5)
    with torch.no_grad():
        for weight in (layer.input.weight, layer.ahead.weight, layer.back.weight):
            weight.zero_()
        layer.ahead.weight[2, 0] = LN3 / 2 / h1
        layer.input.bias.copy_(torch.tensor([0, 0, LN3 / 2, LN3, 0, 0, 0, 0]))
    y = layer(torch.zeros(1, 2, 2), mask_of([2], 2), None, 0.0)
    # c_1 = 1/4, g_2 = tanh(ln 3 / 2 + ln 3 / 2) = 4/5, c_2 = 1/8 + 2/5 = 21/40
    assert np.allclose(y[0, :, 0].tolist(), [h1, 0.75 * math.tanh(21 / 40)], atol=1e-6)


@pytest.mark.parametrize("training", [True, False])  # training with floats is torch's own LSTM
@pytest.mark.parametrize("lengths", [[7, 3, 1, 7], [1], [5, 5]])
def test_lstm_and_its_gradients_are_those_of_torch(lengths: list[int], training: bool) -> None:
    torch.manual_seed(0)
    B, T, D, u = len(lengths), max(lengths), 10, 5
    layer, other = bare_lstm(D).train(training), nn.LSTM(D, u, bidirectional=True, batch_first=True)
    assert layer.input.bias is not None
    with torch.no_grad():
        for name, found in (
            ("weight_ih_l0", layer.input.weight[: 4 * u]),
            ("weight_ih_l0_reverse", layer.input.weight[4 * u :]),
            ("weight_hh_l0", layer.ahead.weight),
            ("weight_hh_l0_reverse", layer.back.weight),
            ("bias_ih_l0", layer.input.bias[: 4 * u]),
            ("bias_ih_l0_reverse", layer.input.bias[4 * u :]),
        ):
            getattr(other, name).copy_(found)
        other.bias_hh_l0.zero_()
        other.bias_hh_l0_reverse.zero_()
    mask = mask_of(lengths, T)
    real = (mask[:, 0, 0] == 0)[..., None]
    x = torch.randn(B, T, D)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = layer(ours, mask, None, 0.0) - ours
    packed = nn.utils.rnn.pack_padded_sequence(theirs, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    wanted, _ = nn.utils.rnn.pad_packed_sequence(other(packed)[0], batch_first=True)
    assert torch.allclose(y * real, wanted * real, atol=1e-6)
    g = torch.randn(B, T, D) * real
    (y * g).sum().backward()
    (wanted * g).sum().backward()
    for found, gradient in (
        (ours.grad, theirs.grad),
        (layer.ahead.weight.grad, other.weight_hh_l0.grad),
        (layer.back.weight.grad, other.weight_hh_l0_reverse.grad),
        (layer.input.weight.grad, torch.cat([other.weight_ih_l0.grad, other.weight_ih_l0_reverse.grad])),  # type: ignore[list-item]
    ):
        assert found is not None
        assert torch.allclose(found, gradient, atol=1e-5)


def test_rounded_h_passes_its_gradient_straight_through() -> None:
    """Forward and backward against the plain loop, h rounded to 1/127 before each product."""
    torch.manual_seed(1)
    u, T = 3, 5
    layer = bare_lstm(2 * u)
    for recurrent in (layer.ahead, layer.back):
        set_form(recurrent, int8_rows(recurrent.weight.detach().numpy()), "int8")
    x = torch.randn(1, T, 2 * u, requires_grad=True)
    (y,) = layer(x, mask_of([T], T), None, 0.0) - x
    gates = layer.input(x)[0]

    def direction(rows: Tensor, weight: Tensor) -> list[Tensor]:
        h, c, found = torch.zeros(u), torch.zeros(u), []
        for row in rows:
            i, f, g, o = (row + weight @ quantize_static(h, RECURRENT_STEP)).split(u)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            found.append(h)
        return found

    ahead = direction(gates[:, : 4 * u], layer.ahead.weight)
    back = direction(gates.flip(0)[:, 4 * u :], layer.back.weight)[::-1]
    wanted = torch.cat([torch.stack(ahead), torch.stack(back)], dim=1)
    assert torch.allclose(y, wanted, atol=1e-6)
    g = torch.randn(T, 2 * u)
    of = [x, layer.ahead.weight, layer.back.weight]
    found = torch.autograd.grad((y * g).sum(), of, retain_graph=True)
    pairs = zip(found, torch.autograd.grad((wanted * g).sum(), of), strict=True)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


def test_a_recurrent_matrix_is_float_or_in_constant_steps() -> None:
    module = Recurrent(3)
    assert module.weight.shape == (12, 3)
    assert module.bias is None
    assert computes(module) == {"activations": "float"}
    form = int8_rows(module.weight.detach().numpy())
    for activations in ("int8", "static"):
        set_form(module, form, activations)  # type: ignore[arg-type]
        assert computes(module) == {"activations": "static", "input_scale": RECURRENT_STEP}
        module.input_scale = 0.5
        assert module.input_scale == RECURRENT_STEP
    set_computes(module, {"activations": "float"})
    assert computes(module) == {"activations": "float"}
    h = torch.tensor([[1.0, -0.5, 0.003]])  # 127, -63.5 -> -64, 0.381 -> 0
    assert torch.equal(module.multiplied(h), h)
    set_form(module, form, "int8")
    assert (module.multiplied(h) / RECURRENT_STEP).round().tolist() == [[127, -64, 0]]
    # Python's own arithmetic: float32(1/127) is the step, and its inverse is 127 to the bit.
    assert np.float32(1) / np.float32(RECURRENT_STEP) == np.float32(127)


# convolution --------------------------------------------------------------------------------------------------------


def test_convolution_by_hand() -> None:
    layer = ConvolutionLayer(1, 3, torch.relu, 1e-12)
    layer.norm = nn.Identity()  # type: ignore[assignment]
    assert layer.convolution.bias is not None
    with torch.no_grad():
        layer.convolution.weight.copy_(torch.tensor([[1.0, 10, 100]]))
        layer.convolution.bias.fill_(-300)
    x = torch.tensor([[1.0, 2, 3], [4, 5, 6]])[..., None]  # the second message has two tokens
    y = layer(x, mask_of([3, 2], 3), None, 0.0)[..., 0]
    # 10 + 200 - 300 < 0;  1 + 20 + 300 - 300 = 21;  2 + 30 - 300 < 0;    40 + 500 - 300 = 240;  4 + 50 - 300 < 0
    assert y[0].tolist() == [1, 2 + 21, 3]
    assert y[1, :2].tolist() == [4 + 240, 5]


def test_columns_of_a_convolution_are_neighbour_major() -> None:
    layer = ConvolutionLayer(2, 3, lambda x: x, 1e-12)
    layer.norm = nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        layer.convolution.weight.zero_()
        layer.convolution.weight[0, 1] = 1.0  # x_{t-1}, second number
        layer.convolution.weight[1, 4] = 1.0  # x_{t+1}, first number
    x = torch.tensor([[[1.0, 2], [3, 4], [5, 6]]])
    assert (layer(x, mask_of([3], 3), None, 0.0) - x).tolist() == [[[0, 3], [2, 5], [4, 0]]]


# padding ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer", [LSTMLayer(6, 1e-12), LSTMLayer(6, 1e-12).eval(), ConvolutionLayer(6, 5, torch.tanh, 1e-12)]
)
def test_padding_is_never_read(layer: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6, 6)
    lengths = [6, 2, 1]
    for b, n in enumerate(lengths):
        x[b, n:] = math.nan
    y = layer(x, mask_of(lengths, 6), None, 0.0)
    for b, n in enumerate(lengths):
        alone = layer(x[b : b + 1, :n], mask_of([n], n), None, 0.0)
        assert torch.allclose(y[b, :n], alone[0], atol=1e-6)
        assert y[b, :n].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_in_a_batch_change_nothing(kind: str, tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model, texts = variant(tiny_model, kind), [m.text for m in tiny_data.test]
    alone = [a for text in texts for a in all_logits(model, [text])]
    assert largest_difference(all_logits(model, texts), alone) <= 2e-6


# bigrams ------------------------------------------------------------------------------------------------------------


def bucket(a: int, b: int, n: int) -> int:
    """In Python's integers."""
    h = (a * 0x9E3779B1 + b) % 2**32
    h ^= h >> 16
    h = h * 0x85EBCA6B % 2**32
    h ^= h >> 13
    h = h * 0xC2B2AE35 % 2**32
    return (h ^ h >> 16) % n


def test_buckets_of_bigrams() -> None:
    ids = np.array([[101, 7, 7, 30521], [0, 0, 0, 2**31 - 1]], np.int32)
    for n in (1, 7, 1000, 2**31 - 1):
        wanted = [[bucket(a, b, n) for a, b in zip([0xFFFFFFFF, *row], row, strict=False)] for row in ids.tolist()]
        assert bigram_buckets(ids, n).tolist() == wanted
    assert bigram_buckets(np.array([2, 5, 3]), 1000).tolist() == [424, 939, 472]  # a row alone; pinned
    assert bigram_buckets(np.zeros((0,), np.int64), 5).tolist() == []


def test_bigrams_are_added_before_the_norm() -> None:
    config = EncoderConfig(vocab_size=9, hidden=4, head_size=2, layers=(), max_positions=5, ngrams=11)
    encoder = Encoder(config, dropout=0.0)
    assert encoder.ngrams is not None
    assert not encoder.ngrams.weight.any()  # what no message has taught says nothing
    nn.init.normal_(encoder.ngrams.weight)
    ids = torch.tensor([[3, 8, 8]])
    rows = torch.tensor([bucket(0xFFFFFFFF, 3, 11), bucket(3, 8, 11), bucket(8, 8, 11)])
    x = encoder.words.weight[ids[0]] + encoder.positions.weight[:3] + encoder.ngrams.weight[rows]
    assert torch.allclose(encoder(ids, torch.ones(1, 3, dtype=torch.bool))[0], encoder.norm(x))


def test_max_pooling_lets_nan_through(tiny_model: NLUModel) -> None:
    model = random_model(tiny_model, layers=(), pooling="max")
    hidden = torch.zeros(2, 3, 28)
    hidden[0, 1, 5], hidden[1, 2, 5] = math.nan, math.nan
    pooled = model.pool(hidden, torch.tensor([[True, True, True], [True, True, False]]))
    assert pooled[0].isnan().sum() == 1
    assert pooled[1].isfinite().all()


# JSON and folders ---------------------------------------------------------------------------------------------------


def config(**fields: Any) -> EncoderConfig:
    """Of hidden 6 with three layers, unless said otherwise."""
    layers = (LSTMShape(), ConvolutionShape(width=3), LayerShape(heads=2, ffn=5))
    given = {"vocab_size": 9, "hidden": 6, "head_size": 3, "layers": layers, "max_positions": 8} | fields
    return EncoderConfig(**given)


def test_shapes_as_json() -> None:
    made = config(ngrams=100)
    fields = made.to_dict()
    assert fields["layers"] == [{"lstm": True}, {"convolution": 3}, {"heads": 2, "ffn": 5}]
    assert EncoderConfig.from_dict(fields) == made
    del fields["ngrams"]  # files of before
    assert EncoderConfig.from_dict(fields) == config()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([{"lstm": False}], r"a layer is \{'lstm': False\}; allowed: \{\"heads\": H"),
        ([{"lstm": True, "heads": 1, "ffn": 2}], r"a layer is .*; allowed: "),
        ([{"gru": True}], r"a layer is \{'gru': True\}; allowed: "),
        ([{"convolution": 4}], "a convolution has width 4; allowed: odd whole numbers from 1 to 15"),
        ([{"convolution": 17}], "a convolution has width 17; allowed: "),
        ([{"convolution": True}], "a convolution has width True; allowed: "),
        ([{"convolution": -1}], "a convolution has width -1; allowed: "),
    ],
)
def test_wrong_layers_are_refused(layers: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        EncoderConfig.from_dict(config().to_dict() | {"layers": layers})


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(CheckpointError, match="encoder field hidden is 7; an LSTM layer has half of it a direction"):
        config(hidden=7)
    config(hidden=7, layers=(ConvolutionShape(width=1),))
    with pytest.raises(CheckpointError, match="encoder field ngrams is -1; it must be 0 or more"):
        config(ngrams=-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_saved_and_loaded_it_is_the_same(kind: str, packed: bool, tiny_model: NLUModel, tmp_path: Path) -> None:
    model = variant(tiny_model, kind)
    for _, module, part in model.matrices() if packed else ():
        set_form(module, int8_rows(module.weight.detach().numpy()), "float" if part == "embeddings" else "int8")
    found = NLUModel.load(model.save(tmp_path))
    assert found.encoder.config == model.encoder.config
    assert [name for name, _, _ in found.matrices()] == [name for name, _, _ in model.matrices()]
    assert same_bits(model, found, model.card.golden)


def test_names_and_shapes_of_what_is_stored(tiny_model: NLUModel) -> None:
    model = variant(tiny_model, "kinds mixed")
    shapes = {name: tuple(module.weight.shape) for name, module, _ in model.matrices()}
    assert shapes["layers.0.convolution"] == (28, 84)
    assert shapes["layers.1.lstm.input"] == (112, 28)
    assert shapes["layers.1.lstm.forward"] == shapes["layers.1.lstm.backward"] == (56, 14)
    assert shapes["embeddings.ngrams"] == (64, 28)
    vectors = dict(model.vectors())
    assert {name for name in vectors if name.startswith(("layers.0.", "layers.1."))} == {
        "layers.0.convolution.bias", "layers.0.convolution.norm.weight", "layers.0.convolution.norm.bias",
        "layers.1.lstm.input.bias", "layers.1.lstm.norm.weight", "layers.1.lstm.norm.bias",
    }  # fmt: skip


# training and techniques --------------------------------------------------------------------------------------------


def test_stages_show_what_recurrent_matrices_multiply(tiny_model: NLUModel) -> None:
    """H = sum of h_{t-1} h_{t-1}^T, rounded to steps of 1/127, over all tokens and messages."""
    model = random_model(tiny_model, layers=("lstm", 3))
    encoded = model.tokenizer.encode_batch(["book a flight", "hello", "hello bot, good morning"])
    found = {}
    modules = {name: module for name, module, _ in model.matrices()}
    for stage in stages(model, encoded):
        for name in stage.names:
            found[name] = second_moment(modules[name], stage.replay)  # type: ignore[arg-type]
    layers = ["layers.0.lstm.input", "layers.0.lstm.forward", "layers.0.lstm.backward", "layers.1.convolution"]
    assert list(found)[:4] == layers
    wanted = {"forward": torch.zeros(14, 14), "backward": torch.zeros(14, 14)}
    layer = model.encoder.layers[0]
    assert isinstance(layer, LSTMLayer)
    layer.norm = nn.Identity()  # type: ignore[assignment]
    for e in encoded:
        with torch.no_grad():
            x = model.encoder.embed(pad([e.ids])[0])
            y = (layer(x, mask_of([len(e.ids)], len(e.ids)), None, 0.0) - x)[0]
        before = {"forward": y[:-1, :14], "backward": y[1:, 14:]}
        for direction, h in before.items():
            q = quantize_static(h, RECURRENT_STEP)
            wanted[direction] += q.t() @ q
    for direction, h in wanted.items():
        assert torch.allclose(found[f"layers.0.lstm.{direction}"], h, atol=1e-4)


@pytest.mark.parametrize("inputs", ["dynamic", "static"])
def test_what_training_simulates_is_what_is_packed(inputs: str, tiny_data: NLUData, tiny_model: NLUModel) -> None:
    model, tokens = variant(tiny_model, "kinds mixed"), RealTokens()
    for _, module, part in model.matrices():
        module.weight_quantizer = Int8Rows()
        if part != "embeddings":
            module.input_quantizer = DynamicInput() if inputs == "dynamic" else StaticInput(tokens)  # type: ignore[union-attr]
    ids, mask = pad([e.ids for e in model.tokenizer.encode_batch([m.text for m in tiny_data.train[:9]])])
    tokens.mask = mask
    if inputs == "static":
        model.train()
        _, hidden = model(ids, mask)  # ranges are watched
        model.tag_logits(hidden[:, 0])
    model.eval()
    texts = [m.text for m in tiny_data.test]
    before = all_logits(model, texts)
    packed = pack_quantized(model)
    assert largest_difference(all_logits(packed, texts), before) <= 1e-6
    computed = {name: computes(module)["activations"] for name, module, _ in packed.matrices()}
    assert computed["layers.1.lstm.forward"] == computed["layers.1.lstm.backward"] == "static"
    assert computed["layers.1.lstm.input"] == computed["layers.0.convolution"] == inputs.replace("dynamic", "int8")


def test_what_knows_transformers_alone_refuses_others(tiny_model: NLUModel) -> None:
    lstm, bag = variant(tiny_model, "lstm"), variant(tiny_model, "bag")
    for call, who in (
        (lambda: keep_heads(lstm, {0: [0]}), "removing structure"),
        (lambda: keep_layers(lstm, [0]), "removing structure"),
        (lambda: masked(lstm, heads={}).__enter__(), "masking heads and neurons"),
    ):
        with pytest.raises(ConfigError, match=f"^{who} works on transformer layers, but layers.0 is of kind lstm"):
            call()
    with pytest.raises(ConfigError, match=r"^the model has rows of token bigrams, found by the tokens' ids"):
        keep_tokens(bag, range(9))
