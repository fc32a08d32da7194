"""What each ingredient is worth: with and without distillation itself, transfer text, an assistant, hints.

    python benchmarks/ablation.py [--sets banking77 ...] [--seeds 0 1 2] [--questions hints ...] [--again]

A pair of recipes each (ABLATIONS of student_recipes.py): both students are cut from one model and pass over as much
text.

    distillation itself   the teacher's logits, or labels alone, which choose the epoch too (by F1); no transfer text
    transfer text         30 messages of it a training message, or as many passes over the training messages alone
    assistant             the assistant's int8 file teaches, or the teacher's; both cut from the teacher
    hints                 a stage of hints, then logits, or as many passes over logits alone; the assistant teaches

Both are int8 files, answered by the engine. Losses are against the teacher in PyTorch fp32; `without` is the loss of
the student without against the student with, on the same test messages: what leaving the ingredient out costs. 95%
paired bootstrap intervals; over several seeds the mean, and the mean of the seeds' intervals. Students are trained
where they are missing. Writes benchmarks/results/ablation.json after every question; the same command goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from headline import PARENT, answers_of, opened
from headline_measure import mean_loss
from real_data import METRICS
from student_models import student
from student_recipes import ABLATIONS
from teachers import MPNET, SETS, teacher

import flyweight as fw
from flyweight.measure.machine import machine
from flyweight.measure.quality import ask, evaluate_answers

RESULTS = Path(__file__).parent / "results" / "ablation.json"


def measure(name: str, question: str, seeds: list[int], data: fw.NLUData, parent: list[Any]) -> dict[str, Any]:
    """One question on one set. parent: the teacher's answers to the test messages."""
    texts = [m.text for m in data.test]
    of_teacher: dict[str, list[Any]] = {"with": [], "without": []}
    between, minutes = [], dict.fromkeys(of_teacher, 0.0)
    for seed in seeds:
        answers = {}
        for side, label in zip(of_teacher, ABLATIONS[question], strict=True):
            floats, found = student(name, f"{label}, float", seed), student(name, label, seed)
            minutes[side] += floats.made["minutes"] / len(seeds)
            answers[side] = ask(fw.load(found.fly), texts)
            of_teacher[side].append(evaluate_answers(answers[side], data.test, against=parent).losses)
        between.append(evaluate_answers(answers["without"], data.test, against=answers["with"]).losses)

    def mean(losses: list[Any], metric: str) -> dict[str, float]:
        return mean_loss([each[metric].to_dict() for each in losses]).to_dict()

    return {
        "set": name,
        "question": question,
        "labels": dict(zip(of_teacher, ABLATIONS[question], strict=True)),
        "seeds": seeds,
        "minutes": minutes,
        "losses": {m: {side: mean(found, m) for side, found in of_teacher.items()} for m in METRICS[name]},
        "without": {m: mean(between, m) for m in METRICS[name]},
    }


def teacher_answers(name: str, data: fw.NLUData) -> list[Any]:
    """Of the teacher in PyTorch; kept on disk by the headline."""
    [parent] = opened(name, data, PARENT)
    return answers_of(parent, data.test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["banking77"], choices=SETS, metavar="SET")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--questions", nargs="+", default=list(ABLATIONS), choices=list(ABLATIONS), metavar="QUESTION")
    parser.add_argument("--again", action="store_true", help="measure what is there again")
    chosen = parser.parse_args()
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else []
    for name in chosen.sets:
        _, data = teacher(name, str(MPNET))
        parent = teacher_answers(name, data)
        for question in chosen.questions:
            there = [r for r in rows if (r["set"], r["question"]) == (name, question)]
            if there and set(chosen.seeds) <= set(there[0]["seeds"]) and not chosen.again:
                continue
            found = measure(name, question, chosen.seeds, data, parent)
            rows = sorted(
                [*(r for r in rows if r not in there), found],
                key=lambda r: (SETS.index(r["set"]), list(ABLATIONS).index(r["question"])),
            )
            RESULTS.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
            for metric, loss in found["without"].items():
                print(
                    f"{name} {question}: {metric} with {loss['parent']:.4f}, without {loss['child']:.4f}: "
                    f"{loss['loss_percent']:+.2f}% [{loss['low_percent']:+.2f}, {loss['high_percent']:+.2f}]",
                    flush=True,
                )


if __name__ == "__main__":
    main()
