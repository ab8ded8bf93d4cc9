"""What libraries print for themselves does not reach standard output."""

import ctypes
import os

import pytest

from secateur.compiler.native_output import dropped


def test_only_what_is_printed_inside_is_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    library = ctypes.CDLL(None)
    library.puts(b"before")
    with dropped():
        library.puts(b"inside, by a library")
        os.write(1, b"inside")
    library.puts(b"after")
    print("by Python")
    library.fflush(None)
    assert sorted(capfd.readouterr().out.split("\n")) == ["", "after", "before", "by Python"]


def test_output_is_there_again_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="x"), dropped():
        raise ValueError("x")
    os.write(1, b"there")
    assert capfd.readouterr().out == "there"
