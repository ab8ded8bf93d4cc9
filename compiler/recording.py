"""Watching a model run: which submodules are called with what, and which of their tensors Python code reads.

Two runs. The first records the tree of calls; from it, somebody chooses *closed* calls, whose inside is known
otherwise. The second records the tensors that go into and come out of closed calls, and who reads them in between.
Tensors are known by identity: what a call is given is what another one returned if it is the same object, unchanged
since.

Readers are seen twice over: by name where Python calls torch, and again by the dispatcher, which also sees what
compiled extensions and scripts call. Reading a size, a dtype or a device is no reading of values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import CaptureError
from .program import TensorSpec

_METADATA: Final = frozenset(
    "dim ndimension size stride numel nelement element_size get_device is_contiguous is_complex is_floating_point "
    "is_signed is_same_size storage_offset type __len__ __hash__ __repr__ __format__".split()
)
"""What may be asked of a tensor without reading its values. Attributes that are no tensors may be, too."""
_OPAQUE: Final = "<an object>"


@dataclass(eq=False)
class Call:
    """One call of a submodule, with the structure of what it was given and gave; no tensor is held."""

    number: int
    """In the order in which calls begin."""
    path: str
    module: nn.Module
    given: Structure
    gave: Structure | None = None
    parts: list[Call] = field(default_factory=list["Call"])
    """Calls inside."""


@dataclass(frozen=True, eq=False)
class Structure:
    """Nested lists, tuples and dicts, with a :class:`TensorSpec` in place of every tensor, and constants."""

    tree: pytree.TreeSpec
    leaves: tuple[Any, ...]

    @staticmethod
    def of(value: Any) -> Structure:
        """Take the structure of a value."""
        leaves, tree = pytree.tree_flatten(value)
        return Structure(tree, tuple(map(_leaf, leaves)))

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The tensors, in order."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, TensorSpec))

    @property
    def is_plain(self) -> bool:
        """Whether nothing stands between the tensors but constants."""
        return _OPAQUE not in self.leaves

    def filled(self, tensors: Iterable[Any]) -> Any:
        """Return a value of this structure with these tensors."""
        remaining = iter(tensors)
        leaves = [next(remaining) if isinstance(leaf, TensorSpec) else leaf for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, self.tree)

    def picked(self, value: Any) -> tuple[Any, ...]:
        """Return what stands in a value where this has tensors.

        Raises:
            ValueError: The value has another structure.
        """
        return tuple(leaf for leaf, recorded in self._pairs(value) if isinstance(recorded, TensorSpec))

    def differences(self, value: Any) -> tuple[tuple[Any, Any], ...]:
        """Return the constants that are others in a value, with what they are there.

        Raises:
            ValueError: The value has another structure.
        """
        pairs = [(recorded, leaf) for leaf, recorded in self._pairs(value) if not isinstance(recorded, TensorSpec)]
        return tuple((recorded, leaf) for recorded, leaf in pairs if _leaf(leaf) != recorded)

    def _pairs(self, value: Any) -> list[tuple[Any, Any]]:
        leaves, tree = pytree.tree_flatten(value)
        if tree != self.tree:
            raise ValueError(f"{tree} where {self.tree} was recorded")
        return list(zip(leaves, self.leaves, strict=True))


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor as it was at some moment."""

    tensor: Tensor
    version: int

    @staticmethod
    def of(tensor: Tensor) -> Held:
        """Take a tensor as it is."""
        return Held(tensor, tensor._version)


@dataclass(eq=False)
class ClosedCall:
    """A closed call with its tensors."""

    call: Call
    given: tuple[Held, ...]
    gave: tuple[Held, ...] = ()


Place = tuple[str, int]
"""A submodule, and which of the tensors that it is given or gives."""


@dataclass(frozen=True, eq=False)
class Watched:
    """What the second run found."""

    calls: tuple[ClosedCall, ...]
    """In the order run."""
    reads: dict[int, str]
    """Identity of a tensor of a closed call, a parameter or a buffer -> who read it outside of all closed calls."""
    result: tuple[Tensor, ...]
    """The tensors that the model returned."""

    @property
    def readers(self) -> dict[Place, str]:
        """What closed calls give -> who reads it outside of them."""
        reads = {**{id(tensor): "the model returns it" for tensor in self.result}, **self.reads}
        given = [(id(held.tensor), (c.call.path, i)) for c in self.calls for i, held in enumerate(c.gave)]
        return {place: reads[identity] for identity, place in given if identity in reads}

    @property
    def flows(self) -> dict[Place, set[Place | None]]:
        """What closed calls are given -> which closed calls it comes from, untouched (``None``: from none)."""
        found: dict[Place, set[Place | None]] = {}
        made: dict[tuple[int, int], Place] = {}
        for closed in self.calls:
            for i, held in enumerate(closed.given):
                found.setdefault((closed.call.path, i), set()).add(made.get((id(held.tensor), held.version)))
            for i, held in enumerate(closed.gave):
                made.setdefault((id(held.tensor), held.version), (closed.call.path, i))
        return found


@contextmanager
def unchanged(model: nn.Module, *, values: bool = False) -> Generator[None]:
    """Undo what happens to the attributes of modules inside: caches that a forward fills, flags.

    Args:
        model: Whose modules.
        values: Undo what happens to the numbers in buffers too: statistics that training updates.
    """
    registries = ("_parameters", "_buffers", "_modules")
    numbers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()] if values else []
    before = [(m, dict(m.__dict__), {r: dict(m.__dict__[r]) for r in registries}) for m in model.modules()]
    try:
        yield
    finally:
        for module, attributes, held in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for registry, entries in held.items():
                module.__dict__[registry].clear()
                module.__dict__[registry].update(entries)
        with torch.no_grad():
            for buffer, number in numbers:
                buffer.copy_(number)


def record(model: nn.Module, inputs: Sequence[Any]) -> Call:
    """Run a model once and return its call.

    Raises:
        CaptureError: It does not run.
    """
    run = _Run(())
    _execute(model, inputs, run)
    assert run.root is not None
    return run.root


def watch(model: nn.Module, inputs: Sequence[Any], closed: Collection[Call], *, training: bool = False) -> Watched:
    """Run a model once more and return what goes in and out of closed calls, and who reads it.

    Args:
        model: Left as it is.
        inputs: What it is called with.
        closed: Chosen from what :func:`record` returned. In training, all calls of these submodules are closed.
        training: Whether to run it as in training.

    Raises:
        CaptureError: It does not run, or calls other submodules than before.
    """
    run = _Run(closed, training=training)
    run.known |= {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    with unchanged(model, values=training), _Functions(run), _Dispatched(run):
        result = _execute(model, inputs, run)
    if len(run.done) != len(closed) and not training:
        raise CaptureError("the model calls other submodules each time that it runs", where=type(model).__name__)
    return Watched(tuple(run.done), run.reads, tuple(_tensors_in(result)))


def _execute(model: nn.Module, inputs: Sequence[Any], run: _Run) -> Any:
    handles: list[Any] = []
    with unchanged(model), torch.random.fork_rng(devices=[]), torch.no_grad():
        for path, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(run.entering(path), with_kwargs=True))
            handles.append(module.register_forward_hook(run.leaving, with_kwargs=True))
        try:
            for module in model.modules():
                if module.training != run.training:
                    module.__dict__["training"] = run.training
            result = model(*inputs)
            run.find_kept(model)
            return result
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            raise CaptureError(
                f"{type(model).__name__} does not run on these inputs: {type(error).__name__}: {first}",
                where=run.stack[-1].path if run.stack else None,
                hint="give the inputs that the model is called with, as a tuple",
            ) from error
        finally:
            for handle in handles:
                handle.remove()


class _Run:
    """What the hooks and modes of one run write down."""

    def __init__(self, closed: Collection[Call], *, training: bool = False) -> None:
        self.training = training
        self.closed = {call.path if training else call.number: call for call in closed}
        self.root: Call | None = None
        self.stack: list[Call] = []
        self.count = 0
        self.inside: Call | None = None
        """The closed call that is running."""
        self.busy = False
        self.done: list[ClosedCall] = []
        self.known: dict[int, Tensor] = {}
        """Identity -> a tensor whose readers matter, held so that no other gets its identity."""
        self.reads: dict[int, str] = {}

    def entering(self, path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            with self._quiet():
                call = Call(self.count, path, module, Structure.of((args, kwargs)))
                self.count += 1
                if self.stack:
                    self.stack[-1].parts.append(call)
                elif self.root is None:
                    self.root = call
                self.stack.append(call)
                before = self.closed.get(path if self.training else call.number)
                if before is not None and self.inside is None:
                    same = before.module is module and before.given.tree == call.given.tree
                    if not same and not self.training:
                        raise CaptureError("the model calls other submodules each time that it runs", where=path)
                    self.inside = call
                    self.done.append(ClosedCall(before, _held((args, kwargs))))

        return hook

    def leaving(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        del module, args, kwargs
        with self._quiet():
            call = self.stack.pop()
            call.gave = Structure.of(output)
            if self.inside is call:
                self.inside = None
                self.done[-1].gave = _held(output)
                self.known |= {id(held.tensor): held.tensor for held in self.done[-1].gave}

    def find_kept(self, model: nn.Module) -> None:
        """Write down what closed calls gave and modules keep in attributes: whoever looks there reads it."""
        given = {id(held.tensor) for closed in self.done for held in closed.gave}
        of_torch = vars(nn.Module())
        with self._quiet():
            for path, module in model.named_modules() if given else ():
                for name, value in vars(module).items():
                    found = given.intersection(map(id, _tensors_in(value))) if name not in of_torch else ()
                    self.reads |= dict.fromkeys(found, f"kept as {f'{path}.{name}'.lstrip('.')}")

    @contextmanager
    def _quiet(self) -> Generator[None]:
        """What hooks ask of tensors is nobody's reading."""
        before, self.busy = self.busy, True
        try:
            yield
        finally:
            self.busy = before

    def unread(self, arguments: Any) -> dict[int, Tensor]:
        """Return the tensors among arguments whose readers matter, and that nobody has read yet."""
        if self.busy or self.inside is not None:
            return {}
        with self._quiet():
            leaves = [x for x in pytree.tree_leaves(arguments) if _is_tensor(x)]
            return {id(x): x for x in leaves if id(x) in self.known and id(x) not in self.reads}

    def read(self, identities: Iterable[int], what: str) -> None:
        """Write down a reading; the name by which Python called it is put over the dispatcher's."""
        where = self.stack[-1].path if self.stack else ""
        self.reads |= dict.fromkeys(identities, f"{what} in {where or 'the model'}")


class _Functions(TorchFunctionMode):
    """Sees what Python calls, by name: also what reads memory without the dispatcher (``tolist``, ``numpy``)."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self.run = run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = self.run.unread((args, kwargs))
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", name)
            free = not _is_tensor(result)
        else:
            free = name in _METADATA
        if before and not free:  # to give what was given, unchanged, is no reading either: a flatten of what is flat
            self.run.read((i for i, tensor in before.items() if result is not tensor), name)
        return result


class _Dispatched(TorchDispatchMode):
    """Sees every operation that computes, whoever calls it."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self.run = run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.run.read(self.run.unread((args, kwargs)), str(func))
        return func(*args, **kwargs)


def _leaf(value: Any) -> Any:
    """Return what is remembered of a value: of an object of any class nothing, since it may hold tensors."""
    if _is_tensor(value):
        return TensorSpec(tuple(value.shape), value.dtype)
    return value if value is None or isinstance(value, (bool, int, float, str)) else _OPAQUE


def _tensors_in(value: Any, depth: int = 3) -> Iterator[Tensor]:
    """Yield the tensors in a value, also those that objects hold in their attributes, a few objects deep."""
    for leaf in pytree.tree_leaves(value):
        if _is_tensor(leaf):
            yield leaf
        elif depth and not isinstance(leaf, (nn.Module, type)):
            inside = leaf if isinstance(leaf, Mapping) else getattr(leaf, "__dict__", {})
            yield from _tensors_in(list(inside.values()), depth - 1)


def _held(value: Any) -> tuple[Held, ...]:
    return tuple(Held.of(leaf) for leaf in pytree.tree_leaves(value) if _is_tensor(leaf))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
