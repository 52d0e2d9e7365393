# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.tflite_coverage`: every builtin operator against LiteRT's interpreter; writes the table.

Each operator of the schema is tried with the cases of tools/tflite_cases.py in float32, in int8 with those that have
such a form, else with the int8 models of tests/data/tflite that hold it: converted, run on QNN CPU and as raised ONNX,
and compared with what LiteRT's reference kernels compute.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from npukit.errors import NpukitError
from npukit.frontends.tflite.flatfile import builtin_names, read_content
from npukit.frontends.tflite.registry import CUSTOM, READERS, reason
from tools.tflite_cases import Array, Case, Fixed, State
from tools.tflite_cases_moves import CASES
from tools.tflite_models import MODELS
from tools.tflite_writer import Model

# The reference kernel of SUM reads codes wrongly, that of LRN leaves the window's last channel out.
OPTIMIZED = frozenset(("SUM", "LOCAL_RESPONSE_NORMALIZATION"))
# Kernels that ask for one encoding of all they read and write.
SHARED = frozenset(
    (
        "RESHAPE", "CONCATENATION", "MAXIMUM", "MINIMUM", "MAX_POOL_2D", "AVERAGE_POOL_2D", "RESIZE_BILINEAR",
        "RESIZE_NEAREST_NEIGHBOR", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND",
        "TRANSPOSE", "SLICE", "STRIDED_SLICE", "PAD", "GATHER", "REDUCE_MAX", "REDUCE_MIN",
    )
)  # fmt: skip
PATHS = ("raise", "cpu")
STORED = Path(__file__).parents[1] / "tests" / "data" / "tflite"


@dataclass(frozen=True)
class Trial:
    """A model of one operator, its inputs, and what LiteRT computes."""

    content: bytes
    feeds: dict[str, Array]
    want: dict[str, Array]


def interpret(content: bytes, feeds: dict[str, Array], *, optimized: bool = False) -> dict[str, Array]:
    """LiteRT's results, by its reference kernels where it has them."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kinds = [OpResolverType.BUILTIN_REF, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES]
    for kind in kinds[1:] if optimized else kinds:
        try:
            interpreter = Interpreter(model_content=content, experimental_op_resolver_type=kind, num_threads=1)
        except ValueError:
            if kind is kinds[-1]:
                raise
            continue
        break
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], feeds[detail["name"]])
    interpreter.invoke()
    return {d["name"]: np.array(interpreter.get_tensor(d["index"])) for d in interpreter.get_output_details()}


def _encoding(*arrays: Array) -> tuple[float, int]:
    """Scale and zero point of int8 for the range of all."""
    low = min(0.0, *(float(a.min()) for a in arrays))
    high = max(0.0, *(float(a.max()) for a in arrays))
    scale = max(high - low, 1e-3) / 255
    return scale, int(np.clip(round(-128 - low / scale), -128, 127))


def _codes(array: Array, scale: float, point: int) -> Array:
    return np.clip(np.round(array / np.float32(scale)) + point, -128, 127).astype(np.int8)


class _Maker:
    """Writes the model of a case."""

    def __init__(self, case: Case, shapes: list[tuple[int, ...]], results: list[Array] | None) -> None:
        self.case, self.shapes, self.results = case, shapes, results
        self.model = Model()
        self.graph = self.model.subgraph()
        self.feeds: dict[str, Array] = {}
        self.first: tuple[float, int] | None = None
        floats = [np.asarray(getattr(v, "data", v)) for v in case.inputs if v is not None and not isinstance(v, State)]
        self.shared = None
        if results is not None and case.code in SHARED:
            self.shared = _encoding(*(a for a in (*floats, *results) if a.dtype == np.float32))
        self.scales: dict[int, Array] = {}

    def content(self) -> bytes:
        case, graph = self.case, self.graph
        inputs = [-1 if value is None else self._input(i, value) for i, value in enumerate(case.inputs)]
        outputs = [self._output(i, dtype) for i, dtype in enumerate(case.outputs)]
        graph.operator(case.code, inputs, outputs, case.options, case.custom, **case.fields)
        graph.table.outputs = outputs
        return self.model.content()

    def _input(self, i: int, value: Any) -> int:
        graph = self.graph
        if isinstance(value, State):
            return graph.tensor(f"state{i}", value.shape, "float32", variable=True)
        fixed, array = isinstance(value, Fixed), np.asarray(getattr(value, "data", value))
        scale: Any = None
        point, axis = 0, 0
        if self.results is not None and array.dtype == np.float32:
            if i in self.case.weights:
                axis = self.case.weights[i]
                others = tuple(a for a in range(array.ndim) if a != axis)
                scale = np.maximum(np.abs(array).max(others), 1e-3).astype(np.float32) / 127
                shape = [-1 if a == axis else 1 for a in range(array.ndim)]
                array = np.clip(np.round(array / scale.reshape(shape)), -127, 127).astype(np.int8)
                self.scales[i] = scale
            elif fixed and self.case.weights:
                assert self.first is not None
                scale = np.float32(self.first[0]) * next(iter(self.scales.values()))
                array = np.round(array / scale).astype(np.int32)
            else:
                scale, point = self.shared or _encoding(array)
                array = _codes(array, scale, point)
                self.first = self.first or (scale, point)
        if self.case.code == "DEQUANTIZE" and self.case.fixed is not None:
            scale, point = self.case.fixed
        data = array if fixed else None
        index = graph.tensor(f"x{i}", array.shape, array.dtype.name, data, scale=scale, point=point, axis=axis)
        if not fixed:
            graph.table.inputs.append(index)
            self.feeds[f"x{i}"] = array
        return index

    def _output(self, i: int, dtype: str) -> int:
        scale: Any = None
        point = 0
        if self.results is not None and dtype == "float32":
            dtype = "int8"
            scale, point = self.case.fixed or self.shared or _encoding(self.results[i])
        elif dtype == "int8" and self.case.fixed is not None:
            scale, point = self.case.fixed
        return self.graph.tensor(f"y{i}", self.shapes[i] if self.shapes else (1,), dtype, scale=scale, point=point)


def trial(case: Case, *, integer: bool = False) -> Trial:
    """The model of a case; of its int8 form where `integer`."""
    optimized = case.code in OPTIMIZED
    maker = _Maker(case, list(case.shapes), None)  # the kernels find most shapes themselves
    results = list(interpret(maker.content(), maker.feeds, optimized=optimized).values())
    maker = _Maker(case, [r.shape for r in results], results if integer else None)
    content = maker.content()
    return Trial(content, maker.feeds, interpret(content, maker.feeds, optimized=optimized))


def trials(code: str, *, integer: bool = False) -> Iterator[Trial]:
    """All trials of an operator."""
    cases = [case for case in CASES.get(code, []) if case.integer or not integer]
    for case in cases:
        yield trial(case, integer=integer)
    if integer and not cases:
        yield from stored().get(code, [])
    for content, feeds in [] if integer else MODELS.get(code, []):
        yield Trial(content, feeds, interpret(content, feeds))


@functools.cache
def stored_cases(family: str) -> dict[str, dict[str, Any]]:
    """By name what tests/data/tflite/make.py wrote: "model" (bytes), "in" and "out" (arrays by port)."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(STORED.glob(f"{family}_?.npz")):
        with np.load(path) as arrays:
            for key in arrays.files:
                case, side, *name = key.split("/", 2)
                row = found.setdefault(case, {"in": {}, "out": {}})
                if side == "model":
                    row["model"] = arrays[key].tobytes()
                else:
                    row[side][name[0]] = arrays[key]
    return found


@functools.cache
def stored() -> dict[str, list[Trial]]:
    """The int8 models that TensorFlow's converter wrote (tests/data/tflite/make.py), by the operators that they hold.

    Those count that read or write int8, but not the ones that turn codes into floats and back.
    """
    found: dict[str, list[Trial]] = {}
    for case in stored_cases("ops_int8").values():
        one = Trial(case["model"], case["in"], case["out"])
        for code in _integer_operators(one.content):
            found.setdefault(code, []).append(one)
    return found


def _integer_operators(content: bytes) -> set[str]:
    graphs = read_content(content).subgraphs
    return {
        op.code
        for graph in graphs
        for op in graph.ops
        if op.code not in ("QUANTIZE", "DEQUANTIZE")
        and any(graph.tensors[i].dtype == ir.DataType.INT8 for i in (*op.inputs, *op.outputs) if i >= 0)
    }


def lowered(content: bytes, path: str) -> Any:
    """The QNN graph of a file for `path` ("cpu", or "raise": for ONNX Runtime)."""
    from conformance import execute
    from npukit.frontends.tflite import load
    from npukit.lowering import LowerOptions, lower
    from npukit.targets import target

    chip = target("qnn-cpu")
    validators = {} if path == "raise" else {chip.name: execute._backend(path).validate}
    return lower(load(content).model, (chip,), LowerOptions(), validators)


def compute(content: bytes, feeds: dict[str, Array], path: str) -> dict[str, Array]:
    """What npukit computes from the file."""
    from conformance import execute

    result = lowered(content, path)
    names = [tensor.held.source for tensor in result.graph.outputs]
    if not names:
        return dict(result.folded)
    with execute._executor(path, result.graph) as run:
        needed = {tensor.held.source for tensor in result.graph.inputs}
        found = run({name: value for name, value in feeds.items() if name in needed})
        return {**result.folded, **dict(zip(names, found, strict=True))}


def differ(found: dict[str, Array], want: dict[str, Array], *, step: float = 0.0) -> str:
    """How the results differ, empty where they are as near as they have to be.

    Floats: 1e-5 of the value or of the largest one (float32 sums in another order); codes: one step, as a value between
    two codes may be rounded either way; with `step`, floats within it.
    """
    for name, right in want.items():
        got = found.get(name)
        if got is None or got.shape != right.shape or got.dtype != right.dtype:
            return f"{name} is {None if got is None else (got.dtype.name, got.shape)}, not {right.dtype} {right.shape}"
        if not right.size:
            continue
        error = np.abs(got.astype(np.float64) - right.astype(np.float64))
        if right.dtype == np.int8:
            allowed: Any = 1.0
        elif right.dtype == np.float32:
            size = np.abs(right.astype(np.float64))
            allowed = step or 1e-5 * (size + max(float(size.max()), 1e-6))
        else:
            allowed = 0.0
        if not (error <= allowed).all():
            return f"{name} is off by up to {error.max():.3g}"
    return ""


# a value between two codes of FAKE_QUANT may be rounded either way: one step of the coarsest case, (2 + 1) / 15
STEPS = {"FAKE_QUANT": 3 / 15 * 1.001}


def judge(code: str, path: str, *, integer: bool = False) -> tuple[int, list[str]]:
    """How many trials of an operator hold on `path`, and what is wrong with the others."""
    good, wrong = 0, []
    for i, one in enumerate(trials(code, integer=integer)):
        try:
            text = differ(compute(one.content, one.feeds, path), one.want, step=STEPS.get(code, 0.0))
        except NpukitError as error:
            text = " ".join(str(error).split())[:200]
        if text:
            wrong.append(f"case {i}: {text}")
        else:
            good += 1
    return good, wrong


@functools.cache
def _tables() -> tuple[str, ...]:
    return builtin_names()


PAGE = """# TensorFlow Lite operators

{supported} of the {count} builtin operators of the schema (package `tflite` {version}) are converted; {plain} of the
{plain_count} that are not StableHLO's. Each was tried with three sets of parameters against {litert}'s reference
kernels, on QNN CPU and as raised ONNX on ONNX Runtime: float32 to 1e-5, integers exactly, int8 within one step. A cell
is how many of the sets hold. In int8 these are the sets that have an int8 form; where none has one, the int8 models of
`tests/data/tflite` that hold the operator, with what TensorFlow Lite's interpreter gave for them. A dash: int8 was not
tried here, which does not say that there is no such form: SQUEEZE, for one, has it, and an integer
UNIDIRECTIONAL_SEQUENCE_LSTM [is converted](guides/tflite.md) and tested apart. Custom operators that are read:
{custom}.

| operator | float32, QNN CPU | float32, raised | int8, QNN CPU | int8, raised | note |
| --- | --- | --- | --- | --- | --- |
{rows}

Not converted:

| operator | why |
| --- | --- |
{refused}

Written by `python -m tools.tflite_coverage`.
"""


def main(arguments: list[str] | None = None) -> int:
    """Try all; 1 if one does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tools.tflite_coverage", description=__doc__)
    parser.add_argument("codes", nargs="*", help="only these operators")
    parser.add_argument("--markdown", type=Path, help="write the page to this file")
    options = parser.parse_args(arguments)
    rows, refused, bad = [], [], 0
    for code in options.codes or (*_tables(), *CUSTOM):
        if code not in READERS and code not in CUSTOM:
            refused.append(f"| {code} | {reason(code)} |")
            continue
        cells, notes = [], []
        for integer in (False, True):
            for path in ("cpu", "raise"):
                good, wrong = judge(code, path, integer=integer)
                cells.append(f"{good} of {good + len(wrong)}" if good + len(wrong) else "-")
                notes += [f"{'int8' if integer else 'float32'}, {path}: {text}" for text in wrong]
        if cells[0] == "-":
            notes.append("not tried")
        bad += bool(notes)
        rows.append(f"| {code} | {' | '.join(cells)} | {'; '.join(notes)[:300]} |")
        sys.stdout.write(rows[-1] + "\n")
        sys.stdout.flush()
    if options.markdown is not None:
        options.markdown.write_text(_page(rows, refused))
    return 1 if bad else 0


def _page(rows: list[str], refused: list[str]) -> str:
    from importlib import metadata

    from npukit.runtime import litert

    names = _tables()
    plain = [name for name in names if not name.startswith("STABLEHLO_")]
    return PAGE.format(
        supported=sum(name in READERS for name in names), count=len(names), version=metadata.version("tflite"),
        plain=sum(name in READERS for name in plain), plain_count=len(plain), litert=litert.version(),
        custom=", ".join(CUSTOM), rows="\n".join(rows), refused="\n".join(refused),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
