# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What goes into and comes out of the ONNX front end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir

from npukit.frontends.onnx.io_config import IoConfig
from npukit.frontends.onnx.strip_quantization import SourceEncoding


@dataclass(frozen=True)
class LoadOptions:
    """How a source model is made static and cut.

    Attributes:
        input_shapes: full shape of an input by name.
        symbols: value of a symbolic dimension by name, in every input that has it.
        batch: value of the first dimension of every input whose first dimension is dynamic.
        inputs: tensors at which the graph is cut to begin; empty for the model's own inputs.
        outputs: tensors at which the graph is cut to end; empty for the model's own outputs.
        signature: the entry point of a TensorFlow Lite file; empty for its only one.
        io: how inputs and outputs shall differ from the source's.
        strip_quantization: take Q/DQ nodes and their like out, which leaves a float model.

    Inputs and tensors may be called by their names in the source or by those that they have in an artifact.
    """

    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    symbols: Mapping[str, int] = field(default_factory=dict)
    batch: int | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    strip_quantization: bool = False
    signature: str = ""
    io: IoConfig | None = None


@dataclass
class Normalized:
    """A normalized model and what was done to get it.

    Attributes:
        model: main graph only, every value with a static shape and a dtype, constants as initializers, every
            ai.onnx op in the form of `opset`. Weights are views of memory-mapped files.
        source_path: the file it came from; None for a model given in memory.
        opset: the ai.onnx opset that all nodes are in (the newest that `onnx` knows).
        cut: names of source nodes and inputs that `inputs`/`outputs` left out.
        notes: what was changed that a user may want to know, one sentence each.
        folded: constant name -> names of the source nodes whose result it is.
        producer: the producer field of the source file.
        encodings: those that `strip_quantization` took out.
        stripped: how many nodes it took out.
    """

    model: ir.Model
    source_path: Path | None
    opset: int
    cut: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    folded: dict[str, tuple[str, ...]] = field(default_factory=dict)
    producer: str = ""
    encodings: list[SourceEncoding] = field(default_factory=list)
    stripped: int = 0
    digest: Callable[[], str] = field(default=lambda: hashlib.sha256(b"").hexdigest(), repr=False)
    extra: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def source_sha256(self) -> str:
        """SHA-256 over the source file and its external data files in name order (computed when first asked for)."""
        return self.digest()
