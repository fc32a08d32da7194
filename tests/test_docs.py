"""The documentation cannot lie: README names every folder, its commands exist, generated parts have their source."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

from flyweight.cli.main import app

ROOT = Path(__file__).resolve().parents[1]


def load_generate() -> ModuleType:
    """docs/generate.py, which lies outside the package."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generate()
README = (ROOT / "README.md").read_text(encoding="utf-8")


def folders() -> list[str]:
    """Folders a newcomer sees: packages and recipes below src/flyweight, those of native/, and the top level."""
    packages = {p.parent for kind in ("py", "yml") for p in (ROOT / "src" / "flyweight").glob(f"*/*.{kind}")}
    packages |= {p.parent for kind in ("*.cc", "*.cmake") for p in (ROOT / "native").rglob(kind)}
    top = {ROOT / "tests", ROOT / "benchmarks", ROOT / "docs"}
    return sorted(f"{p.relative_to(ROOT)}/" for p in packages | top)


def test_readme_lists_every_folder_on_one_line() -> None:
    listed = re.findall(r"^\| `([^`]+/)` \|", README, flags=re.MULTILINE)
    assert sorted(listed) == folders()


def test_readme_names_every_single_file() -> None:
    paragraph = README[README.index("Single files:") :]
    lower = {"__init__.py", "positions.py", "progress.py"}  # named where they are used
    for path in (ROOT / "src" / "flyweight").glob("*.py"):
        assert path.name in lower or f"`{path.name}`" in paragraph, path.name


@pytest.mark.parametrize(
    "name",
    ["README.md", *(f"docs/{page}.md" for page in ("cli", "data", "bases", "founding", "quantization", "headline"))],
)
def test_no_generated_part_is_empty(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    parts = re.findall(r"cog\.outl\(([^\n]+)\)\n\]\]\] -->\n(.*?)<!-- \[\[\[end\]\]\] -->", text, flags=re.DOTALL)
    assert len(parts) == text.count("[[[cog")
    for call, made in parts:
        assert made.strip(), f"{call} has made nothing: run make docs"


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", *(f"docs/{n}.md" for n in ("architecture", "cli", "data", "bases"))]
)
def test_links_and_pictures_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert ((ROOT / name).parent / target).exists(), target


def test_commands_in_the_readme_exist() -> None:
    verbs = set(typer.main.get_command(app).commands)
    used = set(re.findall(r"^    flyweight (\w+)", README, flags=re.MULTILINE))
    assert used
    assert used <= verbs
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", README)) <= targets


def test_every_verb_is_in_the_command_line_reference() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for verb in typer.main.get_command(app).commands:
        assert f"## flyweight {verb}\n" in text


def test_the_command_line_reference_names_both_sides_of_a_switch() -> None:
    assert "| `--classic`, `--no-classic` |" in generate.cli_reference()


def test_a_span_score_of_nothing_found_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead entity head scores 0.0000; no entity head, or no span in the messages, has no score."""

    def row(name: str, engine: str, n_gold: int, n_predicted: int) -> dict[str, Any]:
        quality = {"intent_macro_f1": 0.5, "intent_accuracy": 0.5, "span_f1": 0.0, "n_flips": 1}
        quality |= {"n_gold_spans": n_gold, "n_predicted_spans": n_predicted}
        tags = {"tags_entities": engine != "scikit-learn"}
        return {"name": name, "engine": engine, "quality": quality, "size_bytes": 1, "latency": None} | tags

    rows = [row("dead", "numpy", 5, 0), row("svm", "scikit-learn", 5, 0), row("none", "numpy", 0, 0)]
    rows += [row("loud", "numpy", 0, 2), row("headless", "numpy", 5, 0) | {"tags_entities": False}]
    run = {"set": "atis", "base": "minilm", "seed": 0, "rows": rows, "teacher_bytes": 1, "messages": {"test": 9}}
    (tmp_path / "real_data.json").write_text(json.dumps({"runs": [run], "losses": [], "machine": {"cpu": "x"}}))
    monkeypatch.setattr(generate, "RESULTS", tmp_path)
    cells = [line.split(" | ") for line in generate.results_table().splitlines()[2:7]]
    assert [(c[1], c[4]) for c in cells] == [
        ("dead", "0.0000"),
        ("svm", "-"),
        ("none", "-"),
        ("loud", "0.0000"),
        ("headless", "-"),
    ]
