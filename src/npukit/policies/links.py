# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Components in a chain: what one gives is what the next one takes, in the same memory where that is possible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

if TYPE_CHECKING:
    from npukit.runtime.binding import Binding
    from npukit.runtime.session import Session, TensorInfo

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Linked:
    """A component's buffers, some of which are those that another writes.

    Attributes:
        binding: of the component that takes.
        copies: input -> output of the giver, which `carry` copies; what is not here lies in the same memory.
    """

    binding: Binding
    copies: dict[str, str]

    def carry(self, giver: Binding) -> None:
        """Bring over what does not lie in the same memory."""
        for name, output in self.copies.items():
            self.binding.write(name, giver.read(output))


def link(giver: Session, given: Binding, taker: Session, names: Mapping[str, str]) -> Linked:
    """Bind `taker` so that its inputs are outputs of `giver`.

    Args:
        giver: the session that runs first.
        given: its binding.
        taker: the session that runs next.
        names: input of `taker` -> output of `giver`.
    """
    inputs = {info.name for info in taker.inputs}
    same = shared(giver, given, taker, names)
    return Linked(
        taker.bind(inputs=same) if same else taker.bind(),
        {name: output for name, output in names.items() if name not in same and name in inputs},
    )


def shared(giver: Session, given: Binding, taker: Session, names: Mapping[str, str]) -> dict[str, Array]:
    """The giver's buffers that can be inputs of `taker`, by those inputs' names; see `link`."""
    outputs = {info.name: info for info in giver.outputs}
    inputs = {info.name: info for info in taker.inputs}
    if not (giver.in_process and taker.in_process):
        return {}
    return {
        name: given.outputs[output]
        for name, output in names.items()
        if name in inputs and output in outputs and _alike(inputs[name], outputs[output])
    }


def row_alike(giver: Session, output: str, taker: Session, name: str) -> bool:
    """Whether rows of an output are, byte for byte, rows of another session's input."""
    given = next((info for info in giver.outputs if info.name == output), None)
    taken = next((info for info in taker.inputs if info.name == name), None)
    if given is None or taken is None or {given.layout, taken.layout} != {"source"}:
        return False
    a, b = given.native, taken.native
    return (a.dtype, a.encoding, a.shape[1:]) == (b.dtype, b.encoding, b.shape[1:])


def _alike(taken: TensorInfo, given: TensorInfo) -> bool:
    """Whether two tensors are the same bytes."""
    a, b = taken.native, given.native
    same = (a.dtype, a.shape, taken.dtype, taken.layout) == (b.dtype, b.shape, given.dtype, given.layout)
    return same and a.encoding == b.encoding
