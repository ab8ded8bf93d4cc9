"""What is changed in place, and who else sees it.

``y = x[:, :3]; y.mul_(2); head(x)`` changes x through a view of it. The graph keeps such calls, in their order; the
analysis keeps the channels that both tensors hold, since a pruned view may be a copy.
"""

from __future__ import annotations

from typing import Final

from torch import fx, nn

from .program import TensorSpec, submodule

_IN_PLACE_OPERATORS: Final = frozenset("iadd isub imul itruediv ifloordiv imod ipow iand ior ixor imatmul".split())

# Calls whose result is, or may be, the memory of their first argument.
_VIEWS: Final = frozenset(
    "view reshape view_as reshape_as flatten unflatten squeeze unsqueeze permute transpose swapaxes swapdims t movedim "
    "moveaxis expand broadcast_to expand_as split split_with_sizes chunk tensor_split unbind getitem select narrow "
    "detach contiguous to float double half bfloat16 type_as dropout "
    "Flatten Unflatten Identity Dropout Dropout2d".split()
)


def is_in_place(node: fx.Node, root: nn.Module) -> bool:
    """Tell whether a call overwrites its first argument."""
    if node.op == "call_module":
        return bool(getattr(submodule(root, str(node.target)), "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_method":
        return name.endswith("_") and not name.endswith("__")
    operator = name in _IN_PLACE_OPERATORS and getattr(node.target, "__module__", "") == "_operator"
    named = name.endswith("_") and not name.endswith("__")
    return node.op == "call_function" and (named or operator or bool(node.kwargs.get("inplace")))


def seen_elsewhere(node: fx.Node, root: nn.Module) -> list[fx.Node]:
    """Return the tensors that an in-place call changes under another name and that are read after it."""
    target = node.args[0] if node.args else None
    if not isinstance(target, fx.Node) or not is_in_place(node, root):
        return []
    path = [target]
    while (parent := _viewed(path[-1], root)) is not None:
        path.append(parent)
    found: list[fx.Node] = []
    stack: list[tuple[fx.Node, bool]] = [(path[-1], True)]
    while stack:
        view, is_ancestor = stack.pop()
        if view is not target and view < node and any(node < user for user in view.users):
            found.append(view)
        for user in view.users:
            apart = is_ancestor and user not in path and _is_tuple(view)  # pieces of a split share nothing
            if user is not node and user < node and _viewed(user, root) is view and not apart:
                stack.append((user, user in path))
    # Of the pieces that the target is one of, the others share nothing with it; pieces of the target itself do.
    return [view for view in found if not (_is_tuple(view) and view in path)]


def _viewed(node: fx.Node, root: nn.Module) -> fx.Node | None:
    """Return the tensor whose memory a call's result may share."""
    if node.op not in ("call_module", "call_function", "call_method"):
        return None
    if node.op == "call_module":
        name = type(submodule(root, str(node.target))).__name__
    else:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    first = node.args[0] if node.args else None
    return first if isinstance(first, fx.Node) and (name in _VIEWS or is_in_place(node, root)) else None


def _is_tuple(node: fx.Node) -> bool:
    return not isinstance(node.meta.get("secateur_value"), TensorSpec)
