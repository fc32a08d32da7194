"""The documentation cannot lie: README names every folder, its commands exist, generated parts have their source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

from flyweight.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def folders() -> list[str]:
    """Folders a newcomer sees: packages with Python files below src/flyweight, and the top level."""
    packages = {p.parent for p in (ROOT / "src" / "flyweight").glob("*/*.py")}
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


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/cli.md"])
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
