"""Vision models of Hugging Face's transformers: captured, pruned to half of their MACs, proven, trained, reloaded.

    pip install transformers
    python benchmarks/coverage_transformers.py                     # everything
    python benchmarks/coverage_transformers.py --only 'Swin*'      # some; the results of the others stay

Small configurations with random weights, what drops at random left out; otherwise as coverage_timm.py. Writes
results/coverage_transformers.json and results/coverage_transformers.md.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from coverage_timm import cover

if TYPE_CHECKING:
    import torch
    from torch import nn

TITLE = "Coverage: small vision models of transformers, nothing dropped at random, at half the MACs"
PATCHES: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
STAGES: dict[str, Any] = {"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1], "drop_path_rate": 0.0}
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "BeitForImageClassification": (32, {**PATCHES, "image_size": 32, "patch_size": 8, "drop_path_rate": 0.0}),
    "BitForImageClassification": (
        64,
        {"depths": [1, 1, 1, 1], "hidden_sizes": [128, 128, 256, 256], "embedding_size": 32},
    ),
    "CLIPVisionModel": (32, {**PATCHES, "image_size": 32, "patch_size": 8}),
    "ConvNextForImageClassification": (64, STAGES),
    "ConvNextV2ForImageClassification": (64, STAGES),
    "CvtForImageClassification": (64, {"drop_path_rate": [0.0, 0.0, 0.0]}),
    "DPTForDepthEstimation": (
        64,
        {**PATCHES, "num_hidden_layers": 12, "image_size": 64, "neck_hidden_sizes": [16, 32, 32, 32]},
    ),
    "DeiTForImageClassification": (32, {**PATCHES, "image_size": 32, "patch_size": 8}),
    "Dinov2ForImageClassification": (32, {**PATCHES, "image_size": 32, "patch_size": 8}),
    "FocalNetForImageClassification": (64, {"embed_dim": 24, "image_size": 64, "drop_path_rate": 0.0}),
    "GLPNForDepthEstimation": (64, {"drop_path_rate": 0.0}),
    "LevitForImageClassification": (224, {}),
    "MobileNetV1ForImageClassification": (64, {"classifier_dropout_prob": 0.0}),
    "MobileNetV2ForImageClassification": (64, {"classifier_dropout_prob": 0.0}),
    "MobileViTForImageClassification": (64, {"classifier_dropout_prob": 0.0}),
    "PoolFormerForImageClassification": (64, {**STAGES, "drop_path_rate": 0.0}),
    "PvtV2ForImageClassification": (64, {"drop_path_rate": 0.0}),
    "RegNetForImageClassification": (64, {"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1], "groups_width": 8}),
    "ResNetForImageClassification": (64, {"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]}),
    "SegformerForSemanticSegmentation": (64, {"drop_path_rate": 0.0, "classifier_dropout_prob": 0.0}),
    "SiglipVisionModel": (32, {**PATCHES, "image_size": 32, "patch_size": 8}),
    "SwinForImageClassification": (64, {"embed_dim": 24, "image_size": 64, "drop_path_rate": 0.0, "window_size": 2}),
    "Swinv2ForImageClassification": (64, {"embed_dim": 24, "image_size": 64, "drop_path_rate": 0.0, "window_size": 4}),
    "ViTForImageClassification": (32, {**PATCHES, "image_size": 32, "patch_size": 8}),
    "YolosForObjectDetection": (64, {**PATCHES, "image_size": [64, 64]}),
}
"""Class -> size of its images, and its configuration."""


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a model and images."""
    import torch

    library: Any = importlib.import_module("transformers")
    size, options = MODELS[name]
    kind = getattr(library, name)
    model = kind(kind.config_class(**options)).eval()
    return model, torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


if __name__ == "__main__":
    sys.exit(cover(__file__, "transformers", TITLE, list(MODELS), build, (__doc__ or "").partition("\n")[0]))
