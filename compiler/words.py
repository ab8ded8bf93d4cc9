"""What operations are called: keys, parameters and words. Read by :mod:`.ops`."""

from __future__ import annotations

from typing import Final

# Key -> parameters in positional order. "*x" takes all the remaining positions (view(2, 3) and view((2, 3)) alike).
PARAMETERS: Final[dict[str, str]] = {
    "conv": "input weight bias=None stride=1 padding=0 dilation=1 groups=1 weight_scale=None",
    "conv_transpose": "input weight bias=None stride=1 padding=0 output_padding=0 groups=1 dilation=1",
    "linear": "input weight bias=None weight_scale=None",
    "embedding": "input weight padding_idx=None max_norm=None",
    "batch_norm": "input running_mean running_var weight=None bias=None training=False momentum=0.1 eps=1e-5",
    "instance_norm": "input running_mean=None running_var=None weight=None bias=None use_input_stats=True",
    "layer_norm": "input normalized_shape weight=None bias=None eps=1e-5",
    "rms_norm": "input normalized_shape weight=None eps=None",
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
    "matmul": "input other",
    "einsum": "equation *operands",
    "attention": "query key value attn_mask=None dropout_p=0.0 is_causal=False scale=None enable_gqa=False",
    "normalize": "input p=2.0 dim=1 eps=1e-12",
    "repeat_interleave": "input repeats dim=None",
    "put": "input value index",
    "norm": "input p='fro' dim=None keepdim=False",
    "grid_sample": "input grid mode='bilinear' padding_mode='zeros' align_corners=None",
}

# Key -> the words that mean it, as a function of torch / torch.nn.functional / operator or as a tensor method. A
# trailing underscore (in place) and an "i" of the operator module (iadd) are understood.
WORDS: Final[dict[str, str]] = {
    "conv": "conv1d conv2d conv3d",
    "conv_transpose": "conv_transpose1d conv_transpose2d conv_transpose3d",
    "linear": "linear",
    "embedding": "embedding",
    "batch_norm": "batch_norm",
    "instance_norm": "instance_norm",
    "layer_norm": "layer_norm",
    "rms_norm": "rms_norm",
    "group_norm": "group_norm",
    "prelu": "prelu",
    "copy": "clone detach contiguous",
    "unary": (
        "relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid logsigmoid tanh hardtanh hardswish hardsigmoid "
        "hardshrink softshrink tanhshrink softplus softsign threshold rrelu erf exp expm1 log log1p log2 sqrt rsqrt "
        "square abs neg sign sin cos tan sinh cosh asin acos atan floor ceil round trunc frac clamp clamp_min "
        "clamp_max clip reciprocal logit dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout "
        "feature_dropout stochastic_depth returned_in_evaluation masked_fill addcmul addcdiv "
        "to float double half bfloat16 type_as nan_to_num "
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
    "matmul": "matmul bmm mm",
    "einsum": "einsum",
    "attention": "scaled_dot_product_attention",
    "normalize": "normalize",
    "repeat_interleave": "repeat_interleave",
    "put": "put",
    "norm": "norm vector_norm",
    "grid_sample": "grid_sample",
}

# Key -> classes of torch.nn that mean it. Their attributes bear the parameters' names, except where ATTRIBUTES says
# so.
NAMES_OF_CLASSES: Final[dict[str, str]] = {
    "conv": "Conv1d Conv2d Conv3d",
    "conv_transpose": "ConvTranspose1d ConvTranspose2d ConvTranspose3d",
    "linear": "Linear NonDynamicallyQuantizableLinear",
    "embedding": "Embedding",
    "batch_norm": "BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm",
    "instance_norm": "InstanceNorm1d InstanceNorm2d InstanceNorm3d",
    "layer_norm": "LayerNorm",
    "rms_norm": "RMSNorm",
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
ATTRIBUTES: Final[dict[tuple[str, str], str]] = {
    ("pad", "pad"): "padding",
    ("unflatten", "sizes"): "unflattened_size",
}
ALIASES: Final[dict[str, str]] = {
    "self": "input",
    "x": "input",
    "axis": "dim",
    "axes": "dims",
    "size": "shape",
    "tensor": "input",
    "ord": "p",
    "split_size": "split_size_or_sections",
    "split_sizes": "split_size_or_sections",
    "sections": "indices_or_sections",
    "indices": "indices_or_sections",
    "arrays": "tensors",
    "axis0": "dim0",
    "axis1": "dim1",
    "keepdims": "keepdim",
}
