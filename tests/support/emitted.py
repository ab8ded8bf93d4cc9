"""Programs from toy modules, and emitted files as modules."""

from __future__ import annotations

import ast
import sys
from typing import Any

import torch
from torch import fx, nn

from secateur.backends.source.emit import emit_source, emitted_state
from secateur.compiler.program import InputSpec, Program

IMAGE = (2, 3, 16, 16)


def trace(module: nn.Module, *shapes: tuple[int, ...], name: str = "Net", seed: int = 0) -> Program:
    torch.manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) * 0.5 + 0.1)
    graph = fx.Tracer().trace(module)
    names = [n.target for n in graph.nodes if n.op == "placeholder"]
    inputs = tuple(InputSpec(str(n), shape) for n, shape in zip(names, shapes, strict=False))
    return Program(graph, module.eval(), inputs, name=name)


def run_source(text: str) -> Any:
    namespace: dict[str, Any] = {"__name__": "emitted", "__file__": "model.py"}
    exec(compile(text, "model.py", "exec"), namespace)
    return namespace[namespace["__all__"][0]]()


def assert_equal(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        ours, theirs = list(ours.values()), list(theirs.values())
    if isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_equal(a, b)
    else:
        assert torch.equal(ours, theirs)


def check(program: Program) -> str:
    """Emit, execute, compare in float64, train one step; return the text."""
    text = emit_source(program)
    assert text == emit_source(program)
    assert max(map(len, text.splitlines())) <= 120
    imported = {
        alias.name.partition(".")[0]
        for n in ast.walk(ast.parse(text))
        if isinstance(n, ast.Import)
        for alias in n.names
    } | {str(n.module).partition(".")[0] for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)}
    assert imported - sys.stdlib_module_names == {"torch"}
    model, original = run_source(text), program.module
    assert set(model.state_dict()) == set(emitted_state(program))
    assert set(original.state_dict()) <= set(model.state_dict())
    model.load_state_dict(emitted_state(program))
    model.double().eval()
    original.double().eval()
    inputs = [torch.rand(spec.shape, dtype=torch.float64) for spec in program.inputs]
    with torch.no_grad():
        assert_equal(model(*[t.clone() for t in inputs]), original(*[t.clone() for t in inputs]))
    model.train()
    result = model(*inputs)
    result = list(result.values()) if isinstance(result, dict) else result
    results = result if isinstance(result, list | tuple) else [result]
    torch.stack([t.sum() for t in results]).sum().backward()
    used = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None for gradient in used)
    return text
