"""Weights by role from GGUF: values as the gguf package decodes them, rotary pairs put back in order."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_falsify.errors import GeometryError, ModelError
from apr_falsify.formats.views import HalfSplit, ViewedTensor
from apr_falsify.formats.weights import open_model
from apr_falsify.model.families import family_of
from tests.support import DATA
from tests.unit.gguf_models import (
    QUANTISABLE,
    converted,
    metadata_of,
    permuted_by_llama_cpp,
    random_blocks,
    write_gguf,
)
from tests.unit.helpers import KNOBS, TINY, plain, roles_of, small_geometry, whole

REAL = DATA / "apr-tiny-qwen2" / "base-q4k.gguf"


@pytest.mark.parametrize("row", range(0, 40, 5))
def test_a_real_q4_k_file_is_dequantised_as_the_gguf_package_does(row: int) -> None:
    tensors = gguf.GGUFReader(REAL).tensors
    ours = open_model(REAL).weights.tensors
    for theirs in tensors[row : row + 5]:
        expected = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
        np.testing.assert_array_equal(whole(ours[theirs.name]), expected)


def test_a_real_q4_k_file_is_near_the_checkpoint_it_came_from() -> None:
    ours, original = open_model(REAL).weights, open_model(TINY).weights
    for role, layer in roles_of(original.geometry):
        values, reference = whole(ours.tensor(role, layer)), whole(original.tensor(role, layer))
        assert np.linalg.norm(values - reference) <= 0.12 * np.linalg.norm(reference), role


@pytest.mark.parametrize("scale", [0x7C00, 0xFC00, 0x7E00], ids=["inf", "-inf", "nan"])
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q6_K", "Q8_0"])
def test_a_block_without_a_finite_scale_is_read_without_a_warning(
    tmp_path: Path, kind: str, scale: int
) -> None:
    """What such values mean is for the comparison to say; warnings are errors here."""
    geometry = small_geometry(hidden_size=256, head_dim=4)
    raw = np.full(random_blocks((geometry.vocab, 256), kind).shape, 0x11, np.uint8)
    raw[:, 0::2], raw[:, 1::2] = scale & 0xFF, scale >> 8
    path = write_gguf(
        tmp_path / "x.gguf", {"token_embd.weight": raw}, metadata_of(geometry), {"token_embd.weight": kind}
    )
    assert not np.isfinite(whole(open_model(path).weights.tensor("embed"))).all()


@pytest.mark.parametrize("kind", [*QUANTISABLE, "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
def test_every_type_is_dequantised_as_the_gguf_package_does(tmp_path: Path, kind: str) -> None:
    geometry = small_geometry(hidden_size=256, head_dim=4)
    shape = (geometry.vocab, 256)
    ggml = gguf.GGMLQuantizationType[kind]
    if kind in QUANTISABLE:
        raw = gguf.quants.quantize(np.random.default_rng(3).normal(size=shape).astype(np.float32), ggml)
    else:
        raw = random_blocks(shape, kind)
    path = write_gguf(
        tmp_path / "x.gguf", {"token_embd.weight": raw}, metadata_of(geometry), {"token_embd.weight": kind}
    )
    tensor = open_model(path).weights.tensor("embed")
    expected = gguf.quants.dequantize(raw, ggml)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(whole(tensor), expected)
    for start, stop in ((0, 1), (3, 8), (31, 32), (5, 5)):
        np.testing.assert_array_equal(tensor.rows(start, stop), expected[start:stop])


def test_a_quantised_vector_is_decoded_by_element(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=64).astype(np.float32)
    raw = gguf.quants.quantize(values[None], gguf.GGMLQuantizationType.Q8_0)
    tensors = {"token_embd.weight": np.zeros((32, 64), np.float32), "output_norm.weight": raw[0]}
    metadata = metadata_of(small_geometry(hidden_size=64, head_dim=4))
    path = write_gguf(tmp_path / "x.gguf", tensors, metadata, {"output_norm.weight": "Q8_0"})
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.Q8_0)[0]
    weights = open_model(path).weights
    np.testing.assert_array_equal(weights.vector("final_norm"), expected)
    np.testing.assert_array_equal(weights.tensor("final_norm").rows(7, 9), expected[7:9])


def test_a_type_that_cannot_be_dequantised_is_refused_by_name(tmp_path: Path) -> None:
    tensors = {
        "token_embd.weight": np.zeros((32, 16), np.float32),
        "output_norm.weight": np.zeros(16, np.int32),
    }
    path = write_gguf(tmp_path / "x.gguf", tensors, metadata_of(small_geometry()))
    with pytest.raises(ModelError, match=r"output_norm\.weight has type i32"):
        open_model(path).weights.vector("final_norm")


@pytest.mark.parametrize("name", ["llama", "llama-biased", "qwen2", "qwen3"])
def test_a_converted_model_gives_back_every_tensor_of_the_original(tmp_path: Path, name: str) -> None:
    path, original = converted(tmp_path / "x.gguf", **KNOBS[name])
    model = open_model(path)
    geometry = model.geometry
    assert geometry == small_geometry(**KNOBS[name], rms_norm_eps=geometry.norm_eps)
    for role, layer in roles_of(geometry):
        data = original[family_of(geometry).weights[role].format(n=layer)]
        np.testing.assert_array_equal(whole(model.weights.tensor(role, layer)), data)


@given(
    heads=st.integers(1, 5),
    pairs=st.integers(1, 4),
    width=st.integers(1, 3),
    span=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_any_rows_of_an_interleaved_projection_are_those_of_the_original(
    heads: int, pairs: int, width: int, span: tuple[int, int]
) -> None:
    rows = heads * pairs * 2
    original = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    base = plain(permuted_by_llama_cpp(original, heads))
    tensor = ViewedTensor(base=base, view=HalfSplit(head_dim=2 * pairs))
    start, stop = sorted(min(bound, rows) for bound in span)
    np.testing.assert_array_equal(tensor.rows(start, stop), original[start:stop])


@given(heads=st.integers(1, 5), pairs=st.integers(1, 4))
def test_an_interleaved_bias_is_put_back_in_order(heads: int, pairs: int) -> None:
    original = np.arange(heads * pairs * 2, dtype=np.float32)
    base = plain(permuted_by_llama_cpp(original, heads))
    tensor = ViewedTensor(base=base, view=HalfSplit(head_dim=2 * pairs))
    np.testing.assert_array_equal(whole(tensor), original)


def test_rope_divisors_become_part_of_the_geometry(tmp_path: Path) -> None:
    tensors = {
        "token_embd.weight": np.zeros((32, 16), np.float32),
        "rope_freqs.weight": np.array([1.0, 8.0], np.float32),
    }
    model = open_model(write_gguf(tmp_path / "x.gguf", tensors, metadata_of(small_geometry())))
    assert model.geometry.rope.divisors == (1.0, 8.0)


def test_rope_divisors_with_two_axes_are_refused(tmp_path: Path) -> None:
    tensors = {
        "token_embd.weight": np.zeros((32, 16), np.float32),
        "rope_freqs.weight": np.ones((2, 2), np.float32),
    }
    path = write_gguf(tmp_path / "x.gguf", tensors, metadata_of(small_geometry()))
    with pytest.raises(GeometryError, match="rope_freqs"):
        open_model(path)


def test_a_gguf_without_an_embedding_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", {"a": np.zeros(1, np.float32)}, metadata_of(small_geometry()))
    with pytest.raises(GeometryError, match=r"token_embd\.weight"):
        open_model(path)
