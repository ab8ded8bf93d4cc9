"""Pipelines with names. Text only: which passes there are is the business of the catalog."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

GENERAL: Final = {
    # 1. Prune first, while layers and their norms are those that were trained: criteria and proof are about them.
    #    Widths in multiples of 16, which the fast kernels of CPU engines need; without them a net with fewer channels
    #    can be the slower one.
    # 2. What only training needs goes next (dropout, stochastic depth), so that a norm stands right behind the layer
    #    that it folds into; so does what depends on no input, whatever is folded later.
    # 3. Norms are folded: a quantized net must see the weights that it will run with, and one rounding less.
    # 4. Only then is it plain which channels are constant: a norm of scale 0 has become a row of zeros with a bias.
    # 5. Quantization last: nothing before it can work on integers, and its ranges hold for these weights only.
    "compact": (
        "prune{macs=0.5 round-to=16},eliminate-identity,fold-constants,fold-bn,eliminate-dead-channels{border=merge},"
        "quantize"
    ),
    # The most accuracy at a cost that there is without training; wants calibration images (a thousand), no labels.
    # 1. What a channel costs once its readers are refitted decides which go, and how many of each layer: the scores are
    #    losses, so that one knapsack over all widths spends the budget where it hurts least; layers that share what
    #    they read may each do without other channels of it, where that is worth a copy.
    # 2. Layers are refitted one after the other, each on what the pruned layers before it really give,
    # 3. then the layers of a block together, from there: alone they cannot make up for one another.
    # 4. Clean-up last. Folding rounds weights and takes away the norms that refitting relies on.
    "one-shot": (
        "prune{macs=0.7 criterion=reconstruction scope=knapsack select=paying},reconstruct,reconstruct-blocks,"
        "eliminate-identity,fold-constants,fold-bn,eliminate-dead-channels{border=merge}"
    ),
    # The same without any data.
    # 1. Filters that others can stand in for go first (their distance from all others is smallest), by a knapsack.
    # 2. Behind a batch norm the mean of what was removed is known, and goes into the biases of its readers.
    # 3. Clean-up last, since absorbing reads those batch norms.
    "data-free": (
        "prune{macs=0.7 criterion=fpgm scope=knapsack},absorb,"
        "eliminate-identity,fold-constants,fold-bn,eliminate-dead-channels{border=merge}"
    ),
}
"""Preset (without its ``@``) -> pipeline. The order of a preset's passes is explained by a comment above it."""

# Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017: which filters go from which layers, by their l1 norms,
# layer by layer and independently of what was removed before. Retraining is up to ``secateur train``.

_VGG16: Final = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
"""Convolution -> place in ``features`` (zoo: cifar-vgg16-4096, cifar-vgg16-pfec)."""


def _by_layer(layers: Mapping[str, float]) -> str:
    text = ",".join(f"{layer}:{number:g}" for layer, number in layers.items())
    return f"prune{{criterion=l1-independent layers={text}}}"


def _first_convolutions(
    blocks: Sequence[int], widths: Sequence[int], rates: Sequence[float], skipped: Sequence[int]
) -> Iterator[tuple[str, int]]:
    """Yield the first convolutions of residual blocks and how many filters go: n - floor(n (1 - rate)).

    Args:
        blocks: Per stage.
        widths: Filters, per stage.
        rates: Fraction that goes, per stage.
        skipped: Convolutions that stay whole, counted from the stem's, which is 1: a block's first has number 2 b.
    """
    number = 2
    for stage, count in enumerate(blocks):
        width, rate = widths[stage], rates[stage]
        for place in range(count):
            gone = width - int(width * (1 - rate) + 1e-9)
            if gone and number not in skipped:
                yield f"layer{stage + 1}.{place}.conv1", gone
            number += 2


def _cifar(blocks: int, rates: Sequence[float], skipped: Sequence[int]) -> str:
    return _by_layer(dict(_first_convolutions([blocks] * 3, (16, 32, 64), rates, skipped)))


def _resnet34(rates: Sequence[float]) -> str:
    skipped = (2, 8, 14, 16, 26, 28, 30, 32)
    return _by_layer(dict(_first_convolutions((3, 4, 6, 3), (64, 128, 256, 512), (*rates, 0.0), skipped)))


PAPERS: Final = {
    # 2.06e8 of 3.13e8 MACs in convolutions; paper: 6.75 -> 6.60 % error after retraining.
    "pfec-vgg16-a": _by_layer({f"features.{_VGG16[n]}": 0.5 for n in (0, *range(7, 13))}),
    # 1.12e8 and 9.09e7 of 1.25e8 MACs; paper: 6.96 -> 6.90 and 6.94 % error.
    "pfec-resnet56-a": _cifar(9, (0.1, 0.1, 0.1), (16, 20, 38, 54)),
    "pfec-resnet56-b": _cifar(9, (0.6, 0.3, 0.1), (16, 18, 20, 34, 38, 54)),
    # 2.13e8 and 1.55e8 of 2.53e8 MACs; paper: 6.47 -> 6.45 and 6.70 % error.
    "pfec-resnet110-a": _cifar(18, (0.5, 0.0, 0.0), (36,)),
    "pfec-resnet110-b": _cifar(18, (0.5, 0.4, 0.3), (36, 38, 74)),
    # torchvision's resnet34: 3.08e9, 2.76e9 and 3.37e9 of 3.64e9 MACs; paper: 26.77 -> 27.44, 27.83 and 27.52 % error.
    "pfec-resnet34-a": _resnet34((0.3, 0.3, 0.3)),
    "pfec-resnet34-b": _resnet34((0.5, 0.6, 0.4)),
    # The trunk of the third stage, with everything that is added to it.
    "pfec-resnet34-c": _by_layer({"layer3.0.conv2": 256 - 204}),
}
"""Published choices, each for one network."""

PRESETS: Final[dict[str, str]] = {**GENERAL, **PAPERS}
