"""How long a shape of encoder takes in the native engine on this machine: a table that structures are chosen by.

    ms(shape) = base + sum_l attention[h_l] + ffn[n_l]          h_l heads, n_l neurons; a layer that is gone costs 0
    base            no layer at all: embeddings, pooling, heads
    attention[h]    (ms(all layers h heads, 0 neurons) - base) / L - ffn[0]
    ffn[n]          (ms(all layers 0 heads, n neurons) - base) / L - attention[0];  a part of size 0 is its norm

Token ids in, logits out, batch 1, one thread, int8 or codes; weights are random, since time does not depend on values.
Each shape is timed call by call in turn with the dense one on messages of the data's lengths; what counts is the median
of the ratios, which a busy machine hardly moves: times are shares of the dense model's. The dense model's milliseconds,
once for all shapes of the table, are those of a quiet machine: of each message the fastest call, the mean over
messages, of the shapes' a low quantile. Real shapes are not quite sums (a small model stays in the caches):
`Clock.share` measures one whole.
Source: the latency table of ZipLM, Kurtic et al. 2023, arXiv:2302.04089.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flyweight.analyse.costs import random_codes
from flyweight.analyse.quantized import set_bits
from flyweight.artifact import whole_file
from flyweight.errors import ConfigError
from flyweight.export.fly import contents, unproved
from flyweight.forms.int8 import int8_rows
from flyweight.measure.latency import compare, single_thread
from flyweight.measure.machine import machine
from flyweight.model.encoder import ConvolutionShape, EncoderConfig, LayerShape, Shape
from flyweight.model.nlu import NLUModel
from flyweight.progress import bar
from flyweight.runtime import native
from flyweight.tokenizer import Encoded

N_CALLS = 150  # pairs of calls a shape of the table ...
N_WHOLE_CALLS = 600  # ... and one whose whole is measured
N_LENGTHS = 50  # messages, evenly spread over the data's lengths
WIDE = 512  # FFN widths from here on have a grid of 64, below of 16: the engine's panels
QUIET = 0.1  # quantile of the dense model's times, one of each shape of the table: not the luckiest, no busy one
Clocked = tuple[float, float]  # ms of the dense shape, median over the calls of (this shape's ms / the dense shape's)

_KNOWN: dict[str, dict[str, Clocked]] = {}  # measured by this process: the same question has the same answer


@dataclass(frozen=True)
class ShapeTimes:
    """Times as shares of the dense model's, which takes dense_ms a message.

    attention: of 0 to H heads; ffn: by number of neurons, ascending; see the module.
    """

    dense_ms: float
    base: float
    attention: tuple[float, ...]
    ffn: dict[int, float]

    def ffn_share(self, neurons: int) -> float:
        """Between two widths of the table by a straight line."""
        return float(np.interp(neurons, list(self.ffn), list(self.ffn.values())))

    def predicted(self, layers: Sequence[LayerShape]) -> float:
        """The sum for whole layers."""
        return self.base + sum(self.attention[layer.heads] + self.ffn_share(layer.ffn) for layer in layers)


class Clock:
    """Times of shapes beside those of one model, the dense one. What was measured is kept in `folder`, if any.

    bits: of a weight in the encoder's matrices; all else is int8.
    """

    def __init__(self, dense: NLUModel, texts: Sequence[str], bits: int, folder: str | None):
        self.model, self.bits = dense, bits
        self.config = replace(dense.encoder.config, integer_only=False)
        self.encoded = spread(dense.tokenizer.encode_batch(list(texts)))
        facts = machine()
        key = [facts["cpu"], facts["engine"]["level"], dense.describe(), [len(e.ids) for e in self.encoded], bits]
        name = f"shapes-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]}.json"
        self.path = None if folder is None else Path(folder) / name
        self.known = _KNOWN.setdefault(name, {})
        self.known.update({k: v for k, v in _kept(self.path).items() if k not in self.known})

    def share(self, config: EncoderConfig, n_calls: int = N_WHOLE_CALLS) -> float:
        """Median over calls of (time of this shape / time of the dense one)."""
        return self.clocked(config, n_calls)[1]

    def clocked(self, config: EncoderConfig, n_calls: int) -> Clocked:
        """Of this shape, measured or as it was measured before."""
        shape = " ".join([f"{config.hidden}:", *(_short(layer) for layer in config.layers)])
        key = f"{shape} {n_calls}"
        if key not in self.known:
            self.known[key] = self.measure(config, n_calls)
            self._keep()
        return self.known[key]

    def table(self, progress: bool = True) -> ShapeTimes:
        """The parts of every number of heads and, on a grid, of neurons up to those of the dense model."""
        layers = self.config.transformer_shapes("a table of heads and neurons")
        heads, widths = range(max(s.heads for s in layers) + 1), grid([s.ffn for s in layers])
        n, dense_ms = len(layers), list[float]()
        with bar("milliseconds", len(heads) + len(widths), show=progress) as advance:

            def share(layers: Sequence[LayerShape]) -> float:
                ms, found = self.clocked(replace(self.config, layers=tuple(layers)), N_CALLS)
                dense_ms.append(ms)
                advance()
                return found

            base = share(())
            norm = (share([LayerShape(heads=0, ffn=0)] * n) - base) / n / 2  # of one part, gone but for its norm
            attention = [(share([LayerShape(heads=h, ffn=0)] * n) - base) / n - norm for h in heads[1:]]
            ffn = [(share([LayerShape(heads=0, ffn=w)] * n) - base) / n - norm for w in widths[1:]]
        quiet = float(np.quantile(dense_ms, QUIET))
        return ShapeTimes(quiet, base, (norm, *attention), {0: norm} | dict(zip(widths[1:], ffn, strict=True)))

    def measure(self, config: EncoderConfig, n_calls: int) -> Clocked:
        """The dense shape and this one, in turn. Errors: ConfigError without the native engine."""
        if native.module() is None:
            raise ConfigError(
                f"milliseconds are those of the native engine, but {native.why_not()}; {native.BUILD_HINT}"
            )
        with tempfile.TemporaryDirectory() as folder, single_thread():
            engines = {
                name: engine_of(packed_at_random(self.model, shape, self.bits), Path(folder) / f"{name}.fly")
                for name, shape in (("dense", self.config), ("shape", config))
            }
            timed = compare_engines(engines, self.encoded, n_calls)
        return quiet_ms(timed["dense"], len(self.encoded)), float(np.median(timed["shape"] / timed["dense"]))

    def _keep(self) -> None:
        if self.path is not None:
            with whole_file(self.path) as file:
                file.write(json.dumps(self.known, indent=1).encode())


def _short(layer: Shape) -> str:
    """A layer's shape in a few letters: 12x3072 of a transformer, lstm, convolution 3."""
    if isinstance(layer, LayerShape):
        return f"{layer.heads}x{layer.ffn}"
    return f"{layer.kind} {layer.width}" if isinstance(layer, ConvolutionShape) else layer.kind


def packed_at_random(like: NLUModel, config: EncoderConfig, bits: int) -> NLUModel:
    """A model of this shape with random weights; tokenizer, labels and heads as another's."""
    made = NLUModel(config, like.tokenizer, like.labels, pooling=like.pooling, intent_head=like.intent_head_kind)
    for _, module, part in made.matrices():
        coded = part == "encoder" and bits < 8
        set_bits(module, random_codes(module, bits) if coded else int8_rows(module.weight.detach().numpy()))
    return made.eval()


def grid(widths: Sequence[int]) -> list[int]:
    """0, the steps of the engine's panels, and the widths themselves, ascending."""
    largest = max(widths)
    return sorted({*range(0, largest, 64 if largest >= WIDE else 16), *widths})


def spread(encoded: Sequence[Encoded], n: int = N_LENGTHS) -> list[Encoded]:
    """At most n messages, evenly over the lengths, in an order that mixes them."""
    ordered = sorted(encoded, key=lambda e: len(e.ids))
    chosen = [ordered[int(at)] for at in np.linspace(0, len(ordered) - 1, min(n, len(ordered)))]
    return [chosen[i] for i in np.random.default_rng(0).permutation(len(chosen))]


def engine_of(model: NLUModel, path: Path) -> native.Native:
    """The model in the native engine, from a file without golden samples that is only timed."""
    return native.Native(unproved(path, *contents(model)))


def compare_engines(
    engines: dict[str, native.Native], encoded: Sequence[Encoded], n_calls: int
) -> dict[str, np.ndarray]:
    """Milliseconds of every call, call by call in turn; call i had the same message everywhere. No tokenizer."""
    numbers = [str(i) for i in range(len(encoded))]

    def calls(engine: native.Native) -> Callable[[str], object]:
        prepared = {number: engine.call([e]) for number, e in zip(numbers, encoded, strict=True)}
        return lambda number: prepared[number]()

    timed = compare({name: calls(engine) for name, engine in engines.items()}, numbers, n_calls=n_calls)
    return {name: np.array(latency.calls_ms) for name, latency in timed.items()}


def quiet_ms(calls_ms: np.ndarray, n_messages: int) -> float:
    """Mean over messages of each one's fastest call; call i was message i mod n_messages."""
    return float(np.mean([calls_ms[i::n_messages].min() for i in range(min(n_messages, len(calls_ms)))]))


def _kept(path: Path | None) -> dict[str, Clocked]:
    """What the file holds; nothing where it is missing or holds something else: it is measured again."""
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        pairs = {str(key): (float(ms), float(ratio)) for key, (ms, ratio) in found.items()}
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):
        return {}
    return pairs if all(np.isfinite(pair).all() and min(pair) > 0 for pair in pairs.values()) else {}
