"""MAPPING.yaml as the wiring by replay gives it: each stage with what shows it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence

from apr_falsify import __version__
from apr_falsify.matching.result import WiredStage, Wiring
from apr_falsify.model.stages import STAGES, Scope
from apr_falsify.subjects.mapped_parts import Axis, Stored
from apr_falsify.subjects.mapping import QKV_PARTS, SCHEMA, canonical_axes

_WIDTH = 100


def wired_text(
    wiring: Wiring, recording: str, tokens: tuple[int, ...], *, tokens_from: str | None, dtype: str
) -> str:
    """Return the file.

    Args:
        wiring: which array is which stage.
        recording: the recording's name.
        tokens: the token ids that were run.
        tokens_from: the array that holds them, ``None`` where none does.
        dtype: the number format in which the run keeps its stages.

    """
    held = json.dumps(tokens_from, ensure_ascii=False) if tokens_from is not None else str(list(tokens))
    lines = [
        f"# Wired by apr-falsify {__version__} for {json.dumps(recording)}: each array is the stage that "
        "its inputs make it, or of which its readers are made.",
        f"schema: {SCHEMA}",
        "runtime: unnamed  # the port's name; version, device, prompt and arithmetic may follow",
        f"dtype: {dtype}  # the format in which the port keeps its stages: f32, f16, bf16 or f64",
        f"tokens: {held}",
        "stages:",
        *(line for stage in wiring.stages for line in _stage(stage)),
        *_tail(wiring),
    ]
    return "\n".join(lines)


def _stage(stage: WiredStage) -> Iterator[str]:
    yield f"  {stage.stage}:"
    for why in stage.why:
        yield from _comment(why, "    # ")
    names = [_listed(stage.pattern)] if stage.pattern else []
    if names:
        yield f"    from: {names[0]}"
    else:
        yield "    from:"
        yield from (
            f"      {layer}: {_listed(each)}" for layer, each in sorted(stage.names.items(), key=_layer)
        )
    if axes := _axes(stage):
        yield f"    axes: {axes}"
    if any(stored.take for stored in stage.stored):
        takes = [_take(stored) for stored in stage.stored]
        yield f"    take: {takes[0] if len(takes) == 1 else '[' + ', '.join(takes) + ']'}"
    if stage.layout:
        yield f"    layout: [{', '.join(word.value for word in stage.layout)}]"


def _layer(pair: tuple[int | None, object]) -> int:
    return -1 if pair[0] is None else pair[0]


def _listed(names: Sequence[str]) -> str:
    quoted = [json.dumps(name, ensure_ascii=False) for name in names]
    return quoted[0] if len(quoted) == 1 else f"[{', '.join(quoted)}]"


def _axes(stage: WiredStage) -> str:
    """Return the axes as the file says them, empty where they are the usual ones."""
    each = tuple(stored.axes for stored in stage.stored)
    plain = all(stored.plain for stored in stage.stored)
    usual = QKV_PARTS if len(each) > 1 else (canonical_axes(stage.stage),)
    if plain and each == usual:
        return ""
    rows = [_row(axes) for axes in each]
    return rows[0] if len(rows) == 1 else f"[{', '.join(rows)}]"


def _row(axes: Sequence[Axis]) -> str:
    return f"[{', '.join(axis if isinstance(axis, str) else _row(axis) for axis in axes)}]"


def _take(stored: Stored) -> str:
    cuts = (
        f"{json.dumps(word) if word == '1' else word}: {list(cut[: 2 + (cut[2] > 1)])}"
        for word, cut in stored.take.items()
    )
    return f"{{{', '.join(cuts)}}}" if stored.take else "{}"


def _tail(wiring: Wiring) -> Iterator[str]:
    for left in wiring.open:
        names = ", ".join(json.dumps(name, ensure_ascii=False) for name in left.candidates[:8])
        what = f"Not decided: {left.place} may be {names}. Name the array above, if the port has saved it."
        yield from _comment(what, "# ")
    for note in wiring.left_out:
        yield from _comment(f"Found, and not said above: {note}.", "# ")
    if wiring.unused:
        yield "# Arrays that no stage was found for; a bisection lists them as not checked:"
        yield from (f"#   {json.dumps(name, ensure_ascii=False)}" for name in wiring.unused[:_MOST_LISTED])
        if len(wiring.unused) > _MOST_LISTED:
            yield f"#   and {len(wiring.unused) - _MOST_LISTED} more"
    if missing := [
        name
        for name, row in STAGES.items()
        if not row.inner and row.scope is Scope.LAYER and name in wiring.lacking
    ]:
        yield from _comment(f"Stages that no array was found for: {', '.join(missing)}", "# ")


_MOST_LISTED = 200


def _comment(words: str, mark: str) -> list[str]:
    return textwrap.wrap(
        words,
        _WIDTH,
        initial_indent=mark,
        subsequent_indent=mark,
        break_long_words=False,
        break_on_hyphens=False,
    )
