"""Quality: the same figures as torch's own losses, with labels and without."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.backends import inputs
from secateur.backends.quality import Judge, checksum, open_judged
from secateur.compiler.errors import CompilerError, SourceError
from support.judged import images, judge, program
from support.passes import Tiny
from support.small import Residual, captured


def other() -> Residual:
    torch.manual_seed(7)
    return Residual().eval()


def outputs(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return module(torch.cat([batch for batch, _ in images()])).double()


def test_with_labels_it_is_accuracy_and_cross_entropy() -> None:
    dense = program()
    labels = torch.tensor([i % 5 for i in range(24)])
    measure = judge(dense)
    for module, found in ((dense.module, measure.dense), (other(), measure(captured(other())))):
        logits = outputs(module)
        assert found.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
        assert found.top1 == pytest.approx(100 * float((logits.argmax(1) == labels).double().mean()))
    assert measure.labelled


def test_without_labels_it_is_agreement_and_divergence_from_the_dense_model() -> None:
    dense = program()
    measure = judge(dense, labelled=False)
    assert (measure.dense.top1, measure.dense.loss) == (100.0, 0.0)
    p, q = outputs(dense.module), outputs(other())
    found = measure(captured(other()))
    divergence = F.kl_div(q.log_softmax(1), p.log_softmax(1), reduction="batchmean", log_target=True)
    assert found.loss == pytest.approx(float(divergence), rel=1e-5)
    assert found.top1 == pytest.approx(100 * float((p.argmax(1) == q.argmax(1)).double().mean()))
    assert not measure.labelled


class Masked(nn.Module):
    """Gives every class but the first no chance at all."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1, 0, 0], torch.full_like(x[:, :3, 0, 0], -torch.inf), x[:, :1, 1, 1]], 1)


def test_a_class_without_a_chance_leaves_the_loss_finite() -> None:
    measure = judge(captured(Masked()))
    assert 10 < measure.dense.loss <= 100
    assert judge(captured(Masked()), labelled=False)(program()).loss < 100


def test_images_are_read_once_if_they_are_kept_and_whenever_needed_if_not() -> None:
    read: list[str] = []
    plain = images(4)

    def noted(name: str, tensor: Tensor) -> Tensor:
        read.append(name)
        return tensor

    items = tuple(type(i)(i.name, i.label, lambda i=i: noted(i.name, i.read())) for i in plain.items)
    for keep, expected in ((True, 4), (False, 8)):
        read.clear()
        measure = Judge(program(), type(plain)("random", plain.classes, items, 3), keep=keep, threads=1)
        measure(program())
        assert len(read) == expected


def test_what_is_no_classifier_is_refused() -> None:
    with pytest.raises(CompilerError, match="one row of logits per image"):
        judge(captured(Tiny()))
    with pytest.raises(SourceError, match="without images"):
        Judge(program(), images(0))


def test_more_classes_than_outputs_are_refused() -> None:
    plain = images()
    with pytest.raises(SourceError, match="6 classes and the model 5 outputs"):
        Judge(program(), type(plain)("random", tuple("abcdef"), plain.items, 10), threads=1)


def test_checksums_tell_values_names_and_shapes_apart() -> None:
    one = torch.arange(6.0)
    same = checksum([("a", one)])
    assert checksum([("a", one.clone())]) == same
    others = [("b", one), ("a", one.view(2, 3)), ("a", one + 1), ("a", one.bfloat16()), ("a", one[:5])]
    assert len({same, *(checksum([pair]) for pair in others)}) == 6
    assert judge(program()).checksum() != judge(program(), labelled=False).checksum()


def picture(file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    Image.new("L", (8, 8), 128).save(file)


def test_folders_without_classes_are_opened_without_labels(tmp_path: Path) -> None:
    model = inputs.load("digits")
    picture(tmp_path / "one.png")
    options: dict[str, Any] = {"preprocess": "mean=0.5,std=0.5"}
    opened = open_judged(model, str(tmp_path), **options)
    assert opened.images.classes is None
    assert "1 of 1 images" in opened.unlabelled
    (tmp_path / "one.png").unlink()
    picture(tmp_path / "cat" / "one.png")
    opened = open_judged(model, str(tmp_path), **options)
    assert (opened.images.classes, opened.unlabelled) == (("cat",), "")
    assert open_judged(model, str(tmp_path), **options, labels=False).images.classes is None
    with pytest.raises(SourceError, match="there is no folder"):
        open_judged(model, str(tmp_path / "absent"), **options)
