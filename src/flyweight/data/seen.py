"""What a model remembers of its training messages: enough to tell which messages of a source it has seen.

memory = base64 of the sorted different first 4 bytes of SHA-256(folded text)      4 bytes a message, no text

A message that was not trained on is taken for one with the chance n / 2^32 for n remembered ones: of 10,000 new
messages asked of a memory of 10,000 one is left out in 43 evaluations.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from flyweight.data.messages import Message
from flyweight.errors import DataError

PRINT_BYTES = 4
_STORED = np.dtype(">u4")  # big endian: numbers and bytes sort alike


def remember(messages: Iterable[Message]) -> str:
    """The memory of the messages; equal folded texts count once, and order does not matter."""
    return base64.b64encode(np.unique(_prints(messages)).astype(_STORED).tobytes()).decode("ascii")


def were_seen(messages: Sequence[Message], memory: str) -> list[bool]:
    """Which messages are in the memory; a false hit has the chance n / 2^32, a false miss does not happen.

    Errors: DataError for a memory that `remember` did not make.
    """
    known = _read(memory)
    if not len(known):
        return [False] * len(messages)
    asked = _prints(messages)
    at = np.searchsorted(known, asked)  # first place that is not smaller, len(known) for none
    found: list[bool] = (known[np.minimum(at, len(known) - 1)] == asked).tolist()
    return found


def _prints(messages: Iterable[Message]) -> np.ndarray:
    """(n,) uint32, one a message."""
    # JSON can bring half a surrogate pair, which plain UTF-8 refuses.
    texts = (m.folded.encode("utf-8", "surrogatepass") for m in messages)
    joined = b"".join(hashlib.sha256(text).digest()[:PRINT_BYTES] for text in texts)
    return np.frombuffer(joined, _STORED).astype(np.uint32)


def _read(memory: str) -> np.ndarray:
    """(n,) uint32 ascending. The memory comes out of a file that anyone may have written."""
    try:
        raw = base64.b64decode(memory, validate=True)
        known = np.frombuffer(raw, _STORED).astype(np.uint32)
    except (TypeError, ValueError) as error:
        raise _damaged() from error
    if (known[1:] <= known[:-1]).any():
        raise _damaged()
    return known


def _damaged() -> DataError:
    return DataError("the model's memory of its training messages is damaged", allowed="train or export it again")
