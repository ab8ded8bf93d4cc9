"""The classes of an emitted file: blocks that differ only in numbers become one class with constructor parameters."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ...compiler.program import Program
from .forward import Forward, forward
from .leaf import CHANNEL_ARGUMENTS, constructor
from .members import Member, chain_member, members
from .names import Names
from .parameters import Parameter, parameters
from .syntax import Slot, SlotExpr, assign, call, name, skeleton, slots
from .tree import DissolveError, Scope, below


@dataclass(eq=False)
class Block:
    """One block as trees: what builds it, and what runs it (nothing, for a plain chain)."""

    scope: Scope
    base: str
    init: list[ast.stmt]
    forward: Forward | None
    cls: Class | None = None

    @property
    def trees(self) -> list[ast.stmt]:
        """All statements, those of ``__init__`` first."""
        return self.init + (self.forward.body if self.forward else [])


@dataclass(eq=False)
class Class:
    """A class of the file, and the blocks that are instances of it."""

    key: str
    """Its name until all classes are known."""
    kind: str
    blocks: list[Block]
    parameters: list[Parameter] = field(default_factory=list[Parameter])
    inline: bool = False
    """A chain that stands only in one place: written there."""


class Classes:
    """Builds the classes of a program from the innermost blocks outwards."""

    def __init__(self, program: Program, names: Names, placeholders: Sequence[fx.Node]) -> None:
        self.program, self.names, self.placeholders = program, names, placeholders
        self.found: list[Class] = []
        self.by_path: dict[str, Block] = {}

    def build(self, root: Scope) -> list[Class]:
        """Return all classes, each after those that it uses; the root's is the last.

        Raises:
            DissolveError: A block that cannot be one.
        """
        levels: dict[int, list[Scope]] = {}
        self._levels(root, levels)
        for level in sorted(levels):
            groups: dict[str, list[Block]] = {}
            for scope in levels[level]:
                block = self._block(scope)
                known = self.by_path.get(scope.path)
                if known is not None:
                    # Called a second time: what is done there must be the very same.
                    if _text(known) != _text(block):
                        raise DissolveError(scope.path)
                    continue
                self.by_path[scope.path] = block
                groups.setdefault(f"{scope.frame.kind}\n{block.base}\n{_signature(block)}", []).append(block)
            for blocks in groups.values():
                self._close(blocks)
        return self.found

    def _levels(self, scope: Scope, levels: dict[int, list[Scope]]) -> int:
        level = 1 + max((self._levels(inner, levels) for inner in scope.scopes()), default=0)
        if scope.frame.kind != "Sequential" or not scope.path:  # a plain chain is written down where it is used
            levels.setdefault(level, []).append(scope)
        return level

    def _close(self, blocks: list[Block]) -> None:
        found = Class(f"Class{len(self.found)}_", blocks[0].scope.frame.kind, blocks)
        chain = blocks[0].forward is None
        found.inline = chain and len(blocks) == 1
        if not found.inline:
            modules = [self._original(block.scope.path) for block in blocks]
            found.parameters = parameters([list(_all_slots(b)) for b in blocks], modules)
        for block in blocks:
            block.cls = found
        self.found.append(found)

    def _original(self, path: str) -> dict[str, Any]:
        """Return the attributes of the module that a block was, as far as it is still there."""
        try:
            return vars(self.program.owner(path))
        except AttributeError:
            return {}

    # -- one block

    def _block(self, scope: Scope) -> Block:
        links = chain_member(self.program, scope)
        if links is not None:
            return Block(scope, "nn.Sequential", [ast.Expr(call(name("super().__init__"), self._links(links)))], None)
        tree = members(self.program, scope)
        run = forward(self.program, scope, tree, self.names, self.placeholders)
        init: list[ast.stmt] = []
        base = "nn.Module"
        if tree.indexed:
            # Numbered children: the block stays the sequence that it was, with a forward of its own.
            base = "nn.Sequential"
            init.append(ast.Expr(call(name("super().__init__"), self._links(tree))))
        elif any(not child.isidentifier() for child in tree.children):
            raise DissolveError(scope.path)
        else:
            for child, member in tree.children.items():
                init += self._member(ast.Attribute(name("self"), child, ast.Load()), member)
        init += self._tensors(name("self"), tree)
        return Block(scope, base, init, run)

    def _member(self, target: ast.expr, member: Member) -> list[ast.stmt]:
        return [assign(target, self._value(member)), *self._late_tensors(target, member)]

    def _late_tensors(self, target: ast.expr, member: Member) -> list[ast.stmt]:
        if member.kind not in {"container", "chain"}:
            return []
        found = self._tensors(target, member)
        for child, inner in member.children.items():
            found += self._late_tensors(member.access(child, target), inner)
        return found

    def _value(self, member: Member) -> ast.expr:
        if member.kind == "leaf":
            return self._layer(member)
        if member.kind == "container":
            if member.indexed:
                return call(name("nn.ModuleList"), [ast.List(self._links(member), ast.Load())])
            if not member.children:
                return call(name("nn.Module"))
            entries = {child: self._value(inner) for child, inner in member.children.items()}
            table = ast.Dict([ast.Constant(child) for child in entries], list(entries.values()))
            return call(name("nn.ModuleDict"), [table])
        if member.kind == "chain" and member.scope is not None and member.scope.frame.kind == "Sequential":
            return call(name("nn.Sequential"), self._links(member))
        block = self.by_path[member.path]
        assert block.cls is not None
        if block.cls.inline:
            (statement,) = block.init
            assert isinstance(statement, ast.Expr)
            assert isinstance(statement.value, ast.Call)
            return ast.Call(name("nn.Sequential"), statement.value.args, [])
        values = {p.name: p.values[block.cls.blocks.index(block)] for p in block.cls.parameters}
        layer = member.path
        return call(
            name(block.cls.key),
            keywords={
                p.name: SlotExpr(Slot(values[p.name], layer, p.name, p.default, p.channels, owner=block.cls.kind))
                for p in block.cls.parameters
            },
        )

    def _links(self, member: Member) -> list[ast.expr]:
        """Return the arguments of a container of layers."""
        if member.indexed:
            last = int(list(member.children)[-1])
            present = {int(child): inner for child, inner in member.children.items()}
            # What a pass removed leaves a gap: the layers after it keep their numbers.
            return [self._value(present[i]) if i in present else call(name("nn.Identity")) for i in range(last + 1)]
        self.names.require("from collections import OrderedDict")
        values = [self._value(inner) for inner in member.children.values()]
        return [call(name("OrderedDict"), [ast.Dict([ast.Constant(child) for child in member.children], values)])]

    def _layer(self, member: Member) -> ast.expr:
        made = constructor(self.program.owner(member.target), member.target)
        keywords: dict[str, ast.expr] = {}
        for argument in made.arguments:
            channels = argument.name in CHANNEL_ARGUMENTS
            keywords[argument.name] = SlotExpr(
                Slot(argument.value, member.path, argument.name, argument.default, channels)
            )
        text = self.names.helper(made.kind) if made.is_helper else f"nn.{made.kind.__name__}"
        return call(name(text), keywords=keywords)

    def _tensors(self, target: ast.expr, member: Member) -> list[ast.stmt]:
        found: list[ast.stmt] = []
        for attribute, value in member.tensors.items():
            sizes = [
                SlotExpr(Slot(size, member.path, attribute if i == 0 else f"{attribute}_{i}", channels=size != 1))
                for i, size in enumerate(value.shape)
            ]
            options: dict[str, ast.expr] = {} if value.dtype == torch.float32 else {"dtype": name(str(value.dtype))}
            blank = call(name("torch.zeros"), sizes or [ast.Tuple([], ast.Load())], options)
            if isinstance(value, torch.nn.Parameter):
                frozen: dict[str, ast.expr] = (
                    {} if value.is_floating_point() else {"requires_grad": ast.Constant(False)}
                )
                slot = ast.Attribute(target, attribute, ast.Load())
                found.append(assign(slot, call(name("nn.Parameter"), [blank], frozen)))
            else:
                register = ast.Attribute(target, "register_buffer", ast.Load())
                found.append(ast.Expr(call(register, [ast.Constant(attribute), blank])))
        return found


def _all_slots(block: Block) -> list[Slot]:
    """Return the slots of a block, with layers named as the block names them."""
    found: list[Slot] = []
    for tree in block.trees:
        for slot in slots(tree):
            layer = slot.layer if slot.forward else below(slot.layer, block.scope.path)
            found.append(Slot(slot.value, layer, slot.argument, slot.default, slot.channels, slot.forward, slot.owner))
    return found


def _signature(block: Block) -> str:
    heading = ",".join(block.forward.parameters) if block.forward else ""
    return f"{heading}\n{skeleton(block.trees)}"


def _text(block: Block) -> tuple[str, list[str]]:
    return _signature(block), [repr(slot.value) for slot in _all_slots(block)]


def class_names(classes: Sequence[Class], root: str, taken: set[str]) -> dict[str, str]:
    """Return the final name of every class: the original one, with what sets it apart where several share it."""
    names: dict[str, str] = {classes[-1].key: root}
    used = {root, *taken}
    kinds: dict[str, list[Class]] = {}
    for cls in classes[:-1]:
        if not cls.inline:
            kinds.setdefault(cls.kind, []).append(cls)
    for kind, variants in kinds.items():
        words = [_words(cls) for cls in variants]
        common = set.intersection(*map(set, words))
        for cls, own in sorted(zip(variants, words, strict=True), key=lambda pair: len(set(pair[1]) - common)):
            extra = [w for w in own if w not in common]
            stem = kind.lstrip("_") or "Block"
            stem = stem[0].upper() + stem[1:]
            candidates = [stem, *(f"{stem}{_camel(e)}" for e in extra), f"{stem}{''.join(map(_camel, extra))}"]
            fresh = next((c for c in candidates if c not in used and len(c) < 40), None)
            number = 2
            while fresh is None:
                fresh = f"{stem}{number}" if f"{stem}{number}" not in used else None
                number += 1
            used.add(fresh)
            names[cls.key] = fresh
    return names


def _words(cls: Class) -> list[str]:
    """Return the names of what a class has: its attributes, the classes of its layers."""
    found: dict[str, None] = {}
    for tree in cls.blocks[0].trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found[node.attr] = None
    return [word for word in found if word not in {"Module", "Sequential"}]


def _camel(word: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"_+", word))
