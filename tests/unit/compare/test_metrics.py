"""The figures of one comparison, against plain Python, torch and numbers worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from apr_falsify.compare import sums
from apr_falsify.compare.axes import Axes, axes_of
from apr_falsify.compare.metrics import Metrics, compare_arrays
from apr_falsify.errors import TraceError
from apr_falsify.formats.aprt import read_aprt
from tests.support import DATA
from tests.unit.compare.pairs import GEOMETRY, TOKEN_CHANNEL, Array, random_pair

VECTOR = Axes(names=("channel",))
SCORES = Axes(names=("head", "token", "key"))

FINITE = st.floats(-(2.0**126), 2.0**126, width=32)
PAIRS = hnp.array_shapes(min_dims=2, max_dims=2, max_side=7).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.float32, shape, elements=FINITE)] * 2)
)


def vector(oracle: object, subject: object, dtype: npt.DTypeLike = np.float32) -> Metrics:
    return compare_arrays(np.asarray(oracle, dtype), np.asarray(subject, dtype), VECTOR)


def plain_figures(oracle: Array, subject: Array) -> tuple[float, float, float]:
    """rel_l2, norm ratio and cosine with exactly rounded sums."""
    o, s = oracle.ravel().tolist(), subject.ravel().tolist()
    oo, ss = math.fsum(x * x for x in o), math.fsum(x * x for x in s)
    dd = math.fsum((y - x) ** 2 for x, y in zip(o, s, strict=True))
    dot = math.fsum(x * y for x, y in zip(o, s, strict=True))
    return math.sqrt(dd / oo), math.sqrt(ss / oo), dot / math.sqrt(oo) / math.sqrt(ss)


# --- the three figures ------------------------------------------------------------------------------


def test_three_four_five_by_hand() -> None:
    found = vector([3, 4], [4, 3])
    assert found.rel_l2 == pytest.approx(math.sqrt(2) / 5, rel=1e-15)
    assert found.norm_ratio == 1.0
    assert found.cosine == pytest.approx(24 / 25, rel=1e-15)
    assert (found.max_abs, found.at, found.where) == (1.0, (0,), "channel 0")
    assert (found.oracle_norm, found.subject_norm) == (5.0, 5.0)
    assert found.difference_norm == pytest.approx(math.sqrt(2), rel=1e-15)
    assert (found.elements, found.compared) == (2, 2)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (300, 3), (37, 4100), (700, 7000)])
def test_figures_are_those_of_exactly_rounded_sums(shape: tuple[int, int]) -> None:
    oracle, subject = random_pair(*shape, noise=0.3)
    found = compare_arrays(oracle, subject, TOKEN_CHANNEL)
    rel_l2, norm_ratio, cosine = plain_figures(oracle, subject)
    assert found.rel_l2 == pytest.approx(rel_l2, rel=1e-12)
    assert found.norm_ratio == pytest.approx(norm_ratio, rel=1e-12)
    assert found.cosine == pytest.approx(cosine, rel=1e-12)


@pytest.mark.parametrize("noise", [1e-6, 1e-2, 1.0, 30.0, 1e8, 1e25])
def test_the_cosine_is_that_of_torch_in_f64(noise: float) -> None:
    torch = pytest.importorskip("torch", reason="torch is the independent implementation here")
    oracle, subject = random_pair(64, 129, noise=noise)
    theirs = torch.nn.functional.cosine_similarity(
        torch.from_numpy(oracle).double().flatten(), torch.from_numpy(subject).double().flatten(), dim=0
    )
    assert compare_arrays(oracle, subject, TOKEN_CHANNEL).cosine == pytest.approx(theirs.item(), abs=1e-13)


def test_a_cosine_near_one_keeps_its_digits() -> None:
    # Turned by a known small angle: 1 - cos = angle^2 / 2, which o.s / (|o| |s|) would round away.
    angle = 1e-7
    oracle = np.array([1.0, 0.0])
    subject = np.array([math.cos(angle), math.sin(angle)])
    assert 1 - vector(oracle, subject, np.float64).cosine == pytest.approx(angle**2 / 2, rel=0.03)


@pytest.mark.falsify_bisect_003
def test_a_scale_shows_in_the_norm_ratio_and_not_in_the_cosine() -> None:
    oracle, _ = random_pair(8, 49)
    found = compare_arrays(oracle, oracle * np.float32(8), TOKEN_CHANNEL)
    assert found.cosine == pytest.approx(1.0, abs=1e-15)
    assert found.norm_ratio == 8.0
    assert found.rel_l2 == pytest.approx(7.0, rel=1e-14)


@pytest.mark.parametrize(
    ("oracle", "subject", "cosine", "rel_l2", "norm_ratio"),
    [
        ([0, 0], [0, 0], 1.0, 0.0, 1.0),
        ([1, 2], [0, 0], 0.0, 1.0, 0.0),
        ([0, 0], [1, 2], 0.0, math.inf, math.inf),
        ([1, 2], [-1, -2], -1.0, 2.0, 1.0),
    ],
)
def test_zero_and_opposite_vectors(
    oracle: list[int], subject: list[int], cosine: float, rel_l2: float, norm_ratio: float
) -> None:
    found = vector(oracle, subject)
    assert found.cosine == pytest.approx(cosine, abs=1e-15)
    assert (found.rel_l2, found.norm_ratio) == (rel_l2, norm_ratio)


@pytest.mark.falsify_attn_sub_003
@given(PAIRS)
def test_bounds_hold_for_every_pair(pair: tuple[Array, Array]) -> None:
    found = compare_arrays(*pair, TOKEN_CHANNEL)
    assert -1.0 <= found.cosine <= 1.0
    assert found.rel_l2 >= 0.0
    assert all(-1.0 <= cosine <= 1.0 for cosine in found.cosine_without.values())
    assert found.max_abs == np.abs(pair[1].astype(np.float64) - pair[0]).max()


@given(PAIRS)
def test_swapping_the_sides_swaps_what_it_should(pair: tuple[Array, Array]) -> None:
    one, other = compare_arrays(*pair, TOKEN_CHANNEL), compare_arrays(*reversed(pair), TOKEN_CHANNEL)
    assert one.cosine == pytest.approx(other.cosine, abs=1e-12)
    assert (one.max_abs, one.at) == (other.max_abs, other.at)
    assert one.difference_norm == other.difference_norm
    assert (one.oracle_norm, one.subject_norm) == (other.subject_norm, other.oracle_norm)


@given(PAIRS, st.randoms(use_true_random=False))
def test_a_permutation_changes_no_whole_figure(pair: tuple[Array, Array], random: object) -> None:
    order = np.random.default_rng(random.randrange(1 << 30)).permutation(pair[0].size)
    shape = pair[0].shape
    shuffled = [side.ravel()[order].reshape(shape) for side in pair]
    one, other = compare_arrays(*pair, TOKEN_CHANNEL), compare_arrays(*shuffled, TOKEN_CHANNEL)
    assert one.max_abs == other.max_abs
    assert one.rel_l2 == pytest.approx(other.rel_l2, rel=1e-9)
    assert one.cosine == pytest.approx(other.cosine, abs=1e-9)


@given(hnp.arrays(np.float32, st.integers(1, 50), elements=FINITE))
def test_a_vector_equals_itself(values: Array) -> None:
    found = compare_arrays(values, values.copy(), VECTOR)
    assert (found.cosine, found.rel_l2, found.norm_ratio, found.max_abs) == (1.0, 0.0, 1.0, 0.0)


def test_no_rounding_takes_a_cosine_out_of_its_bounds() -> None:
    for seed in range(300):
        rng = np.random.default_rng(seed)
        oracle = rng.standard_normal(17)
        found = vector(oracle, oracle * rng.uniform(-60, 60), np.float64).cosine
        assert 1 - 1e-13 < abs(found) <= 1.0


# --- per token, head, channel -----------------------------------------------------------------------


def test_profiles_are_the_figures_of_each_slice() -> None:
    oracle, subject = random_pair(6, 256, noise=0.1)
    found = compare_arrays(oracle, subject, axes_of("q_post_rope", GEOMETRY))
    heads = [(oracle[:, i : i + 32], subject[:, i : i + 32]) for i in range(0, 256, 32)]
    slices = {
        "token": list(zip(oracle, subject, strict=True)),
        "head": heads,
        "channel": list(zip(oracle.T, subject.T, strict=True)),
    }
    assert list(found.per) == ["token", "head", "channel"]
    for axis, pairs in slices.items():
        expected = np.array([plain_figures(o, s)[:2] for o, s in pairs])
        np.testing.assert_allclose(found.per[axis].rel_l2, expected[:, 0], rtol=1e-12)
        np.testing.assert_allclose(found.per[axis].norm_ratio, expected[:, 1], rtol=1e-12)


def test_profiles_of_scores_are_per_head_token_and_key() -> None:
    oracle, subject = random_pair(4, 5, 5, noise=0.1)
    found = compare_arrays(oracle, subject, SCORES)
    for axis, name in enumerate(SCORES.names):
        for index in range(oracle.shape[axis]):
            rel_l2, norm_ratio, _ = plain_figures(oracle.take(index, axis), subject.take(index, axis))
            assert found.per[name].rel_l2[index] == pytest.approx(rel_l2, rel=1e-12)
            assert found.per[name].norm_ratio[index] == pytest.approx(norm_ratio, rel=1e-12)


@pytest.mark.falsify_bisect_003
def test_a_channel_wrong_by_15_percent_hides_from_the_cosine_and_not_from_its_profile() -> None:
    oracle, _ = random_pair(64, 896)
    subject = oracle.copy()
    subject[:, 137] *= np.float32(1.15)
    found = compare_arrays(oracle, subject, TOKEN_CHANNEL)
    assert found.cosine > 0.9998
    assert found.per["channel"].worst == 137
    assert found.per["channel"].norm_ratio[137] == pytest.approx(1.15, rel=1e-6)
    assert np.count_nonzero(found.per["channel"].rel_l2) == 1


def test_the_cosine_without_the_massive_channel_shows_what_it_hides() -> None:
    oracle, subject = random_pair(16, 128, noise=1.0)
    oracle[:, 5] = subject[:, 5] = 1e4
    found = compare_arrays(oracle, subject, TOKEN_CHANNEL)
    assert found.cosine > 0.99999
    rest = [np.delete(side, 5, axis=1) for side in (oracle, subject)]
    assert found.cosine_without[1] == pytest.approx(plain_figures(*rest)[2], rel=1e-12)
    order = np.argsort(-np.square(oracle, dtype=np.float64).sum(axis=0))
    rest = [np.delete(side, order[:8], axis=1) for side in (oracle, subject)]
    assert found.cosine_without[8] == pytest.approx(plain_figures(*rest)[2], rel=1e-12)


def test_leaving_out_every_channel_is_no_cosine() -> None:
    found = vector([1, 2], [2, 1])
    assert list(found.cosine_without) == [1]


# --- NaN, Inf and extreme values --------------------------------------------------------------------


@pytest.mark.falsify_bisect_003
def test_one_nan_does_not_hide_the_greatest_finite_difference() -> None:
    oracle, subject = random_pair(50, 3000)
    subject[3, 4] = np.nan
    subject[40, 2999] += 7
    found = compare_arrays(oracle, subject, TOKEN_CHANNEL)
    assert found.at == (40, 2999)
    assert (found.nonfinite_oracle, found.nonfinite_subject, found.nonfinite_mismatch) == (0, 1, 1)
    assert found.compared == found.elements - 1
    mask = np.isfinite(subject)
    rel_l2, norm_ratio, cosine = plain_figures(oracle[mask], subject[mask])
    assert found.rel_l2 == pytest.approx(rel_l2, rel=1e-12)
    assert found.norm_ratio == pytest.approx(norm_ratio, rel=1e-12)
    assert found.cosine == pytest.approx(cosine, rel=1e-12)
    row = subject[3][np.isfinite(subject[3])], oracle[3][np.isfinite(subject[3])]
    assert found.per["token"].rel_l2[3] == pytest.approx(plain_figures(row[1], row[0])[0], rel=1e-12)


def test_the_same_nonfinite_values_are_equal_and_others_are_not() -> None:
    nan, inf = math.nan, math.inf
    oracle = [nan, inf, -inf, inf, nan, inf, 1.0, 2.0]
    subject = [nan, inf, -inf, -inf, inf, 3.0, nan, 2.5]
    found = vector(oracle, subject)
    assert (found.nonfinite_oracle, found.nonfinite_subject, found.nonfinite_mismatch) == (6, 6, 4)
    assert found.nonfinite_json() == {"oracle": 6, "subject": 6, "mismatch": 4}
    assert (found.compared, found.max_abs, found.at) == (1, 0.5, (7,))


@pytest.mark.falsify_bisect_001
def test_nothing_finite_is_no_agreement() -> None:
    found = vector([math.nan, math.inf], [math.nan, math.inf])
    assert (found.compared, found.at, found.where, found.nonfinite_mismatch) == (0, None, "", 0)
    figures = (found.cosine, found.rel_l2, found.norm_ratio, found.max_abs)
    assert all(math.isnan(figure) for figure in figures)
    assert found.per["channel"].worst is None
    assert found.cosine_without == {}


def test_a_token_that_holds_only_nan_has_no_figure_and_the_others_have() -> None:
    oracle, subject = random_pair(4, 64)
    oracle[2] = subject[2] = np.nan
    found = compare_arrays(oracle, subject, TOKEN_CHANNEL)
    assert np.flatnonzero(np.isnan(found.per["token"].rel_l2)).tolist() == [2]
    assert found.per["token"].worst in (0, 1, 3)
    assert not np.isnan(found.per["channel"].rel_l2).any()


@pytest.mark.parametrize(("size", "dtype"), [(3e38, np.float32), (1e-38, np.float32), (1e300, np.float64)])
@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_values_neither_overflow_nor_vanish(size: float, dtype: npt.DTypeLike, sign: int) -> None:
    found = vector([0.3 * size, 0.4 * size], [sign * 0.4 * size, sign * 0.3 * size], dtype)
    assert found.cosine == pytest.approx(sign * 24 / 25, rel=1e-4)
    assert found.oracle_norm == pytest.approx(0.5 * size, rel=1e-4)
    assert found.max_abs == pytest.approx(0.1 * size if sign > 0 else 0.7 * size, rel=1e-3)


def test_tiny_f64_values_are_not_taken_for_zero() -> None:
    found = vector([3e-200, 0], [0, 3e-200], np.float64)
    assert found.cosine == pytest.approx(0.0, abs=1e-15)
    assert found.rel_l2 == pytest.approx(math.sqrt(2), rel=1e-14)


def test_a_norm_beyond_f64_is_infinite_and_the_cosine_is_right_nevertheless() -> None:
    found = vector([1.7e308] * 4, [1e200] * 4, np.float64)
    assert found.oracle_norm == math.inf
    assert found.cosine == pytest.approx(1.0, abs=1e-15)


# --- refusals, formats, promises --------------------------------------------------------------------


@pytest.mark.falsify_bisect_001
def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(TraceError, match="nothing to compare"):
        compare_arrays(np.empty((0, 5), np.float32), np.empty((0, 5), np.float32), TOKEN_CHANNEL)


def test_different_shapes_are_refused() -> None:
    with pytest.raises(TraceError) as caught:
        compare_arrays(np.ones((2, 3)), np.ones((3, 2)), TOKEN_CHANNEL)
    assert "[3, 2]" in caught.value.what
    assert "[2, 3]" in caught.value.expected


def test_axes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TraceError, match="shape is"):
        compare_arrays(np.ones((2, 3)), np.ones((2, 3)), VECTOR)
    with pytest.raises(TraceError, match="last axis"):
        compare_arrays(np.ones((2, 3)), np.ones((2, 3)), axes_of("q_post_rope", GEOMETRY))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_number_format_is_read(dtype: npt.DTypeLike) -> None:
    assert vector([1, 2, 3], [1, 2, 4], dtype).rel_l2 == pytest.approx(1 / math.sqrt(14), rel=1e-15)


def test_a_read_only_memory_map_and_a_transposed_view_are_compared(tmp_path: Path) -> None:
    oracle, subject = random_pair(9, 11)
    (tmp_path / "o").write_bytes(oracle.tobytes())
    mapped = np.memmap(tmp_path / "o", np.float32, "r", shape=(9, 11))
    found = compare_arrays(mapped, np.asfortranarray(subject), TOKEN_CHANNEL)
    assert found.to_json() == compare_arrays(oracle, subject, TOKEN_CHANNEL).to_json()


def test_the_result_does_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle, subject = random_pair(1500, 5003)
    subject[700, 11] = np.inf
    results = []
    for threads in (1, 2, 3, 7):
        monkeypatch.setattr(sums, "_MAX_THREADS", threads)
        monkeypatch.setattr(sums.os, "cpu_count", lambda: 8)
        found = compare_arrays(oracle, subject, TOKEN_CHANNEL)
        channels = found.per["channel"]
        results.append((found.to_json(), found.cosine_without, channels.rel_l2.tobytes()))
    assert all(result == results[0] for result in results)


def test_json_has_the_keys_of_the_schema_and_no_number_that_json_lacks() -> None:
    found = vector([0, 0], [1, 2]).to_json()
    assert list(found) == ["cosine", "rel_l2", "norm_ratio", "max_abs", "at"]
    assert found["rel_l2"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "cosine": 0.0,
        "rel_l2": None,
        "norm_ratio": None,
        "max_abs": 2.0,
        "at": [1],
    }


# --- real data --------------------------------------------------------------------------------------


def test_a_real_fault_that_no_cosine_sees_is_sized() -> None:
    # tests/data/README.md: layer 0's norm weight x 1.01 in the file that the real apr ran.
    base, faulty = (
        read_aprt(DATA / "apr-tiny-qwen2" / run / "layer-0" / "attn_norm.bin").values.reshape(6, -1)
        for run in ("base", "norm-scaled")
    )
    found = compare_arrays(base, faulty, axes_of("attn_norm", GEOMETRY))
    assert found.cosine > 0.9999999
    assert found.rel_l2 == pytest.approx(0.01, abs=2e-4)  # 0.0101: f16 weights round
    assert found.norm_ratio == pytest.approx(1.01, abs=2e-4)
