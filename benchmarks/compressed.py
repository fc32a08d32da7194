"""The recipes of the benchmarks, and the compressed models: made once, then found in the cache.

    python benchmarks/compressed.py SET [--recipes int8 ...] [--base minilm] [--seeds 0]

A model is kept as a .fly file and as a folder (the workshop's own form) beside `made.json`: minutes, settings. The key
is made of the teacher's weights and the recipe, of VERSIONS where it trains. The test file is never looked at here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from teachers import CACHE, MPNET, teacher

import flyweight as fw
from flyweight.receipt import name_of
from flyweight.techniques.room import Technique

# Techniques that train, each with a number that is raised when the same settings come to other models.
VERSIONS: dict[type, int] = {
    **dict.fromkeys((fw.TrainedCodes, fw.QAT), 2),
    **dict.fromkeys((fw.Magnitude, fw.Movement, fw.StructuredPruning, fw.HeadPruning), 3),
    **dict.fromkeys((fw.NeuronPruning, fw.LayerPruning, fw.HiddenPruning), 3),
}
MPNET_RATE = 0.25  # of the learning rate of MiniLM: 12 layers of 768 want less


@dataclass(frozen=True)
class Entry:
    """A recipe and the loss that it may cost, percent; None: no bound is claimed.

    after: label of the recipe whose model this one goes on from, so that what it trained is not trained again. Its
    techniques then learn from no teacher.
    """

    techniques: tuple[Technique, ...]
    bound_percent: float | None = None
    after: str | None = None


PARTS = {"embeddings": 256, "heads": 256}
KEPT = fw.TrainedCodes(encoder="kept", embeddings="kept", heads="kept")
QUANTIZED: dict[str, Entry] = {
    "int8": Entry((fw.Int8(),), 0.3),
    "static int8": Entry((fw.StaticInt8(),), 0.5),
    "integer-only int8": Entry((fw.StaticInt8(fallback=None, integer_only=True),)),
    "int8 QAT": Entry((fw.QAT(distil="hidden"),)),
    "4-bit codes": Entry((fw.Codebook(encoder=16, **PARTS),), 0.5),
    "4-bit codes, GPTQ": Entry((fw.GPTQ(encoder=16, **PARTS),), 0.5),
    "4-bit trained codes": Entry((fw.TrainedCodes(encoder=16, **PARTS),)),
    "mixed 3 bits": Entry((fw.MixedPrecision(max_average_bits=3.0),), 0.7),
    "mixed 3 bits, trained": Entry((fw.MixedPrecision(max_average_bits=3.0), KEPT), 0.7),
    "3-bit codes": Entry((fw.Codebook(encoder=8, **PARTS),)),
    "3-bit codes, GPTQ": Entry((fw.GPTQ(encoder=8, **PARTS),)),
    "3-bit trained codes": Entry((fw.TrainedCodes(encoder=8, **PARTS),)),
    "2-bit codes": Entry((fw.Codebook(encoder=4, **PARTS),)),
    "2-bit codes, GPTQ": Entry((fw.GPTQ(encoder=4, **PARTS),)),
    "2-bit trained codes": Entry((fw.TrainedCodes(encoder=4, **PARTS),), 1.5),
    "1-bit codes": Entry((fw.Codebook(encoder=2, **PARTS),)),
    "1-bit codes, GPTQ": Entry((fw.GPTQ(encoder=2, **PARTS),)),
    "1-bit trained codes": Entry((fw.TrainedCodes(encoder=2, **PARTS),)),
}
SPARSITIES = (50, 70, 80, 90)  # percent
BLOCKS = {"shape": "1x4", "sparsity": 0.8}
PRUNED: dict[str, Technique] = {
    **{f"magnitude {p}%": fw.Magnitude(sparsity=p / 100, shape="unstructured") for p in SPARSITIES},
    **{f"movement {p}%": fw.Movement(sparsity=p / 100, shape="unstructured") for p in SPARSITIES},
    **{f"1x4 {p}%": fw.Magnitude(sparsity=p / 100, shape="1x4") for p in SPARSITIES},
    "1x4 80%, movement": fw.Movement(**BLOCKS),
    "1x4 80%, soft movement": fw.Movement(mode="soft", **BLOCKS),
    "1x4 80%, global": fw.Magnitude(scope="global", **BLOCKS),
    "1x4 80%, labels alone": fw.Magnitude(distil=None, **BLOCKS),
    "1x4 80%, iterative": fw.Magnitude(schedule="iterative", **BLOCKS),
    "1x4 80%, one-shot": fw.Magnitude(schedule="one-shot", **BLOCKS),
    "1x4 80%, untrained": fw.Magnitude(schedule="one-shot", epochs=0, **BLOCKS),
}
RECIPES = dict(QUANTIZED)
for label, step in PRUNED.items():
    RECIPES[label] = Entry((step,))
    RECIPES[f"{label}, int8"] = Entry((fw.Int8(),), 1.0 if label == "1x4 80%" else None, after=label)
STRUCTURED = {
    f"structured {speed}x": Entry((fw.StructuredPruning(speedup=speed), fw.Int8()), bound)
    for speed, bound in ((2, 0.3), (4, 1.0), (8, 2.5))
}
# At equal milliseconds: no head and all neurons is 1.5 times as fast, the other way round 2.5 times.
GRAINS = {
    f"{grain} only {speed}x": Entry(
        (fw.StructuredPruning(speedup=speed, structures=grain, rounds=2, transfer=1, epochs=7), fw.Int8())
    )
    for grain in ("heads", "neurons", "heads+neurons")
    for speed in (1.1, 1.2, 1.3, 1.4, 1.6, 2.0)
    if grain != "heads" or speed < 1.5
}
HEADS: dict[str, tuple[Technique, ...]] = {
    **{f"heads {p}%": (fw.HeadPruning(keep=p / 100, epochs=0),) for p in (90, 80, 70, 60, 50)},
    **{f"heads {p}%, trained": (fw.HeadPruning(keep=p / 100),) for p in (80, 60, 40)},
}
NEURONS: dict[str, tuple[Technique, ...]] = {
    "neurons 50%, untrained": (fw.NeuronPruning(step=1.0, epochs=0),),
    "neurons 50%, mask search untuned": (fw.MaskSearch(heads=False, tune=False),),
    "neurons 50%, mask search": (fw.MaskSearch(heads=False),),
    "neurons 75%, mask search": (fw.MaskSearch(heads=False, keep=0.75),),
    "heads + neurons 75%, mask search": (fw.MaskSearch(keep=0.75),),
    "neurons 50%, one-shot": (fw.NeuronPruning(step=1.0),),
    "neurons 50%, alternating": (fw.NeuronPruning(),),
    "layers 4, trained": (fw.LayerPruning(keep=4),),
}
VOCABULARY: dict[str, tuple[Technique, ...]] = {
    "vocabulary": (fw.Vocabulary(common=0),),
    "vocabulary, 5000 common": (fw.Vocabulary(common=5000),),
    "vocabulary, 10000 common": (fw.Vocabulary(common=10_000),),
    "vocabulary, 20000 common": (fw.Vocabulary(common=20_000),),
}
PARTS_CUT = {
    label: Entry((*steps, fw.Int8()), 0.5 if label == "neurons 50%, alternating" else None)
    for label, steps in (HEADS | NEURONS | VOCABULARY).items()
}
CHAINS = {
    f"deep compression {share}%, {bits} bits": Entry(
        (
            fw.Vocabulary(),
            fw.Magnitude(sparsity=share / 100, shape="unstructured"),
            fw.TrainedCodes(encoder=2**bits, embeddings=16, heads=256),
        )
    )
    for share, bits in ((60, 4), (80, 4), (60, 2))
}
RECIPES |= STRUCTURED | GRAINS | PARTS_CUT | CHAINS


@dataclass(frozen=True)
class Compressed:
    """One compressed model: the .fly file, the workshop's folder, what its making cost and was."""

    fly: Path
    folder: Path
    made: dict[str, Any]


def compressed(name: str, base: str, seed: int, label: str) -> Compressed:
    """The model of a set, base and seed by that recipe. An interrupted training resumes."""
    model, data = teacher(name, base, seed)
    before = RECIPES[label].after
    if before is not None:
        model = fw.NLUModel.load(compressed(name, base, seed, before).folder)
    techniques = techniques_of(label, base)
    title = f"{name}-{Path(base).name}-{seed}-{label}"
    return kept(title, model, data, techniques, seed, versions_of(techniques))


def kept(
    title: str,
    model: fw.NLUModel,
    data: fw.NLUData,
    techniques: Sequence[Technique],
    seed: int,
    versions: Sequence[Any],
) -> Compressed:
    """The model after those techniques, out of the cache where it has been made before.

    Its key: the weights of the model that comes in, the techniques with their settings, and `versions`.
    """
    steps = [{name_of(t): vars(t)} for t in techniques]
    weights = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
    made_of = json.dumps([weights, steps, *versions], sort_keys=True).replace(str(CACHE), "")
    key = hashlib.sha256(made_of.encode()).hexdigest()[:10]
    folder = CACHE / "compressed" / f"{title.replace(',', '').replace(' ', '-')}-{key}"
    found = Compressed(folder / "model.fly", folder / "model", {})
    made = folder / "made.json"
    if not made.is_file():
        start = time.monotonic()
        small = fw.compress(model, data, techniques, measure=False, seed=seed, folder=work_folder(folder))
        minutes = (time.monotonic() - start) / 60
        small.save(found.folder)
        fw.save(small, found.fly)
        facts = {"recipe": steps, "minutes": round(minutes, 2), "receipts": small.card.steps}
        made.write_text(json.dumps(facts, indent=1, default=str) + "\n", encoding="utf-8")
        shutil.rmtree(folder / "work", ignore_errors=True)
    return Compressed(found.fly, found.folder, json.loads(made.read_text(encoding="utf-8")))


def versions_of(techniques: Sequence[Technique]) -> list[int]:
    """Of the techniques that train, in order."""
    return [VERSIONS[type(t)] for t in techniques if type(t) in VERSIONS]


def work_folder(folder: Path) -> Path:
    """Of a model in the making. What teachers answered is kept for all: students of one teacher ask the same texts."""
    work, answers = folder / "work", CACHE / "compressed" / "answers"
    for each in (work, answers):
        each.mkdir(parents=True, exist_ok=True)
    if not (work / answers.name).exists():
        (work / answers.name).symlink_to(answers)
    return work


def techniques_of(label: str, base: str) -> tuple[Technique, ...]:
    """The techniques of a recipe as they are run on this base."""
    if base != str(MPNET):
        return RECIPES[label].techniques
    return tuple(
        replace(t, learning_rate=MPNET_RATE * t.learning_rate) if type(t) in VERSIONS else t
        for t in RECIPES[label].techniques
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    chosen = parser.parse_args()
    for seed in chosen.seeds:
        for label in chosen.recipes:
            found = compressed(chosen.set, chosen.base, seed, label)
            print(f"{chosen.set} seed {seed} {label}: {found.made['minutes']} minutes, {found.fly}", flush=True)


if __name__ == "__main__":
    main()
