"""Our engine against every peer: one process, call by call in turn, the same weights and the same tokens.

    sh benchmarks/peers_env.sh                                    # once: the peers' environments, about 3 minutes
    ~/.cache/flyweight/peers-venv/bin/python benchmarks/engine.py [--quick] [--models minilm] [--tokens 16 32] ...

ids in, intent logits out, batch 1, no tokenizer. The order changes every round. Warm: each timed call follows an
untimed one of the same callable. Flushed: before each call the caches are filled with other memory (floor.py).
Every peer runs its fastest variant (peers.py), chosen anew for each case.

    ms       best, lower quartile and median of the calls
    ratio    median over rounds of (the best int8 peer's ms / this ms): above 1 is faster than the best int8 peer
    cpu      lower quartile of the process's CPU time, and the ratio of these: on a busy machine the one to trust
             (one thread only: with more, it counts all, and those that wait in a loop)
    GB/s     bytes of the encoder's weights and the head / lower quartile (one thread: of CPU time)
    floor    time to read these bytes, measured here on 1 to 8 streams / the same: 100% is memory speed
    diff     largest |logit - PyTorch fp32's|, in standard deviations of the latter's logits

--isa LEVEL holds our engine (FLYWEIGHT_ISA) and PyTorch, OpenVINO and CTranslate2 (by their own variables); ONNX
Runtime and LiteRT choose by CPUID and cannot be held: their rows are left out then.
Writes benchmarks/results/engine.json: one entry a CPU and level, replaced by the next run on the same.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peers
from engine_models import FORMS, MODELS, encoder_weights, fly_file, message_ids
from floor import Eviction, Reader

RESULTS = Path(__file__).parent / "results" / "engine.json"
SETTLE_S = 0.003  # pools of other libraries spin for a while after a call: with threads they would hold the cores


# Level of our engine -> variables of libraries that can be held to it, set before any is loaded; none: no peers.
ISA_LEVELS: dict[str, dict[str, str]] = {
    "scalar": {},
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
        "CT2_FORCE_CPU_ISA": "AVX2",
    },
    "avx-vnni": {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI", "ATEN_CPU_CAPABILITY": "avx2", "CT2_FORCE_CPU_ISA": "AVX2"},
    "avx512-vnni": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
    "amx-int8": {},
}


def hold_isa(level: str) -> dict[str, str]:
    """Variables that hold our engine and the peers that can be held to a level.

    ONNX Runtime (MLAS) and LiteRT (XNNPACK) choose by CPUID alone and cannot be held.
    """
    return {"FLYWEIGHT_ISA": level, **ISA_LEVELS[level]}


def set_torch_threads(threads: int) -> None:
    """PyTorch's threads belong to the process: a peer opened later with another number would change them."""
    import torch

    torch.set_num_threads(threads)


@dataclass
class Contender:
    """One callable of a case; `ms` and `cpu_ms` are its calls, by mode, in order of the rounds."""

    name: str
    variant: str
    bits: int
    weight_bytes: int
    call: peers.Call
    difference: float = 0.0
    ms: dict[str, list[float]] = field(default_factory=dict)
    cpu_ms: dict[str, list[float]] = field(default_factory=dict)


def open_ours(model: str, form: str, threads: int) -> tuple[peers.Call, str, int]:
    """Our engine on a .fly file -> call, the engine's name, bytes of the weights that a message reads whole."""
    import flyweight as fw
    from flyweight.tokenizer import Encoded

    parser = fw.load(fly_file(model, form), threads=threads)
    no_words = np.zeros(0, np.int64)

    def call(ids: np.ndarray) -> np.ndarray:
        return parser.engine.logits([Encoded(ids, no_words, [])])[0][0]

    artifact = parser.artifact
    names = [name for name in artifact.manifest["weights"] if not name.startswith("embeddings.")]
    return (
        call,
        parser.engine.title,
        sum(artifact.form(name).size_bytes for name in names),
    )


def contenders(model: str, tokens: int, threads: int, names: Sequence[str], forms: Sequence[str]) -> list[Contender]:
    """All callables of a case; what cannot be opened is said on stderr and left out."""
    found, n_weights = [], encoder_weights(model)
    for form in forms:
        call, engine, n_bytes = open_ours(model, form, threads)
        found.append(Contender(f"flyweight-{form}", engine, FORMS[form], n_bytes, call))
    for name in names:
        try:
            opened = peers.fastest(name, model, tokens, threads)
        except Exception as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        found.append(Contender(name, opened.variant, opened.bits, n_weights * opened.bits // 8, opened.call))
    return found


def reference_logits(model: str, ids: np.ndarray) -> np.ndarray:
    """PyTorch fp32."""
    return peers.open_torch(True, None, model, len(ids), 1)(ids)


def time_case(
    found: list[Contender], ids: np.ndarray, threads: int, n_calls: int, evict: Callable[[], None] | None
) -> None:
    """Fill in the milliseconds of one mode, warm or flushed."""
    from flyweight.measure.latency import turn

    by_name = {c.name: c for c in found}
    mode = "warm" if evict is None else "flushed"
    for c in found:
        c.ms[mode], c.cpu_ms[mode] = [], []
        c.call(ids)
    for i in range(n_calls):
        for name in turn(list(by_name), i):
            call = by_name[name].call
            if threads > 1:
                time.sleep(SETTLE_S)
            if evict is None:
                call(ids)
            else:
                evict()
            cpu, begin = time.process_time_ns(), time.perf_counter_ns()
            call(ids)
            end, cpu_end = time.perf_counter_ns(), time.process_time_ns()
            by_name[name].ms[mode].append((end - begin) / 1e6)
            by_name[name].cpu_ms[mode].append((cpu_end - cpu) / 1e6)


def rows_of(found: list[Contender], threads: int, floors: dict[tuple[int, str], float]) -> list[dict[str, Any]]:
    """One row a callable and mode. The best int8 peer is found by CPU time where one thread runs."""
    rows = []
    for mode in found[0].ms if found else ():
        clocks = {c.name: (c.cpu_ms if threads == 1 else c.ms)[mode] for c in found}
        int8 = [c for c in found if c.bits == 8 and c.name in peers.PEERS]
        best = min(int8, key=lambda c: np.percentile(clocks[c.name], 25)) if int8 else None
        for c in found:
            p25 = float(np.percentile(c.ms[mode], 25))
            shown = float(np.percentile(clocks[c.name], 25))
            row = {
                "name": c.name,
                "variant": c.variant,
                "mode": mode,
                "best_ms": min(c.ms[mode]),
                "p25_ms": p25,
                "p50_ms": float(np.median(c.ms[mode])),
                "cpu_p25_ms": float(np.percentile(c.cpu_ms[mode], 25)),
                "best_int8_peer": best.name if best else None,
                "weight_bytes": c.weight_bytes,
                "gb_per_s": c.weight_bytes / shown / 1e6,
                "floor_ms": floors[c.weight_bytes, mode],
                "share_of_floor": floors[c.weight_bytes, mode] / shown,
                "logit_difference": c.difference,
            }
            if best is not None:
                row |= {
                    "ratio_per_call": float(np.median(np.divide(best.ms[mode], c.ms[mode]))),
                    "ratio_of_best": min(best.ms[mode]) / min(c.ms[mode]),
                    "ratio_of_p25": float(np.percentile(best.ms[mode], 25)) / p25,
                    "ratio_of_cpu": float(np.median(np.divide(best.cpu_ms[mode], c.cpu_ms[mode]))),
                }
            rows.append(row)
    return rows


def run_case(model: str, tokens: int, threads: int, chosen: argparse.Namespace, tools: tuple) -> dict[str, Any]:
    """Open, compare logits, time warm and flushed, print."""
    reader, evict = tools
    ids = message_ids(model, tokens)
    found = contenders(model, tokens, threads, chosen.peers, chosen.forms)
    wanted = reference_logits(model, ids)
    set_torch_threads(threads)
    for c in found:
        c.difference = float(np.abs(c.call(ids) - wanted).max() / wanted.std())
    modes: dict[str, Callable[[], None] | None] = {"warm": None, "flushed": evict}
    modes = {name: modes[name] for name in chosen.modes}
    for pushing in modes.values():
        time_case(found, ids, threads, chosen.calls, pushing)
    floors = {
        (n, name): reader.floor_ms(n, threads, pushing)
        for n in {c.weight_bytes for c in found}
        for name, pushing in modes.items()
    }
    rows = rows_of(found, threads, floors)
    print_rows(model, tokens, threads, rows)
    return {
        "model": model,
        "tokens": tokens,
        "threads": threads,
        "calls": chosen.calls,
        "load_average": os.getloadavg()[0],
        "rows": rows,
    }


def print_rows(model: str, tokens: int, threads: int, rows: list[dict[str, Any]]) -> None:
    """A table a case."""
    for mode in dict.fromkeys(row["mode"] for row in rows):
        ours = [row for row in rows if row["mode"] == mode]
        best = ours[0]["best_int8_peer"]
        load = f"{os.getloadavg()[0]:.1f} processes want a core"
        print(f"\n{model}, {tokens} tokens, {threads} thread(s), {mode}; best int8 peer: {best}; {load}")
        heads = ("best", "p25", "p50", "cpu", "ratio", "of cpu", "GB/s", "floor", "diff")
        print(f"{'ms':18}" + "".join(f"{head:>9}" for head in heads) + "  variant")
        for r in sorted(ours, key=lambda r: r["cpu_p25_ms" if threads == 1 else "p25_ms"]):
            times = "".join(f"{r[key]:9.3f}" for key in ("best_ms", "p25_ms", "p50_ms", "cpu_p25_ms"))
            ratios = "".join(f"{r.get(key, float('nan')):9.2f}" for key in ("ratio_per_call", "ratio_of_cpu"))
            rest = f"{r['gb_per_s']:9.1f}{r['share_of_floor']:9.0%}{r['logit_difference']:9.4f}"
            print(f"{r['name']:18}{times}{ratios}{rest}  {r['variant']}")
    sys.stdout.flush()


def read_speeds(reader: Reader, evict: Eviction, threads: Sequence[int]) -> list[dict[str, Any]]:
    """GB/s of this machine by size, threads and streams: the last level of cache warm, and memory."""
    found = []
    for megabytes in (10, 85, 256):
        for n in threads:
            for mode, pushing in (("warm", None), ("flushed", evict)):
                times = reader.times_ms(megabytes * 10**6, n, pushing, rounds=8)
                speeds = {str(streams): megabytes / ms for streams, ms in times.items()}  # MB / ms = GB/s
                found.append({"megabytes": megabytes, "threads": n, "mode": mode, "gb_per_s": speeds})
                shown = "  ".join(f"{streams} streams {v:5.1f}" for streams, v in speeds.items())
                print(f"reading {megabytes:3d} MB, {n} thread(s), {mode:7}: GB/s {shown}")
    return found


def keep(run: dict[str, Any], path: Path) -> None:
    """Put one run into the results: the one with the same CPU and level is replaced."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": []}
    same = (run["machine"]["cpu"], run["isa"])
    runs = [r for r in found["runs"] if (r["machine"]["cpu"], r["isa"]) != same]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"runs": [*runs, run]}, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    """The command line, with `--quick` and `--isa` worked in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tokens", nargs="+", type=int, default=[8, 16, 32, 128])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--forms", nargs="*", choices=FORMS, default=["int8", "4bit", "2bit"], help="none: peers only")
    parser.add_argument("--peers", nargs="*", choices=peers.PEERS, default=list(peers.PEERS))
    parser.add_argument("--modes", nargs="+", choices=("warm", "flushed"), default=["warm", "flushed"])
    parser.add_argument("--calls", type=int, default=60, help="timed calls of each callable and mode")
    parser.add_argument("--isa", choices=ISA_LEVELS, help="hold all that can be held to this level")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="16 tokens, one thread, 20 calls, nothing is written")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.tokens, chosen.threads, chosen.calls = [16], [1], 20
    if chosen.isa:
        os.environ.update(hold_isa(chosen.isa))
        chosen.peers = [name for name in chosen.peers if peers.PEERS[name].isa and ISA_LEVELS[chosen.isa]]
    return chosen


def main() -> None:
    chosen = arguments()
    from flyweight.measure.machine import machine

    reader, evict = Reader(), Eviction()
    run: dict[str, Any] = {
        "machine": machine() | {"peers": peers.peer_versions()},
        "isa": chosen.isa or "best",
        "held": {name: peers.PEERS[name].isa for name in chosen.peers} if chosen.isa else {},
        "read_speed": read_speeds(reader, evict, chosen.threads),
        "cases": [],
    }
    for model in chosen.models:
        for tokens in chosen.tokens:
            for threads in chosen.threads:
                run["cases"].append(run_case(model, tokens, threads, chosen, (reader, evict)))
                if not chosen.quick:
                    keep(run, chosen.out)


if __name__ == "__main__":
    main()
