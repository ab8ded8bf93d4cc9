"""Python text as trees: literals, slots (literals that may become parameters) and the layout of long lines.

The emitter builds ``ast`` trees, not strings, so that precedence, slices and tuples print themselves; two blocks are
the same class when their trees are equal with every slot blanked out.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, TypeVar, cast

import torch

from ...compiler.errors import CompilerError

WIDTH = 108
"""Columns that the layout aims at."""

MISSING: Any = object()

_Tree = TypeVar("_Tree", bound=ast.AST)


@dataclass(frozen=True)
class Slot:
    """A literal that may differ from one use of a block to the next."""

    value: Any
    layer: str
    """Where it stands: the layer's path within the block, or the function it is given to."""
    argument: str
    """The argument it is given to; for one of several numbers, what they are the numbers of."""
    default: Any = MISSING
    channels: bool = False
    """Counts channels: slots that do may share a parameter whatever their arguments are called."""
    forward: bool = False
    owner: str = ""
    """Class of the inner block that it is given to."""


class SlotExpr(ast.expr):
    """Stands for a slot in a tree, until :func:`resolve` replaces it."""

    _fields = ()

    def __init__(self, slot: Slot) -> None:
        super().__init__()
        self.slot = slot

    def __deepcopy__(self, memo: dict[int, Any]) -> SlotExpr:
        return self


def name(text: str) -> ast.expr:
    """Return the tree of a dotted name, ``self.features.stem``."""
    first, *rest = text.split(".")
    tree: ast.expr = ast.Name(first, ast.Load())
    for part in rest:
        tree = ast.Attribute(tree, part, ast.Load())
    return tree


def call(func: ast.expr, args: Sequence[ast.expr] = (), keywords: dict[str, ast.expr] | None = None) -> ast.Call:
    """Return the tree of a call."""
    return ast.Call(func, list(args), [ast.keyword(k, v) for k, v in (keywords or {}).items()])


def assign(target: ast.expr, value: ast.expr) -> ast.stmt:
    """Return the tree of ``target = value``."""
    return ast.Assign([target], value, lineno=0)


def literal(value: Any, leaf: Callable[[Any], ast.expr | None] | None = None) -> ast.expr:
    """Return the tree of a value that can be written down.

    Args:
        value: Numbers, strings, dtypes, devices, slices and any nest of tuples, lists and dicts of them.
        leaf: Asked first about every value on the way down; what it returns, unless ``None``, is used as it is.

    Raises:
        CompilerError: The value has no literal form.
    """

    def nested(inner: Any) -> ast.expr:
        return literal(inner, leaf)

    if leaf is not None and (found := leaf(value)) is not None:
        return found
    if isinstance(value, tuple) and hasattr(cast(Any, value), "_fields"):
        return call(name(type(cast(Any, value)).__name__), [nested(item) for item in cast(tuple[Any, ...], value)])
    if isinstance(value, tuple | list):
        items = [nested(item) for item in cast(Sequence[Any], value)]
        return ast.Tuple(items, ast.Load()) if isinstance(value, tuple) else ast.List(items, ast.Load())
    if isinstance(value, dict):
        entries = cast(dict[Any, Any], value)
        return ast.Dict([nested(k) for k in entries], [nested(v) for v in entries.values()])
    if isinstance(value, slice):
        parts = (None if part is None else nested(part) for part in (value.start, value.stop, value.step))
        return ast.Slice(*parts)
    if isinstance(value, range):
        return call(name("range"), [nested(value.start), nested(value.stop), nested(value.step)])
    return _scalar(value)


def _scalar(value: Any) -> ast.expr:
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
        return name(str(value))
    if isinstance(value, torch.device):
        return call(name("torch.device"), [ast.Constant(str(value))])
    if isinstance(value, float) and value != value:
        return call(name("float"), [ast.Constant("nan")])
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return call(name("float"), [ast.Constant(str(value))])
    if isinstance(value, bool | int | float) and value < 0:
        return ast.UnaryOp(ast.USub(), ast.Constant(-value))
    if value is None or isinstance(value, bool | int | float | complex | str | EllipsisType):
        return ast.Constant(value)
    raise CompilerError(f"a value of type {type(value).__name__} cannot be written as Python source")


def slots(tree: ast.AST) -> Iterator[Slot]:
    """Yield the slots of a tree, depth first, in the order in which they print."""
    if isinstance(tree, SlotExpr):
        yield tree.slot
        return
    for child in ast.iter_child_nodes(tree):
        yield from slots(child)


def skeleton(trees: Sequence[ast.AST]) -> str:
    """Return a text that is equal for trees that differ only in the values of their slots."""
    return "\n".join(ast.dump(tree) for tree in trees)


class _Resolver(ast.NodeTransformer):
    def __init__(self, replace: Callable[[Slot], ast.expr | None], rename: Callable[[str], str]) -> None:
        self.replace = replace
        self.rename = rename

    def visit_SlotExpr(self, node: SlotExpr) -> ast.expr | None:
        return self.replace(node.slot)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Name(self.rename(node.id), ast.Load())

    def visit_keyword(self, node: ast.keyword) -> ast.keyword | None:
        value = self.visit(node.value)
        return None if value is None else ast.keyword(node.arg, value)


def resolve(
    tree: _Tree, replace: Callable[[Slot], ast.expr | None], rename: Callable[[str], str] = lambda text: text
) -> _Tree:
    """Return a copy of a tree with its slots replaced; a keyword argument whose slot becomes ``None`` is dropped."""
    return cast(_Tree, _Resolver(replace, rename).visit(copy.deepcopy(tree)))


def flat(tree: ast.AST) -> str:
    """Print a tree on one line, with double quotes."""
    return re.sub(r"'([^'\"\\]*)'", r'"\1"', ast.unparse(tree))


def render(tree: ast.stmt, indent: int) -> list[str]:
    """Print a statement, indented, in as many lines as it needs."""
    if isinstance(tree, ast.Assign):
        return _wrap(tree.value, indent, f"{flat(_unbracketed(tree.targets[0]))} = ", "")
    if isinstance(tree, ast.AugAssign):
        head, _, _ = flat(tree).partition("= ")
        return _wrap(tree.value, indent, f"{head}= ", "")
    if isinstance(tree, ast.Return) and tree.value is not None:
        return _wrap(tree.value, indent, "return ", "")
    if isinstance(tree, ast.Expr):
        return _wrap(tree.value, indent, "", "")
    if isinstance(tree, ast.If):
        inner = [line for statement in tree.body for line in render(statement, indent + 4)]
        return [f"{' ' * indent}if {flat(tree.test)}:", *inner]
    return [" " * indent + flat(tree)]


def _unbracketed(target: ast.expr) -> ast.expr:
    """Print ``a, b = ...`` without the brackets that ast puts around a tuple on the left."""
    return ast.Name(", ".join(flat(e) for e in target.elts)) if isinstance(target, ast.Tuple) else target


def _is_list_of_layers(tree: ast.expr) -> bool:
    return isinstance(tree, ast.Call) and flat(tree.func) in {"nn.Sequential", "nn.ModuleDict", "super().__init__"}


def _wrap(tree: ast.expr, indent: int, lead: str, tail: str) -> list[str]:
    pad = " " * indent
    line = f"{pad}{lead}{flat(tree)}{tail}"
    layers = _is_list_of_layers(tree)
    if len(line) <= WIDTH and not (layers and len(line) > 72):
        return [line]
    if isinstance(tree, ast.BinOp):
        # The longest operand is the one worth breaking.
        left, right = flat(tree.left), flat(tree.right)
        if not isinstance(tree.left, ast.BinOp) and not isinstance(tree.right, ast.BinOp):
            operator = flat(ast.BinOp(ast.Name("a"), tree.op, ast.Name("b")))[1:-1]
            if len(left) >= len(right):
                return _wrap(tree.left, indent, lead, operator + right + tail)
            return _wrap(tree.right, indent, lead + left + operator, tail)
        return [line]
    brackets = _brackets(tree)
    if brackets is None:
        return [line]
    head, items, close = brackets
    if not items:
        return [line]
    if len(items) == 1 and items[0][0] == "" and _is_hugged(items[0][1]):
        # nn.ModuleList([ ... ]): one level of indentation is enough for both brackets.
        return _wrap(items[0][1], indent, lead + head, close + tail)
    together = pad + "    " + ", ".join(prefix + flat(item) for prefix, item in items)
    if len(together) <= WIDTH and not layers:
        return [pad + lead + head, together, pad + close + tail]
    if all(_is_atom(item) for _, item in items) and not layers:
        return [
            pad + lead + head,
            *_filled([prefix + flat(item) for prefix, item in items], indent + 4),
            pad + close + tail,
        ]
    lines = [pad + lead + head]
    for prefix, item in items:
        lines += _wrap(item, indent + 4, prefix, ",")
    return [*lines, pad + close + tail]


def _is_hugged(tree: ast.expr) -> bool:
    if isinstance(tree, ast.Call):
        return flat(tree.func) == "OrderedDict"
    return isinstance(tree, ast.List | ast.Dict | ast.Tuple)


def _is_atom(tree: ast.expr) -> bool:
    return isinstance(tree, ast.Name | ast.Constant) or (isinstance(tree, ast.Attribute) and _is_atom(tree.value))


def _filled(items: Sequence[str], indent: int) -> list[str]:
    """Return short items in as few lines as they need."""
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + len(item) + 2 <= WIDTH:
            lines[-1] += f" {item},"
        else:
            lines.append(f"{' ' * indent}{item},")
    return lines


def _brackets(tree: ast.expr) -> tuple[str, list[tuple[str, ast.expr]], str] | None:
    if isinstance(tree, ast.Call):
        items = [("", arg) for arg in tree.args] + [(f"{k.arg}=" if k.arg else "**", k.value) for k in tree.keywords]
        return f"{flat(tree.func)}(", items, ")"
    if isinstance(tree, ast.List | ast.Tuple):
        opening, closing = "[]" if isinstance(tree, ast.List) else "()"
        return opening, [("", item) for item in tree.elts], closing
    if isinstance(tree, ast.Dict):
        return "{", [(f"{flat(k)}: " if k else "**", v) for k, v in zip(tree.keys, tree.values, strict=True)], "}"
    return None
