"""Options as text: a pass from its spec, and a spec from a pass; and so for networks and training methods.

Whatever is chosen by text is a frozen dataclass with a ``name``; its fields are its options. ``round_to: int = 1`` is
written ``round-to=8``; the annotation says how the text is read. Known annotations: bool, int, float, str,
``Literal[...]``, ``tuple[T, ...]`` (separated by commas), and unions with ``None`` (written ``none``). Any other field
gives its own text form:

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
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    Protocol,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from .errors import InternalError, OptionError
from .spec import Option, PassSpec

if TYPE_CHECKING:
    from dataclasses import Field


class Optioned(Protocol):
    """What options belong to: a dataclass; ``kind``, if it has one, is what messages call it ("pass" otherwise)."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]


OptionedT = TypeVar("OptionedT", bound=Optioned)

_SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True)
class OptionField:
    """One option of a class: the field behind it and how its text is read and printed."""

    key: str
    """As written in pipeline text."""
    attribute: str
    annotation: Any
    source: Field[Any]

    @property
    def required(self) -> bool:
        """Whether nothing can be built without it."""
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


def options_of(cls: type[Optioned]) -> tuple[OptionField, ...]:
    """Return the options that text can give, in the order of the fields."""
    annotations = get_type_hints(cls)
    return tuple(
        OptionField(f.name.replace("_", "-"), f.name, annotations[f.name], f)
        for f in fields(cls)
        if f.init and f.metadata.get("text", True)
    )


def build_from(cls: type[OptionedT], spec: PassSpec) -> OptionedT:
    """Build a pass, a network, a method from what was written.

    Raises:
        OptionError: An option is unknown, missing or malformed.
    """
    known = {option.key: option for option in options_of(cls)}
    values: dict[str, Any] = {}
    for key, text in spec.options:
        if key not in known:
            hint = nearest(key, known)
            raise OptionError(f"{_title(cls)} has no option '{key}'", where=str(spec), hint=hint)
        values[known[key].attribute] = _convert(_title(cls), known[key], text, spec)
    for option in known.values():
        if option.required and option.attribute not in values:
            hint = f"{cls.name}{{{option.key}=...}}: {option.expected}"
            raise OptionError(f"{_title(cls)} needs the option '{option.key}'", where=str(spec), hint=hint)
    return cls(**values)


def spec_of(instance: Optioned) -> PassSpec:
    """Return the text form of an instance: the options that differ from their defaults, in the order of the fields.

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
                f"option '{option.key}' of {_title(type(instance))} cannot be written as pipeline text: {error}",
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


def _title(cls: type[Optioned]) -> str:
    return f"{getattr(cls, 'kind', 'pass')} '{cls.name}'"


def _convert(title: str, option: OptionField, text: str | None, spec: PassSpec) -> Any:
    if text is None:
        if option.annotation is bool:
            return True
        raise OptionError(
            f"option '{option.key}' of {title} needs a value: {option.expected}",
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
            f"option '{option.key}' of {title} cannot be '{text}': {own_words}", where=str(spec), hint=hint
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
