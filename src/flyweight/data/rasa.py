"""Rasa NLU files of every version: which they are, found below a folder, read as one part.

.yml, .yaml   with a key `nlu:`                                       2.0 and 3.x
.md           with a section such as `## intent:name`                 up to 1.10
.json         with the key "rasa_nlu_data"                            up to 1.10
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flyweight.data.messages import NLUData
from flyweight.data.rasa_items import Collector
from flyweight.data.rasa_legacy import JSON_MARK, MARKDOWN_MARK, read_rasa_json, read_rasa_markdown
from flyweight.data.rasa_yaml import YAML_MARK, read_rasa_yaml
from flyweight.data.source import read_bytes

MARKS = {".yml": YAML_MARK, ".yaml": YAML_MARK, ".md": MARKDOWN_MARK, ".json": JSON_MARK}


def is_rasa_file(path: Path) -> bool:
    """Whether `path` is a file with the mark of its form: config, domain, stories and README have none."""
    mark = MARKS.get(path.suffix.lower())
    return mark is not None and os.path.isfile(path) and bool(mark.search(read_bytes(path)))


def rasa_files(folder: Path) -> list[Path]:
    """The NLU files below `folder` in path order; hidden folders and files of other kinds are left out."""
    found = (p for p in folder.rglob("*") if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    return sorted((p for p in found if is_rasa_file(p)), key=lambda p: p.relative_to(folder).as_posix())


def read_rasa_files(paths: Sequence[Path]) -> NLUData:
    """NLU files as one unsplit train part; of two values for one written form the later counts, as in Rasa."""
    whole = Collector(paths[0])
    for path in paths:
        suffix, optional = path.suffix.lower(), len(paths) > 1
        if suffix == ".json":
            whole.add(read_rasa_json(path))
        elif suffix == ".md":
            whole.add(read_rasa_markdown(path, optional=optional))
        else:
            whole.add(read_rasa_yaml(path, optional=optional))
    return whole.data()
