"""What every program must satisfy, whichever pass made it. A violation is a bug of secateur.

* Nodes stand after what they read, know their readers, and end in exactly one output; inputs come first, as declared.
* Every module, parameter and buffer that the graph names exists; a root that a pass made holds nothing else.
* Recorded shapes are those that inference finds.
* Sizes that layers state about themselves agree with their parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from torch import fx, nn

from .errors import CompilerError, InternalError
from .layers import layer_class
from .ops import CLASSES, UNKNOWN
from .program import TRAINING, Program, TensorSpec
from .shapes import infer_node, set_value, value_of


def verify(program: Program) -> None:
    """Check a program.

    Raises:
        InternalError: What is wrong, and at which node or layer.
    """
    _check_order(program)
    _check_targets(program)
    _check_modules(program)
    _check_shapes(program)
    _check_nothing_unused(program)


def _check_order(program: Program) -> None:
    seen: set[fx.Node] = set()
    names: set[str] = set()
    for node in program.graph.nodes:
        for argument in node.all_input_nodes:
            if argument not in seen:
                known = argument.graph is program.graph
                problem = "before it is computed" if known else "which belongs to another graph"
                raise InternalError(f"node {node.name} reads {argument.name}, {problem}")
            if node not in argument.users:
                raise InternalError(f"node {argument.name} does not know its reader {node.name}")
        if node.name in names:
            raise InternalError(f"two nodes are called {node.name}")
        seen.add(node)
        names.add(node.name)
    for node in program.graph.nodes:
        for user in node.users:
            if user not in seen or node not in user.all_input_nodes:
                raise InternalError(f"node {node.name} has the reader {user.name}, which does not read it")
    outputs = [node for node in program.graph.nodes if node.op == "output"]
    if len(outputs) != 1 or next(iter(reversed(program.graph.nodes))) is not outputs[0]:
        raise InternalError(f"the graph has {len(outputs)} outputs; it must end in exactly one")
    placeholders = [node.name for node in program.graph.nodes if node.op == "placeholder"]
    if placeholders != [spec.name for spec in program.inputs]:
        raise InternalError(f"the graph takes {placeholders}, the program {[spec.name for spec in program.inputs]}")


def _check_targets(program: Program) -> None:
    for node in program.graph.nodes:
        if node.op not in ("call_module", "get_attr"):
            continue
        try:
            found = program.owner(node.target) if node.op == "call_module" else program.attribute(node.target)
        except AttributeError as error:
            kind = "layer" if node.op == "call_module" else "attribute"
            raise InternalError(f"node {node.name} names the {kind} {node.target!r}, which does not exist") from error
        if node.op == "call_module" and not isinstance(found, nn.Module):
            raise InternalError(f"node {node.name} calls {node.target!r}, which is no layer")


def _check_shapes(program: Program) -> None:
    """Infer every node again and compare; the recorded values are put back."""
    recorded = [node for node in program.graph.nodes if _has_value(node)]
    if not recorded:  # a graph whose shapes nobody inferred
        return
    inputs = {spec.name: TensorSpec(spec.shape, spec.dtype) for spec in program.inputs}
    for node in program.graph.nodes:
        if not _has_value(node):
            if node.op == "output":
                continue
            raise InternalError(f"node {node.name} has no recorded shape")
        if node.op == "get_attr" and node.target == TRAINING:
            continue  # changes with train() and eval()
        before = value_of(node)
        if node.op == "placeholder":
            again: Any = inputs[node.name]
        else:
            try:
                infer_node(program, node)
                again = value_of(node)
            except CompilerError as error:
                raise InternalError(f"node {node.name} does not run: {error.what}") from error
            finally:
                set_value(node, before)
        if again != before:
            raise InternalError(f"node {node.name} is recorded as {_brief(before)}, and is {_brief(again)}")


def _has_value(node: fx.Node) -> bool:
    try:
        value_of(node)
    except KeyError:
        return False
    return True


def _brief(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, TensorSpec) else str(value)


def _check_modules(program: Program) -> None:
    done: set[str] = set()
    for node in program.graph.nodes:
        if node.op != "call_module" or node.target in done:
            continue
        done.add(node.target)
        module = program.owner(node.target)
        for name, wanted in _sizes(module):
            tensor = getattr(module, name, None)
            if tensor is not None and tuple(tensor.shape) != wanted:
                raise InternalError(
                    f"layer {node.target} ({type(module).__name__}({module.extra_repr()})) needs a {name} of shape "
                    f"{list(wanted)}, and has {list(tensor.shape)}"
                )


def _sizes(module: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the parameters and buffers of a layer with the shapes that its own attributes ask for."""
    key = CLASSES.get(layer_class(type(module)), UNKNOWN)
    if key in ("conv", "conv_transpose"):
        for side in ("in_channels", "out_channels"):
            if getattr(module, side) % module.groups:
                raise InternalError(
                    f"{side} of {type(module).__name__}({module.extra_repr()}) is not divisible by groups"
                )
        outer, inner = module.out_channels, module.in_channels
        if key == "conv_transpose":
            outer, inner = inner, outer
        yield "weight", (outer, inner // module.groups, *module.kernel_size)
        yield "bias", (module.out_channels,)
    elif key == "group_norm" and module.num_channels % module.num_groups:
        raise InternalError(f"num_channels of GroupNorm({module.extra_repr()}) is not divisible by num_groups")
    for name, attributes in _STATED.get(key, {}).items():
        wanted: list[int] = []
        for attribute in attributes.split():
            value = getattr(module, attribute)
            wanted.extend(value if isinstance(value, tuple) else (value,))
        yield name, tuple(wanted)


_NORM: Final[Mapping[str, str]] = dict.fromkeys(["weight", "bias", "running_mean", "running_var"], "num_features")
_STATED: Final[Mapping[str, Mapping[str, str]]] = {
    "linear": {"weight": "out_features in_features", "bias": "out_features"},
    "batch_norm": _NORM,
    "instance_norm": _NORM,
    "layer_norm": {"weight": "normalized_shape", "bias": "normalized_shape"},
    "rms_norm": {"weight": "normalized_shape"},
    "group_norm": {"weight": "num_channels", "bias": "num_channels"},
    "prelu": {"weight": "num_parameters"},
    "embedding": {"weight": "num_embeddings embedding_dim"},
}
"""Operation key -> parameter -> the attributes that state its shape."""


def _check_nothing_unused(program: Program) -> None:
    """A user's model may own more than the graph names; a plain container that a pass filled may not."""
    if type(program.root) is not nn.Module:
        return
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_module"}
    used = called | {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}
    prefixes = {path[:i] for path in used for i in range(len(path)) if path[i] == "."} | {""}
    for path, module in program.root.named_modules(remove_duplicate=False):
        if path in called or any(path.startswith(f"{leaf}.") for leaf in called):
            continue
        if path in prefixes:
            names = [*module._parameters, *module._buffers]
            unused = [n for n in names if f"{path}.{n}".lstrip(".") not in used]
            if unused:
                raise InternalError(f"the graph does not use the tensor {f'{path}.{unused[0]}'.lstrip('.')!r}")
        else:
            raise InternalError(f"the graph does not use the module {path!r}")
