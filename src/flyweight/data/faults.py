"""Reading on behind rows at fault: what `flyweight data check` reads.

A reader stops at the first fault, so that nothing is trained on half of a file. A check should tell all faults at once:
a row of a table (.csv, .tsv, .jsonl) that its reader refuses is made blank in a copy of the source, and the copy is
read again; readers skip blank lines, so lines keep their numbers. In other forms a fault ends the reading.
"""

from __future__ import annotations

import csv
import io
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from flyweight.data.load import FORMS, leaks, load_data
from flyweight.data.messages import NLUData
from flyweight.data.tabular import SUFFIXES, find_delimiter
from flyweight.errors import DataError

MOST = 100  # faults, then the reading ends: the file is something else, or its columns are


def read_despite_faults(
    path: str | Path, *, text_column: str | None = None, intent_column: str | None = None
) -> tuple[NLUData | None, list[DataError]]:
    """The parts that the source brings, nothing held out, and the faults of rows that were left out.

    The notes are those of the readers, on what they do not read; what parts have in common the check finds itself.
    No data where a fault ended the reading. Raises DataError where no line is at fault: for a source of no known form.
    """
    if not str(path):  # Path("") is the current folder
        raise DataError("the name of the data is empty", allowed=FORMS)
    original = source = Path(path)
    faults: list[DataError] = []
    with tempfile.TemporaryDirectory() as folder:
        while True:
            try:
                data = load_data(source, test=0, validation=0, text_column=text_column, intent_column=intent_column)
                told = leaks(data.parts)
                notes = tuple(note for note in data.notes if note not in told)
                return replace(data, source=str(path), notes=notes), faults
            except DataError as fault:
                if fault.line is None and not faults:
                    raise
                file = Path(str(fault.path))
                if source != original:
                    file = original / file.relative_to(source)
                faults.append(DataError(fault.found, allowed=fault.allowed, path=file, line=fault.line))
                if fault.line is None or file.suffix.lower() not in SUFFIXES or len(faults) == MOST:
                    return None, faults
                if source == original:
                    source = _copy(original, Path(folder))
                if not _blank_row(source / file.relative_to(original), fault.line):
                    return None, faults


def _copy(source: Path, folder: Path) -> Path:
    """A copy of the file or folder, without what is hidden."""
    copy = folder / f"source{source.suffix}"  # the name may be ".."
    if source.is_dir():
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns(".*"))
    else:
        shutil.copyfile(source, copy)
    return copy


def _blank_row(path: Path, line: int) -> bool:
    """Make the row that starts on `line` blank; False for a header (or a file without one): no row can be read then.

    A row of a .csv file ends where its quotes end; where they do not, the line alone is taken for the row.
    """
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    is_json = path.suffix.lower() == ".jsonl"
    lines = list(io.StringIO(text, newline="\n" if is_json else ""))  # a row of JSON may have a lone carriage return
    n = 1
    if not is_json:
        header = next((i for i, row in enumerate(lines, 1) if row.strip()), None)
        if header is None or line <= header:
            return False
        delimiter = "\t" if path.suffix.lower() == ".tsv" else find_delimiter(text)
        rows = csv.reader(lines[line - 1 :], delimiter=delimiter, strict=True)
        try:
            next(rows)
            n = rows.line_num
        except csv.Error:
            pass
    for i in range(line - 1, line - 1 + n):
        lines[i] = lines[i][len(lines[i].rstrip("\r\n")) :]
    path.write_bytes("".join(lines).encode("utf-8", "surrogateescape"))
    return True
