"""Video through PyAV (extra `video`): files, folders, addresses, devices, pipes; and generated video.

open_frames("talk.mp4")     a file            open_frames("rtsp://HOST/1")  a live stream, opened again if it breaks
open_frames("photos/")      a folder          open_frames("/dev/video0")    a camera
open_frames("-")            standard input    open_frames("world:shapes")   an endless generated video
"""

from __future__ import annotations

from penstock.io.video.stream import Opening, VideoSource
from penstock.io.video.where import open_frames
from penstock.io.video.world import Generated

__all__ = ["Generated", "Opening", "VideoSource", "open_frames"]
