# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Runs PyTorch's program and the ONNX exported from it on the same inputs, and says how far they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from npukit.frontends import exported
from npukit.frontends.exported import Array


def against_onnx(torch: Any, program: Any, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path) -> str:
    """One sentence on the largest difference between `program` on these inputs and the ONNX file on ONNX Runtime."""
    try:
        with torch.no_grad():
            expected = arrays_of(torch, program(*args, **kwargs))
    except Exception as error:
        return f"PyTorch did not run the program on its example inputs ({' '.join(str(error).split())[:200]})"
    inputs = arrays_of(torch, (args, kwargs))
    return exported.against_onnx(f"PyTorch {torch.__version__}", inputs, expected, path)


def arrays_of(torch: Any, values: Any) -> list[Array]:
    """The values of the tensors among nested `values`, in order."""
    leaves = torch.utils._pytree.tree_leaves(values)
    return [array_of(torch, leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]


def array_of(torch: Any, tensor: Any) -> Array:
    """A tensor's values; bfloat16 as float32."""
    tensor = tensor.detach().cpu()
    found: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return found
