"""Finished techniques are found again by what they were made of, and by nothing less."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from random_models import quiet_run, same_bits

import flyweight as fw
from flyweight import recipe as recipe_module
from flyweight import stages as stages_module
from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError
from flyweight.model.nlu import NLUModel
from flyweight.receipt import Receipt, Stage, all_worse, worse
from flyweight.recipe import Recipe, compress, shipped
from flyweight.stages import (
    Stages,
    begin,
    content_hash,
    data_hash,
    keep_receipt,
    keep_stage,
    kept_receipt,
    kept_stage,
    spent,
    worth_keeping,
)
from flyweight.techniques import TECHNIQUES
from flyweight.techniques.codebook import Codebook
from flyweight.techniques.head_pruning import HeadPruning
from flyweight.techniques.int8 import Int8
from flyweight.techniques.room import Run

CODES = Codebook(encoder=4, embeddings=4, heads=4)


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the rooms whose apply was called."""
    names: list[str] = []
    for cls in (Int8, Codebook):
        right = cls.apply

        def spy(self: Any, model: NLUModel, run: Run, right: Callable[..., NLUModel] = right) -> NLUModel:
            names.append(type(self).__name__)
            return right(self, model, run)

        monkeypatch.setattr(cls, "apply", spy)
    return names


def facts_of(receipt: dict[str, Any]) -> dict[str, Any]:
    """A receipt without what a clock or the process decides."""
    timed = ("latency_ms", "parent_ms", "minutes", "peak_memory_mb", "worsens", "quality", "file_bytes")
    return {k: v for k, v in receipt.items() if k not in timed}


def test_a_finished_recipe_is_not_made_again(
    tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path, applied: list[str]
) -> None:
    texts = [m.text for m in tiny_data.messages]
    seen: list[tuple[int, str, bool]] = []

    def run(recipe: list[Any], folder: Path | None = tmp_path) -> NLUModel:
        seen.clear()
        applied.clear()
        return compress(
            *(tiny_model, tiny_data, recipe),
            folder=folder,
            progress=False,
            each=lambda number, receipt, kept: seen.append((number, receipt["technique"], kept)),
        )

    once = run([CODES, Int8()])
    assert applied == ["Codebook", "Int8"]
    assert seen == [(1, "codebook", False), (2, "int8", False)]
    again = run([CODES, Int8()])
    assert applied == []
    assert seen == [(1, "codebook", True), (2, "int8", True)]
    assert same_bits(once, again, texts)
    assert again.card == replace(once.card, steps=again.card.steps)
    assert json.loads(json.dumps(once.card.steps)) == again.card.steps  # receipts too, to the last millisecond
    # changed at the end: what is equal is used, the rest is made
    other = run([CODES, Int8(granularity="matrix")])
    assert applied == ["Int8"]
    assert seen == [(1, "codebook", True), (2, "int8", False)]
    assert same_bits(other, run([CODES, Int8(granularity="matrix")], folder=None), texts)
    # changed at the start: nothing is
    run([Int8(), CODES])
    assert applied == ["Int8", "Codebook"]


def test_what_was_kept_is_what_was_made(tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path) -> None:
    """A model from the folder goes on like one from memory: masks, forms, survivors and steps included."""
    texts = [m.text for m in tiny_data.messages]
    from flyweight.techniques.magnitude import Magnitude

    first = [HeadPruning(keep=0.5, epochs=0), Magnitude(sparsity=0.5, epochs=0, schedule="one-shot")]
    plain = compress(tiny_model, tiny_data, [*first, Int8()], measure=False, progress=False)
    compress(tiny_model, tiny_data, first, measure=False, folder=tmp_path, progress=False)
    resumed = compress(tiny_model, tiny_data, [*first, Int8()], measure=False, folder=tmp_path, progress=False)
    assert same_bits(plain, resumed, texts)
    assert content_hash(plain) == content_hash(resumed)
    assert plain.card.survivors == resumed.card.survivors
    assert [facts_of(s) for s in plain.card.steps[1:]] == [facts_of(s) for s in resumed.card.steps[1:]]


def test_interrupted_before_its_receipt(
    tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path, applied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was made is kept although it was not measured; measuring is all that is left."""

    def interrupted(*_: Any) -> Receipt:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recipe_module, "make_receipt", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compress(tiny_model, tiny_data, [CODES], folder=tmp_path, progress=False)
    small = compress(tiny_model, tiny_data, [CODES], folder=tmp_path, progress=False)
    assert applied == ["Codebook"]
    assert small.card.steps[-1]["quality"]["n_messages"] == len(tiny_data.validation)


def test_a_damaged_stage_is_made_again(
    tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path, applied: list[str]
) -> None:
    compress(tiny_model, tiny_data, [CODES], measure=False, folder=tmp_path, progress=False)
    [stage] = (tmp_path / "stages").iterdir()
    for name in ("model/model.safetensors", "model/config.json", "stage.json"):
        applied.clear()
        (stage / name).write_bytes(b"[1]")
        compress(tiny_model, tiny_data, [CODES], measure=False, folder=tmp_path, progress=False)
        assert applied == ["Codebook"], name
    (stage / "receipt.json").write_text("[")
    small = compress(tiny_model, tiny_data, [CODES], folder=tmp_path, progress=False)
    assert small.card.steps[-1]["quality"]["n_flips"] >= 0


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A room that is interrupted."""

    ZERO: ClassVar[dict[str, Any] | None] = None

    def apply(self, model: NLUModel, run: Run) -> NLUModel:
        raise KeyboardInterrupt


def test_nothing_half_is_left(tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TECHNIQUES, "broken", Broken)
        with pytest.raises(KeyboardInterrupt):
            compress(tiny_model, tiny_data, [Broken()], measure=False, folder=tmp_path, progress=False)
    assert [p.suffix for p in (tmp_path / "stages").iterdir()] == [".json"]  # the minutes it took
    assert not worth_keeping(tmp_path)

    def full(*_: Any) -> Path:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NLUModel, "save", full)
        with pytest.raises(OSError, match="No space left"):
            compress(tiny_model, tiny_data, [CODES], measure=False, folder=tmp_path, progress=False)
    assert not [p for p in (tmp_path / "stages").iterdir() if p.is_dir()]


def test_two_processes_make_the_same(tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path) -> None:
    """The second to finish finds the first one's stage in its place."""
    texts = [m.text for m in tiny_data.messages]
    right = Codebook.apply

    def late(self: Codebook, model: NLUModel, run: Run) -> NLUModel:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Codebook, "apply", right)
            compress(model, run.data, [CODES], measure=False, folder=tmp_path, progress=False)
        return right(self, model, run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Codebook, "apply", late)
        found = compress(tiny_model, tiny_data, [CODES], measure=False, folder=tmp_path, progress=False)
    [stage] = (tmp_path / "stages").iterdir()
    assert same_bits(found, NLUModel.load(stage / "model"), texts)


def test_a_sound_stage_stays_and_a_receipt_needs_one(tiny_model: NLUModel, tmp_path: Path) -> None:
    """Two processes: what one has finished and measured, the other does not take away."""
    place = tmp_path / "stages" / "codebook-1"
    keep_receipt(place, {"of": "nobody"})
    assert not place.exists()
    keep_stage(place, Stage(tiny_model, {}, 1.0, 2.0))
    keep_receipt(place, {"of": "the first"})
    keep_stage(place, Stage(tiny_model, {}, 9.0, 2.0))
    found = kept_stage(place)
    assert found is not None
    assert (found.minutes, kept_receipt(place)) == (1.0, {"of": "the first"})
    (place / "stage.json").write_text("{")
    keep_stage(place, Stage(tiny_model, {}, 9.0, 2.0))
    found = kept_stage(place)
    assert found is not None
    assert (found.minutes, kept_receipt(place)) == (9.0, None)
    assert [p.name for p in place.parent.iterdir()] == ["codebook-1"]


# keys ----------------------------------------------------------------------------------------------------------------


def test_the_key_holds_all_that_decides(tiny_data: NLUData, tiny_model: NLUModel, tmp_path: Path) -> None:
    def place(
        step: Any = CODES,
        model: NLUModel = tiny_model,
        data: NLUData = tiny_data,
        teacher: NLUModel = tiny_model,
        seed: int = 0,
        assistant: NLUModel | None = None,
    ) -> Path | None:
        run = replace(quiet_run(data, teacher), assistant=assistant)
        return Stages(tmp_path, data, teacher, seed).place(step, model, run)

    packed = Int8().apply(tiny_model, quiet_run(tiny_data, tiny_model))
    nudged = tiny_model.copy()
    with torch.no_grad():
        bias = nudged.encoder.norm.bias
        bias[0] = torch.nextafter(bias[0], torch.tensor(9.0))
    later = tiny_model.copy()
    later.card = replace(later.card, steps=[], metrics={"a": 1})  # history decides nothing
    assert place() == place(model=later) == place(teacher=tiny_model.copy()) == place(step=replace(CODES))
    backwards = replace(tiny_data, train=tiny_data.train[::-1])
    others = [
        place(step=replace(CODES, encoder=8)),
        place(step=Int8()),
        place(model=packed),
        place(model=nudged),
        place(teacher=nudged),
        place(assistant=tiny_model),
        place(assistant=nudged),
        place(seed=1),
        place(data=backwards),
        place(data=replace(tiny_data, test=tiny_data.test[1:])),
        place(data=replace(tiny_data, synonyms={})),
    ]
    assert len({place(), *others}) == 1 + len(others)
    assert data_hash(backwards) != data_hash(tiny_data)
    assert Stages(None, tiny_data, tiny_model, 0).place(CODES, tiny_model, quiet_run(tiny_data, tiny_model)) is None


def test_files_that_a_setting_names_count_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file, folder = tmp_path / "more.txt", tmp_path / "texts"
    file.write_text("hello")
    folder.mkdir()

    def settings(of: str | tuple[str, ...]) -> list[Any]:
        return stages_module._settings(fw.Distillation(teacher=of))

    assert settings("first")[1] == settings("no such file")[1] == settings("nul\0")[1] == []
    assert settings("~/more.txt")[1] == settings(str(file))[1] != []
    before = [settings(str(file)), settings(str(folder)), settings((str(file), "no"))]
    file.write_text("hello!")
    (folder / "a.txt").write_text("hi")
    after = [settings(str(file)), settings(str(folder)), settings((str(file), "no"))]
    assert all(a[0] == b[0] and a[1] != b[1] for a, b in zip(before, after, strict=True))
    renamed = folder / "b.txt"
    (folder / "a.txt").rename(renamed)
    assert settings(str(folder)) != after[1]


def test_minutes_of_interrupted_runs_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 90.0, 1000.0, 1030.0, 0.0, 60.0])
    monkeypatch.setattr(stages_module.time, "monotonic", lambda: next(clock))
    place = tmp_path / "stages" / "x-1"
    with pytest.raises(KeyboardInterrupt), spent(place):
        raise KeyboardInterrupt
    with spent(place) as minutes:
        pass
    assert minutes == [2.0]  # 90 s, then 30 s
    with spent(place) as minutes:
        pass
    assert minutes == [1.0]  # finished: the next one starts anew
    assert list((tmp_path / "stages").iterdir()) == []


# work folders --------------------------------------------------------------------------------------------------------


def test_another_recipe_needs_permission(tmp_path: Path) -> None:
    begin(tmp_path, [CODES, Int8()], resume=False)
    begin(tmp_path, [Int8()], resume=False)  # nothing lies there yet
    (tmp_path / "stages" / "int8-1").mkdir(parents=True)
    (tmp_path / "stages" / "int8-1" / "stage.json").write_text("{}")
    begin(tmp_path, [Int8()], resume=False)  # the same command goes on
    with pytest.raises(ConfigError) as error:
        begin(tmp_path, [Int8(), CODES], resume=False)
    assert str(error.value) == (
        f"{tmp_path} holds an unfinished run of another recipe (int8); add --resume to use what is finished and equal "
        f"and make the rest, give --work for a folder of its own, or remove {tmp_path}"
    )
    begin(tmp_path, [Int8(), CODES], resume=True)
    begin(tmp_path, [Int8(), CODES], resume=False)
    for odd in ("[", "3", '[3, {"a": 1}]'):
        (tmp_path / "recipe.json").write_text(odd)
        if odd.startswith("[3"):
            with pytest.raises(ConfigError, match=r"another recipe \(a\)"):
                begin(tmp_path, [CODES], resume=False)
        else:
            begin(tmp_path, [CODES], resume=False)


def test_an_assistant_is_what_the_last_student_was_made_of(
    tiny_data: NLUData, tiny_model: NLUModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []

    @dataclass(frozen=True, kw_only=True)
    class Pupil:
        ZERO: ClassVar[dict[str, Any] | None] = None

        def apply(self, model: NLUModel, run: Run) -> NLUModel:
            found = model.copy()
            with torch.no_grad():
                found.encoder.norm.bias += 0.01
            return found

    @dataclass(frozen=True, kw_only=True)
    class Learner:
        ZERO: ClassVar[dict[str, Any] | None] = None

        def apply(self, model: NLUModel, run: Run) -> NLUModel:
            seen.append(None if run.assistant is None else content_hash(run.assistant))
            assert run.teacher is tiny_model
            return model.copy()

    monkeypatch.setitem(TECHNIQUES, "student", Pupil)
    monkeypatch.setitem(TECHNIQUES, "learner", Learner)
    chain = [Learner(), Pupil(), Learner(), Pupil(), Learner(), Learner()]
    compress(tiny_model, tiny_data, chain, measure=False, progress=False)
    assert seen[0] is None  # before the first student there is none
    once = compress(tiny_model, tiny_data, chain[:1], measure=False, progress=False)
    twice = compress(tiny_model, tiny_data, chain[:3], measure=False, progress=False)
    assert seen[1] == content_hash(once)
    assert seen[2] == seen[3] == content_hash(twice) != seen[1]


# worse ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "before", "found"),
    [
        ((108_193, 0.969), (100_000, 1.0), True),
        ((108_192, 0.969), (100_000, 1.0), False),  # by a receipt longer
        ((108_193, 0.97), (100_000, 1.0), False),  # by the clock slower
        ((108_193, 4.0), (100_000, 8.0), True),
        ((90_000, 4.0), (100_000, 8.0), False),
        ((200_000, 9.0), (100_000, 8.0), False),
        ((200_000, None), (100_000, 8.0), False),
        ((200_000, 4.0), (100_000, None), False),
    ],
)
def test_worse(now: Any, before: Any, found: bool) -> None:
    assert worse(now, before) is found
    if None not in now and before[1] == 1.0:
        receipt = {"file_bytes": now[0], "quality": {"speedup": now[1]}, "parent_bytes": before[0]}
        assert all_worse(receipt) is found


# shipped recipes -----------------------------------------------------------------------------------------------------


def test_shipped_recipes() -> None:
    assert list(shipped()) == ["fast-1000x", "fast-100x", "post-training", "smallest"]
    for name, path in shipped().items():
        recipe = Recipe.load(name)
        assert recipe == Recipe.load(path)
        assert recipe.techniques
        assert recipe.description.endswith(".")
        assert "\n" not in recipe.description


def test_yaml_comes_back(tmp_path: Path) -> None:
    recipe = Recipe((CODES, Int8(), HeadPruning(keep=0.25)), "What it is for: speed")
    (tmp_path / "r.yml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "r.yml") == recipe
    assert "- int8\n" in recipe.to_yaml()
    for name in shipped():
        (tmp_path / "r.yml").write_text(Recipe.load(name).to_yaml())
        assert Recipe.load(tmp_path / "r.yml") == Recipe.load(name)
