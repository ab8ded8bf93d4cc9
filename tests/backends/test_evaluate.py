"""Accuracy: the count, what may come out of a model, and what must not."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from secateur.backends import evaluate as module
from secateur.backends.evaluate import Accuracy, evaluate
from secateur.compiler import examples
from secateur.compiler.data.images import ImageSet, Item, default_preprocess, open_images
from secateur.compiler.errors import CompilerError, SourceError


class Output(NamedTuple):
    logits: Tensor
    aux: Tensor | None


def rows(logits: Sequence[Sequence[float]], targets: Sequence[int], *, classes: int, batch_size: int = 2) -> ImageSet:
    """A set whose images are logits: with :func:`unchanged` the model's outputs are under control."""
    items = tuple(
        Item(f"image {index}", label, lambda row=row: torch.tensor(row).view(-1, 1, 1))
        for index, (row, label) in enumerate(zip(logits, targets, strict=True))
    )
    return ImageSet("rows", tuple(map(str, range(classes))), items, batch_size)


def unchanged(images: Tensor) -> Tensor:
    return images.flatten(1)


def one_hot(label: int, classes: int) -> list[float]:
    return [float(index == label) for index in range(classes)]


def digits(limit: int | None = None) -> ImageSet:
    preprocess = default_preprocess("digits", spec=None, input_shape=(1, 1, 8, 8))
    return open_images("digits", preprocess=preprocess, labelled=True, limit=limit)


# What is counted.


def test_the_example_as_measured_elsewhere() -> None:
    example = examples.load("digits")
    found = evaluate(example.module, digits())
    assert found.top1 == examples.accuracy(example.module, example.test_images, example.test_labels)
    with torch.no_grad():
        best = example.module(example.test_images).topk(5).indices
    assert found.top5 == 100 * float((best == example.test_labels[:, None]).any(1).double().mean())
    assert (found.images, found.note) == (450, None)


def test_random_logits_as_topk_counts_them() -> None:
    logits, targets = torch.randn(97, 11), torch.randint(0, 11, (97,))
    found = evaluate(unchanged, rows(logits.tolist(), targets.tolist(), classes=11, batch_size=10))
    for k, accuracy in ((1, found.top1), (5, found.top5)):
        hits = (logits.topk(k).indices == targets[:, None]).any(1)
        assert accuracy == 100 * int(hits.sum()) / 97
    assert found.images == 97


def test_ties_go_to_the_first_class_as_argmax_does() -> None:
    found = evaluate(unchanged, rows([[0.0] * 8] * 8, list(range(8)), classes=8))
    assert (found.top1, found.top5) == (100 / 8, 500 / 8)


@pytest.mark.parametrize(("outputs", "top5"), [(5, None), (6, 0.0)])
def test_top5_needs_more_than_five_classes(outputs: int, top5: float | None) -> None:
    worst = [float(outputs - index) for index in range(outputs)]
    assert evaluate(unchanged, rows([worst], [outputs - 1], classes=outputs)).top5 == top5


def test_the_text_of_an_accuracy() -> None:
    assert str(Accuracy(89.014, 99.5, 10_000)) == "top-1 89.01 %, top-5 99.50 % on 10,000 images"
    assert str(Accuracy(50.0, None, 2)) == "top-1 50.00 % on 2 images"


def test_gradients_are_off_and_the_batches_are_those_of_the_set() -> None:
    seen: list[int] = []

    def run(images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        seen.append(len(images))
        return unchanged(images)

    evaluate(run, rows([one_hot(0, 3)] * 5, [0] * 5, classes=3, batch_size=2))
    assert seen == [2, 2, 1]


# What a model may return.


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: OrderedDict(aux=-logits, out=logits),
        lambda logits: {"logits": logits, "aux": -logits},
        lambda logits: {"loss": None, "logits": logits},
        lambda logits: (logits, -logits),
        lambda logits: [logits],
        lambda logits: Output(logits, None),
        lambda logits: logits.half(),
        lambda logits: logits.double(),
        lambda logits: logits.to(torch.int8),
    ],
)
def test_outputs_in_containers_and_other_dtypes(wrap: Callable[[Tensor], object]) -> None:
    images = rows([one_hot(2, 6), one_hot(1, 6), one_hot(0, 6)], [2, 1, 5], classes=6)
    found = evaluate(lambda batch: wrap(unchanged(batch)), images)
    assert found.top1 == 100 * 2 / 3


def test_a_masked_class_may_be_at_minus_infinity() -> None:
    assert evaluate(unchanged, rows([[-torch.inf, 0.0]], [1], classes=2)).top1 == 100


# What it must not return.


@pytest.mark.parametrize(
    ("wrap", "found"),
    [
        (lambda x: x.view(2, 3, 1, 1), "a tensor of 2 x 3 x 1 x 1"),
        (lambda x: x[:, 0], "a tensor of 2"),
        (lambda x: x[:1], "a tensor of 1 x 3"),
        (lambda x: x[:, :0], "a tensor of 2 x 0"),
        (lambda x: x.sum(), "a tensor of no dimensions"),
        (
            lambda x: {"out": x.view(2, 3, 1), "aux": x},
            "a mapping of 'out': a tensor of 2 x 3 x 1, 'aux': a tensor of 2 x 3",
        ),
        (lambda x: {"out": None}, "a mapping of 'out': of type NoneType"),
        (lambda x: [{"boxes": x}], "a list of a mapping of 'boxes': a tensor of 2 x 3"),
        (lambda x: (), "a tuple of nothing"),
        (lambda x: {}, "a mapping of nothing"),
        (lambda x: x.numpy(), "of type ndarray"),
    ],
)
def test_what_is_no_row_of_logits_per_image(wrap: Callable[[Tensor], object], found: str) -> None:
    images = rows([one_hot(0, 3)] * 2, [0, 0], classes=3)
    with pytest.raises(CompilerError) as caught:
        evaluate(lambda batch: wrap(unchanged(batch)), images)
    text = str(caught.value)
    assert text.startswith(f"a classifier's output is one row of logits per image, 2 x classes, and this is {found}\n")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_output_that_is_not_finite(value: float) -> None:
    images = rows([[0.0, 1.0], [0.0, 1.0], [value, 1.0]], [1, 1, 1], classes=2, batch_size=3)
    with pytest.raises(CompilerError, match="the model's output is not finite for 1 of 3 images"):
        evaluate(unchanged, images)


def test_more_classes_than_outputs() -> None:
    with pytest.raises(SourceError) as caught:
        evaluate(unchanged, rows([one_hot(0, 3)], [0], classes=10))
    text = str(caught.value)
    assert text.startswith("the data has 10 classes and the model 3 outputs\n  at: rows\n")
    assert "the data's are 0, 1, 2, 3, 4, 5, 6, 7 and 2 more" in text


def test_fewer_classes_than_outputs_are_noted() -> None:
    note = evaluate(unchanged, rows([one_hot(0, 3)], [0], classes=2)).note
    assert note is not None
    assert note.startswith("the model has 3 outputs and the data 2 classes, which were taken to be the first 2 outputs")


def test_labels_and_images_are_needed() -> None:
    with pytest.raises(SourceError, match="accuracy cannot be measured without labels\n  at: rows"):
        evaluate(unchanged, ImageSet("rows", None, rows([[0.0]], [0], classes=1).items, 1))
    with pytest.raises(SourceError, match="accuracy cannot be measured without images"):
        evaluate(unchanged, rows([], [], classes=1))


# Progress.


def test_progress_at_most_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def run(images: Tensor) -> Tensor:
        clock[0] += 0.2
        return unchanged(images)

    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    told: list[str] = []
    images = rows([one_hot(0, 2)] * 1200, [0, 0, 0, 1] * 300, classes=2, batch_size=100)
    evaluate(run, images, progress=told.append)
    assert told == [f"{count} of 1,200 images, top-1 75.0 %" for count in ("300", "600", "900", "1,200")]
