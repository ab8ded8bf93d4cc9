"""Linear layers and embeddings read and write the last axis."""

import numpy as np
from torch import nn

from secateur.compiler.dependency import Role
from support.pruning import deps_of, labels_at, program_of, prune, same_classes, tie_reasons, use_of, widths


def test_a_flattened_map_consumes_every_channel_at_all_its_positions() -> None:
    deps = deps_of("flatten_to_linear")
    columns, rows = use_of(deps, "a.weight", 1), use_of(deps, "stem.weight")
    assert np.array_equal(columns.atoms, np.repeat(rows.atoms, 64))
    module = prune(program_of("flatten_to_linear"), ratio=0.5)[0].program.module
    layer = module.get_submodule("a")
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features) == (128, 8)


def test_other_axes_keep_their_channels() -> None:
    assert {factor.axes for factor in labels_at("mixing_of_positions", "a").factors} == {(1,), (2,)}


def test_rows_of_the_input_are_tied_and_gone() -> None:
    deps = deps_of("linear_on_rows")
    assert "a linear layer reads one vector of channels" in tie_reasons(deps)
    stem = deps.class_of[use_of(deps, "stem.weight").atoms].reshape(3, 4)
    assert (stem == stem[:1]).all()
    assert len(np.unique(stem)) == 4, "the columns are not tied to one another"
    assert [factor.axes for factor in labels_at("linear_on_rows", "a").factors] == [(2,)]


def test_an_embedding_produces_its_columns() -> None:
    deps = deps_of("embedding_to_linear")
    assert use_of(deps, "words.weight", 1).role is Role.PRODUCES
    assert same_classes(deps, use_of(deps, "words.weight", 1), use_of(deps, "head.weight", 1))
    result, _ = prune(program_of("embedding_to_linear"), ratio=0.5)
    words = result.program.module.get_submodule("words")
    assert isinstance(words, nn.Embedding)
    assert (words.num_embeddings, words.embedding_dim) == (7, 6)
    assert widths(result)["words"] == 6
