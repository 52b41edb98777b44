"""A session in one file: safetensors, with everything that is not a tensor as JSON in its metadata.

Nothing is ever unpickled.  The metadata holds a SHA-256 over all tensors and all other metadata; a file that was cut or
altered is refused.  A save writes a new file beside the old one, syncs it and renames it, so that an interrupted save
leaves the old one intact.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from penstock.core import Budget
from penstock.errors import CompositionError, InputError, OutputError, PenstockError, SnapshotError
from penstock.methods import parse
from penstock.methods.base import entries_for
from penstock.models.load import Model, load
from penstock.session import Session

FORMAT = 1


def _checksum(meta: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(meta):
        if key != "sha256":
            digest.update(f"{key}={len(meta[key])}:{meta[key]};".encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(
    session: Session, path: Path, row: Mapping[str, Tensor] | None = None, pending: Sequence[int] = (),
    pending_bytes: int = 0,
) -> None:  # fmt: skip
    """Write `session` to `path`; raises OutputError and leaves an existing file as it was if that fails.

    `row`: its memory, where that is not in a row now.  `pending`: tokens of its stream that it has not read yet, made
    from so many bytes.
    """
    path = _absolute(path)
    length = session.tokens
    held = session._memory.save_row(session.row) if row is None else row
    tensors = {f"memory.{name}": t.contiguous() for name, t in held.items()}
    if pending:
        tensors["pending"] = torch.tensor(pending, dtype=torch.int64)
    if session.logits is not None:
        tensors["logits"] = session.logits.detach().cpu().contiguous()
    body = {
        "format": FORMAT,
        "model": {
            "name": session.model.name,
            "fingerprint": session.model.fingerprint,
            "dtype": str(session.model.attached.geometry.dtype).removeprefix("torch."),
        },
        "memory": str(session.method),
        "budget": session.budget,
        "chunk": session.chunk,
        "path": session.runner.now,
        "length": length,
        "special": session._special,
        "in_answer": session._in_answer,
        "turns_from": session._turns_from,
        "log": session.log.state_dict(),
        "spans": session.spans.state_dict(),
        "seer": session.seer.state_dict(),
        "encoder": session.encoder.state_dict() if session.encoder is not None else None,
        "pending_bytes": pending_bytes,
    }
    meta = {"penstock": json.dumps(body)}
    meta["sha256"] = _checksum(meta, tensors)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, beside, metadata=meta)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
        with contextlib.suppress(OSError):  # the rename itself; not every file system lets a directory be synced
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise OutputError(
            f"the snapshot {path} was not written ({reason}): free space or choose another place."
        ) from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def _absolute(path: Path) -> Path:
    """Where to write; a folder, a device or a place in no folder is refused before anything is done."""
    path = Path(os.path.abspath(path))
    if path.exists() and not path.is_file():
        raise OutputError(f"the snapshot cannot be written to {path}, which is not a file: give a file name.")
    if not path.parent.is_dir():
        raise OutputError(f"the snapshot cannot be written to {path}, there is no folder {path.parent}: make it first.")
    return path


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(body, tensors) of a snapshot, checked; raises InputError or SnapshotError."""
    if not path.is_file():
        raise InputError(f"there is no snapshot {path}: check the path.")
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if "penstock" not in meta:
            raise SnapshotError(f"{path} is not a penstock snapshot: give a file that session.save or --save wrote.")
        body = json.loads(meta["penstock"])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SnapshotError(f"the snapshot {path} is damaged or cut short ({reason}): use an older one.") from None
    if body.get("format") != FORMAT:
        raise SnapshotError(
            f"{path} has snapshot format {body.get('format')}, this version reads {FORMAT}: update penstock."
        )
    if meta.get("sha256") != _checksum(meta, tensors):
        raise SnapshotError(f"the snapshot {path} was altered, its checksum does not match: use an older one.")
    return body, tensors


def _mismatch(sentence: str) -> SnapshotError:
    """The file is fine, the caller gave it something it does not belong to."""
    error = SnapshotError(sentence)
    error.exit_code = 2
    return error


def _check_header(path: Path) -> None:
    """The header that we write is JSON without line ends or tabs; those would be read past, and hide an alteration."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(min(size, 1 << 26))
    if any(byte < 0x20 for byte in header):
        raise ValueError("control characters in its header")


def resume(
    path: str | Path, model: str | Path | nn.Module | Model | None = None, *, memory: str | None = None,
    budget: Budget | int | str | None = None, tokenizer: Any = None, dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu", run_path: str = "auto", **options: Any,
) -> Session:  # fmt: skip
    """Continue a saved session.

    `model` defaults to the one named in the snapshot.  `memory` and `budget` may be given again if they are equal;
    others are refused.  Raises SnapshotError for another model or memory.
    """
    path = Path(path)
    body, tensors = read(path)
    if model is None:
        model = None if body["model"]["name"] == "tiny" else body["model"]["name"]
    saved = body["model"]
    loaded = load(model, tokenizer=tokenizer, dtype=saved["dtype"] if dtype is None else dtype, device=device)
    if loaded.fingerprint != saved["fingerprint"]:
        precision = str(loaded.attached.geometry.dtype).removeprefix("torch.")
        if precision != saved["dtype"]:
            raise _mismatch(f"{path} was saved in {saved['dtype']}, not {precision}: leave the dtype out.")
        if loaded.name != saved["name"]:
            raise _mismatch(f"{path} was saved with the model {saved['name']}, not {loaded.name}: open that one.")
        raise _mismatch(f"{path} was saved with other weights of {saved['name']}: open the model it was saved with.")
    method = parse(body["memory"])
    if memory is not None and parse(memory) != method:
        raise _mismatch(f"{path} was saved with memory {method}, not {parse(memory)}: leave --memory out.")
    if budget is not None and method.needs_budget:
        entries = entries_for(method, loaded.attached.geometry, Budget.parse(budget))
        if entries != body["budget"]:
            raise _mismatch(f"{path} was saved with a budget of {body['budget']}, not {entries}: leave --budget out.")
    options.setdefault("chunk", body["chunk"])
    options.setdefault("special", body["special"])
    session = Session(loaded, method, body["budget"], path=run_path, **options)
    session._memory.load_row(*restore(session, path, body, tensors))
    session.ingest(pending_of(tensors))
    return session


def pending_of(tensors: Mapping[str, Tensor]) -> list[int]:
    """Tokens of the stream that were accepted and not read yet when the snapshot was made."""
    return tensors["pending"].tolist() if "pending" in tensors else []


def restore(
    session: Session, path: Path, body: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], int]:  # fmt: skip
    """Give a new session everything of a snapshot but its memory, which is returned: (row, length).

    Raises SnapshotError when it does not fit.
    """
    held = {name.removeprefix("memory."): t for name, t in tensors.items() if name.startswith("memory.")}
    try:
        session._memory.check_row(held, int(body["length"]))
        session.log.load_state_dict(body["log"])
        if "spans" in body:  # not in files written before there were spans
            session.spans.load_state_dict(body["spans"])
        if "seer" in body:  # not in files written before sessions could see
            session.seer.load_state_dict(body["seer"])
        if session.encoder is not None and body["encoder"] is not None:
            session.encoder.load_state_dict(body["encoder"])
        if "logits" in tensors:
            session._logits = tensors["logits"].to(session.model.attached.device)
        session._in_answer, session._turns_from = bool(body["in_answer"]), body["turns_from"]
    except (CompositionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise SnapshotError(f"{path} does not fit this model and memory ({error}): use an older one.") from None
    except PenstockError:
        raise
    return held, int(body["length"])
