"""The table of model families, held against transformers' own models."""

from __future__ import annotations

import pytest
import torch
import transformers

from apr_falsify.errors import UnknownFamilyError
from apr_falsify.families import FAMILIES, Family, family, family_of_gguf, family_of_model_type
from apr_falsify.geometry import geometry_of_config
from apr_falsify.weights import ROLE_AXES
from tests.unit.helpers import CONFIG, KNOBS, roles_of, small_geometry


@pytest.mark.parametrize("knobs", KNOBS.values(), ids=list(KNOBS))
def test_weight_names_and_shapes_are_those_of_transformers(knobs: dict[str, object]) -> None:
    geometry = small_geometry(**knobs)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**{**CONFIG, **knobs})
        )
    theirs = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    dims = {**geometry.dims(1), "head_dim": geometry.head_dim}
    ours = {
        geometry.row.weights[role].format(n=layer): tuple(dims[axis] for axis in ROLE_AXES[role])
        for role, layer in roles_of(geometry)
    }
    assert ours == theirs


@pytest.mark.parametrize("row", FAMILIES, ids=lambda row: row.name)
def test_a_family_is_found_by_each_of_its_names(row: Family) -> None:
    assert family(row.name) is row
    assert all(family_of_model_type(name) is row for name in row.model_types)
    assert all(family_of_gguf(name) is row for name in row.gguf_architectures)


@pytest.mark.parametrize("row", FAMILIES, ids=lambda row: row.name)
def test_both_name_tables_have_the_same_roles_and_every_role_a_shape(row: Family) -> None:
    assert row.gguf_weights.keys() == (row.weights.keys() if row.gguf_weights else set())
    assert row.gguf_weights or not row.gguf_architectures
    assert row.weights.keys() <= ROLE_AXES.keys()


@pytest.mark.parametrize("row", FAMILIES, ids=lambda row: row.name)
def test_gguf_names_are_those_of_the_gguf_package(row: Family) -> None:
    import gguf

    for architecture in row.gguf_architectures:
        kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
        known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[kind]}
        names = {name.rpartition(".")[0].replace("{n}", "{bid}") for name in row.gguf_weights.values()}
        assert names <= known


@pytest.mark.parametrize("lookup", [family, family_of_model_type, family_of_gguf])
def test_an_unknown_family_is_refused_with_the_list_of_known_ones(lookup) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UnknownFamilyError) as refusal:
        lookup("qwen22")
    assert "'qwen22'" in refusal.value.what
    assert "llama" in refusal.value.expected
    assert "qwen3" in refusal.value.expected
    assert "'qwen2'" in refusal.value.remedy


def test_the_refusal_of_an_unknown_family_names_the_file() -> None:
    with pytest.raises(UnknownFamilyError) as refusal:
        geometry_of_config({**CONFIG, "model_type": "rwkv"}, "somewhere/config.json")
    assert refusal.value.where == "somewhere/config.json"
    assert "families.py" in refusal.value.remedy
