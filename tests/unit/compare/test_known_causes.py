"""A cause that explained a stage in one layer is tried first in the next, in the same words or in others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from apr_falsify.compare.attempts import LOUD
from apr_falsify.compare.cause import Cause
from apr_falsify.compare.causes import explain
from apr_falsify.compare.judge import judge, replayer_of
from apr_falsify.compare.search import SEARCHED_AT_MOST, Search
from apr_falsify.compare.variations.table import TABLE
from apr_falsify.model.stages import Key
from apr_falsify.numerics.operand_rules import PLAIN
from apr_falsify.operators.roundoff import LIMIT
from apr_falsify.traces.trace import StageArray, Trace
from tests.unit.compare.wrong_stages import F64, Run, small_run


@pytest.fixture(scope="module")
def run() -> Run:
    return small_run()


def off(run: Run, *keys: Key, by: float | F64 = 1.25) -> Trace:
    """Return the run with these stages times a factor: what follows was computed from the right ones."""
    spoilt = {key: StageArray(data=np.asarray(run.trace.stages[key].data * by, np.float32)) for key in keys}
    return replace(run.trace, stages={**run.trace.stages, **spoilt})


ROWS = {row.guesses.__name__: place for place, row in enumerate(TABLE)}


def known(row: str | None, says: str) -> Cause:
    return Cause(
        name="known", sentence="", residual=0.0, fits=True, says=says, row=None if row is None else ROWS[row]
    )


def named(run: Run, trace: Trace, *likely: Cause, search: bool = True) -> tuple[int | None, str] | None:
    """Return the row and the words of the cause that fits layer 1's ffn_out, given likely ones."""
    assert run.model is not None
    replayer = replayer_of(trace, run.model.weights)
    subject = replayer.captured(Key(1, "ffn_out"))
    assert subject is not None
    found = explain(replayer, Key(1, "ffn_out"), PLAIN, subject, LIMIT, likely=likely, search=search)
    return None if found is None else (found.row, found.says)


BY_TOKEN = "each token by a factor of its own, 2 to 2,"


def test_what_is_known_goes_before_what_is_likelier(run: Run) -> None:
    doubled = off(run, Key(1, "ffn_out"), by=2.0)
    assert named(run, doubled) == (ROWS["named_factor"], "x 2")
    last = known("own_factor_per_token", BY_TOKEN)
    assert named(run, doubled, last) == (ROWS["own_factor_per_token"], BY_TOKEN)
    assert named(run, doubled, last, search=False) == (ROWS["own_factor_per_token"], BY_TOKEN)
    first = known("any_factor", "x 2")
    assert named(run, doubled, first, last) == (ROWS["any_factor"], "x 2")


def test_in_other_words_it_goes_before_only_where_nothing_else_is_looked_for(run: Run) -> None:
    doubled = off(run, Key(1, "ffn_out"), by=2.0)
    last = known("own_factor_per_token", "each token by a factor of its own, 3 to 4,")
    assert named(run, doubled, last) == (ROWS["named_factor"], "x 2")
    assert named(run, doubled, last, search=False) == (ROWS["own_factor_per_token"], BY_TOKEN)


def test_what_does_not_fit_or_is_of_no_row_is_passed_over(run: Run) -> None:
    doubled = off(run, Key(1, "ffn_out"), by=2.0)
    likely = known(None, BY_TOKEN), known("moved_channels", "each channel with those before it")
    assert named(run, doubled, *likely) == (ROWS["named_factor"], "x 2")
    assert named(run, doubled, *likely, search=False) is None


def test_one_token_leaves_too_much_alike_for_what_is_known() -> None:
    run = small_run((3,))
    doubled = off(run, Key(1, "ffn_out"), by=2.0)
    likely = known("own_factor_per_token", BY_TOKEN)
    assert named(run, doubled, likely) == (ROWS["named_factor"], "x 2")
    assert named(run, doubled, likely, search=False) is None


# --- the causes of a whole trace ---------------------------------------------------------------------

OUT: tuple[Key, Key] = (Key(0, "ffn_out"), Key(1, "ffn_out"))
UP: Key = Key(1, "ffn_up")


def test_a_cause_that_was_found_is_kept_for_its_stage_and_counts_once(run: Run) -> None:
    assert run.model is not None
    trace = off(run, *OUT, UP)
    judged = judge(trace, run.model.weights, [*OUT, UP])
    search = Search(replayer_of(trace, run.model.weights), LOUD)
    first = search.explained(judged[OUT[0]])
    assert first[1] == ("factor", "x 1.25")
    assert search.left == SEARCHED_AT_MOST - 1
    assert search.explained(judged[OUT[1]])[1] == ("factor", "x 1.25")
    assert search.left == SEARCHED_AT_MOST - 1
    search.left = 0
    assert search.explained(judged[OUT[1]])[1] == ("factor", "x 1.25")
    told, cause = search.explained(judged[UP])
    assert cause is None
    assert told[0] == "no cause of another layer fits, and no other was looked for"
    assert told[1].startswith("every token, every channel (")
    search.left = 1
    assert search.explained(judged[UP])[1] == ("factor", "x 1.25")


def test_a_cause_in_other_words_counts_again(run: Run) -> None:
    assert run.model is not None
    trace = off(run, OUT[0])
    trace = off(replace(run, trace=trace), OUT[1], by=1.5)
    judged = judge(trace, run.model.weights, OUT)
    search = Search(replayer_of(trace, run.model.weights), LOUD)
    assert [search.explained(judged[key])[1] for key in OUT] == [("factor", "x 1.25"), ("factor", "x 1.5")]
    assert search.left == SEARCHED_AT_MOST - 2


def test_a_search_that_finds_nothing_counts_too(run: Run) -> None:
    assert run.model is not None
    noise = np.random.default_rng(1).normal(1, 0.01, (5, 16))
    trace = off(run, OUT[1], by=noise)
    judged = judge(trace, run.model.weights, [OUT[1]])
    search = Search(replayer_of(trace, run.model.weights), LOUD)
    told, cause = search.explained(judged[OUT[1]])
    assert (cause, told[0]) == (None, "no named cause fits")
    assert search.left == SEARCHED_AT_MOST - 1
