"""The joint model: batches and padding change nothing, saving keeps every bit, parts of size zero work."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flyweight.answers import Labels
from flyweight.data.messages import NLUData
from flyweight.errors import CheckpointError, ConfigError, DataError, FlyweightError
from flyweight.forms import Form
from flyweight.forms.codes import codes_from_centres
from flyweight.forms.int8 import int8_matrix, int8_rows
from flyweight.forms.kmeans import centres
from flyweight.model.encoder import EncoderConfig, LayerShape
from flyweight.model.linear import Linear, quantize_activations, set_form
from flyweight.model.nlu import POOLINGS, NLUModel, Pooling, pad
from flyweight.model.small import train_tokenizer
from flyweight.runtime.reference import quantize_rows
from flyweight.tokenizer import Tokenizer
from flyweight.training.teacher import build, golden_messages

# float32 logits of order 1 after two layers; padding and batching only change the order of sums.
PADDING = 1e-5
TEXTS = [
    "book a flight from Berlin to New York tomorrow",
    "hi",
    "",
    "will it rain in San Francisco?",
    "🌧️ in Oslo 😀?",
    "what is the weather in Rome " * 9,
]
Maker = Callable[[np.ndarray], Form]
MAKERS: dict[str, Maker] = {
    "int8 row": int8_rows,
    "int8 matrix": int8_matrix,
    "codes row": lambda w: codes_from_centres(w, centres(w, 16) if w.size else np.zeros((1, 16)), True),
    "codes matrix": lambda w: codes_from_centres(w, centres(w.reshape(1, -1), 5) if w.size else np.zeros((1, 5)), True),
}


def make(
    layers: tuple[tuple[int, int], ...] = ((2, 12), (3, 20)),
    entities: tuple[str, ...] = ("city", "date"),
    pooling: Pooling = "mean",
    n_buckets: int = 0,
) -> NLUModel:
    """A random model of width 16; weights large enough that every part shows."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(train_tokenizer([*TEXTS, "good morning"], 300), 24)
    config = EncoderConfig(
        vocab_size=tokenizer.vocab_size + 3,
        hidden=16,
        head_size=4,
        layers=tuple(LayerShape(heads=h, ffn=f) for h, f in layers),
        max_positions=24,
        relative_buckets=n_buckets,
    )
    model = NLUModel(config, tokenizer, Labels(("greet", "fly", "rain"), entities), pooling=pooling)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.3)
    return model.eval()


def packed(model: NLUModel, kind: str) -> NLUModel:
    """A copy with every matrix in one kind of form (embeddings: float activations)."""
    model = model.copy()
    for _, module, _ in model.matrices():
        set_form(
            module, MAKERS[kind](module.weight.detach().numpy()), "int8" if isinstance(module, Linear) else "float"
        )
    return model


def logits(model: NLUModel, texts: list[str]) -> list[np.ndarray]:
    """Intent and tag logits of each text, one after another."""
    found = model.logits(model.tokenizer.encode_batch(texts))
    return [a for intent, tags in found for a in (intent, *([] if tags is None else [tags]))]


def same_bits(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# batches and padding ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_buckets", [0, 8])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_answers_of_a_batch_are_the_answers_alone(pooling: Pooling, n_buckets: int) -> None:
    model = make(pooling=pooling, n_buckets=n_buckets)
    together = model.logits(model.tokenizer.encode_batch(TEXTS))
    for text, (intent, tags) in zip(TEXTS, together, strict=True):
        [(alone, alone_tags)] = model.logits([model.tokenizer.encode(text)])
        assert intent.shape == (3,)
        assert intent.dtype == np.float32
        assert tags is not None
        assert alone_tags is not None
        assert tags.shape == alone_tags.shape
        assert np.abs(intent - alone).max() <= PADDING
        assert np.abs(tags - alone_tags).max(initial=0) <= PADDING


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_does_not_change_logits(pooling: Pooling) -> None:
    model = make(pooling=pooling, n_buckets=8)
    ids, mask = pad([model.tokenizer.encode(TEXTS[0]).ids])
    with torch.no_grad():
        plain, hidden = model(ids, mask)
        for content in (0, 7):  # whatever stands behind the message
            wider = torch.cat([ids, torch.full((1, 8), content)], 1)
            wide_mask = torch.cat([mask, torch.zeros((1, 8), dtype=torch.bool)], 1)
            found, wide_hidden = model(wider, wide_mask)
            assert (found - plain).abs().max() <= PADDING
            assert (wide_hidden[:, : ids.shape[1]] - hidden).abs().max() <= PADDING


def test_more_messages_than_a_batch_keep_their_order(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    texts = [m.text for m in tiny_data.messages] * 2  # 168 messages, batches of 64
    alone = {text: tiny_model.answers([text])[0] for text in set(texts)}
    for answer, text in zip(tiny_model.answers(texts), texts, strict=True):
        assert answer.text == text
        assert answer.frame == alone[text].frame
    assert tiny_model.answers([]) == []


def test_the_tiny_model_has_learnt_something(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    right = [a.intent == m.intent for m, a in zip(tiny_data.test, tiny_model.answers([m.text for m in tiny_data.test]),
                                                  strict=True)]  # fmt: skip
    assert sum(right) >= 10
    found = tiny_model.parse("will it rain in NYC")
    assert found["intent"]["name"] == "weather"
    assert found["entities"] == [{"entity": "city", "start": 16, "end": 19, "value": "New York"}]


def test_logits_leave_the_mode_and_draw_nothing() -> None:
    model = make().train()
    before = torch.get_rng_state()
    first = logits(model, TEXTS)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)  # no dropout
    assert same_bits(first, logits(model.eval(), TEXTS))


# pooling and heads --------------------------------------------------------------------------------------------------


def test_poolings_by_hand() -> None:
    hidden = torch.tensor([[[1.0, 2], [3, 6], [50, 50]], [[5, 1], [7, 3], [9, 5]]]).repeat(1, 1, 8)  # (2, 3, 16)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert make(pooling="mean").pool(hidden, mask)[:, :2].tolist() == [[2, 4], [7, 3]]
    assert make(pooling="max").pool(hidden, mask)[:, :2].tolist() == [[3, 6], [9, 5]]
    assert make(pooling="cls").pool(hidden, mask)[:, :2].tolist() == [[1, 2], [5, 1]]
    model = make(pooling="cls+tanh")
    assert model.pooler is not None
    wanted = torch.tanh(hidden[:, 0] @ model.pooler.weight.T + model.pooler.bias)
    assert torch.allclose(model.pool(hidden, mask), wanted)


def test_unknown_pooling_and_foreign_tokenizer_are_refused() -> None:
    model = make()
    with pytest.raises(ConfigError, match=r"pooling is 'min'; allowed: mean, max, cls, cls\+tanh"):
        NLUModel(model.encoder.config, model.tokenizer, model.labels, pooling="min")  # type: ignore[arg-type]
    small = EncoderConfig(vocab_size=5, hidden=16, head_size=4, layers=(), max_positions=24)
    with pytest.raises(
        CheckpointError, match=r"the tokenizer has .* ids, the model 5 word embeddings; they must come from"
    ):
        NLUModel(small, model.tokenizer, model.labels)


def test_a_model_without_entities() -> None:
    model = make(entities=())
    assert model.tag_head is None
    assert all(tags is None for _, tags in model.logits(model.tokenizer.encode_batch(TEXTS)))
    assert [a.entities for a in model.answers(TEXTS)] == [()] * len(TEXTS)
    assert "heads.tags" not in [name for name, _, _ in model.matrices()]


def test_every_parameter_has_one_name_in_the_file() -> None:
    for model in (make(), make(pooling="cls+tanh", n_buckets=8), make(entities=())):
        named = [m.weight for _, m, _ in model.matrices()] + [v for _, v in model.vectors()]
        assert len({id(p) for p in named}) == len(named)
        assert {id(p) for p in named} == {id(p) for p in model.parameters()}
        names = [n for n, _, _ in model.matrices()] + [n for n, _ in model.vectors()]
        assert len(set(names)) == len(names)
        assert model.n_parameters() == sum(p.numel() for p in named)
        assert model.size_bytes() == 4 * model.n_parameters()


# long, empty and odd messages ---------------------------------------------------------------------------------------


def test_long_messages_lose_their_tail() -> None:
    model = make()
    encoded = model.tokenizer.encode(TEXTS[5])
    assert len(encoded.ids) == 24
    short = model.tokenizer.encode("hi")
    assert (encoded.ids[0], encoded.ids[-1]) == (short.ids[0], short.ids[-1])  # special tokens stay
    assert len(encoded.words) == len(encoded.first) <= 22
    [(_, tags)] = model.logits([encoded])
    assert tags is not None
    assert len(tags) == len(encoded.words)
    assert all(e.end <= len(TEXTS[5]) for e in model.answers([TEXTS[5]])[0].entities)


def test_empty_messages_have_an_intent_and_no_entities() -> None:
    model = make()
    for text in ("", "  ", "\n\t"):
        encoded = model.tokenizer.encode(text)
        assert (len(encoded.ids), len(encoded.words)) == (2, 0)
        answer = model.answers([text])[0]
        assert answer.entities == ()
        assert answer.probabilities.sum() == pytest.approx(1, abs=1e-12)
        assert model.parse(text)["text"] == text


def test_offsets_are_characters_of_the_text() -> None:
    model = make()
    text = "🌧️ in Oslo 😀? É"
    words = [text[a:b] for a, b in model.tokenizer.encode(text).words]
    assert [w for w in words if w.isascii()] == ["in", "Oslo", "?"]
    assert words[-1] == "É"
    assert model.answers([text])[0].text == text


def test_half_a_surrogate_pair_is_a_replacement_character() -> None:
    model = make()  # JSON may bring one: "\\ud83d" without its second half
    text = "in \ud83d Oslo"
    assert model.tokenizer.encode(text).words == model.tokenizer.encode("in \ufffd Oslo").words
    assert text[slice(*model.tokenizer.encode(text).words[-1])] == "Oslo"
    assert [a.text for a in model.answers(["hi", text])] == ["hi", text]


@given(st.text(max_size=40))
def test_words_are_ordered_slices_of_any_text(text: str) -> None:
    encoded = FUZZED.tokenizer.encode(text)
    assert len(encoded.ids) <= 24
    assert encoded.first.tolist() == sorted(set(encoded.first.tolist()))
    at = 0
    for start, end in encoded.words:
        assert at <= start < end <= len(text)
        at = end


FUZZED = make()


# saving and loading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float", *MAKERS])
@pytest.mark.parametrize("layers", [((2, 12), (3, 20)), ((0, 12), (1, 0)), ((0, 0),), ()])
def test_loaded_answers_with_the_same_bits(kind: str, layers: tuple[tuple[int, int], ...], tmp_path: Path) -> None:
    model = make(layers, pooling="cls+tanh", n_buckets=8)
    model.labels = Labels(("greet", "fly", "rain"), ("city", "date"), 0.7, {"nyc": "New York"})
    model.card.metrics = {"macro_f1": 0.5}
    model.card.golden = ["ü"]
    if kind != "float":
        model = packed(model, kind)
    again = NLUModel.load(model.save(tmp_path / "a" / "model"))
    assert same_bits(logits(again, TEXTS), logits(model, TEXTS))
    assert (again.labels, again.card, again.pooling) == (model.labels, model.card, model.pooling)
    assert again.encoder.config == model.encoder.config
    assert again.tokenizer.sha256 == model.tokenizer.sha256
    assert again.size_bytes() == model.size_bytes()
    for (name, a, x), (_, b, y) in zip(again.forms(), model.forms(), strict=True):
        assert type(a) is type(b), name
        assert (x, a.fields()) == (y, b.fields())
        assert np.array_equal(a.dense(), b.dense())
    assert not again.training
    again.save(tmp_path / "b")
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "b" / file).read_bytes() == (tmp_path / "a" / "model" / file).read_bytes()


def test_packed_files_are_smaller_as_promised(tmp_path: Path) -> None:
    model = make()
    sizes = {k: packed(model, k).size_bytes() for k in MAKERS}
    n_weights = sum(m.weight.numel() for _, m, _ in model.matrices())
    n_rows = sum(m.weight.shape[0] for _, m, _ in model.matrices())
    vectors = sum(4 * v.numel() for _, v in model.vectors())
    assert sizes["int8 row"] == n_weights + 4 * n_rows + vectors
    assert sizes["int8 matrix"] == n_weights + 4 * len(list(model.matrices())) + vectors
    assert packed(model, "codes row").n_parameters() == model.n_parameters()


def test_copies_are_independent() -> None:
    model = make()
    before = logits(model, TEXTS)
    other = model.copy()
    set_form(other.intent_head, int8_rows(other.intent_head.weight.detach().numpy()), "int8")
    with torch.no_grad():
        other.encoder.words.weight.zero_()
    other.card.golden.append("x")
    assert same_bits(logits(model, TEXTS), before)
    assert model.intent_head.form is None
    assert model.card.golden == []


def test_weights_trained_after_packing_are_not_saved(tmp_path: Path) -> None:
    model = packed(make(), "int8 row")
    with torch.no_grad():
        model.encoder.layers[0].ffn.up.weight[0, 0] += 1
    with pytest.raises(
        FlyweightError, match=r"layers\.0\.ffn\.up was trained after it was packed; apply the technique"
    ):
        model.save(tmp_path)
    assert [m.form for _, m, _ in model.unpack().matrices()] == [None] * len(list(model.matrices()))
    model.save(tmp_path)


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"config\.json is missing; a model folder is what 'flyweight train --out'"
    ):
        NLUModel.load(tmp_path / "nowhere")
    folder = make().save(tmp_path / "model")
    text = (folder / "config.json").read_text(encoding="utf-8")
    for content, message in [
        ("{", r"config\.json is no JSON"),
        ("{}", r"config\.json is no Flyweight model \(a base model is named with --base when training\)"),
        ("[]", r"config\.json is no Flyweight model"),
        (text.replace('"heads.tags"', '"heads.other"'), "weights do not fit config.json"),
        (text.replace('"ffn": 12', '"ffn": 13'), "weights do not fit config.json"),
        (re.sub(r'"pooling": "mean",', "", text), "pooling"),
        (json.dumps({"flyweight_model": 1}), "labels"),
    ]:
        (folder / "config.json").write_text(content, encoding="utf-8")
        with pytest.raises(CheckpointError, match=message) as error:
            NLUModel.load(folder)
        assert "\n" not in str(error.value)
    (folder / "config.json").write_text(text, encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        NLUModel.load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing; a model folder needs a tokenizer\.json"):
        NLUModel.load(folder)


@pytest.mark.parametrize("name", ["embeddings.norm.bias", "heads.intent.values", "layers.0.ffn.up.bias"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, name: str, value: float) -> None:
    from safetensors.numpy import load_file, save_file

    folder = make().save(tmp_path / "model")
    arrays = load_file(folder / "model.safetensors")
    arrays[name].flat[0] = value
    save_file(arrays, folder / "model.safetensors")
    with pytest.raises(FlyweightError, match="NaN or infinit") as error:
        NLUModel.load(folder)
    assert "\n" not in str(error.value)


# parts of size zero -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float", "int8 row", "int8 matrix", "codes row"])
@pytest.mark.parametrize("layers", [((0, 12), (2, 0)), ((0, 0), (0, 0)), ()])
def test_layers_without_heads_or_neurons(kind: str, layers: tuple[tuple[int, int], ...]) -> None:
    model = make(layers, n_buckets=8)
    if kind != "float":
        model = packed(model, kind)
    found = logits(model, TEXTS)
    assert all(np.isfinite(a).all() for a in found)
    ids, mask = pad([e.ids for e in model.tokenizer.encode_batch(TEXTS)])
    intent, hidden = model.train()(ids, mask)
    (intent.square().sum() + hidden.square().sum()).backward()
    missing = [n for n, p in model.named_parameters() if p.numel() and p.grad is None]
    assert all("tag_head" in n or "qkv" in n for n in missing)


def test_a_masked_part_is_a_part_of_size_zero() -> None:
    # Zero output columns compute what the part without heads or neurons computes: bias, residual, norm.
    full, none = make(((2, 12),)), make(((0, 0),))
    state = {k: v for k, v in full.state_dict().items() if none.state_dict()[k].shape == v.shape}
    none.load_state_dict(none.state_dict() | state)
    with torch.no_grad():
        full.encoder.layers[0].attention.out.weight.zero_()
        full.encoder.layers[0].ffn.down.weight.zero_()
    for a, b in zip(logits(full, TEXTS), logits(none, TEXTS), strict=True):
        assert np.abs(a - b).max(initial=0) <= PADDING


def test_fewer_heads_are_the_other_heads_masked() -> None:
    full, half = make(((4, 8),)), make(((2, 8),))
    with torch.no_grad():
        state = full.state_dict()
        rows = torch.cat([torch.arange(8) + 16 * i for i in range(3)])  # Q, K and V of heads 0 and 1
        at = "encoder.layers.0.attention."
        state[at + "qkv.weight"], state[at + "qkv.bias"] = state[at + "qkv.weight"][rows], state[at + "qkv.bias"][rows]
        state[at + "out.weight"] = state[at + "out.weight"][:, :8]
        half.load_state_dict(state)
        full.encoder.layers[0].attention.out.weight[:, 8:] = 0
    for a, b in zip(logits(full, TEXTS), logits(half, TEXTS), strict=True):
        assert np.abs(a - b).max(initial=0) <= PADDING


# the activation quantizer -------------------------------------------------------------------------------------------


def test_quantized_activations_by_hand() -> None:
    # scale 10/127: -127, -38.1, 63.5 -> 64, 25.4; scale 1: halves go to the even integer
    x = torch.tensor([[-10, -3, 5, 2], [0, 0, 0, 0], [127, 0.5, 1.5, -2.5]])
    step = np.float32(10) / np.float32(127)
    wanted = [[-127 * step, -38 * step, 64 * step, 25 * step], [0, 0, 0, 0], [127, 0, 2, -2]]
    assert quantize_activations(x).tolist() == np.array(wanted, np.float32).tolist()


def test_quantized_activations_edge_rows() -> None:
    least = 2.0**-100
    x = torch.tensor([[least, -least / 2], [least * 0.99, 0], [1e-42, -1e-45], [3e38, -1e38], [-0.0, 0.0]])
    found = quantize_activations(x)
    assert torch.isfinite(found).all()
    assert (found[0] != 0).all()
    assert not found[1:3].any()
    assert found[3, 0] == pytest.approx(3e38, rel=1e-6)
    assert not found[4].any()
    assert quantize_activations(torch.zeros(2, 3, 0)).shape == (2, 3, 0)
    assert quantize_activations(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.float32


@given(hnp.arrays(np.float32, (3, 7), elements=st.floats(-(2.0**90), 2.0**90, width=32)))
def test_the_quantizer_is_the_references(x: np.ndarray) -> None:
    q, scale = quantize_rows(x)
    assert np.array_equal(quantize_activations(torch.from_numpy(x)).numpy(), q * scale[:, None])
    assert np.abs(q).max(axis=1).tolist() == [127.0 if s else 0.0 for s in scale]
    bound = scale[:, None].astype(np.float64) * (0.5 + 4 * 127 * 2.0**-24) + 2.0**-100
    assert (np.abs(x.astype(np.float64) - q * scale[:, None].astype(np.float64)) <= bound).all()


def test_a_packed_linear_multiplies_integers() -> None:
    torch.manual_seed(1)
    linear = Linear(40, 6)
    torch.nn.init.normal_(linear.bias)
    w, x = linear.weight.detach().numpy().copy(), torch.randn(5, 40)
    form = int8_matrix(w + 0.01)
    set_form(linear, form, "int8")
    q, scale = quantize_rows(x.numpy())
    sums = q.astype(np.int64) @ (form.q.astype(np.int64) - form.shift).T
    wanted = sums * (scale[:, None].astype(np.float64) * form.scale[0]) + linear.bias.detach().numpy()
    # 40 products rounded in float32, each at most max|x| max|w|
    bound = 40 * 2.0**-22 * float(x.abs().max()) * float(np.abs(w).max() + 0.02) + 2.0**-22 * np.abs(wanted).max()
    assert np.abs(linear(x).detach().numpy() - wanted).max() <= bound
    linear.activations = "float"
    assert torch.allclose(linear(x), x @ torch.from_numpy(form.dense()).T + linear.bias)


# building -----------------------------------------------------------------------------------------------------------


def test_built_from_data(tiny_data: NLUData) -> None:
    model = build(tiny_data, "small", seed=3)
    assert model.labels.intents == ("book_flight", "greet", "thanks", "weather")
    assert model.labels.entity_labels == ("city", "city#from", "city#to", "date")
    assert model.labels.synonyms == {"nyc": "New York"}
    assert model.card.data_fingerprint == tiny_data.fingerprint()
    assert model.card.split == tiny_data.split
    assert model.intent_head.bias is None  # label embeddings
    again = build(tiny_data, "small", seed=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert model.tokenizer.source == again.tokenizer.source
    other = build(tiny_data, "small", seed=4)
    assert not torch.equal(model.encoder.words.weight, other.encoder.words.weight)


def test_the_learned_tokenizer_is_the_same_in_every_process() -> None:
    # Python's and the tokenizer's hash maps are seeded anew in each process.
    code = f"import hashlib; from flyweight.model.small import train_tokenizer as t; texts = {TEXTS!r}"
    code += "\nfor n in (110, 300): print(hashlib.sha256(t(texts, n).encode()).hexdigest())"
    here = "".join(hashlib.sha256(train_tokenizer(TEXTS, n).encode()).hexdigest() + "\n" for n in (110, 300))
    for seed in "12":
        environment = os.environ | {"PYTHONHASHSEED": seed}
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
        )
        assert found.stdout == here


def test_pieces_of_words_are_no_added_tokens() -> None:
    source = json.loads(train_tokenizer([*TEXTS, "it costs ##o"], 300))
    assert [t["content"] for t in source["added_tokens"]] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = source["model"]["vocab"]
    assert sorted(ids.values()) == list(range(len(ids)))
    tokenizer = Tokenizer(json.dumps(source), 20)
    assert [tokenizer.encode("##o").words, tokenizer.encode("Oslo").words] == [[(0, 1), (1, 2), (2, 3)], [(0, 4)]]


def test_labels_come_from_the_training_split_alone(tiny_data: NLUData) -> None:
    train = tuple(m for m in tiny_data.train if m.intent in ("greet", "thanks"))
    model = build(tiny_data.with_splits(train, tiny_data.validation, tiny_data.test), "small")
    assert model.labels.intents == ("greet", "thanks")
    assert model.tag_head is None
    with pytest.raises(DataError, match=r"1 intent\(s\) in the training messages; at least 2 are needed"):
        build(tiny_data.with_splits(tiny_data.train[:5], (), ()), "small")
    with pytest.raises(ConfigError, match="max_tokens is 3; at least 4"):
        build(tiny_data, "small", max_tokens=3)


def test_golden_messages_span_the_lengths(tiny_data: NLUData) -> None:
    golden = golden_messages(tiny_data.train)
    lengths = [len(m.text) for m in tiny_data.train]
    assert len(golden) == len(set(golden)) == 16
    assert (len(golden[0]), len(golden[-1])) == (min(lengths), max(lengths))
    assert golden == golden_messages(tiny_data.train[::-1])
    assert golden_messages(tiny_data.train[:1]) == [tiny_data.train[0].text]
