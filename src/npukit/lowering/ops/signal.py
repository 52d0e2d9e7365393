# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Fourier transforms as products with constant matrices, whose rows are numpy's transforms of unit signals."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from npukit.lowering.emitter import Emitter
from npukit.lowering.registry import Unsupported, lowers
from npukit.qnn.graph import DType, Tensor

from .matrix import matmul
from .movement import axis_of

Floats = npt.NDArray[np.float64]


def fourier_matrix(given: int, length: int, parts: int, *, inverse: bool, onesided: bool) -> Floats:
    """The transform of `given` numbers cut or padded to `length`, as a real matrix.

    Rows are (number, part), columns (result, part); `parts` is 1 for real and 2 for complex numbers. Results are
    complex, but for the inverse of one side, which is real.
    """
    units = np.eye(given)
    rows = np.stack([units, 1j * units][:parts], 1).reshape(given * parts, given)
    if inverse and onesided:
        return np.asarray(np.fft.irfft(rows, length))
    found = np.fft.ifft(rows, length) if inverse else np.fft.fft(rows, length)
    if onesided:
        found = found[:, : length // 2 + 1]
    return np.stack([found.real, found.imag], -1).reshape(given * parts, -1)


def _times(e: Emitter, x: Tensor, matrix: Floats) -> Tensor:
    """Rows x [R,K] times a constant matrix [K,M]."""
    return matmul(e, x, e.static(matrix.astype(np.float32), hint="fourier"))


@lowers("DFT")
def dft(e: Emitter, node: ir.Node) -> None:
    """Discrete Fourier transform along one axis.

    x: T[*D,n,*E,p], dft_length: int64[]?, axis: int64[]? -> y: T[*D,m,*E,p']
    T: float; p is 1 (real) or 2 (complex); dft_length and axis constant
    """
    inputs = [node.inputs[i] if len(node.inputs) > i else None for i in range(3)]
    inverse, onesided = (bool(node.attributes.get_int(key, 0)) for key in ("inverse", "onesided"))
    axis = axis_of(e, inputs[0], e.ints(inputs[2], "axis of DFT")[0] if inputs[2] is not None else -2, None)
    x, shape = e.get(inputs[0]), e.shape(node.outputs[0])
    given, parts = x.shape[axis], x.shape[-1]
    if inverse and onesided:
        length = shape[axis]
    else:
        length = e.ints(inputs[1], "dft_length")[0] if inputs[1] is not None else given
    matrix = fourier_matrix(given, length, parts, inverse=inverse, onesided=onesided)
    outer, inner = int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis + 1 : -1]))
    turned = e.transpose(e.reshape(x, (outer, given, inner, parts)), (0, 2, 1, 3))
    y = _times(e, e.reshape(turned, (outer * inner, given * parts)), matrix)
    back = e.transpose(e.reshape(y, (outer, inner, shape[axis], shape[-1])), (0, 2, 1, 3))
    e.bind(node.outputs[0], e.reshape(back, shape))


@lowers("STFT")
def stft(e: Emitter, node: ir.Node) -> None:
    """Fourier transforms of windowed frames.

    signal: T[N,L,p], frame_step: int64[], window: T[f]?, frame_length: int64[]? -> y: T[N,frames,bins,2]
    T: float; p is 1 or 2; frame_step and frame_length constant
    """
    inputs = [node.inputs[i] if len(node.inputs) > i else None for i in range(4)]
    x = e.get(inputs[0])
    if x.rank == 2:
        x = e.reshape(x, (*x.shape, 1))
    step = e.ints(inputs[1], "frame_step")[0]
    if inputs[2] is not None:
        length = e.shape(inputs[2])[0]
    elif inputs[3] is not None:
        length = e.ints(inputs[3], "frame_length")[0]
    else:
        raise Unsupported("STFT with neither window nor frame_length")
    batch, frames, bins, _ = e.shape(node.outputs[0])
    parts = x.shape[-1]
    places = (np.arange(frames)[:, None] * step + np.arange(length)).reshape(-1)
    index = e.static(places, DType.INT_32, hint="frames")
    framed = e.emit("Gather", [x, index], [e.temp((batch, len(places), parts), x.dtype)], axis=1)
    matrix = fourier_matrix(length, length, parts, inverse=False, onesided=bool(node.attributes.get_int("onesided", 1)))
    window = e.constant(inputs[2])
    if window is not None:
        matrix = matrix * np.repeat(window.astype(np.float64), parts)[:, None]
    elif inputs[2] is not None:
        framed = e.mul(e.reshape(framed, (batch * frames, length, parts)), e.reshape(e.get(inputs[2]), (length, 1)))
    y = _times(e, e.reshape(framed, (batch * frames, length * parts)), matrix)
    e.bind(node.outputs[0], e.reshape(y, (batch, frames, bins, 2)))
