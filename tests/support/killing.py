"""Models with dead channels: rows of zeros in layers, scales of zero in batch norms, columns of zeros."""

import torch
from torch import Tensor, nn

from .pruning import leaves
from .zoo import ZOO

ROWS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def kill(module: nn.Module, fraction: float, seed: int = 0, *, columns: bool = False, spare: str = "") -> nn.Module:
    """Zero random output channels of every layer (and input channels too), and turn the module to float64, eval."""
    generator = torch.Generator().manual_seed(seed)

    def some(count: int, share: float) -> Tensor:
        return torch.rand(count, generator=generator) < share

    with torch.no_grad():
        for name, layer in module.named_modules():
            weight = getattr(layer, "weight", None)
            if not isinstance(weight, nn.Parameter) or name == spare:
                continue
            if isinstance(layer, ROWS):
                weight[some(len(weight), fraction)] = 0.0
                silence(layer, weight, some(len(weight), 0.5))
            elif isinstance(layer, TRANSPOSED):
                weight[:, some(weight.shape[1], fraction)] = 0.0
            if columns and isinstance(layer, (nn.Conv2d, nn.Linear)):
                weight[:, some(weight.shape[1], fraction / 2)] = 0.0
        for _, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                parameter[some(len(parameter), fraction)] = 0.0
    return module.double().eval()


def silence(layer: nn.Module, weight: Tensor, chosen: Tensor) -> None:
    """Zero the biases of some rows of zeros: a product takes no other constants than 0."""
    bias = getattr(layer, "bias", None)
    if isinstance(bias, nn.Parameter):
        bias[chosen & (weight.reshape(len(weight), -1) == 0).all(1)] = 0.0


def killed_case(name: str, fraction: float, seed: int = 0, *, columns: bool = False) -> nn.Module:
    """A zoo case with dead channels, in float64."""
    return kill(ZOO[name].module(), fraction, seed, columns=columns)


def wide_examples(name: str, batch: int = 2) -> tuple[Tensor, ...]:
    """Inputs of a zoo case in float64."""
    return tuple(x.double() if x.is_floating_point() else x for x in ZOO[name].examples(batch))


def difference(a: nn.Module, b: nn.Module, *inputs: Tensor) -> float:
    """Largest difference of two modules' outputs, relative to the first's largest."""
    with torch.no_grad():
        first, second = (leaves(m.eval()(*(x.clone() for x in inputs))) for m in (a, b))
    assert [x.shape for x in first] == [x.shape for x in second]
    pairs = [(x.double(), y.double()) for x, y in zip(first, second, strict=True)]
    return max(float((x - y).abs().max() / x.abs().max().clamp_min(1e-30)) for x, y in pairs)
