"""The headline: 100 and 1000 times as fast as the fp32 teacher in PyTorch, at what loss; and against int8 elsewhere.

    python benchmarks/headline.py [--sets banking77 ...] [--calls 300] [--contenders NAME ...] [--out FILE] [--again]

Teacher: all-mpnet-base-v2, fine-tuned (teachers.py), in PyTorch fp32; the same teacher in ONNX Runtime, LiteRT and
OpenVINO int8 (headline_peers.py) and in ours; MiniLM, fine-tuned alike, in int8; the students of student_recipes.py;
TF-IDF + SVM. All answer every test message; then all are timed in one process on one thread, call by call in turn, on
test messages in a shuffled order: batch 1, text in, answer out. Students are trained where they are missing.

Loss is against the teacher in PyTorch, with a 95% paired bootstrap interval (DESIGN: a mean over seeds). The fastest
int8 runtime is the one with the smallest mean of this run. Writes benchmarks/results/headline.json after every set; a
set that is there with these contenders and as many calls is left as it is without --again, so an interrupted run goes
on where it stopped. What peers and PyTorch answered is kept in FLYWEIGHT_CACHE/headline.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import headline_peers
import numpy as np
from compressed import compressed
from headline_answers import remembered
from headline_measure import alternate, fastest, mean_loss, timed_row, verdict_over_sets
from real_data import METRICS
from student_models import student, teacher_file, teacher_folder
from student_recipes import STUDENTS, TARGETS, seeds_of
from teachers import MPNET, SETS, find, teacher

import flyweight as fw
from flyweight.answers import Answerer
from flyweight.data.messages import Message
from flyweight.measure.bootstrap import Loss
from flyweight.measure.classic import ClassicClassifier
from flyweight.measure.latency import single_thread
from flyweight.measure.machine import machine
from flyweight.measure.memory import serving_memory
from flyweight.measure.quality import ask, evaluate_answers
from flyweight.progress import bar
from flyweight.runtime.native import Native

RESULTS = Path(__file__).parent / "results" / "headline.json"
PARENT = "PyTorch fp32"
OURS = "Flyweight int8"
CLASSIC = "TF-IDF + SVM"
MINILM = "MiniLM"
TEACHER_RUNTIMES = (*headline_peers.RUNTIMES, OURS)
PLAIN = tuple(f"{MINILM}, {runtime}" for runtime in ("ONNX Runtime int8", "LiteRT int8", "OpenVINO int8", OURS))
CONTENDERS = (*TEACHER_RUNTIMES, *PLAIN, *TARGETS, CLASSIC)
ENOUGH_CALLS = 300  # for a claim


@dataclass(frozen=True)
class Contender:
    """One line of the table. `model` answers all messages, `call` is what is timed; label, seed: of a student.

    folder: of the float model, where answers take so long that they are kept on disk.
    """

    name: str
    group: str
    model: Answerer
    call: Callable[[str], object]
    path: Path | None = None
    folder: Path | None = None
    label: str | None = None
    seed: int | None = None


def opened(name: str, data: fw.NLUData, which: str) -> list[Contender]:
    """The contenders of that name on a set: one, or of a student one a seed."""
    if which == CLASSIC:
        svm = ClassicClassifier.fit(data.train + data.validation)
        return [Contender(which, "classic", svm, lambda text: svm.answers([text]))]
    if which in STUDENTS:
        seeds = seeds_of(name) if which in TARGETS else (0,)
        return [_fly(f"{which}, seed {s}", "student", student(name, which, s).fly, which, s) for s in seeds]
    model, _, runtime = which.rpartition(", ")
    if runtime == OURS:
        path = compressed(name, "minilm", 0, "int8").fly if model == MINILM else teacher_file(name)
        return [_fly(which, "plain" if model else "teacher", path)]
    folder = _folder(name, model)
    texts = [m.text for m in data.test]
    longest = max(len(e.ids) for e in fw.NLUModel.load(folder).tokenizer.encode_batch(texts))
    peer, path = headline_peers.opened(runtime, folder, [m.text for m in data.train], longest)
    return [Contender(which, "plain" if model else "teacher", peer, peer.parse, path, folder, model or None)]


def _folder(name: str, model: str) -> Path:
    """The float folder of the teacher (""), of MiniLM, or of a student."""
    if model in STUDENTS:
        return student(name, f"{model}, float", 0).folder
    folder = find(name, "minilm", 0) if model == MINILM else teacher_folder(name)
    if folder is None:
        sys.exit(f"{name}: {model or 'the teacher'} has not been trained; run benchmarks/teachers.py {name}")
    return folder


def _fly(which: str, group: str, path: Path, label: str | None = None, seed: int | None = None) -> Contender:
    nlu = fw.load(path)
    if not isinstance(nlu.engine, Native):
        sys.exit(f"{which}: {nlu.engine.title} answers it; milliseconds are claimed of the native engine: make native")
    return Contender(which, group, nlu, nlu.parse, path, None, label, seed)


def measure(name: str, names: Sequence[str], n_calls: int) -> dict[str, Any]:
    """One set: every contender's answers, then all times in one run. The parent comes first, whatever `names` says."""
    _, data = teacher(name, str(MPNET))
    names = [PARENT, *(n for n in names if n != PARENT)]
    # Students first: one that must be trained should not find the peers' graphs in memory.
    by_name = {which: opened(name, data, which) for which in sorted(names, key=lambda n: n not in STUDENTS)}
    found = [c for which in names for c in by_name[which]]
    rows = [row(c, found[0], data) for c in found]
    texts = [m.text for m in data.test]
    load = os.getloadavg()[0]
    with single_thread(), bar(f"timing {name}", n_calls, show=True) as advance:
        times = alternate({c.name: c.call for c in found}, texts, n_calls, advance=advance)
    int8 = fastest(times, headline_peers.INT8)
    for each, c in zip(rows, found, strict=True):
        each["times"] = timed_row(times, c.name, {"parent": PARENT, "int8": int8})
    return {
        "set": name,
        "contenders": list(names),
        "calls": n_calls,
        "fastest_int8": int8,
        "load_average": load,
        "messages": {part: len(messages) for part, messages in data.parts.items()},
        "machine": machine(),
        "peers": headline_peers.versions(),
        "rows": rows,
    }


def row(c: Contender, parent: Contender, data: fw.NLUData) -> dict[str, Any]:
    """Answers of one contender: quality on the test messages, of our files losses on the validation messages too."""
    found = evaluate_answers(answers_of(c, data.test), data.test, against=answers_of(parent, data.test)).to_dict()
    kept = ("intent_accuracy", "intent_macro_f1", "span_f1", "exact_frame_accuracy", "n_flips", "losses")
    made: dict[str, Any] = {
        "name": c.name,
        "group": c.group,
        "label": c.label,
        "seed": c.seed,
        "engine": c.model.engine.title if isinstance(c.model, fw.Parser) else None,
        "size_bytes": None if c.path is None else c.path.stat().st_size,
        "quality": {k: found[k] for k in kept},
    }
    if isinstance(c.model, fw.Parser):
        made["serving_memory_mb"] = serving_memory(c.path).resident_mb
        chosen_by = data.validation
        of_parent = answers_of(parent, chosen_by)
        losses = evaluate_answers(answers_of(c, chosen_by), chosen_by, against=of_parent).losses
        made["validation_losses"] = {metric: loss.to_dict() for metric, loss in losses.items()}
    return made


def answers_of(c: Contender, messages: Sequence[Message]) -> list[Any]:
    """Its answers, from the disk where they take long and have been given before."""
    texts = [m.text for m in messages]

    def asked() -> list[Any]:
        with single_thread(), bar(f"asking {c.name}", len(texts), show=True) as advance:
            return ask(c.model, texts, advance)

    if c.folder is None:
        return asked()
    return remembered(c.name, [p for p in (c.folder, c.path) if p], headline_peers.versions(), texts, asked)


def targets(sets: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each of the headline's sentences may say over the sets that have been measured."""
    found = []
    for label, target in TARGETS.items():
        of_sets = [x for each in sets if (x := _target_on_set(label, each)) is not None]
        if not of_sets:
            continue
        spans = [x["losses"]["span_f1"] for x in of_sets if "span_f1" in x["losses"]]
        intents = [x["losses"][METRICS[x["set"]][0]] for x in of_sets]
        worst = max(x["worst_percent"] for x in of_sets)
        found.append(
            {
                "label": label,
                "speedup": target.speedup,
                "sets": of_sets,
                "intent": verdict_over_sets([Loss(**x) for x in intents], target.intent_percent),
                "span": verdict_over_sets([Loss(**x) for x in spans], target.span_percent) if spans else None,
                "worst_percent": worst,
                "worst_met": None if target.worst_percent is None else worst <= target.worst_percent,
                "speed_met": all(x["parent"]["ratio"] >= target.speedup for x in of_sets),
            }
        )
    return found


def _target_on_set(label: str, measured: dict[str, Any]) -> dict[str, Any] | None:
    """Losses (means over seeds) and ratios of one student on one set; None where it has not been measured."""
    rows = [r for r in measured["rows"] if r["label"] == label and r["group"] == "student"]
    if not rows:
        return None
    metrics = METRICS[measured["set"]]
    losses = {m: mean_loss([r["quality"]["losses"][m] for r in rows]).to_dict() for m in metrics}
    found = {
        "set": measured["set"],
        "seeds": len(rows),
        "losses": losses,
        "worst_percent": max(r["quality"]["losses"][m]["loss_percent"] for r in rows for m in metrics),
        "mean_ms": float(np.mean([r["times"]["mean_ms"] for r in rows])),
        "fastest_int8": measured["fastest_int8"],
    }
    for reference in ("parent", "int8"):
        ratios = [r["times"][reference] for r in rows if reference in r["times"]]
        found[reference] = (
            {k: float(np.mean([x[k] for x in ratios])) for k in ("ratio", "low", "high")}
            | {"row": float(np.mean([x["row"]["ratio"] for x in ratios]))}
            if ratios
            else None
        )
    return found


class Results:
    """The JSON file of one benchmark: sets in their order, each written as soon as it has been measured."""

    def __init__(self, path: Path, more: dict[str, Any] | None = None):
        """`more`: what is written beside the sets."""
        self.path, self.more = path, more or {}
        self.sets: dict[str, dict[str, Any]] = {}
        if path.exists():
            self.sets = {each["set"]: each for each in json.loads(path.read_text(encoding="utf-8"))["sets"]}

    def has(self, name: str, names: Sequence[str], n_calls: int) -> bool:
        """Has the set been measured with these contenders, in as many calls?"""
        found = self.sets.get(name)
        return found is not None and set(names) <= set(found["contenders"]) and found["calls"] >= n_calls

    def keep(self, measured: dict[str, Any]) -> None:
        """Put a set in, and write the file, whole or not at all."""
        self.sets[measured["set"]] = measured
        ordered = sorted(self.sets.values(), key=lambda each: SETS.index(each["set"]))
        found = {"sets": ordered, "targets": targets(ordered), **self.more}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        part.replace(self.path)


def show(measured: dict[str, Any]) -> None:
    """One line a contender."""
    for r in measured["rows"]:
        times, q = r["times"], r["quality"]
        losses = ", ".join(f"{m} {q[m]:.4f} ({q['losses'][m]['loss_percent']:+.2f}%)" for m in METRICS[measured["set"]])
        int8 = f", int8 / this {times['int8']['ratio']:.2f}" if "int8" in times else ""
        print(
            f"{measured['set']:12} {r['name']:28} {losses}; {times['mean_ms']:.3f} ms, in a row "
            f"{times['row_mean_ms']:.3f}; PyTorch / this {times['parent']['ratio']:.1f}{int8}",
            flush=True,
        )


def arguments(
    description: str | None, results: Path, sets: Sequence[str], contenders: Sequence[str], allowed: Sequence[str]
) -> Any:
    """What headline.py and students.py are told: their defaults, and the contenders that they know."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(sets), choices=SETS, metavar="SET")
    parser.add_argument("--calls", type=int, default=ENOUGH_CALLS, help="timed calls a contender")
    parser.add_argument("--contenders", nargs="+", default=list(contenders), choices=allowed, metavar="NAME")
    parser.add_argument("--out", type=Path, default=results)
    parser.add_argument("--again", action="store_true", help="measure what is there again")
    chosen = parser.parse_args()
    whole = chosen.calls >= ENOUGH_CALLS and set(contenders) <= set(chosen.contenders)
    if chosen.out == results and not whole:
        parser.error(f"under {ENOUGH_CALLS} calls or with fewer contenders it is a trial; give --out FILE for it")
    return chosen


def run(chosen: Any, more: dict[str, Any] | None = None) -> Results:
    """Measure the sets that are missing."""
    results = Results(chosen.out, more)
    for name in chosen.sets:
        if teacher_folder(name) is None:
            print(f"missing: the teacher of {name}; train it with benchmarks/teachers.py", file=sys.stderr)
        elif chosen.again or not results.has(name, chosen.contenders, chosen.calls):
            results.keep(measure(name, chosen.contenders, chosen.calls))
            show(results.sets[name])
    return results


def main() -> None:
    run(arguments(__doc__, RESULTS, SETS, CONTENDERS, (*CONTENDERS, *STUDENTS)))


if __name__ == "__main__":
    main()
