"""The one door through which every spelling of an operation enters.

``nn.ReLU``, ``F.relu``, ``torch.relu``, ``x.relu()`` and ``x.relu_()`` are one operation. Rules, shape inference, cost
and rewriting see a :class:`Call`: a key (``"relu"`` belongs to ``"unary"``), and parameters by name, wherever they were
written. A new spelling is one word in a table here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import fx, nn
from torch.nn import functional as F

from . import functional
from .layers import layer_class
from .program import Program
from .quantized import FAKE_QUANTIZED, QUANTIZED

REQUIRED: Final = object()
"""Default of a parameter that has none."""

UNKNOWN: Final = "unknown"
"""Key of every operation that no table names."""

# Key -> parameters in positional order. "*x" takes all the remaining positions (view(2, 3) and view((2, 3)) alike).
_SIGNATURES: Final[dict[str, str]] = {
    "conv": "input weight bias=None stride=1 padding=0 dilation=1 groups=1 weight_scale=None",
    "conv_transpose": "input weight bias=None stride=1 padding=0 output_padding=0 groups=1 dilation=1",
    "linear": "input weight bias=None weight_scale=None",
    "embedding": "input weight padding_idx=None max_norm=None",
    "batch_norm": "input running_mean running_var weight=None bias=None training=False momentum=0.1 eps=1e-5",
    "instance_norm": "input running_mean=None running_var=None weight=None bias=None use_input_stats=True",
    "layer_norm": "input normalized_shape weight=None bias=None eps=1e-5",
    "group_norm": "input num_groups weight=None bias=None eps=1e-5",
    "prelu": "input weight",
    "unary": "input",
    "copy": "input",
    "binary": "input other",
    "where": "condition input other",
    "softmax": "input dim=None",
    "glu": "input dim=-1",
    "max_pool": "input kernel_size stride=None padding=0 dilation=1 ceil_mode=False return_indices=False",
    "avg_pool": "input kernel_size stride=None padding=0 ceil_mode=False count_include_pad=True",
    "lp_pool": "input norm_type kernel_size stride=None ceil_mode=False",
    "adaptive_pool": "input output_size return_indices=False",
    "interpolate": "input size=None scale_factor=None mode='nearest' align_corners=None",
    "pixel_shuffle": "input upscale_factor",
    "pixel_unshuffle": "input downscale_factor",
    "channel_shuffle": "input groups",
    "cat": "tensors dim=0",
    "stack": "tensors dim=0",
    "split": "input split_size_or_sections dim=0",
    "chunk": "input chunks dim=0",
    "tensor_split": "input indices_or_sections dim=0",
    "unbind": "input dim=0",
    "getitem": "input index",
    "select": "input dim index",
    "narrow": "input dim start length",
    "index_select": "input dim index",
    "reshape": "input *shape",
    "reshape_as": "input other",
    "flatten": "input start_dim=0 end_dim=-1",
    "unflatten": "input dim sizes",
    "permute": "input *dims",
    "transpose": "input dim0 dim1",
    "matrix_transpose": "input",
    "movedim": "input source destination",
    "squeeze": "input dim=None",
    "unsqueeze": "input dim",
    "expand": "input *sizes",
    "expand_as": "input other",
    "repeat": "input *sizes",
    "roll": "input shifts dims=None",
    "flip": "input *dims",
    "pad": "input pad mode='constant' value=None",
    "reduce": "input dim=None keepdim=False",
    "variance": "input dim=None unbiased=True keepdim=False",
    "extremum": "input dim=None keepdim=False",
    "size": "input dim=None",
    "shape": "input name",
    "rank": "input",
    "create_like": "input *size",
}

# Key -> the words that mean it, as a function of torch / torch.nn.functional / operator or as a tensor method. A
# trailing underscore (in place) and an "i" of the operator module (iadd) are understood.
_WORDS: Final[dict[str, str]] = {
    "conv": "conv1d conv2d conv3d",
    "conv_transpose": "conv_transpose1d conv_transpose2d conv_transpose3d",
    "linear": "linear",
    "embedding": "embedding",
    "batch_norm": "batch_norm",
    "instance_norm": "instance_norm",
    "layer_norm": "layer_norm",
    "group_norm": "group_norm",
    "prelu": "prelu",
    "copy": "clone detach contiguous",
    "unary": (
        "relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid logsigmoid tanh hardtanh hardswish hardsigmoid "
        "hardshrink softshrink tanhshrink softplus softsign threshold rrelu erf exp expm1 log log1p log2 sqrt rsqrt "
        "square abs neg sign sin cos tan sinh cosh asin acos atan floor ceil round trunc frac clamp clamp_min "
        "clamp_max clip reciprocal logit dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout "
        "feature_dropout stochastic_depth to float double half bfloat16 type_as nan_to_num "
        "zeros_like ones_like empty_like rand_like randn_like full_like requires_grad logical_not isnan isinf positive "
        "quantize dequantize fake_quantize"
    ),
    "binary": (
        "add sub subtract mul multiply div divide truediv true_divide floordiv floor_divide pow remainder fmod mod "
        "maximum minimum fmax fmin atan2 rsub eq ne lt le gt ge logical_and logical_or logical_xor lerp and_ or_ xor"
    ),
    "where": "where",
    "softmax": "softmax log_softmax softmin",
    "glu": "glu",
    "max_pool": "max_pool1d max_pool2d max_pool3d",
    "avg_pool": "avg_pool1d avg_pool2d avg_pool3d",
    "lp_pool": "lp_pool1d lp_pool2d",
    "adaptive_pool": (
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
        "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"
    ),
    "interpolate": "interpolate upsample",
    "pixel_shuffle": "pixel_shuffle",
    "pixel_unshuffle": "pixel_unshuffle",
    "channel_shuffle": "channel_shuffle native_channel_shuffle",
    "cat": "cat concat concatenate",
    "stack": "stack",
    "split": "split split_with_sizes",
    "chunk": "chunk",
    "tensor_split": "tensor_split",
    "unbind": "unbind",
    "getitem": "getitem",
    "select": "select",
    "narrow": "narrow",
    "index_select": "index_select",
    "reshape": "view reshape",
    "reshape_as": "view_as reshape_as",
    "flatten": "flatten",
    "unflatten": "unflatten",
    "permute": "permute",
    "transpose": "transpose swapaxes swapdims",
    "matrix_transpose": "t",
    "movedim": "movedim moveaxis",
    "squeeze": "squeeze",
    "unsqueeze": "unsqueeze",
    "expand": "expand broadcast_to",
    "expand_as": "expand_as",
    "repeat": "repeat tile",
    "roll": "roll",
    "flip": "flip",
    "pad": "pad",
    "reduce": "mean sum amax amin prod logsumexp any all nansum nanmean",
    "variance": "var std",
    "extremum": "max min",
    "size": "size",
    "shape": "getattr",
    "rank": "dim ndimension",
    "create_like": "new_zeros new_ones new_empty new_full new_tensor",
}

# Key -> classes of torch.nn that mean it. Their attributes bear the parameters' names, except where _ATTRIBUTES says
# so.
_CLASSES: Final[dict[str, str]] = {
    "conv": "Conv1d Conv2d Conv3d",
    "conv_transpose": "ConvTranspose1d ConvTranspose2d ConvTranspose3d",
    "linear": "Linear NonDynamicallyQuantizableLinear",
    "embedding": "Embedding",
    "batch_norm": "BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm",
    "instance_norm": "InstanceNorm1d InstanceNorm2d InstanceNorm3d",
    "layer_norm": "LayerNorm",
    "group_norm": "GroupNorm",
    "prelu": "PReLU",
    "unary": (
        "ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Sigmoid LogSigmoid Tanh Hardtanh Hardswish Hardsigmoid "
        "Hardshrink Softshrink Tanhshrink Softplus Softsign Threshold RReLU Dropout Dropout1d Dropout2d Dropout3d "
        "AlphaDropout FeatureAlphaDropout Identity"
    ),
    "softmax": "Softmax LogSoftmax Softmin",
    "glu": "GLU",
    "max_pool": "MaxPool1d MaxPool2d MaxPool3d",
    "avg_pool": "AvgPool1d AvgPool2d AvgPool3d",
    "lp_pool": "LPPool1d LPPool2d",
    "adaptive_pool": (
        "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d"
    ),
    "interpolate": "Upsample UpsamplingNearest2d UpsamplingBilinear2d",
    "pixel_shuffle": "PixelShuffle",
    "pixel_unshuffle": "PixelUnshuffle",
    "channel_shuffle": "ChannelShuffle",
    "flatten": "Flatten",
    "unflatten": "Unflatten",
    "pad": (
        "ZeroPad1d ZeroPad2d ZeroPad3d ConstantPad1d ConstantPad2d ConstantPad3d ReflectionPad1d ReflectionPad2d "
        "ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d CircularPad1d CircularPad2d CircularPad3d"
    ),
}
_ATTRIBUTES: Final[dict[tuple[str, str], str]] = {
    ("pad", "pad"): "padding",
    ("unflatten", "sizes"): "unflattened_size",
}
_ALIASES: Final[dict[str, str]] = {
    "self": "input",
    "x": "input",
    "axis": "dim",
    "axes": "dims",
    "size": "shape",
    "tensor": "input",
    "split_size": "split_size_or_sections",
    "split_sizes": "split_size_or_sections",
    "sections": "indices_or_sections",
    "indices": "indices_or_sections",
    "arrays": "tensors",
    "axis0": "dim0",
    "axis1": "dim1",
    "keepdims": "keepdim",
}


def _parse(text: str) -> tuple[tuple[str, Any], ...]:
    parameters: list[tuple[str, Any]] = []
    for word in text.split():
        name, equals, default = word.partition("=")
        parameters.append((name, eval(default, {}) if equals else REQUIRED))
    return tuple(parameters)


SIGNATURES: Final = {key: _parse(text) for key, text in _SIGNATURES.items()}


def _tables() -> tuple[dict[Any, str], dict[str, str], dict[type, str]]:
    functions: dict[Any, str] = {}
    methods: dict[str, str] = {}
    spaces: Sequence[Any] = (torch, F, torch.special, functional, SimpleNamespace(getattr=getattr))
    for key, words in _WORDS.items():
        for word in words.split():
            methods[word] = methods[word + "_"] = key
            for space in spaces:
                for name in (word, word + "_"):
                    if (target := getattr(space, name, None)) is not None:
                        functions[target] = key
            for name in (word, "i" + word, word.rstrip("_")):
                if (target := getattr(operator, name, None)) is not None:
                    functions[target] = key
    classes = {
        getattr(nn, word, None) or getattr(nn.modules.linear, word): key
        for key, words in _CLASSES.items()
        for word in words.split()
        if hasattr(nn, word) or hasattr(nn.modules.linear, word)
    }
    for table in (QUANTIZED, FAKE_QUANTIZED):
        classes |= {ours: classes[kind] for kind, ours in table.items()}
    return functions, methods, classes


FUNCTIONS, METHODS, CLASSES = _tables()


@dataclass(slots=True)
class Call:
    """One node, normalised: what it does and its parameters by name.

    Tensor parameters are :class:`fx.Node` (functional spelling) or ``nn.Parameter``/buffer (module spelling, then
    ``owner`` is the module's path). Everything else is a plain value, which may still be a Node that computes an int.
    """

    key: str
    node: fx.Node
    params: dict[str, Any]
    module: nn.Module | None = None
    owner: str = ""

    @property
    def input(self) -> Any:
        """The first operand."""
        return self.params["input"]

    def __getitem__(self, name: str) -> Any:
        """Return a parameter by name."""
        return self.params[name]

    @property
    def title(self) -> str:
        """What a person calls this operation."""
        if self.module is not None:
            return type(self.module).__name__
        target = self.node.target
        return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def normalise(program: Program, node: fx.Node) -> Call:
    """Return the normalised view of a call node (``call_module``, ``call_function``, ``call_method``)."""
    if node.op == "call_module":
        return _module_call(program.owner(str(node.target)), node)
    key = METHODS.get(str(node.target)) if node.op == "call_method" else FUNCTIONS.get(node.target)
    if key is None:
        return Call(UNKNOWN, node, {})
    bound = _bind(SIGNATURES[key], node)
    return Call(key, node, bound) if bound is not None else Call(UNKNOWN, node, {})


def attribute_of(key: str, parameter: str) -> str:
    """Return the name of the module attribute that holds a parameter."""
    return _ATTRIBUTES.get((key, parameter), parameter)


def _module_call(module: nn.Module, node: fx.Node) -> Call:
    path = str(node.target)
    key = CLASSES.get(layer_class(type(module)), UNKNOWN)
    # Hooks and parametrizations compute what the tables cannot see (weight_norm, spectral_norm).
    if key == UNKNOWN or module._forward_pre_hooks or module._forward_hooks or len(node.args) + len(node.kwargs) != 1:
        return Call(UNKNOWN, node, {}, module, path)
    params: dict[str, Any] = {"input": node.args[0] if node.args else next(iter(node.kwargs.values()))}
    attributes, parameters, buffers = module.__dict__, module._parameters, module._buffers
    for name, default in SIGNATURES[key][1:]:
        name_there = _ATTRIBUTES.get((key, name), name)
        for space in (attributes, parameters, buffers):  # what getattr does, without its detour through __getattr__
            if name_there in space:
                params[name] = space[name_there]
                break
        else:
            params[name] = getattr(type(module), name_there, default)
    if key == "pad":
        kind = type(module).__name__
        params["mode"] = next(
            (m for m in ("reflect", "replicat", "circular") if kind.lower().startswith(m)), "constant"
        )
        params["pad"] = (
            list(params["pad"]) if not isinstance(params["pad"], int) else [params["pad"]] * 2 * int(kind[-2])
        )
    return Call(key, node, params, module, path)


def _bind(signature: tuple[tuple[str, Any], ...], node: fx.Node) -> dict[str, Any] | None:
    """Bind positions and keywords to names; ``None`` when they do not fit (an overload that the tables do not know)."""
    params: dict[str, Any] = {}
    args = node.args
    for position, (name, default) in enumerate(signature):
        if name[0] == "*":
            rest: Any = args[position:]
            if len(rest) == 1 and not isinstance(rest[0], int):
                rest = rest[0]
            params[name[1:]] = rest
            if position >= len(args):
                params[name[1:]] = REQUIRED
            args = args[:position]
        else:
            params[name] = args[position] if position < len(args) else default
    if len(args) > len(signature):
        extra_allowed = (
            signature[0][0] == "input" and len(signature) <= 2
        )  # unary and binary: alpha, negative_slope, ...
        if not extra_allowed:
            return None
    for keyword, value in node.kwargs.items():
        name = keyword if keyword in params else _ALIASES.get(keyword, keyword)
        params[name if name in params else keyword] = value
    if any(value is REQUIRED for name, value in params.items() if name != "dims"):
        return None
    return params


def locate(node: fx.Node, key: str, name: str) -> tuple[str, int | str]:
    """Return where parameter ``name`` of a functional call stands: ("args" or "rest", position) or ("kwargs", key).

    "rest" means that every positional argument from there on belongs to it (``x.view(2, 3)``).
    """
    for position, (parameter, _) in enumerate(SIGNATURES[key]):
        if parameter.lstrip("*") == name and position < len(node.args):
            spread = parameter[0] == "*" and (len(node.args) > position + 1 or isinstance(node.args[position], int))
            return ("rest", position) if spread else ("args", position)
    for keyword in node.kwargs:
        if keyword == name or _ALIASES.get(keyword) == name:
            return "kwargs", keyword
    return "kwargs", name


def set_parameter(node: fx.Node, key: str, name: str, value: Any) -> None:
    """Write parameter ``name`` of a functional call, keeping the call's own spelling."""
    where, at = locate(node, key, name)
    if where == "kwargs":
        node.kwargs = {**node.kwargs, str(at): value}
    elif where == "rest":
        node.args = (*node.args[: int(at)], *value)
    else:
        position = int(at)
        node.args = (*node.args[:position], value, *node.args[position + 1 :])


TargetFunction = Callable[..., Any]
