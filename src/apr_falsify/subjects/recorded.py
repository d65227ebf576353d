"""A run that was recorded elsewhere: a trace of ours, or a bare directory as ``apr`` leaves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apr_falsify import __version__
from apr_falsify.capture import Request, Sink
from apr_falsify.errors import TokensError, TraceError
from apr_falsify.geometry import Geometry
from apr_falsify.stages import Layout
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.layouts import LAYOUTS
from apr_falsify.trace import (
    TRACE_JSON,
    Key,
    Provenance,
    StageArray,
    Trace,
    read_stage,
    read_trace,
    scan,
    shaped,
    utc_now,
)
from apr_falsify.weights import Model, Tensor

APR_PROMPT = "What is 2+2?"
"""The text that ``apr trace --payload`` always runs."""

TOKEN_COSINE_MARGIN = 1e-3
"""How much nearer another row of the embedding table must be before a token id is refused.

Rows of a 4-bit table lie within some 1e-2 of the original row, distinct rows are almost orthogonal.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedSubject:
    """A recorded run.

    Attributes:
        trace: what was recorded.
        prompt: the text it ran, where that is known.
        model: always ``None``: a recording holds no weights.

    """

    trace: Trace
    prompt: str | None = None
    model: Model | None = None

    @property
    def geometry(self) -> Geometry:
        """The geometry of its model."""
        return self.trace.geometry

    @property
    def tokens(self) -> tuple[int, ...]:
        """The token ids that were run."""
        return self.trace.tokens

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of which more was recorded than what feeds the next layer."""
        held = self.trace.layers
        more = {layer for layer, name in self.trace.stages if name != "post_ffn_residual"}
        return tuple(layer for layer in held if layer in more) or held

    def capture(self, request: Request, sink: Sink) -> Trace:
        """Hand the recorded stages to ``sink``, all of them: nothing is run."""
        for key, array in self.trace.stages.items():
            sink.add(key, array.data, array.layout)
        return sink.finish(
            provenance=self.trace.provenance, geometry=self.trace.geometry, tokens=self.trace.tokens
        )

    def differs(self, trace: Trace, request: Request) -> str | None:
        """Say how ``trace`` is not a copy of this recording."""
        if trace.stages.keys() != self.trace.stages.keys() or trace.tokens != self.trace.tokens:
            return "it holds other stages or tokens than the recording"
        for key, array in self.trace.stages.items():
            if array.data.tobytes() != trace.stages[key].data.tobytes():
                return f"{key[1]} of layer {key[0]} has other values than the recording"
        return None


def open_recorded(target: Target) -> RecordedSubject:
    """Open the recording at ``target``: with ``trace.json`` as it is, else as ``apr`` leaves it.

    Raises:
        TraceError: something there cannot be trusted, or nothing says which model was run.
        TokensError: the token ids are missing or not those of the recording.
        AprtError: a file that is not a whole APRT file.

    """
    if (target.path / TRACE_JSON).exists():
        trace = read_trace(target.path)
        if target.tokens not in (None, trace.tokens):
            raise TokensError(
                "--tokens are not those of the recording",
                where=target.path,
                expected=f"{list(trace.tokens)}, as {TRACE_JSON} says",
                remedy="leave --tokens out",
            )
        return RecordedSubject(trace=trace, prompt=trace.provenance.prompt)
    return RecordedSubject(trace=read_bare(target), prompt=APR_PROMPT)


def read_bare(target: Target) -> Trace:
    """Read a directory of APRT files without ``trace.json``; model and tokens come from elsewhere.

    Raises:
        TraceError: nothing says which model was run, or a file does not fit it.
        TokensError: no token ids, or ids that do not match the rows of ``embedding``.

    """
    files = scan(target.path)
    geometry, interleaved = _geometry(target)
    values = {key: read_stage(path, key) for key, path in files.items()}
    tokens = _tokens(target, values, geometry)
    declared = LAYOUTS["apr"](interleaved)
    stages = {}
    for key in values:
        layout: tuple[Layout, ...] = declared.get(key[1], ())
        data = shaped(values[key], key, layout, geometry, len(tokens), files[key])
        stages[key] = StageArray(data=data, layout=layout)
    verified = _verify(target, stages, tokens)
    return Trace(
        provenance=_provenance(target, geometry),
        geometry=geometry,
        tokens=tokens,
        stages=stages,
        path=target.path,
        tokens_verified=verified,
    )


def _geometry(target: Target) -> tuple[Geometry, bool]:
    if target.model is not None:
        return target.model.geometry, target.model.weights.interleaved
    if target.reference is not None:
        interleaved = any(Layout.INTERLEAVED in array.layout for array in target.reference.stages.values())
        return target.reference.geometry, interleaved
    raise TraceError(
        f"no {TRACE_JSON}, and nothing says which model was run",
        where=target.path,
        remedy="name the model: --oracle MODEL (bisect) or --weights MODEL (compare)",
    )


def _tokens(
    target: Target, values: Mapping[Key, npt.NDArray[np.float32]], geometry: Geometry
) -> tuple[int, ...]:
    known = target.tokens or (target.reference.tokens if target.reference is not None else None)
    if known is not None:
        return known
    hint = ""
    table = _embedding_table(target)
    if (
        (0, "embedding") in values
        and table is not None
        and values[0, "embedding"].size % geometry.hidden == 0
    ):
        rows = values[0, "embedding"].reshape(-1, geometry.hidden)
        hint = f"--tokens {','.join(str(token) for token in nearest_tokens(rows, table)[0])} " + (
            "(the rows of `embedding` are nearest to these; check them against the run's own output)"
        )
    raise TokensError(
        f"no {TRACE_JSON}, and nothing says which tokens were run",
        where=target.path,
        expected="the ids that apr printed as `Token ids: [...]`",
        remedy=hint or "--tokens 1,2,3",
    )


def _embedding_table(target: Target) -> Tensor | None:
    return None if target.model is None else target.model.weights.tensor("embed")


def nearest_tokens(
    rows: npt.NDArray[np.float32], table: Tensor
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return, for each row [S, E], the id of the table's row with the highest cosine, and that cosine.

    A row without a direction (zero or not finite) has cosine NaN.
    """
    step = max(1, (1 << 22) // table.shape[1])
    unit = _unit(rows)
    best = np.full(len(rows), -np.inf)
    ids = np.zeros(len(rows), dtype=np.int64)
    for start in range(0, table.shape[0], step):
        cosines = unit @ _unit(table.rows(start, min(table.shape[0], start + step))).T
        cosines[np.isnan(cosines)] = -np.inf
        at = np.argmax(cosines, axis=1)
        value = cosines[np.arange(len(rows)), at]
        better = value > best
        best[better], ids[better] = value[better], at[better] + start
    return ids, np.where(np.isfinite(best), best, np.nan)


def _unit(rows: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    values = rows.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit: npt.NDArray[np.float64] = values / np.linalg.norm(values, axis=-1, keepdims=True)
    return unit


def _verify(target: Target, stages: Mapping[Key, StageArray], tokens: tuple[int, ...]) -> bool:
    """Check the token ids against the recorded embedding; ``False`` where there is nothing to check."""
    table = _embedding_table(target)
    recorded = stages.get((0, "embedding"))
    if table is None or recorded is None:
        return False
    rows = recorded.data
    ids, best = nearest_tokens(rows, table)
    claimed = np.stack([table.rows(token, token + 1)[0] for token in tokens])
    own = np.sum(_unit(rows) * _unit(claimed), axis=1)
    wrong = [index for index in range(len(tokens)) if own[index] < best[index] - TOKEN_COSINE_MARGIN]
    if wrong:
        at = wrong[0]
        raise TokensError(
            f"token {at} is given as {tokens[at]}, but its row of `embedding` is that of {ids[at]}",
            where=target.path,
            expected=f"ids that match the rows: {','.join(str(token) for token in ids)}",
            remedy="pass the ids that the run printed, and the model that it ran",
        )
    return bool(np.all(np.isfinite(own)))


def _provenance(target: Target, geometry: Geometry) -> Provenance:
    return Provenance(
        runtime="apr",
        driver=f"apr-falsify {__version__} (recorded)",
        model="" if target.model is None else str(target.model.path),
        prompt=APR_PROMPT,
        arithmetic="unknown",
        created=utc_now(),
    )
