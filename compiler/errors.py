"""Every error a user can cause, and the one base class that tells them from our own bugs.

A ``CompilerError`` says *what* happened, *where* (a module path, a node, a file, a column) and *what to do*. The
command line prints it as one message and exits with 2; the Python API raises it. Anything else that escapes is a bug
of secateur.
"""

from __future__ import annotations


class CompilerError(Exception):
    """A problem in what the user gave us.

    Args:
        what: One sentence, without a full stop at the end.
        where: Module path, node, file, option; ``None`` when the sentence says it.
        hint: What to do about it; ``None`` when nothing useful can be said.
    """

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        """Return the whole message, the form that users read."""
        lines = [self.what]
        if self.where:
            lines.append(f"  at: {self.where}")
        if self.hint:
            lines.append(f"  try: {self.hint}")
        return "\n".join(lines)


class SourceError(CompilerError):
    """A model, a weights file or a data set could not be found, read or matched."""


class CaptureError(CompilerError):
    """A model could not be traced to a graph, or does not run on the given inputs."""


class UntraceableError(CaptureError):
    """A model's code does what no graph can say; parts of it may be traced still."""


class PipelineSyntaxError(CompilerError):
    """Pipeline text that cannot be read; the message carries the text and a caret."""


class OptionError(CompilerError):
    """An option is unknown, malformed, out of range, or names something the model lacks."""


class BudgetError(CompilerError):
    """A budget that no legal choice of widths reaches; says what is reachable."""


class ArtefactError(CompilerError):
    """An artefact directory exists already, is incomplete, or cannot be written."""


class MissingExtraError(CompilerError):
    """An optional package is needed; the hint names the extra that installs it."""


class ProofError(CompilerError):
    """The exactness check failed: the rewritten program is not equal to the masked original."""


class InternalError(Exception):
    """A broken promise inside secateur: a bug to report, never the user's fault."""
