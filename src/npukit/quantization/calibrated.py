# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Encodings from what calibration observed and from overrides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from npukit.errors import InputError
from npukit.qnn.graph import Array, DType, Encoding, Op, Tensor, TensorKind
from npukit.quantization import ranges
from npukit.quantization.assign import ACTIVATION, block_axis
from npukit.quantization.calibration import Calibration
from npukit.quantization.entry import Entry
from npukit.quantization.masking import lowest_seen
from npukit.quantization.observers import Observer, observed_range
from npukit.quantization.ranges import Range
from npukit.quantization.roles import by_input_channel, clamp_limits
from npukit.quantization.rounding import SecondMoments, round_and_fit, round_weights
from npukit.quantization.weight_scales import fit_scales
from npukit.quantization.weights import blockwise, quantize_weights, weight_dtype
from npukit.raising.encodings import dequantized

# What calibration has not seen may lie beyond what it has: room for it, where 16 bits have steps to spare, and for
# outputs, where it shows most. Tried on held-out samples: 1.5 at 16 bits takes digits from 31 to 42 dB, MobileNetV2
# from 24 to 29, BERT from 37 to 42; outputs of digits at 8 bits have 30 dB by least squared error, 37 by their range.
# At 16 bits steps are small: the whole range, with room for what calibration did not meet, beats any cut. That is what
# "mse", the default, means there; these are done as asked for, and the others are for 8 bits.
_AS_ASKED_16 = ("min-max", "tf", "percentile", "symmetric")
METHODS_16 = ("mse", *_AS_ASKED_16)
_MARGIN_16, _MARGIN_OUTPUT = 1.5, 1.1
_HUGE = 1e20
OUTPUT_MSE = "output-mse"
"""A method of weights: scales by the error of the output of their layer."""

# Channels of tiny weights keep their bits; the product with an activation's scale is still a normal float32.
_LEAST_SCALE = 1e-12


@dataclass(frozen=True)
class Scheme:
    """How ranges and weights are chosen.

    Attributes:
        activation_method: of `RANGE_METHODS`, for activations of 8 bits; those of 16 bits have range to spare and keep
            their smallest and largest values, but where a percentile was asked for.
        weight_method: of `RANGE_METHODS`, or "output-mse": "mse", and then by the error of the layer's output where its
            inputs' second moments were observed (`npukit.quantization.weight_scales`).
        rounding: "nearest", or of `ROUNDINGS` where second moments were observed.
        percentile: for the method "percentile", 90 to 100.
        symmetric_activations: zero in the middle of every activation's codes.
        importance: the error of a weight counts as much as the mean square of what it multiplies. Off by default: on
            most networks it takes more than it gives (docs/results/quantization-techniques.md).
        bias_correction: biases make up for the mean error of the weights (arXiv 1906.04721, section 4.2).
        mask_rule: ranges end where Softmax sees nothing more (`npukit.quantization.masking`).
        steps: lowest and highest code of symmetric encodings (--restrict-quantization-steps).
    """

    activation_method: str = "mse"
    weight_method: str = "mse"
    rounding: str = "gptq"
    percentile: float = 99.99
    symmetric_activations: bool = False
    importance: bool = False
    bias_correction: bool = True
    mask_rule: bool = True
    steps: tuple[int, int] | None = None


class Calibrated:
    """The encodings of a graph's tensors; `npukit.quantization.assign.Encodings`.

    Args:
        calibration: what was observed.
        scheme: how ranges are chosen.
        forced: encodings that the user gave, which win over what was observed.
    """

    def __init__(self, calibration: Calibration, scheme: Scheme, forced: Mapping[Tensor, Entry] | None = None) -> None:
        self._seen, self._groups, self.scheme = calibration, calibration.groups, scheme
        self._forced = forced or {}
        self._tables: dict[str, Observer] = {}
        self._masks: dict[int, dict[str, float]] = {}
        self._ranges: dict[tuple[int, int], Encoding] = {}
        self._why: dict[tuple[int, int], str] = {}
        self._weights: dict[tuple[int, int | None, int, int], tuple[Array, Encoding]] = {}
        limits = ((op.outputs[0], clamp_limits(op)) for op in calibration.graph.ops)
        self._limits = {self._groups.key(tensor): pair for tensor, pair in limits if pair is not None}
        # What every plan of a search asks for again.
        self._biases: dict[tuple[str, DType, Encoding | None], Array] = {}
        self._codes: dict[tuple[int, DType, Encoding], Array] = {}
        self._given: dict[tuple[int, DType, Encoding], Array] = {}

    def activation(self, tensor: Tensor, bits: int) -> Encoding:
        """The encoding that `tensor` shares with its group."""
        key = (self._groups.key(tensor), bits)
        if key not in self._ranges:
            self._ranges[key] = self._forced_encoding(tensor, bits) or self._observed(tensor, bits)
        return self._ranges[key]

    def why(self, tensor: Tensor, bits: int) -> str:
        """How the encoding that `activation` gave came about, in words."""
        others = [t.name for t in self._groups.of(tensor) if t is not tensor]
        shared = f"; shared with {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}" if others else ""
        return self._why.get((self._groups.key(tensor), bits), "given") + shared

    def why_weights(self) -> str:
        """How weights got theirs, where none was given."""
        by = f", rounded by {self.scheme.rounding}" if self.scheme.rounding != "nearest" else ""
        return f"{self.scheme.weight_method}{by}"

    def seen(self, tensor: Tensor) -> Observer | None:
        """What calibration saw of a tensor; None where it decides no encoding."""
        return self._seen.observer(tensor.name)

    def _forced_encoding(self, tensor: Tensor, bits: int) -> Encoding | None:
        for member in (*self._groups.of(tensor), *self._groups.tables(tensor)):
            entry = self._forced.get(member)
            if entry is not None and entry.scales and entry.bitwidth == bits:
                return entry.encoding(ACTIVATION[bits])
        return None

    def _observed(self, tensor: Tensor, bits: int) -> Encoding:
        scheme = self.scheme
        method, margin = scheme.activation_method, 1.0
        if bits == 16 and method not in _AS_ASKED_16:
            method, margin = "min-max", _MARGIN_16
        elif method == "mse" and self._is_output(tensor):
            method, margin = "min-max", _MARGIN_OUTPUT
        symmetric = scheme.symmetric_activations or self._groups.centred(tensor, bits) or method == "symmetric"
        found: Range | None = None
        masked = False
        for member in self._counting(tensor):
            observer = self._observer(member)
            if not observer.count:
                raise InputError(f"tensor {member.name!r} was never observed", hint="give at least one sample")
            lowest = self._lowest(bits).get(member.name)
            if lowest is None:
                own = observed_range(observer, method, bits, symmetric=symmetric, percentile=scheme.percentile)
                if margin != 1 and member.kind is not TensorKind.STATIC:
                    own = self._with_room(tensor, own, margin)
            else:
                own, masked = Range(lowest, max(observer.high, 0.0)), True
            found = own if found is None else found.merge(own)
        assert found is not None
        parts = [method, f"{margin - 1:.0%} of room" if margin != 1 else "", "zero in the middle" if symmetric else ""]
        parts += ["below its least value no Softmax sees anything"] if masked else []
        self._why[self._groups.key(tensor), bits] = ", ".join(filter(None, parts))
        return ranges.encoding(found, bits, symmetric=symmetric)

    def _with_room(self, tensor: Tensor, seen: Range, margin: float) -> Range:
        """A range with a margin to either side, but not beyond a clamp that makes one of the group's tensors.

        Nothing lies there; and in 16 bits HTP leaves a clamp behind another op to the codes' own limits.
        """
        low, high = self._limits.get(self._groups.key(tensor), (-np.inf, np.inf))
        return Range(min(seen.low, max(seen.low * margin, low)), max(seen.high, min(seen.high * margin, high)))

    def _counting(self, tensor: Tensor) -> list[Tensor]:
        """Those whose ranges make the group's.

        Elements of a constant may be others than calibration met: all of it counts, and what was met of it then says
        nothing more. But a Concat may join them with something larger.
        """
        tables, deciding = self._groups.tables(tensor), self._groups.deciding(tensor)
        if not tables:
            return deciding
        held = [self._observer(table) for table in tables]
        low, high = min(o.low for o in held), max(o.high for o in held)
        seen = [(member, self._observer(member)) for member in deciding]
        return [*tables, *(member for member, o in seen if o.count and (o.low < low or o.high > high))]

    def _is_output(self, tensor: Tensor) -> bool:
        """Whether the group holds an output of the graph: its largest values are what is asked for."""
        return any(member.kind is TensorKind.APP_READ for member in self._groups.of(tensor))

    def _observer(self, tensor: Tensor) -> Observer:
        if tensor.kind is not TensorKind.STATIC:
            return self._seen.observers[tensor.name]  # of those that decide, which are observed
        if tensor.name not in self._tables:
            self._tables[tensor.name] = Observer()
            self._tables[tensor.name].update(np.asarray(tensor.data))
        return self._tables[tensor.name]

    def _lowest(self, bits: int) -> dict[str, float]:
        """Below what a tensor's values do not matter, where Softmax alone sees them."""
        if not self.scheme.mask_rule:
            return {}
        if bits not in self._masks:
            self._masks[bits] = lowest_seen(self._seen.graph, self._seen, bits)
        return self._masks[bits]

    def beyond(self) -> list[str]:
        """Tensors with numbers as -3.4e38, which leave no codes for the others, where not only Softmax sees them."""
        names = (name for name, seen in self._seen.observers.items() if max(-seen.low, seen.high) > _HUGE)
        return [name for name in names if name not in self._lowest(8)]

    def reach(self, constant: Tensor, bits: int) -> Range:
        """The values of a constant operand that matter in `bits`."""
        values = np.asarray(constant.data, np.float32)
        low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
        return Range(max(low, self._lowest(bits).get(constant.name, low)), high)

    def asked(self, constant: Tensor) -> tuple[DType, Encoding] | None:
        """The encoding that the user gave a constant; signed codes where zero is in their middle."""
        entry = self._forced.get(constant)
        if entry is None or not entry.scales:
            return None
        sign = "U" if any(entry.offsets_for(signed=True)) else "S"
        dtype = DType[f"{sign}FIXED_POINT_{max(entry.bitwidth, 8)}"]
        return dtype, entry.encoding(dtype)

    def weight(self, op: Op, axis: int | None, bits: int, block: int = 0) -> tuple[Array, Encoding]:
        """Codes and encoding of the weight of `op`; with blocks of `block` input channels where that is not 0."""
        source = op.inputs[1]
        assert source is not None
        assert source.data is not None
        key = (id(source), axis, bits, block)
        if key in self._weights:
            return self._weights[key]
        method = "mse" if self.scheme.weight_method == OUTPUT_MSE else self.scheme.weight_method
        if block:
            along = block_axis(op, block)
            assert axis is not None
            assert along is not None
            least = method in ("mse", "sqnr", "enhanced")
            self._weights[key] = blockwise(
                source.data,
                axis,
                along,
                block,
                bits,
                method="mse" if least else "min-max",
                importance=self._importance(op) if self.scheme.importance and least else None,
                name=source.name,
            )
        else:
            self._weights[key] = quantize_weights(
                source.data,
                bits,
                axis=axis,
                method=method,
                importance=self._importance(op) if self.scheme.importance else None,
                percentile=self.scheme.percentile,
                steps=self.scheme.steps,
                least_scale=_LEAST_SCALE,
                name=source.name,
            )
        self._weights[key] = self._rounded(op, bits, *self._weights[key])
        return self._weights[key]

    def given(self, op: Op, dtype: DType, encoding: Encoding) -> Array:
        """Codes of the weight of `op` in an encoding that was asked for, rounded as the scheme says.

        A weight that is codes times scales already, as a QDQ source's is, keeps its codes.
        """
        source, moments = op.inputs[1], self._moments(op)
        assert source is not None
        key = (id(source), dtype, encoding)
        if key not in self._given:
            codes = self.coded(source, dtype, encoding)
            if moments is not None and self.scheme.rounding != "nearest" and dtype.numpy.itemsize == 1:
                how: dict[str, Any] = {"centred": self._centred(op), "dtype": dtype, "method": self.scheme.rounding}
                codes = round_weights(op, np.asarray(source.data), encoding, moments, **how)
            self._given[key] = codes
        return self._given[key]

    def _moments(self, op: Op) -> SecondMoments | None:
        """Those of the op's inputs, where some were observed."""
        moments = None if self._seen.moments is None else self._seen.moments.by_op.get(op.name)
        return moments if moments is not None and moments.rows else None

    def _centred(self, op: Op) -> bool:
        """Whether the bias will take up the mean error."""
        return self.scheme.bias_correction and len(op.inputs) > 2 and op.inputs[2] is not None

    def _rounded(self, op: Op, bits: int, codes: Array, encoding: Encoding) -> tuple[Array, Encoding]:
        """Scales and codes for the least error of the output, as asked for and where the op's inputs were observed."""
        moments, source = self._moments(op), op.inputs[1]
        if moments is None or source is None or source.data is None or bits > 8:
            return codes, encoding
        values, steps, rounding = np.asarray(source.data), self.scheme.steps, self.scheme.rounding
        how: dict[str, Any] = {"centred": self._centred(op), "dtype": weight_dtype(bits)}
        if self.scheme.weight_method == OUTPUT_MSE:
            codes, encoding = fit_scales(op, values, encoding, moments, limits=steps, **how)
        if rounding == "nearest":
            return codes, encoding
        if bits == 4 and encoding.block_scales is None and steps is None:
            return round_and_fit(op, values, encoding, moments, method=rounding, **how)
        return round_weights(op, values, encoding, moments, method=rounding, limits=steps, **how), encoding

    def _importance(self, op: Op) -> Array | None:
        """Mean square of the input that each weight multiplies, broadcastable onto the weight."""
        seen = self._channels(op)
        if seen is None:
            return None
        power = by_input_channel(op, seen.power)
        return power if power is None or power.max() > 0 else None

    def _channels(self, op: Op):  # type: ignore[no-untyped-def]
        tensor = op.inputs[0]
        return None if tensor is None else self._seen.channels.get(tensor.name)

    def bias(self, op: Op, weight: Tensor) -> Array:
        """The bias [C]; with bias correction plus what the weight's error makes of the mean input."""
        key = (op.name, weight.dtype, weight.encoding)
        if key not in self._biases:
            self._biases[key] = self._corrected(op, weight)
        return self._biases[key]

    def coded(self, constant: Tensor, dtype: DType, encoding: Encoding) -> Array:
        """The nearest codes of a constant operand."""
        key = (id(constant), dtype, encoding)
        if key not in self._codes:
            self._codes[key] = ranges.codes(np.asarray(constant.data, np.float32), encoding, dtype)
        return self._codes[key]

    def _corrected(self, op: Op, weight: Tensor) -> Array:
        source, float_weight = op.inputs[2], op.inputs[1]
        assert source is not None
        assert source.data is not None
        assert float_weight is not None
        values = np.asarray(source.data, np.float64)
        seen = self._channels(op)
        if not self.scheme.bias_correction or seen is None:
            return values
        means = by_input_channel(op, seen.mean)
        if means is None:
            return values
        error = (np.asarray(float_weight.data, np.float64) - dequantized(weight)) * means
        axis = 0 if op.type == "FullyConnected" else float_weight.rank - 1
        shift = error.sum(axis=tuple(a for a in range(float_weight.rank) if a != axis))
        return values + shift if shift.shape == values.shape else values
