"""Opening what PyAV can read, with one sentence for each way in which it cannot be read."""

from __future__ import annotations

import re
from typing import Any

from penstock.errors import InputError, MissingExtra

_TEXTS = ("tty", "bin", "xbin", "idf", "adf", "ansi", "lrc", "srt", "webvtt", "ass", "concat")
"""Demuxers that draw text as pictures, or that open other files: never what a stranger's file should be read with."""

_OPEN, _READ = 10.0, 10.0  # seconds after which a silent server counts as gone


def library() -> Any:
    """PyAV; raises MissingExtra with the install line."""
    try:
        import av
    except ImportError:
        raise MissingExtra("video", "video") from None
    av.logging.set_level(None)  # the decoder's own complaints: we count them and say so once
    return av


def hidden(where: str) -> str:
    """An address without its password, and without what may be one."""
    shown = re.sub(r"//[^/@\s]*@", "//***@", where)
    return re.sub(r"([?&](?:token|key|password|pass|auth|signature|sig)=)[^&]*", r"\1***", shown, flags=re.IGNORECASE)


def open_container(what: Any, name: str, kind: str | None = None, options: dict[str, str] | None = None) -> Any:
    """An input container with a video stream; InputError if there is none, `Gone` if it may be there later."""
    av = library()
    is_remote = isinstance(what, str) and "://" in what
    options = dict(options or {})
    if is_remote and what.startswith("rtsp"):
        options.setdefault("rtsp_transport", "tcp")
    try:
        container = av.open(
            what, "r", format=kind, options=options, timeout=(_OPEN, _READ) if is_remote else None,
            metadata_errors="replace",
        )  # fmt: skip
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise explained(error, name) from None
    try:
        check_is_video(container, name)
    except InputError:
        container.close()
        raise
    return container


def check_is_video(container: Any, name: str) -> None:
    """Refuse what has no moving pictures."""
    av = library()
    if any(part in _TEXTS for part in container.format.name.split(",")):
        raise InputError(f"{name} is text, not a video: give a video, or captions with --captions.")
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        has = "sound" if container.streams.audio else "no stream that can be decoded"
        raise InputError(f"{name} is not a video (it has {has}): give a file, a folder or an address with pictures.")


def video_stream(container: Any) -> Any:
    """The stream to watch: the first that is not a cover picture."""
    av = library()
    return next(s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic)


class Gone(InputError):
    """The other side does not answer, or no longer: the same address may work later."""


def explained(error: Exception, name: str) -> InputError:
    """One sentence with the fix."""
    av = library()
    kinds = av.error
    if isinstance(error, (kinds.HTTPUnauthorizedError, kinds.HTTPForbiddenError)):
        return InputError(f"{name} needs a password (or refuses this one): write it as http://USER:PASSWORD@HOST/....")
    if isinstance(error, kinds.HTTPNotFoundError):
        return InputError(f"{name} is not there (HTTP 404): check the address.")
    if isinstance(error, kinds.HTTPClientError):
        return InputError(f"{name} refuses the request ({_said(error)}): check the address.")
    if isinstance(error, (kinds.ExitError, kinds.TimeoutError)):
        return Gone(f"{name} does not answer within {_READ:.0f} s: check that it sends.")
    if isinstance(error, (kinds.HTTPServerError, ConnectionError)) or "network" in str(error).lower():
        return Gone(f"{name} cannot be reached ({_said(error)}): check the address and that it sends.")
    if isinstance(error, FileNotFoundError):
        return InputError(f"there is no {name}: check the path.")
    if isinstance(error, PermissionError):
        return InputError(f"{name} cannot be read (permission denied): check its permissions.")
    if isinstance(error, (kinds.InvalidDataError, kinds.EOFError)):
        return InputError(f"{name} is not a video that can be read: give a video file, or check that it is complete.")
    if isinstance(error, (kinds.ProtocolNotFoundError, kinds.DemuxerNotFoundError, kinds.DecoderNotFoundError)):
        return InputError(f"{name} cannot be read by this build of PyAV ({_said(error)}): convert it to mp4 first.")
    if "I/O error" in str(error) or "Input/output" in str(error):
        return Gone(f"{name} cannot be read ({_said(error)}): check the address or the device.")
    return InputError(f"{name} cannot be opened ({_said(error)}): check where it comes from.")


def _said(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return hidden(str(text).splitlines()[0])[:120]
