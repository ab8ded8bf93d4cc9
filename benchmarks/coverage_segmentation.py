"""Architectures of segmentation_models_pytorch: captured, pruned to half of their MACs, proven, trained, reloaded.

    pip install segmentation-models-pytorch
    python benchmarks/coverage_segmentation.py                     # everything
    python benchmarks/coverage_segmentation.py --only 'Unet*'      # some; the results of the others stay

On several encoders, with random weights, what drops at random left out; otherwise as coverage_timm.py. Writes
results/coverage_segmentation.json and results/coverage_segmentation.md.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from coverage_timm import cover

if TYPE_CHECKING:
    import torch
    from torch import nn

PACKAGE = "segmentation_models_pytorch"
TITLE = "Coverage: architectures for segmentation, nothing dropped at random, at half the MACs"
MODELS = {
    "DPT tu-vit_tiny_patch16_224": 224,
    "DeepLabV3 resnet18": 64,
    "DeepLabV3Plus timm-mobilenetv3_small_100": 64,
    "DeepLabV3Plus resnet18": 64,
    "FPN efficientnet-b0": 64,
    "FPN resnet18": 64,
    "Linknet mobilenet_v2": 64,
    "Linknet resnet18": 64,
    "MAnet resnet18": 64,
    "PAN resnet18": 256,
    "PSPNet resnet18": 64,
    "Segformer mit_b0": 64,
    "Segformer resnet18": 64,
    "UPerNet resnet18": 64,
    "UPerNet tu-convnext_atto": 64,
    "Unet densenet121": 64,
    "Unet efficientnet-b0": 64,
    "Unet mit_b0": 64,
    "Unet resnet18": 64,
    "Unet timm-regnetx_002": 64,
    "Unet vgg11_bn": 64,
    "UnetPlusPlus resnet18": 64,
}
"""Architecture and encoder -> size of its images."""


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a model and images."""
    import torch

    architecture, encoder = name.split()
    library: Any = importlib.import_module(PACKAGE)
    model = getattr(library, architecture)(encoder, encoder_weights=None, classes=5).eval()
    if encoder.startswith("efficientnet"):
        model.encoder._drop_connect_rate = 0.0
    return model, torch.randn(2, 3, MODELS[name], MODELS[name], generator=torch.Generator().manual_seed(0))


if __name__ == "__main__":
    sys.exit(cover(__file__, PACKAGE, TITLE, list(MODELS), build, (__doc__ or "").partition("\n")[0]))
