"""FALSIFY-PORT-001: no stage of layer 0 introduces an error."""

from dataclasses import replace

import pytest

import apr_falsify as af


@pytest.mark.falsify_port_001
def test_no_stage_introduces_an_error(bisection):
    """Every stage of the lane's subject is what its own inputs make it."""
    if bisection.kind is not af.Kind.CONSISTENT:
        raise af.Falsified("predicted: no stage of layer 0 introduces an error", bisection)


@pytest.mark.falsify_port_001(role="control")
def test_a_residual_that_is_one_percent_off_is_located(oracle_trace, subject_trace, keep_bisection):
    """The instrument works: what is wrong is found where it is wrong, and nothing else is accused."""
    stages = dict(subject_trace.stages)
    last = stages[0, "post_ffn_residual"]
    stages[0, "post_ffn_residual"] = replace(last, data=last.data * 1.01)
    found = af.bisect(oracle_trace, replace(subject_trace, stages=stages))
    keep_bisection("residual-scaled", found)
    assert [source.stages for source in found.sources] == [("post_ffn_residual",)]
