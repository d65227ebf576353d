"""Layers without attention over passes: right runs are acquitted, a state that is lost is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from apr_falsify.compare.judge import judge
from apr_falsify.compare.localise import bisect
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.passes import Passes
from apr_falsify.model.stages import Key
from apr_falsify.operators.gated_delta import DeltaForm, scanned, sizes_of
from apr_falsify.operators.operator import Array, Inputs
from apr_falsify.oracle.capture import capture
from apr_falsify.subjects import embedded
from apr_falsify.subjects.kernel import RuntimeSite
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace
from tests.checkpoints import make_checkpoint
from tests.unit.oracle.requests import request_for

PASSES = Passes(sizes=(7, 4, 1, 1))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    class Made(dict[str, Model]):
        def __missing__(self, recipe: str) -> Model:
            self[recipe] = open_model(make_checkpoint(tmp_path_factory.mktemp(recipe) / "model", recipe))
            return self[recipe]

    return Made()


def in_passes(model: Model) -> Request:
    return replace(request_for(model, tokens=PASSES.tokens), in_passes=PASSES)


def worst(trace: Trace, model: Model) -> dict[Key, float]:
    found = judge(trace, model.weights, list(trace.stages))
    return {key: entry.fit.excess for key, entry in found.items() if entry.fit is not None}


@pytest.mark.parametrize("recipe", ["qwen3_next", "lfm2", "llama4_text", "granitemoehybrid", "nemotron_h"])
def test_a_run_with_a_cache_is_within_its_floor(recipe: str, models: dict[str, Model]) -> None:
    model, request = models[recipe], in_passes(models[recipe])
    oracle = capture(model, request, MemorySink(), dtype="f32")
    own = embedded.capture(model, request, MemorySink())
    for trace in (oracle, own):
        found = worst(trace, model)
        assert set(found) == set(request.keys(model.geometry))
        assert {key: excess for key, excess in found.items() if excess >= 1} == {}


@pytest.mark.parametrize("recipe", ["qwen3_next", "granitemoehybrid"])
def test_passes_of_the_embedded_runtime_come_to_the_run_at_once(
    recipe: str, models: dict[str, Model]
) -> None:
    model, request = models[recipe], in_passes(models[recipe])
    at_once = embedded.capture(model, replace(request, in_passes=None), MemorySink(), dtype="f64")
    passed = embedded.capture(model, request, MemorySink(), dtype="f64")
    for stage in ("conv_out", "scan_out"):
        a, b = (trace.stages[Key(2, stage)].data for trace in (at_once, passed))
        assert np.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_state_that_is_lost_between_passes_is_named(models: dict[str, Model]) -> None:
    model, request = models["qwen3_next"], in_passes(models["qwen3_next"])

    def step(key: Key, inputs: Inputs, site: RuntimeSite) -> Array:
        if key != Key(0, "scan_out"):
            return embedded.as_defined(key, inputs, site)
        form = DeltaForm(begins=frozenset(site.passes.starts))
        names = ("conv_out", "beta", "decay")
        made = scanned(*(inputs[name] for name in names), sizes_of(site.geometry), form)
        return made[-site.passes.rows :]

    sound = embedded.capture(model, request, MemorySink())
    broken = embedded.capture(model, request, MemorySink(), step=step)
    found = bisect(sound, broken, weights=model.weights, layers=[0])
    (source,) = found.sources
    assert (source.layer, source.stages) == (0, ("scan_out",))
    assert source.cause is not None
    assert source.cause[0] == "state"
    assert "not carried from pass to pass" in source.cause[1]


def test_transformers_computes_a_single_token_without_the_bounds_of_its_step(
    models: dict[str, Model],
) -> None:
    model = models["granitemoehybrid-dense-biased-tied-rotated-bounded"]
    request = in_passes(model)
    oracle = capture(model, request, MemorySink())
    own = embedded.capture(model, request, MemorySink())

    suspect = {key.stage for key, excess in worst(oracle, model).items() if excess >= 1}
    assert suspect == {"dt"}
    assert max(worst(own, model).values()) < 1
    theirs, ours = (trace.stages[Key(0, "dt")].data for trace in (oracle, own))
    assert theirs[:11].min() >= np.float32(0.4) > theirs[11:].min()
    assert ours.min() >= np.float32(0.4)


def test_what_a_checkpoint_holds_beside_its_text_model_is_said(models: dict[str, Model]) -> None:
    model = models["qwen3_vl_moe_text"]
    request = request_for(model, tokens=3, layers=range(1))
    oracle = capture(model, request, MemorySink())
    said = bisect(oracle, embedded.capture(model, request, MemorySink()), weights=model.weights).not_checked
    assert any("beside its text model: model.visual (" in line for line in said)


def test_experts_of_published_qwen3_vl_checkpoints_lie_turned(
    models: dict[str, Model], tmp_path: Path
) -> None:
    model = models["qwen3_vl_moe_text"]
    tensors = load_file(model.files[0])
    turned = {
        name: values.transpose(1, 2).contiguous() if ".experts." in name else values
        for name, values in tensors.items()
    }
    save_file(turned, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((model.path / "config.json").read_bytes())
    published, request = open_model(tmp_path), request_for(model, tokens=5)
    for one, other in zip(_outs(model, request), _outs(published, request), strict=True):
        assert torch.equal(one, other)


def test_experts_of_published_qwen3_5_checkpoints_lie_in_one_tensor(
    models: dict[str, Model], tmp_path: Path
) -> None:
    model = models["qwen3_5_moe_text"]
    tensors = load_file(model.files[0])
    for layer in range(3):
        stem = f"model.layers.{layer}.mlp.experts."
        of = {
            part: [tensors.pop(f"{stem}{e}.{part}_proj.weight") for e in range(6)]
            for part in ("gate", "up", "down")
        }
        pairs = zip(of["gate"], of["up"], strict=True)
        tensors[f"{stem}gate_up_proj"] = torch.stack([torch.cat(pair) for pair in pairs])
        tensors[f"{stem}down_proj"] = torch.stack(of["down"])
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((model.path / "config.json").read_bytes())
    published, request = open_model(tmp_path), request_for(model, tokens=5)
    for one, other in zip(_outs(model, request), _outs(published, request), strict=True):
        assert torch.equal(one, other)


def _outs(model: Model, request: Request) -> list[torch.Tensor]:
    runs = (capture(model, request, MemorySink()), embedded.capture(model, request, MemorySink()))
    return [torch.from_numpy(np.array(run.stages[Key(2, "ffn_out")].data)) for run in runs]
