# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What calibration samples say of a float graph's tensors: it is raised, run, and every tensor observed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from npukit.errors import InputError
from npukit.qnn.graph import Array, Graph, Tensor
from npukit.quantization.masking import Peaks, softmax_inputs, softmax_only
from npukit.quantization.observers import ChannelObserver, Observer
from npukit.quantization.roles import Groups, activations, same_values
from npukit.quantization.rounding import Moments
from npukit.quantization.simulation import Simulation, native_feeds

_AT_ONCE = 512 << 20  # bytes of activations fetched from one run; more are fetched by running again
_THREADS = 2
_LARGE = 1 << 15  # elements that are worth a thread
_COUNTED = 1 << 15  # elements of an array that a histogram counts; its least, largest and mean see all
_STRIDES = (1, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)


class Calibration:
    """Observers of a float graph's activations; memory grows with the tensors, not with the samples.

    Only what decides an encoding is fetched and observed: where a convolution feeds a Relu alone, ONNX Runtime computes
    them as one.

    Args:
        graph: floats held as FLOAT_32.
        groups: tensors that share an encoding; None for those of the graph itself.
        channels: tensors [.., C] of which each channel's mean, power and reach are wanted too.
        moments: second moments of inputs of ops with weights, to be fed too.
        bins: of each histogram.
        threads: of ONNX Runtime.

    Attributes:
        graph: as given.
        groups: as given.
        observers: by the name of a tensor that decides an encoding; see `observer` for others.
        samples: how many were taken in.
        peaks: the least of the rows' largest values of each input of a Softmax.
    """

    def __init__(
        self,
        graph: Graph,
        groups: Groups | None = None,
        *,
        channels: Sequence[Tensor] = (),
        moments: Moments | None = None,
        bins: int = 2048,
        threads: int | None = None,
    ) -> None:
        self.graph, self.moments = graph, moments
        self.groups = groups or Groups(graph)
        self._same = same_values(graph)
        deciding = self.groups.all_deciding()
        self.observers = {t.name: Observer(bins, stride=_stride(t.shape)) for t in deciding}
        self.channels = {tensor.name: ChannelObserver(tensor.shape[-1]) for tensor in channels}
        self.peaks = {name: Peaks(axis) for name, axis in softmax_inputs(graph).items()}
        self._masked = softmax_only(graph)
        self.samples = 0
        wanted = {*self.observers, *self.channels, *self.peaks, *(moments.tensors if moments is not None else ())}
        self._inputs = wanted.intersection(tensor.name for tensor in graph.inputs)
        inner = [t for t in activations(graph) if t.name in wanted and t.name not in self._inputs]
        self._simulation: Simulation | None = Simulation(graph, "float", fetch=inner, threads=threads)
        self._rounds = _rounds(inner)

    def end(self) -> None:
        """No more samples will come: let ONNX Runtime's memory go."""
        self._simulation = None

    def observer(self, name: str) -> Observer | None:
        """What was seen of a tensor, or of the same values in another order; None where it decides nothing."""
        return self.observers.get(name) or self.observers.get(self._same.get(name, ""))

    def update(self, sample: Mapping[str, Array]) -> None:
        """Take in one sample: arrays by source name.

        Raises:
            InputError: NaN in a tensor, or infinity where it is no mask of a Softmax; the first in the order of the
                graph is named.
        """
        assert self._simulation is not None
        feeds = native_feeds(self.graph, sample, "float")
        inputs = {name: array for name, array in feeds.items() if name in self._inputs}
        with ThreadPoolExecutor(_THREADS) as pool:
            self._observe_all(inputs, pool)
            for names in self._rounds:
                self._observe_all(self._simulation.run(feeds, names), pool)
        self.samples += 1
        for name, seen in self.observers.items():
            if seen.nans or (seen.infs and name not in self._masked):
                raise InputError(
                    f"{'NaN' if seen.nans else 'an infinity'} in tensor {name!r}",
                    where=f"calibration sample {self.samples}",
                    hint="look at this sample; the model makes such values of it in float already",
                )

    def _observe_all(self, arrays: Mapping[str, Array], pool: ThreadPoolExecutor) -> None:
        """Large arrays in threads, as numpy lets go of the interpreter in its loops; small ones are mostly Python."""
        large = sorted((n for n, a in arrays.items() if a.size >= _LARGE), key=lambda n: -arrays[n].size)
        pending = [pool.submit(self._observe, name, arrays[name]) for name in large]
        for name, array in arrays.items():
            if array.size < _LARGE:
                self._observe(name, array)
        for future in pending:
            future.result()

    def _observe(self, name: str, array: Array) -> None:
        if name in self.observers:
            self.observers[name].update(array)
        if name in self.channels:
            self.channels[name].update(array)
        if name in self.peaks:
            self.peaks[name].update(array)
        if self.moments is not None:
            self.moments.update(name, array)

    def state(self) -> dict[str, Array]:
        """Everything seen so far, for `restore`."""
        found: dict[str, Array] = {"samples": np.array(self.samples)}
        found["names"] = np.array([*self.observers, *self.channels])
        found["peaks"] = np.array([(peaks.least, peaks.greatest) for peaks in self.peaks.values()])
        kinds: tuple[tuple[str, Mapping[str, Any]], ...] = (("o", self.observers), ("c", self.channels))
        for prefix, table in kinds:
            for index, observer in enumerate(table.values()):
                found.update({f"{prefix}{index}/{key}": value for key, value in observer.to_arrays().items()})
        if self.moments is not None:
            found.update({f"m/{key}": value for key, value in self.moments.state().items()})
        return found

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on where `state` was taken; of the same graph and options.

        Raises:
            InputError: other tensors were observed then.
        """
        if state["names"].tolist() != [*self.observers, *self.channels]:
            raise InputError("this is not the saved state of this calibration")
        grouped: dict[str, dict[str, Array]] = {}
        for key, value in state.items():
            owner, _, part = key.partition("/")
            grouped.setdefault(owner, {})[part] = value
        samples = int(state["samples"])
        observers = {name: Observer.from_arrays(grouped[f"o{index}"]) for index, name in enumerate(self.observers)}
        channels = {name: ChannelObserver.from_arrays(grouped[f"c{index}"]) for index, name in enumerate(self.channels)}
        if self.moments is not None:
            self.moments.restore(grouped["m"])
        for peaks, (least, greatest) in zip(self.peaks.values(), state["peaks"], strict=True):
            peaks.least, peaks.greatest = float(least), float(greatest)
        self.samples, self.observers, self.channels = samples, observers, channels


class ChannelPass:
    """Channel statistics of some tensors [.., C] of a float graph, and of nothing else.

    Attributes:
        channels: by tensor name.
    """

    def __init__(self, graph: Graph, tensors: Sequence[Tensor], threads: int | None = None) -> None:
        self._graph = graph
        self.channels = {tensor.name: ChannelObserver(tensor.shape[-1]) for tensor in tensors}
        inputs = {tensor.name for tensor in graph.inputs}
        inner = [tensor for tensor in tensors if tensor.name not in inputs]
        self._simulation = Simulation(graph, "float", fetch=inner, threads=threads)
        self._rounds = _rounds(inner)

    def update(self, sample: Mapping[str, Array]) -> None:
        """Take in one sample: arrays by source name."""
        feeds = native_feeds(self._graph, sample, "float")
        for arrays in (feeds, *(self._simulation.run(feeds, names) for names in self._rounds)):
            for name, array in arrays.items():
                if name in self.channels:
                    self.channels[name].update(array)


def _stride(shape: Sequence[int]) -> int:
    """Every which element a histogram counts: a prime that divides no extent, so that all channels have their turn."""
    wanted = max(1.0, math.prod(shape) / _COUNTED)
    fit = [n for n in _STRIDES if n == 1 or all(extent % n for extent in shape)]
    return min(fit, key=lambda n: abs(math.log(n / wanted)))


def _rounds(tensors: Sequence[Tensor]) -> list[list[str]]:
    """Tensor names, so many at once as their arrays take _AT_ONCE bytes."""
    rounds: list[list[str]] = []
    size = _AT_ONCE
    for tensor in tensors:
        if size + tensor.nbytes > _AT_ONCE:
            rounds.append([])
            size = 0
        rounds[-1].append(tensor.name)
        size += tensor.nbytes
    return rounds
