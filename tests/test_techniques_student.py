"""The room `student`: what it is made of, by name; what it needs; nothing of its parent's making stays in its card."""

from __future__ import annotations

import pytest
from random_models import quiet_run, random_model, variant

import flyweight as fw
from flyweight.data.messages import NLUData
from flyweight.errors import CheckpointError, ConfigError, DataError
from flyweight.model.encoder import ConvolutionShape, LayerShape, LSTMShape
from flyweight.model.nlu import NLUModel
from flyweight.model.surgery import keep_layers


def made(model: NLUModel, data: NLUData, **settings: object) -> NLUModel:
    return fw.Student(**settings).apply(model, quiet_run(data, model))  # type: ignore[arg-type]


def test_narrower_and_deeper(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    found = made(tiny_model, tiny_data, layers=5, hidden=32, embedding=16)
    config = found.encoder.config
    assert (config.hidden, config.embedding, config.head_size) == (32, 16, 32)
    assert config.layers == (LayerShape(heads=1, ffn=128),) * 5  # 4 heads and 512 neurons of 128 numbers: a quarter
    assert found.labels == tiny_model.labels
    assert found.tokenizer is tiny_model.tokenizer


def test_small_has_its_own_vocabulary_and_shape(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    found = made(tiny_model, tiny_data, base="small")
    assert found.encoder.config.layers == (LayerShape(heads=4, ffn=512),) * 2
    assert found.encoder.config.hidden == 128
    found = made(tiny_model, tiny_data, base="small", layers=3, hidden=64, ffn=100, embedding=24, vocabulary=220)
    config = found.encoder.config
    assert config.layers == (LayerShape(heads=2, ffn=100),) * 3
    assert (config.hidden, config.embedding) == (64, 24)
    assert config.vocab_size == found.tokenizer.vocab_size == 220


def test_a_vocabulary_of_the_training_messages(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    found = made(tiny_model, tiny_data, vocabulary=230, layers=1)
    assert 200 <= found.encoder.config.vocab_size == found.tokenizer.vocab_size <= 230  # as many as there are
    assert found.encoder.config.hidden == 128
    text = tiny_data.train[0].text
    assert found.answers([text])[0].text == text


@pytest.mark.parametrize(
    ("settings", "layers", "hidden", "ngrams", "pooling"),
    [
        ({"kind": "bilstm", "hidden": 64}, (LSTMShape(),), 64, 0, "max"),
        ({"kind": "bilstm", "layers": 2}, (LSTMShape(),) * 2, 256, 0, "max"),
        ({"kind": "cnn", "hidden": 64, "ngrams": 64}, (ConvolutionShape(width=5),), 64, 64, "max"),
        ({"kind": "bag", "hidden": 64}, (), 64, 32768, "mean"),
        ({"kind": "bag", "hidden": 64, "ngrams": 0}, (), 64, 0, "mean"),
        ({"kind": "cnn", "base": "small", "hidden": 48}, (ConvolutionShape(width=5),), 48, 0, "max"),
        ({"layers": 1, "ngrams": 32}, (LayerShape(heads=4, ffn=512),), 128, 32, "mean"),
    ],
)
def test_kinds(
    settings: dict[str, object],
    layers: tuple[object, ...],
    hidden: int,
    ngrams: int,
    pooling: str,
    tiny_model: NLUModel,
    tiny_data: NLUData,
) -> None:
    found = made(tiny_model, tiny_data, **settings)
    config = found.encoder.config
    assert (config.layers, config.hidden, config.ngrams, found.pooling) == (layers, hidden, ngrams, pooling)
    assert config.embedding == (128 if hidden == 256 else 0)  # embeddings of 128: wider layers need a projection
    answer = found.answers(["book a flight"])[0]
    assert set(answer.intents) == set(tiny_model.labels.intents)


def test_a_pretrained_base_has_new_heads(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    found = made(tiny_model, tiny_data, base="minilm", layers=1, hidden=64)
    config = found.encoder.config
    assert (config.hidden, config.layers) == (64, (LayerShape(heads=2, ffn=256),))
    assert found.intent_head.weight.shape == (4, 64)
    assert found.labels == tiny_model.labels
    assert found.tokenizer.sha256 != tiny_model.tokenizer.sha256
    with pytest.raises(CheckpointError, match=r"^base 'nowhere' is no folder here; allowed: minilm, small"):
        made(tiny_model, tiny_data, base="nowhere")


def test_the_card_says_where_it_comes_from_but_not_what_survived(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    parent = keep_layers(random_model(tiny_model, layers=((3, 37),) * 3), [0, 2])
    assert parent.card.survivors is not None
    found = made(parent, tiny_data, layers=1)
    assert found.card.survivors is None
    assert found.card.base == parent.card.base
    assert found.card.steps == parent.card.steps
    assert found.card.steps is not parent.card.steps


def test_what_is_needed(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    nothing = NLUData((), tiny_data.validation, ())
    assert len(made(tiny_model, nothing, layers=1).encoder.layers) == 1  # no message is needed for whole layers
    for settings in ({"hidden": 64}, {"embedding": 64}, {"kind": "bag"}, {"vocabulary": 220}, {"base": "small"}):
        with pytest.raises(DataError, match=r"^no training messages; "):
            made(tiny_model, nothing, **settings)
    packed = fw.Int8().apply(tiny_model, quiet_run(tiny_data, tiny_model))
    with pytest.raises(ConfigError, match=r"^embeddings.words is packed or masked; "):
        made(packed, tiny_data, layers=1)
    bag = made(tiny_model, tiny_data, kind="bag", hidden=64, ngrams=16)
    with pytest.raises(ConfigError, match=r"^student: the model has hashed bigrams, which no student takes over"):
        made(bag, tiny_data, layers=0)
    lstm = made(tiny_model, tiny_data, kind="bilstm", hidden=64)
    with pytest.raises(ConfigError, match=r"^student works on transformer layers, but layers.0 is of kind lstm"):
        made(lstm, tiny_data, layers=1)
    assert made(lstm, tiny_data, kind="cnn", hidden=32).encoder.config.hidden == 32


def test_relative_positions_stay_with_transformers_only(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    parent = variant(tiny_model, "relative")
    assert made(parent, tiny_data, layers=2, hidden=16).encoder.config.relative_buckets == 32
    assert made(parent, tiny_data, kind="cnn", hidden=16).encoder.config.relative_buckets == 0
