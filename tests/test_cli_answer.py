"""The command line: parse, inspect, verify; the command line as a process: pipes and Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cli_cases import Call, Done, Place, cells_of, command, engine_title
from safetensors.numpy import load_file

from flyweight.cli import answer, show
from flyweight.data.load import load_data
from flyweight.data.messages import NLUData
from flyweight.runtime.parser import load
from flyweight.training import loop

EPOCHS = 12  # of the training that is interrupted


def test_parse_messages(bot: Path, call: Call) -> None:
    done = call("parse", bot, "book a flight from Oslo to NYC today", "hello bot")
    assert (done.code, done.err) == (0, "")
    first, second = done.out.splitlines()
    intent, confidence, entities = first.split("\t")
    assert intent == "book_flight"
    assert re.fullmatch(r"[01]\.\d{4}", confidence)
    found = load(bot).parse("book a flight from Oslo to NYC today")["entities"]
    named = [f"{e['entity']}:{e['role']}" if "role" in e else e["entity"] for e in found]
    assert entities == "  ".join(f"{name}='{e['value']}'" for name, e in zip(named, found, strict=True))
    assert "'Oslo'" in entities
    assert "'New York'" in entities  # the synonym's value
    assert re.fullmatch(r"greet\t[01]\.\d{4}\t", second)


def test_parse_json_is_rasas_result(bot: Path, call: Call) -> None:
    done = call("parse", bot, "--json", "book a flight from Oslo to NYC today", "")
    answer, empty = (json.loads(line) for line in done.out.splitlines())
    assert set(answer) == {"text", "intent", "intent_ranking", "entities"}
    assert answer["text"] == "book a flight from Oslo to NYC today"
    assert answer["intent"] == answer["intent_ranking"][0]
    assert sum(r["confidence"] for r in answer["intent_ranking"]) == pytest.approx(1)
    [nyc] = [e for e in answer["entities"] if e["start"] == 27]
    assert nyc.pop("role", "to") == "to"
    assert nyc == {"entity": "city", "start": 27, "end": 30, "value": "New York"}
    assert (empty["text"], empty["entities"]) == ("", [])


def test_parse_from_stdin(bot: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "hello bot\r\n\nwhat is the weather in Rome\nthanks a lot"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    done = call("parse", bot, "--json")
    texts = [json.loads(line)["text"] for line in done.out.splitlines()]
    assert texts == ["hello bot", "", "what is the weather in Rome", "thanks a lot"]  # a line out for each line in


def test_parse_without_message_on_a_terminal(bot: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    said = "flyweight: no message: give one after the file, or pipe lines into stdin\n"
    assert call("parse", bot) == Done(1, "", said)


def test_inspect(place: Place, bot: Path, tiny_data: NLUData, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(call("inspect", place.codes, "--json").out)
    assert found["size_bytes"] == place.codes.stat().st_size
    assert found["lineage"]["data_fingerprint"] == load_data(place.csv).fingerprint()
    assert found["weights"]["heads.intent"]["form"] == "int8"
    shown = call("inspect", bot)
    assert (shown.code, shown.err) == (0, "")
    assert f"{bot.stat().st_size / 1e6:.2f} MB, format 1" in shown.out
    assert "4 intents, 4 entity types" in shown.out
    n_layers = len(json.loads(call("inspect", bot, "--json").out)["model"]["encoder"]["layers"])
    up = next(row for row in cells_of(shown.out) if row[0] == f"layers.0-{n_layers - 1}.ffn.up")
    # 512 x 128 int8 weights, 512 scales and biases: (65536 + 4096) bytes a layer, 8.5 bits a weight
    assert up[1:] == ["512x128", "int8 per=row shift=0", "int8", "8.50", f"{n_layers * 69.632:.1f}"]
    said = {line.split("  ")[0] for line in shown.out.splitlines()}
    assert said >= {"file", "encoder", "training", "int8", "golden samples"}
    monkeypatch.setattr(show, "PIPE_WIDTH", 80)
    narrow = call("inspect", bot).out
    assert max(map(len, narrow.splitlines())) <= 80
    assert all(number in narrow for row in cells_of(shown.out) for number in (row[1], *row[-2:]))


def test_inspect_puts_equal_layers_into_one_line() -> None:
    eight, four = {"form": "int8", "per": "row"}, {"form": "codes", "centres": 16}
    layers = [eight, eight, four, eight]
    weights = {"embeddings.words": eight} | {
        f"layers.{i}.ffn.{side}": form if side == "up" else eight
        for i, form in enumerate(layers)
        for side in ("up", "down")
    }
    manifest = {"weights": {k: v | {"shape": [2, 5], "activations": "int8"} for k, v in weights.items()}}
    arrays = {f"{name}.q": np.zeros(10, np.int8) for name in weights}
    groups = answer._groups(SimpleNamespace(manifest=manifest, arrays=arrays))  # type: ignore[arg-type]
    assert [(g.name, g.form, g.n_bytes, g.bits) for g in groups] == [
        ("embeddings.words", "int8 per=row", 10, "8.00"),
        ("layers.0-1.ffn.up", "int8 per=row", 20, "8.00"),
        ("layers.0-3.ffn.down", "int8 per=row", 40, "8.00"),
        ("layers.2.ffn.up", "codes centres=16", 10, "8.00"),
        ("layers.3.ffn.up", "int8 per=row", 10, "8.00"),
    ]


def test_inspect_shows_what_is_sparse() -> None:
    """5 of 18 weights survive, a whole block and a last short one, and 4 of 18 of the next layer: 9 of 36."""
    int8 = {"form": "int8", "per": "row", "shift": 0}
    codes = {"form": "codes", "centres": 4, "per": "matrix", "table": "int8"}
    found = {
        "layers.0.ffn.up": (4, int8, [[0b101], [0]], [2, 9]),
        "layers.1.ffn.up": (4, int8, [[0], [0b1]], [2, 9]),
        "layers.2.ffn.up": (1, int8, [[0b1, 1], [0b1111, 0]], [2, 9]),
        "layers.3.ffn.up": (1, codes, [[0b1, 0], [0b11, 0]], [2, 9]),
        "heads.tags": (1, int8, np.zeros((0, 1)), [0, 5]),
    }
    manifest = {
        "weights": {
            name: {"form": "sparse", "block": block, "values": values, "shape": shape, "layout": "rows"}
            | {"activations": "int8"}
            for name, (block, values, _, shape) in found.items()
        }
    }
    arrays = {f"{name}.mask": np.array(mask, np.uint8) for name, (_, _, mask, _) in found.items()}
    groups = answer._groups(SimpleNamespace(manifest=manifest, arrays=arrays))  # type: ignore[arg-type]
    assert [(g.name, g.described) for g in groups] == [
        ("layers.0-1.ffn.up", "sparse 1x4 int8, 25% kept"),
        ("layers.2.ffn.up", "sparse int8, 33% kept"),
        ("layers.3.ffn.up", "sparse codes centres=4, 17% kept"),
        ("heads.tags", "sparse int8, 0% kept"),
    ]


def test_verify(bot: Path, call: Call) -> None:
    done = call("verify", bot)
    assert re.fullmatch(r".*bot\.fly: \d+ tensors intact; golden samples by .+: (equal|within .+)\n", done.out)
    found = json.loads(call("verify", bot, "--json").out)
    assert found["golden_difference"] <= found["tolerance"]
    assert found["golden_equal"] == (found["golden_difference"] == 0)
    assert found["engine"] == engine_title()
    assert f"{found['tensors']} tensors" in done.out


def test_data_goes_to_stdout_and_talk_to_stderr(bot: Path, tmp_path: Path) -> None:
    done = subprocess.run(command("parse", bot, "--json"), input="hello\nhi\n", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["hello", "hi"]
    missing = subprocess.run(command("parse", tmp_path / "no.fly", "hi"), capture_output=True, text=True)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.count("\n") == 1
    usage = subprocess.run(command("inspect"), capture_output=True, text=True)
    assert (usage.returncode, usage.stdout, usage.stderr.count("\n")) == (2, "", 1)


def test_a_closed_pipe_is_no_error(bot: Path) -> None:
    process = subprocess.Popen(
        command("parse", bot), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdin.write("hello\n")
    process.stdin.flush()
    assert process.stdout.readline().startswith("greet\t")  # an answer comes as soon as its line is in
    process.stdout.close()
    process.stdin.write("hello\n" * 10)
    process.stdin.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("verb", ["inspect", "doctor", "-h"])
def test_a_closed_pipe_under_a_table_is_no_error(verb: str, bot: Path) -> None:
    arguments = [verb, bot] if verb == "inspect" else [verb]
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stderr
    process.stdout.close()  # long before the first line
    assert (process.stderr.read(), process.wait(timeout=60)) == ("", 0)


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(
    place: Place, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m"
    options = ["--base", "small", "--epochs", EPOCHS, "--batch-size", 4, "--device", "cpu"]
    arguments = ["train", place.csv, "--out", out, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    while not (out / "training.pt").exists():  # written at the end of the first epoch
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    talk = [line for line in stderr.splitlines() if line.strip()]
    assert talk[-1] == "flyweight: interrupted; the same command goes on where it can"
    assert re.match(r"\d+ training, ", talk[0])
    assert len(talk) == 2
    assert not (out / "config.json").exists()
    done_steps = torch.load(out / "training.pt", weights_only=True)["step"]
    n_steps = EPOCHS * -(-len(load_data(place.csv).train) // 4)
    assert 0 < done_steps < n_steps

    steps = []
    right = loop._Run.train_step
    monkeypatch.setattr(loop._Run, "train_step", lambda self: steps.append(1) or right(self))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        finished = call(*arguments)
        assert finished.code == 0, finished.err
        assert len(steps) == n_steps - done_steps  # it went on; nothing was done twice
        assert not (out / "training.pt").exists()
        assert call("train", place.csv, "--out", tmp_path / "whole", *options).code == 0
    finally:
        torch.set_num_threads(threads)
    resumed, whole = (load_file(str(folder / "model.safetensors")) for folder in (out, tmp_path / "whole"))
    assert resumed.keys() == whole.keys()
    assert all(np.array_equal(a, whole[k]) for k, a in resumed.items())  # the bits of an uninterrupted training
