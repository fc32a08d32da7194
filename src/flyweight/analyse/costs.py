"""What the bits of a matrix cost: bytes in the file, and milliseconds of the engine on this machine.

    ms[kind, bits] = median_i (t_bits[i] - t_8[i]) / weights of the kind          a weight, more than with int8

t_8: the model's shape in int8; t_bits: the same with one kind of matrix (QKV, out, up, down, or another layer's) of all
layers in that many bits; call by call in turn, text in, answer out, one thread, on the messages given. Codes are random
there: time does not depend on their values. Embedding rows are looked up and heads are small: their bits cost no time.
Codes of 3 bits are multiplied as int8, and cost what int8 costs.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flyweight.analyse.quantized import set_bits
from flyweight.artifact import ALIGN, matrix_layout, whole_file, write
from flyweight.errors import ConfigError
from flyweight.export.fly import contents, unproved
from flyweight.forms import INNER, Codes
from flyweight.forms.int8 import int8_rows
from flyweight.forms.panels import PLANES
from flyweight.measure.latency import compare, single_thread
from flyweight.measure.machine import machine
from flyweight.model.linear import Embedding, Matrix
from flyweight.model.nlu import NLUModel
from flyweight.progress import bar
from flyweight.runtime import native
from flyweight.runtime.parser import Parser

N_CALLS = 200
N_ROUNDS = 3  # of N_CALLS, of a whole model
RESERVE = 8192  # bytes of the manifest for the receipts of this step and a few more


@dataclass(frozen=True)
class Milliseconds:
    """int8_ms: mean of a message with int8 everywhere; per_weight: kind -> bits -> ms a weight more than int8."""

    int8_ms: float
    per_weight: dict[str, dict[int, float]]

    def of(self, name: str, module: Matrix, bits: int) -> float:
        """What the matrix at these bits takes more than at 8 (less: negative)."""
        found = self.per_weight.get(kind_of(name), {}).get(bits, 0.0)
        return found * module.weight.numel()


def kind_of(name: str) -> str:
    """What matrices of several layers have in common: `layers.3.ffn.up` is of kind `ffn.up`; "" outside layers."""
    return name.partition(".")[2].partition(".")[2]


def kinds(model: NLUModel) -> tuple[str, ...]:
    """The kinds of matrices in a model's layers, in their order there."""
    return tuple(dict.fromkeys(kind for name, _, _ in model.matrices() if (kind := kind_of(name))))


def entry_of(module: Matrix, bits: int) -> dict[str, Any]:
    """The manifest entry of a matrix at these bits: int8 rows, or codes with a table of int8 centres a row."""
    shape = {"shape": list(module.weight.shape)}
    if bits == 8:
        return {"form": "int8", "per": "row", "shift": 0} | shape
    return {"form": "codes", "centres": 2**bits, "per": "row", "table": "int8"} | shape


def file_bytes(name: str, module: Matrix, bits: int) -> int:
    """Bytes in the file: panels filled up with zeros, each array to 64 bytes."""
    entry, shape = entry_of(module, bits), (module.weight.shape[0], module.weight.shape[1])
    layout = matrix_layout(name, entry, "float" if isinstance(module, Embedding) else "int8")
    stored = INNER[entry["form"]].stored(shape, entry, layout).values()
    return sum(ALIGN * -(-math.prod(lie) * np.dtype(dtype).itemsize // ALIGN) for dtype, lie in stored)


def other_bytes(model: NLUModel) -> int:
    """Bytes of the file that no matrix takes: vectors, tokenizer, manifest, golden samples."""
    model = _int8(model)
    return _whole_bytes(model) - sum(file_bytes(name, m, 8) for name, m, _ in model.matrices())


def whole_megabytes(model: NLUModel) -> float:
    """10^6 bytes of the file that a packed model becomes, golden samples and RESERVE for receipts among them."""
    return _whole_bytes(model) / 1e6


def _whole_bytes(model: NLUModel) -> int:
    texts, labels = model.card.golden, model.labels
    n_words = sum(len(e.first) for e in model.tokenizer.encode_batch(texts))
    golden = 4 * (len(texts) * len(labels.intents) + n_words * len(labels.tags))
    manifest, arrays = contents(model)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "model.fly", manifest | {"golden": {"texts": texts, "tolerance": 0.0}}, arrays)
        return path.stat().st_size + golden + RESERVE


def milliseconds(
    model: NLUModel, texts: Sequence[str], bits: Sequence[int], folder: str | None, progress: bool = True
) -> Milliseconds:
    """Measure, or read what was measured for this machine, shape and message lengths. Errors: ConfigError."""
    if native.module() is None:
        raise ConfigError(f"milliseconds are those of the native engine, but {native.why_not()}; {native.BUILD_HINT}")
    facts, lengths = machine(), sorted(len(e.ids) for e in model.tokenizer.encode_batch(list(texts)))
    key = [facts["cpu"], facts["engine"]["level"], model.encoder.config.to_dict(), lengths, list(bits)]
    name = f"milliseconds-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]}.json"
    path = None if folder is None else Path(folder) / name
    timed = [b for b in bits if b in PLANES]
    if path is not None and (kept := _kept(path, kinds(model), timed)) is not None:
        return kept
    found = _measure(model, texts, timed, progress)
    if path is not None:
        with whole_file(path) as file:
            file.write(json.dumps(asdict(found), indent=1).encode())
    return found


def whole_milliseconds(model: NLUModel, texts: Sequence[str], int8_ms: float) -> float:
    """Mean of a message with a packed model: int8_ms * median over rounds of mean(model) / mean(its shape in int8).

    A round is interleaved calls; a busier machine than the one that gave int8_ms slows both alike.
    """
    with tempfile.TemporaryDirectory() as folder, single_thread():
        base, child = _parser(_int8(model), Path(folder) / "int8.fly"), _parser(model, Path(folder) / "model.fly")
        rounds = [
            compare({"int8": base.parse, "child": child.parse}, texts, n_calls=N_CALLS, seed=i) for i in range(N_ROUNDS)
        ]
    return int8_ms * float(np.median([timed["child"].mean_ms / timed["int8"].mean_ms for timed in rounds]))


def _kept(path: Path, of: Sequence[str], bits: Sequence[int]) -> Milliseconds | None:
    """What the file holds; None where it is missing or holds something else: it is measured again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = {kind: {b: found["per_weight"][kind][str(b)] for b in bits} for kind in of}
        numbers = [found["int8_ms"], *(ms for row in rows.values() for ms in row.values())]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return Milliseconds(numbers[0], rows) if all(type(x) is float for x in numbers) else None


def _measure(model: NLUModel, texts: Sequence[str], bits: Sequence[int], progress: bool) -> Milliseconds:
    """One kind and width after the other, each in pairs of calls with int8: two files share the caches, not a dozen."""
    base = _int8(model)
    int8_ms: list[float] = []
    per_weight: dict[str, dict[int, float]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        single_thread(),
        bar("milliseconds", len(kinds(model)) * len(bits), show=progress) as advance,
    ):
        int8 = _parser(base, Path(folder) / "int8.fly")
        for kind in kinds(model):
            for b in bits:
                variant = base.copy()
                chosen = [module for name, module, _ in variant.matrices() if kind_of(name) == kind]
                for module in chosen:
                    set_bits(module, random_codes(module, b))
                child = _parser(variant, Path(folder) / f"{kind}-{b}.fly")
                timed = compare({"int8": int8.parse, "child": child.parse}, texts, n_calls=N_CALLS)
                more = np.median(np.subtract(timed["child"].calls_ms, timed["int8"].calls_ms))
                n_weights = sum(module.weight.numel() for module in chosen)
                per_weight.setdefault(kind, {})[b] = float(more) / n_weights if n_weights else 0.0
                int8_ms.append(timed["int8"].mean_ms)
                advance()
    return Milliseconds(float(np.median(int8_ms)), per_weight)


def _int8(model: NLUModel) -> NLUModel:
    """A copy in int8 rows."""
    model = model.copy().to("cpu").eval()
    for _, module, _ in model.matrices():
        set_bits(module, int8_rows(module.weight.detach().float().numpy()))
    return model


def random_codes(module: Matrix, bits: int) -> Codes:
    """Codes of the matrix's shape and about its size."""
    rng, (rows, columns) = np.random.default_rng(0), module.weight.shape
    table = np.linspace(-127, 127, 2**bits).round().astype(np.int8)
    size = float(module.weight.detach().std(correction=0)) if rows * columns else 64.0
    scale = np.full(rows, max(size, 1e-3) / 64, np.float32)
    codes = rng.integers(0, 2**bits, (rows, columns), np.uint8)
    return Codes(codes, np.tile(table, (rows, 1)), scale)


def _parser(model: NLUModel, path: Path) -> Parser:
    """The model in the native engine, from a file without golden samples that is only timed."""
    return Parser(unproved(path, *contents(model)), engine="native")
