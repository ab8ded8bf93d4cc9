"""What the analysis found, as text, JSON, a Graphviz or GraphML graph, or a web page.

The JSON form is stable (``"format": 1``):

    model, inputs, channels, prunable
    groups      name, layers, readers, norms, width, prunable, cells (sizes of what must shrink alike, or goes as a
                whole), whole (whether it does; width and prunable count cells then), pins (node, reason, channels)
    balances    node, reason, rows, width
    layers      name, kind, channels, prunable, group
    edges       from, to, kind, node, channels, reason (see ``layer_graph``)
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import networkx as nx
import numpy as np

from . import layer_graph
from .dependency import Block, ChannelDependencies, ChannelGroup
from .errors import OptionError
from .program import Program

Content = dict[str, Any]


def check_format(name: str) -> None:
    """Refuse formats that do not exist.

    Raises:
        OptionError: Says which ones do.
    """
    if name not in _FORMATS:
        problem = "is not there yet" if name == "svg" else "is unknown"
        hint = f"one of {', '.join(_FORMATS)}" + ("; `dot -Tsvg` draws the dot format" if name == "svg" else "")
        raise OptionError(f"the format {name!r} {problem}", where="--format", hint=hint)


def render(deps: ChannelDependencies, program: Program, form: str = "text") -> str:
    """Return the analysis of a program in one of the formats, without a newline at its end.

    Raises:
        OptionError: There is no such format.
    """
    check_format(form)
    if form == "graphml":
        return "\n".join(nx.generate_graphml(layer_graph.build(deps, program)))
    return _FORMATS[form](content(deps, program))


def content(deps: ChannelDependencies, program: Program) -> Content:
    """Return what the JSON form holds."""
    graph = layer_graph.build(deps, program)
    groups = [_group(group, deps, graph) for group in deps.groups if group.layers]
    return {
        "format": 1,
        "model": program.name,
        "inputs": [{"name": i.name, "shape": list(i.shape)} for i in program.inputs],
        "channels": sum(g["width"] for g in groups),
        "prunable": sum(g["prunable"] for g in groups),
        "groups": groups,
        "balances": [
            {"node": b.node, "reason": b.reason, "rows": len(b.cells), "width": int(b.cells.shape[1])}
            for b in deps.balances
        ],
        "layers": [{"name": name, **data} for name, data in graph.nodes(data=True)],
        "edges": [{"from": a, "to": b, **data} for a, b, data in graph.edges(data=True)],
    }


def _group(group: ChannelGroup, deps: ChannelDependencies, graph: nx.MultiDiGraph[str]) -> Content:
    inside = set(group.layers)
    readers: dict[str, None] = {}
    for layer in group.layers:
        for _, target, data in graph.out_edges(layer, data=True) if layer in graph else ():
            if data["kind"] == "reads" and graph.nodes[target]["kind"] not in _PASSING:
                readers[target] = None
    pins: dict[tuple[str, str], int] = {}
    for pin in group.pins:
        count = len(np.intersect1d(deps.class_of[pin.atoms], group.classes))
        pins[pin.node, pin.reason] = max(pins.get((pin.node, pin.reason), 0), count)
    return {
        "name": group.name,
        "layers": list(group.layers),
        "readers": [layer for layer in graph.nodes if layer in readers],
        "width": group.width,
        "prunable": group.prunable,
        "cells": [size for block in group.blocks for size in _cells_of(block)],
        "whole": any(block.whole for block in group.blocks),
        "pins": [{"node": node, "reason": why, "channels": number} for (node, why), number in pins.items()],
        "norms": sorted(
            {t for layer in inside if layer in graph for _, t in graph.out_edges(layer)}
            & {n for n, data in graph.nodes(data=True) if data["kind"] in _PASSING}
        ),
    }


def _cells_of(block: Block) -> list[int]:
    """Return the sizes of what must shrink alike, or goes as a whole: the smallest, if layers have several."""
    if block.whole:
        return [min(block.units)] * len(block.classes)
    return [len(cell) for cell in block.cells] if len(block.cells) > 1 else []


_PASSING: Final = ("batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm", "prelu")
"""Layers that pass on the channels that they read."""


def _text(found: Content) -> str:
    inputs = ", ".join(f"{i['name']} {'x'.join(map(str, i['shape']))}" for i in found["inputs"])
    count = len(found["groups"])
    head = f"{found['model']} ({inputs}): {_plural(count, 'group')} of coupled layers"
    what = "channels and cells" if any(group["whole"] for group in found["groups"]) else "channels"
    lines = [f"{head}, {found['prunable']} of {found['channels']} {what} may be removed"]
    for group in found["groups"]:
        lines += ["", *_group_lines(group)]
    return "\n".join(lines)


def _group_lines(group: Content) -> list[str]:
    state = "" if group["prunable"] == group["width"] else f", {group['prunable']} may be removed"
    if not group["prunable"]:
        state = ", all stay"
    lines = [f"{group['name']}: {_plural(group['width'], 'cell' if group['whole'] else 'channel')}{state}"]
    if len(group["layers"]) > 1:
        lines += _wrapped("coupled", group["layers"])
    lines += _wrapped("read by", group["readers"])
    if group["cells"]:
        sizes = " or ".join(map(str, sorted(set(group["cells"]))))
        what = "go as wholes" if group["whole"] else "shrink alike"
        lines.append(f"  cells     {len(group['cells'])} x {sizes} channels, which {what}")
    for pin in group["pins"]:
        part = "" if pin["channels"] == group["width"] else f"{pin['channels']} channels: "
        lines.append(f"  stays     {part}{pin['reason']} (node {pin['node']})")
    return lines


def _wrapped(title: str, names: list[str], width: int = 108) -> list[str]:
    lines: list[str] = []
    line = ""
    for name in names:
        if line and len(line) + len(name) + 2 > width:
            lines.append(f"{line},")
            line = name
        else:
            line = f"{line}, {name}" if line else name
    lines += [line] if line else []
    return [f"  {title if i == 0 else '':<10}{text}" for i, text in enumerate(lines)]


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _dot(found: Content) -> str:
    lines = [f"digraph {_quoted(found['model'])} {{", "  rankdir=TB; node [shape=box, fontname=Helvetica];"]
    for layer in found["layers"]:
        label = f"{layer['name']}\\n{layer['kind']} {layer['channels']}"
        style = "" if layer["prunable"] else ", style=filled, fillcolor=lightgrey"
        lines.append(f"  {_quoted(layer['name'])} [label={_quoted(label)}{style}];")
    for edge in found["edges"]:
        ends = f"{_quoted(edge['from'])} -> {_quoted(edge['to'])}"
        if edge["kind"] == "coupled":
            hint = _quoted(f"{edge['reason']} (node {edge['node']})")
            lines.append(f"  {ends} [dir=none, style=dashed, color=firebrick, constraint=false, tooltip={hint}];")
        else:
            lines.append(f"  {ends};")
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'


def _html(found: Content) -> str:
    title = html.escape(str(found["model"]))
    rows = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in _cells(group))}</tr>" for group in found["groups"])
    head = "".join(f"<th>{name}</th>" for name in ("group", "channels", "may go", "layers", "read by", "why they stay"))
    style = "body{font:14px sans-serif;margin:2em}td,th{text-align:left;vertical-align:top;padding:.3em 1em .3em 0}"
    summary = f"{found['prunable']} of {found['channels']} channels may be removed."
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f"<style>{style}th{{border-bottom:1px solid}}</style></head>\n<body><h1>{title}</h1><p>{summary}</p>\n"
        f"<table><tr>{head}</tr>\n{rows}\n</table></body></html>"
    )


def _cells(group: Content) -> list[str]:
    pins = [f"{pin['reason']} (node {pin['node']})" for pin in group["pins"]]
    texts = [group["name"], group["width"], group["prunable"], ", ".join(group["layers"]), ", ".join(group["readers"])]
    return [*(html.escape(str(text)) for text in texts), "<br>".join(map(html.escape, pins))]


def _json(found: Content) -> str:
    return json.dumps(found, indent=1)


_FORMATS: Final[Mapping[str, Callable[[Content], str]]] = {
    "text": _text,
    "json": _json,
    "dot": _dot,
    "graphml": _json,  # never called: networkx writes this one from the graph itself
    "html": _html,
}
