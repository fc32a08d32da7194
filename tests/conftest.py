"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of public data sets (README "Data sets"): FLYWEIGHT_DATA, or ../shared/data beside the project."""
    beside = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("FLYWEIGHT_DATA", beside))
    if not folder.is_dir():
        pytest.skip("the public data sets are absent: FLYWEIGHT_DATA names no folder and ../shared/data is none")
    return folder
