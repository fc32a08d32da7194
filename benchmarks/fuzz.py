"""Mutated .fly files by the ten thousand: every one is answered from or refused with a FlyweightError in one line.

    python benchmarks/fuzz.py                      100,000 inputs in child processes, totals, results/fuzz.json
    python benchmarks/fuzz.py --inputs 1000 --bot bot.fly

Input i is made from seed i and one file of the corpus: the bundled model and small random models of every shape and
weight form. A kind of mutation either breaks a file (bytes changed, cut, inserted, another file spliced in) or forges
one: the manifest, the header, the tokenizer or tensors are changed and all SHA-256 made right again, so that only
sizes, ranges and types can tell. Three ways lead in: `verify`, `load` and two messages, the same without the golden
samples (every tenth time in the NumPy reference); each must answer or refuse.

crash      the process died                                must be 0
hang       no result within 60 s                           must be 0
escape     an exception that is no FlyweightError, or      must be 0
           a message of more than one line
silent     verify passed a broken file whose answers       must be 0 (forged files may well answer)
           differ from the original's
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from flyweight.artifact import read, verify, write
from flyweight.errors import FlyweightError
from flyweight.runtime.parser import BUNDLED_FILE, EngineName, Parser, load

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # random models and damaged files are made there
from fly_bytes import assemble, nodes, parts

RESULTS = Path(__file__).parent / "results"
CHUNK = 500  # inputs of one child process
HANG_SECONDS = 60.0  # for one input; the slowest honest one takes tenths of a second
HANG = "Timeout ("  # what faulthandler says before it ends a process
MEMORY_BYTES = 6 << 30  # of a child: a file that asks for more is a fault
TEXTS = ["wake me at seven tomorrow", "zzz \U0001f600 7:30"]
HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 127, 128, 2**31 - 1, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e-320,
    1e308, float("nan"), float("inf"), "", "a", "int8", "codes", "panels", "\ud800", "\0", [], [[]], [1], ["a"], {},
    {"a": {}}, [0] * 99, "x" * 10_000, [[[[[[[[]]]]]]]],
]  # fmt: skip
SPECIAL_FLOATS = [float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 1e-45, 0.0]


# the corpus ----------------------------------------------------------------------------------------------------------


def corpus(folder: Path, bot: Path | None) -> list[Path]:
    """Write the files that are mutated: the bundled model (or `bot`) first, then small random ones of every kind."""
    from engine_cases import packed
    from random_models import VARIANTS, random_model

    from flyweight.answers import Labels
    from flyweight.data.messages import Message, NLUData
    from flyweight.export.fly import export_fly
    from flyweight.model.encoder import EncoderConfig
    from flyweight.model.nlu import NLUModel
    from flyweight.model.small import train_tokenizer
    from flyweight.recipe import compress
    from flyweight.techniques.codebook import Codebook
    from flyweight.techniques.int8 import Int8
    from flyweight.tokenizer import Tokenizer

    texts = ["wake me at seven tomorrow", "book a table for two in Rome", "hello", "flights to New York at 7:30"]
    tokenizer = Tokenizer(train_tokenizer(texts, 120), 40)
    labels = Labels(("alarm", "table", "out_of_scope"), ("city", "time"), 1.3, {"nyc": "New York"}, 0.2, 0.05)
    like = NLUModel(
        EncoderConfig(vocab_size=120, hidden=8, head_size=4, layers=(), max_positions=40), tokenizer, labels
    )
    like.card.golden = texts
    data = NLUData(tuple(Message(t) for t in texts))
    recipes = [
        [],
        [Int8()],
        [Codebook(encoder=16, embeddings=256)],
        [Codebook(encoder=4, heads=2)],
        [Codebook(encoder=5)],
    ]
    found = [bot or BUNDLED_FILE]
    for at, (name, options) in enumerate(VARIANTS.items()):
        model = random_model(like, **options)
        recipe = recipes[at % len(recipes)]
        small = compress(model, data, recipe, measure=False, progress=False) if recipe else model
        found.append(export_fly(small, folder / f"{name.replace(' ', '-')}.fly"))
    with mock.patch("flyweight.export.fly.chosen", lambda name, form, activations: form):  # as it is
        for packing in ("sparse int8", "sparse 16 centres in blocks"):
            found.append(export_fly(packed(like, "plain", packing), folder / f"{packing.replace(' ', '-')}.fly"))
    return found


# mutations -----------------------------------------------------------------------------------------------------------


def flip_bits(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """1 to 64 bits anywhere, or in the header alone."""
    changed = bytearray(data)
    end = 8 + int.from_bytes(data[:8], "little") if rng.random() < 0.5 else len(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8, 64])):
        changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A run of zeros, ones, or random bytes."""
    at, n = rng.randrange(len(data)), rng.choice([1, 4, 8, 64, 4096])
    fill = rng.choice([bytes(n), b"\xff" * n, rng.randbytes(n)])
    return (data[:at] + fill + data[at + n :])[: len(data)]


def resize(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Cut, lengthened, a run inserted or left out."""
    at, n = rng.randrange(len(data)), rng.choice([1, 7, 8, 64, 1000])
    return rng.choice(
        [data[:at], data + rng.randbytes(n), data[:at] + rng.randbytes(n) + data[at:], data[:at] + data[at + n :]]
    )


def header_length(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Another length of the header: zero, off by some, oversized, 2^64 - 1."""
    n = int.from_bytes(data[:8], "little")
    wanted = rng.choice([0, 1, n - 1, n + 1, n + 64, n - 64, len(data), len(data) - 8, 2**31, 2**63, 2**64 - 1])
    return (max(wanted, 0)).to_bytes(8, "little") + data[8:]


def splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """The beginning of one file, the end of another."""
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def forge_manifest(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Hostile values in the manifest, also versions; its SHA-256 fits."""
    header, manifest, tensors = parts(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        container, key = rng.choice(nodes(manifest))
        if rng.random() < 0.15:
            container.pop(key)
        else:
            container[key] = copy.deepcopy(rng.choice(HOSTILE))
    return assemble(header, manifest, tensors)


def forge_header(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Offsets that overlap, leave holes or lie outside, other types and shapes, tensors of other names."""
    header, manifest, tensors = parts(data)
    name, neighbour = rng.choice(list(header)), rng.choice(list(header))
    entry = header[name]
    low, high = entry["data_offsets"]
    kind = rng.randrange(7)
    if kind == 0:
        header[name], header[neighbour] = header[neighbour], header[name]
    elif kind == 1:
        entry["data_offsets"] = rng.choice(
            [[low - 64, high], [low, high + 64], [high, low], [0, high], [low], [-64, 0], [2**62, 2**63]]
        )
    elif kind == 2:
        entry["dtype"] = rng.choice(["F32", "I8", "U8", "F64", "BF16", "", None, 3])
    elif kind == 3:
        entry["shape"] = rng.choice([[], [0], [-1], [2**40], [1, 2], entry["shape"] * 2, "a", None])
    elif kind == 4:
        header[f"{name}.more"] = header.pop(name)
    elif kind == 5:
        manifest["tensors"][name]["shape"] = rng.choice([[], [0], [1, 1], [2**40], [-1, -1], [1] * 9, ["a"], None])
    else:
        header[name], manifest["tensors"][name] = rng.choice(HOSTILE), rng.choice(HOSTILE)
    return assemble(header, manifest, tensors)


def forge_tensors(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """NaN, infinity, huge and random numbers in tensors whose SHA-256 fit."""
    manifest, arrays = contents(data)
    for _ in range(rng.choice([1, 1, 3])):
        name = rng.choice([n for n in arrays if arrays[n].size])
        flat = arrays[name].reshape(-1)
        for _ in range(rng.choice([1, 1, 10, 1000])):
            at = rng.randrange(len(flat))
            flat[at] = (
                rng.choice(SPECIAL_FLOATS)
                if flat.dtype == np.float32
                else rng.randrange(-128, 128) % 256 - 128 * (flat.dtype == np.int8)
            )
    return rewritten(manifest, arrays)


def forge_tokenizer(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Hostile values in tokenizer.json, or its bytes changed; its SHA-256 fits."""
    manifest, arrays = contents(data)
    text = arrays["tokenizer.json"].tobytes()
    if rng.random() < 0.7:
        spec = json.loads(text)
        places = [p for p in nodes(spec, 400) if p[1] != "vocab" or rng.random() < 0.1]
        for _ in range(rng.choice([1, 1, 2])):
            container, key = rng.choice(places)
            container[key] = copy.deepcopy(rng.choice(HOSTILE))
        text = json.dumps(spec).encode()
    else:
        text = overwrite(rng, text, other)
    arrays["tokenizer.json"] = np.frombuffer(text, np.uint8)
    return rewritten(manifest, arrays)


Mutation = Callable[[random.Random, bytes, bytes], bytes]
BREAKING: list[Mutation] = [flip_bits, overwrite, resize, header_length, splice]
FORGING: list[Mutation] = [forge_manifest, forge_header, forge_tensors, forge_tokenizer]


def contents(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Manifest and writable arrays of a file."""
    with tempfile.NamedTemporaryFile(suffix=".fly") as file:
        Path(file.name).write_bytes(data)
        found = read(file.name)
        return found.manifest, {name: a.copy() for name, a in found.arrays.items()}


def rewritten(manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    """The file of manifest and arrays, every SHA-256 right."""
    with tempfile.TemporaryDirectory() as folder:
        return write(Path(folder) / "x.fly", manifest, arrays).read_bytes()


# one input -----------------------------------------------------------------------------------------------------------


class Original:
    """A file of the corpus and what it answers."""

    def __init__(self, path: Path):
        self.data = path.read_bytes()
        self.answers = Parser(read(path)).parse_batch(TEXTS)


def one(i: int, originals: list[Original], path: Path) -> tuple[str, str, str]:
    """(mutation, outcome, message) of input i: refused, fine, escape or silent."""
    rng = random.Random(i)
    # Every fourth input is the real model; it is larger, so that all of them would take hours.
    at = 0 if rng.random() < 0.25 else rng.randrange(len(originals))
    mutation = rng.choice(BREAKING + FORGING)
    path.unlink(missing_ok=True)  # a new file: the old one may still be mapped
    path.write_bytes(mutation(rng, originals[at].data, rng.choice(originals).data))
    refusals = []
    answers: Any = None
    engine: EngineName = "numpy" if i % 10 == 0 else "auto"
    for attempt in (lambda: verify(path), lambda: answer(path, check=False, engine=engine), lambda: answer(path)):
        try:
            answers = attempt()
        except FlyweightError as error:
            refusals.append(str(error))
        except BaseException as error:  # a panic of a Rust package is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            return mutation.__name__, "escape", f"{type(error).__name__}: {error}"
    if any("\n" in text or not text for text in refusals):
        return mutation.__name__, "escape", f"not one line: {refusals!r}"
    if mutation in BREAKING and not refusals and answers != originals[at].answers:
        return mutation.__name__, "silent", f"input {i} answers {answers}"
    return mutation.__name__, "refused" if refusals else "fine", refusals[0] if refusals else ""


def answer(path: Path, check: bool = True, engine: EngineName = "auto") -> list[dict[str, Any]]:
    """What `flyweight parse` does; `check` runs the golden samples first."""
    return load(path, check=check, engine=engine).parse_batch(TEXTS)


def pattern(message: str) -> str:
    """An error message without its names and numbers: how different messages are counted."""
    message = re.sub(r"^\S*?\.fly:? ?", "", message)
    message = re.sub(r"'[^']*'|\"[^\"]*\"|\[.*\]|\(.*\)|\{.*\}", "_", message)
    return re.sub(r"[\w.]*\d[\w.+-]*", "#", message)[:120]


def child(first: int, last: int, files: list[Path], folder: Path) -> None:
    """Try inputs first .. last - 1, a line of JSON each on stdout: the parent sees how far a dead child came."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    originals = [Original(path) for path in files]
    path = folder / f"x-{first}.fly"
    for i in range(first, last):
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        print(json.dumps([i, *one(i, originals, path)]), flush=True)


# many inputs ---------------------------------------------------------------------------------------------------------


def run(n_inputs: int, files: list[Path], folder: Path, show: bool = True) -> dict[str, Any]:
    """Try n_inputs in child processes of CHUNK inputs; a dead or hanging child is counted and the rest goes on."""
    outcomes: dict[str, Counter[str]] = {}
    patterns: Counter[str] = Counter()
    faults: list[dict[str, Any]] = []
    at, start = 0, time.monotonic()
    while at < n_inputs:
        last = min(at + CHUNK, n_inputs)
        command = [sys.executable, __file__, "--child", str(at), str(last), str(folder), *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        # A line without its end is that of an input at which the child died.
        rows = [json.loads(line) for line in done.stdout.splitlines(keepends=True) if line.endswith("\n")]
        for i, mutation, outcome, message in rows:
            outcomes.setdefault(mutation, Counter())[outcome] += 1
            if outcome == "refused":
                patterns[pattern(message)] += 1
            elif outcome != "fine":
                faults.append({"input": i, "mutation": mutation, "outcome": outcome, "message": message[:300]})
        at = rows[-1][0] + 1 if rows else at
        if done.returncode:
            what = "hang" if HANG in done.stderr else "crash"
            told = f"exit {done.returncode}: {' '.join(done.stderr.split())[-300:]}"
            faults.append({"input": at, "mutation": "", "outcome": what, "message": told})
            at += 1
        if show:
            left = (time.monotonic() - start) / max(at, 1) * (n_inputs - at)
            print(f"{at} of {n_inputs}, {len(faults)} faults, {left / 60:.0f} min left", file=sys.stderr, flush=True)
    totals = sum(outcomes.values(), Counter())
    kinds = {name: dict(sorted(c.items())) for name, c in sorted(outcomes.items())}
    counts = {what: sum(f["outcome"] == what for f in faults) for what in ("crash", "hang", "escape", "silent")}
    return {
        "inputs": at,
        "refused": totals["refused"],
        "fine": totals["fine"],
        **counts,
        "distinct_messages": len(patterns),
        "mutations": kinds,
        "messages": dict(patterns.most_common(40)),
        "faults": faults[:50],
    }


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        first, last, folder, *files = sys.argv[2:]
        child(int(first), int(last), [Path(f) for f in files], Path(folder))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--bot", type=Path, help="a real .fly file; by default the bundled model")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        found = run(asked.inputs, corpus(Path(folder), asked.bot), Path(folder))
    print(json.dumps({k: v for k, v in found.items() if k != "messages"}, indent=1))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "fuzz.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if found["faults"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
