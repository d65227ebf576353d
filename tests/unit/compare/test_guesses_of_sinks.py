"""What the guesses about attention sinks are: another softmax, worked out by hand, and from which rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from apr_falsify.compare.variations.sinks import other_sinks
from tests.unit.compare.cases import case_of, close, saying
from tests.unit.compare.family_runs import run_of
from tests.unit.compare.wrong_stages import F64, Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Nine tokens of gpt-oss, a layer that sees all of them."""
    made = run_of(tmp_path_factory.mktemp("gpt_oss"), "gpt_oss")
    layer = made.trace.geometry.windows.index(None)
    tensors = {name: tensor.numpy() for name, tensor in made.tensors.items()}
    return Run(trace=made.trace, model=made.model, tensors=tensors, layer=layer)


def sinks_of(run: Run) -> F64:
    return run.w("self_attn.sinks", run.layer)


def weights(run: Run, sinks: F64 | float) -> F64:
    """e^score over the sum of those up to the token, and e^sink."""
    raised = np.exp(run["attn_scores"]) * np.tri(9)
    more = np.exp(np.broadcast_to(sinks, len(raised)))[:, None, None]
    return np.asarray(raised / (raised.sum(axis=-1, keepdims=True) + more))


def one_other(sinks: F64) -> F64:
    return np.where(np.arange(len(sinks)) == 2, -1.25, sinks)


SINKS: dict[str, Callable[[F64], F64]] = {
    "the sinks left out": lambda sinks: np.full_like(sinks, -np.inf),
    "the sink of head 0 in every head": lambda sinks: np.full_like(sinks, sinks[0]),
    "the sinks of the heads in reverse order": lambda sinks: sinks[::-1],
    "one sink of 2 in every head alike": lambda sinks: np.full_like(sinks, 2.0),
    "one sink of 0.75 in every head alike": lambda sinks: np.full_like(sinks, 0.75),
    "the sinks x 1.5": lambda sinks: 1.5 * sinks,
    "the sinks + 0.5": lambda sinks: sinks + 0.5,
    "other sinks in some heads: -1.25 in head 2": one_other,
}


@pytest.mark.parametrize("says", SINKS)
def test_other_sinks_are_told_by_the_sums_of_the_rows(says: str, run: Run) -> None:
    subject = weights(run, SINKS[says](sinks_of(run)))
    found = saying(other_sinks(case_of(run, "attn_softmax", subject)), says)
    close(found.values, subject)


def test_one_row_that_is_off_hides_no_sink(run: Run) -> None:
    """The sink of a head is the median of what its rows show; one that is no number counts as zero."""
    subject = weights(run, 2.0)
    subject[1, 4] *= 0.5
    subject[3, 7, 2] = np.nan
    assert "one sink of 2 in every head alike" in {
        guess.says for guess in other_sinks(case_of(run, "attn_softmax", subject))
    }


def test_rows_that_sum_to_one_show_no_sink(run: Run) -> None:
    says = [guess.says for guess in other_sinks(case_of(run, "attn_softmax", weights(run, -np.inf)))]
    assert says[:3] == list(SINKS)[:3]
    assert not any(each.startswith("one sink") for each in says)


def test_right_sinks_are_no_other_ones(run: Run) -> None:
    says = [guess.says for guess in other_sinks(case_of(run, "attn_softmax", weights(run, sinks_of(run))))]
    assert not any(each.startswith(("one sink", "other sinks")) for each in says)
