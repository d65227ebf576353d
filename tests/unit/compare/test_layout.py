"""Layouts undone, and what happens where they are not: the traps of real runtimes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import apr_falsify
from apr_falsify.compare.layout import aligned, canonical
from apr_falsify.compare.metrics import Metrics, compare_arrays
from apr_falsify.errors import TraceError
from apr_falsify.formats.aprt import read_aprt
from apr_falsify.formats.weights import open_model
from apr_falsify.model.rope import Rope
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import ATTENTION_CHAIN, STAGES, Key, Layout, Scope, canonical_shape
from apr_falsify.operators.rotation import rotate
from apr_falsify.subjects import embedded
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import StageArray
from tests.support import DATA

Array = npt.NDArray[np.float32]
Stages = Mapping[tuple[int | None, str], StageArray]

TINY = open_model(Path(apr_falsify.__file__).parent / "data" / "tiny-qwen2")
APR_TOKENS = (274, 272, 332, 13, 20, 33)
HF_TOKENS = (274, 272, 223, 20, 13, 20, 33)

S, H, K, D = 3, 4, 2, 6
SMALL = Geometry(
    family="llama",
    layers=1,
    hidden=10,
    heads=H,
    kv_heads=K,
    head_dim=D,
    intermediate=8,
    vocab=16,
    norm_eps=1e-5,
    rope=Rope(theta=1e4),
)
SMOLLM2 = Geometry(
    family="llama",
    layers=30,
    hidden=576,
    heads=9,
    kv_heads=3,
    head_dim=64,
    intermediate=1536,
    vocab=49152,
    norm_eps=1e-5,
    rope=Rope(theta=1e5),
)


def stage(data: npt.ArrayLike, *layout: Layout) -> StageArray:
    return StageArray(data=np.asarray(data), layout=layout)


def key(name: str) -> Key:
    return Key(None if STAGES[name].scope is Scope.MODEL else 0, name)


def numbered(*shape: int) -> Array:
    return np.arange(math.prod(shape), dtype=np.float32).reshape(shape)


def of_tiny(tokens: tuple[int, ...]) -> Stages:
    request = Request(tokens=tokens, layers=range(TINY.geometry.layers), stages=tuple(STAGES))
    return embedded.capture(TINY, request, MemorySink(), dtype="f32").stages


def head_major(data: Array, head_dim: int) -> Array:
    """[S, heads * D] as transformers stores it, [heads, S, D], spelled out without a transposition."""
    heads = data.shape[1] // head_dim
    return np.stack([data[:, head * head_dim : (head + 1) * head_dim] for head in range(heads)])


def compare(name: str, oracle: StageArray, subject: StageArray, geometry: Geometry, tokens: int) -> Metrics:
    pair = aligned(key(name), oracle, subject, geometry, tokens)
    return compare_arrays(pair.oracle, pair.subject, pair.axes)


# --- each word --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["attn_norm", "qkv_matmul", "attn_scores", "attention", "lm_head"])
def test_what_is_canonical_is_not_copied(name: str) -> None:
    data = numbered(*canonical_shape(name, SMALL.dims(S)))
    data.flags.writeable = False
    found = canonical(stage(data), key(name), SMALL, S)
    assert np.shares_memory(found, data)
    np.testing.assert_array_equal(found, data)


@pytest.mark.parametrize(("name", "heads"), [("q_post_rope", H), ("k_post_rope", K), ("qkv_bias", H + 2 * K)])
def test_head_major_becomes_token_major(name: str, heads: int) -> None:
    data = numbered(S, heads * D)
    found = canonical(stage(head_major(data, D), Layout.HEAD_MAJOR), key(name), SMALL, S)
    np.testing.assert_array_equal(found, data)


def test_interleaved_pairs_become_half_split() -> None:
    # One head of D = 6: a pair's first halves 0, 1, 2 come first, then its second halves.
    data = np.tile(np.array([0, 100, 1, 101, 2, 102], np.float32), (S, H))
    found = canonical(stage(data, Layout.INTERLEAVED), key("q_post_rope"), SMALL, S)
    np.testing.assert_array_equal(found, np.tile([0, 1, 2, 100, 101, 102], (S, H)))


def test_v_keeps_its_columns_where_q_and_k_are_interleaved() -> None:
    data = numbered(S, (H + 2 * K) * D)
    found = canonical(stage(data, Layout.INTERLEAVED), key("qkv_matmul"), SMALL, S)
    rotary = (H + K) * D
    np.testing.assert_array_equal(found[:, rotary:], data[:, rotary:])
    np.testing.assert_array_equal(found[0, rotary - D : rotary] - data[0, rotary - D], [0, 2, 4, 1, 3, 5])
    assert data[0, 1] == 1, "the captured data must stay as they are"


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_half_split_rotation_is_the_interleaved_rotation_in_another_order(seed: int, tokens: int) -> None:
    # Independent of the code under test: pairs turned in place as complex numbers (Su et al. 2021).
    x = np.random.default_rng(seed).standard_normal((tokens, H, D // 2, 2))
    angles = np.outer(np.arange(tokens), 1e4 ** -(np.arange(0, D, 2) / D))
    turned = (x[..., 0] + 1j * x[..., 1]) * np.exp(1j * angles)[:, None, :]
    stored = np.stack((turned.real, turned.imag), axis=-1).reshape(tokens, H * D)
    before = canonical(stage(x.reshape(tokens, H * D), Layout.INTERLEAVED), key("q_post_rope"), SMALL, tokens)
    after = canonical(stage(stored, Layout.INTERLEAVED), key("q_post_rope"), SMALL, tokens)
    np.testing.assert_allclose(after, rotate(before, SMALL.rope, D), atol=1e-12)


def test_unscaled_scores_are_divided_by_the_root_of_the_head_dim() -> None:
    data = numbered(H, S, S)
    found = canonical(stage(data, Layout.UNSCALED), key("attn_scores"), SMALL, S)
    np.testing.assert_allclose(found, data.astype(np.float64) / math.sqrt(6), rtol=1e-15)


def test_padded_keys_are_cut() -> None:
    data = np.full((H, S, 256), np.nan, np.float32)
    data[:, :, :S] = numbered(H, S, S)
    found = canonical(stage(data, Layout.PADDED_KEYS), key("attn_softmax"), SMALL, S)
    np.testing.assert_array_equal(found, numbered(H, S, S))


def test_padded_unscaled_scores_as_llama_cpp_stores_them() -> None:
    data = np.full((H, S, 32), 7, np.float32)
    data[:, :, :S] = numbered(H, S, S) * math.sqrt(D)
    found = canonical(stage(data, Layout.PADDED_KEYS, Layout.UNSCALED), key("attn_scores"), SMALL, S)
    np.testing.assert_allclose(found, numbered(H, S, S), rtol=1e-7)


@pytest.mark.parametrize("shape", [(H, 1, D), (H * D,)])
def test_the_last_token_alone_in_head_major(shape: tuple[int, ...]) -> None:
    data = numbered(*shape)
    found = canonical(stage(data, Layout.HEAD_MAJOR, Layout.LAST_TOKEN), key("q_post_rope"), SMALL, S)
    np.testing.assert_array_equal(found, numbered(H * D))


# --- both sides -------------------------------------------------------------------------------------


def test_scores_that_one_side_zeroes_are_zeroed_on_the_other() -> None:
    full = np.full((H, S, S), np.inf, np.float32)
    full[:, np.tri(S, dtype=bool)] = 5
    zeroed = np.where(np.tri(S, dtype=bool), full, 0).astype(np.float32)
    for sides in (
        (stage(full), stage(zeroed, Layout.CAUSAL_ZEROED)),
        (stage(zeroed, Layout.CAUSAL_ZEROED), stage(full)),
    ):
        pair = aligned(key("attn_scores"), *sides, SMALL, S)
        np.testing.assert_array_equal(pair.oracle, pair.subject)
        assert pair.layout == (Layout.CAUSAL_ZEROED,)


def test_weight_on_the_future_is_not_hidden_by_a_causal_zeroed_softmax() -> None:
    oracle = np.tril(np.ones((H, S, S), np.float32))
    peeking = oracle.copy()
    peeking[1, 0, 2] = 0.5
    pair = aligned(key("attn_softmax"), stage(oracle, Layout.CAUSAL_ZEROED), stage(peeking), SMALL, S)
    assert pair.subject[1, 0, 2] == 0.5
    assert pair.layout == ()


def test_the_last_token_is_compared_with_the_others_last_row() -> None:
    rows = numbered(S, SMALL.hidden)
    for sides in (
        (stage(rows), stage(rows[-1], Layout.LAST_TOKEN)),
        (stage(rows[-1], Layout.LAST_TOKEN), stage(rows)),
    ):
        pair = aligned(key("final_norm"), *sides, SMALL, S)
        found = compare_arrays(pair.oracle, pair.subject, pair.axes)
        assert (found.rel_l2, found.elements) == (0.0, SMALL.hidden)
        assert found.where == "last token, channel 0"
        assert pair.layout == (Layout.LAST_TOKEN,)


def test_the_last_token_on_both_sides_is_compared_as_it_is() -> None:
    row = stage(numbered(SMALL.hidden), Layout.LAST_TOKEN)
    assert aligned(key("final_norm"), row, row, SMALL, S).oracle.shape == (SMALL.hidden,)


def test_the_words_of_both_sides_are_told_once_in_one_order() -> None:
    oracle = stage(head_major(numbered(S, H * D), D), Layout.HEAD_MAJOR)
    subject = stage(numbered(S, H * D), Layout.INTERLEAVED)
    assert aligned(key("q_post_rope"), oracle, subject, SMALL, S).layout == (
        Layout.HEAD_MAJOR,
        Layout.INTERLEAVED,
    )


@pytest.mark.parametrize("word", Layout)
def test_a_word_that_says_nothing_about_a_stage_is_passed_over(word: Layout) -> None:
    logits = stage(numbered(SMALL.vocab), word)
    pair = aligned(key("lm_head"), logits, logits, SMALL, S)
    np.testing.assert_array_equal(pair.oracle, logits.data)
    assert pair.layout == ()


@pytest.mark.parametrize(
    ("name", "shape", "layout"),
    [
        ("attn_norm", (S + 1, 10), ()),
        ("q_post_rope", (H, S, D + 1), (Layout.HEAD_MAJOR,)),
        ("q_post_rope", (S, H * D + 2), (Layout.INTERLEAVED,)),
        ("attn_scores", (H, S, S - 1), (Layout.PADDED_KEYS,)),
        ("final_norm", (S, 10), (Layout.LAST_TOKEN,)),
    ],
)
def test_values_that_do_not_fit_the_layout_are_refused(
    name: str, shape: tuple[int, ...], layout: tuple[Layout, ...]
) -> None:
    with pytest.raises(TraceError) as caught:
        canonical(stage(numbered(*shape), *layout), key(name), SMALL, S)
    assert caught.value.where == name
    assert caught.value.expected


# --- the traps of domain section 4 ------------------------------------------------------------------

APR_LAYOUT = {"attn_scores": (Layout.CAUSAL_ZEROED,), "attn_softmax": (Layout.CAUSAL_ZEROED,)}
HF_LAYOUT = {"q_post_rope": (Layout.HEAD_MAJOR,), "k_post_rope": (Layout.HEAD_MAJOR,)}


def as_apr(stages: Stages, name: str) -> StageArray:
    data = stages[0, name].data
    return stage(np.tril(data) if name == "attn_scores" else data, *APR_LAYOUT.get(name, ()))


def as_hf(stages: Stages, name: str) -> StageArray:
    data = stages[0, name].data
    return stage(head_major(data, 32) if name in HF_LAYOUT else data, *HF_LAYOUT.get(name, ()))


@pytest.mark.falsify_bisect_002
def test_ignored_layouts_show_three_divergences_where_there_is_none() -> None:
    stages = of_tiny(HF_TOKENS)
    # Domain section 4 gives 0.054, 0.55 and 0.745, of another checkpoint; these are of the one carried here.
    measured = {"q_post_rope": 0.1251, "k_post_rope": 0.5299, "attn_scores": 0.7507}
    for name in ATTENTION_CHAIN:
        hf, apr = as_hf(stages, name).data, as_apr(stages, name).data
        raw = np.vdot(hf, apr) / (np.linalg.norm(hf) * np.linalg.norm(apr))
        assert raw == pytest.approx(measured.get(name, 1.0), abs=1e-4)


@pytest.mark.falsify_bisect_002
def test_declared_layouts_show_agreement_in_all_nine_stages() -> None:
    stages = of_tiny(HF_TOKENS)
    for name in ATTENTION_CHAIN:
        found = compare(name, as_hf(stages, name), as_apr(stages, name), TINY.geometry, len(HF_TOKENS))
        assert found.cosine > 0.9999999
        assert found.rel_l2 == 0.0


def test_on_one_token_every_trap_vanishes() -> None:
    stages = of_tiny(HF_TOKENS[:1])
    for name in ATTENTION_CHAIN:
        np.testing.assert_array_equal(as_hf(stages, name).data.ravel(), as_apr(stages, name).data.ravel())


def real_apr_stages(folder: Path) -> dict[tuple[int | None, str], StageArray]:
    """Stage files as the real apr wrote them, with the layout that domain section 3 states."""
    stages = {}
    for path in sorted(folder.rglob("*.bin")):
        file = read_aprt(path)
        shape = canonical_shape(path.stem, TINY.geometry.dims(len(APR_TOKENS)))
        stages[file.layer, path.stem] = stage(file.values.reshape(shape), *APR_LAYOUT.get(path.stem, ()))
    return stages


@pytest.mark.falsify_ffn_sub_001
@pytest.mark.falsify_attn_sub_002
def test_every_stage_of_the_real_apr_agrees_with_the_embedded_runtime() -> None:
    ours = of_tiny(APR_TOKENS)
    theirs = real_apr_stages(DATA / "apr-tiny-qwen2" / "base")
    assert len(theirs) == 54
    assert ours.keys() >= theirs.keys()
    for key, subject in theirs.items():
        found = compare(key[1], ours[key], subject, TINY.geometry, len(APR_TOKENS))
        assert found.cosine > 0.9999999, key
        assert found.rel_l2 < 2e-6, key
        assert found.nonfinite_mismatch == 0, key


def test_the_real_apr_shows_a_trap_where_its_scores_are_taken_for_the_full_square() -> None:
    ours = of_tiny(APR_TOKENS)[0, "attn_scores"].data
    theirs = real_apr_stages(DATA / "apr-tiny-qwen2" / "base")[0, "attn_scores"].data
    found = compare("attn_scores", stage(ours), stage(theirs), TINY.geometry, len(APR_TOKENS))
    assert found.cosine < 0.9


def smollm2(name: str) -> Array:
    return read_aprt(DATA / "apr-smollm2-135m" / "layer-0" / f"{name}.bin").values.reshape(7, -1)


@pytest.mark.parametrize(("name", "first", "heads"), [("q_post_rope", 0, 9), ("k_post_rope", 9 * 64, 3)])
def test_rope_keeps_the_norm_of_real_pairs_only_in_the_order_that_apr_stores(
    name: str, first: int, heads: int
) -> None:
    # SmolLM2 from GGUF, bias-free: apr rotates interleaved pairs, so q|k before and after must agree.
    before = smollm2("qkv_matmul")[:, first : first + heads * 64]
    norms = {}
    for words in ((Layout.INTERLEAVED,), ()):
        sides = (canonical(stage(data, *words), key(name), SMOLLM2, 7) for data in (before, smollm2(name)))
        pairs = [np.hypot(*np.moveaxis(side.reshape(7, heads, 2, 32), 2, 0)) for side in sides]
        norms[words] = np.linalg.norm(pairs[1] - pairs[0]) / np.linalg.norm(pairs[0])
    assert norms[Layout.INTERLEAVED,] < 1e-6
    assert norms[()] > 0.05


@pytest.mark.parametrize(("name", "first", "heads"), [("q_post_rope", 0, 9), ("k_post_rope", 9 * 64, 3)])
def test_real_interleaved_stages_are_rope_of_their_input_once_declared(
    name: str, first: int, heads: int
) -> None:
    qkv = canonical(stage(smollm2("qkv_matmul"), Layout.INTERLEAVED), key("qkv_matmul"), SMOLLM2, 7)
    expected = rotate(qkv[:, first : first + heads * 64].astype(np.float64), SMOLLM2.rope, 64)
    declared = compare(name, stage(expected), stage(smollm2(name), Layout.INTERLEAVED), SMOLLM2, 7)
    assert declared.rel_l2 < 1e-6
    assert compare(name, stage(expected), stage(smollm2(name)), SMOLLM2, 7).cosine < 0.5
