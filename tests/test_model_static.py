"""Static int8 in PyTorch: the numerics by hand, attention by integers, saving and loading of the steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_models import random_model, same_bits

from flyweight.artifact import Artifact
from flyweight.cli.answer import _groups
from flyweight.data.messages import NLUData
from flyweight.errors import ArtifactError
from flyweight.export.fly import _noise_effect, _stack, contents
from flyweight.forms.int8 import int8_rows
from flyweight.model.encoder import _int8_attention
from flyweight.model.linear import Embedding, Linear, quantize_static, set_form
from flyweight.model.nlu import NLUModel


def test_static_steps_by_hand() -> None:
    x = torch.tensor([0.0, 0.25, 0.75, 1.25, -0.25, -0.75, 63.4, 63.5, 1e9, -1e9, 2.0**-99])
    # in steps of 0.5: halves go to the even integer; +-127 steps are the ends
    wanted = [0, 0, 1, 1, 0, -1, 63.5, 63.5, 63.5, -63.5, 0]
    assert quantize_static(x, 0.5).tolist() == wanted
    linear = Linear(2, 1)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[2.0, 3.0]]))
        linear.bias.copy_(torch.tensor([10.0]))  # type: ignore[union-attr]
    linear.activations, linear.input_scale = "static", 0.5
    assert linear(torch.tensor([[0.8, -100.0]])).tolist() == [[2 * 1.0 - 3 * 63.5 + 10]]


def test_the_inverse_of_the_step_is_rounded_first() -> None:
    """x * (1 / s), not x / s: where the two differ, the engine's way is taken."""
    s = float(np.float32(0.1))
    x = np.arange(1, 100000, dtype=np.float32) * np.float32(0.0005)
    inv = np.float32(1) / np.float32(s)
    wanted = np.clip(np.rint(x * inv), -127, 127) * np.float32(s)
    assert np.array_equal(quantize_static(torch.from_numpy(x), s).numpy(), wanted)
    assert not np.array_equal(np.rint(x / np.float32(s)), np.rint(x * inv))


def test_int8_attention_by_hand() -> None:
    """One head of one number, two tokens; s_q = 0.5, s_k = 0.25, s_v = 2: score = 0.125 q8 k8."""
    q, k, v = (torch.tensor(x).reshape(1, 1, 2, 1) for x in ([1.0, -2.1], [0.5, 1.0], [6.0, -9.0]))
    found = _int8_attention(q, k, v, torch.zeros(1, 1, 1, 2), (0.5, 0.25, 2.0))
    # q8 = 2, -4 (-4.2); k8 = 2, 4; v8 = 3, -4 (-4.5 to even)
    # token 0: scores 0.5, 1: e8 = round(255 exp(-0.5)) = round(154.67) = 155, 255; y = (3*155 - 4*255) * 2 / 410
    # token 1: scores -1, -2: e8 = 255, round(255 exp(-1)) = round(93.81) = 94;     y = (3*255 - 4*94) * 2 / 349
    wanted = [(3 * 155 - 4 * 255) * 2 / 410, (3 * 255 - 4 * 94) * 2 / 349]
    assert found.flatten().tolist() == pytest.approx(wanted, rel=1e-6)


def test_a_bias_comes_after_the_scale_and_a_masked_token_counts_nothing() -> None:
    q, k, v = (torch.tensor(x).reshape(1, 1, 2, 1) for x in ([1.0, 1.0], [0.5, 0.5], [6.0, -9.0]))
    bias = torch.tensor([[0.0, -1.0], [0.0, -np.inf]]).reshape(1, 1, 2, 2)
    found = _int8_attention(q, k, v, bias, (0.5, 0.25, 2.0))
    # equal scores: token 0 weighs 255 and 94; token 1 sees the first token alone
    assert found.flatten().tolist() == pytest.approx([(3 * 255 - 4 * 94) * 2 / 349, 6.0], rel=1e-6)


def reference_attention(qkv: np.ndarray, heads: int, size: int, scales: tuple[float, float, float]) -> np.ndarray:
    """The definition in whole numbers, token by token. qkv (T, 3*H*d) float32 -> (T, H*d)."""
    s_q, s_k, s_v = (np.float32(s) for s in scales)
    parts = qkv.reshape(len(qkv), 3, heads, size)
    q8, k8, v8 = (
        np.clip(np.rint(parts[:, i] * (np.float32(1) / s)), -127, 127).astype(np.int64)
        for i, s in enumerate((s_q, s_k, s_v))
    )
    out = np.zeros((len(qkv), heads, size), np.float32)
    factor = s_q * s_k * np.float32(size**-0.5)
    for h in range(heads):
        for t in range(len(qkv)):
            score = (k8[:, h] @ q8[t, h]).astype(np.float32) * factor
            e8 = np.rint(np.float32(255) * np.exp(score - score.max())).astype(np.int64)
            out[t, h] = (e8 @ v8[:, h]).astype(np.float32) * (s_v / np.float32(e8.sum()))
    return out.reshape(len(qkv), heads * size)


def test_the_layer_multiplies_as_defined(tiny_model: NLUModel) -> None:
    model = random_model(tiny_model, layers=((3, 37),), std=0.4)
    attention = model.encoder.layers[0].attention
    scales = tuple(float(np.float32(s)) for s in (0.03, 0.02, 0.025))
    attention.qkv.output_scales = (scales[0], scales[1], scales[2])
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 9, 28)).astype(np.float32))
    caught: list[torch.Tensor] = []
    attention.out.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    with torch.no_grad():
        attention(x, torch.zeros(1, 1, 1, 9), None, 0.0)
        wanted = reference_attention(attention.qkv(x)[0].numpy(), 3, 7, attention.qkv.output_scales)
    assert np.abs(caught[0][0].numpy() - wanted).max() <= 1e-6 * np.abs(wanted).max()


def test_gradients_pass_through_int8_attention(tiny_model: NLUModel) -> None:
    """Straight through: near the gradient of float attention, and none is zero or NaN."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 6, 8, requires_grad=True) for _ in range(3))
    mask = torch.zeros(2, 1, 1, 6)
    mask[1, ..., 4:] = -torch.inf
    weights = torch.randn(2, 3, 6, 8)
    (_int8_attention(q, k, v, mask, (0.035, 0.035, 0.035)) * weights).sum().backward()
    found = [a.grad.clone() for a in (q, k, v)]  # type: ignore[union-attr]
    for a in (q, k, v):
        a.grad = None
    ((torch.softmax(q @ k.transpose(-1, -2) * 8**-0.5 + mask, -1) @ v) * weights).sum().backward()
    for a, b in zip(found, (q, k, v), strict=True):
        assert b.grad is not None
        assert (a - b.grad).norm() <= 0.03 * b.grad.norm()


def static_model(like: NLUModel) -> NLUModel:
    """int8 weights, static inputs in steps of 1/16 and more, int8 attention in the first layer."""
    model = random_model(like)
    for i, (_, module, _) in enumerate(model.matrices()):
        form = int8_rows(module.weight.detach().numpy())
        set_form(module, form, "float" if isinstance(module, Embedding) else "static")
        if isinstance(module, Linear):
            module.input_scale = float(np.float32(0.01 + 0.001 * i))
    model.encoder.layers[0].attention.qkv.output_scales = (0.0625, 0.03125, 0.5)
    return model


def test_steps_are_saved_and_loaded(tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path) -> None:
    model = static_model(tiny_model)
    found = NLUModel.load(model.save(tmp_path / "m"))
    assert same_bits(model, found, [m.text for m in tiny_data.messages])
    entries = contents(model)[0]["weights"]
    assert contents(found)[0]["weights"] == entries
    up = entries["layers.0.ffn.up"]
    assert (up["activations"], up["input_scale"], up["layout"]) == ("static", float(np.float32(0.014)), "panels")
    assert entries["layers.0.attention.qkv"]["output_scales"] == [0.0625, 0.03125, 0.5]
    assert "output_scales" not in entries["layers.1.attention.qkv"]
    assert "input_scale" not in entries["embeddings.words"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"input_scale": 0.0}, "has the step 0.0; allowed: float32 numbers from 2.-60 to 2.60"),
        ({"input_scale": 0.1}, "has the step 0.1; allowed: float32 numbers"),
        ({"activations": "int8"}, "has activations 'int8'; 'static' needs an input_scale, others have none"),
        ({"activations": "int4"}, "has activations 'int4'; allowed: float, int8, static"),
        ({"output_scales": [1.0, 1.0, 1.0]}, r"has output_scales \[1.0, 1.0, 1.0\]; allowed: a list of three, at an"),
    ],
)
def test_a_model_folder_is_read_with_distrust(
    change: dict[str, Any], said: str, tiny_model: NLUModel, tmp_path: Path
) -> None:
    folder = static_model(tiny_model).save(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["weights"]["layers.1.ffn.down"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=rf"layers\.1\.ffn\.down {said}"):
        NLUModel.load(folder)


def test_the_golden_tolerance_counts_all_that_is_rounded(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    """Also where int8 attention is the only rounding there is."""
    model = random_model(tiny_model)
    encoded = model.tokenizer.encode_batch([m.text for m in tiny_data.train[:8]])
    assert _noise_effect(model, encoded, _stack(model.logits(encoded))) == 0
    model.encoder.layers[1].attention.qkv.output_scales = (0.0625, 0.0625, 0.0625)
    assert _noise_effect(model, encoded, _stack(model.logits(encoded))) > 0


def test_inspect_shows_what_is_static_and_what_is_not(tiny_model: NLUModel) -> None:
    model = static_model(tiny_model)
    down = model.encoder.layers[1].ffn.down
    down.activations, down.input_scale = "int8", None
    manifest, arrays = contents(model)
    shown = {group.name: group.activations for group in _groups(Artifact(Path("m.fly"), manifest, arrays, 0))}
    assert shown["layers.0.attention.qkv"] == "static, int8 attention"
    assert shown["layers.1.attention.qkv"] == shown["layers.0.ffn.down"] == "static"
    assert shown["layers.1.ffn.down"] == "int8"
