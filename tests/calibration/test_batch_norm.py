"""Ranges from batch normalisation alone."""

import torch

from deepcomp.calibration import batch_norm_range


def ends(bounds):
    return [end.item() for end in bounds]


def test_the_range_reaches_six_deviations_around_each_mean():
    weight, bias = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.5, -1.0, 20.0])
    assert ends(batch_norm_range(weight, bias)) == [-13, 20]
    assert ends(batch_norm_range(weight, bias, alpha=1.0)) == [-3, 20]


def test_the_activation_cuts_it_off():
    weight, bias = torch.tensor([1.0, -2.0]), torch.tensor([0.5, -1.0])
    assert ends(batch_norm_range(weight, bias, floor=0)) == [0, 11]
    assert ends(batch_norm_range(weight, bias, floor=0, cap=6)) == [0, 6]
    assert ends(batch_norm_range(torch.tensor([0.1]), torch.tensor([-5.0]), floor=0)) == [0, 0]


def test_it_holds_what_batch_norm_gives():
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(5)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    out = norm(torch.randn(16, 5, 20, 20) * 7 + 3)
    low, high = batch_norm_range(norm.weight, norm.bias)
    assert low <= out.min()
    assert high >= out.max()
