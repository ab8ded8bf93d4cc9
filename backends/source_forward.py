"""The ``forward`` of one block, as statements a person would write.

Values used once are written where they are used, as long as the order of evaluation stays that of the graph (layers
may be random, or work in place) and the line stays readable. Names are reused the way people do: ``x`` goes through the
layers, a value that waits for a later addition gets a name of its own.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx

from ..compiler.errors import CompilerError
from ..compiler.program import Program
from .source_ast import Slot, SlotExpr, assign, call, flat, literal, name, resolve
from .source_members import Member
from .source_names import Names
from .source_tree import Scope, below, gathered, is_flag, is_local, local_names, tensor_of

_LINE = 84
"""Longest expression that calls are nested into."""
_DEPTH = 3
"""Deepest nest of calls."""

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
_AUGMENTED: dict[Any, type[ast.operator]] = {
    operator.iadd: ast.Add,
    operator.isub: ast.Sub,
    operator.imul: ast.Mult,
    operator.itruediv: ast.Div,
}
_COMPARE: dict[Any, type[ast.cmpop]] = {
    operator.eq: ast.Eq,
    operator.ne: ast.NotEq,
    operator.lt: ast.Lt,
    operator.le: ast.LtE,
    operator.gt: ast.Gt,
    operator.ge: ast.GtE,
}
_TRUNK = ("x", "out", "y", "z")
_LAYER_LIKE = re.compile(
    r"(conv|bn|norm|relu|act|silu|gelu|fc|pool|avgpool|maxpool|layer|stage|block|features|classifier|dropout|drop|stem"
    r"|head|body|up|down|lin|linear|proj|expand|reduce|squeeze|stochastic_depth|mlp|trans|flatten|backbone|op)\w*"
)
_SHORTCUT = re.compile(r"(downsample|shortcut|skip|identity|residual)\w*")


@dataclass(eq=False)
class Forward:
    """A ``forward``: its parameters, with defaults, and its statements."""

    parameters: list[str]
    defaults: dict[str, Any]
    body: list[ast.stmt]
    plain: bool
    """One tensor in, one tensor out, as far as the graph can tell."""


@dataclass(eq=False)
class _Step:
    """One operation: the values that it makes, and how it is written."""

    makes: list[fx.Node | None]
    write: Callable[[Callable[[fx.Node], ast.expr]], ast.expr]
    hint: str
    augmented: type[ast.operator] | None = None
    statement: bool = False
    """Has no value that anyone uses."""
    order: list[fx.Node] = field(default_factory=list[fx.Node])
    """The values that it uses, as often and in the order in which the written form evaluates them."""


@dataclass(eq=False)
class _Pending:
    """A value that is not written down yet."""

    step: _Step
    tree: ast.expr
    depth: int
    reads: list[fx.Node] = field(default_factory=list[fx.Node])


def forward(program: Program, scope: Scope, tree: Member, names: Names, placeholders: Sequence[fx.Node]) -> Forward:
    """Return the ``forward`` of a block.

    Args:
        program: The program that the block is part of.
        scope: The block.
        tree: What the block owns.
        names: Told about every function that is called.
        placeholders: Inputs of the whole model, for the root block.
    """
    return _Writer(program, scope, tree, names, placeholders).write()


class _Writer:
    def __init__(
        self, program: Program, scope: Scope, tree: Member, names: Names, placeholders: Sequence[fx.Node]
    ) -> None:
        self.program, self.scope, self.tree, self.names = program, scope, tree, names
        self.placeholders = placeholders
        self.output = next(node for node in program.graph.nodes if node.op == "output") if not scope.path else None
        self.bound: dict[fx.Node, str] = {}
        self.pending: list[_Pending] = []
        self.body: list[ast.stmt] = []
        self.held: list[fx.Node] = []
        self.local = {item for item in scope.items if not isinstance(item, Scope)}
        self.gathered = gathered(scope) if self.output is None else None
        self.steps = self._steps()
        self.last: dict[fx.Node, int] = {}
        for i, step in enumerate(self.steps):
            self.last |= dict.fromkeys(step.order, i)
        self.results = list(dict.fromkeys(self._result_order()))
        self.last |= dict.fromkeys(self.results, len(self.steps))
        self.count: dict[fx.Node, int] = {}
        for node in [n for step in self.steps for n in step.order] + self._result_order():
            self.count[node] = self.count.get(node, 0) + 1

    def write(self) -> Forward:
        parameters, defaults = self._parameters()
        for index, step in enumerate(self.steps):
            self._emit(index, step)
        wanted = [p.step.makes[0] for p in self.pending]
        if wanted and [n for n in self.results if n in wanted] != wanted:
            self._flush(len(self.pending), len(self.steps))
        waiting = {cast(fx.Node, p.step.makes[0]): p.tree for p in self.pending}

        def value(node: fx.Node) -> ast.expr:
            return waiting.get(node) or self._value(node)

        if self.output is not None:
            result = literal(
                self.output.args[0], lambda v: self._expanded(v, value) if isinstance(v, fx.Node) else None
            )
            self._named_tuples(self.output.args[0])
        else:
            trees = [self._expanded(node, value) for node in self.scope.outputs]
            result = trees[0] if len(trees) == 1 else ast.Tuple(trees, ast.Load())
        self.body.append(ast.Return(result))
        inputs = [n for n in (self.placeholders if self.output is not None else self.scope.inputs)]
        single = isinstance(self.output.args[0], fx.Node) if self.output is not None else len(self.results) == 1
        return Forward(parameters, defaults, self.body, single and len(inputs) == 1)

    # -- what there is to do

    def _steps(self) -> list[_Step]:
        folded: set[fx.Node] = set()
        steps: list[_Step] = []
        for item in self.scope.items:
            if isinstance(item, Scope):
                steps.append(self._block_step(item))
            elif item not in folded and not self._is_free(item):
                step = self._node_step(item)
                if parts := self._unpacked(item):
                    step.makes = parts
                    folded.update(item.users)
                steps.append(step)
        for step in steps:
            step.order = self._evaluation_order(step.write)
        return steps

    def _block_step(self, inner: Scope) -> _Step:
        target = self.tree.access(below(inner.path, self.scope.path))
        sources = inner.inputs
        return _Step(
            list(inner.outputs),
            lambda value: call(target, [self._expanded(n, value) for n in sources]),
            inner.path,
        )

    def _node_step(self, node: fx.Node) -> _Step:
        step = _Step([node], lambda value: self._written(node, value), "", statement=not node.users)
        if node.op == "call_module":
            step.hint = str(node.target)
        elif node.op == "call_function" and node.target in _AUGMENTED and isinstance(node.args[0], fx.Node):
            step.augmented = _AUGMENTED[node.target]
        elif node.op == "call_function" and node.target is getattr and isinstance(node.args[1], str):
            step.hint = "=" + node.args[1]
        elif node.op == "call_method" and node.target == "size":
            step.hint = "=size"
        return step

    def _unpacked(self, node: fx.Node) -> list[fx.Node | None] | None:
        """Return the parts of a value that is only ever taken apart, ``None`` for parts that nobody takes."""
        parts: dict[int, fx.Node] = {}
        for user in node.users:
            index = user.args[1] if len(user.args) == 2 else None
            if user.target is not operator.getitem or user not in self.local or user.args[0] is not node:
                return None
            if not isinstance(index, int) or index < 0 or index in parts:
                return None
            parts[index] = user
        length = _known_length(node)
        if length is None or not parts or max(parts) >= length or length < 2 or node in self.scope.outputs:
            return None
        if _is_chunk(node) and max(parts) != length - 1:  # chunk() may return fewer than it was asked for
            return None
        return [parts.get(i) for i in range(length)]

    def _is_free(self, node: fx.Node) -> bool:
        """Return whether a node only picks from a shape, which is written wherever it is needed."""
        if node.op != "call_function" or node.target is not operator.getitem or node not in self.local or node.kwargs:
            return False
        base, index = node.args
        of_shape = isinstance(base, fx.Node) and (
            base.target == "size" or (base.target is getattr and base.args[1] == "shape")
        )
        return of_shape and isinstance(index, int) and node not in self.scope.outputs

    def _expanded(self, node: fx.Node, of: Callable[[fx.Node], ast.expr]) -> ast.expr:
        if self._is_free(node):
            base, index = node.args
            return ast.Subscript(of(cast(fx.Node, base)), literal(index), ast.Load())
        return of(node)

    def _evaluation_order(self, write: Callable[[Callable[[fx.Node], ast.expr]], Any]) -> list[fx.Node]:
        order: list[fx.Node] = []

        def note(node: fx.Node) -> ast.expr:
            if not is_local(node, self.scope.path):
                order.append(node)
            return ast.Name("_")

        write(note)
        return order

    def _result_order(self) -> list[fx.Node]:
        value = self.output.args[0] if self.output is not None else list(self.scope.outputs)

        def write(of: Callable[[fx.Node], ast.expr]) -> ast.expr:
            return literal(value, lambda v: self._expanded(v, of) if isinstance(v, fx.Node) else None)

        return self._evaluation_order(write)

    # -- statements

    def _parameters(self) -> tuple[list[str], dict[str, Any]]:
        if self.output is not None:
            defaults: dict[str, Any] = {}
            for node in self.placeholders:
                self.bound[node] = str(node.target).lstrip("*")
                if node.args:
                    defaults[str(node.target)] = node.args[0]
            return [str(node.target) for node in self.placeholders], defaults
        if self.gathered is not None:
            return ["*features"], {}
        for node in self.scope.inputs:
            wanted = "x"
            if node.op == "get_attr":
                wanted = re.sub(r"_?\d+$", "", str(node.target).rpartition(".")[2])
            elif node.target == "size" or (node.target is getattr and node.args[1] == "shape"):
                wanted = "size"
            self.bound[node] = _unique(wanted, set(self.bound.values()))
        return [self.bound[node] for node in self.scope.inputs], {}

    def _emit(self, index: int, step: _Step) -> None:
        if step.augmented is not None and self._emit_augmented(index, step):
            return
        taken = self._taken(step, index)
        tree, depth = self._compose(step, taken)
        if depth > _DEPTH or len(_measure(tree)) > _LINE:
            taken = self._give_up(step, taken, index)
            tree, depth = self._compose(step, taken)
        reads = [n for n in step.order if n not in {p.step.makes[0] for p in taken}]
        reads = [n for p in taken for n in p.reads] + reads
        for p in taken:
            self.pending.remove(p)
        new = _Pending(step, tree, depth, reads)
        single = len(step.makes) == 1 and step.makes[0] is not None and self.count.get(step.makes[0], 0) == 1
        if single and not step.statement:
            self.pending.append(new)
            return
        self.held = reads
        self._flush(len(self.pending), index)
        self.held = []
        self._bind(new, index)

    def _compose(self, step: _Step, taken: Sequence[_Pending]) -> tuple[ast.expr, int]:
        trees = {cast(fx.Node, p.step.makes[0]): p.tree for p in taken}
        tree = step.write(lambda node: trees.get(node) or self._value(node))
        return tree, max((p.depth for p in taken), default=0) + isinstance(tree, ast.Call)

    def _taken(self, step: _Step, index: int) -> list[_Pending]:
        """Return the pending values that can be written into a step; write those down that stand in the way."""
        order = [node for node in step.order if step.order.count(node) == 1]
        while True:
            waiting = [cast(fx.Node, p.step.makes[0]) for p in self.pending]
            wanted = [node for node in order if node in waiting]
            if all(node not in waiting for node in step.order if node not in wanted) and (
                not wanted or waiting[-len(wanted) :] == wanted
            ):
                return self.pending[len(waiting) - len(wanted) :]
            self._flush(1, index)

    def _give_up(self, step: _Step, taken: Sequence[_Pending], index: int) -> list[_Pending]:
        """Write down what makes the expression too long; of three values or more, all, because they look alike."""
        left = list(taken)
        while left:
            count = len(left) if len(left) > 2 else 1
            self._flush(self.pending.index(left[count - 1]) + 1, index)
            left = left[count:]
            tree, depth = self._compose(step, left)
            if depth <= _DEPTH and len(_measure(tree)) <= _LINE:
                break
        return left

    def _emit_augmented(self, index: int, step: _Step) -> bool:
        """Write ``x += y``; right only where nobody reads the old ``x`` under another name afterwards."""
        (made,) = step.makes
        target, other = cast(fx.Node, made).args[:2]
        if not isinstance(target, fx.Node) or is_local(target, self.scope.path) or self.last[target] != index:
            return False
        waiting = [p.step.makes[0] for p in self.pending]
        if target in waiting:
            self._flush(waiting.index(target) + 1, index)
        if target is other or target not in self.bound or step.augmented is None or made is None:
            return False
        inlined = [p for p in self.pending if p.step.makes[0] is other]
        self.held = step.order
        if inlined and inlined[0] is self.pending[-1] and inlined[0].depth < _DEPTH:
            self.pending.pop()
            self.held = [*step.order, *inlined[0].reads]
            right = inlined[0].tree
        elif inlined:
            self._flush(len(self.pending), index)
            right = self._value(cast(fx.Node, other))
        else:
            right = self._argument(cast(fx.Node, made), other, "other", self._value)
        self._flush(len(self.pending), index)
        self.held = []
        variable = self.bound[target]
        self.body.append(ast.AugAssign(ast.Name(variable), step.augmented(), right))
        self.bound[made] = variable
        return True

    def _flush(self, count: int, index: int) -> None:
        """Write down the first pending values."""
        for _ in range(count):
            self._bind(self.pending.pop(0), index)

    def _bind(self, pending: _Pending, index: int) -> None:
        step = pending.step
        if step.statement:
            self.body.append(ast.Expr(pending.tree))
            return
        variables: list[str] = []
        for position, node in enumerate(step.makes):
            if node is None:
                variables.append("_")
                continue
            self.bound[node] = self._variable(pending, position, index, variables)
            variables.append(self.bound[node])
        targets = [ast.Name(v, ast.Store()) for v in variables]
        self.body.append(assign(targets[0] if len(targets) == 1 else ast.Tuple(targets, ast.Store()), pending.tree))

    # -- names

    def _variable(self, pending: _Pending, position: int, index: int, taken: Sequence[str]) -> str:
        made = pending.step.makes
        busy = {v for n, v in self.bound.items() if self._needed(n, pending, index)} | set(taken)
        if len(made) > 1:
            return next(n for n in (f"x{i}" for i in range(position + 1, 10**6)) if n not in busy)
        for node in pending.reads:
            variable = self.bound.get(node)
            if variable in _TRUNK and variable not in busy:
                return variable
        hint = pending.step.hint
        last = next((p for p in reversed(hint.split(".")) if not p.isdecimal()), "") if hint else ""
        if hint.startswith("="):
            return _unique(hint[1:], busy)
        if _SHORTCUT.fullmatch(last):
            return _unique("identity", busy)
        if last and last.isidentifier() and not _LAYER_LIKE.fullmatch(last):
            return _unique(last, busy)
        return next((n for n in _TRUNK if n not in busy), None) or _unique("x", busy)

    def _needed(self, node: fx.Node, pending: _Pending, index: int) -> bool:
        """Return whether a value is read after the statement that is being written."""
        if self.last.get(node, -1) > index:
            return True
        # Read by values that still wait to become part of an expression, by the current step, or by its expression.
        current = self.steps[index] if index < len(self.steps) else None
        in_current = node in (current.order if current is not None else self.results) and pending.step is not current
        return in_current or node in self.held or any(node in p.reads for p in self.pending)

    # -- expressions

    def _value(self, node: fx.Node) -> ast.expr:
        if is_local(node, self.scope.path):
            if is_flag(node):
                return name("self.training")
            if tensor_of(self.program, node) is None:
                return literal(self.program.attribute(str(node.target)))
            return self.tree.access(below(str(node.target), self.scope.path))
        return name(self.bound[node])

    def _argument(
        self, node: fx.Node, value: Any, hint: str, of: Callable[[fx.Node], ast.expr], slots: bool = True
    ) -> ast.expr:
        def leaf(inner: Any) -> ast.expr | None:
            if isinstance(inner, fx.Node):
                return self._expanded(inner, of)
            if slots and _is_number(inner):
                return SlotExpr(Slot(inner, _callee(node), hint, forward=True))
            return None

        return literal(value, leaf)

    def _written(self, node: fx.Node, of: Callable[[fx.Node], ast.expr]) -> ast.expr:
        try:
            return self._written_node(node, of)
        except CompilerError as error:
            raise CompilerError(error.what, where=error.where or node.name, hint=error.hint) from error

    def _written_node(self, node: fx.Node, of: Callable[[fx.Node], ast.expr]) -> ast.expr:
        target: Any = node.target
        if node.op == "call_function" and not node.kwargs and node is not self.gathered:
            operands = [
                lambda i=i, slots=True: self._argument(node, node.args[i], f"arg{i}", of, slots)
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
                plain = self._argument(node, index, "index", of, slots=not isinstance(index, int))
                return ast.Subscript(operands[0](), plain, ast.Load())
            if target is getattr and len(node.args) == 2 and isinstance(node.args[1], str):
                return ast.Attribute(operands[0](), node.args[1], ast.Load())
        if target is torch._assert:  # pyright: ignore[reportPrivateUsage]
            # The message quotes names of the traced graph.
            condition, message = self._argument(node, node.args[0], "condition", of), str(node.args[1])
            return call(name("torch._assert"), [condition, ast.Constant(re.sub(r"Proxy\(\w+\)", "...", message))])
        arguments = [
            name("features") if node is self.gathered and i == 0 else self._argument(node, a, f"arg{i}", of)
            for i, a in enumerate(node.args)
        ]
        keywords = {k: self._argument(node, v, k, of) for k, v in node.kwargs.items()}
        if node.op == "call_module":
            path = local_names(self.program, self.scope.path, node)[0]
            return call(self.tree.access(path), arguments, keywords)
        if node.op == "call_method":
            return call(ast.Attribute(arguments[0], str(target), ast.Load()), arguments[1:], keywords)
        return call(name(self.names.function(target, node.name)), arguments, keywords)

    def _named_tuples(self, value: Any) -> None:
        if isinstance(value, tuple) and hasattr(cast(Any, value), "_fields"):
            self.names.named_tuple(type(cast(Any, value)))
        if isinstance(value, tuple | list):
            for item in cast(Sequence[Any], value):
                self._named_tuples(item)
        elif isinstance(value, dict):
            for item in cast(dict[Any, Any], value).values():
                self._named_tuples(item)


def _is_number(value: Any) -> bool:
    if isinstance(value, tuple | list) and value and not hasattr(cast(Any, value), "_fields"):
        return all(isinstance(item, int) for item in cast(Sequence[Any], value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def _callee(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _measure(tree: ast.expr) -> str:
    """Return the text of an expression for its length: equal for blocks that are equal but for their slots."""
    return flat(resolve(tree, lambda _: ast.Constant(128)))


def _unique(wanted: str, busy: set[str]) -> str:
    if wanted not in busy:
        return wanted
    if wanted == "x":
        return next((n for n in _TRUNK if n not in busy), None) or _unique("x1", busy)
    return next(n for n in (f"{wanted}{i}" for i in range(2, 10**6)) if n not in busy)


def _known_length(node: fx.Node) -> int | None:
    """Return how many parts a split has, where that is written down."""
    target = _callee(node)
    if target not in {"split", "chunk", "split_with_sizes"} or node.op == "call_module" or len(node.args) < 2:
        return None
    size = node.args[1]
    if target == "chunk":
        return size if isinstance(size, int) else None
    return len(cast(Sequence[Any], size)) if isinstance(size, tuple | list) else None


def _is_chunk(node: fx.Node) -> bool:
    return _callee(node) == "chunk"
