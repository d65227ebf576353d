"""The table of model families, held against transformers' own models."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from apr_falsify.errors import GeometryError, ModelError, UnknownFamilyError
from apr_falsify.formats.weights import open_model
from apr_falsify.model.families import (
    FAMILIES,
    family,
    family_of,
    family_of_gguf,
    family_of_model_type,
    roles_at,
    shape_of_role,
)
from apr_falsify.model.family import Family
from apr_falsify.model.geometry import geometry_of_config
from apr_falsify.model.names import ROLE_AXES
from tests.checkpoints import RECIPES, make_checkpoint
from tests.unit.helpers import CONFIG, KNOBS, roles_of, small_geometry


@pytest.mark.parametrize("knobs", KNOBS.values(), ids=list(KNOBS))
def test_weight_names_and_shapes_are_those_of_transformers(knobs: dict[str, object]) -> None:
    geometry = small_geometry(**knobs)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**{**CONFIG, **knobs})
        )
    theirs = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    ours = {
        family_of(geometry).weights[role].format(n=layer): shape_of_role(role, geometry)
        for role, layer in roles_of(geometry)
    }
    assert ours == theirs


@pytest.mark.parametrize("name", RECIPES)
def test_every_tensor_of_a_checkpoint_has_a_role_and_is_read_as_it_is_used(name: str, tmp_path: Path) -> None:
    model = open_model(make_checkpoint(tmp_path, name))
    geometry, weights = model.geometry, model.weights
    sites = [(role, n) for n in [None, *range(geometry.layers)] for role in roles_at(geometry, n)]
    tensors = {site: weights.tensor(*site) for site in sites}

    own = {name: tensor for name, tensor in weights.tensors.items() if ".visual." not in f".{name}"}
    assert {tensor.name for tensor in tensors.values()} == set(own)
    stored = sum(math.prod(tensor.shape) for tensor in own.values())
    assert sum(math.prod(tensor.shape) for tensor in tensors.values()) == stored
    for row in range(3):  # any slice of rows is the same as of the whole
        for tensor in tensors.values():
            whole = tensor.rows(0, tensor.shape[0])
            assert np.array_equal(tensor.rows(row, row + 2), whole[row : row + 2])


def test_a_fused_tensor_of_another_height_is_refused_by_name(tmp_path: Path) -> None:
    model = open_model(make_checkpoint(tmp_path, "phi3"))
    name = model.weights.tensor("k", 0).name
    taller = replace(model.weights.tensors[name], data=np.zeros((300, 96), np.float32))
    weights = replace(model.weights, tensors={**model.weights.tensors, name: taller})
    for role in "qkv":
        with pytest.raises(ModelError, match=r"qkv_proj.weight has the shape \[300, 96\]"):
            weights.tensor(role, 0)


@pytest.mark.parametrize("row", FAMILIES, ids=lambda row: row.name)
def test_a_family_is_found_by_each_of_its_names(row: Family) -> None:
    assert family(row.name) is row
    assert all(family_of_model_type(name) is row for name in row.model_types)
    key, _, value = row.gguf_key.partition("=")
    with_key = {key: int(value or 1)} if key else {}
    assert all(family_of_gguf(name, with_key) is row for name in row.gguf_architectures)


@pytest.mark.parametrize("row", FAMILIES, ids=lambda row: row.name)
def test_both_name_tables_have_the_same_roles_and_every_role_a_shape(row: Family) -> None:
    if row.gguf_weights:  # llama.cpp has no tensor for some biases
        missing = row.weights.keys() - row.gguf_weights.keys()
        assert row.gguf_weights.keys() == row.weights.keys() - missing
        assert all(role.endswith("_bias") for role in missing)
    assert row.gguf_weights or not row.gguf_architectures
    assert row.weights.keys() <= ROLE_AXES.keys()


@pytest.mark.parametrize("row", FAMILIES, ids=lambda row: row.name)
def test_gguf_names_are_those_of_the_gguf_package(row: Family) -> None:
    import gguf

    for architecture in row.gguf_architectures:
        kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
        known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[kind]}
        # A head that is not tied, and the dense layers of a mixture: some architectures never have them.
        known |= {"output", *(f"blk.{{bid}}.ffn_{part}" for part in ("gate", "up", "down"))}
        names = {name.rpartition(".")[0].replace("{n}", "{bid}") for name in row.gguf_weights.values()}
        assert names <= known


@pytest.mark.parametrize("lookup", [family, family_of_model_type, family_of_gguf])
def test_an_unknown_family_is_refused_with_the_list_of_known_ones(lookup) -> None:
    with pytest.raises(UnknownFamilyError) as refusal:
        lookup("qwen22")
    assert "'qwen22'" in refusal.value.what
    assert "llama" in refusal.value.expected
    assert "qwen3" in refusal.value.expected
    assert "did you mean" not in refusal.value.remedy  # a near name is another family, with other formulas


def test_the_refusal_of_an_unknown_family_names_the_file() -> None:
    with pytest.raises(UnknownFamilyError) as refusal:
        geometry_of_config({**CONFIG, "model_type": "rwkv"}, "somewhere/config.json")
    assert refusal.value.where == "somewhere/config.json"
    assert "docs/adding-a-family.md" in refusal.value.remedy


@pytest.mark.parametrize(
    ("family_name", "key", "value"),
    [
        ("cohere", "use_qk_norm", True),
        ("phi", "qk_layernorm", True),
        ("stablelm", "qk_layernorm", True),
        ("olmoe", "clip_qkv", 8.0),
        ("iquestcoder", "use_sliding_window", True),
        ("smollm3", "no_rope_layer_interval", 0),
        ("smollm3", "no_rope_layers", [1]),
        ("gpt_neox", "hidden_act", "quick_gelu"),
        ("mixtral", "num_experts_per_tok", 9),
        ("ernie4_5_moe", "use_bias", True),
        ("glm4_moe", "n_group", 3),
        ("exaone_moe", "mlp_layer_types", ["dense", "moe"]),
        ("granitemoehybrid", "layer_types", ["linear_attention", "sliding_attention"]),
        ("granitemoehybrid", "position_embedding_type", "alibi"),
        ("granitemoehybrid", "mamba_d_head", 7),
        ("granitemoehybrid", "mamba_n_groups", 3),
        ("granitemoehybrid", "time_step_limit", [0.5, 0.1]),
        ("granitemoehybrid", "layer_types", ["linear_attention"] * 3),
        ("qwen3_next", "layer_types", ["linear_attention"] * 3),
        ("nemotron_h", "layers_block_type", ["linear_attention", "moe"]),
        ("nemotron_h", "layers_block_type", ["linear_attention", "mlp", "full_attention"]),
        ("nemotron_h", "layers_block_type", ["linear_attention"]),
        ("nemotron_h", "layers_block_type", None),
        ("nemotron_h", "tie_word_embeddings", True),
        ("nemotron_h", "attention_bias", True),
    ],
)
def test_what_a_family_has_no_formula_for_is_refused_by_its_key(
    family_name: str, key: str, value: object
) -> None:
    sound = {**CONFIG, "model_type": family_name, "hidden_size": 64, "head_dim": 16}
    if family_name == "nemotron_h":
        sound["layers_block_type"] = ["linear_attention", "mlp"]
    geometry_of_config(sound)
    with pytest.raises(GeometryError):
        geometry_of_config({**sound, key: value})


@pytest.mark.parametrize(
    "stated",
    [
        {"hybrid_override_pattern": "M*-"},
        {"layers_block_type": ["mamba", "attention", "mlp"]},
        {"layer_types": ["linear_attention", "full_attention", "mlp"]},
        {"layer_types": ["linear_attention", "full_attention", "mlp"], "hybrid_override_pattern": "M-"},
    ],
)
def test_the_layer_kinds_of_nemotron_h_are_its_layers(stated: dict[str, object]) -> None:
    """As transformers reads them, with their number or without."""
    sound = {**CONFIG, "model_type": "nemotron_h", "hidden_size": 64, "head_dim": 16, **stated}
    theirs = transformers.NemotronHConfig(**stated)
    for counted in ({"num_hidden_layers": 3}, {}):
        uncounted = {key: value for key, value in sound.items() if key != "num_hidden_layers"}
        geometry = geometry_of_config({**uncounted, **counted})
        assert geometry.layers == theirs.num_hidden_layers == 3
        assert [geometry.attends[n] for n in range(3)] == [
            kind == "full_attention" for kind in theirs.layer_types
        ]
        assert [geometry.feeds[n] for n in range(3)] == [kind == "mlp" for kind in theirs.layer_types]
    for pattern in ("ME", "M"):
        with pytest.raises(GeometryError):
            geometry_of_config({**sound, "num_hidden_layers": 2, "hybrid_override_pattern": pattern})
