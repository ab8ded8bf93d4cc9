r"""Pipeline text: reading it, and printing it back.

    pipeline ::= element ("," element)*
    element  ::= name ("{" option (" " option)* "}")?
    option   ::= key ("=" value)?
    name     ::= "@"? word          a pass, or with "@" a preset
    key      ::= word               word: kebab-case, as in "round-to"
    value    ::= anything without spaces, braces and quotes, or "anything" with \" and \\ for " and \

    prune{criterion=l2 macs=0.5 round-to=8},fold-bn

Options are separated by spaces, so that values may hold commas (``layers=conv1:0.5,conv2:0.25``) and a shell does not
expand the braces. This file knows only the text: which passes and options exist is the business of the catalog and of
``options``. It imports no torch, so that the command line can complain about a pipeline at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from .errors import PipelineSyntaxError

_NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
_WORD = re.compile(r'[^\s{}=,"]+')
"""What a reader takes for one word: wider than a name, so that an error can show the whole of a wrong one."""
_BARE = re.compile(r'[^\s{}"]+')


class Option(NamedTuple):
    """One option as written; the value of a bare flag is ``None``."""

    key: str
    value: str | None = None

    def __str__(self) -> str:
        """Return the option as pipeline text."""
        return self.key if self.value is None else f"{self.key}={_quoted_if_needed(self.value)}"


@dataclass(frozen=True)
class PassSpec:
    """One element of a pipeline as written: a pass or a preset, and its options."""

    name: str
    """As written: a preset keeps its ``@``."""
    options: tuple[Option, ...] = ()
    """In the order written; keys are unique."""

    @property
    def is_preset(self) -> bool:
        """Whether the element names a preset, not a pass."""
        return self.name.startswith("@")

    def __str__(self) -> str:
        """Return the element as pipeline text."""
        return self.name + (f"{{{' '.join(map(str, self.options))}}}" if self.options else "")


@dataclass(frozen=True)
class PipelineSpec:
    """A pipeline as written. ``parse(str(spec)) == spec``."""

    elements: tuple[PassSpec, ...]

    def __iter__(self) -> Iterator[PassSpec]:
        """Iterate over the elements in order."""
        return iter(self.elements)

    def __str__(self) -> str:
        """Return the canonical text."""
        return ",".join(map(str, self.elements))


def parse(text: str) -> PipelineSpec:
    """Read pipeline text.

    Raises:
        PipelineSyntaxError: The text is not a pipeline; the error shows the place.
    """
    return _Parser(text).pipeline()


def _quoted_if_needed(value: str) -> str:
    if _BARE.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class _Parser:
    """Recursive descent, one method per grammar rule; ``at`` is the offset of the next character to read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def pipeline(self) -> PipelineSpec:
        elements = [self.element()]
        while not self.ended():
            if not self.take(","):
                self.fail("',' or the end of the pipeline" if elements[-1].options else "'{', ',' or the end")
            elements.append(self.element())
        return PipelineSpec(tuple(elements))

    def element(self) -> PassSpec:
        self.skip_spaces()
        sigil = "@" if self.take("@") else ""
        name = sigil + self.name("a preset name" if sigil else "a pass name")
        self.skip_spaces()
        options = self.options() if self.take("{") else ()
        self.skip_spaces()
        return PassSpec(name, options)

    def options(self) -> tuple[Option, ...]:
        options: list[Option] = []
        self.skip_spaces()
        while not options or not self.take("}"):
            start = self.at
            option = self.option("an option or '}'" if options else "an option")
            if any(option.key == other.key for other in options):
                self.fail(f"each option once, but '{option.key}' is given again", start, found=False)
            options.append(option)
            separated = self.skip_spaces()
            if separated and self.peek() == "=":
                self.fail("an option or '}'", hint="write no space before '='")
            if not separated and self.peek() != "}":
                hint = "options are separated by spaces" if self.peek() == "," else None
                self.fail("'=', a space or '}'" if option.value is None else "a space or '}'", hint=hint)
        return tuple(options)

    def option(self, expected: str) -> Option:
        key = self.name(expected)
        return Option(key, self.value()) if self.take("=") else Option(key)

    def value(self) -> str:
        if self.peek() == '"':
            return self.quoted()
        match = _BARE.match(self.text, self.at)
        if match is None:
            self.fail("a value", hint='write no space after "="; an empty value is ""')
        self.at = match.end()
        if self.peek() == '"':
            self.fail("a space or '}'", hint="a value is quoted as a whole or not at all")
        return match.group()

    def quoted(self) -> str:
        start = self.at
        self.at += 1
        characters: list[str] = []
        while not self.take('"'):
            if self.take("\\") and self.peek() not in ('"', "\\"):
                self.fail('\\" or \\\\', self.at - 1, hint="a backslash in a quoted value is written twice")
            if not self.peek():
                self.fail('a closing "', start)
            characters.append(self.text[self.at])
            self.at += 1
        return "".join(characters)

    def name(self, expected: str) -> str:
        word = _WORD.match(self.text, self.at)
        if word is None:
            self.fail(expected)
        name = _NAME.match(self.text, self.at)
        if name is None or name.end() < word.end():
            kebab = re.sub("[^a-z0-9]+", "-", word.group().lower()).strip("-")
            hint = f"write '{kebab}'" if _NAME.fullmatch(kebab) else "names look like this: round-to"
            self.fail("a name in lower case with hyphens", name.end() if name else self.at, hint=hint)
        self.at = name.end()
        return name.group()

    def ended(self) -> bool:
        return self.at >= len(self.text)

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self, character: str) -> bool:
        taken = self.peek() == character
        self.at += taken
        return taken

    def skip_spaces(self) -> bool:
        start = self.at
        while self.peek().isspace():
            self.at += 1
        return self.at > start

    def fail(self, expected: str, at: int | None = None, *, found: bool = True, hint: str | None = None) -> NoReturn:
        at = self.at if at is None else at
        word = _WORD.match(self.text, at)
        seen = "the end" if at >= len(self.text) else f"'{word.group() if word else self.text[at]}'"
        what = f"the pipeline cannot be read: expected {expected}" + (f", found {seen}" if found else "")
        raise PipelineSyntaxError(what, where=_excerpt(self.text, at), hint=hint)


def _excerpt(text: str, at: int) -> str:
    """Return the line that holds offset ``at`` with a caret under that column."""
    start = text.rfind("\n", 0, at) + 1
    line = text[start:].split("\n", 1)[0]
    shown = "".join(character if character.isprintable() else " " for character in line)
    number = f"line {text.count(chr(10), 0, at) + 1}, " if "\n" in text else ""
    return f"{number}column {at - start + 1}\n    {shown}\n    {' ' * (at - start)}^"
