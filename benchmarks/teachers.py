"""Train the teachers of the benchmarks, or find them where they were trained before.

    python benchmarks/teachers.py [banking77 sara-dedup atis snips] [--base minilm] [--seed 0]

Data are read in place from FLYWEIGHT_DATA (default ../shared/data); teachers are kept in FLYWEIGHT_CACHE
(default ~/.cache/flyweight). The test file is never looked at here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import flyweight as fw
from flyweight.training.teacher import default_settings

DATA = Path(os.environ.get("FLYWEIGHT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
CACHE = Path(os.environ.get("FLYWEIGHT_CACHE", Path.home() / ".cache" / "flyweight"))
SETS = ("banking77", "sara-dedup", "atis", "snips")
MPNET = CACHE / "bases" / "all-mpnet-base-v2"
MPNET_RATE = 5e-5  # the default 2e-4 suits MiniLM; 12 layers of 768 want a quarter
MPNET_EPOCHS = {"banking77": 5, "snips": 8, "atis": 6, "sara-dedup": 12, "sara-2019-dedup": 20}


def teacher(name: str, base: str = "minilm", seed: int = 0) -> tuple[fw.NLUModel, fw.NLUData]:
    """The teacher of one data set, and the data. An interrupted training resumes."""
    data = fw.load_data(DATA / name)
    settings = settings_of(name, base, seed)
    folder = folder_of(name, base, settings, data)
    if (folder / "config.json").is_file():
        return fw.NLUModel.load(folder), data
    return fw.train(data, base, settings, out=folder), data


def find(name: str, base: str, seed: int) -> Path | None:
    """The folder of a teacher that has been trained; None for one that has not."""
    folder = folder_of(name, base, settings_of(name, base, seed), fw.load_data(DATA / name))
    return folder if (folder / "config.json").is_file() else None


def settings_of(name: str, base: str, seed: int) -> fw.TrainingSettings:
    """How a teacher of this set and base is trained."""
    settings = replace(default_settings(base), seed=seed)
    if base == str(MPNET):
        settings = replace(settings, learning_rate=MPNET_RATE, epochs=MPNET_EPOCHS[name])
    return settings


def folder_of(name: str, base: str, settings: fw.TrainingSettings, data: fw.NLUData) -> Path:
    """Where the teacher lies: its name tells settings and data apart."""
    identity = json.dumps([asdict(settings), data.fingerprint(), len(data.train)], sort_keys=True)
    key = hashlib.sha256(identity.encode()).hexdigest()[:10]
    return CACHE / "teachers" / f"{name}-{Path(base).name}-{settings.seed}-{key}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=list(SETS), metavar="SET")
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    for name in chosen.sets:
        model, _ = teacher(name, chosen.base, chosen.seed)
        print(json.dumps({"set": name, "base": chosen.base, **model.card.steps[-1]}))


if __name__ == "__main__":
    main()
