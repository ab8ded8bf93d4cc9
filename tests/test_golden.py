"""The golden comparison itself: it must fail when it should."""

from pathlib import Path

import pytest

from support.golden import Golden


def test_same_text_passes(tmp_path: Path) -> None:
    Golden(tmp_path, update=True)("x", "one\ntwo")
    Golden(tmp_path, update=False)("x", "one\ntwo\n")


def test_a_difference_fails_and_is_shown(tmp_path: Path) -> None:
    Golden(tmp_path, update=True)("x", "one\ntwo")
    with pytest.raises(pytest.fail.Exception, match=r"-two\n\+three"):
        Golden(tmp_path, update=False)("x", "one\nthree")


def test_a_missing_file_fails(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="--update-goldens"):
        Golden(tmp_path, update=False)("x", "one")
    assert not list(tmp_path.iterdir())


def test_the_fixture_compares_with_the_folder_beside_it(golden: Golden) -> None:
    assert golden.directory == Path(__file__).parent / "golden"
