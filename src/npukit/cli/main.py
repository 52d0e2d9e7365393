# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The `npukit` command: finds the verb, runs it, turns its result or error into output and an exit code.

Exit codes: 0 done; 1 a check did not hold; 2 bad use or bad input; 3 a native library, device or extra is missing,
failed or died; 4 a fault in npukit itself; 130 Ctrl-C.
"""

from __future__ import annotations

import errno
import importlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from typing import Any

import typer
import typer.core
import typer.main

import npukit
from npukit.cli import options as adapter
from npukit.errors import NpukitError, UsageError, nearest
from npukit.files import os_error
from npukit.verbs.options import Result

log = logging.getLogger(__name__)

# Verb -> (module, options class, function, help). Modules are imported when their verb is used.
Table = dict[str, tuple[str, str, str, str]]

VERBS: Table = {
    "convert": ("npukit.verbs.convert", "ConvertOptions", "convert", "Convert a model to a DLC and verify it."),
    "quantize": ("npukit.verbs.quantize", "QuantizeOptions", "quantize", "Quantize a model with calibration data."),
    "lint": ("npukit.verbs.lint", "LintOptions", "lint", "Show what stands in the way of a conversion."),
    "compile": ("npukit.verbs.compile", "CompileOptions", "compile", "Compile a model for a chip."),
    "run": ("npukit.verbs.run", "RunOptions", "run", "Run a model on inputs and save its outputs."),
    "verify": ("npukit.verbs.verify", "VerifyOptions", "verify", "Compare a model's outputs with a reference's."),
    "bench": ("npukit.verbs.bench", "BenchOptions", "bench", "Measure how long models take to load and to run."),
    "inspect": ("npukit.verbs.inspect", "InspectOptions", "inspect", "Show what a model or artifact holds."),
    "diff": ("npukit.verbs.diff", "DiffOptions", "diff", "Show what differs between two models or artifacts."),
    "encodings": (
        "npukit.verbs.encodings",
        "EncodingsOptions",
        "encodings",
        "Show, check, convert and compare encodings files.",
    ),
    "export": ("npukit.verbs.export", "ExportOptions", "export", "Turn a DLC or model library into an ONNX model."),
    "doctor": ("npukit.verbs.doctor", "DoctorOptions", "doctor", "Show the libraries found and what works here."),
    "targets": ("npukit.verbs.targets", "TargetsOptions", "targets", "List the chips that npukit knows."),
    "libs": ("npukit.verbs.libs", "LibsOptions", "libs", "List or add versions of Qualcomm's libraries."),
}
POLICY: Table = {
    "export": ("npukit.policies.export_verb", "ExportOptions", "export", "Make a policy folder from a checkpoint."),
    "run": ("npukit.policies.run_verb", "RunOptions", "run", "Run a policy on recorded observations."),
    "attach": (
        "npukit.policies.attach_verb",
        "AttachOptions",
        "attach",
        "Add models compiled for an Ascend chip to a policy.",
    ),
    "verify": (
        "npukit.policies.verify_verb",
        "VerifyOptions",
        "verify",
        "Compare a policy with its checkpoint or elsewhere.",
    ),
    "eval": ("npukit.sim.eval_verb", "EvalOptions", "evaluate", "Evaluate a policy in closed loop."),
    "serve": ("npukit.serving.serve_verb", "ServeOptions", "serve", "Serve a policy to robots over a web socket."),
}
GROUPS: dict[str, tuple[Table, str]] = {
    "policy": (POLICY, "Robot policies: export, attach, run, verify, eval, serve."),
}

_ClickError: type[Exception] = typer.BadParameter.__mro__[2]  # click's base class, vendored by newer typers


class _Done(Exception):
    """Carries a verb's exit code out of typer."""

    def __init__(self, code: int) -> None:
        self.code = code


class LazyGroup(typer.core.TyperGroup):
    """A command group that imports a verb's module only when that verb is used."""

    table: Table = VERBS
    groups: dict[str, tuple[Table, str]] = GROUPS

    def list_commands(self, ctx: Any) -> list[str]:
        """All verbs, in the order of the table."""
        return [*self.table, *self.groups]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The verb's command, built from its options dataclass, or a group's; None when there is neither."""
        if cmd_name in self.groups:
            return _group(cmd_name, *self.groups[cmd_name])
        if cmd_name not in self.table:
            return None
        module_name, options_name, function_name, _ = self.table[cmd_name]
        module = importlib.import_module(module_name)
        function = getattr(module, function_name)

        def run(options: Any, common: adapter.Common) -> None:
            raise _Done(execute(function, options, common))

        command = typer.main.get_command(adapter.build(cmd_name, getattr(module, options_name), run))
        command.name = cmd_name
        return command

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """As click's; without a verb the help is shown."""
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As click's, with the nearest verb for an unknown one."""
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-"):
            raise UsageError(f"there is no verb {args[0]!r}", hint=nearest(args[0], names))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the verbs from the table, so that the help imports none of them."""
        with formatter.section("Verbs"):
            rows = {name: row[3] for name, row in self.table.items()}
            formatter.write_dl([*rows.items(), *((name, text) for name, (_, text) in self.groups.items())])


def _group(name: str, table: Table, text: str) -> Any:
    """The command of a group of verbs."""
    kind = type("LazyGroup", (LazyGroup,), {"table": table, "groups": {}})
    return kind(name=name, help=text, rich_markup_mode=None)


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    invoke_without_command=True,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(help="Take a trained network to an NPU and prove that it still works.")
def _root(
    version: bool = typer.Option(False, "--version", help="Show the versions of npukit and of Qualcomm's libraries."),
) -> None:
    if version:
        from npukit.verbs.doctor import version_line

        typer.echo(version_line())
        raise typer.Exit(0)


def execute(function: Any, options: Any, common: adapter.Common) -> int:
    """Run a verb's function, print its result as `common` asks, and return the exit code."""
    from npukit.cli import console

    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # see npukit.__main__: now there is what to clean up
    with console.session(common):
        result: Result = function(options)
    if common.json:
        emit_json(result.to_json())
    elif not common.quiet:
        text = result.to_text()
        if text:
            typer.echo(text)
    return result.exit_code


def emit_json(value: Any) -> None:
    """Print one strict JSON value on stdout."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False, default=str))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; never raises."""
    args = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in args
    try:
        code = app(args=args, prog_name="npukit", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except _Done as done:
        return _flush(done.code)
    except NpukitError as error:
        log.debug("stopped", exc_info=True)
        return _report(error, as_json)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("npukit: interrupted", err=True)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`npukit ... | head`); Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except SystemExit as error:
        return int(error.code or 0) if isinstance(error.code, int | None) else 2
    except _ClickError as error:
        return _report(_usage(error), as_json)
    except MemoryError:
        return _report(NpukitError("out of memory", hint="a smaller model or batch, or a machine with more"), as_json)
    except OSError as error:
        if error.errno == errno.ENOENT and error.filename is None:  # nobody can act on that: find where it came from
            return _fault(error, args, as_json)
        return _report(os_error(error, str(error.filename or ""), "use"), as_json)
    except Exception as error:  # a fault of ours
        if isinstance(error.__context__, KeyboardInterrupt):  # an import that made something else of it
            typer.echo("npukit: interrupted", err=True)
            return 130
        return _fault(error, args, as_json)


def _flush(code: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


def _usage(error: Any) -> NpukitError:
    """Click's error as ours, with the nearest option for an unknown one."""
    ctx = getattr(error, "ctx", None)
    name = getattr(error, "option_name", None)
    message = error.message.rstrip(".") if getattr(error, "message", "") else error.format_message()
    hint = ""
    if name and "No such option" in message and ctx is not None:
        flags = [flag for p in ctx.command.params for flag in (*p.opts, *p.secondary_opts)]
        message, hint = f"there is no option {name}", nearest(name, flags)
    elif ctx is not None:
        message, hint = error.format_message().rstrip("."), f"see `{ctx.command_path} --help`"
    return UsageError(message, hint=hint)


def _report(error: NpukitError, as_json: bool) -> int:
    typer.echo(f"npukit: error: {error}", err=True)
    if as_json:
        emit_json({"error": error.to_json()})
    return _flush(error.exit_code)


def _fault(error: Exception, args: list[str], as_json: bool) -> int:
    """A fault in npukit: one line, and a file that says everything needed to find it."""
    text = "\n".join(
        [
            f"npukit {npukit.__version__}, Python {sys.version}, {sys.platform}",
            f"arguments: {json.dumps(args)}",
            f"libraries: {json.dumps(_versions())}",
            "",
            "".join(traceback.format_exception(error)),
        ]
    )
    path = ""
    try:
        handle, path = tempfile.mkstemp(prefix="npukit-fault-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        sys.stderr.write(text)
    first = f"{type(error).__name__}: {error}".splitlines()[0]
    typer.echo(f"npukit: a fault in npukit itself: {first}\n  the report is in {path}", err=True)
    if as_json:
        emit_json({"error": {"code": "fault", "exit_code": 4, "what": first, "report": path}})
    _flush(4)
    return 4


def _versions() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in ("numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-qnn", "typer"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


if __name__ == "__main__":
    sys.exit(main())
