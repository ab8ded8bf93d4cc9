"""Passes from specs and specs from passes."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.compiler.errors import InternalError, OptionError
from secateur.compiler.options import build_from, nearest, options_of, spec_of
from secateur.compiler.program import Program
from secateur.compiler.spec import PassSpec, parse
from secateur.passes.base import Pass, PassResult


def read_pair(text: str) -> tuple[int, int]:
    left, cross, right = text.partition("x")
    if not cross:
        raise ValueError("expected two numbers, as in 3x4")
    return int(left), int(right)


def print_pair(pair: tuple[int, int]) -> str:
    return f"{pair[0]}x{pair[1]}"


@dataclass(frozen=True)
class Trim(Pass):
    name: ClassVar[str] = "trim"
    ratio: float = 0.5
    round_to: int = 1
    dry_run: bool = False
    keep_head: bool = True
    criterion: Literal["l1", "l2", "taylor"] = "l1"
    only: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (1, 2)
    macs: float | None = None
    label: str = "x"
    pair: tuple[int, int] = field(default=(1, 1), metadata={"parse": read_pair, "format": print_pair})
    data: object = field(default=None, metadata={"text": False})

    def run(self, program: Program) -> PassResult:
        return PassResult(program, changed=False)


@dataclass(frozen=True)
class Load(Trim):
    name: ClassVar[str] = "load"
    plan_file: str = field(kw_only=True)


def build(text: str) -> Trim:
    (spec,) = parse(text)
    return build_from(Trim, spec)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trim", Trim()),
        ("trim{ratio=0.25 round-to=8}", Trim(ratio=0.25, round_to=8)),
        ("trim{dry-run}", Trim(dry_run=True)),
        ("trim{dry-run=false keep-head=false}", Trim(keep_head=False)),
        ("trim{criterion=taylor}", Trim(criterion="taylor")),
        ("trim{only=a.*,b}", Trim(only=("a.*", "b"))),
        ('trim{sizes=""}', Trim(sizes=())),
        ("trim{sizes=3}", Trim(sizes=(3,))),
        ("trim{macs=0.7}", Trim(macs=0.7)),
        ("trim{macs=none}", Trim()),
        ('trim{label="a b"}', Trim(label="a b")),
        ("trim{pair=3x4}", Trim(pair=(3, 4))),
    ],
)
def test_text_is_converted_by_the_annotation(text: str, expected: Trim) -> None:
    assert build(text) == expected


@pytest.mark.parametrize(
    ("instance", "text"),
    [
        (Trim(), "trim"),
        (Trim(label="", ratio=1), 'trim{ratio=1 label=""}'),
        (Trim(dry_run=True, keep_head=False), "trim{dry-run keep-head=false}"),
        (Trim(macs=1e-5, pair=(3, 4)), "trim{macs=1e-05 pair=3x4}"),
        (Trim(only=("a", "b"), sizes=()), 'trim{only=a,b sizes=""}'),
        (Trim(data=object()), "trim"),
        (Load(plan_file="p.json"), "load{plan-file=p.json}"),
    ],
)
def test_only_options_that_differ_from_the_default_are_printed(instance: Trim, text: str) -> None:
    assert str(spec_of(instance)) == text


@given(
    st.builds(
        Trim,
        ratio=st.floats(allow_nan=False),
        round_to=st.integers(),
        dry_run=st.booleans(),
        keep_head=st.booleans(),
        criterion=st.sampled_from(["l1", "l2", "taylor"]),
        only=st.lists(st.text(min_size=1).filter(lambda text: "," not in text)).map(tuple),
        sizes=st.lists(st.integers()).map(tuple),
        macs=st.none() | st.floats(allow_nan=False),
        label=st.text(),
        pair=st.tuples(st.integers(0), st.integers(0)),
    )
)
def test_a_pass_reads_back_from_its_text(instance: Trim) -> None:
    assert build(str(spec_of(instance))) == instance


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("trim{ration=1}", ["pass 'trim' has no option 'ration'", "at: trim{ration=1}", "try: 'ratio'"]),
        ("trim{zzz}", ["no option 'zzz'", "one of criterion, dry-run, keep-head, label, macs"]),
        ("trim{data=1}", ["no option 'data'"]),
        ("trim{round-to=0.5}", ["option 'round-to' of pass 'trim' cannot be '0.5'", "expected a whole number"]),
        ("trim{ratio=nan}", ["cannot be 'nan'", "expected a number"]),
        ("trim{ratio}", ["option 'ratio' of pass 'trim' needs a value: a number"]),
        ("trim{dry-run=yes}", ["expected true or false"]),
        ("trim{criterion=l3}", ["expected one of l1, l2, taylor", "try: one of l1, l2, taylor"]),
        ("trim{sizes=1,x}", ["expected a whole number, repeated with commas"]),
        ("trim{macs=half}", ["expected a number or none"]),
        ("trim{pair=3}", ["cannot be '3': expected two numbers, as in 3x4"]),
        ("trim{ratio=0.5,round-to=8}", ["options are separated by spaces, not by commas"]),
    ],
)
def test_a_wrong_option_is_named_with_what_is_right(text: str, parts: list[str]) -> None:
    with pytest.raises(OptionError) as caught:
        build(text)
    for part in parts:
        assert part in str(caught.value)


def test_a_missing_required_option_is_named() -> None:
    with pytest.raises(OptionError, match="pass 'load' needs the option 'plan-file'"):
        build_from(Load, PassSpec("load"))


@pytest.mark.parametrize("instance", [Trim(only=("a,b",)), Trim(only=("",))])
def test_a_value_that_no_text_can_express_is_refused(instance: Trim) -> None:
    with pytest.raises(OptionError, match=r"'only' of pass 'trim' cannot be written as pipeline text"):
        spec_of(instance)


def test_an_annotation_without_a_text_form_is_our_bug() -> None:
    @dataclass(frozen=True)
    class Odd(Trim):
        table: dict[str, int] = field(default_factory=dict[str, int])

    (spec,) = parse("odd{table=1}")
    with pytest.raises(InternalError, match="needs a 'parse' and a 'format'"):
        build_from(Odd, spec)


def test_options_describe_themselves() -> None:
    described = {option.key: option.expected for option in options_of(Trim)}
    assert "data" not in described
    assert described["macs"] == "a number or none"
    assert described["only"] == "text, repeated with commas"


def test_the_nearest_names_are_offered() -> None:
    assert nearest("tailor", ["l1", "l2", "taylor"]) == "'taylor'"
    assert nearest("x", ["l1", "l2"]) == "one of l1, l2"
    assert nearest("x", []) == "leave it out: there are none"
