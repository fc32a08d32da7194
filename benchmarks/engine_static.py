"""Static against dynamic int8 in our engine: one process, call by call in turn, the same weights and tokens.

    .venv/bin/python benchmarks/engine_static.py [--models minilm] [--tokens 8 16 32] [--calls 400]

ids in, intent logits out, batch 1, one thread, CPU time of the process; each timed call follows an untimed one. Static:
every matrix with a step known beforehand, attention in int8. Steps are of a likely size, not calibrated: time does not
depend on them.

    ratio    median over calls of (dynamic / static), above 1: static is faster; its 95% interval by bootstrap
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from engine_models import MODELS, message_ids, model_folder

from flyweight.artifact import Artifact
from flyweight.export.fly import contents
from flyweight.forms.int8 import int8_rows
from flyweight.model.linear import Linear, set_form
from flyweight.model.nlu import NLUModel
from flyweight.runtime.native import Native
from flyweight.tokenizer import Encoded

STEP = 2.0**-5  # of activations: +-3.97, as a norm gives them
N_RESAMPLES = 1000


def engine(name: str, static: bool) -> Native:
    """The engine on a benchmark model in int8, its activations dynamic or static."""
    model = NLUModel.load(model_folder(name))
    for weight, module, part in model.matrices():
        activations = "float" if part == "embeddings" else "static" if static else "int8"
        set_form(module, int8_rows(module.weight.detach().numpy()), activations)
        if isinstance(module, Linear) and activations == "static":
            module.input_scale = STEP
            if weight.endswith(".attention.qkv"):
                module.output_scales = (STEP, STEP, STEP)
    manifest, arrays = contents(model)
    return Native(Artifact(Path(f"{name}.fly"), manifest | {"golden": {"texts": [], "tolerance": 0.0}}, arrays, 0))


def interleaved_us(engines: list[Native], message: Encoded, n_calls: int) -> np.ndarray:
    """(n_calls, engines) microseconds of CPU time; who begins alternates."""
    found = np.empty((n_calls, len(engines)))
    for call in range(n_calls):
        for i in np.roll(np.arange(len(engines)), call):
            engines[i].logits([message])
            begin = time.process_time_ns()
            engines[i].logits([message])
            found[call, i] = (time.process_time_ns() - begin) / 1e3
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tokens", nargs="+", type=int, default=[8, 16, 32])
    parser.add_argument("--calls", type=int, default=400)
    chosen = parser.parse_args()
    rng = np.random.default_rng(0)
    for name in chosen.models:
        engines = [engine(name, static) for static in (False, True)]
        for tokens in chosen.tokens:
            message = Encoded(message_ids(name, tokens), np.zeros(0, np.int64), [])
            us = interleaved_us(engines, message, chosen.calls)
            ratios = us[:, 0] / us[:, 1]
            again = np.median(ratios[rng.integers(0, len(ratios), (N_RESAMPLES, len(ratios)))], axis=1)
            low, high = np.percentile(again, [2.5, 97.5])
            dynamic, static = np.median(us, axis=0)
            print(
                f"{name:10}{tokens:4} tokens  {engines[0].level}  dynamic {dynamic:9.1f} us  static {static:9.1f} us  "
                f"ratio {np.median(ratios):.3f} [{low:.3f}, {high:.3f}]",
                flush=True,
            )


if __name__ == "__main__":
    main()
