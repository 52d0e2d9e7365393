# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Custom ONNX ops: what a plugin says of an op that neither ONNX nor npukit defines.

A plugin is a Python file or module with a list `OPS` of `CustomOp`. It is read when the user names it (`--plugin` of
every verb, `use` in Python, the variable NPUKIT_PLUGINS), never because a model asks for it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from npukit.errors import NpukitError, UsageError, nearest

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

VARIABLE = "NPUKIT_PLUGINS"
"""Names of plugins, as `--plugin` takes them, with the separator of PATH between them: workers read them there."""
GROUP = "npukit.ops"
"""Entry points of this group give a plugin a name."""

_QTI = "qti.aisw::"  # the package of the QNN ops that npukit itself raises

Outputs = Sequence[tuple[str, Sequence[int]]]


@dataclass(frozen=True)
class CustomOp:
    """One op of a model's own domain.

    An op needs a `body`, or `infer` together with `lower` or `package`. The body, or where ONNX cannot say it
    `compute`, is the definition that everything is checked against: without one the source cannot be run, and a
    conversion is not verified.

    Attributes:
        domain: of the op, as the model imports it.
        name: its op type.
        body: its definition by other ops, an ONNX function in ONNX's text form (`onnx.parser`).
        infer: gives (dtype, shape) of every output, such as [("float32", (1, 8))], from the node, whose inputs know
            theirs; None where the body says it.
        lower: emits the QNN ops of a node, as the functions of `npukit.lowering.ops` do; None for those of the body.
        package: an op package that has an op of this name, which then is emitted as it is: attributes become its
            params, tensors are in the source's layout. The package must be registered on the device; npukit does not
            validate or run it. Raised to ONNX it is its body, or a node that `compute` runs.
        compute: its definition in Python, instead of a body: `compute(*inputs, **attributes)` gives the output, or one
            for each output. Inputs are arrays, None where left out; attributes are numbers, strings and lists of them;
            outputs have the dtypes and shapes that `infer` says.
        raises: how QNN ops that `lower` emitted become ONNX again, where they are of an op package: by
            "package::type", functions as those of `npukit.raising` are. They go before body and compute.
        plugin: which plugin it comes from; set when that is read.
    """

    domain: str
    name: str
    body: str = ""
    infer: Callable[[ir.Node], Outputs] | None = None
    lower: Callable[[Any, ir.Node], None] | None = None
    package: str = ""
    compute: Callable[..., Any] | None = None
    raises: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    plugin: str = ""

    @property
    def title(self) -> str:
        """How messages name it."""
        return f"{self.domain}::{self.name}"

    @property
    def expands(self) -> bool:
        """Whether the body stands in for the op everywhere."""
        return self.lower is None and not self.package

    @property
    def runs(self) -> bool:
        """Whether a source model with the op can be run here."""
        return bool(self.body) or self.compute is not None

    @functools.cached_property
    def function(self) -> onnx.FunctionProto | None:
        """The body as ONNX has it; None without one. Checked when the plugin is read."""
        import onnx

        return onnx.parser.parse_function(self.body) if self.body else None

    def broken(self, what: str) -> str:
        """A sentence on a fault of the plugin."""
        return f"the plugin {self.plugin} {what} for {self.title}"


def use(*names: str | os.PathLike[str]) -> list[CustomOp]:
    """Take in plugins, by file, module or entry point, for this process and the workers that it starts.

    Returns:
        the ops of all plugins in use.

    Raises:
        UsageError: a plugin cannot be read, holds what is no op, or defines an op that another one defines; the
            plugins in use stay as they were.

    Example:
        >>> ops = npukit.plugins.use("acme_ops.py")
        >>> result = npukit.convert("acme.onnx", random=1)
    """
    before = os.environ.get(VARIABLE)
    given = [str(Path(name).absolute()) if str(name).endswith(".py") else str(name) for name in names]
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*_named(), *given]))
    try:
        return list(_table(os.environ[VARIABLE]).values())
    except NpukitError:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
        raise


def find(domain: str, name: str) -> CustomOp | None:
    """The op as a plugin in use defines it. Raises UsageError as `use`."""
    named = os.environ.get(VARIABLE, "")
    return _table(named).get((domain, name)) if named else None


def find_raising(package: str, op_type: str) -> CustomOp | None:
    """The op whose plugin says how a QNN op of an op package becomes ONNX. Raises UsageError as `use`."""
    named = os.environ.get(VARIABLE, "")
    return _raising(named).get(f"{package}::{op_type}") if named else None


def ops() -> list[CustomOp]:
    """The ops of all plugins in use. Raises UsageError as `use`."""
    return list(_table(os.environ.get(VARIABLE, "")).values())


def titles() -> list[str]:
    """The plugins in use, without folders: what a stamp records."""
    return [Path(name).name for name in _named()]


def _named() -> list[str]:
    return [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]


@functools.lru_cache(maxsize=8)
def _table(named: str) -> dict[tuple[str, str], CustomOp]:
    table: dict[tuple[str, str], CustomOp] = {}
    for name in named.split(os.pathsep):
        for op in _read(name) if name else ():
            other = table.setdefault((op.domain, op.name), op)
            if other is not op:
                raise UsageError(
                    f"the plugins {other.plugin} and {op.plugin} both define {op.title}", where="--plugin",
                    hint="name one of them",
                )  # fmt: skip
    return table


@functools.lru_cache(maxsize=8)
def _raising(named: str) -> dict[str, CustomOp]:
    table: dict[str, CustomOp] = {}
    for op in _table(named).values():
        own = [f"{op.package}::{op.name}"] if op.package and op.runs else []
        for key in dict.fromkeys([*op.raises, *own]):
            other = table.setdefault(key, op)
            if other is not op:
                what = f"raises {key}, as {other.plugin} does for {other.title},"
                raise UsageError(op.broken(what), where="--plugin", hint="one of them is enough")
    return table


def _read(name: str) -> list[CustomOp]:
    title = Path(name).name
    try:
        found = _module(name)
        given = getattr(found, "OPS", None) if isinstance(found, ModuleType) else found
    except NpukitError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UsageError(
            f"the plugin cannot be imported: {type(error).__name__}: {error}", where=f"--plugin {title}"
        ) from error
    if not isinstance(given, list | tuple) or not all(isinstance(op, CustomOp) for op in given) or not given:
        raise UsageError(
            "the plugin has no list OPS of npukit.plugins.CustomOp", where=f"--plugin {title}",
            hint="see docs/guides/custom-ops.md",
        )  # fmt: skip
    ops = [replace(op, plugin=title) for op in given]
    for op in ops:
        if fault := _fault(op):
            raise UsageError(f"{op.title}: {fault}", where=f"--plugin {title}")
    return ops


def _module(name: str) -> Any:
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise UsageError("there is no such file", where=f"--plugin {name}")
        key = f"npukit_plugin_{Path(name).stem}"
        spec = importlib.util.spec_from_file_location(key, name)
        assert spec is not None and spec.loader is not None  # noqa: PT018
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module  # dataclasses of the plugin look themselves up there
        spec.loader.exec_module(module)
        return module
    known = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name in known:
        return known[name].load()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # a module that the plugin itself asks for
        raise UsageError(
            f"there is no plugin {name!r}: no entry point of the group {GROUP} and no module has this name",
            where="--plugin", hint=nearest(name, known) or "give the path of a .py file",
        ) from None  # fmt: skip


def _fault(op: CustomOp) -> str:
    """What is wrong with an op by itself; empty if nothing is."""
    import onnx

    if not op.name or not op.domain or op.domain == "ai.onnx":
        return "an op needs a name and a domain of its own"
    if any(schema.domain == op.domain and schema.name == op.name for schema in onnx.defs.get_all_schemas()):
        return "ONNX itself defines this op"
    if op.lower is not None and op.package:
        return "lower and package exclude one another"
    if op.body and op.compute is not None:
        return "body and compute exclude one another"
    if wrong := [key for key in op.raises if "::" not in key or key.startswith(_QTI)]:
        return f"raises names {wrong[0]!r}, which is no op of an op package: 'package::type' is"
    if not op.body:
        return "" if op.infer and not op.expands else "it needs a body, or infer together with lower or package"
    try:
        function = op.function
    except onnx.parser.ParseError as error:
        return f"the body is not an ONNX function: {' '.join(str(error).split())[:200]}"
    assert function is not None
    if (function.domain, function.name) != (op.domain, op.name):
        return f"the body defines {function.domain}::{function.name}"
    try:
        onnx.checker.check_function(function)
    except onnx.checker.ValidationError as error:
        return f"the body is not sound: {' '.join(str(error).split())[:200]}"
    return ""
