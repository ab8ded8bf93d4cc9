"""The instruments, one by one."""

from pathlib import Path

import pytest

from secateur.compiler.errors import ArtefactError, InternalError
from secateur.compiler.printer import print_program
from secateur.passes.base import Pass
from secateur.passes.instruments import DumpEach, PrintAfter, TimePasses
from secateur.passes.pipeline import PassPipeline
from support.passes import AppendRelu, Misbehave, Nothing, tiny_program

PASSES: list[Pass] = [AppendRelu(times=2), Nothing()]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("in-place", "pass 'misbehave{how=in-place}' changed the program that it was given"),
        ("lie", "pass 'misbehave{how=lie}' changed the program but says that it did not"),
        ("break", "pass 'misbehave{how=break}' returned an invalid program"),
    ],
)
def test_verify_each_names_the_pass_and_the_broken_promise(how: str, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        PassPipeline([Nothing(), Misbehave(how)]).run(tiny_program())


def test_time_passes_has_one_entry_for_each_run() -> None:
    timing = TimePasses()
    PassPipeline([*PASSES, Nothing()]).run(tiny_program(), [timing])
    assert [name for name, _ in timing.seconds] == ["append-relu", "nothing", "nothing"]
    assert all(seconds >= 0 for _, seconds in timing.seconds)


def test_print_after_every_pass() -> None:
    texts: list[str] = []
    result = PassPipeline(PASSES).run(tiny_program(), [PrintAfter(texts.append)])
    printed = print_program(result.program)
    assert texts == [f"# after append-relu{{times=2}}\n{printed}", f"# after nothing (no change)\n{printed}"]


@pytest.mark.parametrize(
    ("instrument_options", "printed"),
    [
        ({"only_changed": True}, ["# after append-relu{times=2}"]),
        ({"names": ["nothing"]}, ["# after nothing (no change)"]),
        ({"names": ["nothing"], "only_changed": True}, []),
    ],
)
def test_print_after_some_passes(instrument_options: dict[str, list[str] | bool], printed: list[str]) -> None:
    texts: list[str] = []
    names, only_changed = instrument_options.get("names"), bool(instrument_options.get("only_changed"))
    instrument = PrintAfter(texts.append, only_changed=only_changed, names=names if isinstance(names, list) else None)
    PassPipeline(PASSES).run(tiny_program(), [instrument])
    assert [text.split("\n", 1)[0] for text in texts] == printed


def test_dump_each_numbers_its_files(tmp_path: Path) -> None:
    program = tiny_program()
    result = PassPipeline(PASSES).run(program, [DumpEach(tmp_path / "new" / "dir")])
    written = {path.name: path.read_text() for path in (tmp_path / "new" / "dir").iterdir()}
    before, after = print_program(program), print_program(result.program)
    assert written == {"000_input.txt": before, "001_append-relu.txt": after, "002_nothing.txt": after}


def test_a_dump_that_cannot_be_written_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="cannot be written"):
        PassPipeline(PASSES).run(tiny_program(), [DumpEach(tmp_path / "file")])
