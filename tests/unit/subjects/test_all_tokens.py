"""A port that keeps the routing of every token, and one output of all tokens, is judged by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from apr_falsify.compare.bisection import Kind
from apr_falsify.compare.layout import canonical
from apr_falsify.compare.localise import bisect
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import Key
from apr_falsify.operators.routing import best
from apr_falsify.subjects.embedded import capture
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.recorded import open_recorded
from apr_falsify.traces.capture import MemorySink
from apr_falsify.traces.trace import Trace
from tests.checkpoints import make_checkpoint
from tests.unit.oracle.requests import request_for

TOKENS = 10
PORTS: Mapping[str, tuple[str, dict[str, Any], set[str], str]] = {
    "right": ("glm4_moe", {}, set(), ""),
    "scale left out": ("glm4_moe", {"routed_scale": 1.0}, {"moe_router"}, "routed-scale"),
    "shared expert dropped": (
        "qwen2_moe",
        {"shared_intermediate": 0, "shared_gated": False},
        {"ffn_out"},
        "shared-expert",
    ),
}
"""Port -> recipe, how its geometry differs, the stages that are wrong in every mixture, and the cause."""


def run(model: Model, changes: Mapping[str, Any]) -> Trace:
    geometry = replace(model.geometry, **changes)
    other = replace(model, geometry=geometry, weights=replace(model.weights, geometry=geometry))
    return capture(other, request_for(other, tokens=TOKENS), MemorySink())


def written(trace: Trace, folder: Path, layout: tuple[str, ...] = ()) -> Path:
    """Write a run as a port does that keeps [tokens, k] weights and experts and one output of all tokens."""
    arrays = {key: canonical(array, key, trace.geometry, TOKENS) for key, array in trace.stages.items()}
    shown: dict[str, Any] = {"ids": np.asarray(trace.tokens)}
    stages: dict[str, Any] = {}
    for (layer, name), values in arrays.items():
        mixed = trace.geometry.is_mixture(layer)
        if name.startswith("router") or (mixed and name == "ffn_out"):
            continue
        where = name if layer is None else f"L{layer}.{name}"
        stages[name] = {"from": where if layer is None else f"L{{layer}}.{name}"}
        if name.startswith("moe"):
            stages[name]["axes"] = ["tokens", "hidden" if name == "moe_ffn_out" else "chosen_experts"]
            values = _of_every_token(name, layer, arrays, trace)
        if name == "moe_router" and layout:
            stages[name]["layout"] = list(layout)
            values = values / np.float32(trace.geometry.routed_scale)
        shown[where] = values
    folder.mkdir()
    np.savez(folder / "port.npz", **shown)
    said = {"schema": "apr-falsify/mapping/v1", "runtime": "port", "dtype": "f32", "tokens": "ids"}
    (folder / "MAPPING.yaml").write_text(yaml.safe_dump({**said, "stages": stages}))
    return folder / "port.npz"


def _of_every_token(name: str, layer: int | None, arrays: Mapping[Key, Any], trace: Trace) -> Any:
    if name == "moe_ffn_out":
        return arrays[Key(layer, "ffn_out")]
    weights = arrays[Key(layer, "router_weights")]
    chosen = best(weights, trace.geometry.experts_per_token)
    return chosen if name.endswith("indices") else np.take_along_axis(weights, chosen, axis=-1)


@pytest.mark.parametrize("port", PORTS)
def test_arrays_of_every_token_serve_the_stages_of_the_last_one_and_of_all(port: str, tmp_path: Path) -> None:
    recipe, changes, wrong, cause = PORTS[port]
    model = open_model(make_checkpoint(tmp_path / "model", recipe))
    path = written(run(model, changes), tmp_path / "port")
    subject = open_recorded(Target(path=path, model=model)).trace
    assert {"router_weights", "ffn_out"} <= {key.stage for key in subject.stages if key.layer == 2}
    found = bisect(run(model, {}), subject, weights=model.weights)
    mixtures = {layer for layer in range(3) if model.geometry.is_mixture(layer)}
    assert {(each.layer, *each.stages) for each in found.sources} == {
        (layer, stage) for layer in mixtures for stage in wrong
    }
    assert {each.cause and each.cause[0] for each in found.sources} == ({cause} if wrong else set())
    assert found.kind is (Kind.LOCALISED if wrong else Kind.CONSISTENT)
    assert wrong or not found.findings


def test_weights_that_are_said_to_be_before_their_scale_are_read_so(tmp_path: Path) -> None:
    model = open_model(make_checkpoint(tmp_path / "model", "glm4_moe"))
    path = written(run(model, {}), tmp_path / "port", layout=("before-scale",))
    subject = open_recorded(Target(path=path, model=model)).trace
    found = bisect(run(model, {}), subject, weights=model.weights)
    assert (found.kind, found.findings) == (Kind.CONSISTENT, ())
