"""Clustering of numbers on a line: the codebook of weight sharing, and who belongs to which value.

Weights are sorted once (numpy sorts ten million floats in a fraction of a second); from there on
a cluster is a range of the sorted array, its mean a difference of two prefix sums, and one pass
of Lloyd's algorithm a handful of binary searches. What needs more than that works on a histogram
whose bins are ranges too, and the result is polished on the sorted weights themselves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepcomp import jit
from deepcomp.errors import InputError, UsageError

__all__ = ["MOST_OPTIMAL", "STARTS", "assign", "centroids", "inertia"]

STARTS = ("optimal", "linear", "density", "forgy")

MOST_OPTIMAL = 1024  # clusters: time and memory of the dynamic programme grow with the square of k
_MOST = 1 << 16  # clusters: what a uint16 index can name
_MOST_SKLEARN = 256  # beyond, a matrix of distances takes seconds; ranges take milliseconds
_BINS, _BINS_EACH = 2048, 16  # of the histogram: in all at least, and for each cluster at least
_ROUNDS = 300  # of Lloyd's algorithm at most, as in scikit-learn
_BLOCK = 16  # weights between two stored prefix sums
_SECONDS_LAYER, _SECONDS_BIN = 4e-4, 1.4e-7  # that numpy takes for a layer of the dynamic programme
_SECONDS_SORT = 1e-8  # and to sort a weight; four times that where its wide instructions are slow
_CHUNK = 1 << 16  # weights assigned at a time: what stays in a core's cache

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Positions = NDArray[np.int64]
Indices = NDArray[np.unsignedinteger]


def centroids(values: NDArray[np.floating], k: int, start: str = "optimal", seed: int = 0) -> Floats:
    """The shared values of a weight: `k` cluster means, ascending.

    Parameters
    ----------
    values : 1-D float array
        The weights, in any order; float64 is rounded to float32 first.
    k : int
        Clusters, 2 to 65,536. Where there are no more than `k` distinct values, those are returned.
    start : str
        "optimal" comes within 0.1 % of the least possible inertia: a dynamic programme (Wang & Song
        2011, Ckmeans.1d.dp) over a histogram of max(2048, 16 k) bins, then Lloyd's algorithm on the
        weights themselves; up to k = 1024. The others are those of Han et al. 2016,
        "Deep Compression", §3.2, each followed by Lloyd's algorithm, which finds a local optimum:
        "linear" spaces k values evenly between the least and the greatest weight, "density" spaces
        them evenly in the cumulative distribution, "forgy" takes k weights at random. Up to
        k = 256 these run scikit-learn's KMeans on the histogram (which moves a cluster that falls
        empty to the weights worst served); beyond, an empty cluster keeps its starting value.
    seed : int
        Of "forgy".

    Returns
    -------
    float32 array of min(k, distinct values) entries, ascending
        A function of the multiset of values, `k`, `start` and `seed` alone.

    Raises
    ------
    UsageError
        `k` or `start` out of range.
    InputError
        A value is NaN, infinite or outside float32.

    Notes
    -----
    Sums are float64: beside a weight more than about 1e9 times the others, the small ones blur.
    """
    if start not in STARTS:
        raise UsageError(f"start: {start!r} found, one of {', '.join(STARTS)} expected")
    if not 2 <= k <= _MOST:
        raise UsageError(f"clusters: {k} found, 2 to {_MOST} expected")
    if start == "optimal" and k > MOST_OPTIMAL:
        raise UsageError(f"clusters: {k} found, at most {MOST_OPTIMAL} expected with start 'optimal'; use 'linear'")
    x = _sorted(_floats(values))
    if np.count_nonzero(x[1:] != x[:-1]) < k:
        return np.unique(x + np.float32(0))  # -0 becomes 0, whichever of the two comes first
    line, bins = _Line(x), max(_BINS, _BINS_EACH * k)
    if start == "optimal":
        return _lloyd(line, _optimal(line, _histogram(x, bins), k))
    means = _starting_values(x, k, start, seed)
    if k <= _MOST_SKLEARN:
        means = _sklearn(line, _histogram(x, bins), means)
    return _lloyd(line, means)


def assign(values: NDArray[np.floating], centroids: Floats) -> Indices:
    """The index of the nearest of the ascending `centroids` for each value, the lower one on a tie.

    Parameters
    ----------
    values : 1-D float array
        float64 is rounded to float32 first.
    centroids : 1-D float32 array
        1 to 65,536 entries, ascending.

    Returns
    -------
    uint8 array, or uint16 where there are more than 256 centroids

    Raises
    ------
    UsageError
        The centroids are none, too many or not ascending.
    InputError
        A value is NaN, infinite or outside float32.
    """
    x, centroids = _floats(values), _floats(centroids, "centroids")
    if not 1 <= len(centroids) <= _MOST or (centroids[1:] < centroids[:-1]).any():
        raise UsageError(f"centroids: {len(centroids)} found, 1 to {_MOST} in ascending order expected")
    dtype: np.dtype[np.unsignedinteger] = np.dtype(np.uint8 if len(centroids) <= 256 else np.uint16)
    unsure = np.iinfo(dtype).max
    bounds = _between(centroids[:-1], centroids[1:])
    # The upper half of a float32 names one of 65,536 cells, and most cells have no bound inside.
    # Cells ascend with their code, from -0 down to -inf in the upper half of the codes.
    codes = (bounds.view(np.uint32) >> 16).astype(np.int64)
    inside = np.bincount(np.where(codes < 0x8000, codes + 0x8000, 0xFFFF - codes), minlength=_MOST)
    below = np.where(inside > 0, unsure, np.cumsum(inside) - inside).astype(dtype)
    table = np.concatenate((below[0x8000:], below[0x7FFF::-1]))
    out = np.empty(len(x), dtype)
    for at in range(0, len(x), _CHUNK):
        run, found = x[at : at + _CHUNK], out[at : at + _CHUNK]
        table.take(run.view(np.uint32) >> 16, out=found, mode="clip")
        left = np.flatnonzero(found == unsure)  # with them the last of 256 (or 65,536) clusters: searching is right too
        found[left] = np.searchsorted(bounds, run[left])
    return out


def inertia(values: NDArray[np.floating], centroids: Floats) -> float:
    """The sum of squared distances of the values to their nearest centroids, in float64."""
    indices, table = assign(values, centroids), np.asarray(centroids, np.float64)
    total = 0.0
    for at in range(0, len(values), _CHUNK):
        distance = values[at : at + _CHUNK] - table[indices[at : at + _CHUNK]]
        total += float(np.sum(distance * distance))
    return total


def _floats(values: NDArray[np.floating], what: str = "values") -> Floats:
    if values.ndim != 1 or values.dtype.kind != "f":
        raise UsageError(f"{what}: {values.dtype} of {values.ndim} dimensions found, floats of one dimension expected")
    with np.errstate(over="ignore"):
        x = np.ascontiguousarray(values, np.float32)
    if len(x) and not (np.isfinite(x.min()) and np.isfinite(x.max())):
        raise InputError(f"{what}: NaN or infinity found, finite float32 numbers expected")
    return x


def _sorted(x: Floats) -> Floats:
    if not jit.pays(_SECONDS_SORT * len(x)):
        return np.sort(x)
    from deepcomp.weights import kernels

    words = x.view(np.uint32).copy()
    return kernels.sort(words, np.empty_like(words)).view(np.float32)


def _between(low: Floats, high: Floats) -> Floats:
    """The greatest float32 at most midway: comparing float32 numbers with it is exact, and a tie counts as low."""
    middle = (low.astype(np.float64) + high) / 2
    near = middle.astype(np.float32)
    return np.where(near > middle, np.nextafter(near, np.float32(-np.inf)), near)


class _Line:
    """Sorted weights, and sums over any of their ranges without a pass over the weights."""

    def __init__(self, x: Floats) -> None:
        whole = len(x) // _BLOCK * _BLOCK
        self.x = x
        self._sums = np.zeros(whole // _BLOCK + 1)
        np.cumsum(x[:whole].reshape(-1, _BLOCK).sum(1, dtype=np.float64), out=self._sums[1:])

    def prefix(self, ends: Positions) -> Doubles:
        """The sum of the first `end` weights, for each of the ends."""
        block, rest = np.divmod(ends, _BLOCK)
        offset = np.arange(_BLOCK)
        last = self.x.take((block * _BLOCK)[:, None] + offset, mode="clip")
        return np.asarray(self._sums[block] + np.where(offset < rest[:, None], last, 0).sum(1, dtype=np.float64))


def _histogram(x: Floats, bins: int) -> Positions:
    """The ends of at most `bins` ranges of sorted weights, 0 and len(x) included; equal weights share a range.

    Ranges are halved until there are `bins`, those with the greatest count * width^2 first. So the
    widths come to go with density^(-1/3), as those of clusters do (Panter & Dite 1951), and a
    cluster spans about as many bins wherever it lies; gaps and outliers waste none.
    """
    ends: Positions = np.array([0, len(x)])
    while True:
        low, high = x[ends[:-1]], x[ends[1:] - 1]
        spread = np.diff(ends) * (high.astype(np.float64) - low) ** 2
        chosen = np.flatnonzero(spread > spread.max() / 8)
        free = bins - len(spread)
        if not len(chosen) or not free:
            return ends
        if len(chosen) > free:
            chosen = chosen[np.argsort(-spread[chosen], kind="stable")[:free]]
        cuts = np.searchsorted(x, _between(low[chosen], high[chosen]), "right")
        ends = np.sort(np.concatenate((ends, cuts)))


def _optimal(line: _Line, edges: Positions, k: int) -> Doubles:
    """The means of the `k` clusters of whole bins that have the least inertia.

    Inertia is a constant less the sum of sum^2 / count over the clusters, so that is maximised.
    The last cut of the best division moves right as bins are added and as clusters are
    (Wang & Song 2011 build on the first), which bounds where each cut is looked for.
    """
    size = len(edges)
    counts, prefix = edges.astype(np.float64), line.prefix(edges)
    sums = prefix - counts * (prefix[-1] / counts[-1])  # about the mean, lest an offset swallow the differences
    layer = _layer
    if jit.pays(k * (_SECONDS_LAYER + size * _SECONDS_BIN)):
        from deepcomp.weights import kernels

        layer = kernels.layer
    cuts = np.zeros((k + 1, size), np.int32)  # cuts[j, i]: where the last of j clusters of the first i bins begins
    score = np.full(size, -np.inf)
    score[1:] = sums[1:] * sums[1:] / counts[1:]
    for j in range(2, k + 1):
        score = layer(score, sums, counts, cuts[j - 1], j if j < k else size - 1, cuts[j])
    ends = np.zeros(k + 1, np.int64)
    ends[k] = size - 1
    for j in range(k, 1, -1):
        ends[j - 1] = cuts[j, ends[j]]
    return np.diff(prefix[ends]) / np.diff(edges[ends])


def _layer(
    score: Doubles, sums: Doubles, counts: Doubles, floor: NDArray[np.int32], first: int, cuts: NDArray[np.int32]
) -> Doubles:
    """One more cluster, for every number of bins from `first` on: binary search, one depth of the tree at a time.

    Parameters
    ----------
    score : float64 array
        The best sum of sum^2 / count of the first i bins with one cluster less.
    sums, counts : float64 arrays
        Of the weights in the first i bins.
    floor : int32 array
        The cuts found with one cluster less: none lies further left now.
    first : int
        The fewest bins wanted.
    cuts : int32 array
        Receives where the last cluster begins, the leftmost place on a tie.

    Returns
    -------
    float64 array, the best score with this cluster; minus infinity below `first`
    """
    after = np.full(len(score), -np.inf)
    a, b = np.array([first]), np.array([len(score) - 1])
    least, most = np.array([0]), np.array([len(score) - 2])
    while len(a):
        middle = (a + b) >> 1
        stop = np.minimum(most, middle - 1)
        start = np.minimum(np.maximum(least, floor[middle]), stop)
        length = stop - start + 1
        ends = np.cumsum(length)
        begins = ends - length
        i = np.arange(ends[-1]) + np.repeat(start - begins, length)
        to = np.repeat(middle, length)
        part = sums[to] - sums[i]
        value = score[i] + part * part / (counts[to] - counts[i])
        best = np.maximum.reduceat(value, begins)
        hits = np.flatnonzero(value == np.repeat(best, length))
        cut = i[hits[np.searchsorted(hits, begins)]]
        after[middle], cuts[middle] = best, cut
        left, right = a < middle, middle < b
        a, b = np.concatenate((a[left], middle[right] + 1)), np.concatenate((middle[left] - 1, b[right]))
        least, most = np.concatenate((least[left], cut[right])), np.concatenate((cut[left], most[right]))
    return after


def _starting_values(x: Floats, k: int, start: str, seed: int) -> Doubles:
    """Han et al. 2016, §3.2, of sorted weights."""
    if start == "linear":
        return np.linspace(float(x[0]), float(x[-1]), k)
    if start == "density":
        chosen = (2 * np.arange(k) + 1) * len(x) // (2 * k)
    else:
        chosen = np.sort(np.random.default_rng(seed).choice(len(x), k, replace=False))
    return x[chosen].astype(np.float64)


def _sklearn(line: _Line, edges: Positions, means: Doubles) -> Doubles:
    """scikit-learn's KMeans from the given start on the means of the bins, on one thread: the same everywhere."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    counts = np.diff(edges)
    points = np.diff(line.prefix(edges)) / counts
    model = KMeans(len(means), init=means[:, None], n_init=1, max_iter=_ROUNDS, tol=0)
    with threadpool_limits(1):
        model.fit(points[:, None], sample_weight=counts)
    return np.sort(model.cluster_centers_[:, 0])


def _lloyd(line: _Line, means: Doubles, rounds: int = _ROUNDS) -> Floats:
    """Move centroids to the means of the weights nearest to them until none changes its weights.

    The centroids are float32 in every round, so that at the end `assign` gives each one the very
    weights whose mean it is. A cluster without weights stays where it is.
    """
    ends = np.empty(0, np.int64)
    for _ in range(rounds):
        before = ends
        near = means.astype(np.float32)
        ends = np.searchsorted(line.x, _between(near[:-1], near[1:]), "right")
        ends = np.concatenate(([0], ends, [len(line.x)]))
        if np.array_equal(ends, before):
            break
        counts = np.diff(ends)
        means = np.where(counts > 0, np.diff(line.prefix(ends)) / np.maximum(counts, 1), means)
    return means.astype(np.float32)
