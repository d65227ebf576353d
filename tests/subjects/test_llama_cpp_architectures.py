"""The real llama.cpp on the architectures of 2024 to 2026: GGUF files of small checkpoints, in f32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from apr_falsify.compare.bisection import Bisection, Kind
from apr_falsify.compare.localise import bisect
from apr_falsify.errors import TraceError
from apr_falsify.formats.weights import open_model
from apr_falsify.model.stages import STAGES
from apr_falsify.subjects import embedded
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.llama_cpp import open_llama_cpp
from apr_falsify.traces.capture import MemorySink, Request
from tests.checkpoints import make_checkpoint
from tests.llama_models import llama_cpp_or_skip
from tests.unit.gguf_conversion import convert
from tests.unit.test_gguf_families import both

TOKENS = tuple(int(token) for token in np.random.default_rng(1).integers(0, 90, 9))

EXPLAINED: Mapping[str, int] = {
    "arcee": 2 * 14 + 3,
    "dots1": 31,
    "ernie4_5": 33,
    "ernie4_5_moe": 44,
    "glm4_moe": 31,
    "granite": 33,
    "granitemoe": 29,
    "granitemoeshared": 29,
    "minimax_m2": 29,
    "mixtral": 29,
    "qwen2_moe": 31,
    "qwen3_moe": 29,
    "seed_oss": 35,
    "smollm3": 63,
}
"""Recipe -> how many stages are compared in all of its layers."""


def bisected(path: Path) -> Bisection:
    """Return what is said of llama.cpp on a GGUF file."""
    llama_cpp_or_skip()
    model = open_model(path)
    layers = range(model.geometry.layers)
    request = Request(tokens=TOKENS, layers=layers, stages=tuple(STAGES), feeder=True)
    subject = open_llama_cpp(Target(path=path)).capture(request, MemorySink())
    oracle = embedded.capture(model, request, MemorySink())
    return bisect(oracle, subject, weights=model.weights, subject_weights=model.weights, layers=tuple(layers))


def residuals(result: Bisection) -> list[float]:
    return [row.residual for row in result.rows if row.residual is not None]


@pytest.mark.live
@pytest.mark.parametrize("recipe", EXPLAINED)
def test_every_stage_of_a_new_architecture_is_explained_and_none_accused(recipe: str, tmp_path: Path) -> None:
    _, converted = both(tmp_path, recipe)
    result = bisected(converted.path)
    assert (result.kind, result.findings, result.complete) == (Kind.CONSISTENT, (), True)
    assert len(residuals(result)) == EXPLAINED[recipe]
    assert max(residuals(result)) <= 1e-6


@pytest.mark.live
def test_the_rounded_ramp_of_yarn_in_gpt_oss_is_located_and_nothing_else(tmp_path: Path) -> None:
    """``docs/findings/llama-cpp-architectures.md``: the model's own ramp has its limits where they fall."""
    _, converted = both(tmp_path, "gpt_oss")
    result = bisected(converted.path)
    found = [(finding.layer, finding.stages) for finding in result.sources]
    assert found == [(layer, (f"{role}_post_rope",)) for layer in (0, 1) for role in "qk"]
    others = [row.residual for row in result.rows if row.residual and "rope" not in row.stage]
    assert max(others) <= 1e-6


@pytest.mark.live
def test_the_epsilon_that_qwen2_vl_is_not_told_is_located_at_its_norms(tmp_path: Path) -> None:
    """``docs/findings/llama-cpp-architectures.md``: the file says 1e-5, and llama.cpp does not read it."""
    _, converted = both(tmp_path, "qwen2_5_vl_text")
    result = bisected(converted.path)
    assert {stage for finding in result.sources for stage in finding.stages} <= {
        "attn_norm",
        "ffn_norm",
        "final_norm",
    }
    assert result.sources[0].stages == ("attn_norm",)
    assert "epsilon" in result.sources[0].explanation


def test_an_architecture_whose_graph_nobody_looked_at_is_refused_by_name(tmp_path: Path) -> None:
    path = convert(make_checkpoint(tmp_path / "hf", "lfm2"), tmp_path / "x.gguf")
    with pytest.raises(TraceError, match="graph of LFM2 is not known here"):
        open_llama_cpp(Target(path=path))
