"""Networks of the pruning literature, by name and with options: ``cifar-vgg16{classes=100}``.

A name stands for a family and its options; options in braces take precedence. A family is a frozen dataclass in a file
of its own, whose fields are its options. Importing this package imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from ..errors import OptionError, SourceError
from ..options import build_from
from ..spec import PassSpec, parse

if TYPE_CHECKING:
    from torch import nn


class Family(Protocol):
    """What a file of this folder defines."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]
    kind: ClassVar[str]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input, with batch size 1."""
        ...

    def build(self) -> nn.Module:
        """Return the network with random weights, drawn from torch's global generator."""
        ...


@dataclass(frozen=True)
class Entry:
    """A row of the table."""

    target: str
    """``module:Class`` in this folder."""
    options: str
    """What the name stands for."""
    summary: str


CIFAR_MEAN: Final = (0.4914, 0.4822, 0.4465)
CIFAR_STD: Final = (0.2023, 0.1994, 0.2010)
"""Of CIFAR-10, as the systems that these networks come from normalise it."""

_VGG, _RESNET, _PRE, _DENSE = "vgg:Vgg", "resnet:ResNet", "preresnet:PreResNet", "densenet:DenseNet"
_MOBILE = "mobilenet:MobileNet"

NETWORKS: Final[dict[str, Entry]] = {
    **{
        f"cifar-vgg{depth}": Entry(_VGG, f"depth={depth}", "network slimming's: one linear layer, scales begin at 0.5")
        for depth in (11, 13, 16, 19)
    },
    "cifar-vgg16-pfec": Entry(
        _VGG, "depth=16 head=pfec scale=1", "that of Pruning Filters for Efficient ConvNets: linear layers of 512, 10"
    ),
    "cifar-vgg16-4096": Entry(_VGG, "depth=16 head=4096 scale=1", "with ImageNet's head: 4096, 4096, 10"),
    **{
        f"cifar-resnet{depth}": Entry(_RESNET, f"depth={depth}", "shortcuts without parameters, padded with zeros")
        for depth in (20, 32, 44, 56, 110)
    },
    **{
        f"cifar-bottleneck{depth}": Entry(
            _RESNET, f"depth={depth} block=bottleneck shortcut=projection", "bottlenecks, projections in shortcuts"
        )
        for depth in (29, 164)
    },
    **{f"cifar-preresnet{depth}": Entry(_PRE, f"depth={depth}", "pre-activation bottlenecks") for depth in (29, 164)},
    "cifar-densenet40": Entry(_DENSE, "depth=40 stem=16", "the paper's: growth 12, a stem of 16 channels"),
    "cifar-densenet40-24": Entry(_DENSE, "depth=40 stem=24", "network slimming's repository's: a stem of 24"),
    "mobilenetv1": Entry(_MOBILE, "classes=1000 stem=imagenet", "depthwise separable convolutions, 224 x 224"),
    "cifar-mobilenetv1": Entry(_MOBILE, "stem=cifar", "the same for 32 x 32: three strides less"),
}


def names() -> tuple[str, ...]:
    """Return all names."""
    return tuple(NETWORKS)


def is_name(model: str) -> bool:
    """Tell whether MODEL names a network of the zoo, with or without options."""
    return model.partition("{")[0] in NETWORKS


def network(model: str) -> Family:
    """Return what a name with options stands for.

    Raises:
        SourceError: There is no network of that name.
        OptionError: An option is unknown, or its value is malformed.
        PipelineSyntaxError: The braces do not close, or the like.
    """
    if not is_name(model):
        near = get_close_matches(model.partition("{")[0], NETWORKS, n=3)
        raise SourceError(f"no network is called '{model}'", hint=" or ".join(near) or "`secateur list models`")
    written, *more = parse(model)
    if more:
        raise SourceError(f"'{model}' names more than one network", hint=f"{written}")
    entry = NETWORKS[written.name]
    module, _, attribute = entry.target.partition(":")
    family: type[Family] = getattr(import_module(f".{module}", __package__), attribute)
    (preset,) = parse(f"x{{{entry.options}}}")
    options = {option.key: option for option in (*preset.options, *written.options)}
    return build_from(family, PassSpec(written.name, tuple(options.values())))


def check(holds: bool, message: str, hint: str) -> None:
    """Refuse options that do not go together.

    Raises:
        OptionError: ``holds`` is false.
    """
    if not holds:
        raise OptionError(message, hint=hint)
