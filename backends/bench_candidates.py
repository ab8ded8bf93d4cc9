"""What ``secateur bench DIR|MODEL ...`` times: models, and of artefacts the original, built again, as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ..compiler import sources
from ..compiler.capture import trace
from ..compiler.errors import ArtefactError, OptionError
from . import artefact, inputs
from .bench import Candidate
from .verify import rebuild


def load(
    models: Sequence[str],
    *,
    weights: str | None = None,
    shapes: Sequence[str] = (),
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Candidate]:
    """Build candidates, the original first.

    Args:
        models: Artefact directories and models, as ``inputs.load`` takes them. Artefacts must come from one original,
            which is then the first candidate; otherwise the first model named is.
        weights: Of the models that are not artefacts.
        shapes: Input shapes as text; by default those that the artefacts were compiled for, or the models ask for.
        seed: Of random weights.
        progress: Told, in a few words, what is being done.

    Raises:
        OptionError: Nothing is named, or the artefacts come from different originals.
        ArtefactError: An artefact is damaged.
        CompilerError: A model cannot be built or captured.
    """
    if not models:
        raise OptionError("bench needs something to time", hint="secateur bench DIR or secateur bench MODEL")
    found: list[Candidate] = []
    origins: list[Mapping[str, Any]] = []
    for name in models:
        progress(f"loading {name}")
        compiled = sources.is_artefact(name)
        given = inputs.load(name, weights=None if compiled else weights, shapes=shapes, seed=seed)
        examples = given.example_inputs()
        source = artefact.read_report(Path(name).expanduser()).get("source") if compiled else None
        if isinstance(source, Mapping) and source not in origins:
            if origins:
                raise OptionError(
                    "the artefacts come from different originals", where=name, hint="run bench once for each of them"
                )
            progress(f"building the original of {name} again")
            origin = cast("Mapping[str, Any]", source)
            found.insert(0, Candidate("original", trace(_original(origin, name), examples)))
            origins.append(origin)
        found.append(Candidate(_label(name, found), trace(given.module, examples)))
    return found


def _original(source: Mapping[str, Any], where: str) -> Any:
    try:
        return rebuild(source, Path(where))
    except (KeyError, TypeError) as error:
        raise ArtefactError(f"report.json is damaged: {error!r}", where=str(Path(where) / "report.json")) from error


def _label(name: str, found: Sequence[Candidate]) -> str:
    """Return a short name that no other candidate has."""
    taken = {candidate.name for candidate in found} | {"original"}
    short = Path(name).name or name
    return short if short not in taken else name if name not in taken else f"{name} ({len(found) + 1})"
