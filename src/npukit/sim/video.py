# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""An episode as an MP4 file, with a line of text under the picture."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from npukit import files
from npukit.errors import MissingDependency
from npukit.sim import gl
from npukit.sim.envs import Array

_TEXT_HEIGHT = 24
_LEAST_HEIGHT = 192
_CODECS = ("libx264", "libopenh264", "mpeg4")  # the first that the installed PyAV has


class Film:
    """Takes frames; see `record`.

    Args:
        stream: PyAV's video stream.
        container: PyAV's container.
    """

    def __init__(self, container: Any, stream: Any, av: Any) -> None:
        self._container, self._stream, self._av = container, stream, av

    def add(self, picture: Array, text: str = "") -> None:
        """Add a frame: uint8 [height, width, 3] of the same size each time, and a line of text."""
        times = -(-_LEAST_HEIGHT // picture.shape[0])  # small pictures larger, so that the line can be read
        picture = picture.repeat(times, axis=0).repeat(times, axis=1)
        frame = np.concatenate([picture, _caption(text, picture.shape[1])])
        frame = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)))  # H.264 wants even sizes
        if not self._stream.width or not self._stream.codec_context.is_open:
            self._stream.height, self._stream.width = frame.shape[:2]
        for packet in self._stream.encode(self._av.VideoFrame.from_ndarray(frame, format="rgb24")):
            self._container.mux(packet)


def require() -> Any:
    """The module `av`.

    Raises:
        MissingDependency: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MissingDependency("PyAV is not installed, which writes videos", hint=gl.EXTRA) from error
    return av


@contextlib.contextmanager
def record(path: Path, rate: int) -> Iterator[Film]:
    """Write an MP4 file with `rate` frames a second; it stands at `path` only when it is complete.

    Raises:
        MissingDependency: PyAV is not installed.
        NpukitError: the file cannot be written.
    """
    av = require()
    codec = next(name for name in _CODECS if name in av.codecs_available)
    with files.atomic_write(path) as temporary:
        container = av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"})
        with container:
            stream = container.add_stream(codec, rate=rate)
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1
            if codec == "libx264":
                stream.options = {"preset": "veryfast", "crf": "23"}
            yield Film(container, stream, av)
            for packet in stream.encode():
                container.mux(packet)


def _caption(text: str, width: int) -> Array:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, _TEXT_HEIGHT), (20, 20, 20))
    ImageDraw.Draw(image).text((6, 6), text, fill=(235, 235, 235))
    return np.asarray(image, np.uint8)
