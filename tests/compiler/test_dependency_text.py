"""The analysis of a few zoo cases, as text: a change of rules shows here as a diff."""

import pytest

from secateur.compiler.render import render
from support.golden import Golden
from support.pruning import deps_of, program_of

CASES = ["residual", "grouped_then_other_groups", "shuffle_unit", "convnext_block", "zero_padded_shortcut"]


@pytest.mark.parametrize("name", CASES)
def test_dependency_text(name: str, golden: Golden) -> None:
    golden(f"dependencies/{name}", render(deps_of(name), program_of(name)))
