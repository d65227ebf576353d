"""Published configs at full width: the graph names every tensor of transformers' own model, and no other.

The names and shapes are those of the checkpoint that transformers would save of a model on torch's ``meta``
device, which has no weights. The configs are in ``tests/data/published_configs.json``, with their origin.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

from apr_falsify.formats.text_part import names_in
from apr_falsify.model.families import FAMILIES, family_of, family_of_model_type, roles_at, shape_of_role
from apr_falsify.model.geometry import geometry_of_config
from apr_falsify.model.shape import Geometry

Shape = tuple[int, ...]
Config = Mapping[str, Any]

PUBLISHED: Mapping[str, Config] = {
    name: row["config"]
    for name, row in json.loads(
        (Path(__file__).parents[1] / "data" / "published_configs.json").read_text(encoding="utf-8")
    ).items()
}
NOT_ESTABLISHED = {
    "arcee",
    "cwm",
    "exaone_moe",
    "granitemoeshared",
    "helium",
    "internlm3",
    "iquestcoder",
    "jais2",
    "lfm2",
    "lfm2_moe",
    "llama4",
    "ministral",
    "qwen2_5_vl",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_next",
    "qwen3_vl",
    "qwen3_vl_moe",
    "solar_open",
    "vaultgemma",
}
"""Families of which no published config could be read: their tiny checkpoints alone hold names and shapes."""


def test_every_family_has_a_published_config_or_is_listed_without_one() -> None:
    held = {family_of_model_type(config["model_type"]).name for config in PUBLISHED.values()}
    assert held.isdisjoint(NOT_ESTABLISHED)
    assert held | NOT_ESTABLISHED == {family.name for family in FAMILIES}


def of_transformers(config: Config) -> dict[str, Shape]:
    """Return the tensors of the checkpoint that transformers would save of a model of ``config``."""
    words = {key: value for key, value in config.items() if key != "model_type"}
    theirs = transformers.CONFIG_MAPPING[config["model_type"]](**words)
    with torch.device("meta"):
        model = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(theirs)](theirs)
    state = dict(model.state_dict())
    for name in model.all_tied_weights_keys:  # saved once, under the other name
        state.pop(name)
    return {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(model, state).items()}


def parts_of(geometry: Geometry, held: Mapping[str, Shape]) -> Iterator[tuple[str, str, Shape]]:
    """Give each weight that the graph asks for: its tensor of those ``held``, its role, its shape in use."""
    weights = names_in(held, family_of(geometry).weights)
    for layer in (None, *range(geometry.layers)):
        for role in roles_at(geometry, layer):
            kind, _, expert = role.partition(".")
            yield weights[kind].format(n=layer, e=expert), kind, shape_of_role(role, geometry)


def whole(parts: list[tuple[str, Shape]], geometry: Geometry, stored: Shape) -> Shape:
    """Return the shape of the tensor in which these parts lie; of all experts in one by their count alone."""
    family, (role, shape) = family_of(geometry), parts[0]
    if len(stored) > len(shape):  # all experts in one
        return stored if math.prod(stored) == sum(math.prod(each) for _, each in parts) else (len(parts),)
    found = (sum(each[0] for _, each in parts), *shape[1:])
    return found[::-1] if role in family.transposed else found


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_graph_names_every_tensor_of_a_published_model(name: str) -> None:
    geometry, theirs = geometry_of_config(PUBLISHED[name]), of_transformers(PUBLISHED[name])
    ours: dict[str, list[tuple[str, Shape]]] = {}
    for tensor, role, shape in parts_of(geometry, theirs):
        ours.setdefault(tensor, []).append((role, shape))

    assert {each for each in theirs if each not in ours} == set()
    assert {each for each in ours if each not in theirs} == set()
    wrong = {
        each: (whole(parts, geometry, theirs[each]), theirs[each])
        for each, parts in ours.items()
        if whole(parts, geometry, theirs[each]) != theirs[each]
    }
    assert wrong == {}
