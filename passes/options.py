"""Options as text: a pass from its spec, and a spec from a pass.

The fields of a pass are its options. ``round_to: int = 1`` is written ``round-to=8``; the annotation says how the text
is read. Known annotations: bool, int, float, str, ``Literal[...]``, ``tuple[T, ...]`` (separated by commas), and unions
with ``None`` (written ``none``). Any other field gives its own text form:

    layers: Mapping[str, float] = field(default_factory=dict, metadata={"parse": read_layers, "format": print_layers})

``parse`` raises ``ValueError`` with a sentence for the user; ``"expected"`` in the metadata describes the values in
help texts. ``metadata={"text": False}`` marks a field that only Python can set (a data set, say): it is neither read
nor printed. Whatever is printed reads back as the same value, or printing fails; that is what makes the pipeline text
in a report worth having. Annotations are evaluated, so their names must be imported at run time, not only for type
checkers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ..compiler.errors import InternalError, OptionError
from .spec import Option, PassSpec

if TYPE_CHECKING:
    from dataclasses import Field

    from .base import Pass

PassT = TypeVar("PassT", bound="Pass")

_SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True)
class OptionField:
    """One option of a pass class: the field behind it and how its text is read and printed."""

    key: str
    """As written in pipeline text."""
    attribute: str
    annotation: Any
    source: Field[Any]

    @property
    def required(self) -> bool:
        """Whether a pass cannot be built without it."""
        return self.source.default is MISSING and self.source.default_factory is MISSING

    @property
    def default(self) -> Any:
        """The value of a field that was not given; ``MISSING`` when it is required."""
        return self.source.default if self.source.default_factory is MISSING else self.source.default_factory()

    @property
    def expected(self) -> str:
        """What its values look like, in words."""
        return str(self.source.metadata.get("expected", "")) or _describe(self.annotation)

    def read(self, text: str) -> Any:
        """Convert text to the field's type.

        Raises:
            ValueError: The text is not a value of it.
        """
        parse = self.source.metadata.get("parse")
        return parse(text) if parse else _read(self.annotation, text)

    def write(self, value: Any) -> str:
        """Return the text that reads back as ``value``.

        Raises:
            ValueError: There is none.
        """
        text = self.source.metadata.get("format", _write)(value)
        if self.read(text) != value:
            raise ValueError(f"{text!r} would read back as another value")
        return text


def options_of(cls: type[Pass]) -> tuple[OptionField, ...]:
    """Return the options that text can give to a pass, in the order of its fields."""
    annotations = get_type_hints(cls)
    return tuple(
        OptionField(f.name.replace("_", "-"), f.name, annotations[f.name], f)
        for f in fields(cls)
        if f.init and f.metadata.get("text", True)
    )


def build_pass(cls: type[PassT], spec: PassSpec) -> PassT:
    """Build a pass from what was written.

    Raises:
        OptionError: An option is unknown, missing or malformed.
    """
    known = {option.key: option for option in options_of(cls)}
    values: dict[str, Any] = {}
    for key, text in spec.options:
        if key not in known:
            hint = nearest(key, known)
            raise OptionError(f"pass '{cls.name}' has no option '{key}'", where=str(spec), hint=hint)
        values[known[key].attribute] = _convert(cls.name, known[key], text, spec)
    for option in known.values():
        if option.required and option.attribute not in values:
            hint = f"{cls.name}{{{option.key}=...}}: {option.expected}"
            raise OptionError(f"pass '{cls.name}' needs the option '{option.key}'", where=str(spec), hint=hint)
    return cls(**values)


def spec_of(instance: Pass) -> PassSpec:
    """Return the text form of a pass: the options that differ from their defaults, in the order of the fields.

    Raises:
        OptionError: A value was given in Python that no text can express.
    """
    options: list[Option] = []
    for option in options_of(type(instance)):
        value = getattr(instance, option.attribute)
        if not option.required and value == option.default:
            continue
        if option.annotation is bool and value is True:
            options.append(Option(option.key))
            continue
        try:
            options.append(Option(option.key, option.write(value)))
        except ValueError as error:
            raise OptionError(
                f"option '{option.key}' of pass '{instance.name}' cannot be written as pipeline text: {error}",
                where=f"{option.attribute}={value!r}",
                hint=f"give {option.expected}",
            ) from error
    return PassSpec(instance.name, tuple(options))


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown ``word``: the known ones most like it, else all of them."""
    names = sorted(known)
    if close := get_close_matches(word, names, n=3, cutoff=0.7):
        return " or ".join(f"'{name}'" for name in close)
    return f"one of {', '.join(names)}" if names else "leave it out: there are none"


def _convert(pass_name: str, option: OptionField, text: str | None, spec: PassSpec) -> Any:
    if text is None:
        if option.annotation is bool:
            return True
        raise OptionError(
            f"option '{option.key}' of pass '{pass_name}' needs a value: {option.expected}",
            where=str(spec),
            hint=f"{option.key}=...",
        )
    try:
        return option.read(text)
    except ValueError as error:
        own_words = str(error) if "parse" in option.source.metadata else f"expected {option.expected}"
        hint = "options are separated by spaces, not by commas" if "," in text and "=" in text else None
        if get_origin(option.annotation) is Literal:
            hint = hint or nearest(text, map(_write, get_args(option.annotation)))
        raise OptionError(
            f"option '{option.key}' of pass '{pass_name}' cannot be '{text}': {own_words}", where=str(spec), hint=hint
        ) from error


def _read(annotation: Any, text: str) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is str:
        return text
    if annotation is bool:
        return _one_of((True, False), text)
    if annotation is int:
        return int(text)
    if annotation is float:
        return _number(text)
    if annotation is NoneType:
        return _one_of((None,), text)
    if origin is Literal:
        return _one_of(arguments, text)
    if origin is tuple and arguments[1:] == (...,):
        return tuple(_read(arguments[0], item) for item in text.split(",")) if text else ()
    if origin in (Union, UnionType):
        return _first_that_reads(arguments, text)
    raise InternalError(f"an option of type {annotation} needs a 'parse' and a 'format' in its field's metadata")


def _one_of(choices: tuple[Any, ...], text: str) -> Any:
    for choice in choices:
        if _write(choice) == text:
            return choice
    raise ValueError(text)


def _number(text: str) -> float:
    value = float(text)
    if value != value:
        raise ValueError("not a number")
    return value


def _first_that_reads(annotations: tuple[Any, ...], text: str) -> Any:
    # None is tried first: after str it would never be reached.
    for annotation in sorted(annotations, key=lambda a: a is not NoneType):
        try:
            return _read(annotation, text)
        except ValueError:
            continue
    raise ValueError(text)


def _write(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(_write, cast("tuple[Any, ...]", value)))
    return str(value)


def _describe(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is NoneType:
        return "none"
    if origin is Literal:
        return "one of " + ", ".join(map(_write, arguments))
    if origin is tuple:
        return f"{_describe(arguments[0])}, repeated with commas"
    if origin in (Union, UnionType):
        return " or ".join(map(_describe, arguments))
    return _SCALARS.get(annotation, str(annotation))
