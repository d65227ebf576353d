"""An error in a hypothesis is noted and the verdict stands; one in what is needed costs that stage alone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from apr_falsify.compare import causes, convention, edges, invariants, search
from apr_falsify.compare.bisection import FindingType, Kind, Verdict
from apr_falsify.compare.conventions import CONVENTIONS, Convention
from apr_falsify.compare.localise import bisect
from apr_falsify.compare.replay import Replayer
from apr_falsify.compare.variations.case import Case, Guess, Variation
from apr_falsify.errors import ExitCode, ModelError, TraceError
from apr_falsify.model.stages import Key, Layout
from apr_falsify.numerics.operand_rules import RULES, Operation, Rule
from apr_falsify.traces.trace import StageArray, Trace
from tests.unit.compare.broken import SOURCE, compared, doubled, noisy, noted, raising, right, run, sources

pytestmark = pytest.mark.bare

ERRORS: tuple[Exception, ...] = (
    ValueError("cannot reshape\nmore about it"),
    IndexError("out of bounds"),
    KeyError("v"),
    AssertionError(),
    ZeroDivisionError("division by zero"),
    RecursionError("too deep"),
    np.linalg.LinAlgError("SVD did not converge"),
    MemoryError("Unable to allocate 13.0 GiB"),
    TraceError("a shape that does not fit"),
    OSError(5, "Input/output error", "/a/path/of/this/machine"),
)
names = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


def cause(guesses: Callable[[Case], Iterator[Guess]]) -> Variation:
    return Variation(name="a-new-one", guesses=guesses)


def first_in_the_table(monkeypatch: pytest.MonkeyPatch, guesses: Callable[[Case], Iterator[Guess]]) -> None:
    monkeypatch.setattr(causes, "TABLE", (cause(guesses), *causes.TABLE))


# causes


@names
def test_a_cause_that_breaks_down_is_noted_and_the_next_one_is_found(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = compared(doubled())
    first_in_the_table(monkeypatch, raising(error))
    result = compared(doubled())

    assert (result.kind, sources(result)) == (before.kind, sources(before))
    assert result.sources[0].explanation == before.sources[0].explanation
    (line,) = noted(result)
    assert line.startswith(f"the cause a-new-one at layer 1 ffn_out: it broke down ({type(error).__name__}")
    assert result.exit_code is ExitCode.DIVERGENCE
    assert result.complete


def test_of_an_error_the_first_line_is_told_and_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, told in (
        (ERRORS[0], "(ValueError: cannot reshape)"),
        (AssertionError(), "(AssertionError)"),
        (ERRORS[-1], "(OSError: Input/output error)"),
        (ValueError("x" * 900), f"(ValueError: {'x' * 160})"),
    ):
        with monkeypatch.context() as patch:
            first_in_the_table(patch, raising(error))
            (line,) = noted(compared(doubled()))
            assert line.endswith(told)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_no_breakdown(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    first_in_the_table(monkeypatch, raising(error()))
    with pytest.raises(error):
        compared(doubled())


def test_what_a_model_does_not_have_is_no_breakdown(monkeypatch: pytest.MonkeyPatch) -> None:
    first_in_the_table(monkeypatch, raising(ModelError("the tensor is missing")))
    assert noted(compared(doubled())) == []


def test_what_a_cause_gave_before_it_broke_down_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def guesses(case: Case) -> Iterator[Guess]:
        yield Guess(says="nothing at all", values=case.expected)
        yield Guess(says="twice as much", values=2 * case.expected)
        raise AssertionError("nobody asks for a third")

    first_in_the_table(monkeypatch, guesses)
    result = compared(doubled())
    assert result.sources[0].cause == ("a-new-one", "twice as much")
    assert noted(result) == []


def test_a_guess_that_cannot_be_judged_is_a_breakdown_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def guesses(case: Case) -> Iterator[Guess]:
        yield Guess(says="another shape", values=case.expected[:, :3])

    first_in_the_table(monkeypatch, guesses)
    result = compared(doubled())
    assert sources(result) == [(1, ("ffn_out",))]
    assert "x 2" in result.sources[0].explanation
    (line,) = noted(result)
    assert "ValueError" in line


def test_memory_that_ran_out_is_not_held_by_the_note(monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(np.ndarray):
        """An array that can be watched."""

    watched: list[weakref.ref[Any]] = []

    def guesses(case: Case) -> Iterator[Guess]:
        held = np.zeros((1 << 20,)).view(Large)
        watched.append(weakref.ref(held))
        raise MemoryError(f"no more than {held.size}")
        yield

    first_in_the_table(monkeypatch, guesses)
    gc.collect()
    gc.disable()
    try:
        result = compared(doubled())
        assert [reference() for reference in watched] == [None]
    finally:
        gc.enable()
    assert noted(result) == [
        "the cause a-new-one at layer 1 ffn_out: it broke down (MemoryError: no more than 1048576)"
    ]


def test_the_same_breakdown_in_many_layers_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    first_in_the_table(monkeypatch, raising(ValueError("no")))
    result = compared(run(dict.fromkeys([Key(0, "ffn_out"), Key(1, "ffn_out")], noisy)))
    assert noted(result) == ["the cause a-new-one at layers 0, 1 ffn_out: it broke down (ValueError: no)"]
    assert len(result.breakdowns) == 2


@pytest.mark.parametrize("error", [IndexError("out of bounds"), KeyError("v")])
def test_a_defect_is_not_taken_for_a_stage_that_is_missing(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Replayer, "evaluate", raising(error))
    result = compared(run({SOURCE: noisy}))
    assert sources(result) == [(1, ("ffn_out",))]
    assert noted(result)[0].startswith("the search for a cause at layer 1 ffn_out: it broke down")


@pytest.mark.parametrize("where", ["explain", "error_sits"])
def test_a_search_that_breaks_down_leaves_the_source(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, where, raising(ValueError("no")))
    result = compared(run({SOURCE: noisy}))
    assert sources(result) == [(1, ("ffn_out",))]
    assert len(noted(result)) == 1
    assert result.kind is Kind.LOCALISED


# conventions, arithmetics, invariants


def test_a_convention_that_breaks_down_keeps_no_other_from_being_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = Convention(name="a new one", word=Layout.PADDED_KEYS, stages=("attention",))
    solved = convention.stored_as

    def stored_as(trace: Trace, trial: Any) -> Trace | None:
        if broken in trial:
            raise IndexError("no such axis")
        return solved(trace, trial)

    monkeypatch.setattr(convention, "CONVENTIONS", (broken, *CONVENTIONS))
    monkeypatch.setattr(convention, "stored_as", stored_as)
    stages = dict(right().stages)
    for key in (Key(0, "attention"), Key(1, "attention")):
        heads = stages[key].data.reshape(9, 8, 32).swapaxes(0, 1)
        stages[key] = StageArray(data=heads.reshape(9, 256), layout=())
    result = compared(replace(right(), stages=stages))

    assert result.kind is Kind.LAYOUT_MISMATCH
    assert noted(result) == ["the convention 'a new one': it broke down (IndexError: no such axis)"]


def test_a_replay_that_breaks_down_under_a_convention_is_no_stage_unmeasured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = Replayer.replay

    def replay(self: Replayer, key: Key, rules: tuple[Rule, ...]) -> Any:
        if Layout.TRANSPOSED in self.trace.stages[key].layout:
            raise ValueError("not transposed")
        return plain(self, key, rules)

    monkeypatch.setattr(Replayer, "replay", replay)
    result = compared(run({Key(1, "attn_norm"): lambda data: data[::-1]}))

    assert sources(result) == [(1, ("attn_norm",))]
    assert result.complete
    assert noted(result)
    assert all("the convention 'channel-major'" in line for line in noted(result))


def test_an_arithmetic_that_breaks_down_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = run({}, "q8_0 blocks of 32")
    subject = replace(subject, provenance=replace(subject.provenance, arithmetic="f32"))
    broken = replace(RULES[Operation.PROJECTION][-1], name="a new one", left=raising(ValueError("no")))
    before = compared(subject, layers=[0])
    monkeypatch.setitem(RULES, Operation.PROJECTION, (broken, *RULES[Operation.PROJECTION]))  # type: ignore[arg-type]
    result = compared(subject, layers=[0])

    assert [row.verdict for row in result.rows] == [row.verdict for row in before.rows]
    assert [row.arithmetic for row in result.rows] == [row.arithmetic for row in before.rows]
    assert any(finding.type is FindingType.ARITHMETIC for finding in before.findings)
    assert {line.partition(" at ")[0] for line in noted(result)} == {"the arithmetic a new one"}


def test_an_invariant_that_breaks_down_leaves_its_stage_unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    def alone(trace: Trace) -> Trace:
        stages = {key: array for key, array in trace.stages.items() if key[1] == "attn_softmax"}
        return replace(trace, stages=stages)

    oracle, subject = alone(right()), alone(run({Key(1, "attn_softmax"): lambda data: 2 * data}))
    before = bisect(oracle, subject)
    assert sources(before)[0] == (1, ("attn_softmax",))
    broken = [replace(row, measure=raising(ValueError("no"))) for row in invariants.TABLE]
    monkeypatch.setattr(invariants, "TABLE", tuple(broken))
    result = bisect(oracle, subject)

    assert (1, ("attn_softmax",)) not in sources(result)
    (row,) = [row for row in result.rows if (row.layer, row.stage) == Key(1, "attn_softmax")]
    assert row.verdict is Verdict.UNMEASURED
    assert not result.complete
    assert "the invariant mask at layers 0, 1 attn_softmax: it broke down (ValueError: no)" in noted(result)


def test_values_on_an_edge_in_every_block_break_nothing_down_and_hide_no_source() -> None:
    """Of each block of 32 the largest is 127 steps, and all others lie half way between two steps."""
    steps = np.arange(32) + 0.5
    steps[0] = 127

    def at_edges(right: Any) -> Any:
        return np.resize(steps * 2.0**-6, right.shape) * np.where(right < 0, -1, 1)

    for arithmetic in ("q8_0 blocks of 32", "q8_1 blocks of 32", "q8 blocks of 256", "q8_k blocks of 256"):
        for key in (Key(1, "attn_norm"), Key(1, "attention"), Key(1, "ffn_norm"), Key(1, "ffn_swigl")):
            result = compared(run({key: at_edges}, arithmetic))
            assert result.breakdowns == ()
            assert sources(result) == [(1, (key[1],))], arithmetic


# values on an edge


def test_a_search_for_values_on_an_edge_that_breaks_down_excuses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stated = {"arithmetic": "f32; q8 blocks of 256"}
    subject = run({SOURCE: noisy}, arithmetic=stated["arithmetic"])
    before = compared(subject, **stated)
    monkeypatch.setattr(edges, "_FINDERS", dict.fromkeys(Operation, raising(MemoryError("no room"))))
    result = compared(subject, **stated)
    assert (result.kind, sources(result)) == (before.kind, sources(before))
    assert any("values on an edge at layer 1 ffn_out" in line for line in noted(result))
    assert all("values on an edge" in line for line in noted(result))
