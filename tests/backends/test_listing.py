"""Lists: a line for each thing, in columns."""

import pytest

from secateur.backends.listing import rows, text


@pytest.mark.parametrize("what", ["models", "passes", "criteria", "backends", "presets"])
def test_every_list_names_each_thing_once_and_says_what_it_is(what: str) -> None:
    found = rows(what)
    assert found
    assert len({name for name, _ in found}) == len(found)
    assert all(meaning for _, meaning in found)
    assert len(text(what).splitlines()) == len(found)


def test_columns_line_up_and_models_say_only_what_is_unusual() -> None:
    width = max(len(name) for name, _ in rows("criteria"))
    assert f"{'l2':<{width}}  Euclidean norm" in text("criteria")
    lines = text("models").splitlines()
    assert lines[0] == "digits  (example with weights and data)"
    assert lines[1] == "cifar-vgg11  (zoo: network slimming's: one linear layer, scales begin at 0.5)"
    assert "alexnet" in lines
