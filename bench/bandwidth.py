"""How fast can all cores together read memory? The physical limit that a decode step is compared with.

Two ways to read a buffer of 1 GiB, far larger than any cache here, and the best of several passes of the better way:
a plain C loop (64-bit sums, compiled for this machine, one thread per core on its own part of the buffer) and
`torch.sum` over float32. Runs as a process of its own: `python -m bench.bandwidth` prints one JSON document.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BUFFER_BYTES = 1 << 30
PASSES = 40

SOURCE = """
#include <stddef.h>
#include <stdint.h>
uint64_t read_all(const uint64_t *data, size_t count) {
    uint64_t sums[32] = {0};
    for (size_t i = 0; i + 32 <= count; i += 32)
        for (int lane = 0; lane < 32; lane++) sums[lane] += data[i + lane];
    uint64_t total = 0;
    for (int lane = 0; lane < 32; lane++) total += sums[lane];
    return total;
}
"""


def read_with_c(threads: int) -> float | None:
    """Bytes per second of the C loop, or None where no compiler is found."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "read.c"), Path(folder, "read.so")
        source.write_text(SOURCE, encoding="ascii")
        command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o", str(library), str(source)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        read_all = ctypes.CDLL(str(library)).read_all
    read_all.argtypes, read_all.restype = [ctypes.c_void_p, ctypes.c_size_t], ctypes.c_uint64
    buffer = mmap.mmap(-1, BUFFER_BYTES)
    block = os.urandom(1 << 20)
    for _ in range(BUFFER_BYTES // len(block)):  # touch every page, or the zero page is read
        buffer.write(block)
    start = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    part = BUFFER_BYTES // threads // 4096 * 4096
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(PASSES):
            begin = time.perf_counter()
            list(pool.map(lambda index: read_all(start + index * part, part // 8), range(threads)))
            best = max(best, part * threads / (time.perf_counter() - begin))
    return best


def read_with_torch(threads: int) -> float:
    """Bytes per second of torch.sum."""
    import torch

    torch.set_num_threads(threads)
    data = torch.rand(BUFFER_BYTES // 4)
    best = 0.0
    for _ in range(PASSES):
        begin = time.perf_counter()
        data.sum()
        best = max(best, BUFFER_BYTES / (time.perf_counter() - begin))
    return best


def measure_bandwidth(threads: int) -> dict[str, Any]:
    """Both ways, and the better one as `bytes_per_second`; measured in a process of its own."""
    command = [sys.executable, "-m", "bench.bandwidth", str(threads)]
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else os.cpu_count() or 1
    ways = {"c_loop": read_with_c(threads), "torch_sum": read_with_torch(threads)}
    best = max(value for value in ways.values() if value is not None)
    print(json.dumps({"bytes_per_second": best, "ways": ways, "buffer_bytes": BUFFER_BYTES, "threads": threads}))


if __name__ == "__main__":
    main()
