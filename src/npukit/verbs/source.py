# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Sources that their own framework exports: PyTorch's and TensorFlow's files become ONNX before npukit reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npukit.frontends.exported import Exported
    from npukit.verbs.convert import ConvertOptions


def is_exported(path: Path) -> bool:
    """Whether a file is one that its framework exports, by its content."""
    from npukit.frontends import pytorch, tensorflow

    return pytorch.kind_of(path) is not None or tensorflow.kind_of(path) is not None


def exported_source(options: ConvertOptions) -> Exported | None:
    """The ONNX of a source that is a file of PyTorch or TensorFlow, exported once a process; None for any other.

    Raises:
        NpukitError: it is damaged, would run code, cannot be exported, or its framework is missing.
    """
    from npukit.frontends import pytorch, tensorflow

    compare = options.verify and not options.dry_run
    cuts = [(name, value) for name, value in options.inputs if name and not isinstance(value, Path)]
    made = tensorflow.as_onnx(
        options.model,
        tensorflow.TensorFlowOptions(
            shapes={**options.input_shapes, **{name: tuple(value) for name, value in cuts if value is not None}},
            batch=options.batch,
            inputs=tuple(name for name, _ in cuts),
            outputs=options.outputs,
            tag=options.saved_model_tag,
            signature=options.saved_model_signature,
            python=options.tensorflow_python,
            compare=compare,
            timeout=options.timeout,
        ),
    )
    if made is not None:
        return made
    return pytorch.as_onnx(
        options.model,
        shapes=options.input_shapes,
        allow_pickle=options.allow_pickle,
        compare=compare,
        timeout=options.timeout,
    )


def exported_reference(
    path: Path, shapes: Mapping[str, tuple[int, ...]] | None, recorded: Mapping[str, Any]
) -> Exported | None:
    """The ONNX of the source that an artifact is compared with; see `exported_source`.

    Args:
        path: the source.
        shapes: those of the artifact's inputs; None where it has no stamp.
        recorded: the options in the artifact's stamp.
    """
    from npukit.frontends import pytorch, tensorflow

    made = tensorflow.as_onnx(
        path,
        tensorflow.TensorFlowOptions(
            shapes=shapes or {},
            inputs=tuple(name for name, _ in recorded.get("inputs", ())),
            outputs=tuple(recorded.get("outputs", ())),
            tag=recorded.get("saved_model_tag", ""),
            signature=recorded.get("saved_model_signature", ""),
        ),
    )
    return made if made is not None else pytorch.as_onnx(path, shapes=shapes)
