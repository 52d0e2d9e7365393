# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What atc's error codes mean, for the one who compiles a model: where the fault lies and what to do next.

atc prints `CODE: text` lines behind its failure line, newer ones with process and time in between. Codes and the forms
of their texts: ascend_facts.md 1.1 and 1.6 (GE's and the runtime's lists of errors).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from npukit.errors import Fault, GraphError, MissingDependency, NativeError, NpukitError, UsageError

SUCCESS = "ATC run success"
FAILURE = "ATC run failed"


@dataclass(frozen=True)
class Code:
    """One error code, or several that mean the same.

    Attributes:
        codes: the codes, separated by blanks.
        kind: "option", "model", "setup" (CANN itself), "file" or "compiler".
        hint: what to do.
    """

    codes: str
    kind: str
    hint: str


_LINT = "`npukit lint MODEL --target TARGET` says which operators and opsets this CANN takes"
_GEARS = "look at --input-shape and the gears: what is -1 must be what they are for"
_AICORE = "kernels for this dtype or shape are missing: cast around the node, or change its dtype"

CODES: tuple[Code, ...] = (
    Code("E10001 E10003 E10013 E10014 E10060 E10061", "option", "see the table of options in the guide on Ascend"),
    Code("E10004 E10005 E10006 E10007 E10010 E10054 E10058", "option", "give the option a value that atc takes"),
    Code("E10002 E10048 E10050", "option", "write --input-shape NAME=1,3,224,224 for each input"),
    Code("E10009 E10047 E10055 E10056 E10057", "option", "leave one of them out"),
    Code("E10011", "option", "the model has open dimensions: fix them with --input-shape or --symbol, or give gears"),
    Code("E10012 E10018 E10019 E10020 E10031 E10040 E10045 E10046", "option", _GEARS),
    Code("E10035 E10036 E10037 E10038 E10039", "option", "2 to 100 different gears of positive numbers are allowed"),
    Code("E10016 E10017 E11017", "option", "use the names of the model's own inputs and nodes (see npukit inspect)"),
    Code("E10034", "option", "leave the input of AIPP out of input_fp16_nodes"),
    Code("E10049", "option", "give as many extents in --input-shape as the input has dimensions"),
    Code("E10052", "option", "mend the AIPP configuration; --aipp writes one from a preprocessing spec"),
    Code("E10410 E13000 E13001 E13002 E13003 E13026 E10021 E10022", "file", "check the path and its permissions"),
    Code("E13004", "file", "free some space in the folder of the output, or write elsewhere"),
    Code("E13005 E13018 E40003", "file", "the file is not what it should be: make it again"),
    Code("E13015", "model", "keep the weights outside of the .onnx: npukit convert writes it so above 1.5 GB"),
    Code("E13023", "model", "the graph itself is beyond 4 GB: split the model"),
    Code("E10041", "model", "the .onnx or its external data cannot be read: npukit inspect MODEL says more"),
    Code("E13009", "model", "two nodes have this name: npukit's preparation gives them their own"),
    Code("E13014 E14001 E14002 E89999 E13025 E13031", "model", "the operator cannot take what it gets: " + _LINT),
    Code("E16001 E16004 E16005", "model", "export the model again, with at least one input and one opset"),
    Code("E16002 E19010 EZ9010 E76002 E13010", "model", "atc has no operator of this name and opset: " + _LINT),
    Code("E10501 EZ0501", "setup", "the operator is not in CANN's own: set ASCEND_OPP_PATH, or install the kernels"),
    Code("EZ3002 EZ3003 EZ1001", "model", _AICORE),
    Code("E20001 E22001 E40021 E90000 E90001 E90002 E90003", "compiler",
         "compiling this operator failed: --atc-option op_debug_level=4 keeps its files, log=error says more"),
    Code("E20003 E20007 E13028 E13029 E13030", "compiler", "switch the pass off with --atc-option fusion_switch_file"),
    Code("E40020 E40024", "setup", "Python modules are missing: python3 on PATH needs numpy, decorator, attrs, ..."),
    Code("E40001 E40002 E40022 E40023 E13024 E80001", "setup", "CANN's own set-up is incomplete: see npukit doctor"),
    Code("EZ2001", "setup", "the device fails: npu-smi info"),
    Code("E19999 EZ9903 EZ9999 E10062 E10063", "compiler", "atc gives no cause: --atc-option log=error says more"),
)  # fmt: skip

BY_CODE: dict[str, Code] = {code: row for row in CODES for code in row.codes.split()}

# Letters of other families: TBE's checks of an operator's arguments.
_FAMILIES = (
    (
        re.compile(r"E[56]\d{4}"),
        Code("", "model", "beyond what the operator's kernel takes: " + _LINT),
    ),
    (re.compile(r"E[EH]\d{4}"), Code("", "setup", "the runtime fails: see npukit doctor and npu-smi info")),
)
_PARSER = Code("", "option", "this atc does not take it: leave it out, or use another CANN")
_UNKNOWN = Code("", "compiler", "look the code up in CANN's list of errors; --atc-option log=error says more")

_LINE = re.compile(r"\s*((?:E[A-Z]?\d{4,5})|(?:W[A-Z]?\d{4,5})):\s*(?:\[PID:\s*\d+\]\s*\S+\s*)?(.*)")
_USAGE = re.compile(r"\s*(?:ERROR: (.*)|(Non-option parameter: .*))")
# How texts name what they are about, most certain first.
_PLACES = (
    (re.compile(r"op(?:erator)? ?\[(?:name ?[,=] ?)?([^\s,\]\[]+)", re.IGNORECASE), "node {}"),
    (re.compile(r"(?:for|compile) Op:? ?\[?([^\s,\]\[]+)"), "node {}"),
    (re.compile(r"found for \[([^\s,\]]+)\]"), "node {}"),
    (re.compile(r"^Operator (\S+) already"), "node {}"),
    (re.compile(r"[Ff]ind node (\S+) specified"), "node {}"),
    (re.compile(r"Op name (\S+) specified"), "name {}"),
    (re.compile(r"Input [Oo]p (\S+) specified"), "name {}"),
    (re.compile(r"optype:? \[?([^\s,\]\[]+?)[.\]]*(?:\s|$)", re.IGNORECASE), "operator {}"),
    (re.compile(r"Python module (\S+)"), "Python module {}"),
    (re.compile(r"(--[a-z]\w+)"), "{}"),
    (re.compile(r"(?:[Ff]ile|[Pp]ath|from) (/\S+?)\.?(?:\s|$)"), "{}"),
)
_SOC = "this CANN does not know the chip: install its kernels package, or a newer CANN"
_MOST_TEXT = 2_000
_MOST_NODES = 8


@dataclass(frozen=True)
class Message:
    """One error or warning of atc: its code, its text with the reasons below it, and where it points."""

    code: str
    text: str

    @property
    def row(self) -> Code:
        """What is known of the code."""
        if not self.code:
            return _PARSER
        if self.code in BY_CODE:
            return BY_CODE[self.code]
        return next((row for family, row in _FAMILIES if family.fullmatch(self.code)), _UNKNOWN)

    @property
    def where(self) -> str:
        """The node, operator type, option or file that the text names; empty if none."""
        for pattern, form in _PLACES:
            if match := pattern.search(self.text):
                return form.format(match[1].rstrip("."))
        return ""

    def fault(self) -> Fault:
        """The message as a fault: code and text, place, and what to do."""
        hint = _SOC if self.where == "--soc_version" else self.row.hint
        return Fault(f"{self.code}: {self.text}" if self.code else self.text, self.where, hint)

    def located(self, types: Mapping[str, Sequence[str]]) -> Fault:
        """As `fault`; where only the type of an operator is said, with the names of the nodes of that type."""
        fault = self.fault()
        names = types.get(fault.where.removeprefix("operator ").rpartition("::")[2], ())
        if not names or not fault.where.startswith("operator "):
            return fault
        more = f" and {len(names) - _MOST_NODES} more" if len(names) > _MOST_NODES else ""
        return replace(fault, where=f"{fault.where} ({', '.join(names[:_MOST_NODES])}{more})")


def messages(lines: Iterable[str]) -> list[Message]:
    """The errors and warnings in atc's output, in order, each once.

    Indented lines belong to the message above them, up to its traceback: "Solution:" is left out, npukit has its own.
    """
    found: list[Message] = []
    listening = False
    for line in lines:
        usage, coded = _USAGE.fullmatch(line), _LINE.fullmatch(line)
        if coded:
            found.append(Message(coded[1], coded[2].strip()))
            listening = True
        elif usage:
            found.append(Message("", (usage[1] or usage[2]).strip()))
            listening = False
        elif listening and line[:1].isspace() and line.strip():
            word = line.strip()
            if word.startswith(("Solution", "TraceBack", "Possible Cause")):
                listening = False
            elif len(found[-1].text) < _MOST_TEXT:
                found[-1] = Message(found[-1].code, f"{found[-1].text} {word}".strip())
        else:
            listening = False
    return list(dict.fromkeys(found))


def warnings(lines: Iterable[str]) -> list[str]:
    """The warnings in atc's output, one sentence each."""
    return [f"atc: {message.code}: {message.text}" for message in messages(lines) if message.code.startswith("W")]


_KINDS: dict[str, type[NpukitError]] = {
    "option": UsageError,
    "model": GraphError,
    "file": NpukitError,
    "setup": MissingDependency,
    "compiler": NativeError,
}


def error(
    lines: Sequence[str], status: int, where: str, types: Mapping[str, Sequence[str]] | None = None
) -> NpukitError:
    """The error of an atc that failed: every message it gave, the exit status by the first one's kind.

    Args:
        lines: its output.
        status: its exit status.
        where: the model.
        types: names of the model's nodes by operator type.
    """
    said = [message for message in messages(lines) if not message.code.startswith("W")]
    if said:
        faults = [message.located(types or {}) for message in said]
        return _KINDS[said[0].row.kind]("atc refused it", where=where, faults=faults)
    last = [line.strip() for line in lines if line.strip()][-3:]
    what = f"atc ended with status {status} and gave no reason"
    if any(SUCCESS in line for line in lines):
        what = f"atc said that it succeeded, but ended with status {status}"
    hint = f"it last said: {' / '.join(last)}" if last else "--atc-option log=error may say more"
    return NativeError(what, where=where, hint=hint)
