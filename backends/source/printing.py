"""Classes as text."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Mapping, Sequence

from ...compiler.quantized import FAKE_QUANTIZED, QUANTIZED
from .classes import Block, Class
from .leaf import POSITIONAL
from .parameters import Parameter
from .syntax import MISSING, WIDTH, Slot, flat, literal, name, render, resolve, slots

_HELPERS = frozenset(kind.__name__ for kind in (*QUANTIZED.values(), *FAKE_QUANTIZED.values()))
_LISTED = 4
"""How many places of use a docstring names."""


def class_text(cls: Class, called: Mapping[str, str], extra: Sequence[str] = ()) -> str:
    """Return the text of a class.

    Args:
        cls: The class; what differs between its blocks is a parameter already.
        called: Final names of classes, by key.
        extra: Lines to add at the end of ``__init__``.
    """
    block = cls.blocks[0]
    fill = _filler(cls, block)
    lines = [f"class {called[cls.key]}({block.base}):"]
    if block.scope.path:
        lines += [f'    """{_places(cls)}"""', ""]
    lines += _init(cls, block, fill, called, extra)
    if block.forward is not None:
        lines += [*([""] if lines[-1] else []), *_forward(block, fill, called)]
    return "\n".join(lines)


def _places(cls: Class) -> str:
    paths = [block.scope.path for block in cls.blocks]
    listed = paths[:_LISTED] if len(paths) <= _LISTED else paths[: _LISTED - 1]
    while len(listed) > 1 and len(", ".join(listed)) > WIDTH - 20:
        listed.pop()
    more = len(paths) - len(listed)
    return f"{', '.join(listed)}{f' and {more} more' if more else ''}."


def _filler(cls: Class, block: Block) -> Callable[[Slot], ast.expr | None]:
    """Return what fills a slot: a parameter, or the value that all blocks agree on."""
    index = {id(slot): i for i, slot in enumerate(slot for tree in block.trees for slot in slots(tree))}
    by_slot: dict[int, Parameter] = {i: p for p in cls.parameters for i in p.members}

    def fill(slot: Slot) -> ast.expr | None:
        parameter = by_slot.get(index[id(slot)])
        if parameter is not None:
            return name(f"self.{parameter.name}" if slot.forward else parameter.name)
        return None if repr(slot.value) == repr(slot.default) else literal(slot.value)

    return fill


def _init(
    cls: Class,
    block: Block,
    fill: Callable[[Slot], ast.expr | None],
    called: Mapping[str, str],
    extra: Sequence[str],
) -> list[str]:
    body: list[str] = []
    if block.base == "nn.Module":
        body.append("        super().__init__()")
    stored = [f"        self.{p.name} = {p.name}" for p in cls.parameters if p.stored]
    for tree in block.init:
        body += render(_written(tree, fill, called), 8)
        if stored and body[-1].strip() == ")" and block.base != "nn.Module":
            body, stored = body + stored, []
    if stored:
        body[1:1] = stored
    body += [f"        {line}" for line in extra]
    if block.base == "nn.Module" and len(body) == 1 and not cls.parameters:
        return []
    return [*_signature(cls), *body]


def _signature(cls: Class) -> list[str]:
    arguments = ["self"]
    for parameter in cls.parameters:
        default = "" if parameter.default is MISSING else f" = {flat(literal(parameter.default))}"
        arguments.append(f"{parameter.name}: {parameter.annotation}{default}")
    line = f"    def __init__({', '.join(arguments)}) -> None:"
    if len(line) <= WIDTH:
        return [line]
    together = " " * 8 + ", ".join(arguments)
    if len(together) <= WIDTH:
        return ["    def __init__(", together, "    ) -> None:"]
    return ["    def __init__(", *(f"        {a}," for a in arguments), "    ) -> None:"]


def _forward(block: Block, fill: Callable[[Slot], ast.expr | None], called: Mapping[str, str]) -> list[str]:
    run = block.forward
    assert run is not None
    arguments: list[str] = []
    for parameter in run.parameters:
        typed = parameter in run.annotations and parameter not in run.defaults
        annotation = f": {run.annotations[parameter]}" if typed else ""
        default = f"={flat(literal(run.defaults[parameter]))}" if parameter in run.defaults else ""
        arguments.append(parameter + annotation + default)
    returns = f" -> {run.returns}" if run.returns else ""
    lines = [f"    def forward({', '.join(['self', *arguments])}){returns}:"]
    for tree in run.body:
        lines += render(_written(tree, fill, called), 8)
    return lines


class _Positional(ast.NodeTransformer):
    """Writes the arguments that everybody knows by their place without their names."""

    def __init__(self, classes: Collection[str]) -> None:
        self.classes = classes

    def is_class(self, func: ast.expr) -> bool:
        return isinstance(func, ast.Name) and func.id in self.classes

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        function = node.func
        if isinstance(function, ast.Attribute):
            layer = isinstance(function.value, ast.Name) and function.value.id == "nn"
        else:
            layer = isinstance(function, ast.Name) and function.id in _HELPERS
        known = POSITIONAL if layer else {"in_channels", "out_channels", "channels"} if self.is_class(node.func) else ()
        while node.keywords and node.keywords[0].arg in known:
            node.args.append(node.keywords.pop(0).value)
        return node


def _written(tree: ast.stmt, fill: Callable[[Slot], ast.expr | None], called: Mapping[str, str]) -> ast.stmt:
    filled = resolve(tree, fill, lambda text: called.get(text, text))
    return _Positional(called.values()).visit(filled)
