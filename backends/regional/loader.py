"""The ``model.py`` of a model that is Python around networks: it builds the original, and resizes what was pruned.

The code between the networks is torchvision's, or the user's own, and stays there: the file needs it, and nothing of
secateur. What is pruned is a table, a row per layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ... import __version__
from ...compiler import sources
from ...compiler.errors import CompilerError
from ..source.names import Names
from ..source.template import LOAD
from .calls import Convention
from .graph_code import GraphCode
from .region_source import SUPPORT, functions
from .structure import Differences, Layer

HEADER = '''"""{title}

Emitted by secateur {version}. This model is Python code around networks, and that code is not in here: this file needs
torch and {package}, builds the original model there, and gives the layers that were pruned their sizes. The weights are
in model.safetensors beside it.

    from model import load
    model = load()      # a {kind}, in eval mode; model.train() makes it trainable

    python model.py     # self-check: runs the model on a random image
"""
'''

BUILD = '''
LAYERS: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {{
{layers}
}}
"""Layer -> attributes that are others than in the original, and shapes of its tensors."""


def build() -> nn.Module:
    """Return the pruned model; its weights are whatever memory held."""
    model: nn.Module = {builder}
{changes}    for path, (attributes, shapes) in LAYERS.items():
        layer = model.get_submodule(path)
        vars(layer).update(attributes)
        for name, shape in shapes.items():
            before = getattr(layer, name)
            tensor = torch.empty(shape, dtype=before.dtype)
            if isinstance(before, nn.Parameter):
                layer._parameters[name] = nn.Parameter(tensor, requires_grad=before.requires_grad)
            else:
                layer._buffers[name] = tensor
{ties}    return model
'''

REPLACE = '''
def replace(
    model: nn.Module,
    path: str,
    kind: type[nn.Module],
    parameters: dict[str, torch.dtype],
    buffers: dict[str, torch.dtype],
) -> None:
    """Put a layer of another class in place of one; its attributes and sizes come later."""
    layer = kind.__new__(kind)
    nn.Module.__init__(layer)
    for name, dtype in parameters.items():
        layer.register_parameter(name, nn.Parameter(torch.empty(0, dtype=dtype)))
    for name, dtype in buffers.items():
        layer.register_buffer(name, torch.empty(0, dtype=dtype))
    owner, _, name = path.rpartition(".")
    model.get_submodule(owner)._modules[name] = layer
'''

MAIN = """
if __name__ == "__main__":
    images = [torch.rand({shape}) for _ in range({count})]
    with torch.no_grad():
        print(load()({call}))
"""


@dataclass(frozen=True)
class Builder:
    """How the original is built."""

    package: str
    """What has to be installed, or importable."""
    lines: tuple[str, ...]
    """Imports."""
    expression: str


def builder_of(source: Mapping[str, Any] | None) -> Builder:
    """Return how the model that a source records is built, without its weights.

    Args:
        source: ``ModelSource.spec``, or an artefact's: that of what it was made from counts.

    Raises:
        CompilerError: Nothing says how, since the model was given in memory.
    """
    source = sources.root(source)
    if source is None:
        raise CompilerError(
            "nothing says how the Python code of this model is built again: it was given in memory",
            hint="compile it from the command line, as a torchvision name or as module.path:callable",
        )
    name = str(source["model"])
    if source["kind"] == "torchvision":
        from ...compiler import vision

        models = vision.import_torchvision().models
        accepted = inspect.signature(models.get_model_builder(name)).parameters
        options = "".join(f", {option}=None" for option in ("weights", "weights_backbone") if option in accepted)
        return Builder("torchvision", ("import torchvision",), f'torchvision.models.get_model("{name}"{options})')
    if source["kind"] == "callable":
        path, _, attribute = name.partition(":")
        first, _, rest = attribute.partition(".")
        call = f"{first}.{rest}()" if rest else f"{first}()"
        return Builder(f"the module {path}", (f"from {path} import {first}",), call)
    return Builder("secateur", ("from secateur.compiler import sources",), f"sources.resolve({name!r}).module")


def emit_loader(
    builder: Builder,
    found: Differences,
    *,
    title: str,
    kind: str,
    convention: Convention,
    shape: tuple[int, ...],
    codes: Sequence[GraphCode] = (),
) -> str:
    """Return the text of ``model.py``.

    Args:
        builder: How the original is built.
        found: What is to be changed in it.
        title: For the first line.
        kind: Name of the model's class.
        convention: How it is called.
        shape: Of its input, [N, C, ...].
        codes: Of the submodules that run a graph in place of their own code.
    """
    names = Names()
    graphs = [*([SUPPORT.rstrip()] if codes else []), *(text.rstrip() for text in functions(codes, names))]
    imports = ["from __future__ import annotations", ""]
    imports += ["import json", "import struct", "from pathlib import Path", "from typing import Any", ""]
    imports += ["import torch", "from torch import Tensor, nn", "", *builder.lines]
    imports += [line for line in names.imports() if line not in imports]
    imports += sorted({f"import {layer.kind.rpartition('.')[0]}" for layer in found.layers.values() if layer.kind})
    build = BUILD.format(
        layers="\n".join(_row(path, layer) for path, layer in found.layers.items()),
        builder=builder.expression,
        changes=_changes(found),
        ties=_ties(found) + "".join(f"    run_graph(model, {c.path!r}, forward_{n})\n" for n, c in enumerate(codes)),
    )
    call = "images" if convention == "list" else "torch.stack(images)"
    parts = [HEADER.format(title=title, version=__version__, package=builder.package, kind=kind).rstrip()]
    parts += ["\n".join(dict.fromkeys(imports[:2])) + "\n" + "\n".join(imports[2:]), '__all__ = ["build", "load"]']
    parts += [REPLACE.rstrip()] if any(layer.kind for layer in found.layers.values()) else []
    parts += [
        *("\n" + helper for helper in names.helpers()),
        *graphs,
        build.rstrip(),
        LOAD.format(root="nn.Module", make="build").rstrip(),
    ]
    parts += [MAIN.format(shape=", ".join(map(str, shape[1:])), count=shape[0], call=call).rstrip()]
    return "\n\n".join(parts) + "\n"


def _row(path: str, layer: Layer) -> str:
    return f"    {path!r}: ({layer.attributes!r}, {layer.parameters | layer.buffers!r}),"


def _changes(found: Differences) -> str:
    """Return the lines that come before layers get their sizes."""
    lines: list[str] = []
    for path in found.removed:
        owner, _, name = path.rpartition(".")
        lines.append(f"    model.get_submodule({owner!r})._modules.pop({name!r}, None)")
    same: dict[str, list[str]] = {}
    for path, layer in found.layers.items():
        kinds = [
            {n: layer.dtypes[n] for n in names if n in layer.dtypes} for names in (layer.parameters, layer.buffers)
        ]
        if layer.kind is not None:
            tables = (", ".join(f"{name!r}: {dtype}" for name, dtype in kind.items()) for kind in kinds)
            same.setdefault(f"{layer.kind}, {', '.join(f'{{{table}}}' for table in tables)}", []).append(path)
            continue
        for name, dtype in kinds[0].items():
            value = f"nn.Parameter(torch.empty(0, dtype={dtype}))"
            lines.append(f"    model.get_submodule({path!r}).register_parameter({name!r}, {value})")
        for name, dtype in kinds[1].items():
            lines.append(f"    model.get_submodule({path!r}).register_buffer({name!r}, torch.empty(0, dtype={dtype}))")
    for kind, paths in same.items():
        lines += ["    for path in (", *(f"        {path!r}," for path in paths), "    ):"]
        lines.append(f"        replace(model, path, {kind})")
    return "".join(f"{line}\n" for line in lines)


def _ties(found: Differences) -> str:
    """Return the lines that come after."""
    lines: list[str] = []
    for first, second in found.ties:
        owner, _, name = second.rpartition(".")
        lines.append(f"    model.get_submodule({owner!r})._parameters[{name!r}] = model.get_parameter({first!r})")
    for wanted in (False, True):
        names = [name for name, trained in found.gradients.items() if trained is wanted]
        if names:
            lines += ["    for name in (", *(f"        {name!r}," for name in names), "    ):"]
            lines.append(f"        model.get_parameter(name).requires_grad_({wanted})")
    return "".join(f"{line}\n" for line in lines)
