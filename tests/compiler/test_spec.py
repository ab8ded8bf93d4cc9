"""Pipeline text: what is accepted, what is printed, and what errors show."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.compiler.errors import PipelineSyntaxError
from secateur.compiler.spec import Option, PassSpec, PipelineSpec, parse

WORDS = st.from_regex(r"[a-z][a-z0-9]{0,5}(-[a-z0-9]{1,3}){0,2}", fullmatch=True)
OPTIONS = st.builds(Option, WORDS, st.none() | st.text(max_size=12))
ELEMENTS = st.builds(
    PassSpec,
    st.builds(str.__add__, st.sampled_from(["", "@"]), WORDS),
    st.lists(OPTIONS, max_size=3, unique_by=lambda option: option.key).map(tuple),
)
PIPELINES = st.builds(PipelineSpec, st.lists(ELEMENTS, min_size=1, max_size=4).map(tuple))


@given(PIPELINES)
def test_what_is_printed_reads_back(pipeline: PipelineSpec) -> None:
    text = str(pipeline)
    assert parse(text) == pipeline
    assert str(parse(text)) == text


@given(st.text(alphabet='ab-@{}=," \\\n1A_', max_size=20))
def test_any_text_parses_or_is_a_syntax_error_within_the_text(text: str) -> None:
    try:
        pipeline = parse(text)
    except PipelineSyntaxError as error:
        where = error.where
    else:
        assert parse(str(pipeline)) == pipeline
        return
    assert where is not None
    _, line, caret = where.split("\n")
    assert caret.index("^") <= len(line)


def test_the_parts_of_a_pipeline() -> None:
    pipeline = parse("prune{macs=0.5 layers=conv1:0.5,layer1.*:0.25 dry},@small,fold-bn")
    assert list(pipeline) == [
        PassSpec("prune", (Option("macs", "0.5"), Option("layers", "conv1:0.5,layer1.*:0.25"), Option("dry"))),
        PassSpec("@small"),
        PassSpec("fold-bn"),
    ]
    assert [element.is_preset for element in pipeline] == [False, True, False]


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("  prune  { macs=0.5\n  round-to=8 } ,\n fold-bn ", "prune{macs=0.5 round-to=8},fold-bn"),
        ('prune{criterion="l2"}', "prune{criterion=l2}"),
        ('prune{only="a b"}', 'prune{only="a b"}'),
        (r'prune{only="say \"\\\""}', r'prune{only="say \"\\\""}'),
        ('prune{only=""}', 'prune{only=""}'),
        (r"load{file=C:\x=1}", r"load{file=C:\x=1}"),
    ],
)
def test_canonical_text(written: str, canonical: str) -> None:
    assert str(parse(written)) == canonical


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", 1, "expected a pass name, found the end"),
        ("prune,", 7, "expected a pass name, found the end"),
        (",prune", 1, "expected a pass name, found ','"),
        ("prune fold-bn", 7, "expected '{', ',' or the end, found 'fold-bn'"),
        ("prune{a}fold-bn", 9, "expected ',' or the end of the pipeline, found 'fold-bn'"),
        ("prune}", 6, "expected '{', ',' or the end, found '}'"),
        ("@{a}", 2, "expected a preset name, found '{'"),
        ("prune{}", 7, "expected an option, found '}'"),
        ("prune{ =3}", 8, "expected an option, found '='"),
        ("prune{macs", 11, "expected '=', a space or '}', found the end"),
        ("prune{macs ", 12, "expected an option or '}', found the end"),
        ("prune{macs=0.5", 15, "expected a space or '}', found the end"),
        ("prune{macs=}", 12, "expected a value, found '}'"),
        ("prune{macs= 1}", 12, "expected a value, found ' '"),
        ("prune{macs =1}", 12, "expected an option or '}', found '='"),
        ("prune{dry,macs=1}", 10, "expected '=', a space or '}', found ','"),
        ("prune{a=1 b=2 a=3}", 15, "expected each option once, but 'a' is given again"),
        ("prune{round_to=8}", 12, "expected a name in lower case with hyphens, found '_to'"),
        ("Prune", 1, "expected a name in lower case with hyphens, found 'Prune'"),
        ('prune{a="b c}', 9, 'expected a closing "'),
        (r'prune{a="b\c"}', 11, r"expected \" or \\"),
        ('prune{a=b"c"}', 10, "expected a space or '}', found '\"'"),
        ('prune{a="b"c}', 12, "expected a space or '}', found 'c'"),
    ],
)
def test_a_syntax_error_shows_the_column_and_what_was_expected(text: str, column: int, message: str) -> None:
    with pytest.raises(PipelineSyntaxError) as caught:
        parse(text)
    assert message in caught.value.what
    assert caught.value.where == f"column {column}\n    {text}\n    {' ' * (column - 1)}^"


def test_an_error_in_a_text_of_several_lines_shows_the_line() -> None:
    with pytest.raises(PipelineSyntaxError) as caught:
        parse("prune{macs=0.5},\n\tfold_bn,\nquantize")
    assert caught.value.where == "line 2, column 6\n     fold_bn,\n         ^"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("prune{round_to=8}", "write 'round-to'"),
        ("Fold_BN", "write 'fold-bn'"),
        ("-3", "names look like this: round-to"),
        ("prune{a,b=1}", "options are separated by spaces"),
        ("prune{a =1}", "write no space before '='"),
        ('prune{a=b"c"}', "a value is quoted as a whole or not at all"),
    ],
)
def test_hints(text: str, hint: str) -> None:
    with pytest.raises(PipelineSyntaxError) as caught:
        parse(text)
    assert caught.value.hint == hint
