"""Imports go one way, rooms do not know each other, and the service half stays light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import flyweight

ROOT = Path(flyweight.__file__).parent
# Top to bottom; names on one line may not import each other.
LAYERS = [
    ("cli",),
    ("demo",),
    ("recipe", "report"),
    ("stages",),
    ("receipt",),
    ("techniques",),
    ("analyse",),
    ("training",),
    ("measure",),
    ("export",),
    ("runtime", "model"),
    ("transport",),
    ("artifact",),
    ("answers",),
    ("tokenizer",),
    ("integer_only",),
    ("forms", "positions", "integer_math", "progress", "cores", "data"),
    ("errors",),
]
DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}
HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "sklearn", "scipy", "pandas", "matplotlib")


def imports(source: str, package: str) -> list[str]:
    """Dotted names inside flyweight that a module imports, within functions too; `package` resolves relative ones."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: -node.level + 1 or None] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [f"{module}.{alias.name}" for alias in node.names]
    return [name for name in found if name.split(".")[0] == "flyweight"]


def modules() -> list[tuple[str, str]]:
    """(path within the package, part of it) of all modules but the lazy root."""
    files = [f.relative_to(ROOT) for f in sorted(ROOT.rglob("*.py"))]
    return [(f.as_posix(), f.parts[0].removesuffix(".py")) for f in files if f.as_posix() != "__init__.py"]


def wrong(part: str, names: list[str]) -> list[str]:
    """The names that `part` may not import: anything but itself, what lies below, and the version."""
    parts = {name: [*name.split("."), ""][1] for name in names if name != "flyweight.__version__"}
    return [name for name, other in parts.items() if other != part and DEPTH.get(other, -1) <= DEPTH[part]]


def test_the_layers_name_every_part() -> None:
    assert {part for _, part in modules()} == set(DEPTH)


@pytest.mark.parametrize(("file", "part"), modules())
def test_imports_go_one_way(file: str, part: str) -> None:
    package = ".".join(["flyweight", *Path(file).parent.parts])
    assert wrong(part, imports((ROOT / file).read_text(encoding="utf-8"), package)) == []


def test_the_check_itself() -> None:
    assert imports("def f():\n from ..cli import main\n import torch, flyweight.model.nlu", "flyweight.forms") == [
        "flyweight.cli.main",
        "flyweight.model.nlu",
    ]
    assert imports("from . import a\nfrom .b import c", "flyweight.data") == ["flyweight.data.a", "flyweight.data.b.c"]
    assert wrong("model", ["flyweight.runtime.parser", "flyweight.forms.Int8", "flyweight.model.x"]) == [
        "flyweight.runtime.parser"
    ]
    assert wrong("runtime", ["flyweight.train", "flyweight", "flyweight.__version__"]) == [
        "flyweight.train",
        "flyweight",
    ]


def test_techniques_never_import_each_other() -> None:
    rooms = [f for f in (ROOT / "techniques").glob("*.py") if f.stem not in ("__init__", "room")]
    assert len(rooms) >= 2
    for file in rooms:
        names = imports(file.read_text(encoding="utf-8"), "flyweight.techniques")
        inside = {name.split(".")[2] for name in names if name.startswith("flyweight.techniques.")}
        assert inside <= {"room"}, file.name


def loaded_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after `code`."""
    code += "\nimport sys, json; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_flyweight_loads_numpy_at_most() -> None:
    new = loaded_by("import flyweight; dir(flyweight)") - loaded_by("import numpy")
    assert new - set(sys.stdlib_module_names) == {"flyweight"}


@pytest.mark.parametrize(
    "code", ["import flyweight as fw; fw.load, fw.Parser, fw.load_data", "import flyweight.cli.main"]
)
def test_the_service_half_never_loads_the_workshop(code: str) -> None:
    assert not loaded_by(code) & set(HEAVY)


def test_answering_never_loads_the_workshop(tmp_path: Path, tiny_model: object) -> None:
    from flyweight.export.fly import export_fly
    from flyweight.model.nlu import NLUModel

    assert isinstance(tiny_model, NLUModel)
    path = export_fly(tiny_model, tmp_path / "bot.fly")
    code = f"import flyweight; p = flyweight.load({str(path)!r}); assert p.parse('hello')['intent']['name'] == 'greet'"
    assert not loaded_by(code) & set(HEAVY)


def test_the_native_module_has_two_doors() -> None:
    """One for the engine, one for the tokenizer."""
    doors = {
        f.relative_to(ROOT).as_posix()
        for f in ROOT.rglob("*.py")
        if 'import_module("flyweight._native")' in f.read_text()
    }
    assert doors == {"runtime/native.py", "tokenizer/__init__.py"}


def test_public_names_exist_once() -> None:
    assert len(set(flyweight.__all__)) == len(flyweight.__all__)
    for name in flyweight.__all__:
        assert getattr(flyweight, name) is not None
    with pytest.raises(AttributeError, match="module 'flyweight' has no attribute 'nothing'"):
        flyweight.nothing  # noqa: B018
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        n.names[0].name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and "flyweight" in (n.module or "")
    }
    assert typed == set(flyweight.__all__) - {"__version__"}  # what type checkers see is what is there
