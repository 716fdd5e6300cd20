"""What Han et al. 2016, "Deep Compression", report: their Tables 1 to 5, as data.

A MB is 10^6 bytes. Bits are per stored entry, fillers included; sizes include the codebooks. Where the paper
disagrees with itself, `notes` say so: totals are the goal, not single cells.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ALEXNET", "LENET_5", "LENET_300_100", "VGG_16", "Layer", "Network"]


@dataclass(frozen=True)
class Layer:
    """A row of Tables 2 to 5; pairs are (pruned and quantised, after Huffman coding as well).

    Attributes
    ----------
    name : str
    weights : str
        As printed.
    density : float
        Weights kept, in percent.
    weight_bits, index_bits : pair of float
        Of an entry's shared value, and of its gap to the entry before.
    size : pair of float
        In percent of float32.
    """

    name: str
    weights: str
    density: float
    weight_bits: tuple[float, float]
    index_bits: tuple[float, float]
    size: tuple[float, float]


@dataclass(frozen=True)
class Network:
    """A row of Table 1, and the table of its layers.

    Attributes
    ----------
    error : pair of float
        Top-1 error in percent, before and after.
    size : pair of float
        In MB, before and after.
    ratio : int
    gap_bits : int
        Of the fixed-width gaps.
    layers : tuple of Layer
    total : Layer
    notes : tuple of str
        What does not fit together in the paper's own figures.
    """

    title: str
    table: int
    error: tuple[float, float]
    size: tuple[float, float]
    ratio: int
    gap_bits: int
    layers: tuple[Layer, ...]
    total: Layer
    notes: tuple[str, ...]


_GAPS = "The text gives convolutions 8-bit and other layers 5-bit gaps; Table {} gives all of them {} bits."

LENET_300_100 = Network(
    title="LeNet-300-100",
    table=2,
    error=(1.64, 1.58),
    size=(1.070, 0.027),
    ratio=40,
    gap_bits=5,
    layers=(
        Layer("ip1", "235K", 8, (6, 4.4), (5, 3.7), (3.1, 2.32)),
        Layer("ip2", "30K", 9, (6, 4.4), (5, 4.3), (3.8, 3.04)),
        Layer("ip3", "1K", 26, (6, 4.3), (5, 3.2), (15.7, 12.70)),
    ),
    total=Layer("total", "266K", 8, (6, 5.1), (5, 3.7), (3.1, 2.49)),
    notes=("After Huffman coding a weight takes 5.1 bits in all, but at most 4.4 in any layer.",),
)

LENET_5 = Network(
    title="LeNet-5",
    table=3,
    error=(0.80, 0.74),
    size=(1.720, 0.044),
    ratio=39,
    gap_bits=5,
    layers=(
        Layer("conv1", ".5K", 66, (8, 7.2), (5, 1.5), (78.5, 67.45)),
        Layer("conv2", "25K", 12, (8, 7.2), (5, 3.9), (6.0, 5.28)),
        Layer("ip1", "400K", 8, (5, 4.5), (5, 4.5), (2.7, 2.45)),
        Layer("ip2", "5K", 19, (5, 5.2), (5, 3.7), (6.9, 6.13)),
    ),
    total=Layer("total", "431K", 8, (5.3, 4.1), (5, 4.4), (3.05, 2.55)),
    notes=(_GAPS.format(3, 5), "In ip2 Huffman coding turns 5 bits a weight into 5.2."),
)

ALEXNET = Network(
    title="AlexNet",
    table=4,
    error=(42.78, 42.78),
    size=(240, 6.9),
    ratio=35,
    gap_bits=4,
    layers=(
        Layer("conv1", "35K", 84, (8, 6.3), (4, 1.2), (32.6, 20.53)),
        Layer("conv2", "307K", 38, (8, 5.5), (4, 2.3), (14.5, 9.43)),
        Layer("conv3", "885K", 35, (8, 5.1), (4, 2.6), (13.1, 8.44)),
        Layer("conv4", "663K", 37, (8, 5.2), (4, 2.5), (14.1, 9.11)),
        Layer("conv5", "442K", 37, (8, 5.6), (4, 2.5), (14.0, 9.43)),
        Layer("fc6", "38M", 9, (5, 3.9), (4, 3.2), (3.0, 2.39)),
        Layer("fc7", "17M", 9, (5, 3.6), (4, 3.7), (3.0, 2.46)),
        Layer("fc8", "4M", 25, (5, 4.0), (4, 3.2), (7.3, 5.85)),
    ),
    total=Layer("total", "61M", 11, (5.4, 4.0), (4, 3.2), (3.7, 2.88)),
    notes=(
        "6.9 MB is 2.88 % of 240 MB, but float32 takes 243.9 MB, and 2.88 % of that is 7.02 MB.",
        "3.0 % before Huffman coding makes 10.7 entries per 100 weights of fc6 and fc7; 9 % kept at random take 11.6.",
        _GAPS.format(4, 4),
    ),
)

VGG_16 = Network(
    title="VGG-16",
    table=5,
    error=(31.50, 31.17),
    size=(552, 11.3),
    ratio=49,
    gap_bits=5,
    layers=(
        Layer("conv1_1", "2K", 58, (8, 6.8), (5, 1.7), (40.0, 29.97)),
        Layer("conv1_2", "37K", 22, (8, 6.5), (5, 2.6), (9.8, 6.99)),
        Layer("conv2_1", "74K", 34, (8, 5.6), (5, 2.4), (14.3, 8.91)),
        Layer("conv2_2", "148K", 36, (8, 5.9), (5, 2.3), (14.7, 9.31)),
        Layer("conv3_1", "295K", 53, (8, 4.8), (5, 1.8), (21.7, 11.15)),
        Layer("conv3_2", "590K", 24, (8, 4.6), (5, 2.9), (9.7, 5.67)),
        Layer("conv3_3", "590K", 42, (8, 4.6), (5, 2.2), (17.0, 8.96)),
        Layer("conv4_1", "1M", 32, (8, 4.6), (5, 2.6), (13.1, 7.29)),
        Layer("conv4_2", "2M", 27, (8, 4.2), (5, 2.9), (10.9, 5.93)),
        Layer("conv4_3", "2M", 34, (8, 4.4), (5, 2.5), (14.0, 7.47)),
        Layer("conv5_1", "2M", 35, (8, 4.7), (5, 2.5), (14.3, 8.00)),
        Layer("conv5_2", "2M", 29, (8, 4.6), (5, 2.7), (11.7, 6.52)),
        Layer("conv5_3", "2M", 36, (8, 4.6), (5, 2.3), (14.8, 7.79)),
        Layer("fc6", "103M", 4, (5, 3.6), (5, 3.5), (1.6, 1.10)),
        Layer("fc7", "17M", 4, (5, 4.0), (5, 4.3), (1.5, 1.25)),
        Layer("fc8", "4M", 23, (5, 4.0), (5, 3.4), (7.1, 5.24)),
    ),
    total=Layer("total", "138M", 7.5, (6.4, 4.1), (5, 3.1), (3.2, 2.05)),
    notes=(
        "11.3 MB is 2.05 %, as the total of Table 5 says, but its rows add up to 10.5 MB, which is 1.90 %.",
        _GAPS.format(5, 5),
    ),
)
