"""Text that arrives: standard input, a named pipe, a terminal."""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path

from penstock.errors import InputError
from penstock.io.binary import TextCheck

_WAIT = 0.1  # seconds after which an empty piece says that nothing has arrived


class PipeSource:
    """Bytes as they arrive, neither waiting for lines nor for full buffers; it ends when the writers have gone.

    Nothing is read ahead: bytes that were not asked for stay in the pipe.
    """

    is_endless = True

    def __init__(self, path: Path | None = None, descriptor: int | None = None) -> None:
        self._path, self._descriptor = path, descriptor
        self.name = "standard input" if path is None else str(path)
        self.notes: list[str] = []
        if path is None and descriptor is None:
            if sys.stdin is None:
                raise InputError("standard input is closed: pipe some text into it, or give --input FILE.")
            self._descriptor = 0

    def pieces(self, size: int) -> Iterator[bytes]:
        descriptor = self._descriptor
        try:
            if descriptor is None:
                assert self._path is not None
                descriptor = os.open(self._path, os.O_RDONLY)
            yield from self._read(descriptor, size)
        except OSError as error:
            raise InputError(f"{self.name} cannot be read ({error.strerror}): check where it comes from.") from None
        finally:
            if self._descriptor is None and descriptor is not None:
                os.close(descriptor)

    def _read(self, descriptor: int, size: int) -> Iterator[bytes]:
        check, empty = TextCheck(self.name), True
        while True:
            if not _is_ready(descriptor):
                yield b""
                continue
            try:
                data = os.read(descriptor, size)
            except BlockingIOError:  # somebody else made it non-blocking, and was faster
                yield b""
                continue
            except OSError as error:
                if error.errno != errno.EIO:  # a terminal that has gone is the end
                    raise
                data = b""
            check.push(data, end=not data)
            if not data:
                break
            empty = False
            yield data
        if empty:
            raise InputError(f"{self.name} is empty: send it some text.")


def _is_ready(descriptor: int) -> bool:
    if os.name == "nt":  # select knows only sockets there: reading blocks
        return True
    return bool(select.select([descriptor], [], [], _WAIT)[0])
