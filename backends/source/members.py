"""The module tree that one class builds in its ``__init__``: layers, inner blocks, containers and bare tensors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import fx

from ...compiler.program import Program
from .syntax import name as dotted
from .tree import DissolveError, Scope, below, chain, is_flag, is_local, local_names, tensor_of

Kind = Literal["container", "leaf", "block", "chain"]


@dataclass(eq=False)
class Member:
    """One module below a class: what it is called, what it is and what it holds."""

    path: str
    """Its dotted path in the whole model."""
    kind: Kind = "container"
    target: str = ""
    """The path that the graph knows it by, where it is a leaf (a shared one has several)."""
    scope: Scope | None = None
    children: dict[str, Member] = field(default_factory=dict[str, "Member"])
    tensors: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])

    @property
    def indexed(self) -> bool:
        """Whether children are reached by number: they are numbered, with few gaps (filled with ``nn.Identity``)."""
        if not self.children or not all(name.isdecimal() for name in self.children):
            return False
        numbers = [int(name) for name in self.children]
        return numbers == sorted(numbers) and numbers[-1] < 2 * len(numbers) + 4

    def walk(self) -> Iterator[Member]:
        """Yield this member and all below it."""
        yield self
        for child in self.children.values():
            yield from child.walk()

    def access(self, path: str, base: ast.expr | None = None) -> ast.expr:
        """Return the expression for what lies at a path below this member, ``self.features[3]``."""
        tree = dotted("self") if base is None else base
        member: Member | None = self
        for part in path.split("."):
            if part.isidentifier():
                tree = ast.Attribute(tree, part, ast.Load())
            else:
                key = int(part) if member is not None and member.indexed else part
                tree = ast.Subscript(tree, ast.Constant(key), ast.Load())
            member = member.children.get(part) if member is not None else None
        return tree


def members(program: Program, scope: Scope) -> Member:
    """Return the tree of what a block owns.

    Raises:
        DissolveError: Two blocks claim the same module.
    """
    root = Member(scope.path, "block", scope=scope)
    _modules(program, scope, root)
    for node in _attributes(scope):
        value = tensor_of(program, node)
        if value is not None:
            _insert_tensor(root, below(str(node.target), scope.path), value)
    for member in root.walk():
        _original_order(program, member)
    return root


def chain_member(program: Program, scope: Scope) -> Member | None:
    """Return the tree of a plain chain, ``None`` for any other block."""
    links = chain(program, scope)
    if links is None:
        return None
    member = Member(scope.path, "chain", scope=scope)
    for link, called in links:
        path = f"{scope.path}.{link}"
        if isinstance(called, Scope):
            member.children[link] = chain_member(program, called) or Member(path, "block", scope=called)
        else:
            member.children[link] = Member(path, "leaf", str(called.target))
    return member


def _modules(program: Program, scope: Scope, root: Member) -> None:
    for item in scope.items:
        if isinstance(item, Scope):
            _insert(
                root, below(item.path, root.path), chain_member(program, item) or Member(item.path, "block", scope=item)
            )
        elif item.op == "call_module":
            name = local_names(program, scope.path, item)[0]
            _insert(root, name, Member(f"{root.path}.{name}".lstrip("."), "leaf", str(item.target)))


def _insert(root: Member, path: str, new: Member) -> None:
    *parents, last = path.split(".")
    parent = root
    for part in parents:
        parent = parent.children.setdefault(part, Member(f"{parent.path}.{part}".lstrip(".")))
        if parent.kind != "container":
            raise DissolveError(parent.path)
    known = parent.children.setdefault(last, new)
    if known.kind != new.kind or (known.scope is None) != (new.scope is None):
        raise DissolveError(new.path)
    if known.kind == "chain" and [m.path for m in known.walk()] != [m.path for m in new.walk()]:
        # Called a second time, but not in the same way.
        raise DissolveError(new.path)


def _insert_tensor(root: Member, path: str, value: torch.Tensor) -> None:
    *parents, last = path.split(".")
    member = root
    for part in parents:
        member = member.children.setdefault(part, Member(f"{member.path}.{part}".lstrip(".")))
        if member.kind == "leaf":
            return
        if member.kind != "container":
            raise DissolveError(member.path)
    member.tensors[last] = value


def _attributes(scope: Scope) -> Iterator[fx.Node]:
    """Yield the ``get_attr`` nodes that a block reads itself or hands to its inner blocks."""
    seen: set[fx.Node] = set()
    for item in scope.items:
        for node in item.inputs if isinstance(item, Scope) else item.all_input_nodes:
            if node not in seen and is_local(node, scope.path) and not is_flag(node):
                seen.add(node)
                yield node
    for node in scope.outputs:
        if node not in seen and node.op == "get_attr":
            yield node


def _original_order(program: Program, member: Member) -> None:
    """Put children in the order in which the author made them; in a chain, calls give the order."""
    if member.kind == "chain":
        return
    if all(name.isdecimal() for name in member.children):  # their names are their order, also of those without layers
        member.children = dict(sorted(member.children.items(), key=lambda item: int(item[0])))
        return
    try:
        known = list(vars(program.owner(member.path))["_modules"])
    except AttributeError:
        return
    rank = {name: i for i, name in enumerate(known)}
    member.children = dict(sorted(member.children.items(), key=lambda item: rank.get(item[0], len(rank))))
