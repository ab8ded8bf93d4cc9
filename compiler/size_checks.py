"""Tracing where sizes stay values of the graph, for code that asks about them only to refuse some.

    if x.shape[-1] % 32 != 0:
        raise ValueError("...")

A question is answered for the sizes of the example inputs. What is traced then holds for all inputs that give the same
answers. Others go another way at the first question that they answer differently, with all answers before it alike: if
every path from there ends in a ``raise`` of the model's own, the model takes no such inputs, and sizes are free.

What follows from the number of channels is no question. Behind layers with weights it is known by being the same for
larger images; in front of them it is asked like the others, for nothing says which axis channels are.
"""

from __future__ import annotations

import dis
import operator
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import torch
from torch import fx, nn
from torch.fx.proxy import TraceError

from .errors import CompilerError
from .meta_values import NUMBERS, ValuedProxy, ValuedTracing, mapped, sources
from .program import submodule

_FACTS: Final = frozenset({"dtype", "device", "layout", "is_cuda", "requires_grad", "is_floating_point", "is_complex"})
"""What can be asked of a tensor without asking about its sizes."""

_CUTTING: Final = frozenset({"narrow", "split", "chunk", "tensor_split", "topk", "unfold"})

_CREATING: Final = (torch.empty, torch.zeros, torch.ones)

_TRIALS: Final = 64
"""Traces that may be spent on other answers."""

_RAISE: Final = dis.opmap["RAISE_VARARGS"]


class _Words(str):
    """A text that stands in a tuple without quotes: of quotes within quotes there would be no end."""

    __slots__ = ()
    __repr__ = str.__str__


class CheckedProxy(ValuedProxy):
    """A value of the graph that knows how many sizes it has, but none of them."""

    def __getattr__(self, name: str) -> Any:
        """Return what else a tensor has."""
        if name in ("dtype", "device"):
            return self.tracer.part(self, self.pair, name)
        return super().__getattr__(name)


class CheckedTracing(ValuedTracing):
    """What such tracers do.

    Args:
        images: Whether inputs are images, and known in two sizes.
        forced: What the first questions are answered with; later ones are answered as for the example inputs.
    """

    def __init__(self, *args: Any, images: bool, forced: Sequence[bool] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.images, self.forced = images, forced
        self.answers: dict[str, bool] = {}
        """By question, in the order in which they came up."""

    def proxy(self, node: fx.Node) -> CheckedProxy:
        """Return a value that knows its rank."""
        return CheckedProxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Answer a question: from what is forced, from what was answered before, or for the example inputs."""
        question = self._words(obj.node)
        if question in self.answers:
            return self.answers[question]
        value = self.pair_of(obj.node)[0]
        if not isinstance(value, NUMBERS):
            return super().to_bool(obj)  # says why that cannot be
        if self._is_fact(obj.node):
            return bool(value)
        place = len(self.answers)
        self.answers[question] = self.forced[place] if place < len(self.forced) else bool(value)
        return self.answers[question]

    def refused(self, error: BaseException) -> bool:
        """Tell whether an error is a ``raise`` of the model's own."""
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        if place is None or isinstance(error, (TraceError, CompilerError)):
            return False
        frame = place.tb_frame
        packages = {type(m).__module__.partition(".")[0] for m in self.root.modules()} - {nn.__name__.partition(".")[0]}
        own = str(frame.f_globals.get("__name__")).partition(".")[0] in packages
        return own and frame.f_code.co_code[place.tb_lasti] == _RAISE

    def _words(self, node: fx.Node) -> str:
        """Return how a number is computed from tensors: one text for one number."""
        if isinstance(self.pair_of(node)[0], torch.Tensor):
            return node.name
        args, kwargs = mapped((node.args, dict(node.kwargs)), lambda n: _Words(self._words(n)))
        return f"({node.op} {node.target} {args} {kwargs})"

    def _is_fact(self, node: fx.Node) -> bool:
        """Tell whether a number is the same for all sizes."""
        if not any(isinstance(self.pair_of(n)[0], torch.Tensor) for n in node.all_input_nodes):
            return bool(node.all_input_nodes) and all(map(self._is_fact, node.all_input_nodes))
        if str(node.args[1] if node.target is getattr else node.target) in _FACTS:
            return True
        if isinstance(_created_with(node), int):
            return True
        one, other = self.pair_of(node)
        before = sources({node}, lambda _: True)
        return self.images and one == other and any(map(self._weighs, before)) and not any(map(self._cuts, before))

    def _weighs(self, node: fx.Node) -> bool:
        """Tell whether a node would fail if channels were not where we think they are."""
        held = submodule(self.root, str(node.target)).parameters() if node.op == "call_module" else ()
        return any(tensor.numel() > 1 for tensor in held)

    def _cuts(self, node: fx.Node) -> bool:
        """Tell whether a node may make two sizes one."""
        if node.target is operator.getitem:
            return isinstance(self.pair_of(cast(fx.Node, node.args[0]))[0], torch.Tensor)
        return getattr(node.target, "__name__", node.target) in _CUTTING


def _created_with(node: fx.Node) -> Any:
    """Return what stands for a size where its tensor is made, if it is: ``torch.empty((batch, 0)).size(1)``."""
    made, axis = (*node.args, None)[:2]
    if node.target != "size" or not isinstance(made, fx.Node) or made.target not in _CREATING:
        return None
    sizes = made.args[0] if made.args else made.kwargs.get("size")
    return sizes[axis] if isinstance(sizes, (tuple, list)) and isinstance(axis, int) else None


def only_refusals(answers: Sequence[bool], trial: Callable[[Sequence[bool]], tuple[Sequence[bool], bool]]) -> bool:
    """Tell whether a model refuses all inputs that do not give these answers.

    Args:
        answers: Those of a trace that succeeded.
        trial: Traces with the first answers forced; returns all answers, and whether the model refused.
    """
    paths = _others(answers, 0)
    for _ in range(_TRIALS):
        if not paths:
            return True
        forced = paths.pop(0)
        further, refused = trial(forced)
        if not refused:
            return False
        paths += _others(further, len(forced))
    return False


def _others(answers: Sequence[bool], begin: int) -> list[list[bool]]:
    """Return the paths that turn off at one of the answers."""
    return [[*answers[:place], not answers[place]] for place in range(begin, len(answers))]
