"""Channels: their ends are exact, their quartiles close, and the bits they use are counted."""

import math

import numpy as np
import pytest
import torch
from patients import WIDE, cnn, labelled, mlp, outlier, steps, through, uneven, written
from torch import nn

from deepcomp.diagnosis.channels import activation_channels, weight_channels
from deepcomp.diagnosis.switches import Board
from deepcomp.model.data import draw


def examine(tmp_path, net, rows, shape=(12,)):
    data = labelled(net, shape)
    board = Board(through(net, data, written(tmp_path, rows)))
    return board, data, {row.name: row for row in weight_channels(board.net)}


def test_weights_by_output_channel(tmp_path):
    net = mlp()
    board, _, found = examine(tmp_path, net, steps(bits=4))
    for name, row in found.items():
        rows = board.net.tensors[name].numpy()
        wanted = np.percentile(rows, (0, 25, 50, 75, 100), axis=1)
        assert np.allclose([row.minimum, row.lower, row.median, row.upper, row.maximum], wanted, rtol=1e-5)
        assert (row.low, row.high) == (None, None)
        assert 3 < row.used <= 4


def test_channels_lie_where_quantize_has_them(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.ConvTranspose2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.LazyLinear(5)
    )
    net(torch.zeros(1, 3, 4, 4))
    _, _, found = examine(tmp_path, net.eval(), steps(), (3, 4, 4))
    assert {name: len(row.minimum) for name, row in found.items()} == {"0.weight": 4, "2.weight": 6, "4.weight": 5}


def test_a_grid_for_all_channels_leaves_narrow_ones_few_bits(tmp_path):
    times = 64.0
    net = uneven(mlp(), times=times)
    _, _, found = examine(tmp_path, net, steps(bits=8, per="tensor"))
    row = found["0.weight"]
    assert row.high == pytest.approx(max(row.maximum[0], -row.minimum[0]), rel=1e-4)
    assert row.low == -row.high
    ranges = [max(high, 0) - min(low, 0) for low, high in zip(row.minimum, row.maximum, strict=True)]
    assert row.spread == pytest.approx(ranges[0] / np.median(ranges), rel=1e-4)
    step = 2 * row.high / 254
    assert row.used == pytest.approx(math.log2(np.median(ranges) / step + 1), abs=0.05)
    assert row.used < 4


@pytest.mark.parametrize("rows", [steps(per="block", size=5), steps(per="group", size=4), steps(symmetric=False)])
def test_other_grids_have_no_ends_in_common(rows, tmp_path):
    _, _, found = examine(tmp_path, mlp(), rows)
    assert all(row.low is None and 5 < row.used <= 8 for row in found.values())


def test_survivors_and_shared_values(tmp_path):
    rows = [{"do": "prune", "density": 0.5}, {"do": "quantize", "bits": 4, "per": "tensor"}]
    _, _, found = examine(tmp_path, mlp(), rows)
    assert all(row.bits == 4 and row.high is not None for row in found.values())
    _, _, shared = examine(tmp_path, mlp(), [{"do": "share", "values": 8}])
    assert all(row.bits is None and row.used is None for row in shared.values())


def test_activations_by_channel(tmp_path):
    net = cnn()
    board, data, _ = examine(tmp_path, net, [{"do": "fold-bn"}, *steps()], (3, 8, 8))
    found = {row.name: row for row in activation_channels(board, 100)}
    counts = {"x": 3, "stem": 8, "deep": 8, "deep/add": 8, "deep/mean": 8, "last": 5}
    assert {name: len(row.minimum) for name, row in found.items()} == counts
    x = torch.stack([data.train[int(place)][0] for place in draw(data.train, 100, 0)])
    with torch.no_grad():
        stem = net.norm(net.stem(x)).relu().double().movedim(1, 0).flatten(1).numpy()
    row = found["stem"]
    assert np.allclose(row.minimum, stem.min(1))
    assert np.allclose(row.maximum, stem.max(1), rtol=1e-4)
    quartiles = np.percentile(stem, (25, 50, 75), axis=1)
    assert np.abs(np.array([row.lower, row.median, row.upper]) - quartiles).max() < 0.1 * stem.std()
    assert row.low == 0
    assert row.high == pytest.approx(stem.max(), rel=0.3)


def test_an_outlier_leaves_the_other_channels_few_bits(tmp_path):
    board, _, _ = examine(tmp_path, outlier(mlp()), steps())
    (row,) = [row for row in activation_channels(board, 64) if row.name == "0"]
    assert row.spread > 50
    assert row.used < 4
    assert len(row.minimum) == WIDE


def test_dead_channels_and_dynamic_grids(tmp_path):
    net = mlp()
    net[0].weight.data[:5] = 0
    net[0].bias.data[:5] = -1
    rows = [{"do": "quantize-activations", "dynamic": "token"}]
    board, _, _ = examine(tmp_path, net, rows)
    (row,) = [row for row in activation_channels(board, 64) if row.name == "0"]
    assert row.maximum[:5] == [0.0] * 5
    assert 1 <= row.spread < 10
    assert (row.used, row.low, row.high) == (None, None, None)
    net[0].weight.data[:] = 0
    net[0].bias.data[:] = 0
    board, _, weights = examine(tmp_path, net, steps())
    assert weights["0.weight"].spread == 1
    assert weights["0.weight"].used is None


def test_rows_of_words(tmp_path):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.lstm, self.out = nn.Embedding(11, 6), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 4)

        def forward(self, x):
            return self.out(self.lstm(self.table(x))[0][:, -1])

    torch.manual_seed(0)
    net = Words().eval()
    generator = torch.Generator().manual_seed(0)
    items = [(torch.randint(11, (7,), generator=generator), torch.tensor(0)) for _ in range(40)]
    from deepcomp import Data

    board = Board(through(net, Data(items, items, "accuracy"), written(tmp_path, steps())))
    weights = {row.name: len(row.minimum) for row in weight_channels(board.net)}
    assert weights == {"table.weight": 11, "lstm.weight_ih_l0": 20, "lstm.weight_hh_l0": 20, "out.weight": 4}
    found = {row.name: len(row.minimum) for row in activation_channels(board, 40)}
    assert found["lstm"] == 5
    assert found["out"] == 4
