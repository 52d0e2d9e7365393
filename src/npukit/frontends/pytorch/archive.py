# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Checks a torch.export archive before torch reads it: torch.export.load trusts what the file says in several places.

In torch 2.13 it falls back from weights_only to a plain unpickling for sample inputs, unpickles weights and constants
that the archive marks so, loads compiled code (AOTInductor), evaluates size expressions with sympify, imports modules
that a tree's context names, looks functions up by a dotted path below `torch`, and writes names into Python source.
Each of these is closed here by a list of what a plain archive has.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from npukit.errors import Fault, ModelError
from npukit.files import zip_read
from npukit.frontends.pytorch.kinds import members, sound_entries

_MAX_JSON = 512 << 20
_MAX_VALUES = 3_000_000  # in JSON: a program of some 50,000 nodes, which Python holds in 300 MB
_NAMESPACES = "aten|prim|prims|quantized_decomposed|torchvision|higher_order"
_TARGET = re.compile(
    rf"torch\.ops\.({_NAMESPACES})\.(?!(from_file|save|load)\b)(_?[A-Za-z]\w*|__[a-z]+__)(\._?[A-Za-z]\w*)?"
    r"|torch\.(_?sym_\w+)|torch\.fx\.experimental\.symbolic_shapes\.\w+"
    r"|math\.(ceil|floor|trunc|sqrt|pow|log2?|exp)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_|xor"
    r"|lshift|rshift|index)"
)
_PLAIN = re.compile(r"[\w.\-/: #+@\[\]<>,*|]*")
# What sympy expressions of sizes are written with (torch's own functions besides sympy's)
_FUNCTIONS = re.compile(
    "Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|CeilToInt|FloorToInt|"
    "IntTrueDiv|FloatTrueDiv|FloatPow|PowByNatural|ModularIndexing|Where|ToFloat|TruncToInt|TruncToFloat|RoundToInt|RoundDecimal|Max|Min|"
    "Identity|Piecewise|ExprCondPair|And|Or|Not|Eq|Ne|Lt|Le|Gt|Ge|Relational|Equality|"
    "Unequality|StrictLessThan|StrictGreaterThan|LessThan|GreaterThan|floor|ceiling|Abs|IsNonOverlappingAndDenseIndicator"
)
# A container is looked up among those that torch has been told of, but that of a defaultdict names a module to import.
_TREES = re.compile(r"(?!collections\.defaultdict$)[\w.]+")


def check_archive(path: Path, *, allow_pickle: bool) -> None:
    """Refuse an archive that would have torch run code of the file's; `allow_pickle` lets all but compiled code pass.

    Raises:
        ModelError: it is damaged, or every reason why it is not read.
    """
    data, entries = members(path)
    sizes = {entry.name: entry for entry in entries}

    def read(name: str) -> bytes:
        entry = sizes[name]
        limit = max(_MAX_JSON, 0 if entry.method else entry.stored)  # sample inputs, stored, may be any size
        return zip_read(data, entry, limit=limit, where=str(path))

    check_members(path, list(sizes), read, allow_pickle=allow_pickle)


def check_members(path: Path, names: list[str], read: Callable[[str], bytes], *, allow_pickle: bool) -> None:
    """`check_archive` on the members as some reader of the archive gives them."""
    faults: list[Fault] = []
    compiled = [name for name in names if "/aotinductor/" in f"/{name}"]
    if compiled:
        raise ModelError(
            f"it holds compiled code (AOTInductor, {len(compiled)} members), which npukit does not load",
            where=str(path),
            hint="save the exported program itself: torch.export.save(program, 'model.pt2')",
        )
    if allow_pickle:
        return
    for name in names:
        if name.endswith(".pt") and (content := read(name)).startswith(b"PK"):
            sound_entries(content, f"{path}: member {name!r}")  # an archive in it, which torch.load unpacks
        if re.search(r"data/(weights|constants)/.*\.pt$", name):
            faults.append(Fault("it is a pickle of an old form of archive", f"member {name!r}"))
        if "/opaque_obj" in name or "/custom_obj" in name:
            faults.append(Fault("it is a pickled object", f"member {name!r}"))
        if name.endswith("_config.json"):
            config = _json(read(name), path, name).get("config")
            pickled = [key for key, row in _rows(config) if row.get("use_pickle") is not False]
            faults += [Fault("it is held as a pickle", f"tensor {key!r} in {name!r}") for key in pickled[:5]]
            faults += list(_names({"config": config}, name))
        elif "/models/" in f"/{name}" and name.endswith(".json") or name == "serialized_exported_program.json":
            faults += list(_program(_json(read(name), path, name), name))
    if faults:
        raise ModelError(
            "to read this archive would run code that is in it, so it is not read",
            where=str(path),
            faults=faults,
            hint="save it again where it was made: torch.export.save(program, 'model.pt2'); or --allow-pickle, if you "
            "trust the file as you would a program",
        )


def _json(content: bytes, path: Path, name: str) -> dict[str, Any]:
    if sum(content.count(mark) for mark in (b"[", b"{", b",")) > _MAX_VALUES:
        raise ModelError(f"its member {name!r} has more than {_MAX_VALUES} values: refused", where=str(path))
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        text = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ModelError(f"its member {name!r} is not JSON: {text}", where=str(path)) from None
    if not isinstance(found, dict):
        raise ModelError(f"its member {name!r} holds no object", where=str(path))
    return found


def _rows(config: Any) -> list[tuple[str, Mapping[str, Any]]]:
    return [(k, v) for k, v in config.items() if isinstance(v, dict)] if isinstance(config, dict) else []


def _program(program: Mapping[str, Any], where: str) -> Iterator[Fault]:
    """What in a serialized program is more than data."""
    stack: list[tuple[Any, str]] = [(program, "")]
    while stack:
        value, key = stack.pop()
        if isinstance(value, list):
            stack += [(item, key) for item in value]
        elif isinstance(value, dict):
            for name, item in value.items():
                if not _PLAIN.fullmatch(name):
                    yield Fault(f"the name {name!r} is none that torch.export writes", where)
                if name == "guards_code" and isinstance(item, list) and all(isinstance(text, str) for text in item):
                    continue  # Python source, which `export.load_program` takes out before anything runs it
                if not (_is_metadata(name, item) or ("kind" in value and _is_text(name, item))):
                    stack.append((item, name))
        elif isinstance(value, str):
            reason = _text(key, value)
            if reason:
                yield Fault(reason, where)


def _is_metadata(name: str, item: Any) -> bool:
    """Stack traces and module names of a node: text, looked up at most, never run."""
    return name == "metadata" and isinstance(item, dict) and all(isinstance(text, str) for text in item.values())


def _is_text(name: str, item: Any) -> bool:
    """A text argument of a node, and nothing else: the source that torch writes has its repr."""
    return name == "arg" and isinstance(item, dict) and list(item) in (["as_string"], ["as_strings"])


def _names(value: Any, where: str) -> Iterator[Fault]:
    return _program({"config": value}, where)


def _text(key: str, value: str) -> str:
    """Why the string `value` under `key` is not read; empty where it is plain."""
    if key == "expr_str":
        return "" if _is_expression(value) else f"the size {value[:80]!r} is no plain expression"
    if key in ("in_spec", "out_spec"):
        return _tree(value)
    if key == "target":
        return "" if _TARGET.fullmatch(value) or _is_value_name(value) else f"{value[:80]!r} is no operator of a graph"
    return "" if _PLAIN.fullmatch(value) else f"the text {value[:80]!r} under {key!r} is none that torch.export writes"


def _is_value_name(text: str) -> bool:
    """Whether a target names a parameter or buffer (`c.weight`), and nothing that torch would look up."""
    return bool(re.fullmatch(r"[\w.]+", text)) and not text.startswith(("torch", "math", "_operator", "#"))


def _is_expression(text: str) -> bool:
    try:
        tree = ast.parse(text, mode="eval") if len(text) < 20_000 else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    if tree is None:
        return False
    plain = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.operator, ast.unaryop, ast.cmpop)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name) or not _FUNCTIONS.fullmatch(node.func.id):
                return False
        elif isinstance(node, ast.Name):
            if not _FUNCTIONS.fullmatch(node.id) and not re.fullmatch(r"[a-z]{1,4}\d+|oo|int_oo|zoo|nan", node.id):
                return False
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str) and not re.fullmatch(r"\w+", node.value):
                return False
        elif not isinstance(node, (*plain, ast.boolop, ast.keyword, ast.expr_context)):
            return False
    return True


def _tree(text: str) -> str:
    """Why the serialized tree of inputs or outputs is not read; empty where it has plain containers only."""
    try:
        _, schema = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return "a tree of inputs or outputs is damaged"
    stack = [schema]
    while stack:
        node = stack.pop()
        if not isinstance(node, dict) or not isinstance(node.get("children_spec", []), list):
            return "a tree of inputs or outputs is damaged"
        kind = node.get("type")
        if kind is not None and not _TREES.fullmatch(str(kind)):
            return f"an input or output is a container of type {str(kind)[:80]!r}"
        context = node.get("context")
        if context is not None and not re.fullmatch(r'[\w.\-/: ,\[\]"]*', context if isinstance(context, str) else ""):
            return f"a container's context {str(context)[:80]!r} is more than names"
        stack += node.get("children_spec", [])
    return ""
