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

from torch import fx

from ...compiler.functional import returned_in_evaluation
from ...compiler.program import Program
from .expression import Expressions, Read, is_chunk, known_length, type_of
from .members import Member
from .names import Names
from .syntax import assign, call, flat, literal, name, resolve
from .tree import Scope, below, is_local

_LINE = 84
"""Longest expression that calls are nested into."""
_DEPTH = 3
"""Deepest nest of calls."""

_AUGMENTED: dict[Any, type[ast.operator]] = {
    operator.iadd: ast.Add,
    operator.isub: ast.Sub,
    operator.imul: ast.Mult,
    operator.itruediv: ast.Div,
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
    annotations: dict[str, str]
    """Types of the parameters that have a known one."""
    returns: str
    """Type of the result; empty when it is not known."""


@dataclass(eq=False)
class _Step:
    """One operation: the values that it makes, and how it is written."""

    makes: list[fx.Node | None]
    write: Callable[[Read], ast.expr]
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
        self.scope, self.tree = scope, tree
        self.expressions = Expressions(program, scope, tree, names)
        self.placeholders = placeholders
        self.output = next(node for node in program.graph.nodes if node.op == "output") if not scope.path else None
        self.bound: dict[fx.Node, str] = {}
        self.pending: list[_Pending] = []
        self.body: list[ast.stmt] = []
        self.held: list[fx.Node] = []
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
                self.output.args[0], lambda v: self.expressions.expanded(v, value) if isinstance(v, fx.Node) else None
            )
            self.expressions.named_tuples(self.output.args[0])
        else:
            trees = [self.expressions.expanded(node, value) for node in self.scope.outputs]
            result = trees[0] if len(trees) == 1 else ast.Tuple(trees, ast.Load())
        self.body.append(ast.Return(result))
        return Forward(parameters, defaults, self.body, self._annotations(parameters), self._returns())

    def _annotations(self, parameters: Sequence[str]) -> dict[str, str]:
        if self.expressions.gathered is not None:
            return dict.fromkeys(parameters, "Tensor")
        inputs = self.placeholders if self.output is not None else self.scope.inputs
        found = {p: type_of(node, alone=len(inputs) == 1) for p, node in zip(parameters, inputs, strict=True)}
        return {parameter: kind for parameter, kind in found.items() if kind}

    def _returns(self) -> str:
        if self.output is not None:
            return type_of(self.results[0], alone=True) if isinstance(self.output.args[0], fx.Node) else ""
        kinds = [type_of(node, alone=len(self.results) == 1) for node in self.results]
        return "" if not all(kinds) else kinds[0] if len(kinds) == 1 else f"tuple[{', '.join(kinds)}]"

    # -- what there is to do

    def _steps(self) -> list[_Step]:
        folded: set[fx.Node] = set()
        steps: list[_Step] = []
        for item in self.scope.items:
            if isinstance(item, Scope):
                steps.append(self._block_step(item))
            elif item not in folded and not self.expressions.is_free(item):
                step = self._node_step(item)
                if parts := self._unpacked(item):
                    step.makes = parts
                    folded.update(item.users)
                steps.append(step)
        for step in steps:
            step.order = self.expressions.evaluation_order(step.write)
        return steps

    def _block_step(self, inner: Scope) -> _Step:
        target = self.tree.access(below(inner.path, self.scope.path))
        sources = inner.inputs
        return _Step(
            list(inner.outputs),
            lambda value: call(target, [self.expressions.expanded(n, value) for n in sources]),
            inner.path,
        )

    def _node_step(self, node: fx.Node) -> _Step:
        step = _Step([node], lambda value: self.expressions.written(node, value), "", statement=not node.users)
        if node.op == "call_module":
            step.hint = str(node.target)
        elif node.op == "call_function" and node.target in _AUGMENTED and isinstance(node.args[0], fx.Node):
            step.augmented = _AUGMENTED[node.target]
        elif node.op == "call_function" and node.target is getattr and isinstance(node.args[1], str):
            step.hint = "=" + node.args[1]
        elif node.op == "call_method" and node.target == "size":
            step.hint = "=size"
        elif node.target is operator.getitem and isinstance(base := node.args[0], fx.Node):
            of_shape = base.target == "size" or (base.target is getattr and base.args[1] == "shape")
            step.hint = "=size" if of_shape else ""
        return step

    def _unpacked(self, node: fx.Node) -> list[fx.Node | None] | None:
        """Return the parts of a value that is only ever taken apart, ``None`` for parts that nobody takes."""
        parts: dict[int, fx.Node] = {}
        for user in node.users:
            index = user.args[1] if len(user.args) == 2 else None
            if user.target is not operator.getitem or user not in self.expressions.local or user.args[0] is not node:
                return None
            if not isinstance(index, int) or index < 0 or index in parts:
                return None
            parts[index] = user
        length = known_length(node)
        if length is None or not parts or max(parts) >= length or length < 2 or node in self.scope.outputs:
            return None
        if is_chunk(node) and max(parts) != length - 1:  # chunk() may return fewer than it was asked for
            return None
        return [parts.get(i) for i in range(length)]

    def _result_order(self) -> list[fx.Node]:
        value = self.output.args[0] if self.output is not None else list(self.scope.outputs)

        def write(of: Read) -> ast.expr:
            return literal(value, lambda v: self.expressions.expanded(v, of) if isinstance(v, fx.Node) else None)

        return self.expressions.evaluation_order(write)

    # -- statements

    def _parameters(self) -> tuple[list[str], dict[str, Any]]:
        if self.output is not None:
            defaults: dict[str, Any] = {}
            for node in self.placeholders:
                self.bound[node] = str(node.target).lstrip("*")
                if node.args:
                    defaults[str(node.target)] = node.args[0]
            return [str(node.target) for node in self.placeholders], defaults
        if self.expressions.gathered is not None:
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
        made = step.makes[0] if step.makes else None
        if made is not None and made.target is returned_in_evaluation:
            self._flush(len(self.pending), index)
            answer = cast(fx.Node, made.args[0])
            only = ast.UnaryOp(ast.Not(), ast.Attribute(name("self"), "training", ast.Load()))
            self.body.append(ast.If(only, [ast.Return(self._value(answer))], []))
            self.bound[made] = self.bound[answer]
            return
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
            right = self.expressions.argument(made, other, "other", self._value)
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
        targets: list[ast.expr] = [ast.Name(v, ast.Store()) for v in variables]
        self.body.append(assign(targets[0] if len(targets) == 1 else ast.Tuple(targets, ast.Store()), pending.tree))

    # -- names

    def _value(self, node: fx.Node) -> ast.expr:
        return self.expressions.attribute(node) or name(self.bound[node])

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


def _measure(tree: ast.expr) -> str:
    """Return the text of an expression for its length: equal for blocks that are equal but for their slots."""
    return flat(resolve(tree, lambda _: ast.Constant(128)))


def _unique(wanted: str, busy: set[str]) -> str:
    if wanted not in busy:
        return wanted
    if wanted == "x":
        return next((n for n in _TRUNK if n not in busy), None) or _unique("x1", busy)
    return next(n for n in (f"{wanted}{i}" for i in range(2, 10**6)) if n not in busy)
