# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""How a verb's options are declared, once: the command line, Python and the stamp read the same dataclass.

A verb is a frozen dataclass of options and a function. `arg` and `opt` put what the command line needs to know
into the field's metadata; `verb` lets the function be called with the dataclass or with plain arguments.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from npukit.errors import UsageError, nearest

OPTION = "npukit.option"


class Result(Protocol):
    """What every verb returns."""

    @property
    def exit_code(self) -> int:
        """0, or 1 where a check did not hold."""

    def to_json(self) -> dict[str, Any]:
        """The result as one JSON-ready object."""

    def to_text(self) -> str:
        """The result as plain lines for a console."""


@dataclasses.dataclass(frozen=True)
class OptionSpec:
    """What the command line needs to know about one field.

    Attributes:
        help: one line.
        flags: option names; empty for `--field-name`.
        positional: whether it is an argument instead of an option.
        many: whether it may be given several times.
        parse: turns the text (or the list of texts, with `many`) into the field's value; errors are NpukitErrors.
        metavar: what stands for the value in the help.
        choices: the values allowed, or empty for any.
        hidden: left out of the stamp and of the JSON echo of options.
        python: an object in memory, which the command line does not have.
    """

    help: str
    flags: tuple[str, ...] = ()
    positional: bool = False
    many: bool = False
    parse: Callable[[Any], Any] | None = None
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    hidden: bool = False
    python: bool = False


def arg(
    help: str,
    *,
    default: Any = dataclasses.MISSING,
    many: bool = False,
    parse: Callable[[Any], Any] | None = Path,
    metavar: str | None = None,
) -> Any:
    """Declare a positional argument; a path unless `parse` says otherwise."""
    if many and parse is Path:
        parse = paths
    spec = OptionSpec(help, positional=True, many=many, parse=parse, metavar=metavar)
    return dataclasses.field(default=default, metadata={OPTION: spec})


def opt(
    default: Any,
    help: str,
    *flags: str,
    many: bool = False,
    parse: Callable[[Any], Any] | None = None,
    metavar: str | None = None,
    choices: Sequence[str] = (),
    hidden: bool = False,
    python: bool = False,
) -> Any:
    """Declare an option. Mutable defaults (a dict) are copied for each instance."""
    spec = OptionSpec(help, flags, False, many, parse, metavar, tuple(choices), hidden or python, python)
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata={OPTION: spec})
    return dataclasses.field(default=default, metadata={OPTION: spec})


def like(options: type, name: str) -> Any:
    """Declare a field as `options` declares its field `name`."""
    field: dataclasses.Field[Any] = options.__dataclass_fields__[name]  # type: ignore[attr-defined]
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory, metadata=field.metadata)
    return dataclasses.field(default=field.default, metadata=field.metadata)


def specs(options: type) -> dict[str, tuple[dataclasses.Field[Any], OptionSpec]]:
    """Field and option of each declared field of an options dataclass, in order."""
    return {f.name: (f, f.metadata[OPTION]) for f in dataclasses.fields(options) if OPTION in f.metadata}


def echo(options: Any) -> dict[str, Any]:
    """The options that differ from their defaults, JSON-ready and without paths: what the stamp records."""
    found: dict[str, Any] = {}
    for name, (field, spec) in specs(type(options)).items():
        value = getattr(options, name)
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if spec.hidden or spec.positional or value == default or spec.parse in (Path, paths):
            continue
        found[name] = jsonable(value)
    return found


def jsonable(value: Any) -> Any:
    """`value` with tuples as lists, paths as names and dataclasses as objects."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value


R = TypeVar("R")


def verb(options: type) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Let a verb's function be called as `f(OPTIONS)` or as `f(argument, ..., option=value, ...)`.

    Paths may be given as strings. Unknown option names raise a `UsageError` with the nearest match.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        @functools.wraps(function)
        def call(*args: Any, **fields: Any) -> R:
            if len(args) == 1 and isinstance(args[0], options):
                chosen: Any = args[0]
                chosen = dataclasses.replace(chosen, **fields) if fields else chosen
            else:
                chosen = _build(options, function.__name__, args, fields)
            return function(chosen)

        call.__signature__ = _signature(options)  # type: ignore[attr-defined]
        return call

    return decorate


def _signature(options: type) -> inspect.Signature:
    """What `help` shows of a verb: the fields of its options as parameters."""
    parameters = []
    for name, (field, _) in specs(options).items():
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        default = inspect.Parameter.empty if default is dataclasses.MISSING else default
        parameters.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default))
    return inspect.Signature(parameters)


def _build(options: type, name: str, args: tuple[Any, ...], fields: dict[str, Any]) -> Any:
    known = specs(options)
    names = list(known)
    if len(args) > len(names):
        raise UsageError(f"{name}() takes at most {len(names)} arguments, got {len(args)}")
    values = dict(zip(names, args, strict=False))
    for key, value in fields.items():
        if key not in known:
            raise UsageError(f"{name}() has no option {key!r}", hint=nearest(key, names))
        if key in values:
            raise UsageError(f"{name}() got {key!r} twice")
        values[key] = value
    missing = [n for n, (f, s) in known.items() if n not in values and _required(f)]
    if missing:
        raise UsageError(f"{name}() needs {', '.join(missing)}")
    return options(**{key: _coerce(known[key][1], key, value) for key, value in values.items()})


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _coerce(spec: OptionSpec, name: str, value: Any) -> Any:
    """Strings and paths become what the command line would make of them; other values stay as they are."""
    if spec.choices and value is not None and str(value) not in spec.choices:
        raise UsageError(f"{value!r} is not one of {', '.join(spec.choices)}", where=name)
    if spec.parse is None or value is None:
        return value
    if spec.many:
        if isinstance(value, str | Path):
            value = [value]
        if isinstance(value, list | tuple) and all(isinstance(v, str | Path) for v in value):
            return spec.parse([str(v) for v in value])
        return value
    return spec.parse(str(value)) if isinstance(value, str | Path) else value


def paths(texts: Sequence[str]) -> tuple[Path, ...]:
    """Each text as a path."""
    return tuple(Path(t) for t in texts)


def strings(texts: Sequence[str]) -> tuple[str, ...]:
    """The texts as a tuple; commas separate several in one."""
    return tuple(part for text in texts for part in text.split(",") if part)


def shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`x=1,3,224,224` (also `1x3x224x224`) as {"x": (1, 3, 224, 224)}."""
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, value = _pair(text, "NAME=1,3,224,224")
        parts = [p for p in value.strip("[]() ").replace("x", ",").split(",") if p.strip()]
        if not all(p.strip().isdigit() for p in parts):
            raise UsageError(f"{text!r} is not a shape", hint="write NAME=1,3,224,224 with positive whole numbers")
        found[name] = tuple(int(p) for p in parts)
    return found


def symbols(texts: Sequence[str]) -> dict[str, int]:
    """`h=224` as {"h": 224}."""
    found: dict[str, int] = {}
    for text in texts:
        name, value = _pair(text, "NAME=224")
        if not value.isdigit():
            raise UsageError(f"{text!r}: {value!r} is not a whole number", hint="write NAME=224")
        found[name] = int(value)
    return found


def ranges(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """`ids=0:30521` as {"ids": (0.0, 30521.0)}; the bounds are inclusive."""
    found: dict[str, tuple[float, float]] = {}
    for text in texts:
        name, value = _pair(text, "NAME=LO:HI")
        low, colon, high = value.partition(":")
        try:
            bounds = (float(low), float(high))
        except ValueError:
            bounds = (1.0, 0.0)
        if not colon or not bounds[0] <= bounds[1]:
            raise UsageError(f"{text!r} is not a range", hint="write NAME=LO:HI with LO <= HI, as in ids=0:30521")
        found[name] = bounds
    return found


def files(texts: Sequence[str]) -> tuple[tuple[str, Path], ...]:
    """`x=FILE`, or FILE alone, as (("x", FILE), ("", FILE)); a name may come several times (one sample each)."""
    found = []
    for text in texts:
        name, equals, value = text.partition("=")
        found.append((name, Path(value)) if equals else ("", Path(text)))
    return tuple(found)


def preprocessing(spec: Any) -> dict[str, Any] | None:
    """A preprocessing spec (a YAML file, a dict or a `Preprocessing`) as plain data, checked; None stays None."""
    if spec is None:  # most often: without numpy, the worker is started earlier
        return None
    from npukit.analysis.preprocess import Preprocessing

    return Preprocessing.load(spec).to_dict()


def postprocessing(spec: Any) -> dict[str, Any] | None:
    """A postprocessing spec (a YAML file, a dict or a `Postprocessing`) as plain data, checked; None stays None."""
    if spec is None:
        return None
    from npukit.analysis.postprocess import Postprocessing

    return Postprocessing.load(spec).to_dict()


def io_config(config: Any) -> dict[str, Any] | None:
    """An I/O config (a YAML file, its content, or an `IoConfig`) as plain data, checked; None stays None."""
    if config is None:  # most often; the imports below bring the whole ONNX front end
        return None
    from npukit.analysis.preprocess_spec import load_yaml
    from npukit.frontends.onnx.io_config import IoConfig

    if isinstance(config, IoConfig):
        return config.to_dict()
    named = str(config) if isinstance(config, str | Path) else ""
    return IoConfig.load(load_yaml(Path(config)) if named else config, named).to_dict()


def accuracy_target(item: str) -> tuple[str, float]:
    """`cosine>=0.995`, `sqnr>=30`, `top1>=0.98`, `module:function>=VALUE`: the metric and the least value.

    Raises:
        UsageError: it is not of this form, or the metric is unknown.
    """
    name, sign, value = item.partition(">=")
    try:
        least = float(value)
    except ValueError:
        sign = ""
        least = 0.0
    if not sign:
        raise UsageError(f"{item!r} is not a target", hint="write METRIC>=VALUE, as in cosine>=0.995")
    name = name.strip()
    if ":" in name:
        return name, least
    from npukit.quantization.metrics import METRICS

    if name not in METRICS:
        raise UsageError(f"there is no metric {name!r}", hint=nearest(name, METRICS))
    return name, least


def _pair(text: str, form: str) -> tuple[str, str]:
    # Tensor names may hold "=" only in theory; values never do, so the last one separates.
    name, equals, value = text.rpartition("=")
    if not equals or not name or not value:
        raise UsageError(f"{text!r} is not NAME=VALUE", hint=f"write {form}")
    return name, value


def size(text: str) -> int:
    """`2GB`, `500M`, `1073741824` as bytes (powers of 1000; KiB, MiB, GiB of 1024)."""
    units = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30}
    number = text.strip().lower().removesuffix("b")
    digits = number.rstrip("kmgti")
    try:
        return int(float(digits) * units[number[len(digits) :]])
    except (ValueError, KeyError):
        raise UsageError(f"{text!r} is not a size", hint="write 2GB, 500M or a number of bytes") from None
