# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What HTP takes of each op in integers, how near the simulation is to it, and where it takes what it computes wrongly.

`capabilities.json` is written by `python -m benchmarks.simulation --capabilities`, which asks libQnnHtp's validation
for a chip of each architecture and runs every op on the emulator. Assigning encodings asks the validation itself, op by
op; the table is for documents, for tests that hold its bounds, and names what is taken but computed wrongly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from npukit.errors import UsageError, nearest
from npukit.qnn.graph import Op
from npukit.qnn.opdefs import OPS
from npukit.quantization.ranges import covered
from npukit.quantization.roles import clamp_limits

ARCHS = (68, 69, 73, 75, 79)
"""Hexagon architectures that were asked."""


@dataclass(frozen=True)
class Takes:
    """What an op takes with activations of one bit width.

    Attributes:
        since: the first architecture.
        operands: role of a constant ("weight", "bias", "gamma", "beta") -> form -> first architecture. Forms of a
            weight: bits, "per channel" or not; of the others: u8, s8, u16, s16 or s32, "symmetric" where only that.
    """

    since: int
    operands: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """The simulation against the emulator, on the worst graph of the op.

    Attributes:
        share: of the elements, 0 to 1, that are at most one step apart.
        steps: the largest difference in steps of the output.
    """

    share: float
    steps: int


@dataclass(frozen=True)
class Capability:
    """One op, or one operation of an op that has many ("ElementWiseUnary RSQRT").

    Attributes:
        name: as in the table.
        takes: bits of the activations -> what it takes; a missing one is refused on every architecture.
        refusal: the validation's words where one is refused.
        measured: bits of the activations ("8"), with those of the weights ("16/4") where they are not 8 -> first
            architecture that it holds for (68, or 73 for it and later ones) -> figures.
    """

    name: str
    takes: Mapping[int, Takes]
    refusal: str
    measured: Mapping[str, Mapping[int, Measured]]

    def accepts(self, bits: int, arch: int) -> bool:
        """Whether an architecture takes the op with activations of `bits`."""
        return bits in self.takes and arch >= self.takes[bits].since

    def bound(self, bits: int, arch: int, weights: int = 8) -> Measured | None:
        """How far simulation and emulator are apart; None where it was not measured."""
        rows = self.measured.get(str(bits) if weights == 8 else f"{bits}/{weights}", {})
        return rows.get(max((first for first in rows if first <= arch), default=0))


@cache
def capabilities() -> Mapping[str, Capability]:
    """All rows by name."""
    text = resources.files(__package__).joinpath("capabilities.json").read_text(encoding="utf-8")
    return {name: _row(name, raw) for name, raw in json.loads(text)["ops"].items()}


def _row(name: str, raw: Mapping[str, object]) -> Capability:
    takes, measured = raw["takes"], raw["measured"]
    assert isinstance(takes, dict)
    assert isinstance(measured, dict)
    return Capability(
        name,
        {int(bits): Takes(one["since"], one.get("operands", {})) for bits, one in takes.items()},
        str(raw.get("refusal", "")),
        {key: {int(arch): Measured(*pair) for arch, pair in rows.items()} for key, rows in measured.items()},
    )


def capability(op: Op | str) -> Capability:
    """The row of an op, by its operation where it has many, or of a name in the table.

    Raises:
        UsageError: nothing is known of it: it has no integer form, or was not asked for.
    """
    name = op if isinstance(op, str) else row_name(op)
    found = capabilities().get(name)
    if found is None:
        raise UsageError(f"no row for {name!r} in the table of quantized ops", hint=nearest(name, capabilities()))
    return found


def row_name(op: Op) -> str:
    """The row's name of an op: its type, with the operation of those that have many."""
    operation = op.params.get("operation")
    if operation is None or op.type not in OPS:
        return op.type
    values = OPS[op.type].params["operation"].values
    return f"{op.type} {next((name for name, value in values.items() if value == operation.value), operation.value)}"


# ---------------------------------------------------------------- accepted, but wrong


@dataclass(frozen=True)
class Unreliable:
    """A quantized op that HTP's validation accepts and HTP computes wrongly, or cannot finalize.

    Attributes:
        name: of the op, as in the table.
        bits: of the activations.
        reason: what happens.
        when: the forms that it holds for, None for all.
        source: how it is known.
    """

    name: str
    bits: tuple[int, ...]
    reason: str
    when: Callable[[Op], bool] | None = None
    source: str = "tried on the emulator of onnxruntime-qnn 2.3.0 (QAIRT 2.47), V68 to V79"


def _absent(index: int) -> Callable[[Op], bool]:
    return lambda op: len(op.inputs) <= index or op.inputs[index] is None


def _bias_and_channel_scales(op: Op) -> bool:
    weight = op.inputs[1]
    bias = op.inputs[2] if len(op.inputs) > 2 else None
    return bias is not None and weight is not None and weight.encoding is not None and weight.encoding.axis is not None


def _four_bits(op: Op) -> bool:
    weight = op.inputs[1]
    return weight is not None and weight.encoding is not None and weight.encoding.bitwidth == 4


def _scatters_other_codes(op: Op) -> bool:
    data, updates = op.inputs[0], op.inputs[2]
    assert data is not None
    assert updates is not None
    return not data.encoding == updates.encoding == op.outputs[0].encoding


def _cubic_aligned(op: Op) -> bool:
    definition = OPS["Resize"].params
    wanted = (("interpolation_mode", "CUBIC"), ("transformation_mode", "ALIGN_CORNERS"))
    return all(
        (given := op.params.get(name)) is not None and given.value == definition[name].values[value]
        for name, value in wanted
    )


def _beyond_its_clamp(op: Op) -> bool:
    result, limits = op.outputs[0], clamp_limits(op)
    if result.encoding is None or limits is None:
        return False
    reach, step = covered(result.encoding, result.dtype), result.encoding.scale
    return reach.low < limits[0] - step or reach.high > limits[1] + step


_CLAMP = "behind another op a clamp in 16 bits does not clamp: taken only where its codes end there"
_LOG = "Log in 16 bits gives codes from end to end of the range for most ranges of its output"
UNRELIABLE = (
    Unreliable("ElementWiseLog", (16,), _LOG),
    Unreliable("ElementWiseUnary LOG", (16,), _LOG),
    Unreliable("CumulativeSum", (8,), "CumulativeSum in 8 bits is up to three steps off, and nonsense in four axes"),
    Unreliable("Resize", (16,), "Resize CUBIC, ALIGN_CORNERS, in 16 bits is nonsense for some sizes", _cubic_aligned),
    Unreliable(
        "ScatterElements", (8, 16), "ScatterElements copies the codes of updates into another encoding",
        _scatters_other_codes,
    ),
    *(
        Unreliable(name, (16,), _CLAMP, _beyond_its_clamp)
        for name in ("ReluMinMax", "Relu6", "Relu1", "ElementWiseNeuron RELU_MIN_MAX")
    ),
    Unreliable("RmsNorm", (8, 16), "RmsNorm without beta fails at graphFinalize (1002)", _absent(2)),
    Unreliable("Conv3d", (8, 16), "Conv3d with weights of 4 bits fails at graphFinalize (1002)", _four_bits),
    Unreliable(
        "TransposeConv3d", (8, 16), "TransposeConv3d with weights of 4 bits fails at graphFinalize (1002)", _four_bits,
    ),
    Unreliable(
        "MatMul", (8, 16), "MatMul with a bias and a scale per channel fails at graphAddNode (1000)",
        _bias_and_channel_scales,
    ),
)  # fmt: skip


def unreliable(op: Op, bits: int = 0) -> str:
    """Why HTP must not be given a quantized op that its validation accepts; "" where nothing is known against it.

    Args:
        op: as it would be in the graph, with encodings.
        bits: of its activations; 0 to read them off the op.
    """
    width = bits or next((t.dtype.bits for t in (*op.outputs, *op.inputs) if t is not None and t.dtype.is_quantized), 0)
    name = row_name(op)
    for row in UNRELIABLE:
        if row.name == name and width in row.bits and (row.when is None or row.when(op)):
            return f"{row.reason} ({row.source})"
    return ""
