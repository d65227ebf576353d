"""What a verdict rests on breaks down: that stage is unmeasured, never consistent; the others are judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apr_falsify.compare import judge, rows, weights
from apr_falsify.compare.bisection import Bisection, FindingType, Kind, Row, Status, Verdict
from apr_falsify.compare.localise import bisect
from apr_falsify.compare.replay import Replayer
from apr_falsify.errors import ExitCode, TraceError
from apr_falsify.formats.tensors import PlainTensor
from apr_falsify.formats.weights import Weights
from apr_falsify.model.stages import Key
from apr_falsify.numerics.operand_rules import Rule
from apr_falsify.traces.trace import Trace
from tests.unit.compare.broken import SOURCE, compared, doubled, noted, raising, right, sources
from tests.unit.evidence.pages import tiny


def judged(result: Bisection) -> list[Row]:
    return [row for row in result.rows if row.status in (Status.COMPARED, Status.NOT_REPLAYABLE)]


CANNOT = ValueError("cannot reshape\nmore about it")


def broken_replay(monkeypatch: pytest.MonkeyPatch, *keys: Key, error: Exception = CANNOT) -> None:
    plain = Replayer.replay

    def replay(self: Replayer, key: Key, rules: tuple[Rule, ...]) -> Any:
        if key in keys and self.trace.provenance.model != "the oracle":
            raise error
        return plain(self, key, rules)

    monkeypatch.setattr(Replayer, "replay", replay)


def oracle() -> Trace:
    return replace(right(), provenance=replace(right().provenance, model="the oracle"))


def test_a_replay_that_breaks_down_is_never_consistent(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_replay(monkeypatch, SOURCE)
    result = bisect(oracle(), right(), weights=tiny().weights)

    assert result.kind is Kind.UNMEASURED
    assert not result.complete
    assert result.exit_code is ExitCode.INTERNAL
    (row,) = [row for row in judged(result) if row.verdict is Verdict.UNMEASURED]
    assert (row.layer, row.stage, row.status) == (*SOURCE, Status.NOT_REPLAYABLE)
    (finding,) = result.findings
    assert (finding.type, finding.layer, finding.stages) == (FindingType.UNMEASURED, 1, ("ffn_out",))
    assert finding.explanation == "ffn_out: the replay broke down (ValueError: cannot reshape)"
    assert "--debug" in finding.advice
    assert noted(result) == ["the replay at layer 1 ffn_out: it broke down (ValueError: cannot reshape)"]


def test_a_replay_that_breaks_down_costs_no_other_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_replay(monkeypatch, SOURCE)
    result = bisect(oracle(), doubled(Key(1, "ffn_norm")), weights=tiny().weights)

    assert sources(result) == [(1, ("ffn_norm",))]
    assert (result.kind, result.exit_code) == (Kind.LOCALISED, ExitCode.DIVERGENCE)
    assert not result.complete


def test_the_error_of_a_stage_whose_replay_breaks_down_is_not_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken_replay(monkeypatch, SOURCE)
    result = bisect(oracle(), doubled(), weights=tiny().weights)

    assert sources(result) == []
    assert result.kind is Kind.UNMEASURED


def test_an_elementwise_stage_whose_replay_breaks_down_is_still_told_by_its_equal_inputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = Key(1, "ffn_silu")
    broken_replay(monkeypatch, key)
    result = bisect(oracle(), doubled(key), weights=tiny().weights)

    assert sources(result) == [(1, ("ffn_silu",))]


def test_memory_that_runs_out_in_a_replay_is_no_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_replay(monkeypatch, SOURCE, error=MemoryError("13.0 GiB"))
    result = bisect(oracle(), right(), weights=tiny().weights)

    assert (result.kind, result.exit_code) == (Kind.UNMEASURED, ExitCode.INCONCLUSIVE)
    assert "fewer --layers" in result.findings[0].advice


@pytest.mark.parametrize("error", [TraceError("does not fit"), OSError(5, "Input/output error")])
def test_unusable_input_is_not_taken_for_a_breakdown(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_replay(monkeypatch, SOURCE, error=error)
    with pytest.raises(type(error)):
        bisect(oracle(), right(), weights=tiny().weights)


def test_a_replay_that_breaks_down_in_the_oracles_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_replay(monkeypatch, SOURCE)
    result = bisect(right(), oracle(), weights=tiny().weights)

    assert result.kind is Kind.UNMEASURED
    assert noted(result) == [
        "the oracle: the replay at layer 1 ffn_out: it broke down (ValueError: cannot reshape)"
    ]


def test_every_replay_that_breaks_down_leaves_nothing_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_replay(monkeypatch, *right().stages)
    result = bisect(oracle(), right(), weights=tiny().weights)

    assert {row.verdict for row in judged(result)} == {Verdict.UNMEASURED}
    assert (result.kind, result.exit_code) == (Kind.UNMEASURED, ExitCode.INTERNAL)


@pytest.mark.parametrize("where", ["aligned", "compare_arrays"])
def test_a_comparison_with_the_oracle_that_breaks_down_leaves_the_replays_verdict(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, where, raising(ValueError("no")))
    result = compared(doubled())
    assert sources(result) == [(1, ("ffn_out",))]
    assert all(row.accumulated is None for row in judged(result))

    passed = compared(right())
    assert passed.kind is Kind.UNMEASURED
    assert {row.verdict for row in judged(passed)} == {Verdict.WITHIN_FLOOR}


def test_figures_that_break_down_leave_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "compare_arrays", raising(ValueError("no")))
    result = compared(doubled())
    assert sources(result) == [(1, ("ffn_out",))]
    assert all(row.introduced is None and row.excess is not None for row in judged(result))
    assert compared(right()).kind is Kind.CONSISTENT


def spoiled_weights(*roles: str) -> Weights:
    weights = tiny().weights
    tensors: dict[str, Any] = dict(weights.tensors)
    for role in roles:
        sound = weights.tensor(role, 1)
        values = np.array(sound.rows(0, sound.shape[0]), dtype=np.float32) * np.float32(1.5)
        tensors[sound.name] = PlainTensor(name=sound.name, type="f32", data=values)
    return replace(weights, tensors=tensors, where=Path("spoiled"))


def test_a_tensor_whose_comparison_breaks_down_is_unmeasured_and_the_others_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = weights.difference

    def difference(oracle: Any, subject: Any, kind: str | None = None) -> Any:
        if subject.name.endswith("gate_proj.weight"):
            raise IndexError("out of bounds")
        return plain(oracle, subject, kind)

    monkeypatch.setattr(weights, "difference", difference)
    gate = compared(right(), subject_weights=spoiled_weights("gate"), layers=[0])
    assert gate.kind is Kind.UNMEASURED
    both = compared(right(), subject_weights=spoiled_weights("gate", "up"), layers=[0, 1])
    assert (1, ("ffn_up",)) in sources(both)
    assert (
        "the comparison of the tensor gate at layers 0, 1 ffn_gate: it broke down (IndexError: out of bounds)"
    ) in noted(both)
