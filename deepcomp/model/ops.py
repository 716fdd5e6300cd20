"""The operations a graph may use: a fixed list, each with the number that stands for it in a file.

A network in a file is a list of these operations and nothing else: pure functions of tensors and
numbers. None writes to its operands, draws random numbers, or touches anything outside memory.
Numbers, names, keywords and dtypes below are part of the file format: rows are added, never
changed, moved or taken out.

An operation is named as PyTorch names it, `torch.ops.aten.<name>` (the overload `default` is not
written), and its parameters, their order and their defaults are those of PyTorch's schema for it.
`int.*` is Python's arithmetic on sizes, `getitem` takes one result of an operation that has
several, and `quantize.*` are the quantisers of `deepcomp.quantizer`. Sizes other than the batch are literals
in the graph.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from deepcomp.quantizer import Quantizer

__all__ = ["CODES", "DTYPES", "KEYWORDS", "NAMES", "Operation", "Parameter", "find"]

NAMES: dict[int, str] = {
    # sizes and parts of results
    0: "getitem",
    1: "sym_size.int",
    2: "int.add",
    3: "int.sub",
    4: "int.mul",
    5: "int.floordiv",
    6: "int.mod",
    7: "int.neg",
    8: "int.max",
    9: "int.min",
    # the commonest, in one byte
    10: "linear",
    11: "conv2d",
    12: "batch_norm",
    13: "relu",
    14: "add.Tensor",
    15: "reshape",
    16: "flatten.using_ints",
    17: "max_pool2d",
    18: "avg_pool2d",
    19: "adaptive_avg_pool2d",
    20: "cat",
    21: "mul.Tensor",
    22: "sub.Tensor",
    23: "div.Tensor",
    24: "matmul",
    25: "transpose.int",
    26: "permute",
    27: "softmax.int",
    28: "layer_norm",
    29: "gelu",
    30: "embedding",
    31: "scaled_dot_product_attention",
    32: "slice.Tensor",
    33: "select.int",
    34: "unsqueeze",
    35: "squeeze.dim",
    36: "expand",
    37: "pad",
    38: "to.dtype",
    39: "mean.dim",
    40: "split.Tensor",
    41: "chunk",
    42: "sigmoid",
    43: "tanh",
    44: "silu",
    45: "hardtanh",
    46: "hardswish",
    47: "hardsigmoid",
    48: "leaky_relu",
    49: "relu6",
    50: "elu",
    51: "conv1d",
    52: "conv2d.padding",
    53: "conv_transpose2d.input",
    54: "group_norm",
    55: "upsample_nearest2d.vec",
    56: "upsample_bilinear2d.vec",
    57: "lstm.input",
    58: "gru.input",
    59: "constant_pad_nd",
    60: "arange",
    61: "zeros",
    62: "ones",
    63: "full",
    64: "where.self",
    65: "masked_fill.Scalar",
    66: "add.Scalar",
    67: "mul.Scalar",
    68: "sub.Scalar",
    69: "div.Scalar",
    70: "rsub.Scalar",
    71: "pow.Tensor_Scalar",
    72: "sqrt",
    73: "rsqrt",
    74: "exp",
    75: "neg",
    76: "index.Tensor",
    77: "addmm",
    78: "bmm",
    79: "mm",
    80: "stack",
    81: "unbind.int",
    82: "split_with_sizes",
    83: "repeat",
    84: "t",
    85: "bitwise_and.Tensor",
    86: "bitwise_or.Tensor",
    87: "eq.Scalar",
    88: "ne.Scalar",
    89: "le.Tensor",
    90: "gt.Scalar",
    91: "cumsum",
    92: "sin",
    93: "cos",
    94: "expand_as",
    95: "amax",
    96: "sum.dim_IntList",
    97: "gather",
    98: "index_select",
    99: "clamp",
    # convolutions and products
    128: "conv3d",
    129: "conv1d.padding",
    130: "conv3d.padding",
    131: "conv_transpose1d",
    132: "conv_transpose3d.input",
    133: "convolution",
    135: "im2col",
    136: "col2im",
    137: "baddbmm",
    138: "addbmm",
    139: "addmv",
    140: "mv",
    141: "dot",
    142: "outer",
    143: "inner",
    144: "einsum",
    145: "tensordot",
    146: "bilinear",
    147: "addcmul",
    148: "addcdiv",
    149: "linalg_vector_norm",
    150: "cdist",
    151: "cosine_similarity",
    152: "linalg_norm",
    153: "vdot",
    # normalisation, recurrence, embedding
    160: "instance_norm",
    161: "rms_norm",
    162: "native_layer_norm",
    163: "native_group_norm",
    164: "rnn_tanh.input",
    165: "rnn_relu.input",
    166: "lstm_cell",
    167: "gru_cell",
    168: "rnn_tanh_cell",
    169: "rnn_relu_cell",
    170: "one_hot",
    # activations
    176: "prelu",
    177: "softplus",
    178: "mish",
    179: "log_softmax.int",
    180: "selu",
    181: "celu",
    182: "log_sigmoid",
    183: "softshrink",
    184: "hardshrink",
    185: "threshold",
    186: "glu",
    # pooling
    192: "max_pool1d",
    193: "max_pool3d",
    194: "avg_pool1d",
    195: "avg_pool3d",
    196: "adaptive_avg_pool1d",
    197: "adaptive_avg_pool3d",
    198: "adaptive_max_pool1d",
    199: "adaptive_max_pool2d",
    200: "adaptive_max_pool3d",
    201: "max_pool1d_with_indices",
    202: "max_pool2d_with_indices",
    203: "max_pool3d_with_indices",
    204: "max_unpool2d",
    205: "max_unpool3d",
    # padding and resampling
    208: "reflection_pad1d",
    209: "reflection_pad2d",
    210: "reflection_pad3d",
    211: "replication_pad1d",
    212: "replication_pad2d",
    213: "replication_pad3d",
    214: "upsample_nearest1d.vec",
    215: "upsample_nearest3d.vec",
    216: "upsample_linear1d.vec",
    217: "upsample_trilinear3d.vec",
    218: "upsample_bicubic2d.vec",
    219: "_upsample_nearest_exact1d.vec",
    220: "_upsample_nearest_exact2d.vec",
    221: "_upsample_nearest_exact3d.vec",
    222: "_upsample_bilinear2d_aa.vec",
    223: "_upsample_bicubic2d_aa.vec",
    224: "grid_sampler",
    225: "affine_grid_generator",
    226: "pixel_shuffle",
    227: "pixel_unshuffle",
    228: "channel_shuffle",
    # shape
    240: "squeeze",
    241: "squeeze.dims",
    242: "unflatten.int",
    243: "broadcast_to",
    244: "tile",
    245: "repeat_interleave.self_int",
    246: "narrow",
    247: "movedim.int",
    248: "movedim.intlist",
    249: "swapaxes",
    250: "unfold",
    251: "flip",
    252: "roll",
    253: "rot90",
    254: "diagonal",
    255: "diag_embed",
    256: "diag",
    257: "tril",
    258: "triu",
    259: "hstack",
    260: "vstack",
    261: "dstack",
    262: "meshgrid",
    263: "meshgrid.indexing",
    264: "tensor_split.sections",
    265: "tensor_split.indices",
    266: "numpy_T",
    267: "mT",
    268: "diff",
    269: "reshape_as",
    # indexing, sorting
    288: "take_along_dim",
    289: "index_put",
    290: "index_add",
    291: "index_fill.int_Scalar",
    292: "scatter.src",
    293: "scatter.value",
    294: "scatter_add",
    295: "scatter_reduce.two",
    296: "masked_fill.Tensor",
    297: "masked_scatter",
    298: "select_scatter",
    299: "slice_scatter",
    300: "sort",
    301: "topk",
    302: "argsort",
    303: "searchsorted.Tensor",
    304: "bucketize.Tensor",
    # making tensors
    312: "arange.start",
    313: "arange.start_step",
    314: "linspace",
    315: "eye",
    316: "zeros_like",
    317: "ones_like",
    318: "full_like",
    319: "new_zeros",
    320: "new_ones",
    321: "new_full",
    322: "scalar_tensor",
    323: "fill.Scalar",
    324: "fill.Tensor",
    # arithmetic
    336: "rsub.Tensor",
    337: "div.Tensor_mode",
    338: "div.Scalar_mode",
    339: "floor_divide",
    340: "floor_divide.Scalar",
    341: "remainder.Scalar",
    342: "remainder.Tensor",
    343: "fmod.Scalar",
    344: "fmod.Tensor",
    345: "pow.Tensor_Tensor",
    346: "pow.Scalar",
    347: "maximum",
    348: "minimum",
    349: "lerp.Scalar",
    350: "lerp.Tensor",
    351: "atan2",
    352: "abs",
    353: "log",
    354: "log1p",
    355: "log2",
    356: "log10",
    357: "exp2",
    358: "expm1",
    359: "tan",
    360: "asin",
    361: "acos",
    362: "atan",
    363: "sinh",
    364: "cosh",
    365: "asinh",
    366: "acosh",
    367: "atanh",
    368: "erf",
    369: "erfc",
    370: "reciprocal",
    371: "square",
    372: "sign",
    373: "floor",
    374: "ceil",
    375: "round",
    376: "trunc",
    377: "frac",
    378: "nan_to_num",
    379: "clamp.Tensor",
    380: "clamp_min",
    381: "clamp_max",
    382: "clamp_min.Tensor",
    383: "clamp_max.Tensor",
    384: "isnan",
    385: "isinf",
    386: "isfinite",
    # comparison and logic
    400: "eq.Tensor",
    401: "ne.Tensor",
    402: "lt.Scalar",
    403: "lt.Tensor",
    404: "le.Scalar",
    405: "gt.Tensor",
    406: "ge.Scalar",
    407: "ge.Tensor",
    408: "logical_and",
    409: "logical_or",
    410: "logical_xor",
    411: "logical_not",
    412: "bitwise_and.Scalar",
    413: "bitwise_or.Scalar",
    414: "bitwise_xor.Tensor",
    415: "bitwise_xor.Scalar",
    416: "bitwise_not",
    417: "bitwise_left_shift.Tensor_Scalar",
    418: "bitwise_right_shift.Tensor_Scalar",
    419: "where.ScalarOther",
    420: "where.ScalarSelf",
    421: "where.Scalar",
    422: "isin.Tensor_Tensor",
    # reductions
    432: "sum",
    433: "mean",
    434: "max",
    435: "max.dim",
    436: "max.other",
    437: "min",
    438: "min.dim",
    439: "min.other",
    440: "amin",
    441: "argmax",
    442: "argmin",
    443: "prod",
    444: "prod.dim_int",
    445: "var",
    446: "var.dim",
    447: "var.correction",
    448: "std",
    449: "std.dim",
    450: "std.correction",
    451: "var_mean.correction",
    452: "logsumexp",
    453: "cumprod",
    454: "all",
    455: "all.dim",
    456: "any",
    457: "any.dim",
    458: "norm.ScalarOpt_dim",
    459: "median.dim",
    460: "count_nonzero.dim_IntList",
    # quantisers of activations
    464: "quantize.static",
    465: "quantize.dynamic",
}
CODES: dict[str, int] = {name: code for code, name in NAMES.items()}

# Parameters that schemas allow by keyword only. Those that choose a device or a memory layout are
# missing on purpose: where a network runs is the business of whoever runs it.
KEYWORDS: dict[int, str] = {
    0: "dtype",
    1: "scale",
    2: "alpha",
    3: "approximate",
    4: "rounding_mode",
    5: "correction",
    6: "keepdim",
    7: "enable_gqa",
    8: "beta",
    9: "value",
    10: "indexing",
    11: "right",
    12: "side",
    13: "sorter",
    14: "out_int32",
    15: "output_size",
    16: "include_self",
    17: "sparse_grad",
    18: "assume_unique",
    19: "invert",
    20: "path",
}

DTYPES: dict[int, torch.dtype] = {
    0: torch.float32,
    1: torch.float16,
    2: torch.bfloat16,
    3: torch.float64,
    4: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    8: torch.uint8,
    9: torch.uint16,
    10: torch.uint32,
    11: torch.uint64,
    12: torch.bool,
    13: torch.float8_e4m3fn,
    14: torch.float8_e5m2,
    15: torch.float8_e4m3fnuz,
    16: torch.float8_e5m2fnuz,
    17: torch.float8_e8m0fnu,
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of an operation's schema; `default` counts only where it is not `required`."""

    name: str
    required: bool = True
    default: Any = None
    keyword_only: bool = False
    kind: str = ""

    def accepts(self, value: Any) -> bool:
        """Whether a dtype stands where one belongs, and nothing says where to run.

        PyTorch takes any integer for a dtype, a layout or a memory format, and crashes on a wrong one.
        """
        if any(place in self.kind for place in ("Device", "Layout", "MemoryFormat")):
            return value is None
        return value is None or isinstance(value, torch.dtype) == ("ScalarType" in self.kind)


@dataclass(frozen=True)
class Operation:
    """A callable of the list with what is needed to check a call before making it.

    Attributes
    ----------
    name : str
        The name in `NAMES`.
    call : callable
        The function itself.
    parameters : tuple of Parameter
        In the schema's order.
    makes : bool
        It makes a tensor from numbers alone, so the caller must say on which device.
    """

    name: str
    call: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    makes: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        return find, (self.name,)  # copied and pickled by name: there is one of each

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by parameter name, defaults not filled in.

        Raises
        ------
        ValueError
            If the call does not fit the schema, or would be random or write to an operand.
        """
        positional = [parameter.name for parameter in self.parameters if not parameter.keyword_only]
        if len(args) > len(positional):
            raise ValueError(f"{self.name} takes {len(positional)} arguments, {len(args)} found")
        bound = dict(zip(positional, args, strict=False))
        for name, value in kwargs.items():
            if name in bound or all(name != parameter.name for parameter in self.parameters):
                raise ValueError(f"{self.name} takes no keyword {name} here")
            bound[name] = value
        for parameter in self.parameters:
            if parameter.required and parameter.name not in bound:
                raise ValueError(f"{self.name} needs an argument {parameter.name}")
            if not parameter.accepts(bound.get(parameter.name)):
                raise ValueError(f"{self.name} takes no such {parameter.name}")
        if _impure(bound):
            raise ValueError(f"{self.name} as in training: it would be random or write to its operands")
        return bound

    def shorten(self, bound: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The shortest spelling of a bound call: positions first, defaults left out where possible."""
        kwargs = {}
        args: list[Any] = []
        kept = 0
        for parameter in self.parameters:
            value = bound.get(parameter.name, parameter.default)
            needed = parameter.required or not _same(value, parameter.default)
            if parameter.keyword_only:
                if needed:
                    kwargs[parameter.name] = value
            else:
                args.append(value)
                kept = len(args) if needed else kept
        return tuple(args[:kept]), kwargs


def _same(left: Any, right: Any) -> bool:
    """Equality that tells 1 from True and 1.0."""
    return type(left) is type(right) and bool(left == right)


def _impure(bound: Mapping[str, Any]) -> bool:
    """Whether a call is one of the few on the list that are random or write with the wrong flag set."""
    updates = bound.get("running_mean") is not None  # batch_norm, instance_norm
    return (
        (updates and (bound.get("training", False) is not False or bound.get("use_input_stats", False) is not False))
        or bound.get("train", False) is not False  # recurrent networks: dropout between layers
        or bound.get("dropout_p", 0.0) != 0.0  # attention
    )


def _size(function: Callable[..., Any]) -> Callable[..., Any]:
    """Integer arithmetic that takes nothing but integers and stays within 64 bits.

    Without the check, `mul` of a text or a list and a number would fill the memory.
    """

    def checked(*numbers: Any) -> Any:
        if not all(isinstance(number, int | torch.SymInt) for number in numbers):
            raise TypeError("integers expected")
        result = function(*numbers)
        if isinstance(result, int) and not -(1 << 63) <= result < 1 << 63:
            raise OverflowError("a size beyond 64 bits")
        return result

    return checked


def _item(results: Any, index: Any) -> Any:
    if not isinstance(results, tuple | list) or not isinstance(index, int):
        raise TypeError("several results and the number of one expected")
    return results[index]


def _static(x: Tensor, scale: float, zero_point: int, bits: int, symmetric: bool = False) -> Tensor:
    """x̂ of a range that was set before; PyTorch's own `fake_quantize` cannot be traced."""
    _check_types((x, Tensor), (scale, float), (zero_point, int), (bits, int), (symmetric, bool))
    quantizer = Quantizer(bits, symmetric)
    if not (0 < scale < math.inf and 0 <= zero_point <= quantizer.top):
        raise ValueError(f"scale {scale} and zero-point {zero_point} found on a grid of {bits} bits")
    step, zero = (torch.tensor(number, dtype=torch.float32, device=x.device) for number in (scale, zero_point))
    return quantizer.simulate(x, step, zero)


def _dynamic(x: Tensor, bits: int, per: str = "tensor", symmetric: bool = False) -> Tensor:
    """x̂ of the range of x itself."""
    _check_types((x, Tensor), (bits, int), (per, str), (symmetric, bool))
    return Quantizer(bits, symmetric).dynamic(x, per)


def _check_types(*found: tuple[Any, type]) -> None:
    """What PyTorch's schemas do for its own operations."""
    for value, kind in found:
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise TypeError(f"a {type(value).__name__} found, a {kind.__name__} expected")
        if isinstance(value, Tensor) and not value.is_floating_point():
            raise TypeError(f"numbers of type {value.dtype} found, floating-point ones expected")


_SYMMETRIC = Parameter("symmetric", required=False, default=False)
_A, _B = Parameter("a"), Parameter("b")
_OWN: dict[str, Operation] = {
    "getitem": Operation("getitem", _item, (Parameter("results"), Parameter("index"))),
    "int.add": Operation("int.add", _size(operator.add), (_A, _B)),
    "int.sub": Operation("int.sub", _size(operator.sub), (_A, _B)),
    "int.mul": Operation("int.mul", _size(operator.mul), (_A, _B)),
    "int.floordiv": Operation("int.floordiv", _size(operator.floordiv), (_A, _B)),
    "int.mod": Operation("int.mod", _size(operator.mod), (_A, _B)),
    "int.neg": Operation("int.neg", _size(operator.neg), (_A,)),
    "int.max": Operation("int.max", _size(torch.sym_max), (_A, _B)),
    "int.min": Operation("int.min", _size(torch.sym_min), (_A, _B)),
    "quantize.static": Operation(
        "quantize.static",
        _static,
        (
            Parameter("self", kind="Tensor"),
            Parameter("scale"),
            Parameter("zero_point"),
            Parameter("bits"),
            _SYMMETRIC,
        ),
    ),
    "quantize.dynamic": Operation(
        "quantize.dynamic",
        _dynamic,
        (Parameter("self", kind="Tensor"), Parameter("bits"), Parameter("per", False, "tensor"), _SYMMETRIC),
    ),
}


@cache
def find(name: str) -> Operation:
    """The operation of that name.

    Raises
    ------
    KeyError
        If it is not on the list.
    """
    if name not in CODES:
        raise KeyError(name)
    if name in _OWN:
        return _OWN[name]
    packet, _, overload = name.partition(".")
    call = getattr(getattr(torch.ops.aten, packet), overload or "default")
    parameters = tuple(
        Parameter(
            entry.name,
            required=not entry.has_default_value(),
            default=tuple(entry.default_value) if isinstance(entry.default_value, list) else entry.default_value,
            keyword_only=entry.kwarg_only,
            kind=str(entry.real_type),
        )
        for entry in call._schema.arguments
    )
    return Operation(name, call, parameters, makes=not any("Tensor" in parameter.kind for parameter in parameters))
