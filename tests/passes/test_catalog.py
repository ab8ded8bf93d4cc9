"""The tables of passes and presets."""

import subprocess
import sys

import pytest

from secateur.compiler.errors import OptionError
from secateur.compiler.options import options_of, spec_of
from secateur.compiler.spec import PassSpec, parse
from secateur.passes import catalog
from secateur.passes.base import Pass
from secateur.passes.catalog import PASSES, PRESETS, Entry, build, expand, get
from support.passes import AppendRelu, Nothing


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PASSES, "append-relu", Entry("support.passes:AppendRelu", "append a relu"))
    monkeypatch.setitem(PASSES, "nothing", Entry("support.passes:Nothing", "do nothing"))
    monkeypatch.setitem(PRESETS, "twice", "append-relu{times=2},nothing")


@pytest.mark.parametrize("name", PASSES)
def test_every_row_is_a_pass_of_that_name_whose_options_have_text(name: str) -> None:
    cls = get(name)
    assert issubclass(cls, Pass)
    assert cls.name == name
    assert PASSES[name].summary
    by_annotation = [o for o in options_of(cls) if not o.required and "parse" not in o.source.metadata]
    assert all(option.read(option.write(option.default)) == option.default for option in by_annotation)


def test_every_preset_builds_and_holds_no_other() -> None:
    for name, text in PRESETS.items():
        assert not any(element.is_preset for element in parse(text)), name
        assert build(parse(f"@{name}"))


def test_listing_imports_no_torch() -> None:
    code = "import sys, secateur.passes.catalog as c; assert c.PASSES; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


@pytest.mark.usefixtures("fakes")
def test_pipelines_are_built_with_presets_expanded() -> None:
    assert build(parse("append-relu,@twice")) == (AppendRelu(), AppendRelu(times=2), Nothing())


@pytest.mark.usefixtures("fakes")
def test_an_option_of_a_preset_goes_to_every_pass_that_has_it() -> None:
    assert str(expand(parse("@twice{times=5}"))) == "append-relu{times=5},nothing{times=5}"


@pytest.mark.usefixtures("fakes")
def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(OptionError, match=r"there is no pass 'append-rely'\n  try: 'append-relu'"):
        get("append-rely")
    with pytest.raises(OptionError, match=r"there is no preset '@twic'\n  try: 'twice'"):
        expand(parse("@twic"))
    with pytest.raises(OptionError, match=r"no pass of preset '@twice' has an option 'time'.*\n.*\n  try: 'times'"):
        expand(parse("@twice{time=3}"))


def test_without_presets_a_pipeline_is_left_alone() -> None:
    assert catalog.expand(parse("a{b=1},c")) == parse("a{b=1},c")
    assert spec_of(Nothing()) == PassSpec("nothing")
