"""The emitted ``model.py``: a program as readable, stand-alone Python that needs only torch.

    tree        which nodes belong to which block        leaf        constructor calls of torch.nn layers
    members     which modules a block owns               parameters  constructor parameters of a class
    forward     the forward of a block                   names       functions, imports, helpers
    classes     blocks become classes                    syntax      literals, slots, layout

Every block is a class if it can be one; where it cannot (called twice in two ways, torn apart, weights shared across
blocks), the emitter starts again with that block dissolved into its parent, so it always ends with something correct.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence

import torch
from torch import fx, nn

from ... import __version__
from ...compiler.errors import InternalError
from ...compiler.program import Program
from .classes import Classes, class_names
from .leaf import stateless
from .names import Names
from .printing import class_text
from .template import HEADER, LOAD, MAIN
from .tree import DissolveError, build, is_flag, without_dead_nodes


def emit_source(
    program: Program, *, input_shapes: Sequence[Sequence[int]] | None = None, title: str | None = None
) -> str:
    """Return the text of a stand-alone ``model.py``.

    Its state_dict has the names of ``program.module``'s; see :func:`emitted_state` for what its weights file holds.

    Args:
        program: What to emit.
        input_shapes: Shapes for the self-check; the program's own example inputs by default.
        title: What the model is, for the first line.

    Raises:
        CompilerError: A layer or a function has no stand-alone form; the message names it.
    """
    program = without_dead_nodes(program)
    dissolved: frozenset[str] = frozenset()
    while True:
        names = Names()
        try:
            classes = Classes(program, names, _placeholders(program)).build(build(program, dissolved))
            break
        except DissolveError as error:
            if error.path in dissolved:
                raise InternalError(f"the block {error.path} was dissolved already") from error
            dissolved |= {error.path}
    root = _class_name(program.name)
    called = class_names(classes, root, names.taken())
    printed = [
        class_text(cls, called, _ties(program) if cls is classes[-1] else ()) for cls in classes if not cls.inline
    ]
    body = "\n\n\n".join(printed)
    for line in (
        "import json",
        "import struct",
        "from pathlib import Path",
        "import torch",
        "from torch import Tensor, nn",
    ):
        names.require(line)
    parts = [HEADER.format(title=title or root, version=__version__, root=root).rstrip()]
    parts.append("\n".join(["from __future__ import annotations", "", *names.imports()]))
    parts.append(f'__all__ = ["{root}", "load"]')
    parts += ["\n" + helper for helper in names.helpers()]
    parts += [
        "\n" + body,
        LOAD.format(root=root, make=root).rstrip(),
        MAIN.format(inputs=_inputs(program, input_shapes)).rstrip(),
    ]
    return "\n\n".join(parts) + "\n"


def emitted_state(program: Program) -> dict[str, torch.Tensor]:
    """Return the tensors that the weights file of an emitted ``model.py`` holds.

    That is the state_dict of ``program.module`` and, beside it, the tensors that the graph reads and that are not
    persistent there: the emitted file has no other way to know their values.
    """
    state = dict(program.module.state_dict())
    for node in program.graph.nodes:
        if (
            node.op == "get_attr"
            and not is_flag(node)
            and isinstance(value := program.attribute(node.target), torch.Tensor)
        ):
            state.setdefault(node.target, value.detach())
    return state


def _placeholders(program: Program) -> list[fx.Node]:
    return [node for node in program.graph.nodes if node.op == "placeholder"]


def _class_name(wanted: str) -> str:
    text = re.sub(r"\W", "_", wanted) or "Model"
    return f"Model{text}" if text[0].isdigit() or keyword.iskeyword(text) else text[0].upper() + text[1:]


def _inputs(program: Program, shapes: Sequence[Sequence[int]] | None) -> str:
    """Return the text of random inputs."""
    wanted = [tuple(shape) for shape in shapes] if shapes is not None else [spec.shape for spec in program.inputs]
    dtypes = [spec.dtype for spec in program.inputs] + [torch.float32] * len(wanted)
    made: list[str] = []
    for shape, dtype in zip(wanted, dtypes, strict=False):
        sizes = ", ".join(map(str, shape)) or "()"
        option = "" if dtype == torch.float32 else f", dtype={dtype}"
        made.append(f"torch.{'rand' if dtype.is_floating_point else 'zeros'}({sizes}{option})")
    return f"[{', '.join(made)}]"


def _ties(program: Program) -> list[str]:
    """Return the lines that make one tensor, or one layer, of what has two names."""
    lines: list[str] = []
    layers: dict[int, str] = {}
    tensors: dict[int, tuple[str, str]] = {}
    for node in program.graph.nodes:
        if node.op == "call_module" and not stateless(layer := program.owner(path := str(node.target))):
            first = layers.setdefault(id(layer), path)
            if first == path:
                found = [(f"{path}.{name}", p) for name, p in layer.named_parameters(remove_duplicate=False)]
            else:
                owner, _, name = path.rpartition(".")
                lines.append(f"{_submodule(owner)}.register_module({name!r}, {_submodule(first)})")
                continue
        elif node.op == "get_attr" and isinstance(value := program.attribute(str(node.target)), nn.Parameter):
            found = [(str(node.target), value)]
        else:
            continue
        for full, parameter in found:
            owner, _, name = full.rpartition(".")
            known = tensors.setdefault(id(parameter), (owner, name))
            line = f"{_submodule(owner)}.{name} = {_submodule(known[0])}.{known[1]}"
            if known != (owner, name) and line not in lines:
                lines.append(line)
    return ["# Weights that are shared.", *lines] if lines else []


def _submodule(path: str) -> str:
    if path and all(part.isidentifier() for part in path.split(".")):
        return f"self.{path}"
    return f'self.get_submodule("{path}")' if path else "self"
