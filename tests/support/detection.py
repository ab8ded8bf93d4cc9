"""Small detectors of torchvision's own classes, that run with or without torchvision's compiled operators."""

import importlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from secateur.compiler.vision import import_torchvision

SIZE = 64
WIDTH = 16
"""Of the feature pyramid."""


def torchvision() -> Any:
    """Torchvision, with or without its compiled operators."""
    return import_torchvision()


def part(name: str) -> Any:
    """One of torchvision's modules for detection."""
    torchvision()
    return importlib.import_module(f"torchvision.models.detection.{name}")


def layer(inputs: int, outputs: int, stride: int = 2) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def body() -> nn.Sequential:
    return nn.Sequential(OrderedDict(stem=layer(3, 8), layer1=layer(8, 10), layer2=layer(10, 12)))


def pyramid(width: int = WIDTH) -> Any:
    """Three levels: two convolved ones and a pooled one."""
    utils = part("backbone_utils")
    return utils.BackboneWithFPN(body(), {"layer1": "0", "layer2": "1"}, [10, 12], width)


class TwoMaps(nn.Module):
    """A backbone without a pyramid, as SSD takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = body()
        self.out_channels = [10, 12]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.body.get_submodule("layer1")(self.body.get_submodule("stem")(x))
        return OrderedDict([("0", first), ("1", self.body.get_submodule("layer2")(first))])


def anchors(per_place: int = 1) -> Any:
    utils = part("anchor_utils")
    sizes = ((12,), (24,), (48,))
    return utils.AnchorGenerator(sizes, ((0.5, 1.0, 2.0)[:per_place],) * len(sizes))


def pool(size: int) -> Any:
    return torchvision().ops.MultiScaleRoIAlign(["0", "1"], size, 2)


def rcnn(name: str, **heads: Any) -> nn.Module:
    detection = torchvision().models.detection
    faster = part("faster_rcnn")
    return getattr(detection, name)(
        pyramid(),
        min_size=SIZE,
        max_size=SIZE,
        rpn_anchor_generator=anchors(3),
        rpn_pre_nms_top_n_train=40,
        rpn_pre_nms_top_n_test=40,
        rpn_post_nms_top_n_train=20,
        rpn_post_nms_top_n_test=20,
        box_roi_pool=pool(3),
        box_head=faster.TwoMLPHead(WIDTH * 9, 24),
        box_predictor=faster.FastRCNNPredictor(24, 3),
        box_score_thresh=0.0,
        box_detections_per_img=5,
        **heads,
    )


def faster_rcnn() -> nn.Module:
    return rcnn("FasterRCNN")


def mask_rcnn() -> nn.Module:
    mask = part("mask_rcnn")
    return rcnn(
        "MaskRCNN",
        mask_roi_pool=pool(4),
        mask_head=mask.MaskRCNNHeads(WIDTH, (12, 10), 1),
        mask_predictor=mask.MaskRCNNPredictor(10, 12, 3),
    )


def keypoint_rcnn() -> nn.Module:
    keypoint = part("keypoint_rcnn")
    return rcnn(
        "KeypointRCNN",
        keypoint_roi_pool=pool(4),
        keypoint_head=keypoint.KeypointRCNNHeads(WIDTH, (12, 10)),
        keypoint_predictor=keypoint.KeypointRCNNPredictor(10, 4),
    )


def retinanet() -> nn.Module:
    detection = torchvision().models.detection
    options = {"min_size": SIZE, "max_size": SIZE, "score_thresh": 0.0, "topk_candidates": 20, "detections_per_img": 5}
    return detection.RetinaNet(pyramid(), 3, anchor_generator=anchors(3), **options)


def fcos() -> nn.Module:
    """Its heads have 32 groups in each normalisation."""
    detection = torchvision().models.detection
    options = {"min_size": SIZE, "max_size": SIZE, "score_thresh": 0.0, "topk_candidates": 20, "detections_per_img": 5}
    return detection.FCOS(pyramid(64), 3, anchor_generator=anchors(), **options)


def ssd(head: Callable[[Any], nn.Module] | None = None) -> nn.Module:
    detection = torchvision().models.detection
    utils = part("anchor_utils")
    boxes = utils.DefaultBoxGenerator([[2], [2]])
    options = {"score_thresh": 0.0, "topk_candidates": 20, "detections_per_img": 5}
    return detection.ssd.SSD(TwoMaps(), boxes, (SIZE, SIZE), 3, head=head(boxes) if head else None, **options)


def ssdlite() -> nn.Module:
    lite = part("ssdlite")
    return ssd(lambda boxes: lite.SSDLiteHead([10, 12], boxes.num_anchors_per_location(), 3, nn.BatchNorm2d))


DETECTORS: dict[str, Callable[[], nn.Module]] = {
    build.__name__: build for build in (faster_rcnn, mask_rcnn, keypoint_rcnn, retinanet, fcos, ssd, ssdlite)
}


def detector(name: str) -> nn.Module:
    """A detector in evaluation mode, with weights large enough for its answers to depend on the image."""
    torch.manual_seed(1)
    model = DETECTORS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.3 if parameter.ndim == 1 else 0.15)
    return model.eval()


def images(count: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(3, SIZE, SIZE, generator=generator) for _ in range(count)]


def targets(count: int = 2) -> list[dict[str, Tensor]]:
    """What any of the detectors may be trained with."""
    one = {
        "boxes": torch.tensor([[4.0, 6.0, 30.0, 40.0], [20.0, 10.0, 60.0, 56.0]]),
        "labels": torch.tensor([1, 2]),
        "masks": torch.ones(2, SIZE, SIZE, dtype=torch.uint8),
        "keypoints": torch.tensor([[[10.0, 12.0, 1.0]] * 4, [[40.0, 30.0, 1.0]] * 4]),
    }
    return [dict(one) for _ in range(count)]


def layer_at(model: nn.Module, path: str) -> Any:
    """A submodule, of any class."""
    return model.get_submodule(path)
