"""Draw docs/compile.svg: what `secateur compile digits` prints, from a run made now.

python benchmarks/picture.py
"""

from __future__ import annotations

import io
import json
import re
import tempfile
from pathlib import Path
from time import perf_counter

import torch
from rich.console import Console

from secateur.backends import artefact, tables
from secateur.backends.compile import compile
from secateur.compiler import sources

PIPELINE = "prune{macs=0.8 scope=global}"
COMMAND = f"secateur compile digits --pipeline '{PIPELINE}' -o build/digits"
PICTURE = Path(__file__).parent.parent / "docs" / "compile.svg"


def main() -> None:
    """Compile the embedded example and export the terminal picture."""
    start = perf_counter()
    source = sources.resolve("digits")
    inputs = tuple(torch.zeros(shape) for shape in source.input_shapes)
    compiled = compile(source.module, inputs, pipeline=PIPELINE, name=source.class_name, source=source.spec)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "digits"
        compiled.save(target)
        report = artefact.read_report(target)
        plan = json.loads((target / "plan.json").read_text("utf-8"))
    console = Console(record=True, width=104, file=io.StringIO(), highlight=False, markup=False)
    console.print(f"$ {COMMAND}\n")
    console.print(tables.compilation(report, plan, "build/digits", perf_counter() - start))
    # Without the fonts that rich would have the viewer fetch.
    PICTURE.write_text(
        re.sub(r"\s*@font-face \{.*?\}", "", console.export_svg(title="secateur"), flags=re.DOTALL), "utf-8"
    )
    print(f"wrote {PICTURE.name}")


if __name__ == "__main__":
    main()
