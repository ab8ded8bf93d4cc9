"""What every test gets: a fixed seed, one thread, golden files, and the command line in a folder of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from secateur import cli
from support.golden import Golden

# The profile in force is hypothesis's own choice (in CI a derandomized one). A slow machine is not a failure.
settings.register_profile("secateur", settings(), deadline=None)
settings.load_profile("secateur")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="write tests/golden/*.txt instead of comparing")


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(Path(__file__).parent / "golden", update=bool(request.config.getoption("--update-goldens")))


@pytest.fixture
def invoke(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """A command line to its exit code, stdout and stderr, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        code = cli.main(list(words))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
