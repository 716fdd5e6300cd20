"""Levels times scales: what they are fitted to, that packing loses nothing, and what training moves."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcomp import entropy
from deepcomp.weights import Mask, Packed, Scaled, form_class
from deepcomp.weights.blocks import Blocks
from deepcomp.weights.dtypes import to_words
from deepcomp.weights.level_sets import SETS

SETTINGS = [
    {"levels": "binary"},
    {"levels": "binary", "axis": None},
    {"levels": "ternary"},
    {"levels": "ternary", "sides": 2},
    {"levels": "ternary", "sides": 2, "axis": None},
    {"levels": "power-of-two", "bits": 4, "axis": 1},
    {"levels": "power-of-two", "bits": 5, "group": 7, "sides": 2},
    {"levels": "additive-power-of-two", "bits": 4},
    {"levels": "additive-power-of-two", "bits": 6, "axis": 2, "size": 10},
    {"levels": "lloyd-max", "bits": 3, "size": 33},
    {"levels": "lloyd-max", "bits": 5},
]


def coded(packed):
    """The same parts after a trip through the entropy coder."""
    symbols = {name: entropy.decode(entropy.encode(array), len(array)) for name, array in packed.symbols.items()}
    return Packed(packed.code, symbols, packed.tables, packed.facts, packed.inner and coded(packed.inner))


def round_trip(form):
    """Unpack what the form packs; insist on the same dense weight, to the bit."""
    packed = form.pack()
    back = form_class(packed.code).unpack(coded(packed), form.shape, form.dtype)
    assert (back.dense().dtype, back.dense().shape) == (form.dtype, form.shape)
    assert to_words(form.dense()).tobytes() == to_words(back.dense()).tobytes() == to_words(back().detach()).tobytes()
    return back


def nearest(weight, scale, levels):
    """The number of the level whose product with the scale is nearest, by trying all."""
    return (weight[..., None].double() - scale * torch.tensor(levels, dtype=torch.float64)).abs().argmin(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_round_trip(setting, dtype, randn):
    round_trip(Scaled.fit(randn(12, 5, 24).to(dtype), **setting))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_under_a_mask_round_trip_and_the_form_of_the_survivors(setting, randn):
    weight = randn(12, 5, 24)
    weight[3] = 0  # a channel without survivors
    mask = Mask.nonzero(weight, weight.abs() > 0.8)
    mask.inner = Scaled.fit(mask.inner.dense(), at=mask.positions, shape=(12, 5, 24), **setting)
    round_trip(mask)
    assert (mask()[weight.abs() <= 0.8] == 0).all()
    assert torch.isfinite(mask()).all()
    everywhere = Mask.nonzero(weight, torch.ones_like(weight))
    everywhere.inner = Scaled.fit(everywhere.inner.dense(), at=everywhere.positions, shape=(12, 5, 24), **setting)
    assert torch.allclose(everywhere(), Scaled.fit(weight, **setting)())


def test_a_mask_of_no_survivors():
    mask = Mask.nonzero(torch.zeros(5, 7))
    for levels in SETS:
        mask.inner = Scaled.fit(mask.inner.dense(), levels, at=mask.positions, shape=(5, 7))
        assert torch.equal(round_trip(mask).dense(), torch.zeros(5, 7))
        mask().sum().backward()


def test_binary_is_the_sign_times_the_mean_magnitude(randn):
    weight = randn(6, 40)
    weight[1, :3] = torch.tensor([0.0, -0.0, 1e-30])
    wanted = torch.where(weight >= 0, 1, -1) * weight.abs().mean(1, keepdim=True)
    assert torch.allclose(Scaled.fit(weight, "binary")(), wanted)
    whole = Scaled.fit(weight, "binary", axis=None)
    assert torch.allclose(whole().abs(), weight.abs().mean().expand(6, 40))


@pytest.mark.parametrize("sides", [1, 2])
def test_ternary_is_the_mean_of_those_beyond_the_threshold(sides, randn):
    weight = randn(6, 40)
    beyond = weight.abs() > 0.7 * weight.abs().mean(1, keepdim=True)
    found = Scaled.fit(weight, "ternary", sides=sides)().detach()
    assert torch.equal(found != 0, beyond)
    for row, ours, kept in zip(weight, found, beyond, strict=True):
        for side in (row > 0, row < 0):
            mean = row[kept & side if sides == 2 else kept].abs().mean()
            assert torch.allclose(ours[kept & side].abs(), mean)
            assert (ours[kept & side].sign() == row[kept & side].sign()).all()


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s["levels"] not in ("binary", "ternary")], ids=str)
def test_a_search_finds_no_better_scale(setting, randn):
    weight = randn(12, 5, 24)
    form = Scaled.fit(weight, **setting)
    error = (form() - weight).square().sum()
    for factor in (0.9, 0.99, 1.01, 1.1):  # scales are those of least squares for the levels taken
        form.scale.data *= factor
        assert (form() - weight).square().sum() > error
        form.scale.data /= factor


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_more_than_as_good_as_scales_of_the_largest_weight(bits, randn):
    weight = randn(4, 600)
    for levels in ("power-of-two", "additive-power-of-two"):
        form = Scaled.fit(weight, levels, bits)
        top = int(form.levels[-1])
        plain = [row.abs().max() / top for row in weight]
        near = [nearest(row, s.double(), form.levels.tolist()) for row, s in zip(weight, plain, strict=True)]
        values = torch.stack([s * form.levels[index] for s, index in zip(plain, near, strict=True)])
        assert (form() - weight).square().sum() <= (values - weight).square().sum()


def test_additive_powers_serve_a_bell_better_than_plain_ones_and_fitted_levels_best(randn):
    weight = randn(1, 20000)
    names = ("power-of-two", "additive-power-of-two", "lloyd-max")
    plain, additive, fitted = (float((Scaled.fit(weight, name, 4).dense() - weight).square().mean()) for name in names)
    assert fitted < additive < 0.5 * plain
    assert fitted == pytest.approx(0.00955, rel=0.05)  # 16 levels for a Gaussian (Max 1960, table 1)


@pytest.mark.parametrize("setting", SETTINGS[:-2], ids=str)
def test_what_is_on_the_levels_stays_there(setting, randn):
    once = Scaled.fit(randn(12, 5, 24), **setting)().detach()
    again = Scaled.fit(once, **setting)().detach()
    assert torch.allclose(again, once, rtol=1e-6)
    if setting["levels"] in ("binary", "ternary"):
        assert torch.equal(again, once)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_every_value_is_a_level_times_a_scale(setting, randn):
    form = Scaled.fit(randn(12, 5, 24), **setting)
    level, scale = form.taken(), form._scale_of(form.scale, form.taken()).detach()
    assert set(level.unique().tolist()) <= set(form.levels.tolist())
    assert torch.equal(form().detach(), scale * level)
    if "axis" not in setting and "size" not in setting and "group" not in setting:
        for row in form().detach():
            assert len(row.unique()) <= len(form.levels)


@pytest.mark.parametrize(("levels", "most"), [("binary", 1), ("ternary", np.log2(3))])
def test_bits_are_the_entropy_of_the_levels(levels, most, randn):
    weight = randn(400, 500)
    form = Scaled.fit(weight, levels)
    _, counts = form.taken().unique(return_counts=True)
    share = counts.double() / counts.sum()
    ideal = float(-(share * share.log2()).sum()) * weight.numel() / 8
    assert ideal <= most * weight.numel() / 8 * (1 + 1e-9)
    scales = 4 * 400
    assert form.size() <= 1.02 * ideal + scales + 64
    assert form.cost() / 8 <= ideal + scales + 16


def test_scales_of_few_bits_take_a_byte(randn):
    form = Scaled.fit(randn(8, 30), "ternary", sides=2)
    form.scale.data = 2.0 ** torch.arange(-15, 1).float().reshape(8, 2)
    assert form.pack().tables["scale"].dtype == np.int8
    round_trip(form)
    form.scale.data *= 1.25
    assert form.pack().tables["scale"].dtype == np.uint8
    round_trip(form)


def test_dead_channels_are_finite_and_leave_the_others_alone(randn):
    weight = randn(4, 30)
    weight[2] = 0
    for setting in SETTINGS[:1] + SETTINGS[2:3] + SETTINGS[7:8]:
        form = Scaled.fit(weight, **setting)
        form().square().sum().backward()
        assert torch.isfinite(form()).all()
        assert all(torch.isfinite(each.grad).all() for each in (form.latent, form.scale))
        assert (form()[2].abs() < 1e-20).all()
        others = Scaled.fit(weight[[0, 1, 3]], **setting)
        assert torch.equal(round_trip(form).dense()[[0, 1, 3]], others.dense())


def test_the_weights_given_are_not_those_that_train(randn):
    weight = randn(4, 5)
    before = weight.clone()
    form = Scaled.fit(weight, "binary")
    form.latent.data.zero_()
    assert torch.equal(weight, before)


# --- training -----------------------------------------------------------------------------------


def hand(weight, scale, unit, levels, at=None, shape=None):
    weight = torch.tensor(weight)
    shape = shape or tuple(weight.shape)
    return Scaled(weight, torch.tensor(scale), torch.tensor(unit), levels, Blocks(shape, 0), at)


def test_gradients_of_a_binary_weight_by_hand():
    form = hand([[0.3, -0.0, -0.9, 1.1, -1.1]], [[0.5]], [0.5], (-1, 1))  # half a step beyond the ends is ±2 units
    assert form().tolist() == [[0.5, 0.5, -0.5, 0.5, -0.5]]
    (form() * torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])).sum().backward()
    assert form.latent.grad.tolist() == [[1, 2, 4, 8, 0]]  # the fourth is led back, the last would be led out
    assert form.scale.grad.item() == pytest.approx((1 + 2 - 4 + 8 - 16) / 5)  # Σ l·∂w / Σ l²


def test_gradients_of_a_ternary_weight_with_two_scales_by_hand():
    form = hand([[0.6, 0.4, -0.7, -1.6, 0.5]], [[2.0, 3.0]], [1.0], (-1, 0, 1))
    assert form().tolist() == [[2, 0, -3, -3, 2]]
    (form() * torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])).sum().backward()
    assert form.latent.grad.tolist() == [[2, 4, 12, 0, 32]]  # times s/u, none outwards beyond ±1.5 units
    assert form.scale.grad.tolist() == [[(1 + 16) / 2, (-4 - 8) / 2]]


def test_gradients_of_powers_of_two_by_hand():
    form = hand([[1.4, 2.9, -3.1, 5.0]], [[0.5]], [1.0], (-4, -2, -1, 0, 1, 2, 4))
    assert form().tolist() == [[0.5, 1, -2, 2]]
    (form() * torch.tensor([1.0, 2.0, 4.0, -8.0])).sum().backward()
    assert form.latent.grad.tolist() == [[0.5, 1, 2, 0]]  # half a step is 8/12, on average
    assert form.scale.grad.item() == pytest.approx((1 + 2 * 2 - 4 * 4 - 4 * 8) / (1 + 4 + 16 + 16))


def test_gradients_of_scales_under_a_mask_are_those_of_their_survivors():
    at = torch.tensor([0, 2, 4])
    form = hand([1.0, -1.0, 1.0], [[0.5], [0.25]], [1.0, 1.0], (-1, 1), at, (2, 3))
    (form() * torch.tensor([1.0, 2.0, 4.0])).sum().backward()
    assert form.scale.grad.tolist() == [[(1 - 2) / 2], [4]]
    assert form.latent.grad.tolist() == [0.5, 1, 1]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_scale_is_fitted_as_its_gradient_is(setting, randn):
    """Of the squared error the gradient of fitted scales is zero: both are least squares."""
    weight = randn(12, 5, 24)
    form = Scaled.fit(weight, **setting)
    (form() - weight).square().sum().backward()
    assert (form.scale.grad.abs() < 1e-4 * form.scale).all()


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_training_moves_every_weight_to_the_level_it_is_pulled_to_and_none_far_beyond(setting, randn):
    weight, pull = randn(12, 5, 24), randn(12, 5, 24).sign()
    form = Scaled.fit(weight, **setting)
    optimiser = torch.optim.SGD([form.latent], 0.1)
    for _ in range(100):
        optimiser.zero_grad()
        (form() * pull).sum().backward()
        optimiser.step()
    assert torch.equal(form.taken(), torch.where(pull > 0, form.levels[0], form.levels[-1]))
    ends = 2 * form.levels.abs().max() * form._spread(form.unit) + 0.2
    assert (form.latent.abs() <= torch.maximum(weight.abs(), ends)).all()
    round_trip(form)


# --- properties ---------------------------------------------------------------------------------


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40),
    st.sampled_from([(name, bits) for name, (a, b) in SETS.items() for bits in range(a, b + 1)]),
    st.sampled_from([1, 2]),
    st.integers(1, 4),
    st.sampled_from([{"axis": None}, {}, {"axis": 1}, {"group": 2}, {"size": 3}]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
@settings(max_examples=40, deadline=None)
def test_any_weights_survive_packing_and_are_nearest_levels(values, name, sides, width, blocks, dtype):
    values += [0.0] * (-len(values) % width)
    weight = torch.tensor(values).reshape(-1, width).to(dtype)
    form = Scaled.fit(weight, *name, sides=sides, **blocks)
    back = round_trip(form)
    assert torch.equal(back.taken(), form.taken())
    assert (form.scale > 0).all()
    steps = form.latent.double() / form._spread(form.unit).double()
    distance = (steps[..., None] - form.levels.double()).abs()
    assert torch.allclose((steps - form.taken()).abs(), distance.amin(-1), rtol=1e-5)
    survivors = weight.flatten().abs() > 1
    mask = Mask.nonzero(weight, survivors)
    mask.inner = Scaled.fit(
        mask.inner.dense(), *name, sides=sides, at=mask.positions, shape=tuple(weight.shape), **blocks
    )
    assert (round_trip(mask).dense().flatten()[~survivors] == 0).all()


@given(
    st.lists(st.integers(-(1 << 16), 1 << 16), min_size=1, max_size=12, unique=True),
    st.floats(2.0**-30, 2.0**30, width=32),
)
@settings(max_examples=60, deadline=None)
def test_any_levels_survive_packing(levels, scale):
    levels = sorted(levels)
    weight = torch.tensor([[*levels, *levels[::-1]]], dtype=torch.float32)
    form = Scaled(weight, torch.tensor([[scale]]), torch.ones(1), levels, Blocks(tuple(weight.shape), 0))
    assert torch.equal(round_trip(form).dense(), weight * scale)


def test_brute_force_of_all_small_ternary_weights():
    for values in itertools.product((-2.0, -0.5, 0.0, 1.0), repeat=4):
        weight = torch.tensor([values])
        limit = 0.7 * weight.abs().mean()
        kept = weight.abs() > limit
        alpha = weight[kept].abs().mean() if kept.any() else torch.tensor(0.0)
        assert torch.allclose(Scaled.fit(weight, "ternary")(), alpha * weight.sign() * kept), values
