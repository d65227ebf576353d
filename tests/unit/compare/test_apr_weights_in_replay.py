"""Replays with the weights that lie in the subject's own .apr file, held against what ``apr`` recorded."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from apr_falsify.compare.bisection import Bisection, FindingType, Kind
from apr_falsify.compare.localise import bisect
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import STAGES
from apr_falsify.subjects import embedded
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.recorded import open_recorded
from apr_falsify.traces.capture import MemorySink, Request
from tests.support import DATA
from tests.unit.apr_files import apr, made, needs_apr, regrown
from tests.unit.helpers import TINY

RUNS = DATA / "apr-tiny-qwen2"
LLAMA = DATA / "apr-tiny-llama-hf"
TOKENS = (274, 272, 332, 13, 20, 33)
MATMULS = ("qkv_matmul", "attn_out", "ffn_gate", "ffn_up", "ffn_out", "lm_head")


def judged(oracle: Model, recording: Path, own: Model) -> Bisection:
    """Bisect a recording: the oracle's model is run, the subject replayed with its own weights."""
    request = Request(tokens=TOKENS, layers=range(oracle.geometry.layers), stages=tuple(STAGES))
    reference = embedded.capture(oracle, request, MemorySink(), dtype="f32")
    subject = open_recorded(Target(path=recording, model=own, tokens=TOKENS))
    return bisect(reference, subject.trace, weights=oracle.weights, subject_weights=own.weights)


def test_a_4_bit_run_is_explained_to_1e_6_with_the_weights_of_its_apr_file() -> None:
    result = judged(open_model(TINY), RUNS / "base-q4k", open_model(RUNS / "base-q4k.apr"))
    assert (result.kind, result.findings) == (Kind.CONSISTENT, ())
    residuals = {
        (row.layer, row.stage): row.residual
        for row in result.rows
        if row.stage in MATMULS and row.residual is not None
    }
    assert len(residuals) == 3 * 5 + 1
    assert max(residuals.values()) < 1e-6
    explained = {row.arithmetic for row in result.rows if row.stage in MATMULS and row.layer is not None}
    assert explained == {"q4_k x q8 blocks of 256"}
    introduced = [row.introduced.rel_l2 for row in result.rows if row.stage == "ffn_gate" and row.introduced]
    assert min(introduced) > 1e-3


def test_what_the_runtime_does_wrong_with_sound_weights_is_not_blamed_on_them() -> None:
    result = judged(open_model(LLAMA / "model"), LLAMA / "trace", open_model(LLAMA / "model.apr"))
    assert [(finding.type, finding.stages) for finding in result.findings] == [
        (FindingType.SOURCE, ("q_post_rope",)),
        (FindingType.SOURCE, ("k_post_rope",)),
        (FindingType.SOURCE, ("lm_head",)),  # all its logits are 0: the trace takes no tied head
    ]
    assert [finding.cause and finding.cause[0] for finding in result.findings[:2]] == ["rope-pairing"] * 2


FAULTS = {
    "k-bias-zero": ("model.layers.0.self_attn.k_proj.bias", 0.0, "qkv_bias"),
    "norm-scaled": ("model.layers.0.input_layernorm.weight", 1.01, "attn_norm"),
}
"""Recording -> the tensor that was multiplied before it was imported, by what, and the stage that uses it."""


@needs_apr
@pytest.mark.parametrize("name", FAULTS)
def test_a_conversion_fault_is_a_weights_finding_and_the_runtime_is_not_blamed(
    tmp_path: Path, name: str
) -> None:
    tensor, factor, stage = FAULTS[name]
    folder = shutil.copytree(TINY, tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    tensors[tensor] = (tensors[tensor].astype(np.float32) * factor).astype(np.float16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    own = open_model(made(tmp_path / "x.apr", "import", folder))
    result = judged(open_model(TINY), RUNS / name, own)
    assert result.kind is Kind.LOCALISED
    assert [(finding.type, finding.layer, finding.stages) for finding in result.findings] == [
        (FindingType.WEIGHTS, 0, (stage,))
    ]
    assert max(row.residual for row in result.rows if row.residual is not None) < 1e-6


@needs_apr
def test_geometry_that_convert_guessed_is_a_finding_and_nothing_is_replayed(tmp_path: Path) -> None:
    imported = made(tmp_path / "x.apr", "import", TINY)
    guessed = open_model(made(tmp_path / "y.apr", "convert", imported, "--quantize", "q4k"))
    oracle = open_model(TINY)
    request = Request(tokens=TOKENS, layers=range(1), stages=tuple(STAGES))
    reference = embedded.capture(oracle, request, MemorySink(), dtype="f32")
    subject = embedded.capture(guessed, request, MemorySink(), dtype="f32")
    result = bisect(reference, subject, weights=oracle.weights, subject_weights=guessed.weights)
    assert {finding.type for finding in result.findings} >= {FindingType.GEOMETRY}
    assert result.sources == ()
    told = [finding.explanation for finding in result.findings if finding.type is FindingType.GEOMETRY]
    assert told[0] == "heads is 8 in the oracle's model, 4 in the subject's"


@needs_apr
def test_a_correct_run_on_4_and_6_bit_weights_is_not_accused(tmp_path: Path) -> None:
    """As llama.cpp's Q4_K_M mixes them: v and down in Q6_K, which apr multiplies with plain activations."""
    source = regrown(RUNS / "base-q4k.gguf", tmp_path / "x.gguf", "Q6_K", only=("attn_v", "ffn_down"))
    model = open_model(made(tmp_path / "x.apr", "import", source))
    types = {role: model.weights.tensor(role, 0).type for role in ("q", "k", "v", "down")}
    assert types == {"q": "q4_k", "k": "q4_k", "v": "q6_k", "down": "q6_k"}
    save = ("--save-tensor", "all", "--save-tensor-dir", tmp_path / "trace", "--save-tensor-layers", "0..3")
    assert apr("trace", "--payload", model.path, *save).returncode == 0
    result = judged(open_model(source), tmp_path / "trace", model)
    assert (result.kind, result.findings) == (Kind.CONSISTENT, ())
    assert max(row.residual for row in result.rows if row.residual is not None) < 1e-6
    by_stage = {row.stage: row.arithmetic for row in result.rows if row.layer == 0}
    assert by_stage["qkv_matmul"] == "q4_k and q6_k x q8 blocks of 256 and f32"
    assert by_stage["ffn_out"] == "q6_k x f32"
