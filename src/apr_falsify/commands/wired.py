"""The mapping of a recording that has none: its arrays wired by replay, to print or to bisect with."""

from __future__ import annotations

import shlex
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from apr_falsify.commands.progress import busy
from apr_falsify.commands.starter import token_arrays
from apr_falsify.commands.starter_names import likeness
from apr_falsify.commands.wired_text import wired_text
from apr_falsify.errors import TokensError, UndecidedError
from apr_falsify.folders import temporary_folder
from apr_falsify.formats.weights import Model, Weights
from apr_falsify.matching.result import Wiring
from apr_falsify.matching.wire import wire
from apr_falsify.model.stages import STAGES
from apr_falsify.oracle.capture import capture
from apr_falsify.subjects.dump_names import check_one_pass
from apr_falsify.subjects.dumps import read_dump
from apr_falsify.subjects.foreign import Dump
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.mapping import MAPPING_YAML
from apr_falsify.subjects.recorded import RecordedSubject, is_foreign, open_recorded
from apr_falsify.subjects.recording_json import RECORDING_JSON, read_facts
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace, is_trace


@dataclass(frozen=True, slots=True, kw_only=True)
class WiredMapping:
    """A mapping file that nobody wrote.

    Attributes:
        wiring: which array is which stage, and why.
        text: the file.

    """

    wiring: Wiring
    text: str


def wired_mapping(
    path: Path,
    dump: Dump,
    oracle: Trace,
    weights: Weights,
    *,
    tokens_from: str | None,
) -> WiredMapping:
    """Return the mapping of a recording.

    Args:
        path: the recording.
        dump: its arrays.
        oracle: a run of the same tokens by the original.
        weights: the model's weights.
        tokens_from: the array that holds the token ids, ``None`` where none does.

    Raises:
        TraceError: no array is of this model and these tokens.

    """
    if not path.is_dir() or read_facts(path) is None:  # record() writes one pass, under names of any kind
        check_one_pass(dump, path)
    left_out = frozenset() if tokens_from is None else frozenset({tokens_from})
    with busy("wiring"), np.errstate(invalid="ignore"):
        wiring = wire(path, dump, weights, oracle.tokens, oracle=oracle, likeness=likeness, left_out=left_out)
    text = wired_text(wiring, path.name, oracle.tokens, tokens_from=tokens_from, dtype=_dtype(dump, wiring))
    return WiredMapping(wiring=wiring, text=text)


_FORMATS = {"f16": "f16", "bf16": "bf16", "u16": "bf16", "v16": "bf16"}


def _dtype(dump: Dump, wiring: Wiring) -> str:
    """Return the format in which the run keeps its stages: that of most arrays that became one."""
    wired = {name for stage in wiring.stages for names in stage.names.values() for name in names}
    formats = Counter(_FORMATS.get(dump[name].kind, "f32") for name in wired if name in dump)
    return formats.most_common(1)[0][0] if formats else "f32"


@contextmanager
def as_file(mapping: WiredMapping) -> Iterator[Path]:
    """Write the mapping file where a recording is opened by it."""
    folder = temporary_folder("mapping")
    try:
        path = folder / MAPPING_YAML
        path.write_text(mapping.text, encoding="utf-8")
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_decided(mapping: WiredMapping, where: Path) -> None:
    """Refuse a wiring of which a verdict could rest on a guess.

    Raises:
        UndecidedError: a place may be one array or another.

    """
    undecided = mapping.wiring.open
    if not undecided:
        return
    first = undecided[0]
    names = ", ".join(first.candidates[:6])
    more = f"; {len(undecided) - 1} more places are undecided" if len(undecided) > 1 else ""
    raise UndecidedError(
        f"{first.place} may be one of several arrays: {names}{more}",
        where=where,
        expected=f"a {MAPPING_YAML} that names it",
        remedy=f"apr-falsify capture {shlex.quote(f'recorded:{where}')} --print-mapping --oracle MODEL "
        f"> {MAPPING_YAML}, and say there which array is {first.place.key.stage}",
    )


def lacks_mapping(runtime: str, target: Target) -> bool:
    """Whether a target is arrays of which nothing says which stage they are, and a model could tell."""
    if runtime != "recorded" or target.model is None or target.passes or "mapping" in target.options:
        return False
    folder = target.path if target.path.is_dir() else target.path.parent
    known = is_trace(target.path) or (folder / MAPPING_YAML).exists()
    return not known and target.path.exists() and is_foreign(target)


def open_wired(target: Target) -> RecordedSubject:
    """Return a recording without a mapping, its arrays wired by replay.

    Raises:
        TokensError: nothing says which tokens were run.
        TraceError: no array is of this model and these tokens.
        UndecidedError: a place may be one array or another.

    """
    assert target.model is not None
    dump = read_dump(target.path)
    tokens, source = _tokens(dump, target)
    oracle = every_stage(target.model, tokens, dtype="f32", device="cpu")
    mapping = wired_mapping(target.path, dump, oracle, target.model.weights, tokens_from=source)
    check_decided(mapping, target.path)
    with as_file(mapping) as file:
        subject = open_recorded(replace(target, options={**target.options, "mapping": str(file)}))
    return replace(subject, notes=(*subject.notes, _note(mapping.wiring)))


def every_stage(model: Model, tokens: tuple[int, ...], *, dtype: str, device: str) -> Trace:
    """Run the oracle and return all that it computes."""
    layers = range(model.geometry.layers)
    request = Request(tokens=tokens, layers=layers, stages=tuple(STAGES), feeder=True)
    request.check(model.geometry)
    with busy("running the oracle"):
        return capture(model, request, MemorySink(), dtype=dtype, device=device)


def tokens_said(path: Path, given: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Return the token ids that the user says or a recording says of itself, ``None`` where nobody does.

    Raises:
        TokensError: they say different ones.

    """
    facts = read_facts(path) if path.is_dir() else None
    if facts is None:
        return given
    if given not in (None, facts.tokens):
        raise TokensError(
            "--tokens are not those of the recording",
            where=path,
            expected=f"{list(facts.tokens)}, as {RECORDING_JSON} says",
            remedy="leave --tokens out",
        )
    return facts.tokens


def tokens_run(
    held: Mapping[str, tuple[int, ...]], given: tuple[int, ...] | None
) -> tuple[tuple[int, ...] | None, str | None]:
    """Return the token ids that were run, as far as they are known, and the array that holds them.

    Args:
        held: the arrays that may hold them, see ``starter.token_arrays``.
        given: the ids that the user or a trace says.

    """
    tokens = next(iter(held.values())) if given is None and len(held) == 1 else given
    return tokens, next((name for name, ids in held.items() if ids == tokens), None)


def _tokens(dump: Dump, target: Target) -> tuple[tuple[int, ...], str | None]:
    assert target.model is not None
    held = token_arrays(dump, target.model.geometry.vocab)
    tokens, source = tokens_run(held, tokens_said(target.path, target.tokens))
    if tokens is None:
        names = f"; {', '.join(held)} may hold them" if held else ""
        raise TokensError(
            f"nothing says which tokens were run{names}", where=target.path, remedy="--tokens 1,2,3"
        )
    return tokens, source


def _note(wiring: Wiring) -> str:
    stages = sum(len(stage.names) for stage in wiring.stages)
    return (
        f"which array is which stage, by anyone but apr-falsify: there is no {MAPPING_YAML}, and {stages} "
        "stages were wired by replay (capture --print-mapping shows how)"
    )
