"""Which heads and neurons survived the pruning, as numbers and pictures, and whether they were the strong ones.

    strength of head h   = |Wo_h Wv_h|_F                Wv_h (d, D), Wo_h (D, d): what a head can write
    strength of neuron j = |W1_j| |W2_j|                a row of W1, a column of W2

Strengths are those of the dense model, where it is given, as a share of the layer's largest. "strong" is the share of
survivors among the stronger half of a layer's heads or neurons; where strength played no part, it is the share that
survived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flyweight.analyse.heat_map import panel
from flyweight.artifact import read
from flyweight.errors import ArtifactError, CheckpointError, ConfigError, MissingExtraError
from flyweight.model.encoder import LayerShape, shape_from_dict
from flyweight.model.nlu import NLUModel
from flyweight.model.survivors import Survivors, fingerprint, fitting
from flyweight.runtime.parser import find
from flyweight.runtime.parts import check_model

BINS = 32  # in which neurons are shown
HEADS, NEURONS = "heads", "neurons"


@dataclass(frozen=True)
class Survival:
    """survivors, and the dense model's strengths: of each layer (H,) and (n,), or None where it was not given."""

    survivors: Survivors
    strengths: dict[str, list[np.ndarray]] | None = None

    def kept(self, kind: str) -> list[np.ndarray]:
        """(H,) or (n,) bool for each layer of the dense model, False where the layer is gone."""
        found = []
        for i, shape in enumerate(self.survivors.dense):
            there = np.zeros(shape.heads if kind == HEADS else shape.ffn, bool)
            there[list(self.survivors.of_dense(i)[kind == NEURONS])] = True
            found.append(there)
        return found

    def shares(self, kind: str) -> list[dict[str, float]]:
        """Of each dense layer: kept, of (all), and strong (see the module) where strengths are known."""
        rows: list[dict[str, float]] = []
        for i, there in enumerate(self.kept(kind)):
            row: dict[str, float] = {"kept": int(there.sum()), "of": len(there)}
            if self.strengths is not None and len(there):
                strong = np.argsort(-self.strengths[kind][i], kind="stable")[: -(-len(there) // 2)]
                row["strong"] = float(there[strong].mean())
            rows.append(row)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """JSON form: indices of the dense model."""
        of = self.survivors
        return {
            "dense": [[s.heads, s.ffn] for s in of.dense],
            "layers": list(of.layers),
            "heads": [list(of.of_dense(i)[0]) for i in range(len(of.dense))],
            "neurons": [list(of.of_dense(i)[1]) for i in range(len(of.dense))],
            "shares": {kind: self.shares(kind) for kind in (HEADS, NEURONS)},
        }


def survival(path: Path, parent: NLUModel | None = None) -> Survival:
    """Of a model folder or a .fly file.

    Errors: ConfigError where nothing was cut, or for another parent than the model was cut from; CheckpointError,
    ArtifactError where what survived is written wrongly.
    """
    card, layers = _of_folder(path) if path.is_dir() else _of_file(find(path))
    found = None if card is None else _fitting(path, card, layers)
    if found is None or found.shapes() == found.dense:
        raise ConfigError(
            f"{path} has all its heads, neurons and layers; give a model made by a structural technique, such as "
            "compress --technique structured"
        )
    if parent is None:
        return Survival(found)
    if parent.encoder.config.layers != found.dense:
        raise ConfigError(
            f"the parent has {_shape(parent.encoder.config.layers)} heads x neurons, {path} was cut from "
            f"{_shape(found.dense)}; give the dense model that it was made of"
        )
    if found.fingerprint and fingerprint(parent) != found.fingerprint:
        raise ConfigError(
            f"the parent has the shape but not the weights of the model that {path} was cut from; give that one: "
            "another training's heads and neurons have nothing to do with these"
        )
    return Survival(found, strengths(parent))


Left = tuple[dict[str, Any] | None, tuple[LayerShape, ...]]  # what the card says survived, and the layers there are


def _of_folder(path: Path) -> Left:
    model = NLUModel.load(path)
    return model.card.survivors, model.encoder.config.transformer_shapes(str(path))


def _of_file(path: Path) -> Left:
    artifact = read(path)
    shapes = (shape_from_dict(layer) for layer in check_model(artifact)["layers"])
    layers = tuple(shape for shape in shapes if isinstance(shape, LayerShape))
    return artifact.manifest["lineage"].get("survivors"), layers


def _fitting(path: Path, card: dict[str, Any], layers: tuple[LayerShape, ...]) -> Survivors:
    """Errors: CheckpointError of a folder, ArtifactError of a file."""
    try:
        return fitting(card, layers)
    except CheckpointError as error:
        raise (CheckpointError if path.is_dir() else ArtifactError)(f"{path}: {error}") from error


def strengths(dense: NLUModel) -> dict[str, list[np.ndarray]]:
    """Of heads and neurons of each layer, shares of the layer's largest."""
    found: dict[str, list[np.ndarray]] = {HEADS: [], NEURONS: []}
    for layer in dense.encoder.transformer_layers("strengths of heads and neurons"):
        n, d = layer.attention.heads, layer.attention.head_size
        v = layer.attention.qkv.weight.detach().numpy()[2 * n * d :].reshape(n, d, -1)  # (H, d, D)
        out = layer.attention.out.weight.detach().numpy().reshape(-1, n, d)  # (D, H, d)
        heads = np.array([np.linalg.norm(out[:, h] @ v[h]) for h in range(n)])
        up, down = (m.weight.detach().numpy() for m in (layer.ffn.up, layer.ffn.down))
        neurons = np.linalg.norm(up, axis=1) * np.linalg.norm(down, axis=0)
        for kind, of in ((HEADS, heads), (NEURONS, neurons)):
            found[kind].append(of / max(of.max(initial=0.0), 1e-30))
    return found


def draw(found: Survival, title: str, path: Path) -> Path:
    """Write a PNG: heads one by one, neurons as shares of bins, grey where none is left.

    Errors: MissingExtraError without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "workshop", "drawing what survived") from error
    n_layers = len(found.survivors.dense)
    n_heads = max((s.heads for s in found.survivors.dense), default=0)
    figure = Figure(figsize=(9, 1.4 + 0.35 * n_layers), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(max(n_heads, 4), BINS))
    panel(left, "heads that survived", _head_cells(found, n_heads), [str(h) for h in range(n_heads)])
    left.set_yticks(range(n_layers), [f"layer {i}" for i in range(n_layers)])
    ordered = "strongest first" if found.strengths is not None else "in order"
    bins = neuron_bins(found)
    image = panel(
        right, f"neurons that survived, {BINS} bins, {ordered}", np.where(bins > 0, bins, np.nan), [], line=0.5
    )
    for i, row in enumerate(found.shares(NEURONS)):
        right.text(BINS, i, f"{row['kept']} of {row['of']}", va="center", fontsize=8)
    figure.colorbar(image, ax=[left, right], fraction=0.03, pad=0.02).set_label(
        "share of a bin" if found.strengths is None else "share of a bin, strength of a head", fontsize=9
    )
    figure.suptitle(title, fontsize=11)
    warm = "" if found.strengths is None else "heads: strength in the dense model, of the layer's strongest; "
    figure.supxlabel(f"{warm}grey: gone", fontsize=9)
    FigureCanvasAgg(figure)
    figure.savefig(path)
    return path


def _head_cells(found: Survival, n_heads: int) -> np.ndarray:
    """(layers, heads): strength of survivors, or 1; NaN for what is gone or never was."""
    cells = np.full((len(found.survivors.dense), n_heads), np.nan)
    for i, there in enumerate(found.kept(HEADS)):
        warm = np.ones(len(there)) if found.strengths is None else found.strengths[HEADS][i]
        cells[i, : len(there)] = np.where(there, warm, np.nan)
    return cells


def neuron_bins(found: Survival, n_bins: int = BINS) -> np.ndarray:
    """(layers, bins): share that survived; neurons by falling strength where it is known. NaN without neurons."""
    rows = []
    for i, there in enumerate(found.kept(NEURONS)):
        if found.strengths is not None:
            there = there[np.argsort(-found.strengths[NEURONS][i], kind="stable")]
        parts = np.array_split(there, n_bins)
        rows.append([part.mean() if len(part) else np.nan for part in parts])
    return np.array(rows).reshape(-1, n_bins)


def _shape(layers: Sequence[Any]) -> str:
    return " ".join(f"{s.heads}x{s.ffn}" for s in layers)
