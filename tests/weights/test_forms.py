"""Forms: packing loses nothing, gradients are the papers', hostile parts are refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcomp import entropy
from deepcomp.errors import FormatError, UsageError
from deepcomp.weights import Codebook, Grid, Mask, Packed, Raw, Rows, Shifted, form_class
from deepcomp.weights.blocks import Blocks
from deepcomp.weights.dtypes import DTYPES, from_words, to_words
from deepcomp.weights.exact import exact


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def coded(packed):
    """The same parts after a trip through the entropy coder."""
    symbols = {name: entropy.decode(entropy.encode(array), len(array)) for name, array in packed.symbols.items()}
    return Packed(packed.code, symbols, packed.tables, packed.facts, packed.inner and coded(packed.inner))


def bits(tensor):
    return to_words(tensor).tobytes()


def round_trip(form):
    """Unpack what the form packs; insist on the same dense weight, to the bit."""
    packed = form.pack()
    back = form_class(packed.code).unpack(coded(packed), form.shape, form.dtype)
    before, after = form.dense(), back.dense()
    assert (before.dtype, before.shape) == (after.dtype, after.shape) == (form.dtype, form.shape)
    assert bits(before) == bits(after)
    assert bits(back().detach()) == bits(after)
    return back


def kinds(form):
    """The names of a form and of those it lies over."""
    return [form.name, *(kinds(form.inner) if hasattr(form, "inner") else [])]


GRIDS = [
    {"bits": 4},
    {"bits": 1, "symmetric": False},
    {"bits": 16, "axis": None},
    {"bits": 4, "symmetric": False, "axis": None},
    {"bits": 3, "axis": 1, "group": 7},
    {"bits": 8, "axis": 0, "size": 33},
    {"bits": 5, "axis": 2, "size": 10, "symmetric": False},
    {"bits": 4, "range": "mse"},
    {"bits": 4, "range": "percentile", "percentile": 1.0},
    {"bits": 4, "range": "aciq"},
    {"bits": 3, "range": "kl", "axis": None, "symmetric": False},
    {"bits": 6, "power_of_two": True},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("setting", GRIDS, ids=str)
def test_grid_round_trip(setting, dtype):
    round_trip(Grid.fit(normal(12, 5, 24).to(dtype), **setting))


@pytest.mark.parametrize("setting", GRIDS, ids=str)
def test_grid_under_a_mask_round_trip_and_equals_the_grid_of_the_survivors(setting):
    weight = normal(12, 5, 24)
    mask = Mask.nonzero(weight, weight.abs() > 0.8)
    mask.inner = Grid.fit(mask.inner.dense(), at=mask.positions, shape=(12, 5, 24), **setting)
    round_trip(mask)
    assert (mask()[weight.abs() <= 0.8] == 0).all()
    if setting.get("symmetric", True) and "range" not in setting:  # the extremes survive: the scales are the whole's
        assert torch.allclose(mask.inner.scale, Grid.fit(weight, **setting).scale)


@pytest.mark.parametrize("setting", GRIDS[:7], ids=str)
def test_grid_error_is_at_most_half_a_step_and_zero_is_exact(setting):
    weight = normal(12, 5, 24)
    weight[3] = 0
    grid = Grid.fit(weight, **setting)
    step = grid.blocks.spread(grid.scale)
    assert ((grid() - weight).abs() <= step * 0.5001 + 1e-6).all()
    assert (grid()[weight == 0] == 0).all()


def test_grid_of_its_own_output_changes_nothing():
    once = Grid.fit(normal(8, 30), 4)().detach()
    assert torch.equal(Grid.fit(once, 4)().detach(), once)
    assert len(once[0].unique()) <= 15


def test_mse_range_is_never_worse_than_min_max():
    weight = normal(6, 5000)
    weight[0, 0] = 12
    for symmetric in (True, False):
        errors = [
            (Grid.fit(weight, 4, range=r, symmetric=symmetric)() - weight).square().sum(1) for r in ("mse", "min-max")
        ]
        assert (errors[0] <= errors[1]).all()
        assert errors[0][0] < 0.5 * errors[1][0]


def test_percentile_leaves_out_the_outlier():
    weight = torch.linspace(-1, 1, 1001)[None].clone()
    weight[0, -1] = 100
    scale = Grid.fit(weight, 8, range="percentile", percentile=0.5).scale
    assert scale.item() == pytest.approx(0.99 / 127, rel=0.01)


@pytest.mark.parametrize("range", ["min-max", "percentile", "mse"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_channels_without_survivors_change_nothing_for_the_others(range, symmetric):
    weight = normal(6, 40)
    weight[[0, 3, 5]] = 0
    mask = Mask.nonzero(weight)
    settings = {"symmetric": symmetric, "range": range, "percentile": 2.0}
    mask.inner = Grid.fit(mask.inner.dense(), 4, at=mask.positions, shape=(6, 40), **settings)
    assert torch.equal(round_trip(mask).dense()[[1, 2, 4]], Grid.fit(weight[[1, 2, 4]], 4, **settings).dense())


def test_power_of_two_scales_are_powers_of_two_and_cover_the_range():
    grid = Grid.fit(normal(5, 40), 5, power_of_two=True)
    assert torch.equal(torch.log2(grid.scale), torch.log2(grid.scale).round())
    assert grid.pack().tables["scale"].dtype == np.int8


def test_scales_of_four_significant_bits_take_a_byte():
    every = np.ldexp(np.float32(8) + np.arange(256) % 8, np.arange(256) // 8 - 34).astype(np.float32)
    weight = torch.from_numpy(every)[:, None] * torch.tensor([1.0, -3.0, 0.0])
    grid = Grid(weight, torch.from_numpy(every), torch.full((256,), 3.0), 3, True, Blocks((256, 3), 0))
    assert grid.pack().tables["scale"].tolist() == list(range(256))
    assert grid.pack().tables["scale"].dtype == np.uint8
    assert torch.equal(round_trip(grid).dense(), weight)
    for scale in (every[0] / 2, every[-1] * 17 / 15, np.float32(17 / 16)):
        grid.scale.data[0] = float(scale)
        assert grid.pack().tables["scale"].dtype == np.float32


def test_grid_gradients_are_those_of_the_paper():
    weight = torch.tensor([[0.3, -0.76, 5.0, -5.0]])
    grid = Grid(weight, torch.tensor([0.5]), torch.tensor([4.0]), 3, False, Blocks((1, 4), 0))
    grid().sum().backward()
    assert grid.latent.grad.tolist() == [[1, 1, 0, 0]]  # inside, inside, clipped high, clipped low
    # inside: round(x/s) − x/s; clipped: n − z, p − z
    assert grid.scale.grad.item() == pytest.approx((1 - 0.6) + (-2 + 1.52) + (7 - 4) + (0 - 4), abs=1e-5)
    assert grid.zero_point.grad.item() == pytest.approx(-0.5 * 2, abs=1e-6)


def test_settings_of_a_grid_that_contradict_each_other_are_refused():
    for wrong in ({"bits": 1}, {"bits": 17}, {"bits": 4, "range": "x"}, {"bits": 4, "group": 2, "size": 8}):
        with pytest.raises(UsageError):
            Grid.fit(normal(4, 4), **wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_mask_of_no_survivors_over_shared_values(dtype):
    mask = Mask.nonzero(torch.zeros(5, 7, dtype=dtype))
    mask.inner = Codebook.cluster(mask.inner.dense(), 16)
    assert torch.equal(round_trip(mask).dense(), torch.zeros(5, 7, dtype=dtype))
    mask().sum().backward()


@pytest.mark.parametrize("k", [2, 16, 256, 257, 1000])
def test_codebook_round_trip(k):
    weight = normal(100, 120)
    back = round_trip(Codebook.cluster(weight, k))
    assert len(back.values) <= k


def test_gradient_of_a_shared_value_is_the_sum_over_its_members():
    index = torch.tensor([[0, 1, 1], [2, 1, 0]])
    book = Codebook(torch.tensor([1.0, 2.0, 3.0]), index)
    slope = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    (book() * slope).sum().backward()
    assert book.values.grad.tolist() == [33, 22, 8]


def test_pruned_positions_get_no_gradient_and_stay_zero():
    weight = normal(6, 7)
    mask = Mask.nonzero(weight, weight > 0)
    optimiser = torch.optim.SGD(mask.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        (mask() ** 2).sum().backward()
        optimiser.step()
    assert (mask()[weight <= 0] == 0).all()
    assert (mask()[weight > 0] != 0).all()


@pytest.mark.parametrize("gap", [0, 1, 127, 128, 254, 255, 256, 511, 512, 70_000])
def test_gap_of_exactly(gap):
    weight = torch.zeros(gap + 3)
    weight[[0, gap + 1]] = torch.tensor([1.5, -2.0])
    round_trip(Mask.nonzero(weight.reshape(1, -1)))


@given(st.lists(st.sampled_from([0.0, 0.0, 0.0, 1.0, -2.5]), max_size=300), st.integers(1, 4))
@settings(max_examples=60)
def test_mask_round_trip_for_any_pattern(values, width):
    values += [0.0] * (-len(values) % width)
    weight = torch.tensor(values).reshape(-1, width)
    mask = round_trip(Mask.nonzero(weight))
    assert torch.equal(mask.dense(), weight)
    book = Mask.nonzero(weight)
    if book.positions.numel():
        book.inner = Codebook.cluster(book.inner.dense(), 4)
        assert torch.equal(round_trip(book).dense(), weight)


def test_csr_exports_equal_the_dense_weight_at_any_rank():
    weight = normal(6, 4, 3, 3) * (normal(6, 4, 3, 3, seed=1) > 1)
    mask = Mask.nonzero(weight)
    assert np.array_equal(mask.scipy_csr().toarray(), weight.reshape(6, -1).numpy())
    assert torch.equal(mask.torch_csr().to_dense(), weight.reshape(6, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_of_different_scale_are_shifted_to_one_and_come_back(dtype):
    weight = (normal(40, 200) * 2.0 ** torch.linspace(-6, 6, 40)[:, None]).to(dtype)
    weight[3], weight[5, 7], weight[6, :3] = 0, float("inf"), torch.tensor([-0.0, 1e-7, float("nan")])
    form = exact(weight)
    assert kinds(form) == ["shifted"]
    assert form.cost() < 0.97 * Raw(weight).cost()
    assert bits(round_trip(form).dense()) == bits(weight)
    assert not Shifted.pays(normal(40, 200).to(dtype))


def test_rows_round_trip():
    index = torch.tensor([0, 1, 0, 2, 1, 0])
    round_trip(Rows(index, Raw(normal(3, 8))))


@pytest.mark.parametrize("kind", DTYPES.values(), ids=lambda kind: kind.name)
@pytest.mark.parametrize("shape", [(), (0, 4), (7,), (40, 25), (3, 0, 2)], ids=str)
def test_exact_gives_every_dtype_back_to_the_bit(kind, shape):
    count = int(np.prod(shape)) * kind.words
    rng = np.random.default_rng(len(shape))
    for words in (
        rng.integers(0, 2 ** (8 * kind.word_bytes), count, dtype=kind.word)
        if kind.name != "bool"
        else rng.integers(0, 2, count),
        rng.integers(0, 2, count),
        np.zeros(count),
    ):
        tensor = from_words(words.astype(kind.word), kind.torch, shape)
        form = exact(tensor)
        assert bits(form.dense()) == bits(tensor)
        round_trip(form)


def test_exact_keeps_negative_zero_and_nan_payloads():
    words = np.zeros(1000, np.uint32)
    words[::50] = 0x80000000  # -0.0
    words[1::50] = 0x7FC12345  # a NaN with a payload
    tensor = from_words(words, torch.float32, (20, 50))
    form = exact(tensor)
    assert bits(form.dense()) == words.tobytes()
    assert bits(round_trip(form).dense()) == words.tobytes()


def test_exact_finds_what_is_there():
    weight = normal(200, 100)
    sparse = weight * (weight.abs() > 1.8)
    assert kinds(exact(weight)) == ["raw"]
    assert kinds(exact(sparse)) == ["mask", "raw"]
    assert kinds(exact(sparse.round(decimals=1))) == ["mask", "codebook"]
    assert kinds(exact(weight.round(decimals=1))) == ["codebook"]
    assert kinds(exact(weight[:10].repeat(20, 1))) == ["rows", "raw"]


@pytest.mark.parametrize("values", [2, 3, 17, 300, 5000])
@pytest.mark.parametrize("skew", [0.0, 1.0, 2.5])
def test_few_values_cost_little_more_than_their_entropy(values, skew):
    rng = np.random.default_rng(values)
    share = (1 + np.arange(values)) ** -skew
    index = rng.choice(values, 200_000, p=share / share.sum())
    table = rng.normal(size=values).astype(np.float32)
    form = exact(torch.from_numpy(table[index]).reshape(400, 500))
    packed, size = form.pack(), 0
    while packed is not None:
        size += sum(len(entropy.encode(array)) for array in packed.symbols.values())
        size += sum(array.nbytes for array in packed.tables.values())
        packed = packed.inner
    counts = np.unique(index, return_counts=True)[1]
    bound = -(counts * np.log2(counts / counts.sum())).sum() / 8 + 4 * len(counts)
    assert size <= 1.02 * bound + 64


def test_stored_as_float16_comes_back_rounded_in_its_own_type():
    weight = normal(30, 30)
    back = round_trip(Raw(weight, torch.float16))
    assert back.dense().dtype == torch.float32
    assert torch.equal(back.dense(), weight.half().float())


def u8(*values):
    return np.array(values, np.uint8)


def u32(count):
    return np.zeros(count, np.uint32)


def grid(q, scale, axis=-1):
    facts = {"bits": 2, "symmetric": 1, "axis": axis, "group": 1, "size": 0, "lowest": 0}
    return Packed(5, {"q": q}, {"scale": np.array(scale, np.float32)}, facts)


PAIR = Packed(1, tables={"words": u32(2)})
HOSTILE = {
    "index beyond the codebook": (Packed(2, {"index": u8(0, 9)}, {"values": u32(2)}), (2,)),
    "too few indices": (Packed(2, {"index": u8(0)}, {"values": u32(2)}), (2,)),
    "a codebook of another type": (Packed(2, {"index": u8(0, 0)}, {"values": np.zeros(2, np.uint16)}), (2,)),
    "a position beyond the tensor": (Packed(3, {"gaps": u8(1, 1)}, inner=PAIR), (3,)),
    "a mask over nothing": (Packed(3, {"gaps": u8(1, 1)}), (9,)),
    "a mask over a mask": (Packed(3, {"gaps": u8(0, 0)}, inner=Packed(3, {"gaps": u8(0, 0)}, inner=PAIR)), (9,)),
    "planes of different lengths": (Packed(1, {f"plane{i}": u8(*[0] * (2 + (i > 2))) for i in range(4)}), (2,)),
    "too few planes": (Packed(1, {"plane0": u8(0, 0)}), (2,)),
    "an unknown stored type": (Packed(1, tables={"words": u32(2)}, facts={"stored": 99}), (2,)),
    "rows beyond those that are there": (Packed(4, {"row": u8(0, 5)}, facts={"distinct": 2}, inner=PAIR), (2, 1)),
    "too few shifts": (Packed(6, {"shift": u8(1), **{f"plane{i}": u8(0, 0) for i in range(4)}}), (2, 1)),
    "shifted planes too short": (Packed(6, {"shift": u8(1, 1), **{f"plane{i}": u8(0) for i in range(4)}}), (2, 1)),
    "no shifts at all": (Packed(6), (2, 1)),
    "integers beyond the grid": (grid(u8(0, 9), [1]), (2,)),
    "too few scales": (grid(u8(0, 0, 0, 0), [1], axis=0), (2, 2)),
    "a scale that is no number": (grid(u8(0, 0, 0, 0), [np.nan]), (2, 2)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_parts_are_refused(name):
    packed, shape = HOSTILE[name]
    with pytest.raises(FormatError):
        form_class(packed.code).unpack(packed, shape, torch.float32)


def test_unknown_form_is_refused():
    with pytest.raises(FormatError, match="form 99"):
        form_class(99)
