"""What Nagel et al. 2021, "A White Paper on Neural Network Quantization", report: Tables 1 to 10, as rows to print.

ImageNet top-1 accuracy in percent. The networks measured here are others, on other images: what carries over is
which way is better, and where a way breaks down.
"""

from __future__ import annotations

__all__ = ["TABLES", "TRAINED"]

TABLES: dict[str, tuple[list[str], list[list[str]]]] = {
    "weights": (
        ["Table 1: W8 / W6 / W4", "ResNet-18 (69.68)", "MobileNetV2 (71.72)"],
        [
            ["min-max, tensor", "69.57 / 63.90 / 0.12", "71.16 / 64.48 / 0.59"],
            ["mse, tensor", "69.45 / 64.64 / 18.82", "71.15 / 65.43 / 13.77"],
            ["min-max, channel", "69.60 / 69.08 / 44.49", "71.21 / 68.52 / 18.40"],
            ["mse, channel", "69.66 / 69.24 / 54.67", "71.46 / 68.89 / 27.17"],
        ],
    ),
    "activations": (
        ["Table 2: A8 / A6 / A4", "ResNet-18 (69.68)", "MobileNetV2 (71.72)"],
        [
            ["min-max", "69.60 / 68.19 / 18.82", "70.96 / 64.58 / 0.53"],
            ["mse", "69.59 / 67.84 / 31.40", "71.35 / 67.55 / 13.57"],
            ["mse, cross-entropy of logits", "69.60 / 68.91 / 59.07", "71.36 / 68.85 / 30.94"],
            ["batch norm, 6σ", "69.54 / 68.73 / 23.83", "71.32 / 65.20 / 0.66"],
        ],
    ),
    "equalization": (
        ["Tables 3 and 4: MobileNetV2 (71.72)", "fp32", "W8A8, per tensor"],
        [
            ["original", "71.72", "0.12"],
            ["bias correction", "71.72", "52.02"],
            ["equalised", "71.70", "69.91"],
            ["equalised, absorbed", "71.57", "70.92"],
            ["equalised, absorbed, bias correction", "71.57", "71.19"],
            ["per channel", "71.72", "70.65"],
        ],
    ),
    "rounding": (
        ["Table 5: ResNet-18, W4", "first layer", "all layers"],
        [["nearest", "52.29", "23.99"], ["relaxed MSE", "69.58", "66.56"], ["AdaRound", "69.58", "68.60"]],
    ),
    "recipe": (
        ["Table 6", "fp32", "tensor, W8A8", "tensor, W4A8", "channel, W8A8", "channel, W4A8"],
        [
            ["ResNet-18", "69.68", "69.60", "68.62", "69.56", "68.91"],
            ["MobileNetV2", "71.72", "70.99", "69.21", "71.16", "69.79"],
        ],
    ),
}

TRAINED: dict[str, tuple[list[str], list[list[str]]]] = {
    "norms": (
        ["Table 7: W4A8 / W4A4", "ResNet-18 (69.68)", "MobileNetV2 (71.72)"],
        [
            ["folded, per tensor", "69.76 / 68.32", "70.17 / 66.43"],
            ["double forward, per tensor", "69.42 / 68.20", "66.87 / 63.54"],
            ["folded, per channel", "69.58 / 68.15", "70.52 / 66.32"],
            ["kept, per channel", "70.01 / 68.83", "70.48 / 66.89"],
        ],
    ),
    "starts": (
        ["Table 8: before, trained", "ResNet-18 (69.68)", "MobileNetV2 (71.72)"],
        [
            ["W4A8, weights min-max", "0.12, 69.61", "0.56, 69.96"],
            ["W4A8, weights mse", "18.58, 69.76", "12.99, 70.13"],
            ["W4A4, activations min-max", "7.51, 68.23", "0.22, 66.55"],
            ["W4A4, activations mse", "9.62, 68.41", "0.71, 66.29"],
        ],
    ),
    "equalization": (
        ["Table 9, W4A8: before, trained", "ResNet-18 (69.68)", "MobileNetV2 (71.72)"],
        [
            ["as trained", "18.58, 69.74", "0.10, 0.10"],
            ["equalised", "16.29, 69.76", "12.99, 70.13"],
            ["equalised, bias correction", "38.58, 69.72", "46.90, 70.07"],
        ],
    ),
    "bits": (
        ["Table 10: W8A8 / W4A8 / W4A4", "per tensor", "per channel"],
        [
            ["ResNet-18 (69.68)", "70.38 / 69.76 / 68.32", "70.43 / 70.01 / 68.83"],
            ["MobileNetV2 (71.72)", "71.76 / 70.17 / 66.43", "71.82 / 70.48 / 66.89"],
        ],
    ),
}
