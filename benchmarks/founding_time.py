"""Milliseconds and memory of the founding experiment's forms: ids in, intent logits out, batch 1, one thread.

One process, call by call in turn; each timed call follows an untimed one of the same callable.

    small       2 layers x 128, trained on sara-2019-dedup (seed 0)
    bert-base   12 layers x 768, random weights (engine_models.py): time does not depend on the values

    pseudo      k-means with 4 centres (2 bits), one table a matrix, rebuilt as float32 before use: what 2019 had
    p50_ms, cpu_p50_ms     median wall-clock and CPU time; on a shared machine the second is the steadier
    times       {reference: median over rounds of reference / this in CPU time, and its 95% bootstrap interval}
    memory_mb   what a process that answers holds beyond its imports
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns, process_time_ns
from typing import Any

import founding_litert_run
import founding_quality
import numpy as np
from engine_models import CACHE, model_folder
from peers import CONVERTER
from teachers import find

import flyweight as fw
from flyweight.measure import memory
from flyweight.measure.latency import single_thread, turn
from flyweight.techniques.room import Run, Technique
from flyweight.tokenizer import Encoded

Call = Callable[[np.ndarray], np.ndarray]
MODELS = {"small": 400, "bert-base": 80}  # timed calls of each callable
REFERENCES = ("PyTorch fp32", "LiteRT dynamic8")
PSEUDO = founding_quality.founding(4, 4, 4)
FLY: dict[str, list[Technique]] = {
    "Flyweight fp32": [],
    "Flyweight pseudo": [PSEUDO],
    "Flyweight int8": [fw.Int8()],
    "Flyweight 4-bit codes": [fw.Codebook(encoder=16)],
    "Flyweight 2-bit codes": [fw.Codebook(encoder=4)],
    "Flyweight 1-bit codes": [fw.Codebook(encoder=2)],
}
N_BOOTSTRAP = 1000
TORCH_ANSWERS = """
import sys
sys.path.insert(0, {benchmarks!r})
import torch
from pathlib import Path
from peers_bert import plain_bert
torch.set_num_threads(1)
_model = plain_bert(Path({path!r}))
with torch.inference_mode():
    _model(torch.ones((1, {tokens}), dtype=torch.int32))
"""
LITERT_ANSWERS = """
import numpy
from ai_edge_litert.interpreter import Interpreter
_model = Interpreter({path!r}, num_threads=1)
_model.allocate_tensors()
_model.set_tensor(_model.get_input_details()[0]["index"], numpy.ones((1, {tokens}), numpy.int32))
_model.invoke()
"""


def measure(title: str) -> dict[str, Any]:
    """Open all forms of one model, time them in turn, weigh their processes."""
    source = find("sara-2019-dedup", "small", 0) if title == "small" else model_folder(title)
    if source is None:
        raise FileNotFoundError("the small classifier is not trained yet: run the part 'quality' first")
    site = interpreter_site()
    sys.path.append(str(site))
    folder = CACHE.parent / "founding" / title
    folder.mkdir(parents=True, exist_ok=True)
    model, ids = fw.NLUModel.load(source), sixteen(fw.NLUModel.load(source))
    calls: dict[str, Call] = {"PyTorch fp32": open_torch(source)}
    sizes, megabytes = {"PyTorch fp32": model.size_bytes()}, {"PyTorch fp32": torch_memory(source)}
    pseudo = apply(PSEUDO, model).unpack().save(folder / "pseudo")
    calls["PyTorch pseudo"] = open_torch(pseudo)
    sizes["PyTorch pseudo"], megabytes["PyTorch pseudo"] = model.size_bytes(), torch_memory(pseudo)
    if not (folder / "bytes.json").is_file():
        founding_litert_run.convert(source, [ids], calibration_ids(model), folder)
    for path in sorted(folder.glob("*.tflite")):
        name = f"LiteRT {path.stem}"
        calls[name], sizes[name] = open_litert(path), path.stat().st_size
        megabytes[name] = litert_memory(path, site)
    for name, recipe in FLY.items():
        small = model
        for step in recipe:
            small = apply(step, model)
        path = fw.save(small, folder / f"{name.removeprefix('Flyweight ')}.fly")
        calls[name], sizes[name] = open_fly(path), small.size_bytes()
        megabytes[name] = memory.serving_memory(path).resident_mb
    with single_thread():
        differences = logit_differences(calls, ids)
        wall, cpu = time_in_turn(calls, ids, MODELS[title])
    rows = {name: row(name, wall, cpu) for name in calls}
    for name, found in rows.items():
        found |= {"weight_bytes": sizes[name], "memory_mb": megabytes[name], "logit_difference": differences[name]}
    import ai_edge_litert

    versions = {"litert": ai_edge_litert.__version__, "engine": fw.load(path).engine.title}
    return {"tokens": len(ids), "calls": MODELS[title], "load_average": os.getloadavg()[0], "rows": rows} | versions


def apply(step: Technique, model: fw.NLUModel) -> fw.NLUModel:
    """One technique, without messages."""
    return step.apply(model, Run(fw.NLUData(()), model, device="cpu", progress=False))


def sixteen(model: fw.NLUModel, seed: int = 0) -> np.ndarray:
    """Random word pieces (16,) int32 between the tokenizer's first and last."""
    ids, tokenizer = model.tokenizer.encode("a").ids, model.tokenizer
    inner = np.random.default_rng(seed).integers(
        tokenizer.vocab_size // 10, tokenizer.vocab_size, founding_litert_run.KEPT - 2
    )
    return np.concatenate([ids[:1], inner, ids[-1:]]).astype(np.int32)


def calibration_ids(model: fw.NLUModel) -> list[np.ndarray]:
    """For milliseconds any message will do."""
    return [sixteen(model, seed) for seed in range(1, 9)]


def interpreter_site() -> Path:
    """A folder with nothing but LiteRT's interpreter, linked to the peers' environment (peers_env.sh)."""
    [package] = (CONVERTER.parents[2] / "peers-venv" / "lib").glob("python3*/site-packages/ai_edge_litert")
    site = CACHE.parent / "founding" / "site"
    site.mkdir(parents=True, exist_ok=True)
    if not (site / package.name).exists():
        (site / package.name).symlink_to(package)
    return site


def open_torch(folder: Path) -> Call:
    """Eager PyTorch."""
    import torch
    from peers_bert import plain_bert

    module = plain_bert(folder)

    def call(ids: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(ids)[None])[0].numpy()

    return call


def open_litert(path: Path) -> Call:
    """The interpreter with its default delegate, XNNPACK."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    entry, out = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]

    def call(ids: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(entry, ids[None])
        interpreter.invoke()
        found = interpreter.get_tensor(out["index"])[0]
        scale, zero = out["quantization"]
        return found if found.dtype == np.float32 else (found.astype(np.float32) - zero) * np.float32(scale)

    return call


def open_fly(path: Path) -> Call:
    """The engine on a .fly file."""
    engine, no_words = fw.load(path).engine, np.zeros(0, np.int64)
    return lambda ids: engine.logits([Encoded(ids, no_words, [])])[0][0]


def torch_memory(folder: Path) -> float:
    """MB beyond the imports."""
    code = TORCH_ANSWERS.format(
        benchmarks=str(Path(__file__).parent), path=str(folder), tokens=founding_litert_run.KEPT
    )
    return memory.beyond_imports(code).resident_mb


def litert_memory(path: Path, site: Path) -> float:
    """MB beyond the imports."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (str(site), before) if p)
    try:
        code = LITERT_ANSWERS.format(path=str(path), tokens=founding_litert_run.KEPT)
        return memory.beyond_imports(code).resident_mb
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def logit_differences(calls: dict[str, Call], ids: np.ndarray) -> dict[str, float]:
    """Largest |logit - PyTorch fp32's|, in standard deviations of the latter's: proof that all compute the model."""
    wanted = calls["PyTorch fp32"](ids)
    return {name: float(np.abs(call(ids) - wanted).max() / wanted.std()) for name, call in calls.items()}


def time_in_turn(
    calls: dict[str, Call], ids: np.ndarray, rounds: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Wall-clock and CPU milliseconds of every callable, (rounds,) each."""
    wall: dict[str, list[int]] = {name: [] for name in calls}
    cpu: dict[str, list[int]] = {name: [] for name in calls}
    for i in range(rounds):
        for name in turn(list(calls), i):
            calls[name](ids)
            cpu_begin, begin = process_time_ns(), perf_counter_ns()
            calls[name](ids)
            end, cpu_end = perf_counter_ns(), process_time_ns()
            wall[name].append(end - begin)
            cpu[name].append(cpu_end - cpu_begin)
    return _ms(wall), _ms(cpu)


def _ms(taken: dict[str, list[int]]) -> dict[str, np.ndarray]:
    return {name: np.array(ns) / 1e6 for name, ns in taken.items()}


def row(name: str, wall: dict[str, np.ndarray], cpu: dict[str, np.ndarray]) -> dict[str, Any]:
    """Medians, and times the speed of the references."""
    times = {reference: ratio(cpu[reference], cpu[name]) for reference in REFERENCES if reference != name}
    return {
        "p50_ms": float(np.median(wall[name])),
        "best_ms": float(wall[name].min()),
        "cpu_p50_ms": float(np.median(cpu[name])),
        "times": times,
    }


def ratio(reference: np.ndarray, this: np.ndarray) -> dict[str, float]:
    """Median over rounds of reference / this, with its 95% bootstrap interval over rounds."""
    per_round = reference / this
    drawn = np.random.default_rng(0).integers(len(per_round), size=(N_BOOTSTRAP, len(per_round)))
    low, high = np.percentile(np.median(per_round[drawn], axis=1), [2.5, 97.5])
    return {"ratio": float(np.median(per_round)), "low": float(low), "high": float(high)}
