"""Where do peers live that do not share our versions? In virtual environments under `.peers/`, made on first use."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from bench.peers.protocol import Skip

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".peers"


@dataclass(frozen=True)
class Environment:
    """Packages to install, one pip call after the other, and the module whose import proves success."""

    proof: str
    installs: tuple[tuple[str, ...], ...]
    variables: dict[str, str] = field(default_factory=dict)
    note: str = ""


ENVIRONMENTS = {
    # torch first and pinned to our own version: a looser request may pull another build of several GB
    "kvpress": Environment(
        "kvpress", (("torch==2.13.0",), ("torch==2.13.0", "kvpress==0.5.5")), note="an older transformers comes along"
    ),
    "locust": Environment("locust", (("locust==2.32.4",),), note="a load generator for `bench.serve --only load`"),
    "llama-cpp": Environment(
        "llama_cpp",
        (("llama-cpp-python==0.3.36", "gguf==0.19.0"),),
        {"CMAKE_ARGS": "-DGGML_NATIVE=ON"},
        note="compiles for this machine, about 15 minutes on two cores; needs cmake and a C++ compiler",
    ),
}


def python_of(name: str) -> Path:
    """The interpreter of an environment, which is created when it is missing.

    Raises:
        Skip: the environment cannot be made; the message carries the end of pip's output.
    """
    if not name:
        return Path(sys.executable)
    environment = ENVIRONMENTS[name]
    folder = PEERS / name
    python = folder / "bin" / "python"
    if python.exists() and _proves(python, environment.proof):
        return python
    print(f"making the environment of {name} ({environment.note}) ...", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "install.log"
    with log.open("w", encoding="utf-8") as output:
        commands = [[sys.executable, "-m", "venv", str(folder)]]
        commands += [[str(python), "-m", "pip", "install", *packages] for packages in environment.installs]
        for command in commands:
            result = subprocess.run(
                command, env=os.environ | environment.variables, stdout=output, stderr=subprocess.STDOUT, check=False
            )
            if result.returncode:
                tail = log.read_text(encoding="utf-8").strip().splitlines()[-3:]
                raise Skip(f"the environment of {name} cannot be installed: {' / '.join(tail)}")
    if not _proves(python, environment.proof):
        raise Skip(f"the environment of {name} is installed but {environment.proof} cannot be imported")
    return python


def _proves(python: Path, module: str) -> bool:
    return subprocess.run([str(python), "-c", f"import {module}"], capture_output=True, check=False).returncode == 0
