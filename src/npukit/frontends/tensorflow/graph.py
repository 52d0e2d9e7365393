# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Reads a TensorFlow graph's wire format just far enough to say what is in it, before TensorFlow sees the file.

A graph is a program: a few of TensorFlow's ops read and write files, call Python or open connections, and TensorFlow
runs ops while it loads a model (initializers, the restore op) and while it folds constants. A file that has such ops is
refused. Weights are skipped, not read. Field numbers: the .proto files of TensorFlow 2.21.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from npukit.errors import Fault, ModelError
from npukit.files import map_file
from npukit.frontends.onnx.strip_weights import Field, WireError, fields
from npukit.frontends.tensorflow.kinds import CHECKPOINT, FROZEN, SAVED_MODEL_FILE, folder_of

_MAX_DEPTH = 50  # of functions in attributes of functions; protobuf itself ends at 100 messages
_MAX_FIELDS = 1_000_000  # some 40,000 nodes, read in a second or two
_MAX_GRAPH = 2 << 30  # protobuf's own limit

# Ops that do more than compute. Those of checkpoints stand apart: every SavedModel has functions that save it.
_TOUCHES = re.compile(
    r"(Eager)?PyFunc(Stateless)?|(Read|Write)File|MatchingFiles|PrintV2|ImmutableConst|LoadAndRemapMatrix"
    r"|\w*Reader(V2)?|\w*(TFRecord|TextLine|FixedLengthRecord|Lmdb|LMDB|Sql|SSTable|CSV)Dataset\w*"
    r"|(Cache|Snapshot|Save|Load|DatasetToTF)\w*Dataset\w*|DatasetToTFRecord|Debug\w+|\w*Summary(File|Db)?Writer\w*"
    r"|Write\w*Summary|WriteGraphSummary|ImportEvent|(Try)?Rpc\w*|(Encode|Decode)Proto\w*|GenerateVocabRemapping"
    r"|InitializeTableFromTextFile\w*|DataService\w*|RegisterDataset\w*|BigQuery\w*|DumpTensor\w*"
    r"|(Host)?(Send|Recv)|_\w*(Send|Recv)|Collective\w+"
)
_SAVES = re.compile(r"Save(V2|Slices)?|MergeV2Checkpoints")


@dataclass
class Node:
    """A NodeDef: `calls` are the functions that its attributes name."""

    name: str
    op: str
    inputs: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)


@dataclass
class Graph:
    """A GraphDef: nodes by name, and the nodes of each function of its library."""

    nodes: dict[str, Node] = field(default_factory=dict)
    functions: dict[str, list[Node]] = field(default_factory=dict)
    roots: list[str] = field(default_factory=list)  # what TensorFlow runs: outputs, initializers, the restore op
    tags: tuple[str, ...] = ()
    signatures: tuple[str, ...] = ()

    def reached(self) -> tuple[set[str], set[str]]:
        """Names of the nodes and functions that running `roots` runs."""
        nodes: set[str] = set()
        functions: set[str] = set()
        todo = [root.partition(":")[0].lstrip("^") for root in self.roots]
        calls: list[str] = []
        while todo:
            name = todo.pop()
            node = self.nodes.get(name)
            if name in nodes or node is None:
                continue
            nodes.add(name)
            todo += [source.partition(":")[0].lstrip("^") for source in node.inputs]
            calls += [node.op, *node.calls]
        while calls:
            name = calls.pop()
            if name in self.functions and name not in functions:
                functions.add(name)
                for node in self.functions[name]:
                    calls += [node.op, *node.calls]
        return nodes, functions


def read_graphs(path: Path, kind: str) -> list[Graph]:
    """The graphs of a file (several where a SavedModel has several tags), checked.

    Raises:
        ModelError: the file is damaged, too large, nested too deeply, or its graph does more than compute.
    """
    place = folder_of(path) / SAVED_MODEL_FILE if kind not in (FROZEN, CHECKPOINT) else path
    data = map_file(place)
    if len(data) >= _MAX_GRAPH:
        raise ModelError(f"a graph of {len(data)} bytes is more than protobuf can hold", where=str(place))
    try:
        graphs = list(_Reader(data).graphs(kind))
    except (WireError, UnicodeDecodeError) as error:
        raise ModelError(
            f"this is not a whole {kind}: {error}", where=str(place), hint="was it cut off on the way? fetch it again"
        ) from None
    if kind == FROZEN:
        _refuse_variables(graphs[0], path)
    faults = [fault for graph in graphs for fault in _faults(graph)]
    if faults:
        raise ModelError(
            "its graph does more than compute, so TensorFlow is not started on it",
            where=str(path),
            faults=faults,
            hint="save the model without these ops, or cut it where they are in Python and save the rest",
        )
    return graphs


def _refuse_variables(graph: Graph, path: Path) -> None:
    held = [node.name for node in graph.nodes.values() if node.op in ("VarHandleOp", "VariableV2", "Variable")]
    if held:
        raise ModelError(
            f"it is not frozen: the values of its {len(held)} variables ({', '.join(held[:3])}) are not in it",
            where=str(path),
            hint="give the SavedModel, or the .meta file of the checkpoint that holds them",
        )


def _faults(graph: Graph) -> Iterator[Fault]:
    nodes, functions = graph.reached()
    where = [("", node, node.name in nodes) for node in graph.nodes.values()]
    where += [(f" of function {n!r}", node, n in functions) for n, body in graph.functions.items() for node in body]
    for place, node, runs in where:
        if _TOUCHES.fullmatch(node.op):
            yield Fault(f"{node.op} touches files, Python or the network", f"node {node.name!r}{place}")
        elif runs and _SAVES.fullmatch(node.op):
            yield Fault(f"{node.op} writes files", f"node {node.name!r}{place}")


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.left = _MAX_FIELDS

    def fields(self, part: Field) -> Iterator[Field]:
        for found in fields(self.data, part.start, part.end):
            self.left -= 1
            if self.left < 0:
                raise WireError(f"it has more than {_MAX_FIELDS} fields")
            yield found

    def messages(self, part: Field, number: int) -> Iterator[Field]:
        return (found for found in self.fields(part) if found.number == number and found.wire == 2)

    def text(self, part: Field) -> str:
        return bytes(self.data[part.start : min(part.end, part.start + 4096)]).decode()

    def graphs(self, kind: str) -> Iterator[Graph]:
        whole = Field(0, 2, 0, 0, len(self.data))
        if kind == FROZEN:
            graph = self.graph(whole, Graph())
            graph.roots = list(graph.nodes)
            yield graph
        elif kind == CHECKPOINT:
            yield self.meta_graph(whole)
        else:
            for part in self.messages(whole, 2):
                yield self.meta_graph(part)

    def meta_graph(self, part: Field) -> Graph:
        graph = Graph()
        tags: list[str] = []
        signatures = []
        objects = b""
        for found in self.fields(part):
            if found.wire != 2:
                continue
            if found.number == 1:
                tags += [self.text(tag) for tag in self.messages(found, 4)]
            elif found.number == 2:
                self.graph(found, graph)
            elif found.number == 3:  # SaverDef.restore_op_name
                graph.roots += [self.text(name) for name in self.messages(found, 3)]
            elif found.number == 4:  # a collection: initializers are among them, whatever it is called
                graph.roots += self._collection(found)
            elif found.number == 5:
                signatures += self._signature(found, graph)
            elif found.number == 7:
                objects = bytes(self.data[found.start : found.end])
        graph.roots = graph.roots or list(graph.nodes)
        graph.tags, graph.signatures = tuple(tags), tuple(signatures)
        # The functions of a SavedModel's objects run by name, when it is loaded or called.
        called = [name for name in graph.functions if objects and name.encode() in objects]
        if called:
            graph.nodes["objects in the SavedModel"] = Node("objects in the SavedModel", "", [], called)
            graph.roots.append("objects in the SavedModel")
        return graph

    def _collection(self, part: Field) -> Iterator[str]:
        for value in self.messages(part, 2):
            for values in self.messages(value, 1):  # CollectionDef.node_list
                yield from (self.text(name) for name in self.messages(values, 1))

    def _signature(self, part: Field, graph: Graph) -> list[str]:
        names = [self.text(key) for key in self.messages(part, 1)]
        for value in self.messages(part, 2):
            for outputs in self.messages(value, 2):
                for info in self.messages(outputs, 2):  # TensorInfo.name
                    graph.roots += [self.text(name) for name in self.messages(info, 1)]
        return names

    def graph(self, part: Field, graph: Graph) -> Graph:
        for found in self.fields(part):
            if found.wire == 2 and found.number == 1:
                node = self.node(found, 0)
                graph.nodes[node.name] = node
            elif found.wire == 2 and found.number == 2:
                for function in self.messages(found, 1):
                    name, body = self.function(function)
                    graph.functions[name] = body
        return graph

    def function(self, part: Field) -> tuple[str, list[Node]]:
        name, body = "", []
        for found in self.fields(part):
            if found.wire == 2 and found.number == 1:
                name = next((self.text(text) for text in self.messages(found, 1)), "")
            elif found.wire == 2 and found.number == 3:
                body.append(self.node(found, 0))
        return name, body

    def node(self, part: Field, depth: int) -> Node:
        node = Node("", "")
        for found in self.fields(part):
            if found.wire != 2:
                continue
            if found.number == 1:
                node.name = self.text(found)
            elif found.number == 2:
                node.op = self.text(found)
            elif found.number == 3:
                node.inputs.append(self.text(found))
            elif found.number == 5:
                for value in self.messages(found, 2):
                    node.calls += self.calls(value, depth + 1)
        return node

    def calls(self, part: Field, depth: int) -> list[str]:
        """The functions that an AttrValue names, alone (10) or in a list (1), and those that their attributes do."""
        if depth > _MAX_DEPTH:
            raise WireError(f"attributes are nested deeper than {_MAX_DEPTH} at byte {part.start}")
        found = []
        for value in self.fields(part):
            functions = [value] if value.number == 10 and value.wire == 2 else []
            if value.number == 1 and value.wire == 2:
                functions = list(self.messages(value, 9))
            for function in functions:
                for inner in self.fields(function):
                    if inner.number == 1 and inner.wire == 2:
                        found.append(self.text(inner))
                    elif inner.number == 2 and inner.wire == 2:
                        for nested in self.messages(inner, 2):
                            found += self.calls(nested, depth + 1)
        return found
