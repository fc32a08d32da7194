"""Make the students of student_recipes.py, or find them where they were made before.

    python benchmarks/student_models.py SET [--students "2 x 128" ...] [--seeds 0]

Kept like the models of compressed.py, in its folder; an interrupted training resumes. The test file is never looked at
here, but for what `Run.data` says.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compressed import Compressed, compressed, kept
from compressed import versions_of as versions_of_training
from student_recipes import STUDENTS, Sources
from teachers import MPNET, SETS, find, teacher

import flyweight as fw
from flyweight.techniques.room import Technique

VERSION = 1  # of what student, distillation and transfer text compute: raised when other models come out
TEACHER_SEED = 0


def student(name: str, label: str, seed: int) -> Compressed:
    """The student of a set by that recipe."""
    model, data = teacher(name, str(MPNET), TEACHER_SEED)
    before = STUDENTS[label].after
    if before is not None:
        model = fw.NLUModel.load(student(name, before, seed).folder)
    techniques = steps_of(name, label, seed)
    return kept(f"{name}-student-{seed}-{label}", model, data, techniques, seed, versions_of(techniques))


def steps_of(name: str, label: str, seed: int) -> tuple[Technique, ...]:
    """The techniques of a recipe on this set. Files that it names are made first where they are missing."""
    return STUDENTS[label].steps(
        Sources(
            name=name,
            teacher=str(teacher_file(name)),
            file=lambda other: str(student(name, other, seed).fly),
            folder=lambda other: str(student(name, other, seed).folder),
        )
    )


def versions_of(techniques: Sequence[Technique]) -> list[Any]:
    """Versions that the models of these techniques are made with: compressed.py's too where its techniques train."""
    return ["student", VERSION, *versions_of_training(techniques)]


def teacher_file(name: str) -> Path:
    """The teacher's int8 file."""
    return compressed(name, str(MPNET), TEACHER_SEED, "int8").fly


def teacher_folder(name: str) -> Path | None:
    """The float teacher; None where it has not been trained."""
    return find(name, str(MPNET), TEACHER_SEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--students", nargs="+", default=list(STUDENTS), choices=list(STUDENTS), metavar="LABEL")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    chosen = parser.parse_args()
    for seed in chosen.seeds:
        for label in chosen.students:
            found = student(chosen.set, label, seed)
            print(f"{chosen.set} seed {seed} {label}: {found.made['minutes']} minutes, {found.fly}", flush=True)


if __name__ == "__main__":
    main()
