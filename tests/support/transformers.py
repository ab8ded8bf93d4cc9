"""Small transformers of torchvision's own classes."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from secateur.compiler.capture import trace
from secateur.compiler.program import Program
from secateur.compiler.vision import import_torchvision

IMAGE, VIDEO = (2, 3, 32, 32), (2, 3, 4, 32, 32)


def part(name: str) -> Any:
    """A module of torchvision, with or without its compiled operators."""
    import_torchvision()
    return importlib.import_module(f"torchvision.models.{name}")


def vit() -> nn.Module:
    return part("vision_transformer").VisionTransformer(
        image_size=32, patch_size=16, num_layers=1, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=10
    )


def swin(**options: Any) -> nn.Module:
    """A stage of plain and shifted windows, and one of windows as large as the image."""
    return part("swin_transformer").SwinTransformer([2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=5, **options)


def swin_v2() -> nn.Module:
    module = part("swin_transformer")
    return swin(block=module.SwinTransformerBlockV2, downsample_layer=module.PatchMergingV2)


def maxvit() -> nn.Module:
    return part("maxvit").MaxVit((32, 32), 8, 4, [8, 16], [1, 1], 4, stochastic_depth_prob=0.0, num_classes=5)


def mvit() -> nn.Module:
    """Two heads whose keys and values are pooled, and four of which all are."""
    module = part("video.mvit")
    blocks = [
        module.MSBlockConfig(
            num_heads=2, input_channels=16, output_channels=32,
            kernel_q=[], kernel_kv=[3, 3, 3], stride_q=[], stride_kv=[1, 2, 2],
        ),
        module.MSBlockConfig(
            num_heads=4, input_channels=32, output_channels=32,
            kernel_q=[3, 3, 3], kernel_kv=[3, 3, 3], stride_q=[1, 2, 2], stride_kv=[1, 1, 1],
        ),
    ]  # fmt: skip
    return module.MViT(
        spatial_size=(32, 32),
        temporal_size=4,
        block_setting=blocks,
        num_classes=5,
        stochastic_depth_prob=0.0,
        patch_embed_kernel=(3, 7, 7),
        patch_embed_stride=(2, 4, 4),
        patch_embed_padding=(1, 3, 3),
        residual_pool=False,
        residual_with_cls_embed=True,
        rel_pos_embed=False,
        proj_after_attn=False,
    )


TRANSFORMERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vit": (vit, IMAGE),
    "swin": (swin, IMAGE),
    "swin_v2": (swin_v2, IMAGE),
    "maxvit": (maxvit, IMAGE),
    "mvit": (mvit, VIDEO),
}


def program_of(name: str) -> Program:
    """The captured program; nothing in it is zero or one by accident."""
    torch.manual_seed(0)
    build, shape = TRANSFORMERS[name]
    module = build().eval()
    with torch.no_grad():
        for tensor in module.parameters():
            if tensor.ndim == 1 or not tensor.any():
                tensor.uniform_(-0.5, 0.5)
    return trace(module, torch.zeros(shape))
