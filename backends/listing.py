"""What ``secateur list`` shows: names and what they are. Imports no torch, so that lists come at once."""

from __future__ import annotations


def rows(what: str) -> list[tuple[str, str]]:
    """Return names and what they are.

    Args:
        what: models, criteria, methods, experiments, backends, presets or passes.
    """
    if what == "models":
        from ..compiler.sources import list_models
        from ..compiler.zoo import NETWORKS

        said = {"examples": "example with weights and data"}
        own = {name: f"zoo: {entry.summary}" for name, entry in NETWORKS.items()}
        groups = list_models().items()
        return [(name, own.get(name) or said.get(kind, kind)) for kind, models in groups for name in models]
    if what == "criteria":
        from ..passes.prune.criteria import CRITERIA

        return [(name, meaning) for name, (_, meaning) in CRITERIA.items()]
    if what == "experiments":
        from .training.experiments import EXPERIMENTS

        return [(name, f"{entry.model}: {entry.paper}") for name, entry in EXPERIMENTS.items()]
    if what == "methods":
        from .training.methods.catalog import METHODS

        return [(name, entry.summary) for name, entry in METHODS.items()]
    if what == "backends":
        from .catalog import BACKENDS, ENGINES

        run = {name: f"runs: {entry.summary}" for name, entry in ENGINES.items()}
        written = {name: f"writes {entry.file}: {entry.summary}" for name, entry in BACKENDS.items()}
        return [(name, "; ".join(m[name] for m in (run, written) if name in m)) for name in sorted({*run, *written})]
    from ..passes.catalog import PASSES, PRESETS

    if what == "presets":
        return [(f"@{name}", text) for name, text in PRESETS.items()]
    return [(name, entry.summary) for name, entry in PASSES.items()]


def text(what: str) -> str:
    """Return the list, a line for each."""
    found = rows(what)
    if what == "models":
        return "\n".join(f"{name}{f'  ({meaning})' if meaning != 'torchvision' else ''}" for name, meaning in found)
    width = max((len(name) for name, _ in found), default=0)
    return "\n".join(f"{name:<{width}}  {meaning}" for name, meaning in found) or f"there are no {what} yet"
