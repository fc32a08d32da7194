"""Recipes from words and YAML, the runner, and receipts that hold what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from cli_cases import engine_title
from random_models import quiet_run, random_model, same_bits

from flyweight import receipt as receipt_module
from flyweight.data.messages import Message, NLUData
from flyweight.errors import ConfigError, FlyweightError
from flyweight.export.fly import save
from flyweight.measure.quality import evaluate, fit_temperature
from flyweight.model.nlu import NLUModel
from flyweight.receipt import N_LATENCY_CALLS, N_QUALITY_MESSAGES, measured_messages, name_of
from flyweight.recipe import Recipe, compress
from flyweight.runtime.parser import Parser, load
from flyweight.techniques import TECHNIQUES
from flyweight.techniques.codebook import Codebook
from flyweight.techniques.int8 import Int8

QUICK = Codebook(encoder=4, embeddings=4, heads=4)
ALLOWED = ", ".join(TECHNIQUES)
KEYS = "allowed: 'techniques', a list, and 'description', a text"

# words ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (["int8"], [Int8()]),
        (["int8:"], [Int8()]),
        (["int8:granularity=matrix,heads=false"], [Int8(granularity="matrix", heads=False)]),
        (["int8:embeddings=True"], [Int8(embeddings=True)]),
        (["codebook:encoder=4,embeddings=none"], [Codebook(encoder=4, embeddings=None)]),
        (["codebook:activations=float", "int8"], [Codebook(activations="float"), Int8()]),
        (["int8", "int8"], [Int8(), Int8()]),
        ([], []),
    ],
)
def test_parse(words: list[str], steps: list[Any]) -> None:
    assert Recipe.parse(words) == Recipe(tuple(steps))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("int4", f"technique 'int4' is unknown; allowed: {ALLOWED}"),
        ("", f"technique '' is unknown; allowed: {ALLOWED}"),
        ("Int8", f"technique 'Int8' is unknown; allowed: {ALLOWED}"),
        ("int8:granularity", "technique 'int8:granularity': 'granularity' has no value; write int8:setting=value,..."),
        ("codebook:k=4", f"codebook has no setting 'k'; allowed: {', '.join(f.name for f in fields(Codebook))}"),
        ("codebook:encoder=1", "codebook: encoder is 1; allowed: none, or a whole number from 2 to 256"),
        ("codebook:encoder=4.5", "codebook: encoder is 4.5; allowed: none, or a whole number from 2 to 256"),
        ("int8:heads=", "technique 'int8:heads=': 'heads' has no value; write int8:setting=value,..."),
        ("codebook:encoder=four", "codebook: encoder is 'four'; allowed: none, or a whole number from 2 to 256"),
        ("int8:heads=1", "int8: heads is 1; allowed: true, false"),
    ],
)  # fmt: skip
def test_parse_refuses(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Recipe.parse([word])
    assert str(error.value) == message


# YAML ----------------------------------------------------------------------------------------------------------------


def test_load(tmp_path: Path) -> None:
    file = tmp_path / "fast.yml"
    file.write_text(
        "# a comment\ntechniques:\n"
        "  - codebook: {encoder: 16, embeddings: null, activations: float}\n"
        "  - int8\n"
        "  - int8:\n"
        "  - int8:\n      granularity: matrix\n      heads: no\n"
    )
    steps = (Codebook(encoder=16, embeddings=None, activations="float"), Int8(), Int8())
    assert Recipe.load(file) == Recipe((*steps, Int8(granularity="matrix", heads=False)))
    assert Recipe.load(str(file)) == Recipe.load(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("techniques: [", "is no YAML: while parsing a flow node"),
        ("", f"has no list 'techniques'; {KEYS}"),
        ("- int8", f"has no list 'techniques'; {KEYS}"),
        ("techniques: int8", f"has no list 'techniques'; {KEYS}"),
        ("description: nothing", f"has no list 'techniques'; {KEYS}"),
        ("techniques: [int8]\nseed: 3", f"'seed' is wrong; {KEYS}"),
        ("techniques: [int8]\n3: seed", f"3 is wrong; {KEYS}"),
        ("techniques: [int8]\ndescription: [a]", f"'description' is wrong; {KEYS}"),
        ("techniques: [[int8]]", "['int8'] is no technique; allowed: a name, or name: {setting: value}"),
        ("techniques: [{int8: {}, codebook: {}}]", "is no technique; allowed: a name, or name: {setting: value}"),
        ("techniques: [{int8: matrix}]", "is no technique; allowed: a name, or name: {setting: value}"),
        ("techniques: [3]", "3 is no technique; allowed: a name, or name: {setting: value}"),
        ("techniques: [{3: {}}]", f"technique '3' is unknown; allowed: {ALLOWED}"),
        ("techniques: [prune]", f"technique 'prune' is unknown; allowed: {ALLOWED}"),
        ("techniques: [{codebook: {3: 4}}]", "codebook has no setting '3'; allowed: encoder"),
        ("techniques: [{codebook: {encoder: yes}}]", "codebook: encoder is True; allowed: none, or a whole number"),
        ("techniques: [!!python/object:os.system {}]", "is no YAML"),
    ],
)
def test_load_refuses(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.yml").write_text(text)
    with pytest.raises(ConfigError) as error:
        Recipe.load(tmp_path / "r.yml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_load_refuses_what_is_no_text_file(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"recipe .*none\.yml does not exist; name one of .*smallest.*, or a YAML file with a list 'tech",
    ):
        Recipe.load(tmp_path / "none.yml")
    with pytest.raises(ConfigError, match="does not exist"):
        Recipe.load(tmp_path)
    for binary in (b"[" * 100_000, b"\xff\xfe\x00techniques", b"techniques: [\x00]"):
        (tmp_path / "r.yml").write_bytes(binary)
        with pytest.raises(ConfigError, match="is no YAML"):
            Recipe.load(tmp_path / "r.yml")


# the runner ----------------------------------------------------------------------------------------------------------


def test_no_technique_is_an_error(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    for nothing in ([], Recipe(())):
        with pytest.raises(ConfigError, match=f"no technique given; allowed: {ALLOWED}"):
            compress(tiny_model, tiny_data, nothing, progress=False)


def test_a_recipe_is_its_techniques_one_after_the_other(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    texts = [m.text for m in tiny_data.messages]
    run = quiet_run(tiny_data, tiny_model)
    only_heads = Codebook(encoder=None, embeddings=None, heads=2)
    by_hand = only_heads.apply(Int8(granularity="matrix").apply(tiny_model, run), run)
    recipe = Recipe((Int8(granularity="matrix"), only_heads))
    found = compress(tiny_model, tiny_data, recipe, measure=False, progress=False)
    assert same_bits(found, by_hand, texts)
    assert {type(m.form).__name__ for _, m, _ in found.matrices()} == {"Int8", "Codes"}
    backwards = compress(tiny_model, tiny_data, recipe.techniques[::-1], measure=False, progress=False)
    assert not same_bits(found, backwards, texts)
    assert [s.get("technique", "training") for s in found.card.steps] == ["training", "int8", "codebook"]
    assert [s["settings"] for s in found.card.steps[1:]] == [vars(step) for step in recipe.techniques]
    assert found.card.steps[0] == tiny_model.card.steps[0]
    assert len(tiny_model.card.steps) == 1  # the teacher's card is untouched
    assert (found.card.base, found.card.golden) == (tiny_model.card.base, tiny_model.card.golden)


def test_a_compressed_model_is_compressed_further(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    once = compress(tiny_model, tiny_data, [QUICK], measure=False, progress=False)
    twice = compress(once, tiny_data, [Int8()], measure=False, progress=False)
    assert [s.get("technique", "training") for s in twice.card.steps] == ["training", "codebook", "int8"]
    assert {type(m.form).__name__ for _, m, _ in twice.matrices()} == {"Int8"}


def test_the_temperature_is_fitted_again(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    before = tiny_model.labels
    # The tiny model is so sure of its 12 validation messages that the fit would end at its limit: add wrong labels.
    other = {"greet": "thanks", "thanks": "greet", "weather": "book_flight", "book_flight": "weather"}
    wrong = tuple(replace(m, intent=other[str(m.intent)]) for m in tiny_data.train[::7])
    data = replace(tiny_data, validation=tiny_data.train[1::3] + wrong)
    small = compress(tiny_model, data, [Codebook(encoder=2, embeddings=2, heads=2)], measure=False, progress=False)
    logits = small.logits(small.tokenizer.encode_batch([m.text for m in data.validation]))
    gold = [small.labels.intents.index(str(m.intent)) for m in data.validation]
    wanted = fit_temperature(np.stack([intent for intent, _ in logits]), gold)
    assert small.labels.temperature == pytest.approx(wanted, abs=1e-4)
    assert small.labels.temperature != before.temperature
    assert tiny_model.labels is before
    assert replace(small.labels, temperature=before.temperature) == before


class Forbidden(tuple):
    """The test part: whoever looks at it fails."""

    def fail(self, *_: object) -> NoReturn:
        raise AssertionError("the test messages were looked at")

    __iter__ = __len__ = __getitem__ = __contains__ = __add__ = __bool__ = fail  # type: ignore[assignment]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """All texts that are asked of models and parsers, each once, whichever method asks another."""
    texts: dict[str, list[str]] = {"model": [], "file": []}
    inside = False

    def spy(cls: type[Any], name: str, key: str, wrap: Callable[[Any], list[str]]) -> None:
        right = getattr(cls, name)

        def method(self: Any, argument: Any) -> Any:
            nonlocal inside
            if inside:
                return right(self, argument)
            texts[key].extend(wrap(argument))
            inside = True
            try:
                return right(self, argument)
            finally:
                inside = False

        monkeypatch.setattr(cls, name, method)

    for cls, key in ((NLUModel, "model"), (Parser, "file")):
        spy(cls, "answers", key, list)
        spy(cls, "parse", key, lambda text: [text])
    return texts


def test_receipts_are_measured_on_validation_never_on_test(
    tiny_data: NLUData, tiny_model: NLUModel, asked: dict[str, list[str]]
) -> None:
    guarded = replace(tiny_data, test=Forbidden())
    small = compress(tiny_model, guarded, [QUICK], progress=False)
    validation = {m.text for m in tiny_data.validation}
    assert set(asked["file"]) == set(asked["model"]) == validation
    assert small.card.steps[-1]["quality"]["n_messages"] == len(tiny_data.validation)
    # both were timed on as many messages, after the same warm-up
    n_quality = len(tiny_data.validation)
    assert len(asked["file"]) == len(asked["model"]) > N_LATENCY_CALLS + n_quality


def test_without_validation_training_messages_are_measured(tiny_data: NLUData) -> None:
    assert measured_messages(tiny_data) == (tiny_data.validation, "validation")
    assert measured_messages(replace(tiny_data, validation=())) == (tiny_data.train, "train")


def test_many_messages_are_sampled_from_all_intents() -> None:
    # Files are often sorted by intent: the first 1000 would be 50 of these 150.
    many = tuple(Message(f"message {i}", f"intent {i // 20}") for i in range(3 * N_QUALITY_MESSAGES))
    sample, part = measured_messages(NLUData(many, many))
    assert part == "validation"
    assert abs(len(sample) - N_QUALITY_MESSAGES) <= 150  # rounded in each intent
    assert {m.intent for m in sample} == {m.intent for m in many}
    assert measured_messages(NLUData(many[::-1], many[::-1]))[0] == sample[::-1]


def test_foreign_data_are_refused(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    foreign = NLUData((), (Message("hello", "fly to mars"),))
    with pytest.raises(FlyweightError, match=r"no message has an intent that the model knows \(fly to mars \.\.\.\)"):
        compress(tiny_model, foreign, [Int8()], progress=False)


def test_a_technique_without_a_list(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    with pytest.raises(FlyweightError, match=r"one technique, Int8\(.*\), is no recipe; give a list"):
        compress(tiny_model, tiny_data, Int8(), progress=False)  # type: ignore[arg-type]


def test_what_is_no_model_data_or_technique(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    of: Any
    for of, message in (
        (("bot", tiny_data, [Int8()]), r"teacher is str; allowed: NLUModel \(NLUModel.load reads a model folder\)"),
        ((tiny_model, "nlu.yml", [Int8()]), r"data is str; allowed: NLUData \(load_data reads files\)"),
        ((tiny_model, tiny_data, ["int8"]), r"'int8' is no technique; allowed: such as \[Int8\(\)\]"),
    ):
        with pytest.raises(FlyweightError, match=message):
            compress(*of, progress=False)


def test_a_setting_twice() -> None:
    with pytest.raises(FlyweightError, match="'encoder' is given twice"):
        Recipe.parse(["codebook:encoder=4,encoder=16"])


# receipts ------------------------------------------------------------------------------------------------------------


def test_a_receipt_holds_what_is_measured(tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path) -> None:
    step = Codebook(encoder=2, embeddings=8, heads=None)
    small = compress(tiny_model, tiny_data, [step], progress=False)
    receipt = small.card.steps[-1]
    assert set(receipt) == {
        *("technique", "settings", "n_parameters", "file_bytes", "quality", "latency_ms", "parent_ms"),
        *("engine", "minutes", "peak_memory_mb", "part", "bits", "repacked", "sparse", "reached"),
        *("parent_bytes", "worsens"),
    }
    assert receipt["sparse"] == {}  # nothing is pruned
    assert receipt["bits"].pop("embeddings.words") == receipt["bits"].pop("embeddings.positions") == 3
    assert receipt["bits"].pop("heads.intent") == 3  # a similarity head holds label embeddings
    assert receipt["bits"].pop("heads.tags") == 32
    assert set(receipt["bits"].values()) == {1}
    assert len(receipt["bits"]) == 4 * len(tiny_model.encoder.layers)
    assert TECHNIQUES[receipt["technique"]](**receipt["settings"]) == step
    assert receipt["n_parameters"] == sum(p.numel() for p in tiny_model.parameters())
    assert receipt["engine"] == engine_title()
    quality = dict(receipt["quality"])
    speedup = quality.pop("speedup")
    assert speedup == pytest.approx(receipt["parent_ms"] / receipt["latency_ms"], rel=0.05)
    assert min(receipt["latency_ms"], receipt["parent_ms"]) > 0
    assert receipt["minutes"] >= 0
    assert receipt["peak_memory_mb"] > 10
    # the quality of the file, against the teacher
    nlu = load(save(small, tmp_path / "m.fly"))
    wanted = evaluate(nlu, tiny_data.validation, against=tiny_model).to_dict()
    flips = wanted.pop("flips")
    assert quality == wanted
    assert quality["n_flips"] == len(flips) > 0  # 1 bit changes answers: the comparison was no formality
    assert quality["losses"]["intent_macro_f1"]["parent"] == evaluate(tiny_model, tiny_data.validation).intent_macro_f1
    assert json.loads(json.dumps(receipt)) == receipt
    assert small.card.metrics == {"validation": receipt["quality"]}
    assert nlu.artifact.manifest["lineage"]["steps"] == small.card.steps


def test_file_bytes_are_those_of_the_file(tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path) -> None:
    """The file that was measured: the final one says beyond it what the receipt and the metrics say."""
    small = compress(tiny_model, tiny_data, [QUICK, Int8()], progress=False)
    for i in (1, 2):
        measured = small.copy() if i == 2 else compress(tiny_model, tiny_data, [QUICK], measure=False, progress=False)
        measured.card = replace(small.card, steps=small.card.steps[:i], metrics=tiny_model.card.metrics)
        size = save(measured, tmp_path / f"{i}.fly").stat().st_size
        assert small.card.steps[i]["file_bytes"] == size
    final = save(small, tmp_path / "final.fly").stat().st_size
    added = len(json.dumps(json.dumps([small.card.steps[-1], small.card.metrics])))
    assert 0 <= final - small.card.steps[-1]["file_bytes"] <= added + 64


def test_every_step_is_compared_with_the_teacher(
    tiny_data: NLUData, tiny_model: NLUModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = []
    right = receipt_module.evaluate_answers

    def spy(answers: Any, messages: Any, *, against: Any) -> Any:
        parents.append(against)
        return right(answers, messages, against=against)

    monkeypatch.setattr(receipt_module, "evaluate_answers", spy)
    compress(tiny_model, tiny_data, [QUICK, Int8()], progress=False)
    assert len(parents) == 2
    wanted = [a.frame for a in tiny_model.answers([m.text for m in tiny_data.validation])]
    assert all([a.frame for a in given] == wanted for given in parents)


def test_measure_false_leaves_out_quality_and_latency(
    tiny_data: NLUData, tiny_model: NLUModel, asked: dict[str, list[str]], tmp_path: Path
) -> None:
    small = compress(tiny_model, tiny_data, [QUICK], measure=False, progress=False)
    assert asked == {"model": [], "file": []}
    receipt = small.card.steps[-1]
    assert (receipt["quality"], receipt["latency_ms"], receipt["parent_ms"]) == ({}, None, None)
    assert small.card.metrics == {"validation": {}}
    assert 0 < receipt["file_bytes"] <= save(small, tmp_path / "m.fly").stat().st_size


def test_a_step_whose_file_answers_wrongly_stops_the_recipe(
    tiny_data: NLUData, tiny_model: NLUModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flyweight.runtime import reference

    monkeypatch.setitem(reference.ACTIVATIONS, "gelu", reference.relu)
    with pytest.raises(FlyweightError, match="given the model's input, differ"):
        compress(tiny_model, tiny_data, [Int8()], progress=False)


def test_a_model_without_entities(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    parent = random_model(tiny_model, entities=False)
    small = compress(parent, tiny_data, [Int8()], progress=False)
    assert small.card.steps[-1]["quality"]["n_predicted_spans"] == 0
    assert small.tag_head is None
    assert not torch.equal(small.intent_head.weight, parent.intent_head.weight)


def test_names() -> None:
    assert [name_of(Int8()), name_of(QUICK)] == ["int8", "codebook"]


def test_a_receipt_counts_what_it_packed_anew(tiny_data: NLUData, tiny_model: NLUModel) -> None:
    heads = Codebook(encoder=None, embeddings=None, heads=4)
    small = compress(tiny_model, tiny_data, [QUICK, Int8(), heads], measure=False, progress=False)
    names = [part for _, _, part in tiny_model.matrices()]
    assert QUICK.encoder is not None
    first, second, third = (step["repacked"] for step in small.card.steps[-3:])
    packed_first = {p for p in ("encoder", "embeddings", "heads") if getattr(QUICK, p) is not None}
    assert first == 0
    assert second == sum(part in packed_first for part in names)
    assert third == names.count("heads")
