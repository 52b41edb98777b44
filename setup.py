"""The build of the native step: an option.  Without a C++ compiler the package installs without it, and says so."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.dist import Distribution

SOURCES = Path("penstock", "kernels", "cpu")
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-pthread", "-fvisibility=hidden", "-Wno-psabi"]
FLAGS += ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
# file -> the flags of its own; x86 only
SETS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": [f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")] + ["-mfma", "-mprefer-vector-width=512"],
}


class Build(build_ext):
    """Compile each instruction set's file with its own flags, and link one library."""

    def run(self) -> None:
        try:
            self.build_native()
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            print(f"penstock: the native step is not built ({error}); steps run on PyTorch.", file=sys.stderr)

    def build_native(self) -> None:
        """Build into the package folder (editable installs) or into the build folder (wheels)."""
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
        if compiler is None:
            raise RuntimeError("no g++ or clang++ was found")
        work = Path(self.build_temp)
        work.mkdir(parents=True, exist_ok=True)
        sets = SETS if platform.machine().lower() in ("x86_64", "amd64") else {}
        known = [f"-DPK_HAS_{name.upper()}" for name in sets]
        parts = {"pool": [], "memory": [], "model": known, "portable": [], **sets}

        def compiled(name: str) -> str:
            target = str(work / f"{name}.o")
            command = [compiler, *FLAGS, *parts[name], "-c", str(SOURCES / f"{name}.cpp"), "-o", target]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
            if done.returncode:
                raise RuntimeError((done.stderr.strip().splitlines() or ["the compiler failed"])[0])
            return target

        with ThreadPoolExecutor(min(len(parts), os.cpu_count() or 1)) as pool:
            objects = list(pool.map(compiled, sorted(parts, key=lambda name: name not in sets)))
        here = Path() if self.inplace else Path(self.build_lib)
        target = here / "penstock" / "kernels" / "_cpu.so"
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(f".{os.getpid()}")  # a library in use keeps its file
        subprocess.run([compiler, "-shared", "-pthread", "-o", str(fresh), *objects], check=True, timeout=600)
        fresh.replace(target)

    def get_outputs(self) -> list[str]:
        """What a wheel takes along."""
        return [str(path) for path in Path(self.build_lib).rglob("_cpu.so")] if self.build_lib else []

    def get_output_mapping(self) -> dict[str, str]:
        """Nothing is copied from a build folder in editable installs."""
        return {}


class Binary(Distribution):
    """A wheel that may hold a compiled library is one for this platform."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    ext_modules=[Extension("penstock.kernels._cpu", sources=[])],
    cmdclass={"build_ext": Build},
    distclass=Binary,
)
