"""Example models that ship with their weights and their data, so that everything can be tried without a download.

Importing this package imports no torch: ``secateur list models`` reads :func:`names` and has to start at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SourceError

if TYPE_CHECKING:
    from torch import Tensor, nn

_NAMES = ("digits",)


@dataclass(frozen=True, eq=False)
class Example:
    """A trained model with the data it was trained and tested on.

    Attributes:
        name: What a user calls it.
        module: The model with its trained weights, in eval mode.
        input_shape: Shape of one input, with batch size 1.
        train_images: float32 (N, *input_shape[1:]), normalised.
        train_labels: int64 (N,).
        test_images: float32 (M, *input_shape[1:]), normalised.
        test_labels: int64 (M,).
        classes: Class names, in the order of the logits.
        mean: What was subtracted from each channel of an image with values in [0, 1].
        std: By what each channel was then divided.
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def names() -> tuple[str, ...]:
    """Return the names of the embedded examples."""
    return _NAMES


def _check(name: str) -> None:
    if name not in _NAMES:
        raise SourceError(f"no embedded example is called '{name}'", hint=f"one of: {', '.join(_NAMES)}")


def weights_file(name: str) -> Path:
    """Return the file of trained weights of example ``name``.

    Raises:
        SourceError: There is no such example.
    """
    _check(name)
    return Path(__file__).with_name(f"{name}.safetensors")


def build(name: str) -> nn.Module:
    """Return the network of example ``name`` with random weights, drawn from torch's global generator.

    Raises:
        SourceError: There is no such example.
    """
    _check(name)
    from . import digits

    return digits.build()


def load(name: str) -> Example:
    """Return example ``name`` with its trained weights and its data; torch's global generator is left untouched.

    Raises:
        SourceError: There is no such example.
    """
    _check(name)
    import torch
    from safetensors.torch import load_file

    from . import digits

    with torch.random.fork_rng(devices=[]):
        module = digits.build()
    module.load_state_dict(load_file(weights_file(name)))
    data = digits.read_data()
    return Example(
        name=name,
        module=module.eval(),
        input_shape=digits.INPUT_SHAPE,
        train_images=data.train_images,
        train_labels=data.train_labels,
        test_images=data.test_images,
        test_labels=data.test_labels,
        classes=digits.CLASSES,
        mean=(digits.MEAN,),
        std=(digits.STD,),
    )


def accuracy(module: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 256) -> float:
    """Return the top-1 accuracy of ``module`` in percent, measured in eval mode, without gradients.

    Batches are moved to the device and the floating dtype of the module's parameters; every submodule's training flag
    is put back afterwards.

    Args:
        module: Maps images (N, ...) to logits (N, classes).
        images: (N, ...), normalised.
        labels: int64 (N,), class indices.
        batch_size: Images per forward pass.

    Raises:
        SourceError: There are no images, or not as many labels as images.
    """
    import torch

    if len(images) == 0 or len(images) != len(labels):
        raise SourceError(f"cannot measure accuracy on {len(images)} images with {len(labels)} labels")
    tensors = [*module.parameters(), *module.buffers()]
    device = tensors[0].device if tensors else images.device
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), images.dtype)
    flags = [(m, m.training) for m in module.modules()]
    module.eval()
    correct = 0
    try:
        with torch.inference_mode():
            for batch, targets in zip(images.split(batch_size), labels.split(batch_size), strict=True):
                guesses = module(batch.to(device, dtype)).argmax(dim=1)
                correct += int((guesses == targets.to(device)).sum())
    finally:
        # Per submodule: `module.train(flag)` would unfreeze batch norms that were frozen on their own.
        for submodule, training in flags:
            submodule.training = training
    return 100.0 * correct / len(images)
