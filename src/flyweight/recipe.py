"""A recipe: an ordered list of techniques; the runner applies them and makes a receipt of each.

Recipe.load("fast-100x")     a shipped one, of recipes/
Recipe.load("fast.yml")      techniques: [{codebook: {encoder: 16}}, ...]
compress(teacher, data, [Int8()])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError, MissingExtraError
from flyweight.measure.memory import peak_rss_mb
from flyweight.model.nlu import NLUModel
from flyweight.receipt import Scales, Stage, make_receipt, name_of
from flyweight.stages import Stages, begin, keep_receipt, keep_stage, kept_receipt, kept_stage, spent
from flyweight.techniques import TECHNIQUES
from flyweight.techniques.room import ReadsFiles, Run, Technique, technique
from flyweight.training.teacher import calibrate

SHIPPED = Path(__file__).parent / "recipes"
ASSISTANT_BEFORE = "student"  # the technique whose input may teach what comes after it
Each = Callable[[int, dict[str, Any], bool], None]  # number from 1, receipt, whether its stage was kept from before


@dataclass(frozen=True)
class Recipe:
    """Techniques in the order in which they are applied, and what they are for, in a line."""

    techniques: tuple[Technique, ...]
    description: str = ""

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a shipped recipe by its name, or a YAML file. Errors: ConfigError.

        `techniques:` a list of names, or of {name: {setting: value}}; `description:` a line. A file of the same name as
        a shipped recipe is named with its folder: ./smallest
        """
        try:
            import yaml
        except ImportError as error:
            raise MissingExtraError("PyYAML", "workshop", "reading a recipe") from error
        path = shipped().get(str(path), Path(path))
        if not path.is_file():
            raise ConfigError(
                f"recipe {path} does not exist; name one of {', '.join(shipped())}, or a YAML file with a list "
                "'techniques'"
            )
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"recipe {path} is no YAML: {' '.join(str(error).split())}") from error
        allowed = "allowed: 'techniques', a list, and 'description', a text"
        if not isinstance(found, dict) or not isinstance(found.get("techniques"), list):
            raise ConfigError(f"recipe {path} has no list 'techniques'; {allowed}")
        unknown = [key for key in found if key not in ("techniques", "description")]
        if unknown or not isinstance(found.get("description", ""), str):
            raise ConfigError(f"recipe {path}: {(unknown or ['description'])[0]!r} is wrong; {allowed}")
        steps = tuple(_from_yaml(item, path) for item in found["techniques"])
        return cls(steps, " ".join(found.get("description", "").split()))

    def to_yaml(self) -> str:
        """What `load` reads; settings that are the default are left out."""
        import yaml

        steps: list[Any] = []
        for step in self.techniques:
            defaults = {f.name: f.default for f in fields(step)}
            changed = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(step).items() if v != defaults[k]}
            steps.append({name_of(step): changed} if changed else name_of(step))
        described = {"description": self.description} if self.description else {}
        text: str = yaml.safe_dump(described | {"techniques": steps}, sort_keys=False, allow_unicode=True, width=100)
        return text

    @classmethod
    def parse(cls, words: Sequence[str]) -> Recipe:
        """Read `int8` or `codebook:encoder=4,embeddings=none` (the command line's form). Errors: ConfigError."""
        techniques = []
        for word in words:
            name, _, settings = word.partition(":")
            pairs = [pair.partition("=") for pair in settings.split(",") if pair]
            keys = [key for key, _, _ in pairs]
            twice = [key for key in keys if keys.count(key) > 1]
            if twice:
                raise ConfigError(f"technique '{word}': '{twice[0]}' is given twice; give each setting once")
            wrong = [key for key, _, text in pairs if not text]
            if wrong:
                raise ConfigError(f"technique '{word}': '{wrong[0]}' has no value; write {name}:setting=value,...")
            techniques.append(technique(TECHNIQUES, name, {key: _value(text) for key, _, text in pairs}))
        return cls(tuple(techniques))


def shipped() -> dict[str, Path]:
    """Files of the recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yml"))}


def compress(
    teacher: NLUModel,
    data: NLUData,
    recipe: Recipe | Sequence[Technique],
    *,
    seed: int = 0,
    device: str = "auto",
    folder: str | Path | None = None,
    resume: bool | None = None,
    measure: bool = True,
    progress: bool = True,
    each: Each | None = None,
) -> NLUModel:
    """Apply techniques in order; the temperature is fitted again after each. Returns a new model.

    Receipts lie in `model.card.steps`, one a technique, and travel into the .fly file. measure=False leaves out their
    quality and latency. folder: finished techniques, checkpoints and caches; after an interruption the same call goes
    on from there, and other recipes use what is equal (stages.py). Remove it once the result is saved. resume: False
    refuses a folder that was begun with another recipe, True goes on there, None keeps no account. each: called with a
    receipt as soon as it is there. Errors: ConfigError, DataError, ParityError (a step's file does not answer like its
    model).
    """
    if type(recipe) in TECHNIQUES.values():
        raise ConfigError(f"one technique, {recipe!r}, is no recipe; give a list: [{recipe!r}]")
    techniques = recipe.techniques if isinstance(recipe, Recipe) else tuple(recipe)
    if not techniques:
        raise ConfigError(f"no technique given; allowed: {', '.join(TECHNIQUES)}")
    for name, value, kind in (("teacher", teacher, NLUModel), ("data", data, NLUData)):
        if not isinstance(value, kind):
            how = "NLUModel.load reads a model folder" if kind is NLUModel else "load_data reads files"
            raise ConfigError(f"compress: {name} is {type(value).__name__}; allowed: {kind.__name__} ({how})")
    for step in techniques:
        if not isinstance(step, Technique):
            raise ConfigError(
                f"compress: {step!r} is no technique; allowed: such as [Int8()], or Recipe.parse(['int8'])"
            )
    for step in techniques:
        if isinstance(step, ReadsFiles):
            step.check()
    if folder is not None and resume is not None:
        begin(Path(folder), techniques, resume)
    run = Run(data, teacher, seed=seed, device=device, folder=str(folder) if folder else None, progress=progress)
    stages, scales = Stages(folder, data, teacher, seed), Scales.of(teacher, data, measure, progress)
    model, receipt = teacher, None
    for number, step in enumerate(techniques, 1):
        run = replace(run, said={}, assistant=model if name_of(step) == ASSISTANT_BEFORE else run.assistant)
        place = stages.place(step, model, run)
        kept = kept_stage(place)
        stage = _made(step, model, run, place) if kept is None else kept
        done = kept_receipt(place) if kept is not None and measure else None
        receipt = make_receipt(step, model, stage, scales, receipt).to_dict() if done is None else done
        if measure:
            keep_receipt(place, receipt)
        child = stage.model
        child.card = replace(model.card, steps=[*model.card.steps, receipt], survivors=child.card.survivors)
        model = child
        if each is not None:
            each(number, receipt, kept is not None)
    model.card = replace(model.card, metrics={scales.part: model.card.steps[-1]["quality"]})
    return model


def _made(step: Technique, model: NLUModel, run: Run, place: Path | None) -> Stage:
    """Apply the technique, calibrate, and keep what came out before anything is measured."""
    with spent(place) as minutes:
        child = step.apply(model, run)
        calibrate(child, run.data.validation)
    stage = Stage(child, run.said, minutes[0], peak_rss_mb())
    keep_stage(place, stage)
    return stage


def _from_yaml(item: object, path: Path) -> Technique:
    if isinstance(item, str):
        return technique(TECHNIQUES, item, {})
    if isinstance(item, dict) and len(item) == 1:
        ((name, settings),) = item.items()
        if settings is None or isinstance(settings, dict):
            return technique(TECHNIQUES, str(name), settings or {})
    raise ConfigError(f"recipe {path}: {item!r} is no technique; allowed: a name, or name: {{setting: value}}")


def _value(text: str) -> Any:
    """none, true, false, whole numbers, decimals; anything else is a word."""
    words: dict[str, Any] = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
