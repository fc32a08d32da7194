"""From nothing to an answer: `pip install .` in an empty environment, then `flyweight parse "wake me at seven"`.

    python benchmarks/install.py           seconds, packages, megabytes; results/install.json

The engine is compiled within the installation (a wheel would bring it). Packages other than pip itself are counted with
all their files; torch must not be among them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

from flyweight.measure.machine import machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
MESSAGE = "wake me at seven"
HEAVY = ("torch", "transformers", "onnx", "scikit-learn", "pandas", "tokenizers")


def run(command: list[Any], folder: Path) -> tuple[float, str]:
    """Seconds and standard output of a command that must not fail."""
    start = time.perf_counter()
    done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stderr}")
    return time.perf_counter() - start, done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        venv.create(folder / "env", with_pip=True)
        python, command = (folder / "env" / "bin" / name for name in ("python", "flyweight"))
        install_s, _ = run([python, "-m", "pip", "--disable-pip-version-check", "install", ROOT], folder)
        times, said = zip(*(run([command, "parse", "--json", MESSAGE], folder) for _ in range(6)), strict=True)
        answers = [json.loads(line) for line in said]
        _, listed = run([python, "-m", "pip", "--disable-pip-version-check", "list", "--format=json"], folder)
        packages = {p["name"]: p["version"] for p in json.loads(listed) if p["name"] not in ("pip", "setuptools")}
        site = next((folder / "env" / "lib").glob("python*")) / "site-packages"
        sizes = {p.name: bytes_below(p) for p in site.iterdir() if not p.name.startswith(("pip", "setuptools"))}
        module = bool(list((site / "flyweight").glob("_native*")))
    heavy = sorted(set(HEAVY) & set(packages))
    result = {
        "machine": machine(),
        "install_s": round(install_s, 1),
        "first_answer_s": round(times[0], 2),
        "later_answers_s": round(sorted(times[1:])[2], 2),
        "packages": packages,
        "installed_mb": round(sum(sizes.values()) / 1e6, 1),
        "flyweight_mb": round(sizes["flyweight"] / 1e6, 1),
        "native_engine": module,
        "answer": answers[0],
    }
    print(json.dumps({k: v for k, v in result.items() if k != "machine"} | {"answer": answers[0]["intent"]}, indent=1))
    (RESULTS / "install.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if heavy:
        sys.exit(f"installed beside Flyweight: {', '.join(heavy)}")


def bytes_below(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())


if __name__ == "__main__":
    main()
