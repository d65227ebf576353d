"""What a decode step that was recorded alone takes from the oracle's run, where it is held in few bits."""

from __future__ import annotations

import numpy as np

from apr_falsify.compare.borrowed import with_uncertain_steps
from apr_falsify.operators.roundoff import Known


def test_a_value_near_an_edge_is_uncertain_by_a_whole_step() -> None:
    """With integers for steps 0.4999 may be held as 0 or 1 where it is off by 0.001; 0.2 is held as 0."""
    value = np.array([[0.4999, 0.2], [1.4995, -0.4999]])
    found = with_uncertain_steps(Known(value=value, sigma=np.full(value.shape, 0.001)), np.rint)
    assert found.sigma is not None
    np.testing.assert_array_equal(found.sigma, [[1.0, 0.001], [1.0, 1.0]])
    np.testing.assert_array_equal(found.value, value)


def test_what_was_recorded_is_no_less_certain_than_before() -> None:
    value = np.array([[0.5], [0.4999]])
    certain = Known(value=value, sigma=None)
    assert with_uncertain_steps(certain, np.rint) is certain
    rows = with_uncertain_steps(Known(value=value, sigma=np.array([[0.0], [0.01]])), np.rint)
    np.testing.assert_array_equal(rows.sigma, [[0.0], [1.0]])


def test_a_step_to_infinity_leaves_a_value_as_uncertain_as_it_is() -> None:
    """f16 ends at 65504, and what is nearer to 65536 is infinite."""
    known = Known(value=np.array([[65500.0, 1.0]]), sigma=np.full((1, 2), 30.0))
    found = with_uncertain_steps(known, lambda values: values.astype(np.float16).astype(np.float64))
    np.testing.assert_array_equal(found.sigma, [[32.0, 30.0]])
