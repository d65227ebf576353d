"""Runs of real runtimes, recorded: correct ones are not accused, faulted ones are located and explained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from apr_falsify.commands.specs import DEFAULT_MODEL
from apr_falsify.compare.bisection import Bisection, FindingType, Kind, Verdict
from apr_falsify.compare.localise import bisect
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import STAGES
from apr_falsify.subjects import embedded
from apr_falsify.subjects.interface import Subject, Target
from apr_falsify.subjects.llama_cpp import open_llama_cpp
from apr_falsify.subjects.recorded import open_recorded
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace
from tests.real_model import smollm2_or_skip
from tests.support import DATA

APR_TOKENS = (274, 272, 332, 13, 20, 33)
SMOLLM2_TOKENS = (1780, 314, 216, 34, 27, 34, 47)
TINY = DATA / "apr-tiny-qwen2"
LLAMA = DATA / "llama-cpp-smollm2-135m"


def reference(model: Model, tokens: tuple[int, ...], layers: range) -> Trace:
    """The reference run: the embedded decoder, which the tests of the oracle hold against transformers."""
    request = Request(tokens=tokens, layers=layers, stages=tuple(STAGES))
    return embedded.capture(model, request, MemorySink(), dtype="f32")


def against(model: Model, subject: Subject, *, layers: tuple[int, ...] | None = None) -> Bisection:
    """Bisect a recorded subject; the model supplies the weights, as ``--oracle MODEL`` does."""
    judged = layers or subject.layers
    assert judged is not None
    assert subject.tokens is not None
    oracle = reference(model, subject.tokens, range(judged[0], judged[-1] + 1))
    trace = subject.capture(Request(tokens=subject.tokens, layers=range(1), stages=()), MemorySink())
    return bisect(oracle, trace, weights=model.weights, layers=judged)


def recorded(name: str, model: Model) -> Subject:
    return open_recorded(Target(path=TINY / name, model=model, tokens=APR_TOKENS))


@pytest.fixture(scope="module")
def tiny() -> Model:
    return open_model(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def smollm2() -> Model:
    return open_model(smollm2_or_skip())


def sources(result: Bisection) -> list[tuple[int | None, tuple[str, ...]]]:
    return [(finding.layer, finding.stages) for finding in result.sources]


def explained(result: Bisection) -> list[float]:
    return [row.residual for row in result.rows if row.residual is not None]


def test_a_correct_run_of_apr_in_f16_is_consistent(tiny: Model) -> None:
    result = against(tiny, recorded("base", tiny))
    assert result.kind is Kind.CONSISTENT
    assert len(explained(result)) == 54
    assert max(explained(result)) < 1e-6
    assert max(row.excess for row in result.rows if row.excess is not None) < 0.6


@dataclass(frozen=True)
class Damage:
    """What was damaged in the file that the real apr was given."""

    recording: str
    stage: str
    says: str


@pytest.mark.parametrize(
    "damage",
    [Damage("k-bias-zero", "qkv_bias", "bias of k"), Damage("norm-scaled", "attn_norm", "1.01")],
    ids=lambda damage: damage.recording,
)
def test_a_damaged_weight_is_located_and_explained(tiny: Model, damage: Damage) -> None:
    result = against(tiny, recorded(damage.recording, tiny))
    assert result.kind is Kind.LOCALISED
    assert sources(result) == [(0, (damage.stage,))]
    assert damage.says in result.sources[0].explanation


def test_every_stage_of_a_correct_4_bit_run_is_explained_to_1e_6() -> None:
    model = open_model(TINY / "base-q4k.gguf")
    result = against(model, recorded("base-q4k", model))
    assert result.kind is Kind.CONSISTENT
    assert len(explained(result)) == 54
    assert max(explained(result)) < 1e-6
    by_stage = {row.arithmetic for row in result.rows if row.stage in ("ffn_gate", "ffn_out", "attn_out")}
    assert by_stage == {"q4_k x q8 blocks of 256"}
    plain = [row.introduced.rel_l2 for row in result.rows if row.stage == "ffn_gate" and row.introduced]
    assert min(plain) > 1e-3  # what the arithmetic explains is five digits above what it leaves


def test_weights_of_another_model_are_one_finding_and_no_sources(tiny: Model) -> None:
    result = against(tiny, recorded("base-q4k", tiny))
    assert result.sources == ()
    assert FindingType.NOT_THE_SUBJECTS_WEIGHTS in {finding.type for finding in result.findings}
    assert result.kind is Kind.UNMEASURED


def test_the_published_rule_reads_the_missing_bias_as_two_crossings(tiny: Model) -> None:
    result = against(tiny, recorded("k-bias-zero", tiny), layers=(0,))
    (rule,) = result.published
    assert rule.crossings == (("qkv_matmul", "qkv_bias"), ("q_post_rope", "k_post_rope"))


@pytest.mark.real_model
def test_a_correct_run_of_apr_on_smollm2_is_consistent(smollm2: Model) -> None:
    target = Target(path=DATA / "apr-smollm2-135m", model=smollm2, tokens=SMOLLM2_TOKENS)
    result = against(smollm2, open_recorded(target))
    assert (result.kind, result.sources) == (Kind.CONSISTENT, ())
    assert max(explained(result)) < 1e-6


def llama(name: str, model: Model) -> Subject:
    return open_llama_cpp(Target(path=LLAMA / f"{name}.npz", model=model, tokens=SMOLLM2_TOKENS))


@pytest.mark.real_model
def test_a_correct_run_of_llama_cpp_is_explained_to_1e_6(smollm2: Model) -> None:
    result = against(smollm2, llama("what-is-2-plus-2", smollm2), layers=(0, 1))
    assert result.kind is Kind.CONSISTENT
    assert max(explained(result)) < 1e-6
    arithmetics = {row.stage: row.arithmetic for row in result.rows if row.layer == 0}
    assert arithmetics["qkv_matmul"] == "q4_1 x q8_1 blocks of 32"
    assert arithmetics["attn_scores"] == "f16 q and k"
    assert arithmetics["attention"] == "f16 weights and v"


@pytest.mark.real_model
def test_what_was_not_recorded_is_named_and_nothing_is_accused(smollm2: Model) -> None:
    result = against(smollm2, llama("what-is-2-plus-2", smollm2))
    assert (result.kind, result.sources, result.complete) == (Kind.UNMEASURED, (), False)
    (finding,) = result.findings
    assert finding.stages == ("attn_norm", "post_attn_residual")
    assert "post_ffn_residual of layer 28" in finding.explanation


@pytest.mark.real_model
def test_a_rope_base_nobody_asked_for_is_named_in_every_layer(smollm2: Model) -> None:
    result = against(smollm2, llama("rope-base-50000", smollm2))
    expected = [(layer, (stage,)) for layer in (0, 1, 29) for stage in ("q_post_rope", "k_post_rope")]
    assert sources(result) == expected
    assert all("50000" in finding.explanation for finding in result.sources)


@pytest.mark.real_model
def test_an_8_bit_k_cache_nobody_asked_for_is_an_arithmetic_finding(smollm2: Model) -> None:
    result = against(smollm2, llama("k-cache-q8_0", smollm2))
    (finding,) = [found for found in result.findings if found.type is FindingType.ARITHMETIC]
    assert finding.stages == ("attn_scores",)
    assert "q8_0 k cache, Hadamard-rotated" in finding.explanation
    assert (result.sources, int(result.exit_code)) == ((), 1)
    assert not any(row.verdict is Verdict.INTRODUCES for row in result.rows)


@pytest.mark.real_model
@pytest.mark.parametrize(
    "missing", [("kq-1", "kq_soft_max-1"), ("kqv_out-1", "attn_out-1"), ("Qcur-1",)], ids="+".join
)
def test_a_correct_run_of_llama_cpp_is_not_accused_for_nodes_it_lacks(
    smollm2: Model, tmp_path: Path, missing: tuple[str, ...]
) -> None:
    with np.load(LLAMA / "what-is-2-plus-2.npz") as nodes:
        kept = {name: nodes[name] for name in nodes.files if name not in missing}
    np.savez(tmp_path / "part.npz", **kept)
    target = Target(path=tmp_path / "part.npz", model=smollm2, tokens=SMOLLM2_TOKENS)
    result = against(smollm2, open_llama_cpp(target), layers=(0, 1))
    assert result.sources == ()
