# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The one adapter from a verb's options dataclass to a typer command.

typer builds a command from a function's signature, so the adapter writes that signature: one parameter a field,
plus the options that every verb has. Nothing else in npukit knows typer's types.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from npukit.errors import NpukitError, UsageError, nearest
from npukit.verbs.options import OptionSpec, opt, specs


@dataclasses.dataclass(frozen=True)
class Common:
    """The options that every verb takes."""

    json: bool = opt(False, "Print exactly one JSON value on stdout.", "--json")
    quiet: bool = opt(False, "Print nothing but errors.", "--quiet", "-q")
    verbose: int = opt(0, "Log more on stderr; twice for debugging.", "--verbose", "-v")
    log_file: Path | None = opt(None, "Write the whole log to this file.", "--log-file", metavar="FILE", parse=Path)
    qnn_lib_dir: Path | None = opt(
        None, "Take Qualcomm's libraries from this folder first.", "--qnn-lib-dir", metavar="DIR", parse=Path
    )
    plugin: tuple[str, ...] = opt(
        (), "Python file, module or entry point that defines ops of the model; repeatable.", many=True,
        metavar="FILE|NAME",
    )  # fmt: skip


def build(name: str, options: type, run: Callable[[Any, Common], None]) -> typer.Typer:
    """A typer app with the one command `name`, which parses its options and calls `run(options, common)`."""
    fields = {key: pair for key, pair in {**specs(options), **specs(Common)}.items() if not pair[1].python}
    hints = {**typing.get_type_hints(options), **typing.get_type_hints(Common)}
    parameters = [
        inspect.Parameter(
            key,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(field, spec),
            annotation=Annotated[_type(hints[key], spec), _declaration(key, spec)],
        )
        for key, (field, spec) in fields.items()
    ]

    def command(**values: Any) -> None:
        parsed = {key: _parse(key, spec, values[key]) for key, (field, spec) in fields.items() if _given(values[key])}
        shared = specs(Common)
        run(
            options(**{k: v for k, v in parsed.items() if k not in shared}),
            Common(**{k: v for k, v in parsed.items() if k in shared}),
        )

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = options.__doc__
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command(name, help=_help(options))(command)
    return app


def _help(options: type) -> str:
    """The class docstring up to its attribute list, which the options themselves explain."""
    return inspect.cleandoc(options.__doc__ or "").partition("\n\nAttributes:")[0]


def _type(hint: Any, spec: OptionSpec) -> Any:
    """What typer should convert to: flags, numbers, or text that `spec.parse` reads."""
    if spec.many:
        return list[str]
    plain = [t for t in typing.get_args(hint) if t is not types.NoneType] if typing.get_args(hint) else [hint]
    base = plain[0] if len(plain) == 1 and plain[0] in (bool, int, float) and spec.parse is None else str
    optional = hint is not base and types.NoneType in typing.get_args(hint)
    return base | None if optional or (base is str and not spec.positional) else base


def _default(field: dataclasses.Field[Any], spec: OptionSpec) -> Any:
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    if required:
        return inspect.Parameter.empty
    if spec.many:
        return []
    # What `parse` reads, and what is not plain, keeps its default in the dataclass; None means "not given".
    return field.default if spec.parse is None and isinstance(field.default, str | int | float) else None


def _declaration(name: str, spec: OptionSpec) -> Any:
    if spec.positional:
        return typer.Argument(help=spec.help, metavar=spec.metavar or name.upper(), show_default=False)
    flags = spec.flags or (f"--{name.replace('_', '-')}",)
    metavar = spec.metavar or ("|".join(spec.choices) if spec.choices else None)
    extra: dict[str, Any] = {"count": True} if name == "verbose" else {}
    return typer.Option(*flags, help=spec.help, metavar=metavar, show_default=name != "verbose", **extra)


def _given(value: Any) -> bool:
    return value is not None and value != []


def _parse(name: str, spec: OptionSpec, value: Any) -> Any:
    where = name.upper() if spec.positional else (spec.flags or (f"--{name.replace('_', '-')}",))[0]
    if spec.choices:
        for one in value if spec.many else [value]:
            if str(one) not in spec.choices:
                raise UsageError(f"{one!r} is not a choice", where=where, hint=nearest(str(one), spec.choices))
    if spec.parse is None:
        return tuple(value) if spec.many else value
    try:
        return spec.parse(value)
    except NpukitError as error:
        error.where = error.where or where
        raise
