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
AVX512 = [f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")] + ["-mfma", "-mprefer-vector-width=512"]
# file -> the flags of its own; x86 only
SETS = {"avx2": ["-mavx2", "-mfma"], "avx512": AVX512}
# The same, left out where a compiler or its assembler does not know them.
NEWER = {"avx512_bf16": [*AVX512, "-mavx512bf16"], "amx": [*AVX512, "-mamx-tile", "-mamx-bf16"]}


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
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        sets = {"portable": [], **(SETS if x86 else {}), **(NEWER if x86 else {})}

        def compiled(name: str, flags: list[str]) -> str | None:
            target = str(work / f"{name}.o")
            command = [compiler, *FLAGS, *flags, "-c", str(SOURCES / f"{name}.cpp"), "-o", target]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
            if done.returncode == 0:
                return target
            why = (done.stderr.strip().splitlines() or ["the compiler failed"])[0]
            if name not in NEWER:
                raise RuntimeError(why)
            print(f"penstock: the native step is built without {name} ({why}).", file=sys.stderr)
            return None

        with ThreadPoolExecutor(min(len(sets), os.cpu_count() or 1)) as pool:
            built = {name: target for name, target in zip(sets, pool.map(compiled, sets, sets.values())) if target}
            known = [f"-DPK_HAS_{name.upper()}" for name in built]
            rest = {"pool": [], "memory": [], "search": [], "model": known, "sets": known}
            objects = [*built.values(), *pool.map(compiled, rest, rest.values())]
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
