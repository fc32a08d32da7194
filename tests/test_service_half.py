"""The service half on a machine that has none of the workshop's packages: every import of them fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from random_models import quiet_run

from flyweight.data.messages import NLUData
from flyweight.export.fly import save
from flyweight.model.nlu import NLUModel
from flyweight.runtime import native
from flyweight.runtime.parser import load
from flyweight.techniques.codebook import Codebook

WORKSHOP = (
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "sklearn",
    "scipy",
    "pandas",
    "yaml",
    "safetensors",
    "matplotlib",
)
if native.module() is not None:  # elsewhere the package `tokenizers` does its work
    WORKSHOP += ("tokenizers",)
BLOCKED = f"""
import json, sys

class Blocker:
    names = {WORKSHOP!r} + ("huggingface_hub",)
    asked = []

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            self.asked.append(name)
            raise ImportError(f"blocked: {{name}}")
        return None

sys.meta_path.insert(0, Blocker())

def report(**found):
    loaded = [n for n in Blocker.names if n in sys.modules]
    print("\\nreport " + json.dumps(found | {{"loaded": loaded, "asked": Blocker.asked}}))
"""


def blocked(code: str, stdin: str = "") -> tuple[dict, str]:
    """What `code` reports in a fresh interpreter without the workshop's packages, and what it printed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FLYWEIGHT")}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + code], input=stdin, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    printed, _, found = done.stdout.rpartition("\nreport ")
    return json.loads(found), printed


@pytest.fixture(scope="module")
def file(tiny_data: NLUData, tiny_model: NLUModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = Codebook(encoder=8, embeddings=8, heads=8).apply(tiny_model, quiet_run(tiny_data, tiny_model))
    return save(small, tmp_path_factory.mktemp("service") / "bot.fly")


def test_the_blocker_blocks() -> None:
    found, _ = blocked("""
try:
    import torch
    report(raised=None)
except ImportError as error:
    report(raised=str(error))
""")
    assert found == {"raised": "blocked: torch", "loaded": [], "asked": ["torch"]}


def test_answering(file: Path) -> None:
    texts = ["book a flight from Oslo to NYC tomorrow", "hello bot", ""]
    code = f"import flyweight\nnlu = flyweight.load({str(file)!r})\nreport(answers=nlu.parse_batch({texts!r}))"
    found, _ = blocked(code)
    assert found["loaded"] == []
    assert found["asked"] == []  # nothing even tries to import them
    wanted = load(file).parse_batch(texts)
    assert json.loads(json.dumps(wanted)) == found["answers"]
    assert [e["value"] for e in wanted[0]["entities"]][-1] == "tomorrow"


def test_the_verbs_that_need_a_file_only(file: Path) -> None:
    code = f"""
from flyweight.cli.main import run
file = {str(file)!r}
codes = [run(["parse", file, "hello bot", "what is the weather in Rome"])]
codes += [run(["parse", file, "--json"]), run(["inspect", file]), run(["inspect", file, "--json"])]
codes += [run(["verify", file]), run(["-h"]), run(["train", "-h"])]
report(codes=codes)
"""
    found, printed = blocked(code, stdin="hello\nthanks a lot\n")
    assert found["codes"] == [0] * 7
    assert found["loaded"] == []
    lines = printed.splitlines()
    assert [line.split("\t")[0] for line in lines[:2]] == ["greet", "weather"]
    assert [json.loads(line)["text"] for line in lines[2:4]] == ["hello", "thanks a lot"]
    assert "tensors intact" in printed
    assert "model card" in printed


def test_verbs_of_the_workshop_say_what_to_install(file: Path, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("text,intent\nhi,greet\nbye,leave\n")
    (tmp_path / "model").mkdir()
    code = f"""
import contextlib, io
from flyweight.cli.main import run
found = []
for arguments in (
    ["train", {str(tmp_path / "d.csv")!r}, "--out", {str(tmp_path / "out")!r}],
    ["compress", {str(tmp_path / "model")!r}, "x.csv", "-t", "int8", "--out", "y.fly"],
    ["demo"],
    ["sensitivity", {str(tmp_path / "model")!r}, {str(tmp_path / "d.csv")!r}],
    ["evaluate", {str(tmp_path / "model")!r}, {str(tmp_path / "d.csv")!r}],
):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        found.append([run(arguments), said.getvalue()])
report(found=found)
"""
    found, printed = blocked(code)
    assert printed.strip() == ""
    for code_, said in found["found"]:
        assert code_ == 1
        assert said.count("\n") == 1
        assert "needs the package 'torch'; install it with: pip install 'flyweight[workshop]'" in said


def test_measuring_a_file_needs_no_workshop(file: Path, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("text,intent\nhello bot,greet\nthanks a lot,thanks\nhey,thanks\n")
    code = f"""
from flyweight.cli.main import run
report(code=run(["evaluate", {str(file)!r}, {str(tmp_path / "d.csv")!r}, "--part", "all", "--json"]))
"""
    found, printed = blocked(code)
    assert (found["code"], found["loaded"]) == (0, [])
    [row] = json.loads(printed)["models"]
    assert row["quality"]["n_messages"] == 3
    assert row["quality"]["intent_accuracy"] == pytest.approx(2 / 3)


def test_rasa_yaml_says_what_it_needs(file: Path, tmp_path: Path) -> None:
    (tmp_path / "nlu.yml").write_text('version: "3.1"\nnlu:\n- intent: greet\n  examples: |\n    - hello\n')
    code = f"""
import contextlib, io
from flyweight.cli.main import run
with contextlib.redirect_stderr(io.StringIO()) as said:
    code = run(["evaluate", {str(file)!r}, {str(tmp_path / "nlu.yml")!r}])
report(code=code, said=said.getvalue())
"""
    found, _ = blocked(code)
    assert found["code"] == 1
    assert found["said"].count("\n") == 1
    assert "needs the package 'PyYAML'; install it with: pip install 'flyweight[workshop]'" in found["said"]


def test_importing_flyweight_alone_loads_numpy_at_most() -> None:
    found, _ = blocked("""
before = set(sys.modules)
import flyweight
names = dir(flyweight)
new = {n.partition(".")[0] for n in set(sys.modules) - before}
report(new=sorted(n for n in new if n not in sys.stdlib_module_names), names=names)
""")
    assert set(found["new"]) <= {"flyweight", "numpy"}
    assert {"load", "train", "compress", "Int8", "Codebook", "evaluate"} <= set(found["names"])
