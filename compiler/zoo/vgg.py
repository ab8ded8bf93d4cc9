"""VGG with batch norm for 32 x 32 images (Simonyan and Zisserman, ICLR 2015), with the three heads in use.

``linear``: network slimming (Liu et al., ICCV 2017): no biases, average pool 2 x 2, one linear layer.
``pfec``:   Li et al., ICLR 2017: five max pools, linear layers of 512 (with batch norm) and classes.
``4096``:   five max pools, linear layers of 4096, 4096 and classes, with dropout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from torch import Tensor, nn

from . import check
from .initial import initialise

POOL: Final = "M"
_STAGES: Final = {
    11: "64 M 128 M 256 256 M 512 512 M 512 512",
    13: "64 64 M 128 128 M 256 256 M 512 512 M 512 512",
    16: "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512",
    19: "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512",
}
"""Output channels of the 3 x 3 convolutions, and max pools between them."""


@dataclass(frozen=True)
class Vgg:
    """Options of the family."""

    name: ClassVar[str] = "vgg"
    kind: ClassVar[str] = "network"

    depth: int = 16
    classes: int = 10
    head: Literal["linear", "pfec", "4096"] = "linear"
    scale: float = 0.5
    """Initial scale of batch norms."""
    cfg: tuple[str, ...] = ()
    """Widths and pools (``64,M,128``), in place of those that belong to the depth."""

    def __post_init__(self) -> None:
        check(self.depth in _STAGES, f"there is no VGG-{self.depth}", f"depth is one of {', '.join(map(str, _STAGES))}")
        check(self.classes > 0, f"a network cannot have {self.classes} classes", "classes=10")
        good = all(word == POOL or (word.isdigit() and int(word) > 0) for word in self.cfg)
        check(good, f"cfg cannot be '{','.join(self.cfg)}'", "widths, and M for pools: cfg=64,M,128,M,256,M,512,M,512")
        check(self.words[-1] != POOL, "cfg cannot end with a pool", "the head has one of its own")

    @property
    def words(self) -> tuple[str, ...]:
        """Widths and pools."""
        return self.cfg or tuple(_STAGES[self.depth].split())

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input."""
        return (1, 3, 32, 32)

    def build(self) -> nn.Module:
        """Return the network."""
        return CifarVgg(self)


class CifarVgg(nn.Module):
    """[N, 3, 32, 32] to [N, classes]."""

    def __init__(self, options: Vgg) -> None:
        super().__init__()
        slim = options.head == "linear"
        layers: list[nn.Module] = []
        width, size = 3, 32
        for word in options.words:
            if word == POOL:
                layers.append(nn.MaxPool2d(2))
                size //= 2
                continue
            convolution = nn.Conv2d(width, int(word), 3, padding=1, bias=not slim)
            layers += [convolution, nn.BatchNorm2d(int(word)), nn.ReLU(inplace=True)]
            width = int(word)
        layers.append(nn.AvgPool2d(2) if slim else nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = _head(options, width * (size // 2) ** 2)
        initialise(self, scale=options.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.classifier(self.features(x).flatten(1))


def _head(options: Vgg, inputs: int) -> nn.Module:
    if options.head == "linear":
        return nn.Linear(inputs, options.classes)
    if options.head == "pfec":
        return nn.Sequential(
            nn.Linear(inputs, 512), nn.BatchNorm1d(512), nn.ReLU(inplace=True), nn.Linear(512, options.classes)
        )
    hidden = [nn.Linear(inputs, 4096), nn.ReLU(inplace=True), nn.Dropout()]
    more = [nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout()]
    return nn.Sequential(*hidden, *more, nn.Linear(4096, options.classes))
