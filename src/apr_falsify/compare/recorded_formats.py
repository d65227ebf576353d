"""The formats to which a recording's stages were rounded when they were saved, or are within products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from apr_falsify.model.stages import Key
from apr_falsify.numerics.arithmetic import FORMATS
from apr_falsify.numerics.operand_rules import Operation
from apr_falsify.operators.roundoff import UNIT, Known
from apr_falsify.traces.trace import Trace


def saved_words(trace: Trace) -> str:
    """Return the formats that stages were rounded to when they were saved, in words."""
    return " and ".join(dict.fromkeys(trace.provenance.saved_as.values()))


def saved_unit(trace: Trace) -> float:
    """Return the unit roundoff of the coarsest format in which a stage was saved; f32's where none was."""
    return max((FORMATS[name].unit_roundoff for name in trace.provenance.saved_as.values()), default=UNIT)


def as_operands(
    known: dict[str, Known], operation: Operation, sources: Mapping[str, Key], formats: Mapping[str, str]
) -> dict[str, Known]:
    """Return the inputs of a stage as it takes them: a product rounds those that hold more digits.

    Args:
        known: role -> input.
        operation: how runtimes hold the stage's operands.
        sources: role -> the stage that it is.
        formats: stage -> the number format that products round it to; of those that are not rounded, none.

    """
    if operation is Operation.ELEMENTWISE:
        return known
    rounded = {role: FORMATS[formats[name]] for role, (_, name) in sources.items() if name in formats}
    return {
        **known,
        **{
            role: replace(known[role], value=kept.round(known[role].value).astype(np.float64))
            for role, kept in rounded.items()
        },
    }
