"""Where an accusation is doubtful: an input that was not captured, or was saved in 16 bits, could explain it.

A product that had to be computed here was rounded by the runtime in a way that no file shows, and a value on
the edge between two 8-bit steps then falls to either side. Such a stage counts as not replayable. Products
within the stage itself are no matter where the runtime computes plainly, or as is stated: every arithmetic of
the table was tried on them.
"""

from __future__ import annotations

from apr_falsify.compare.recorded_formats import saved_words
from apr_falsify.compare.replay import Missing, Replayer
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.numerics.operand_rules import PLAIN, ROUNDED_STEPS, Rule
from apr_falsify.operators.table import FUSED

BLUR = 0.5
"""Relative L2 that a product in an unknown arithmetic may leave in a stage.

An 8-bit K cache with biases in the tens leaves 0.16 in attention; a scale that is missing leaves more.
"""


def doubt(
    replayer: Replayer, key: Key, expected: Rule, rule: Rule, composed: tuple[str, ...], residual: float
) -> Missing | None:
    """Return what is missing for a stage to be in error, ``None`` where nothing is.

    Args:
        replayer: replays the trace.
        key: a stage that is not what its replay says.
        expected: the arithmetic that its runtime is expected to use.
        rule: the one that it is judged by.
        composed: the stages that were computed because they were not captured.
        residual: relative L2 of what is left of the stage.

    """
    if replayer.inputs_saved(key) and expected is not PLAIN:
        what = f"its inputs as the runtime had them: they were saved as {saved_words(replayer.trace)}"
        return Missing(what=what, remedy="save them in full")
    plain = expected in (PLAIN, ROUNDED_STEPS) or replayer.is_stated(key)
    within = FUSED.get(key.stage, ()) if plain else ()
    exact = key.stage not in FUSED or rule in (
        PLAIN,
        ROUNDED_STEPS,
    )  # else an input that was computed here may lie on an edge
    computed_here = [name for name in composed if (STAGES[name].product or not exact) and name not in within]
    if not computed_here or residual >= BLUR:
        return None
    what = ", ".join(computed_here)
    return Missing(what=what, remedy=f"capture {what} too")
