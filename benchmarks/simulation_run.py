# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""One row of benchmarks.simulation_cases: what a chip's validation takes of it, and how its simulation compares."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import numpy as np

from benchmarks.simulation_cases import Row, rows
from npukit.errors import NpukitError
from npukit.qnn.api.backend import Backend
from npukit.qnn.api.quiet import quiet_fds
from npukit.qnn.graph import DType, Encoding, Graph, Op, Tensor, TensorKind
from npukit.quantization.assign import Dummies, Legal, Plan, assign
from npukit.quantization.calibrated import Calibrated, Scheme
from npukit.quantization.calibration import Calibration
from npukit.quantization.capabilities import unreliable
from npukit.quantization.ranges import codes, reals
from npukit.quantization.roles import Role, role, weight_axis
from npukit.quantization.simulation import Simulation

SCHEME = Scheme("min-max", "min-max", importance=False, bias_correction=False)
CHIPS = {68: 30, 69: 36, 73: 43, 75: 57, 79: 69}  # Hexagon arch -> SoC model
_WEIGHTS = {"4 per channel": (4, True), "4": (4, False), "8 per channel": (8, True), "8": (8, False),
            "16 per channel": (16, True), "16": (16, False)}  # fmt: skip
# Forms of a constant vector: dtype, symmetric.
_VECTORS = {
    "u8": (DType.UFIXED_POINT_8, False), "s8": (DType.SFIXED_POINT_8, True), "u16": (DType.UFIXED_POINT_16, False),
    "u16 symmetric": (DType.UFIXED_POINT_16, True), "s16": (DType.SFIXED_POINT_16, True),
    "s32": (DType.SFIXED_POINT_32, True),
}  # fmt: skip


_open: dict[int, Backend] = {}


def backend(arch: int) -> Backend:
    """The emulator of one architecture, kept open until another is asked for.

    Never two at once: libQnnHtp's validation then answers every one of them for the chip that was opened last.
    """
    if arch not in _open:
        close()
        _open[arch] = Backend("htp", soc_id=CHIPS[arch])
    return _open[arch]


def close() -> None:
    """Close the emulator."""
    while _open:
        _open.popitem()[1].close()


@functools.cache
def table() -> dict[str, Row]:
    """The rows by label."""
    return {row.label: row for row in rows()}


def legal(arch: int, *, trusting: bool = False) -> Legal:
    """What that chip takes; `trusting`: its validation alone, since the known faults are what is looked for."""
    return Legal({f"V{arch}": backend(arch).validate}, trusting=trusting)


def ask(label: str, arch: int) -> dict[str, Any]:
    """Which forms of the row's op validate: {"8": {...}, "16": {...}, "refusal": text}."""
    graph, _ = table()[label].graph()
    found: dict[str, Any] = {}
    with quiet_fds():
        for bits in (8, 16):
            made = assign(graph, Plan(activations=bits), Dummies(), legal(arch))
            if made.precisions.get("op") != bits:
                found["refusal"] = found.get("refusal") or next(iter(made.refused.values()), "")[:300]
                continue
            op = next(op for op in made.graph.ops if op.name == "op")
            found[str(bits)] = _operands(graph, op, bits, arch)
    return found


def _operands(graph: Graph, op: Op, bits: int, arch: int) -> dict[str, list[str]]:
    """The forms of weight, bias, gamma and beta that `op` (quantized, accepted) takes."""
    found: dict[str, list[str]] = {}
    if weight_axis(op) is not None:
        found["weight"] = []
        for name, (width, by_channel) in _WEIGHTS.items():
            plan = Plan(activations=bits, weights=width, per_channel=by_channel, per_row=by_channel)
            tried = assign(graph, plan, Dummies(), legal(arch))
            weight = next((o.inputs[1] for o in tried.graph.ops if o.name == "op"), None)
            if tried.precisions["op"] == bits and weight is not None and _is(weight, width, by_channel):
                found["weight"].append(name)
    for index, tensor in enumerate(op.inputs):
        kind = role(op, index)
        if tensor is not None and kind in (Role.BIAS, Role.GAMMA, Role.BETA):
            forms = [name for name, form in _VECTORS.items() if _takes(op, index, tensor, form, arch)]
            found[kind.value] = forms
    return found


def _is(weight: Tensor, width: int, by_channel: bool) -> bool:
    encoding = weight.encoding
    assert encoding is not None
    return _width(weight) == width and (encoding.axis is not None) == by_channel


def _width(weight: Tensor) -> int:
    return (weight.encoding.bitwidth if weight.encoding is not None else 0) or weight.dtype.bits


def _takes(op: Op, index: int, tensor: Tensor, form: tuple[DType, bool], arch: int) -> bool:
    dtype, symmetric = form
    unsigned = np.issubdtype(dtype.numpy, np.unsignedinteger)
    middle = -(1 << (dtype.bits - 1)) if unsigned else 0
    encoding = tensor.encoding if dtype is tensor.dtype else Encoding.per_tensor(0.01, middle + (0 if symmetric else 3))
    inputs = list(op.inputs)
    inputs[index] = Tensor(tensor.name, dtype, tensor.shape, TensorKind.STATIC, encoding)
    return backend(arch).validate(replace(op, inputs=inputs)) is None


def quantized(row: Row, bits: int, weights: int, arch: int) -> tuple[Graph, dict[str, Any], dict[str, int], str]:
    """The row's graph in `bits`, its inputs as codes, each op's precision, and why it is another than asked for."""
    graph, feeds = row.graph()
    calibration = Calibration(graph, threads=1)
    calibration.update(feeds)
    source = Calibrated(calibration, SCHEME)
    plan = Plan(activations=bits, weights=weights)
    made = assign(graph, plan, source, legal(arch, trusting=True), calibration.groups)
    given = {}
    for tensor in made.graph.inputs:
        array = feeds[tensor.name]
        coded = tensor.dtype.is_quantized and tensor.encoding is not None
        given[tensor.name] = codes(array, tensor.encoding, tensor.dtype) if coded and tensor.encoding else array
    return made.graph, given, made.precisions, next(iter(made.refused.values()), "")


@contextlib.contextmanager
def emulated(graph: Graph, arch: int) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """A function that runs a graph on the emulator: arrays by tensor name to outputs by tensor name."""
    with backend(arch).context() as context:
        handle = context.add_graph(graph)
        handle.finalize()

        def run(feeds: dict[str, Any]) -> dict[str, Any]:
            results = [np.empty(t.shape, t.dtype.numpy) for t in handle.outputs]
            handle.execute([np.ascontiguousarray(feeds[t.name]) for t in handle.inputs], results)
            return {t.name: array for t, array in zip(handle.outputs, results, strict=True)}

        yield run


def compare(label: str, bits: int, weights: int, arch: int) -> dict[str, Any]:
    """Run both; the share of elements within one step, and the largest difference, over all outputs.

    "refused": the op runs finer or in float. Outputs without an encoding (indices, booleans) count as codes.
    """
    row = table()[label]
    found: dict[str, Any] = {"label": label, "bits": bits, "weights": weights, "arch": arch}
    with quiet_fds():
        try:
            graph, feeds, precisions, refusal = quantized(row, bits, weights, arch)
        except NpukitError as error:
            return found | {"error": str(error)[:300]}
        if any(precision != bits for precision in precisions.values()) or len(graph.ops) != len(precisions):
            return found | {"refused": refusal[:300] or "no real numbers"}
        weight = graph.ops[0].inputs[1] if weight_axis(graph.ops[0]) is not None else None
        if weight is not None and (weight.encoding is None or _width(weight) != weights):
            return found | {"refused": f"weights of {weights} bits"}
        if reason := next(filter(None, map(unreliable, graph.ops)), ""):
            found["unreliable"] = reason
        try:
            ours = Simulation(graph, "qdq", threads=1).run(feeds)
            with emulated(graph, arch) as emulator:
                theirs = emulator(feeds)
            floats, exact = row.graph()
            true = Simulation(floats, "float", threads=1).run(exact)
        except NpukitError as error:
            return found | {"error": str(error)[:300]}
    found |= {"sqnr": sqnr(graph, ours, true), "emulator_sqnr": sqnr(graph, theirs, true)}
    return found | differences(graph, ours, theirs)


def sqnr(graph: Graph, results: dict[str, Any], true: dict[str, Any]) -> float:
    """The worst real output in dB against float; 200 where nothing differs."""
    worst = 200.0
    for tensor in graph.outputs:
        if tensor.dtype.is_quantized and tensor.encoding is not None:
            wanted = true[tensor.name].astype(np.float64)
            noise = float(((reals(results[tensor.name], tensor.encoding) - wanted) ** 2).sum())
            if noise > 0:
                worst = min(worst, 10 * float(np.log10(max(float((wanted**2).sum()), 1e-30) / noise)))
    return round(worst, 2)


def differences(graph: Graph, ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Steps between two runs of a graph: of the worst output, and of each."""
    each = []
    for tensor in graph.outputs:
        steps = np.abs(ours[tensor.name].astype(np.int64) - theirs[tensor.name].astype(np.int64))
        near = steps if tensor.dtype.is_quantized else np.where(steps, 2, 0)
        each.append((float((near <= 1).mean()), int(steps.max()), float((steps == 0).mean())))
    return {
        "share": min(share for share, _, _ in each),
        "most": max(most for _, most, _ in each),
        "same": min(same for _, _, same in each),
    }


def run_all(tasks: list[tuple[str, tuple[Any, ...]]], seconds: float = 120.0) -> Iterator[tuple[Any, dict[str, Any]]]:
    """`(function, arguments)` one after another in a child process, which is replaced when it dies or hangs."""
    pool = _pool()
    try:
        for function, arguments in tasks:
            try:
                yield arguments, pool.submit(globals()[function], *arguments).result(seconds)
            except (BrokenProcessPool, TimeoutError) as error:
                for process in list((pool._processes or {}).values()):
                    process.kill()
                pool.shutdown(wait=False, cancel_futures=True)
                pool = _pool()
                yield arguments, {"error": f"the process {'hung' if isinstance(error, TimeoutError) else 'died'}"}
    finally:
        pool.shutdown()


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))
