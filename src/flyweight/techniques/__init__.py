"""One room a technique, all of one shape (see docs/architecture.md); this table is all that names them."""

from __future__ import annotations

from flyweight.techniques.codebook import Codebook
from flyweight.techniques.int8 import Int8
from flyweight.techniques.room import Technique

TECHNIQUES: dict[str, type[Technique]] = {"int8": Int8, "codebook": Codebook}
