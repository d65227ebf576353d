"""Checkpoints drawn as blocks: they are what their geometry says, with the spread of trained weights."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from apr_falsify.exam.material import BLUEPRINTS
from apr_falsify.exam.wide import write_wide
from apr_falsify.formats.weights import open_model
from apr_falsify.model.geometry import geometry_of_config

# The wide blueprint's layout at a size that a test can read whole.
SMALL = {
    **BLUEPRINTS["qwen2-wide"].config,
    "hidden_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 768,
}


def test_the_wide_blueprint_has_the_width_of_qwen2_5_7b() -> None:
    geometry = geometry_of_config(BLUEPRINTS["qwen2-wide"].config)
    assert (geometry.layers, geometry.hidden, geometry.intermediate) == (2, 3584, 18944)
    assert (geometry.heads, geometry.kv_heads, geometry.head_dim) == (28, 4, 128)


@pytest.mark.parametrize("kind", BLUEPRINTS["qwen2-wide"].kinds)
def test_a_drawn_file_has_its_geometry_and_the_spread_of_trained_weights(tmp_path: Path, kind: str) -> None:
    wanted = geometry_of_config(SMALL)
    model = open_model(write_wide(tmp_path / "wide.gguf", wanted, kind, seed=3))
    geometry = model.geometry
    assert (geometry.layers, geometry.hidden, geometry.heads) == (2, 512, 4)
    assert model.weights.tensor("q", 1).type == kind
    assert model.weights.tensor("down", 1).type == ("q6_k" if kind == "q4_k" else kind)
    gate = model.weights.tensor("gate", 0).rows(0, 768)
    assert np.std(gate) == pytest.approx(512**-0.5, rel=0.1)
    assert abs(np.mean(gate)) < 0.1 * np.std(gate)
    assert np.std(model.weights.vector("k_bias", 0)) == pytest.approx(20, rel=0.2)


def test_the_channels_of_the_residual_stream_have_a_few_massive_ones(tmp_path: Path) -> None:
    model = open_model(write_wide(tmp_path / "wide.gguf", geometry_of_config(SMALL), "q4_k", seed=3))
    down = np.std(model.weights.tensor("down", 0).rows(0, 512), axis=1)
    embed = np.std(model.weights.tensor("embed").rows(0, 512), axis=0)
    for spread in (down, embed):
        assert 1 <= np.count_nonzero(spread > 6 * np.median(spread)) <= 512 // 64


def test_another_decoder_of_the_format_reads_the_same_file(tmp_path: Path) -> None:
    path = write_wide(tmp_path / "wide.gguf", geometry_of_config(SMALL), "q4_k", seed=3)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    held = tensors["blk.1.attn_q.weight"]
    theirs = gguf.quants.dequantize(held.data, held.tensor_type)
    ours = open_model(path).weights.tensor("q", 1).rows(0, 512)
    np.testing.assert_array_equal(ours, theirs)


def test_equal_seeds_give_equal_files_and_others_do_not(tmp_path: Path) -> None:
    geometry = geometry_of_config(SMALL)
    first, again, other = (
        write_wide(tmp_path / f"{at}.gguf", geometry, "q8_0", seed).read_bytes()
        for at, seed in enumerate((3, 3, 4))
    )
    assert first == again != other


def test_a_changed_tensor_replaces_the_drawn_one_alone(tmp_path: Path) -> None:
    geometry = geometry_of_config(SMALL)
    norm = np.full(512, 1.5, np.float32)
    path = write_wide(tmp_path / "wide.gguf", geometry, "q4_k", 3, changed={("attn_norm", 1): norm})
    sound = open_model(write_wide(tmp_path / "sound.gguf", geometry, "q4_k", 3)).weights
    weights = open_model(path).weights
    np.testing.assert_array_equal(weights.vector("attn_norm", 1), norm)
    np.testing.assert_array_equal(weights.vector("attn_norm", 0), sound.vector("attn_norm", 0))
    np.testing.assert_array_equal(
        weights.tensor("down", 1).rows(0, 512), sound.tensor("down", 1).rows(0, 512)
    )
