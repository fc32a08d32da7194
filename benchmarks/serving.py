"""What a server feels: messages a second in batches, text in -> answer out, start-up and memory.

    ~/.cache/flyweight/peers-venv/bin/python benchmarks/serving.py [throughput] [answers] [start]

throughput   MiniLM int8, 64 real messages at once, two threads, ids in, logits out; every peer with the best of its
             ways: padded whole, sorted into batches, or one message at a time, in one worker or two
answers      text in, ranking out, batch 1, one thread, tokenizer and Python included: `flyweight.load(file).parse`
             against the peer behind `tokenizers`, softmax and sorting, giving the same dictionary
start        BERT-base: load and first answer in a fresh process, and resident memory beyond the same imports

Messages are BANKING77's test file (FLYWEIGHT_DATA), or the embedded data set where that is not there. LiteRT gets a
graph of the exact length of each message or batch, made in advance. Environments: see engine.py.
Writes benchmarks/results/serving.json: one entry a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peers
from engine_models import MAX_TOKENS, N_INTENTS, fly_file, model_folder

RESULTS = Path(__file__).parent / "results" / "serving.json"
N_MESSAGES, N_ROUNDS, N_STARTS = 64, 20, 5
LITERT_INT8 = "dynamic_wi8_afp32"
Solve = Callable[[list[np.ndarray]], list[np.ndarray]]  # ids of 64 messages -> their logits, in order


def messages() -> tuple[list[str], str]:
    """64 messages in a shuffled fixed order, and where they are from."""
    from teachers import DATA

    import flyweight as fw

    name, data = ("banking77", DATA / "banking77") if (DATA / "banking77").is_dir() else ("assistant", "assistant")
    found = fw.load_data(data)
    texts = [m.text for m in (found.test or found.train)]
    order = np.random.default_rng(0).permutation(len(texts))[:N_MESSAGES]
    return [texts[i] for i in order], name


# --- throughput


def groups(ids: list[np.ndarray], size: int) -> list[list[int]]:
    """Indices of the messages, sorted by length, in groups; the longest group first, so that no worker ends late."""
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    return [order[at : at + size] for at in range(0, len(ids), size)][::-1]


def padded(ids: Sequence[np.ndarray], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """ids (B, T) and mask (B, T)."""
    length = max(len(row) for row in ids)
    filled, mask = np.zeros((len(ids), length), dtype), np.zeros((len(ids), length), dtype)
    for i, row in enumerate(ids):
        filled[i, : len(row)], mask[i, : len(row)] = row, 1
    return filled, mask


def in_workers(run: Callable[[int, list[np.ndarray]], np.ndarray], size: int, workers: int) -> Solve:
    """Solve groups of `size` messages in so many workers; run(worker, ids of a group) -> logits (B, C)."""
    pool = ThreadPoolExecutor(workers)
    mine, numbers = threading.local(), iter(range(workers))

    def work(ids: list[np.ndarray]) -> np.ndarray:
        if not hasattr(mine, "number"):
            mine.number = next(numbers)
        return run(mine.number, ids)

    def solve(ids: list[np.ndarray]) -> list[np.ndarray]:
        found: list[np.ndarray] = [np.empty(0)] * len(ids)
        chosen = groups(ids, size)
        submit = pool.map if workers > 1 else map
        for group, logits in zip(chosen, submit(work, [[ids[i] for i in g] for g in chosen]), strict=True):
            for i, row in zip(group, logits, strict=True):
                found[i] = row
        return found

    return solve


def our_ways(engine: Any) -> dict[str, Solve]:
    """Ours pads nothing: all in one call on two threads, or groups in two workers of one thread."""
    from flyweight.tokenizer import Encoded

    no_words = np.zeros(0, np.int64)

    def logits(ids: list[np.ndarray], threads: int) -> list[np.ndarray]:
        found = engine.logits([Encoded(row, no_words, []) for row in ids], threads)
        return [intent for intent, _ in found]

    def run(worker: int, ids: list[np.ndarray]) -> np.ndarray:
        return np.stack(logits(ids, 1))

    workers = {f"groups of {size}, 2 worker(s)": in_workers(run, size, 2) for size in (8, 1)}
    return {"one call, two threads": lambda ids: logits(ids, 2), **workers}


def ort_ways(model: str, ids: list[np.ndarray]) -> dict[str, Callable[[], Solve]]:
    """ONNX Runtime int8 with a mask: sizes of groups x (one session of two threads | two workers of one thread)."""

    def way(size: int, workers: int) -> Solve:
        path = peers.onnx_int8_file(model, False, False, masked=True)
        sessions = [peers.ort_session(path, 2 // workers) for _ in range(workers)]

        def run(worker: int, ids: list[np.ndarray]) -> np.ndarray:
            filled, mask = padded(ids, np.int64)
            return sessions[worker].run(None, {"ids": filled, "mask": mask})[0]

        return in_workers(run, size, workers)

    return {f"groups of {size}, {w} worker(s)": partial(way, size, w) for size in (64, 16, 8, 4, 1) for w in (1, 2)}


def openvino_ways(model: str, ids: list[np.ndarray]) -> dict[str, Callable[[], Solve]]:
    """OpenVINO NNCF int8 with a mask, free shapes."""
    import openvino

    def way(size: int, workers: int) -> Solve:
        core = openvino.Core()
        found = core.read_model(str(peers.openvino_file(model, False, "nncf", masked=True)))
        settings = {
            "PERFORMANCE_HINT": "LATENCY" if workers == 1 else "THROUGHPUT",
            "NUM_STREAMS": workers,
            "INFERENCE_NUM_THREADS": 2,
        }
        compiled = core.compile_model(found, "CPU", settings)
        requests, output = [compiled.create_infer_request() for _ in range(workers)], compiled.output(0)

        def run(worker: int, ids: list[np.ndarray]) -> np.ndarray:
            return requests[worker].infer(list(padded(ids, np.int64)), share_inputs=True)[output].copy()

        return in_workers(run, size, workers)

    return {f"groups of {size}, {w} worker(s)": partial(way, size, w) for size in (64, 8, 1) for w in (1, 2)}


def litert_ways(model: str, ids: list[np.ndarray]) -> dict[str, Callable[[], Solve]]:
    """LiteRT int8: one graph a length (batch 1, nothing padded), or a length and a batch of 8, with a mask."""
    from ai_edge_litert.interpreter import Interpreter

    def way(size: int, workers: int) -> Solve:
        opened: dict[tuple[int, int], Any] = {}

        def graph(worker: int, length: int) -> Any:
            if (worker, length) not in opened:
                path = peers.litert_file(model, length, LITERT_INT8, 3, size)
                opened[worker, length] = Interpreter(str(path), num_threads=2 // workers)
                opened[worker, length].allocate_tensors()
            return opened[worker, length]

        def run(worker: int, ids: list[np.ndarray]) -> np.ndarray:
            filled, mask = padded(ids, np.int32)
            found = graph(worker, filled.shape[1])
            for entry, value in zip(found.get_input_details(), (filled, mask), strict=False):
                found.set_tensor(entry["index"], value)
            found.invoke()
            return found.get_tensor(found.get_output_details()[0]["index"])

        return in_workers(run, size, workers)

    for size in (8, 1):
        lengths = {max(len(ids[i]) for i in group) for group in groups(ids, size)}
        peers.make_litert(model, sorted(lengths), [LITERT_INT8], 3, size)
    return {f"groups of {size}, {w} worker(s)": partial(way, size, w) for size in (8, 1) for w in (1, 2)}


WAYS = {"ort-int8": ort_ways, "openvino-int8": openvino_ways, "litert-int8": litert_ways}


def throughput(model: str = "minilm") -> dict[str, Any]:
    """Messages a second: ours, and each peer by its best way; interleaved, best and median of the rounds."""
    import flyweight as fw
    from flyweight.measure.latency import turn
    from flyweight.tokenizer import Tokenizer

    texts, source = messages()
    tokenizer = Tokenizer.from_file(model_folder(model) / "tokenizer.json", MAX_TOKENS)
    ids = [e.ids for e in tokenizer.encode_batch(texts)]
    solvers: dict[str, tuple[str, Solve]] = {}
    for form in ("int8", "4bit"):
        ready = our_ways(fw.load(fly_file(model, form), threads=2).engine)
        chosen = peers.quickest(ready, ids, 5, 2)
        solvers[f"flyweight-{form}"] = (chosen, ready[chosen])
    wanted = peers.open_torch(True, None, model, 0, 1)
    for name, ways in WAYS.items():
        try:
            ready = {way: make() for way, make in ways(model, ids).items()}
            for solve in ready.values():
                solve(ids)  # every worker has seen most shapes after two passes
                solve(ids)
            chosen = peers.quickest(ready, ids, 5, 2)
        except Exception as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        solvers[name] = (chosen, ready[chosen])
    seconds: dict[str, list[float]] = {name: [] for name in solvers}
    for i in range(N_ROUNDS):
        for name in turn(list(solvers), i):
            solvers[name][1](ids)
            begin = time.perf_counter()
            solvers[name][1](ids)
            seconds[name].append(time.perf_counter() - begin)
    rows = []
    for name, (way, solve) in solvers.items():
        logits = solve(ids)
        difference = max(float(np.abs(a - wanted(row)).max()) for a, row in zip(logits, ids, strict=True))
        best, p50 = (len(ids) / t for t in (min(seconds[name]), float(np.median(seconds[name]))))
        rows.append(
            {"name": name, "way": way, "per_s_best": best, "per_s_p50": p50, "largest_logit_difference": difference}
        )
        print(f"{name:16} {best:8.0f} messages/s at best, {p50:8.0f} median   {way}   diff {difference:.4f}")
    lengths = [len(row) for row in ids]
    return {"model": model, "messages": source, "tokens_mean": float(np.mean(lengths)), "threads": 2, "rows": rows}


# --- text in -> answer out


def peer_parser(model: str, call: Callable[[np.ndarray], np.ndarray]) -> Callable[[str], dict[str, Any]]:
    """The same work around a peer: tokenize, run, softmax, ranking."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder(model) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    intents = [f"intent {i}" for i in range(N_INTENTS)]

    def parse(text: str) -> dict[str, Any]:
        logits = call(np.array(tokenizer.encode(text).ids, np.int32)).astype(np.float64)
        p = np.exp(logits - logits.max())
        p /= p.sum()
        ranking = [{"name": intents[i], "confidence": float(p[i])} for i in np.argsort(-p, kind="stable")]
        return {"text": text, "intent": ranking[0], "intent_ranking": ranking, "entities": []}

    return parse


def litert_any_length(model: str) -> Callable[[np.ndarray], np.ndarray]:
    """A graph for every length that occurs, opened when first seen (the warm-up sees all)."""
    opened: dict[int, Callable[[np.ndarray], np.ndarray]] = {}

    def call(ids: np.ndarray) -> np.ndarray:
        if len(ids) not in opened:
            opened[len(ids)] = peers.open_litert(LITERT_INT8, 3, model, len(ids), 1)
        return opened[len(ids)](ids)

    return call


def answers() -> list[dict[str, Any]]:
    """Latency of `parse` of ours and of the peers, interleaved, on the same messages."""
    import flyweight as fw
    from flyweight.measure.latency import compare, single_thread
    from flyweight.tokenizer import Tokenizer

    texts, source = messages()
    rows = []
    for model, forms in (("minilm", ("4bit", "int8")), ("2x128", ("int8",))):
        parsers = {f"flyweight-{form}": fw.load(fly_file(model, form)).parse for form in forms}
        ort = peers.fastest("ort-int8", model, 16, 1)
        parsers["ort-int8"] = peer_parser(model, ort.call)
        try:
            encoded = Tokenizer.from_file(model_folder(model) / "tokenizer.json", MAX_TOKENS).encode_batch(texts)
            peers.make_litert(model, sorted({len(e.ids) for e in encoded}), [LITERT_INT8], 3)
            parsers["litert-int8"] = peer_parser(model, litert_any_length(model))
            for text in texts:
                parsers["litert-int8"](text)
        except Exception as error:
            parsers.pop("litert-int8", None)
            print(f"litert-int8 is left out: {error}", file=sys.stderr)
        with single_thread():
            timed = compare(parsers, texts, n_calls=300, n_warmup=len(texts))
        for name, latency in timed.items():
            per_call = float(np.median(np.divide(timed["ort-int8"].calls_ms, latency.calls_ms)))
            row = {"model": model, "name": name, "messages": source, **latency.to_dict(), "ort_ms_per_ms": per_call}
            rows.append(row)
            shown = f"best {latency.best_ms:.3f}  p50 {latency.p50_ms:.3f}  p95 {latency.p95_ms:.3f}"
            print(f"{model:10}{name:16} {shown} ms; ONNX Runtime int8 takes {per_call:.2f} times as long")
    return rows


# --- start

_START = """
import time
begin = time.perf_counter()
import flyweight
imported = time.perf_counter()
model = flyweight.load({path!r})
loaded = time.perf_counter()
model.parse("where is my card?")
print("times", imported - begin, loaded - imported, time.perf_counter() - loaded)
"""


def start(model: str = "bert-base") -> list[dict[str, Any]]:
    """A fresh process: milliseconds of import, load, first answer (best of 5, file in the page cache); memory."""
    from flyweight.measure.memory import serving_memory

    rows = []
    for form in ("int8", "4bit"):
        path = fly_file(model, form)
        times = np.array([_fresh(path) for _ in range(N_STARTS)]) * 1e3
        imported, loaded, answered = times[times.sum(axis=1).argmin()].tolist()
        memory, size = serving_memory(path), path.stat().st_size
        row = {
            "model": model,
            "form": form,
            "file_bytes": size,
            "import_ms": imported,
            "load_ms": loaded,
            "first_answer_ms": answered,
            "resident_mb": memory.resident_mb,
            "peak_mb": memory.peak_mb,
            "resident_to_file": memory.resident_mb * 1e6 / size,
        }
        rows.append(row)
        print(
            f"{model} {form}: file {size / 1e6:.1f} MB; import {imported:.0f} ms, load {loaded:.1f} ms, first answer "
            f"{answered:.1f} ms; resident {memory.resident_mb:.1f} MB = {row['resident_to_file']:.2f} x file"
        )
    return rows


def _fresh(path: Path) -> list[float]:
    here = str(Path(__file__).resolve().parents[1] / "src")
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    code = _START.format(path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=variables)
    line = next(line for line in done.stdout.splitlines() if line.startswith("times "))
    return [float(word) for word in line.split()[1:]]


PARTS = {"throughput": throughput, "answers": answers, "start": start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    unknown = [part for part in chosen.parts if part not in PARTS]
    if unknown:
        parser.error(f"part '{unknown[0]}' is unknown; allowed: {', '.join(PARTS)}")
    from flyweight.measure.machine import machine

    facts = machine() | {"peers": peers.peer_versions(), "load_average": os.getloadavg()[0]}
    found = json.loads(chosen.out.read_text(encoding="utf-8")) if chosen.out.exists() else {"runs": []}
    before = [run for run in found["runs"] if run["machine"]["cpu"] == facts["cpu"]]
    others = [run for run in found["runs"] if run["machine"]["cpu"] != facts["cpu"]]
    run = before[0] if before else {}
    for part in chosen.parts or PARTS:
        run |= {"machine": facts, part: PARTS[part]()}
        chosen.out.parent.mkdir(exist_ok=True)
        chosen.out.write_text(json.dumps({"runs": [*others, run]}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
