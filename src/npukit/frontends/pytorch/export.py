# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The side of the PyTorch front end that runs torch: a program becomes an ONNX file, and both are compared.

Files come here in a worker process (`export_file`), modules in memory in the caller's (`export_object`).
"""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from npukit.errors import Fault, MissingDependency, ModelError, NpukitError, UsageError
from npukit.frontends.exported import plain, write_samples
from npukit.frontends.pytorch import archive, compare, decompose, names, trees
from npukit.frontends.pytorch.kinds import EXPORT, SCRIPT

log = logging.getLogger(__name__)

OPSET = 23  # the newest that torch 2.13's exporter writes
SCRIPT_OPSET = 20  # of the older exporter, the only one for TorchScript


def export_file(
    path: Path, kind: str, output: Path, shapes: dict[str, tuple[int, ...]], allow_pickle: bool, run: bool
) -> list[str]:
    """Write the program in `path` as ONNX to `output`; gives notes.

    Raises:
        NpukitError: torch cannot read or export it; what it says is in the message.
    """
    torch = _torch()
    if kind == EXPORT:
        if not allow_pickle:
            _check_again(torch, path)
        program = load_program(torch, path)
        return export_program(program, output, shapes, run=run)
    if kind == SCRIPT:
        with _torch_errors("torch cannot read this TorchScript", path):
            module = torch.jit.load(str(path), map_location="cpu").eval()
        return _export_script(module, path, output, shapes, run=run)
    with _torch_errors(
        "torch cannot read this pickle", path, hint="is the module that defines its classes importable?"
    ):
        module = torch.load(path, map_location="cpu", weights_only=False)
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"it holds a {type(module).__name__}, not a torch.nn.Module", where=str(path))
    module = module.eval()
    feeds = _guess_inputs(module, list(inspect.signature(module.forward).parameters), shapes, path)
    with _torch_errors("torch.export cannot trace this module", path):
        program = torch.export.export(module, (), feeds)
    return export_program(program, output, {}, run=run)


def load_program(torch: Any, path: Path) -> Any:
    """The program of an archive, without its guards: those are Python source, and only check what inputs are like.

    Raises:
        ModelError: torch cannot read it.
    """
    with _torch_errors("torch cannot read this archive", path):
        reader = torch._C.PyTorchFileReader(str(path))
        programs = [name for name in reader.get_all_records() if name.startswith("models/") and name.endswith(".json")]
        for name in programs:
            trees.stand_in(torch, trees.named_types(reader.get_record(name)))
        del reader
        program = torch.export.load(str(path))
    if getattr(program, "_guards_code", None):
        program._guards_code = []
    return program


def export_object(
    model: Any,
    example_inputs: Any,
    dynamic_shapes: Any,
    output: Path,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    run: bool,
) -> list[str]:
    """Write a `torch.nn.Module` or `ExportedProgram` in memory as ONNX to `output`; gives notes.

    Raises:
        NpukitError: it is neither, inputs are missing, or it cannot be exported.
    """
    torch = _torch()
    if isinstance(model, torch.export.ExportedProgram):
        return export_program(model, output, shapes, run=run)
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError("save a ScriptModule (module.save('m.pt')) and convert the file", where="model")
    if not isinstance(model, torch.nn.Module):
        raise UsageError(
            f"a model is a path, a torch.nn.Module or an ExportedProgram, not {type(model).__name__}", where="model"
        )
    if example_inputs is None:
        raise UsageError(
            "a module says nothing of its inputs", where="example_inputs", hint="example_inputs=(tensor, ...) or a dict"
        )
    args, kwargs = _arguments(torch, example_inputs)
    training = model.training
    notes = ["the module was exported as after eval()"] if training else []
    try:
        model.eval()
        with _torch_errors("torch.export cannot trace this module", type(model).__name__):
            program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes)
    finally:
        model.train(training)
    return [*notes, *export_program(program, output, shapes, run=run)]


def export_program(program: Any, output: Path, shapes: Mapping[str, tuple[int, ...]], *, run: bool) -> list[str]:
    """Write an `ExportedProgram` as ONNX and compare the two."""
    torch = _torch()
    with _torch_errors("torch.onnx cannot export this program", output.stem):
        plain = decompose.decomposed(torch, program)
        made = torch.onnx.export(plain, dynamo=True, opset_version=OPSET, optimize=True, verbose=False)
    del plain
    model = made.model
    del made
    names.name_inputs(model, names.input_names(program))
    notes = names.name_outputs(model, names.output_names(torch, program))
    notes += names.widen_bfloat16(model)
    _save(model, output)
    del model
    notes.insert(0, f"exported by torch {torch.__version__}, opset {OPSET}")
    if run:
        feeds = _program_inputs(torch, program, shapes)
        if feeds is None:
            notes.append("PyTorch was not run: the archive has no example inputs of these shapes")
        else:
            args, kwargs = feeds
            notes.append(compare.against_onnx(torch, _runnable(program), args, kwargs, output))
            arrays = compare.arrays_of(torch, (args, kwargs))
            called = names.input_names(program)
            if len(called) == len(arrays) and write_samples(dict(zip(called, arrays, strict=True)), output.parent):
                notes.append("whole numbers to verify with are those of the example inputs, floats also drawn anew")
    return notes


def _save(model: Any, output: Path) -> None:
    ir.save(model, output, external_data=f"{output.name}.data")


def _runnable(program: Any) -> Any:
    try:
        return program.module(check_guards=False)
    except TypeError:  # before torch 2.9
        return program.module()


def _program_inputs(torch: Any, program: Any, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """Positional and keyword inputs at the shapes asked for, made from the archive's examples; None if it has none."""
    if not program.example_inputs:
        return None
    flat, tree = torch.utils._pytree.tree_flatten(program.example_inputs)
    order = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    if len(order) != len(flat):
        return None
    made = []
    for name, value in zip(order, flat, strict=True):
        shape = shapes.get(name)
        if isinstance(value, torch.Tensor) and shape is not None and tuple(value.shape) != tuple(shape):
            value = _like(torch, value, shape)
        made.append(value)
    args, kwargs = torch.utils._pytree.tree_unflatten(made, tree)
    return args, kwargs


def _like(torch: Any, example: Any, shape: Sequence[int]) -> Any:
    """Values as in `example`, drawn again at another shape."""
    if example.numel() == 0:
        return torch.zeros(tuple(shape), dtype=example.dtype)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(example.numel(), tuple(shape), generator=generator)
    return example.reshape(-1)[chosen]


# ---------------------------------------------------------------- TorchScript


def _export_script(
    module: Any, path: Path, output: Path, shapes: dict[str, tuple[int, ...]], *, run: bool
) -> list[str]:
    torch = _torch()
    arguments = [argument.name for argument in module.forward.schema.arguments[1:]]
    feeds = _guess_inputs(module, arguments, shapes, path)
    with torch.no_grad():
        given = module(*feeds.values())
    paths = list(_tensors_in(torch, given, path))
    called = _called(paths)
    if any(isinstance(key, str) for keys in paths for key in keys) or any(len(keys) > 1 for keys in paths):
        with _torch_errors("torch cannot trace what takes its outputs apart", path):
            module = _taken_apart(torch, module, paths, tuple(feeds.values()))
    kinds = ", ".join(f"{name} {str(value.dtype).removeprefix('torch.')}" for name, value in feeds.items())
    notes = [
        f"inputs are taken as {kinds}",
        f"outputs are called {', '.join(called)}: by their keys where forward gives a dict, else by their place",
    ]
    with _torch_errors("torch.onnx cannot export this TorchScript", path, hint="torch.export the module instead"):
        try:
            torch.onnx.export(
                module, tuple(feeds.values()), str(output), dynamo=False, opset_version=SCRIPT_OPSET,
                input_names=list(feeds), output_names=called,
            )  # fmt: skip
            notes.insert(0, f"exported by torch {torch.__version__}'s exporter for TorchScript, opset {SCRIPT_OPSET}")
        except Exception:
            log.debug("the exporter for TorchScript failed; its graph is taken through torch.export", exc_info=True)
            _export_script_graph(torch, module, feeds, called, output)
            notes.insert(0, f"exported by torch {torch.__version__} through torch.export, opset {OPSET}")
    if run:
        notes.append(compare.against_onnx(torch, module, tuple(feeds.values()), {}, output))
    return notes


def _tensors_in(
    torch: Any, value: Any, where: Path, keys: tuple[int | str, ...] = ()
) -> Iterator[tuple[int | str, ...]]:
    """Where in nested tuples, lists and dicts the tensors that forward gives are."""
    if isinstance(value, torch.Tensor):
        yield keys
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from _tensors_in(torch, item, where, (*keys, i))
    elif isinstance(value, dict) and all(isinstance(key, str) for key in value):
        for key, item in value.items():
            yield from _tensors_in(torch, item, where, (*keys, key))
    else:
        raise ModelError(
            f"its forward gives a {type(value).__name__}; tensors, and tuples, lists and dicts of them, are exported",
            where=str(where),
            hint="save the module with torch.export instead",
        )


def _called(paths: list[tuple[int | str, ...]]) -> list[str]:
    """Names of outputs: `logits`, `parts_0`; what has no key is `output`, or `output_1`."""
    found = []
    for keys in paths:
        plain = [] if any(isinstance(key, str) for key in keys) else ["output"]
        found.append("_".join([*plain, *(re.sub(r"\s+", "_", str(key)) for key in keys)]))
    return ["output"] if paths == [(0,)] else found


def _taken_apart(torch: Any, module: Any, paths: list[tuple[int | str, ...]], feeds: tuple[Any, ...]) -> Any:
    """A module that gives the tensors of `module` as one tuple; `module` keeps its control flow."""

    class Flat(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *args: Any) -> Any:
            given = self.inner(*args)
            found = []
            for keys in paths:
                value = given
                for key in keys:
                    value = value[key]
                found.append(value)
            return tuple(found)

    return torch.jit.trace(Flat().eval(), feeds, check_trace=False)


def _export_script_graph(torch: Any, module: Any, feeds: dict[str, Any], called: list[str], output: Path) -> None:
    """What the older exporter does not know of TorchScript, through torch.export's converter."""
    from torch._export.converter import TS2EPConverter

    program = TS2EPConverter(module, tuple(feeds.values())).convert()
    model = torch.onnx.export(program, dynamo=True, opset_version=OPSET, optimize=True, verbose=False).model
    names.name_inputs(model, list(feeds))
    names.name_outputs(model, called)
    for value, feed in zip(model.graph.inputs, feeds.values(), strict=True):
        value.shape = ir.Shape(feed.shape)
    _save(model, output)


def _guess_inputs(module: Any, arguments: list[str], shapes: dict[str, tuple[int, ...]], path: Path) -> dict[str, Any]:
    """Inputs by name at the given shapes; what is not float is found by trying, since the file does not say it."""
    torch = _torch()
    missing = [name for name in arguments if name not in shapes]
    unknown = [name for name in shapes if name not in arguments]
    if missing or unknown:
        faults = [
            Fault(f"the shape of the input {name!r} is not known", hint=f"--input-shape {name}=...") for name in missing
        ]
        faults += [Fault(f"there is no input {name!r}", hint=f"its inputs: {', '.join(arguments)}") for name in unknown]
        raise ModelError("such a file does not say the shapes of its inputs", where=str(path), faults=faults)
    generator = torch.Generator().manual_seed(0)
    reason: Exception | None = None
    weight = next(iter(module.parameters()), None)
    floating = weight.dtype if weight is not None and weight.dtype.is_floating_point else torch.float32
    for kinds in itertools.islice(itertools.product((floating, torch.int64), repeat=len(arguments)), 16):
        feeds = {
            name: torch.randn(shapes[name], generator=generator).to(kind)
            if kind.is_floating_point
            else torch.zeros(shapes[name], dtype=kind)
            for name, kind in zip(arguments, kinds, strict=True)
        }
        try:
            with torch.no_grad():
                module(*feeds.values())
        except Exception as error:
            reason = reason or error
            continue
        return feeds
    raise ModelError(
        f"the module does not take inputs of these shapes: {_first_line(reason)}", where=str(path), hint="--input-shape"
    )


# ---------------------------------------------------------------- torch itself


def _torch() -> Any:
    try:
        import torch
        import torch.export
    except ImportError as error:
        raise MissingDependency(
            f"a PyTorch model is read by torch, which cannot be imported ({error})", hint="pip install 'npukit[torch]'"
        ) from None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # warns of every package it has no use for
    return torch


def _check_again(torch: Any, path: Path) -> None:
    """Check the members as torch's own reader gives them: two readers may see two archives in one file."""
    with _torch_errors("torch cannot read this archive", path):
        reader = torch._C.PyTorchFileReader(str(path))
        members = list(reader.get_all_records())
    archive.check_members(path, members, reader.get_record, allow_pickle=False)


@contextlib.contextmanager
def _torch_errors(what: str, where: Path | str, hint: str = "") -> Iterator[None]:
    """What torch raises becomes one sentence; its warnings and prints go to the log."""
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            warnings.simplefilter("ignore")
            yield
    except NpukitError:
        raise
    except Exception as error:
        log.debug("torch failed", exc_info=True)
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if "weights_only" in str(error).lower():
            what, hint = (
                "a pickle in it is more than tensors, so it is not read",
                "save it again with torch.export.save; or --allow-pickle, if you trust the file as a program",
            )
        raise ModelError(f"{what}: {type(cause).__name__}: {_first_line(cause)}", where=str(where), hint=hint) from None
    finally:
        for line in printed.getvalue().splitlines():
            log.debug("torch: %s", line)


def _first_line(error: BaseException | None) -> str:
    lines = [line.strip() for line in plain(str(error)).splitlines() if line.strip()]
    return lines[0][:400] if lines else type(error).__name__


def _arguments(torch: Any, example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword inputs; numpy arrays become tensors."""
    import numpy as np

    def tensor(value: Any) -> Any:
        return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value

    if isinstance(example_inputs, Mapping):
        return (), {name: tensor(value) for name, value in example_inputs.items()}
    if isinstance(example_inputs, tuple | list):
        return tuple(tensor(value) for value in example_inputs), {}
    return (tensor(example_inputs),), {}
