"""How the operations of a block are written: infix operators, calls, attributes, picks from a shape."""

from __future__ import annotations

import ast
import inspect
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import fx

from ...compiler.errors import CompilerError
from ...compiler.program import Program, TensorSpec
from ...compiler.shapes import value_of
from .members import Member
from .names import Names
from .syntax import Slot, SlotExpr, call, literal, name
from .tree import Scope, below, gathered, is_flag, is_local, local_names, tensor_of

Read = Callable[[fx.Node], ast.expr]
"""How a value is read where an expression needs it: by its variable, or by the expression that makes it."""

_INFIX: dict[Any, type[ast.operator]] = {
    operator.add: ast.Add,
    operator.sub: ast.Sub,
    operator.mul: ast.Mult,
    operator.truediv: ast.Div,
    operator.floordiv: ast.FloorDiv,
    operator.mod: ast.Mod,
    operator.pow: ast.Pow,
    operator.matmul: ast.MatMult,
    operator.and_: ast.BitAnd,
    operator.or_: ast.BitOr,
}
_COMPARE: dict[Any, type[ast.cmpop]] = {
    operator.eq: ast.Eq,
    operator.ne: ast.NotEq,
    operator.lt: ast.Lt,
    operator.le: ast.LtE,
    operator.gt: ast.Gt,
    operator.ge: ast.GtE,
}


_SPLITS = frozenset({"split", "split_with_sizes"})


class Expressions:
    """Writes the operations of one block."""

    def __init__(self, program: Program, scope: Scope, tree: Member, names: Names) -> None:
        self.program, self.scope, self.tree, self.names = program, scope, tree, names
        self.local = {item for item in scope.items if not isinstance(item, Scope)}
        self.gathered = gathered(scope) if scope.path else None

    def is_free(self, node: fx.Node) -> bool:
        """Return whether a node only picks from a shape, which is written wherever it is needed."""
        if node.op != "call_function" or node.target is not operator.getitem or node not in self.local or node.kwargs:
            return False
        base, index = node.args
        of_shape = isinstance(base, fx.Node) and bool(
            base.target == "size" or (base.target is getattr and base.args[1] == "shape")
        )
        return of_shape and isinstance(index, int) and node not in self.scope.outputs

    def expanded(self, node: fx.Node, of: Read) -> ast.expr:
        """Read a value; a pick from a shape is written out."""
        if self.is_free(node):
            base, index = node.args
            return ast.Subscript(of(cast(fx.Node, base)), literal(index), ast.Load())
        return of(node)

    def evaluation_order(self, write: Callable[[Callable[[fx.Node], ast.expr]], Any]) -> list[fx.Node]:
        """Return the values that a written form reads, as often and in the order in which it does."""
        order: list[fx.Node] = []

        def note(node: fx.Node) -> ast.expr:
            if not is_local(node, self.scope.path):
                order.append(node)
            return ast.Name("_")

        write(note)
        return order

    def attribute(self, node: fx.Node) -> ast.expr | None:
        """Return how a ``get_attr`` node is written in this block, ``None`` for any other value."""
        if not is_local(node, self.scope.path):
            return None
        if is_flag(node):
            return name("self.training")
        if tensor_of(self.program, node) is None:
            return literal(self.program.attribute(str(node.target)))
        return self.tree.access(below(str(node.target), self.scope.path))

    def argument(self, node: fx.Node, value: Any, hint: str, of: Read, slots: bool = True) -> ast.expr:
        """Write one argument of a node: other values, literals, and numbers as slots."""

        def leaf(inner: Any) -> ast.expr | None:
            if isinstance(inner, fx.Node):
                return self.expanded(inner, of)
            if slots and _is_number(inner):
                return SlotExpr(Slot(inner, callee(node), hint, forward=True))
            if isinstance(inner, slice) and node.target is not operator.getitem:  # no colons outside of brackets
                return call(name("slice"), [literal(part, leaf) for part in (inner.start, inner.stop, inner.step)])
            return None

        return literal(value, leaf)

    def written(self, node: fx.Node, of: Read) -> ast.expr:
        """Write a node.

        Raises:
            CompilerError: It has no stand-alone form.
        """
        try:
            return self._written_node(node, of)
        except CompilerError as error:
            raise CompilerError(error.what, where=error.where or node.name, hint=error.hint) from error

    def _written_node(self, node: fx.Node, of: Read) -> ast.expr:
        target: Any = node.target
        if node.op == "call_function" and not node.kwargs and node is not self.gathered:
            operands = [
                lambda i=i, slots=True: self.argument(node, node.args[i], f"arg{i}", of, slots)
                for i in range(len(node.args))
            ]
            if target in _INFIX:
                return ast.BinOp(operands[0](), _INFIX[target](), operands[1]())
            if target in _COMPARE:
                return ast.Compare(operands[0](), [_COMPARE[target]()], [operands[1]()])
            if target is operator.neg:
                return ast.UnaryOp(ast.USub(), operands[0]())
            if target is operator.getitem:
                index = node.args[1]
                plain = self.argument(node, index, "index", of, slots=not isinstance(index, int))
                return ast.Subscript(operands[0](), plain, ast.Load())
            if target is getattr and len(node.args) == 2 and isinstance(node.args[1], str):
                return ast.Attribute(operands[0](), node.args[1], ast.Load())
        if target is torch._assert:
            # The message quotes names of the traced graph.
            condition, message = self.argument(node, node.args[0], "condition", of), str(node.args[1])
            return call(name("torch._assert"), [condition, ast.Constant(re.sub(r"Proxy\(\w+\)", "...", message))])
        hints = _argument_names(target, len(node.args))
        arguments = [
            name("features") if node is self.gathered and i == 0 else self.argument(node, a, hints[i], of)
            for i, a in enumerate(node.args)
        ]
        given = {k: v for k, v in node.kwargs.items() if not _says_nothing(target, k, v)}
        keywords = {k: self.argument(node, v, k, of) for k, v in given.items()}
        if node.op == "call_module":
            path = local_names(self.program, self.scope.path, node)[0]
            return call(self.tree.access(path), arguments, keywords)
        if node.op == "call_method":
            return call(ast.Attribute(arguments[0], str(target), ast.Load()), arguments[1:], keywords)
        return call(name(self.names.function(target, node.name)), arguments, keywords)

    def named_tuples(self, value: Any) -> None:
        """Have the named tuples in an output defined in the file."""
        if isinstance(value, tuple) and hasattr(cast(Any, value), "_fields"):
            self.names.named_tuple(type(cast(Any, value)))
        if isinstance(value, tuple | list):
            for item in cast(Sequence[Any], value):
                self.named_tuples(item)
        elif isinstance(value, dict):
            for item in cast(dict[Any, Any], value).values():
                self.named_tuples(item)


def _is_number(value: Any) -> bool:
    if isinstance(value, tuple | list) and value and not hasattr(cast(Any, value), "_fields"):
        return all(isinstance(item, int) for item in cast(Sequence[Any], value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def _argument_names(target: Any, count: int) -> list[str]:
    """Return what a function calls its arguments, as far as it says; ``arg1`` otherwise."""
    known: list[str] = []
    if callee_name(target) in _SPLITS:
        known = ["input", "sizes"]
    elif inspect.isfunction(target):
        known = list(inspect.signature(target).parameters)
    return [known[i] if i < len(known) else f"arg{i}" for i in range(count)]


def _says_nothing(target: Any, argument: str, value: Any) -> bool:
    """Return whether an argument is ``None`` or ``False``, as it would be anyway."""
    if not (value is None or value is False) or not inspect.isfunction(target):
        return False
    parameter = inspect.signature(target).parameters.get(argument)
    return parameter is not None and parameter.default is value


def callee_name(target: Any) -> str:
    """Return the bare name of a function or a method."""
    return target if isinstance(target, str) else getattr(target, "__name__", "")


def callee(node: fx.Node) -> str:
    """Return the bare name of what a node calls."""
    return callee_name(node.target)


def type_of(node: fx.Node, *, alone: bool) -> str:
    """Return a value's type; where nothing is recorded, a block's only value is taken for a tensor."""
    try:
        value = value_of(node)
    except KeyError:
        return "Tensor" if alone or node.op == "get_attr" else ""
    return "Tensor" if isinstance(value, TensorSpec) else ""


def known_length(node: fx.Node) -> int | None:
    """Return how many parts a split has, where that is written down."""
    target = callee(node)
    if target not in {"split", "chunk", "split_with_sizes"} or node.op == "call_module" or len(node.args) < 2:
        return None
    size = node.args[1]
    if target == "chunk":
        return size if isinstance(size, int) else None
    return len(cast(Sequence[Any], size)) if isinstance(size, tuple | list) else None


def is_chunk(node: fx.Node) -> bool:
    """Return whether a node is a chunk, which may have fewer parts than asked for."""
    return callee(node) == "chunk"
