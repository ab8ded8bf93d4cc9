"""The blocks of a graph: which nodes belong to which call of which module, recovered from ``nn_module_stack``.

A block is kept only where it can be a class of its own: its nodes stand together, and what it refers to lies below it.
Any other block is dissolved: its nodes move up into its parent, and only its name stays, as a container.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import fx, nn

from ...compiler.program import Program
from .leaf import stateless


@dataclass(frozen=True)
class Frame:
    """One entry of a node's module stack: which call, of which module."""

    key: str
    path: str
    kind: str
    """Class name of the module."""
    sequential: bool = False


class DissolveError(Exception):
    """A block that turned out not to be one; caught by the emitter, which starts again without it."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


@dataclass(eq=False)
class Scope:
    """One call of a block: its nodes and the calls of its own blocks, in order."""

    frame: Frame
    items: list[fx.Node | Scope] = field(default_factory=list["fx.Node | Scope"])
    inputs: list[fx.Node] = field(default_factory=list[fx.Node])
    outputs: list[fx.Node] = field(default_factory=list[fx.Node])

    @property
    def path(self) -> str:
        """Dotted path of the module that is called."""
        return self.frame.path

    def nodes(self) -> Iterator[fx.Node]:
        """Yield all nodes, those of inner blocks included."""
        for item in self.items:
            if isinstance(item, Scope):
                yield from item.nodes()
            else:
                yield item

    def scopes(self) -> Iterator[Scope]:
        """Yield the inner blocks."""
        yield from (item for item in self.items if isinstance(item, Scope))


def is_below(path: str, owner: str) -> bool:
    """Return whether a dotted path is a module or what lies in it."""
    return not owner or path == owner or path.startswith(owner + ".")


def below(path: str, owner: str) -> str:
    """Return a dotted path as seen from a module above it."""
    return path if not owner else path[len(owner) + 1 :]


def is_flag(node: fx.Node) -> bool:
    """Return whether a node reads the live train/eval flag, which every block has."""
    return node.op == "get_attr" and str(node.target).rpartition(".")[2] == "training"


def is_local(node: fx.Node, path: str) -> bool:
    """Return whether a ``get_attr`` node can be written as ``self.<name>`` in a block."""
    return node.op == "get_attr" and (is_flag(node) or not path or str(node.target).startswith(path + "."))


def build(program: Program, dissolved: frozenset[str]) -> Scope:
    """Return the root block of a program.

    Args:
        program: What to emit.
        dissolved: Paths of modules that are not to be blocks.

    Raises:
        DissolveError: A module that cannot be a block.
    """
    frames = _Frames(program, dissolved)
    body = [n for n in program.graph.nodes if n.op in {"call_module", "call_function", "call_method"}]
    stacks = frames.stacks(body)
    root = Scope(Frame("", "", program.name))
    _fill(root, body, stacks, 0)
    _connect(root)
    _check(program, root)
    return root


def without_dead_nodes(program: Program) -> Program:
    """Return a program without the nodes that nothing comes of."""
    graph = copy.deepcopy(program.graph)
    for node in reversed(graph.nodes):
        if node.op in {"get_attr", "call_function", "call_method"} and not (node.users or _has_effect(node)):
            graph.erase_node(node)
    return replace(program, graph=graph)


def _has_effect(node: fx.Node) -> bool:
    """Return whether a node may change one of its arguments, or stop the run."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.is_impure():
        return True
    in_place = name.endswith("_") and not name.endswith("__")
    augmented = getattr(node.target, "__module__", "") == "_operator" and name.startswith("i") and name in _AUGMENTED
    return in_place or augmented or name == "setitem" or bool(node.kwargs.get("inplace")) or "out" in node.kwargs


_AUGMENTED = frozenset(
    {"iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor"}
)


class _Frames:
    def __init__(self, program: Program, dissolved: frozenset[str]) -> None:
        self.root = program.root
        self.dissolved = dissolved

    def stacks(self, body: Sequence[fx.Node]) -> list[tuple[Frame, ...]]:
        """Return the stack of every node; one that lacks it joins the nodes around it."""
        own = [self._own(node) for node in body]
        after: list[tuple[Frame, ...]] = [()] * len(own)
        for i in reversed(range(len(own) - 1)):
            following = own[i + 1]
            after[i] = following if following is not None else after[i + 1]
        found: list[tuple[Frame, ...]] = []
        for i, stack in enumerate(own):
            if stack is None:
                stack = _between(found[-1] if found else (), after[i])
            found.append(stack)
        return found

    def _own(self, node: fx.Node) -> tuple[Frame, ...] | None:
        recorded = cast("dict[str, tuple[str, Any]] | None", node.meta.get("nn_module_stack"))
        if recorded:
            entries = [(key, path, kind) for key, (path, kind) in recorded.items()]
        elif node.op == "call_module":
            parts = str(node.target).split(".")
            paths = [".".join(parts[: i + 1]) for i in range(len(parts))]
            entries = [(path, path, type(self.root.get_submodule(path))) for path in paths]
        elif recorded is None:
            return None
        else:
            return ()
        if node.op == "call_module" and entries and entries[-1][1] == node.target:
            entries.pop()
        return tuple(self._frame(*e) for e in entries if e[1] and e[1] not in self.dissolved)

    def _frame(self, key: str, path: str, kind: Any) -> Frame:
        if isinstance(kind, type):
            return Frame(key, path, kind.__name__, issubclass(kind, nn.Sequential))
        text = str(kind).rpartition(".")[2]
        return Frame(key, path, text, text == "Sequential")


def _between(before: tuple[Frame, ...], after: tuple[Frame, ...]) -> tuple[Frame, ...]:
    """Return the innermost block that a node between two others may join without tearing a chain of layers apart."""
    common = 0
    while common < min(len(before), len(after)) and before[common].key == after[common].key:
        common += 1
    if not common or not before[common - 1].sequential:
        return before[:common]
    return max((_open(before), _open(after), _open(before[:common])), key=len)


def _open(stack: tuple[Frame, ...]) -> tuple[Frame, ...]:
    while stack and stack[-1].sequential:
        stack = stack[:-1]
    return stack


def _fill(scope: Scope, body: Sequence[fx.Node], stacks: Sequence[tuple[Frame, ...]], depth: int) -> None:
    seen: set[str] = set()
    start = 0
    while start < len(body):
        frame = stacks[start][depth] if len(stacks[start]) > depth else None
        end = start + 1
        if frame is None:
            scope.items.append(body[start])
        else:
            while end < len(body) and len(stacks[end]) > depth and stacks[end][depth].key == frame.key:
                end += 1
            # Nodes of one call that do not stand together, or a module that lives outside of its caller.
            if frame.key in seen:
                raise DissolveError(frame.path)
            seen.add(frame.key)
            inner = Scope(frame)
            _fill(inner, body[start:end], stacks[start:end], depth + 1)
            scope.items.append(inner)
        start = end


def _connect(scope: Scope) -> None:
    """Find what every block takes in and hands out."""
    for inner in scope.scopes():
        _connect(inner)
        inside = set(inner.nodes())
        inputs: dict[fx.Node, None] = {}
        for node in inner.nodes():
            for source in node.all_input_nodes:
                if source not in inside and not is_local(source, inner.path):
                    inputs[source] = None
            if any(user not in inside for user in node.users):
                inner.outputs.append(node)
        inner.inputs = list(inputs)


def _check(program: Program, scope: Scope) -> None:
    for item in scope.items:
        if isinstance(item, Scope):
            _check_block(program, scope, item)
            _check(program, item)
        elif item.op == "call_module" and not local_names(program, scope.path, item):
            raise DissolveError(scope.path)


def _check_block(program: Program, outer: Scope, inner: Scope) -> None:
    if not inner.outputs or not inner.items:
        raise DissolveError(inner.path)
    if len(inner.outputs) > _WIDEST or (len(inner.inputs) > _WIDEST and gathered(inner) is None):
        raise DissolveError(inner.path)
    if not is_below(inner.path, outer.path) or inner.path == outer.path:
        owns = any(node.op in {"call_module", "get_attr"} for node in inner.nodes())
        raise DissolveError(outer.path if owns and outer.path else inner.path)
    if inner.frame.kind in _CONTAINERS and not inner.frame.sequential:
        raise DissolveError(inner.path)
    if inner.frame.kind == "Sequential" and chain(program, inner) is None:
        raise DissolveError(inner.path)


_WIDEST = 5
"""Most values that a block may take in or hand out and still be worth a class."""

_CONTAINERS = frozenset({"ModuleList", "ModuleDict", "Module"})


def gathered(scope: Scope) -> fx.Node | None:
    """Return the concatenation that is all a block does with its inputs, so that it may take any number of them."""
    for node in scope.items:
        if isinstance(node, fx.Node) and node.target in {torch.cat, torch.concat} and node.args:
            inside = set(scope.nodes())
            alone = all(user is node for n in scope.inputs for user in n.users if user in inside)
            values = node.args[0]
            return node if isinstance(values, list | tuple) and list(values) == scope.inputs and alone else None
    return None


def local_names(program: Program, path: str, node: fx.Node) -> list[str]:
    """Return the names, as seen from a block, of the layer that a node calls; none where the block may not own it."""
    target = str(node.target)
    names = [below(target, path)] if target.startswith(path + ".") or not path else []
    leaf = program.owner(target)
    # The graph knows a module that has several names by the first of them. A shared activation may be built once more;
    # a layer with weights must stay the one that it is.
    if stateless(leaf):
        try:
            members = vars(program.owner(path))["_modules"]  # named_children() leaves repeated modules out
        except AttributeError:
            return names
        names += [name for name, module in members.items() if module is leaf and name not in names]
    return names


def chain(program: Program, scope: Scope) -> list[tuple[str, fx.Node | Scope]] | None:
    """Return the named links of a block that only calls its own children one after the other, else ``None``."""
    if not scope.frame.sequential or len(scope.inputs) != 1 or len(scope.outputs) != 1:
        return None
    links: dict[str, fx.Node | Scope] = {}
    value = scope.inputs[0]
    for item in scope.items:
        if isinstance(item, Scope):
            names, sources, results = [below(item.path, scope.path)], item.inputs, item.outputs
        elif item.op == "call_module" and item.args == (value,) and not item.kwargs:
            names, sources, results = local_names(program, scope.path, item), [value], [item]
        else:
            return None
        name = next((n for n in names if "." not in n and n not in links), None)
        if sources != [value] or len(results) != 1 or name is None:
            return None
        links[name] = item
        value = results[0]
    return list(links.items()) if [value] == scope.outputs else None


def tensor_of(program: Program, node: fx.Node) -> torch.Tensor | None:
    """Return the tensor that a ``get_attr`` node names, ``None`` where it names something else."""
    value = program.attribute(str(node.target))
    return value if isinstance(value, torch.Tensor) else None
