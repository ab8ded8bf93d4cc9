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
DETR: dict[str, Any] = {
    "num_queries": 10,
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "use_timm_backbone": False,
    "backbone": None,
}
RESNET: dict[str, Any] = {"hidden_sizes": [16, 32, 32, 64], "embedding_size": 16, "depths": [1, 1, 1, 1]}
RT_DETR: dict[str, Any] = {
    "num_queries": 10,
    "d_model": 32,
    "encoder_hidden_dim": 32,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_layers": 2,
    "encoder_in_channels": [32, 32, 64],
    "decoder_in_channels": [32, 32, 32],
    "backbone_config": (
        "RTDetrResNetConfig",
        {**RESNET, "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"]},
    ),
}
FOUR: dict[str, Any] = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
SWIN: dict[str, Any] = {"embed_dim": 24, "image_size": 64, "window_size": 2, "drop_path_rate": 0.0, **FOUR}
DINO: dict[str, Any] = {
    **PATCHES,
    "num_hidden_layers": 4,
    "image_size": 56,
    "patch_size": 14,
    "out_indices": [1, 2, 3, 4],
    "reshape_hidden_states": False,
    "apply_layernorm": True,
}
DEPTH: dict[str, Any] = {"reassemble_hidden_size": 48, "neck_hidden_sizes": [16, 32, 32, 32], "fusion_hidden_size": 16}
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "BeitForImageClassification": (32, {**PATCHES, "image_size": 32, "patch_size": 8, "drop_path_rate": 0.0}),
    "BitForImageClassification": (
        64,
        {"depths": [1, 1, 1, 1], "hidden_sizes": [128, 128, 256, 256], "embedding_size": 32},
    ),
    "BeitForSemanticSegmentation": (
        64,
        {
            **PATCHES,
            "num_hidden_layers": 4,
            "image_size": 64,
            "patch_size": 16,
            "drop_path_rate": 0.0,
            "out_indices": [1, 2, 3, 4],
        },
    ),
    "CLIPVisionModel": (32, {**PATCHES, "image_size": 32, "patch_size": 8}),
    "ConditionalDetrForObjectDetection": (64, {**DETR, "backbone_config": ("ResNetConfig", RESNET)}),
    "ConvNextForImageClassification": (64, STAGES),
    "ConvNextV2ForImageClassification": (64, STAGES),
    "CvtForImageClassification": (64, {"drop_path_rate": [0.0, 0.0, 0.0]}),
    "DINOv3ConvNextModel": (64, {"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]}),
    "DINOv3ViTModel": (32, {**PATCHES, "image_size": 32, "patch_size": 8}),
    "DPTForDepthEstimation": (
        64,
        {**PATCHES, "num_hidden_layers": 12, "image_size": 64, "neck_hidden_sizes": [16, 32, 32, 32]},
    ),
    "DabDetrForObjectDetection": (
        64,
        {**DETR, "hidden_size": 64, "backbone_config": ("ResNetConfig", RESNET)},
    ),
    "DeformableDetrForObjectDetection": (
        64,
        {
            **DETR,
            "with_box_refine": False,
            "two_stage": False,
            "backbone_config": ("ResNetConfig", {**RESNET, "out_features": ["stage2", "stage3", "stage4"]}),
        },
    ),
    "DeiTForImageClassification": (32, {**PATCHES, "image_size": 32, "patch_size": 8}),
    "DepthAnythingForDepthEstimation": (56, {**DEPTH, "backbone_config": ("Dinov2Config", DINO)}),
    "DetrForObjectDetection": (64, {**DETR, "backbone_config": ("ResNetConfig", RESNET)}),
    "Dinov2ForImageClassification": (32, {**PATCHES, "image_size": 32, "patch_size": 8}),
    "EfficientNetForImageClassification": (
        64,
        {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640, "dropout_rate": 0.0},
    ),
    "EomtForUniversalSegmentation": (
        64,
        {**PATCHES, "image_size": 64, "patch_size": 16, "num_blocks": 1, "num_queries": 8},
    ),
    "FocalNetForImageClassification": (64, {"embed_dim": 24, "image_size": 64, "drop_path_rate": 0.0}),
    "GLPNForDepthEstimation": (64, {"drop_path_rate": 0.0}),
    "HieraForImageClassification": (
        64,
        {"image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
    ),
    "LevitForImageClassification": (224, {}),
    "Mask2FormerForUniversalSegmentation": (
        64,
        {
            "feature_size": 32,
            "mask_feature_size": 32,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 64,
            "dim_feedforward": 64,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "num_attention_heads": 4,
            "num_queries": 8,
            "backbone_config": ("SwinConfig", SWIN),
        },
    ),
    "MaskFormerForInstanceSegmentation": (
        64,
        {
            "fpn_feature_size": 32,
            "mask_feature_size": 32,
            "backbone_config": ("SwinConfig", SWIN),
            "decoder_config": ("DetrConfig", {**DETR, "backbone_config": ("ResNetConfig", RESNET)}),
        },
    ),
    "MobileNetV1ForImageClassification": (64, {"classifier_dropout_prob": 0.0}),
    "MobileNetV2ForImageClassification": (64, {"classifier_dropout_prob": 0.0}),
    "MobileViTForImageClassification": (64, {"classifier_dropout_prob": 0.0}),
    "PoolFormerForImageClassification": (64, {**STAGES, "drop_path_rate": 0.0}),
    "PvtV2ForImageClassification": (64, {"drop_path_rate": 0.0}),
    "RTDetrForObjectDetection": (64, RT_DETR),
    "RTDetrV2ForObjectDetection": (64, RT_DETR),
    "RegNetForImageClassification": (64, {"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1], "groups_width": 8}),
    "ResNetForImageClassification": (64, {"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]}),
    "SamVisionModel": (
        64,
        {
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 64,
            "patch_size": 8,
            "window_size": 2,
            "output_channels": 16,
            "global_attn_indexes": [1],
            "mlp_dim": 96,
            "num_pos_feats": 24,
        },
    ),
    "SegformerForSemanticSegmentation": (64, {"drop_path_rate": 0.0, "classifier_dropout_prob": 0.0}),
    "SiglipVisionModel": (32, {**PATCHES, "image_size": 32, "patch_size": 8}),
    "SwiftFormerForImageClassification": (64, {"drop_path_rate": 0.0}),
    "Swin2SRForImageSuperResolution": (
        16,
        {"image_size": 16, "embed_dim": 24, "depths": [2], "num_heads": [2], "window_size": 4, "drop_path_rate": 0.0},
    ),
    "SwinForImageClassification": (64, {"embed_dim": 24, "image_size": 64, "drop_path_rate": 0.0, "window_size": 2}),
    "Swinv2ForImageClassification": (64, {"embed_dim": 24, "image_size": 64, "drop_path_rate": 0.0, "window_size": 4}),
    "TextNetForImageClassification": (64, {}),
    "UperNetForSemanticSegmentation": (
        64,
        {"hidden_size": 32, "auxiliary_in_channels": 96, "backbone_config": ("SwinConfig", SWIN)},
    ),
    "ViTForImageClassification": (32, {**PATCHES, "image_size": 32, "patch_size": 8}),
    "VitDetModel": (
        64,
        {
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 64,
            "patch_size": 8,
            "window_block_indices": [0],
            "window_size": 4,
        },
    ),
    "YolosForObjectDetection": (64, {**PATCHES, "image_size": [64, 64]}),
}
"""Class -> size of its images, and its configuration; those of parts are the names of theirs, and what is in them."""


def configured(library: Any, kind: Any, options: dict[str, Any]) -> Any:
    """Return a configuration, with those of its parts."""
    parts = {
        key: configured(library, getattr(library, value[0]), value[1]) if isinstance(value, tuple) else value
        for key, value in options.items()
    }
    return kind(**parts)


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a model and images."""
    import torch

    library: Any = importlib.import_module("transformers")
    size, options = MODELS[name]
    kind = getattr(library, name)
    model = kind(configured(library, kind.config_class, options)).eval()
    return model, torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


if __name__ == "__main__":
    sys.exit(cover(__file__, "transformers", TITLE, list(MODELS), build, (__doc__ or "").partition("\n")[0]))
