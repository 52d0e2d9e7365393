# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What the outputs of a run mean: postprocessing, with the pictures that its inputs came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npukit.analysis.postprocess import Postprocessing, picture_size, window
from npukit.analysis.preprocess import Preprocessing, input_extents, recorded
from npukit.verbs import options as o

if TYPE_CHECKING:
    from npukit.runtime.session import Session


@dataclass(frozen=True)
class Meaning:
    """Reads the outputs of runs.

    Attributes:
        after: what is done with outputs.
        recipe: the steps before the model, which `after` undoes.
        session: the model.
        entries: name and file of the inputs of all runs.
    """

    after: Postprocessing
    recipe: Preprocessing
    session: Session
    entries: Sequence[tuple[str, Path]]

    def of(self, outputs: Mapping[str, Any], number: int) -> dict[str, Any]:
        """What the outputs of run `number` mean: in pixels of the picture, where one input takes pictures.

        Raises:
            InputError: the outputs do not fit the task.
        """
        extents = [(info, input_extents(self.recipe, info)) for info in self.session.inputs]
        pictures = [(info, extent) for info, extent in extents if extent is not None]
        if len(pictures) != 1:
            return self.after.apply(outputs)
        info, extent = pictures[0]
        spec = self.recipe.spec(info)
        paths = [path for name, path in self.entries if name in ("", info.name, info.native.name)]
        size = None
        if spec is not None and paths:
            size = picture_size(spec, paths[min(number, len(paths) - 1)])
        place = window(spec, size) if spec is not None and size is not None else None
        return self.after.apply(outputs, place, extent)


def meaning(preprocessing: Any, given: Any, session: Session, entries: Sequence[tuple[str, Path]]) -> Meaning | None:
    """The postprocessing that was given, else that of the preprocessing spec or of the stamp; None without any."""
    recipe = recorded(session.stamp.options if session.stamp else None, preprocessing) or Preprocessing()
    data = o.postprocessing(given)
    after = recipe.after if data is None else Postprocessing.load(data)
    return None if after is None else Meaning(after, recipe, session, entries)
