"""How criteria rank channels: order, file, picture, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from secateur.backends.scores import csv, plot, rank, steepest
from secateur.compiler.capture import trace
from secateur.compiler.errors import OptionError
from secateur.compiler.program import Program

Invoke = Callable[..., tuple[int, str, str]]


def program(*norms: float) -> Program:
    """A layer of filters with the given l1 norms, one with equal ones, and one that gives the output."""
    net = nn.Sequential(nn.Conv2d(1, len(norms), 1), nn.ReLU(), nn.Conv2d(len(norms), 3, 1), nn.Conv2d(3, 2, 1)).eval()
    with torch.no_grad():
        net.get_parameter("0.weight").copy_(torch.tensor(norms).view(-1, 1, 1, 1))
        net.get_parameter("2.weight").fill_(1.0)
        net.get_parameter("3.weight").fill_(1.0)
    return trace(net, torch.zeros(1, 1, 4, 4))


def test_channels_are_ranked_within_their_group() -> None:
    first, second = rank(program(1.0, -4.0, 0.5, 2.0), "l1")
    assert (first.group, first.layers) == ("0", ("0",))
    assert first.channels == (1, 3, 0, 2)
    assert list(first.scores) == sorted(first.scores, reverse=True)
    assert first.relative[0] == 1.0
    assert set(second.relative) == {1.0}
    assert [ranking.group for ranking in steepest([second, first])] == ["0", "2"]


def test_the_file_has_a_row_per_channel() -> None:
    lines = csv(rank(program(1.0, -4.0, 0.5, 2.0), "l2")).splitlines()
    assert lines[0] == "group,rank,channel,score,relative"
    assert [line.split(",")[:3] for line in lines[1:5]] == [
        ["0", str(n), str(c)] for n, c in enumerate((1, 3, 0, 2), 1)
    ]
    assert len(lines) == 1 + 4 + 3


def test_the_picture_has_a_line_per_group() -> None:
    picture = plot(rank(program(1.0, 2.0, 3.0), "l1"), "net", "l1")
    titles = [e.text for e in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}title")]
    assert sorted(filter(None, titles)) == ["0", "2"]


def test_zeros_only_are_no_division_by_zero() -> None:
    first, _ = rank(program(0.0, 0.0), "l1")
    assert all(0 <= value <= 1 for value in first.relative)


def test_what_is_refused() -> None:
    with pytest.raises(OptionError, match="criterion 'taylor' scores channels by what they do on data"):
        rank(program(1.0, 2.0), "taylor")
    with pytest.raises(OptionError, match="best"):
        rank(program(1.0, 2.0), "best")
    with pytest.raises(OptionError, match="no group of channels can be pruned"):
        rank(trace(nn.Sequential(nn.Conv2d(1, 2, 1)).eval(), torch.zeros(1, 1, 4, 4)), "l1")


def test_from_the_command_line(invoke: Invoke) -> None:
    code, out, err = invoke("scores", "digits", "-o", "s.csv", "--plot", "s.svg")
    assert code == 0, err
    assert out.splitlines()[0].split() == ["channels", "of", "width", "largest", "median", "smallest", "low"]
    rows = Path("s.csv").read_text().splitlines()
    assert Path("s.svg").read_text().startswith("<svg")
    code, out, err = invoke("scores", "digits", "--criterion", "taylor", "--data", "digits", "--images", "64", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["criterion"] == "taylor"
    assert sum(len(group["scores"]) for group in found["groups"]) == len(rows) - 1
    code, _, err = invoke("scores", "digits", "-o", "absent/s.csv")
    assert code == 2
    assert "there is no such directory" in err
