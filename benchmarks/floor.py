"""How fast can this machine read memory? The floor under a model whose time goes into reading its weights.

    floor(bytes) = least time to read that many bytes, over 1, 2, 4 and 8 far-apart streams a thread

Warm: the same bytes again and again (from the caches, where they fit). Flushed: once, after other memory went through.
The reader is C, compiled here with cc; without a compiler NumPy reads, one stream, and floors are too high.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter_ns

import numpy as np
from engine_models import CACHE

STREAMS = (1, 2, 4, 8)
L3_BYTES = 32 << 20  # where the system does not tell
_L3 = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


def l3_bytes() -> int:
    """Size of the last-level cache that cpu0 sees."""
    try:
        return int(_L3.read_text().strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        return L3_BYTES


class Eviction:
    """Pushes everything else out of the caches: one pass over a buffer eight times as large as the last level.

    Checked against clflush on a Zen 5 with 32 MB: after four times the size 10 MB still came back at 62 GB/s (warm: 96,
    flushed by instruction: 41), after eight times at 37.
    """

    def __init__(self) -> None:
        self.buffer = np.ones(8 * l3_bytes() // 8, np.int64)

    def __call__(self) -> None:
        """Takes some 10 to 30 ms."""
        np.add.reduce(self.buffer)


class Reader:
    """Reads buffers with 1 to 8 streams a thread. `streams` are those it can do."""

    def __init__(self) -> None:
        self.read, self.streams = _reader()

    def floor_ms(self, n_bytes: int, threads: int, evict: Callable[[], None] | None, rounds: int = 15) -> float:
        """Least milliseconds to read n_bytes with `threads` threads; `evict` runs before each read, None is warm."""
        return min(self.times_ms(n_bytes, threads, evict, rounds).values())

    def times_ms(
        self, n_bytes: int, threads: int, evict: Callable[[], None] | None, rounds: int = 15
    ) -> dict[int, float]:
        """Least milliseconds for each number of streams."""
        unit = 4096 * threads  # every thread's part begins at a page: the reader loads 64 aligned bytes
        n_bytes = max(n_bytes // unit, 1) * unit
        space = np.ones(n_bytes + 4096, np.uint8)
        at = -space.ctypes.data % 4096
        buffer = space[at : at + n_bytes]
        best = {}
        # A second thread takes 20 to 50 us to wake up: below about 1 MB one thread reads faster.
        counts = {1, threads}
        with ThreadPoolExecutor(max(threads - 1, 1)) as pool:
            for streams in self.streams:
                taken = [self._once(buffer, streams, n, pool, evict) for _ in range(rounds) for n in counts]
                best[streams] = min(taken) / 1e6
        return best

    def _once(
        self, buffer: np.ndarray, streams: int, threads: int, pool: ThreadPoolExecutor, evict: Callable[[], None] | None
    ) -> int:
        parts = np.array_split(buffer, threads)
        if evict is not None:
            evict()
        begin = perf_counter_ns()
        others = [pool.submit(self.read, part, streams) for part in parts[1:]]
        self.read(parts[0], streams)
        for other in others:
            other.result()
        return perf_counter_ns() - begin


def _reader() -> tuple[Callable[[np.ndarray, int], object], tuple[int, ...]]:
    source, library = Path(__file__).with_name("read_streams.c"), CACHE / "read_streams.so"
    try:
        if not library.is_file() or library.stat().st_mtime < source.stat().st_mtime:
            library.parent.mkdir(parents=True, exist_ok=True)
            flags = ["-O3", "-march=native", "-shared", "-fPIC"]
            subprocess.run(["cc", *flags, str(source), "-o", str(library)], check=True, capture_output=True)
        function = ctypes.CDLL(str(library)).read_streams
    except (OSError, subprocess.SubprocessError):
        return lambda part, streams: np.bitwise_xor.reduce(part.view(np.int64)), (1,)
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_uint64
    return lambda part, streams: function(part.ctypes.data, part.nbytes, streams), STREAMS
