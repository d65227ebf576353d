"""The text of a starter: MAPPING.yaml with a comment for every proposal."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator

from apr_falsify import __version__
from apr_falsify.commands.starter import Proposal, ProposalContext, Starter
from apr_falsify.commands.starter_match import Candidate
from apr_falsify.subjects.foreign import Dump
from apr_falsify.subjects.mapping import MASKED, QKV_PARTS, SCHEMA, StageMap, canonical_axes

_WIDTH = 100


def starter_text(starter: Starter, dump: Dump, known: ProposalContext, recording: str) -> str:
    """Return the file, ready to be saved as it is.

    Args:
        starter: the proposals.
        dump: the arrays.
        known: what the proposals could be checked against.
        recording: the recording's name.

    """
    return "\n".join([*_head(starter, dump, known, recording), *_tail(starter)])


def _head(starter: Starter, dump: Dump, known: ProposalContext, recording: str) -> Iterator[str]:
    yield f"# Proposals of apr-falsify {__version__} for {recording}; saving this file confirms them."
    yield f"schema: {SCHEMA}"
    yield "runtime: unnamed  # the port's name; version, device, prompt and arithmetic may follow"
    kinds = {array.kind for array in dump.values()}
    if starter.kept is not None:
        yield f"dtype: {starter.kept}  # the values show it, and the stages fit so, whatever the arrays hold"
    elif "f16" in kinds and "f32" not in kinds:
        yield "dtype: f16  # that of the arrays; f32 where the port computed in more and rounded to save them"
    else:
        yield "dtype: f32  # the format in which the port keeps its stages: f32, f16, bf16 or f64"
    yield from _tokens(known)
    yield "stages:" if starter.proposals else "stages: {}"
    for proposal in starter.proposals:
        yield from _stage(proposal)


def _tokens(known: ProposalContext) -> Iterator[str]:
    if known.tokens_from is not None and known.tokens is not None:
        yield f"tokens: {_quoted(known.tokens_from)}  # whole numbers: {list(known.tokens)}"
    elif known.tokens is not None:
        yield f"tokens: {list(known.tokens)}  # as given"
    else:
        yield "# tokens: [...]  # the token ids that were run, or the array that holds them"


def _stage(proposal: Proposal) -> Iterator[str]:
    row = proposal.row
    yield f"  {row.stage}:"
    for note in proposal.notes:
        yield from _comment(note, "    ")
    names = ", ".join(_quoted(name) for name in row.names)
    yield f"    from: {names}" if len(row.names) == 1 else f"    from: [{names}]"
    if not _usual_axes(row) and row.axes != QKV_PARTS:
        yield f"    axes: {_axes(row)}"
    if words := list(_layout_words(row)):
        yield f"    layout: [{', '.join(words)}]"
    if row.dtype:
        yield f"    dtype: {row.dtype}"
    for line, why in proposal.doubts:
        yield f"    # {line}"
        yield from _comment(f"OFF: {why}", "    #   ")


def _usual_axes(row: StageMap) -> bool:
    """Whether the file need not say the axes of ``row``."""
    return len(row.axes) == 1 and row.axes[0] == canonical_axes(row.stage)


def _layout_words(row: StageMap) -> Iterable[str]:
    """Return the layout words that the file says for ``row``."""
    return [*(word.value for word in row.layout), *((MASKED,) if row.masked else ())]


def _axes(row: StageMap) -> str:
    rows = [f"[{', '.join(axes)}]" for axes in row.axes]
    return rows[0] if len(rows) == 1 else f"[{', '.join(rows)}]"


def _tail(starter: Starter) -> Iterator[str]:
    if starter.conflicts:
        why = (
            "Arrays whose name says one stage and whose values are the oracle's of another. Exchanged arrays "
            "may be the very fault: they stay OFF until you add them above as what the port computes there."
        )
        yield from _comment(why, "")
    for conflict in starter.conflicts:
        name, value = conflict.by_name.place.what, conflict.by_value.place.what
        told = f"by name {name}, by value {value} (cosine {conflict.by_value.best:.7f})"
        yield f"#   {_quoted(conflict.by_name.candidate.pattern)}: {told}"
    if starter.unused:
        yield "# Arrays that no stage was found for; a bisection lists them as not checked:"
        for candidate in starter.unused:
            array = candidate.first
            yield f"#   {_quoted(candidate.pattern)}: {array.kind} {list(array.shape)}{_layers(candidate)}"
    if starter.missing:
        yield from _comment(f"Stages that no array was found for: {', '.join(starter.missing)}", "")


def _layers(candidate: Candidate) -> str:
    layers = sorted(layer for layer in candidate.arrays if layer is not None)
    return f", layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else ""


def _comment(words: str, indent: str) -> list[str]:
    mark = indent if "#" in indent else f"{indent}# "
    return textwrap.wrap(
        words,
        _WIDTH,
        initial_indent=mark,
        subsequent_indent=mark,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
