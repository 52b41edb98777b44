"""All sessions of a server: found again at start, made, listed, forked, deleted, and saved at the end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from penstock.errors import OutputError, PenstockError, SnapshotError, UsageError
from penstock.serve.folder import Folder
from penstock.serve.hosted import Hosted
from penstock.serve.refusal import Refusal
from penstock.serve.replay import wake
from penstock.serve.tally import Tally


class House:
    """Sessions by id, on one engine; `state` is the folder that keeps them (None: they end with the server)."""

    def __init__(self, engine: Any, model: Any, state: Path | None = None, most: int = 10_000) -> None:
        self.engine, self.model, self.most = engine, model, most
        self.sessions: dict[str, Hosted] = {}
        self.lost: dict[str, str] = {}  # folders that could not be understood, and why
        self.is_draining = False
        self._lock = threading.Lock()
        self._making: dict[str, str] = {}  # id: owner
        self.allowed: dict[str, int] = {}  # sessions that an owner may have, where that is bounded
        self._wakers = ThreadPoolExecutor(2, thread_name_prefix="penstock-wake")
        self.root: Path | None = None
        self._key: int | None = None
        if state is not None:
            self.root = self._claim(state)
            self._find(self.root)

    # -- at start -----------------------------------------------------------------------------------------------

    def _claim(self, state: Path) -> Path:
        """The folder, ours alone."""
        root = state / "sessions"
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._key = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._key, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for file in (state / "attic").glob("*"):  # memories that an engine had put there
                file.unlink()
        except BlockingIOError:
            raise UsageError(f"another server uses {state}: stop it, or give another --state.") from None
        except OSError as error:
            raise OutputError(f"the folder {state} cannot be used ({error.strerror}): choose another one.") from None
        return root

    def _find(self, root: Path) -> None:
        """Sessions of earlier runs: their lengths at once, their streams in the background."""
        for path in sorted(root.iterdir()):
            if path.name.startswith(".gone-"):
                shutil.rmtree(path, ignore_errors=True)
            elif path.is_dir():
                try:
                    self._found(path)
                except SnapshotError as error:
                    self.lost[path.name] = str(error)
        for hosted in self.sessions.values():
            if hosted.backlog:
                self.wake(hosted)

    def _found(self, path: Path) -> None:
        if not (path / "about.json").exists():  # the server died while the session was made: nobody was told of it
            shutil.rmtree(path, ignore_errors=True)
            return
        folder = Folder.found(path)
        about = folder.about
        if about["model"] != self.model.fingerprint:
            raise SnapshotError(f"{path} belongs to the model {about['name']}: serve that one, or another --state.")
        records = folder.journal.read(folder.first)
        tally = Tally(self.model.tokenizer, about["tally"])
        ingested = int(about.get("ingested", 0))
        hosted = Hosted(self.engine, path.name, about["owner"], about["created"], tally, folder)
        hosted.ingested = ingested
        if records:
            tally.load_state_dict(records[-1].head["tally"])
        hosted.answers = {r.head["of"]: r.head["said"] for r in records if r.kind == "answer"}
        hosted.backlog.extend(record for record in records if record.kind != "answer")
        self.sessions[path.name] = hosted

    def wake(self, hosted: Hosted) -> None:
        """Begin to make its stream, unless that was begun."""
        with hosted.lock:
            if hosted.is_live or hosted.is_waking or hosted.is_closed:
                return
            hosted.is_waking = True
        with contextlib.suppress(RuntimeError):  # the server is ending: the next one wakes it
            self._wakers.submit(wake, hosted)

    # -- sessions -----------------------------------------------------------------------------------------------

    def create(self, id: str | None, owner: str, is_kept: bool = True) -> Hosted:
        """A new session; one that is not kept ends with the server, or with its connection."""
        with self._named(id, owner) as name:
            created = time.time()
            tally = Tally(self.model.tokenizer)
            folder = None
            if self.root is not None and is_kept:
                folder = Folder.make(self.root / name, self._about(owner, created, tally))
            hosted = Hosted(self.engine, name, owner, created, tally, folder)
            try:
                hosted.stream, hosted.is_live = self.engine.open(name), True
            except BaseException:
                hosted.close(delete=True)
                raise
            return self._admitted(hosted)

    def fork(self, origin: Hosted, id: str | None) -> Hosted:
        """A second session with the same past, of the same owner."""
        with self._named(id, origin.owner) as name, origin.lock:
            origin._check_settled()
            created = time.time()
            tally = Tally(self.model.tokenizer, origin.tally.state_dict())
            folder = None
            if origin.folder is not None:
                assert self.root is not None
                folder = origin.folder.copy(self.root / name, {"created": created})
            hosted = Hosted(self.engine, name, origin.owner, created, tally, folder)
            try:
                origin.fork(hosted, folder)
            except BaseException:
                hosted.close(delete=True)
                raise
            return self._admitted(hosted)

    def _about(self, owner: str, created: float, tally: Tally) -> dict[str, Any]:
        model = self.model
        return {
            "owner": owner, "created": created, "tally": tally.state_dict(), "name": model.name,
            "model": model.fingerprint,
        }  # fmt: skip

    @contextlib.contextmanager
    def _named(self, id: str | None, owner: str) -> Any:
        """Reserve an id while its session is made."""
        name = id or f"s-{secrets.token_hex(8)}"
        with self._lock:
            if name in self.sessions or name in self._making or name in self.lost:
                raise Refusal(f"there is a session {name} already: choose another id.", 409, param="id", code="exists")
            if len(self.sessions) + len(self._making) >= self.most:
                raise Refusal(f"there are {self.most} sessions already: delete one first.", 429, code="sessions")
            self._check_share(owner)
            self._making[name] = owner
        try:
            yield name
        finally:
            with self._lock:
                self._making.pop(name, None)

    def _check_share(self, owner: str) -> None:
        """Whether an owner may have one more session; the lock is held."""
        allowed = self.allowed.get(owner)
        if allowed is None:
            return
        has = sum(hosted.owner == owner for hosted in self.sessions.values())
        if has + sum(each == owner for each in self._making.values()) >= allowed:
            raise Refusal(f"this token may have {allowed} sessions: delete one first.", 429, code="sessions")

    def _admitted(self, hosted: Hosted) -> Hosted:
        with self._lock:
            self.sessions[hosted.id] = hosted
        return hosted

    def get(self, id: str, owner: str) -> Hosted:
        """A session of this owner; those of others do not exist for him."""
        hosted = self.sessions.get(id)
        if hosted is None or hosted.owner != owner:
            raise Refusal(
                f"there is no session {id}: create one with POST /v1/sessions.", 404, code="session_not_found"
            )
        return hosted

    def of(self, owner: str) -> list[Hosted]:
        """All sessions of one owner, oldest first."""
        return sorted((s for s in list(self.sessions.values()) if s.owner == owner), key=lambda s: (s.created, s.id))

    def delete(self, hosted: Hosted) -> None:
        """End a session for good; its name is free when its files are gone."""
        with self._lock:
            if self.sessions.get(hosted.id) is not hosted:
                return  # somebody else was first
            del self.sessions[hosted.id]
            self._making[hosted.id] = hosted.owner
        try:
            hosted.close(delete=True)
        finally:
            with self._lock:
                self._making.pop(hosted.id, None)

    # -- at the end ---------------------------------------------------------------------------------------------

    def begin_drain(self) -> None:
        """Nothing new is begun; answers under way end with their next piece."""
        self.is_draining = True
        self._wakers.shutdown(wait=False, cancel_futures=True)
        for hosted in list(self.sessions.values()):
            for asked in list(hosted.asked.values()):
                asked.end()

    def drain(self, patience: float = 10.0) -> int:
        """Save what can be saved soon; returns how many sessions have something to replay next time."""
        self.begin_drain()
        deadline = time.monotonic() + patience
        left = 0
        for hosted in list(self.sessions.values()):
            with hosted.lock:
                hosted.changed.wait_for(lambda h=hosted: not h.asked, max(0.0, deadline - time.monotonic()))  # type: ignore[misc]
                try:
                    if hosted.folder is not None and hosted.is_live:
                        hosted.save()
                    else:
                        left += bool(hosted.backlog)
                except (PenstockError, OSError):
                    left += 1  # the journal has it all
        return left

    def close(self) -> None:
        """Let go of everything; nothing is deleted."""
        for hosted in list(self.sessions.values()):
            hosted.close(delete=False)
        if self._key is not None:
            os.close(self._key)
            self._key = None
