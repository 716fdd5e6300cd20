from __future__ import annotations

import io
import socket
import sys

import numpy as np
import pytest
import sklearn.datasets
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from deepcomp.errors import InputError, UsageError
from deepcomp.model.data import Data, Pairs, batches, calibration, draw, example_inputs
from deepcomp.model.datasets import load_data


def pairs(count=5, shape=(3,)):
    return [(torch.full(shape, float(i)), i) for i in range(count)]


def closer(outputs, targets):
    return 1.0


closer.higher_is_better = False


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Empty look-up places, and sockets that refuse at once."""

    def refuse(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEEPCOMP_DATA", str(tmp_path / "variable"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


# Data


@pytest.mark.parametrize("metric", ["accuracy", "perplexity", closer, None])
def test_data_takes_every_metric_of_the_contract(metric):
    assert Data(pairs(), pairs(), metric).metric is metric


def test_data_takes_tuples_and_dicts_of_tensors():
    x = torch.zeros(2)
    Data([((x, x), 0)])
    Data([({"a": x, "b": x}, 0)])


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1), 0


class Locked:
    """A data set that fails to tell an item, or even how many there are."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length.bit_count()

    def __getitem__(self, index):
        return {}[index]


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (Locked(1), r"^train: KeyError: 0$"),
        (Locked(None), r"^train: AttributeError: 'NoneType'"),
        ([], "train: .*empty"),
        (iter([1]), "map-style"),
        (Endless(), "map-style"),
        ({"x": torch.zeros(3)}, "map-style"),
        ([torch.zeros(3)], r"train\[0\].*pair"),
        ([(torch.zeros(3), 0, 0)], r"train\[0\].*pair"),
        ([(np.zeros(3), 0)], "ndarray.*tensor"),
        ([((torch.zeros(3), 5), 0)], "int.*tensor"),
        ([({}, 0)], "dict.*tensor"),
    ],
)
def test_data_refuses_a_bad_set_in_one_line(train, words):
    with pytest.raises(InputError, match=words) as caught:
        Data(train)
    assert "\n" not in str(caught.value)


def test_data_names_the_test_set_when_it_is_the_bad_one():
    with pytest.raises(InputError, match=r"^test: "):
        Data(pairs(), [])


@pytest.mark.parametrize(
    ("metric", "words"),
    [("acuracy", "'acuracy'.*accuracy"), (3, "int"), (lambda outputs, targets: 0.0, "higher_is_better")],
)
def test_data_refuses_a_bad_metric(metric, words):
    with pytest.raises(UsageError, match=words):
        Data(pairs(), pairs(), metric)


def test_data_refuses_a_metric_without_a_test_set():
    with pytest.raises(UsageError, match="test set"):
        Data(pairs(), metric="accuracy")


# batches


class Items(Dataset):
    """The same items as a TensorDataset, one by one only."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        assert isinstance(index, int)
        return self.x[index], self.y[index]


@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize("shuffled", [False, True])
def test_batches_are_the_same_by_slice_and_by_item(randn, size, shuffled):
    x, y = randn(7, 2, 3), torch.arange(7)
    order = torch.randperm(7) if shuffled else None
    expected = y if order is None else order
    for dataset in (TensorDataset(x, y), Pairs(x, y), Items(x, y), Subset(Items(x, y), range(7))):
        got = list(batches(dataset, size, order))
        assert [len(t) for _, t in got] == [len(part) for part in y.split(size)]
        assert torch.cat([t for _, t in got]).equal(expected)
        assert torch.cat([i for i, _ in got]).equal(x[expected])


def test_batches_keep_tuples_and_dicts_what_they_are():
    a, b = torch.ones(2), torch.zeros(3)
    inputs, target = next(batches([((a, b), 1), ((a, b), 2)], 2))
    assert isinstance(inputs, tuple)
    assert [t.shape for t in inputs] == [(2, 2), (2, 3)]
    assert target.equal(torch.tensor([1, 2]))
    inputs, _ = next(batches([({"a": a, "b": b}, 1)] * 2, 2))
    assert {k: tuple(v.shape) for k, v in inputs.items()} == {"a": (2, 2), "b": (2, 3)}


@pytest.mark.parametrize(
    "second", [(torch.zeros(4), 0), (torch.zeros(3), 0, 0), ({"a": torch.zeros(3)}, 0)], ids=["shape", "triple", "kind"]
)
def test_items_that_form_no_batch_are_an_input_error(second):
    with pytest.raises(InputError, match="items 0 to 1 do not form a batch"):
        next(batches([(torch.zeros(3), 0), second], 2))


def test_uint8_stays_uint8_in_memory_and_is_scaled_on_access():
    dataset = Pairs(torch.tensor([[0, 51, 255]], dtype=torch.uint8), torch.tensor([1]))
    assert dataset.inputs.dtype == torch.uint8
    for x in (dataset[0][0], dataset[0:1][0][0]):
        assert x.equal(torch.tensor([0, 51, 255]).float() / 255)
    assert dataset.inputs.max() == 255


def test_pairs_end_like_a_sequence():
    assert len(list(iter(Pairs(torch.zeros(3, 2), torch.zeros(3))))) == 3


# calibration


def test_calibration_draws_distinct_training_inputs_only():
    data = Data(pairs(50), [(torch.full((3,), -1.0), 0)], "accuracy")
    inputs = calibration(data, 20, seed=3)
    assert inputs.shape == (20, 3)
    assert len(inputs[:, 0].unique()) == 20
    assert inputs.min() >= 0


def test_calibration_depends_on_its_seed_alone():
    data = Data(pairs(50))
    torch.manual_seed(1)
    first = calibration(data, 20, seed=3)
    torch.manual_seed(2)
    assert calibration(data, 20, seed=3).equal(first)
    assert not calibration(data, 20, seed=4).equal(first)


def test_calibration_of_more_than_there_is_is_all_there_is():
    assert draw(pairs(5), 100, 0).sort().values.equal(torch.arange(5))
    assert len(calibration(Data(pairs(5)), 100, 0)) == 5


@pytest.mark.parametrize("count", [1, 2, 9])
def test_example_inputs_have_the_batch_asked_for_even_if_items_run_out(count):
    assert example_inputs(Data(pairs(count)), batch=4)[:, 0].tolist() == [i % count for i in range(4)]


# load_data: digits, specs


def test_digits_are_split_into_disjoint_sets_of_scaled_images():
    data = load_data("digits")
    assert (len(data.train), len(data.test), data.metric) == (1437, 360, "accuracy")
    x = torch.cat([data.train[:][0], data.test[:][0]])
    assert x.shape[1:] == (1, 8, 8)
    assert (x.min(), x.max()) == (0, 1)
    original = sklearn.datasets.load_digits(return_X_y=True)[0] / 16
    assert sorted(map(tuple, x.reshape(-1, 64).tolist())) == sorted(map(tuple, original.tolist()))


def test_digits_are_the_same_every_time():
    assert load_data("digits").test[:][0].equal(load_data("digits").test[:][0])


def test_data_is_returned_as_it_is():
    data = Data(pairs())
    assert load_data(data) is data


def test_unknown_data_lists_what_there_is():
    with pytest.raises(UsageError, match=r"'mnits'.*digits, mnist, cifar10, wikitext2, npz:FILE"):
        load_data("mnits")


def test_a_callable_returns_data_or_is_named(tmp_path, monkeypatch):
    source = "import torch\nfrom deepcomp.model.data import Data\n"
    source += "def fine():\n    return Data([(torch.zeros(2), 0)])\ndef wrong():\n    return [1]\n"
    (tmp_path / "spec_data.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert len(load_data("spec_data:fine").train) == 1
        with pytest.raises(UsageError, match=r"spec_data:wrong: .*list.*Data"):
            load_data("spec_data:wrong")
    finally:
        sys.modules.pop("spec_data", None)


# npz


def save(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_npz_scales_bytes_and_keeps_floats_and_tokens(tmp_path):
    y = np.array([1, 0], np.uint8)
    for x, expected in (
        (np.array([[0, 255], [51, 0]], np.uint8), torch.tensor([[0, 1], [0.2, 0]])),
        (np.array([[0.5, 3], [-2, 0]], np.float64), torch.tensor([[0.5, 3], [-2, 0]])),
        (np.array([[5, 3], [2, 0]], np.int32), torch.tensor([[5, 3], [2, 0]])),
    ):
        data = load_data(save(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y))
        inputs, targets = data.train[:]
        assert inputs.dtype == expected.dtype
        assert inputs.allclose(expected)
        assert targets.equal(torch.tensor([1, 0]))
        assert data.metric == "accuracy"


def test_npz_without_a_test_set_calibrates_only(tmp_path):
    data = load_data(save(tmp_path / "d.npz", x_train=np.zeros((4, 2)), y_train=np.zeros(4, int)))
    assert data.test is None
    assert data.metric is None


def test_npz_with_float_targets_has_no_metric(tmp_path):
    x, y = np.zeros((4, 2)), np.zeros((4, 3))
    data = load_data(save(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y))
    assert data.metric is None
    assert data.train[0][1].dtype == torch.float32


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x_train": np.zeros((4, 2))}, "x_train found, y_train expected"),
        ({"x_train": np.zeros((4, 2)), "y_train": np.zeros(3)}, "x_train .4, 2. and y_train .3,"),
        ({"x_train": np.zeros((4, 2)), "y_train": np.array(3)}, "as many"),
        ({"x_train": np.zeros((0, 2)), "y_train": np.zeros(0)}, "empty"),
        ({"x_train": np.array(["a"]), "y_train": np.zeros(1)}, "x_train: dtype <U1"),
        ({"x_train": np.array([{}]), "y_train": np.zeros(1)}, "no readable npz"),
        ({"x_train": np.zeros((4, 2)), "y_train": np.zeros(4), "x_test": np.zeros((4, 2))}, "x_test .* y_test"),
    ],
)
def test_a_bad_npz_is_one_line_naming_file_and_array(tmp_path, arrays, words):
    with pytest.raises(InputError, match=words) as caught:
        load_data(save(tmp_path / "d.npz", **arrays))
    assert "\n" not in str(caught.value)


def test_a_damaged_npz_is_an_input_error_naming_it(tmp_path):
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x_train=np.arange(400.0).reshape(40, 10), y_train=np.arange(40))
    raw = path.read_bytes()
    np.save(tmp_path / "single.npy", np.zeros(3))
    for bad in (b"", b"PK\x03\x04", b"no archive", raw[:300], raw[:-30], (tmp_path / "single.npy").read_bytes()):
        path.write_bytes(bad)
        with pytest.raises(InputError, match=r"d\.npz"):
            load_data(f"npz:{path}")
    with pytest.raises(InputError, match=r"none\.npz: no such file"):
        load_data(f"npz:{tmp_path / 'none.npz'}")


def test_npz_never_unpickles(tmp_path):
    path = tmp_path / "d.npz"
    trap = np.array([Trap()], dtype=object)
    np.savez(path, x_train=trap, y_train=np.zeros(1))
    Trap.sprung = False
    with pytest.raises(InputError):
        load_data(f"npz:{path}")
    assert not Trap.sprung


class Trap:
    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


# looking up mnist and cifar10


def tiny_mnist(folder, fill):
    folder.mkdir(parents=True)
    x, y = np.full((3, 28, 28), fill, np.uint8), np.arange(3, dtype=np.uint8)
    np.savez(folder / "mnist.npz", x_train=x, y_train=y, x_test=x, y_test=y)


def test_look_up_order_is_data_dir_then_variable_then_cache(no_network):
    places = {"cache/deepcomp": 1, "variable": 2, "given": 3}
    for place, fill in places.items():
        tiny_mnist(no_network / place, fill)
        x = load_data("mnist", no_network / "given").train[0][0]
        assert x.shape == (1, 28, 28)
        assert x.unique().item() == np.float32(fill) / np.float32(255)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_missing_data_is_one_line_naming_all_three_places(no_network, name):
    with pytest.raises(InputError) as caught:
        load_data(name, no_network / "given")
    message = str(caught.value)
    assert "\n" not in message
    for place in (f"{name}.npz", "--data-dir", "given", "$DEEPCOMP_DATA", "variable", "cache/deepcomp"):
        assert place in message
    assert socket.getdefaulttimeout() is None
    assert not list((no_network / "cache" / "deepcomp").iterdir())


def test_the_cache_is_filled_once_in_the_order_train_then_test(no_network, monkeypatch):
    calls = []

    def fetch(title, **settings):
        calls.append(title)
        labels = (np.arange(60_010) % 10).astype(str)
        return np.repeat(np.arange(60_010) % 256, 784).reshape(-1, 784).astype(float), labels.astype(object)

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
    for _ in range(2):
        data = load_data("mnist")
        assert (len(data.train), len(data.test)) == (60_000, 10)
        x, y = data.test[3]
        assert x.eq(torch.tensor((60_003 % 256) / 255)).all()
        assert y == 3
    assert calls == ["mnist_784"]
    assert [p.name for p in (no_network / "cache" / "deepcomp").iterdir()] == ["mnist.npz"]


def test_mnist_of_another_shape_is_named(no_network):
    (no_network / "variable").mkdir()
    x, y = np.zeros((3, 8, 8), np.uint8), np.zeros(3, np.uint8)
    np.savez(no_network / "variable" / "mnist.npz", x_train=x, y_train=y)
    with pytest.raises(InputError, match=r"mnist\.npz: x_train: .*\(8, 8\) found, \(28, 28\) expected"):
        load_data("mnist")


def jpeg(pixels):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=100, subsampling=0)
    return buffer.getvalue()


def save_cifar(path, files, count=None):
    data = np.frombuffer(b"".join(files), np.uint8)
    offsets = np.cumsum([0] + [len(file) for file in files])
    y = np.arange(len(files) if count is None else count, dtype=np.uint8)
    parts = {f"{kind}_{part}": v for part in ("train", "test") for kind, v in (("jpeg", data), ("offset", offsets))}
    np.savez(path / "cifar10_jpeg.npz", **parts, y_train=y, y_test=y)


def test_jpeg_cifar_is_decoded_and_normalised(tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)]
    save_cifar(tmp_path, [jpeg(np.full((32, 32, 3), colour, np.uint8)) for colour in colours])
    data = load_data("cifar10", tmp_path)
    x, y = data.test[1:4]
    assert x.shape == (3, 3, 32, 32)
    assert y.equal(torch.tensor([1, 2, 3]))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (torch.tensor(colours[1:]) / 255 - mean) / std
    assert (x - expected[:, :, None, None]).abs().max() < 0.1
    assert data.test[-1][0].equal(data.test[3][0])
    assert data.train[torch.tensor([2, 0])][0][0].equal(data.train[2][0])


@pytest.mark.parametrize(
    ("file", "words"),
    [(b"no jpeg", "image 0: no readable JPEG"), ("big", r"image 0: RGB \(64, 32\) found"), ("grey", "image 0: L ")],
)
def test_a_bad_jpeg_is_named(tmp_path, file, words):
    made = {"big": np.zeros((32, 64, 3), np.uint8), "grey": np.zeros((32, 32), np.uint8)}
    save_cifar(tmp_path, [file if isinstance(file, bytes) else jpeg(made[file])])
    with pytest.raises(InputError, match=words):
        load_data("cifar10", tmp_path)


def test_jpeg_offsets_must_fit_the_labels(tmp_path):
    save_cifar(tmp_path, [jpeg(np.zeros((32, 32, 3), np.uint8))], count=2)
    with pytest.raises(InputError, match="offset_train"):
        load_data("cifar10", tmp_path)


# the real thing


def test_mnist_of_the_data_folder(data_dir):
    data = load_data("mnist", data_dir)
    assert (len(data.train), len(data.test), data.metric) == (60_000, 10_000, "accuracy")
    x, y = data.test[:2]
    assert x.shape == (2, 1, 28, 28)
    assert (x.dtype, x.max(), y.tolist()) == (torch.float32, 1, [7, 2])


def test_cifar10_of_the_data_folder(data_dir):
    data = load_data("cifar10", data_dir)
    assert (len(data.train), len(data.test)) == (50_000, 10_000)
    assert data.test[:2][0].shape == (2, 3, 32, 32)
