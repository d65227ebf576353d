"""Geometry from GGUF metadata: that of the config it was converted from; absurd ones refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from apr_falsify.errors import GeometryError
from apr_falsify.model.geometry import geometry_of_gguf
from apr_falsify.model.rope import Rope
from tests.unit.helpers import KNOBS, small_geometry

GGUF: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.embedding_length": 16,
    "llama.feed_forward_length": 24,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 5e5,
    "llama.rope.dimension_count": 4,
}
TENSORS = {"token_embd.weight": (32, 16), "output.weight": (32, 16)}


def test_gguf_metadata_gives_the_same_geometry_as_the_config() -> None:
    assert geometry_of_gguf(GGUF, TENSORS) == small_geometry(rope_theta=5e5)


def test_gguf_tensors_tell_ties_and_biases() -> None:
    tensors = {
        "token_embd.weight": (32, 16),
        "blk.0.attn_q.bias": (16,),
        "blk.0.attn_output.bias": (16,),
        "blk.0.ffn_up.bias": (24,),
    }
    expected = small_geometry(**KNOBS["llama-biased"], rope_theta=5e5)
    assert geometry_of_gguf(GGUF, tensors) == expected


def test_gguf_rope_scaling() -> None:
    linear = {**GGUF, "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert geometry_of_gguf(linear, TENSORS).rope == Rope(
        theta=5e5, kind="linear", parameters={"factor": 4.0}
    )
    yarn = {
        **linear,
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.original_context_length": 32,
        "llama.rope.scaling.yarn_beta_fast": 16.0,
    }
    parameters = {"factor": 4.0, "original_max_position_embeddings": 32.0, "beta_fast": 16.0}
    assert geometry_of_gguf(yarn, TENSORS).rope.parameters == parameters
    divided = geometry_of_gguf(GGUF, TENSORS, {"rope_freqs": (1.0, 8.0)}).rope
    assert (divided.kind, divided.divisors) == ("divided", (1.0, 8.0))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"general.architecture": None}, "general.architecture"),
        ({"llama.block_count": None}, "unusable value|block_count|layers"),
        ({"llama.block_count": 10**9}, "layers is"),
        ({"llama.attention.head_count": 0, "llama.rope.dimension_count": 16}, "heads is"),
        ({"llama.attention.head_count": 4.0}, "head_count"),
        ({"llama.embedding_length": "16"}, "embedding_length"),
        ({"llama.attention.layer_norm_rms_epsilon": math.inf}, "norm_eps"),
        ({"llama.rope.freq_base": math.nan}, "freq_base"),
        ({"llama.rope.dimension_count": 2}, "dimension_count"),
        ({"llama.attention.value_length": 2}, "value_length"),
        ({"llama.rope.scaling.type": "longrope"}, "longrope"),
        ({"llama.rope.scaling.type": 3}, "scaling.type"),
    ],
)
def test_unusable_gguf_metadata_is_refused_by_name(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(GeometryError, match=what) as refusal:
        geometry_of_gguf({**GGUF, **changes}, TENSORS, where="x.gguf")
    assert refusal.value.where == "x.gguf"


@pytest.mark.parametrize("key", [key for key in GGUF if key != "general.architecture"])
def test_a_missing_gguf_key_is_refused_or_has_its_default(key: str) -> None:
    values = {name: value for name, value in GGUF.items() if name != key}
    if key.rpartition(".")[2] in ("head_count_kv", "freq_base", "dimension_count"):
        geometry_of_gguf(values, TENSORS)
    else:
        with pytest.raises(GeometryError, match=f"has no '{key.removeprefix('llama.')}'"):
            geometry_of_gguf(values, TENSORS)


@pytest.mark.parametrize("divisors", [(1.0,), (1.0, 0.0), (1.0, math.nan), (1.0, -2.0)])
def test_rope_divisors_that_divide_nothing_are_refused(divisors: tuple[float, ...]) -> None:
    with pytest.raises(GeometryError, match="divisor"):
        geometry_of_gguf(GGUF, TENSORS, {"rope_freqs": divisors})


@pytest.mark.parametrize("shape", [(), (0,), (10**9, 16)])
def test_an_absurd_gguf_vocabulary_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(GeometryError, match="vocab"):
        geometry_of_gguf(GGUF, {"token_embd.weight": shape})
