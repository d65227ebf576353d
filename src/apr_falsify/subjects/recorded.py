"""A run that was recorded elsewhere: a trace of ours, a bare directory as ``apr`` leaves it, or any arrays.

Foreign arrays (``.npz``, ``.safetensors``, a directory of ``.npy``) are read as MAPPING.yaml in their folder
says, or as the file that the setting ``mapping`` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from apr_falsify import __version__
from apr_falsify.errors import TokensError, TraceError
from apr_falsify.formats.weights import Model
from apr_falsify.model.passes import Passes
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key, Layout
from apr_falsify.subjects.adoption import adopted_geometry, adopted_model, adopted_tokens, verify_tokens
from apr_falsify.subjects.dumps import holds_arrays
from apr_falsify.subjects.interface import RuntimeSetting, Target
from apr_falsify.subjects.layouts import declaration
from apr_falsify.subjects.mapped import read_mapped
from apr_falsify.subjects.mapping import MAPPING_YAML, read_mapping
from apr_falsify.subjects.own_weights import open_own
from apr_falsify.traces.capture import Request, Sink
from apr_falsify.traces.provenance import Provenance, utc_now
from apr_falsify.traces.stage_files import scan
from apr_falsify.traces.trace import (
    TRACE_JSON,
    StageArray,
    Trace,
    is_trace,
    read_stage,
    read_trace,
    shaped,
)

APR_PROMPT = "What is 2+2?"
"""The text that ``apr trace --payload`` always runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedSubject:
    """A recorded run.

    Attributes:
        trace: what was recorded.
        prompt: the text it ran, where that is known.
        model: its own weights, where its mapping file names them.
        notes: what cannot be checked of it, or was read of it that nobody said.

    """

    trace: Trace
    prompt: str | None = None
    model: Model | None = None
    notes: tuple[str, ...] = ()

    @property
    def geometry(self) -> Geometry:
        """The geometry of its model."""
        return self.trace.geometry

    @property
    def tokens(self) -> tuple[int, ...]:
        """The token ids that were run."""
        return self.trace.tokens

    @property
    def passes(self) -> Passes:
        """How it computed them."""
        return self.trace.passes

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
            provenance=self.trace.provenance,
            geometry=self.trace.geometry,
            tokens=self.trace.tokens,
            tokens_verified=self.trace.tokens_verified,
            in_passes=self.trace.in_passes,
        )

    def differs(self, trace: Trace, request: Request) -> str | None:
        """Say how ``trace`` is not a copy of this recording."""
        if trace.stages.keys() != self.trace.stages.keys() or trace.tokens != self.trace.tokens:
            return "it holds other stages or tokens than the recording"
        if trace.passes != self.trace.passes:
            return "it holds other passes than the recording"
        for key, array in self.trace.stages.items():
            if array.layout != trace.stages[key].layout:
                return f"{key.stage} of layer {key.layer} has another layout than the recording"
            if array.data.tobytes() != trace.stages[key].data.tobytes():
                return f"{key.stage} of layer {key.layer} has other values than the recording"
        return None


def open_recorded(target: Target) -> RecordedSubject:
    """Open the recording at ``target``: by ``trace.json``, by its mapping file, else as ``apr`` leaves it.

    Raises:
        TraceError: something there cannot be trusted, or nothing says which model was run.
        TokensError: the token ids are missing or not those of the recording.
        AprtError: a file that is not a whole APRT file.

    """
    if is_trace(target.path):
        trace = read_trace(target.path)
        if target.tokens not in (None, trace.tokens):
            raise TokensError(
                "--tokens are not those of the recording",
                where=target.path,
                expected=f"{list(trace.tokens)}, as {TRACE_JSON} says",
                remedy="leave --tokens out",
            )
        return RecordedSubject(trace=trace, prompt=trace.provenance.prompt)
    if is_foreign(target):
        mapping_file = _mapping_file(target)
        trace = read_mapped(target, mapping_file)
        own, notes = read_mapping(mapping_file).weights, _unsaid(trace, mapping_file)
        if own is None:
            return RecordedSubject(trace=trace, prompt=trace.provenance.prompt, notes=notes)
        model, more = open_own(own, mapping_file, trace.geometry, target.model)
        return RecordedSubject(
            trace=trace, prompt=trace.provenance.prompt, model=model, notes=(*notes, *more)
        )
    return RecordedSubject(trace=read_bare(target), prompt=APR_PROMPT)


SETTINGS: Mapping[str, RuntimeSetting] = {"mapping": RuntimeSetting(read=Path, expected="a mapping file")}


def is_foreign(target: Target) -> bool:
    """Whether there are arrays of another program at ``target``: a file, ``.npy`` files, or a mapping."""
    path = target.path
    if "mapping" in target.options or path.is_file() or (path / MAPPING_YAML).exists():
        return True
    return path.is_dir() and holds_arrays(path)


def _unsaid(trace: Trace, said: Path) -> tuple[str, ...]:
    """Return what the recording shows and its mapping does not say: which tokens are padding."""
    pads = trace.passes.padding
    if not pads or read_mapping(said).padding is not None:
        return ()
    return (
        f"whether the first {pads} tokens are padding: no token after them sees them, so they are read as "
        f"such; `padding: {{left: {pads}}}` in the mapping says so",
    )


def _mapping_file(target: Target) -> Path:
    if "mapping" in target.options:
        return Path(target.options["mapping"])
    folder = target.path if target.path.is_dir() else target.path.parent
    if not (folder / MAPPING_YAML).exists():
        raise TraceError(
            f"nothing says which array is which stage: no {MAPPING_YAML}",
            where=folder,
            expected="a mapping file there, or --subject-option mapping=FILE",
            remedy=f"apr-falsify capture recorded:{target.path} --print-mapping --oracle MODEL "
            f"> {folder / MAPPING_YAML}",
        )
    return folder / MAPPING_YAML


def read_bare(target: Target) -> Trace:
    """Read a directory of APRT files without ``trace.json``; model and tokens come from elsewhere.

    Raises:
        TraceError: nothing says which model was run, or a file does not fit it.
        TokensError: no token ids, or ids that do not match the rows of ``embedding``.

    """
    files = scan(target.path)
    geometry, interleaved = adopted_geometry(target)
    values = {key: read_stage(path, key) for key, path in files.items()}
    tokens = adopted_tokens(target, values.get(Key(0, "embedding")), geometry)
    declared = declaration("apr").layout(interleaved)
    stages = {}
    for key in values:
        layout: tuple[Layout, ...] = declared.get(key.stage, ())
        data = shaped(values[key], key, layout, geometry, len(tokens), files[key])
        stages[key] = StageArray(data=data, layout=layout)
    recorded = stages.get(Key(0, "embedding"))
    verified = verify_tokens(target, None if recorded is None else recorded.data, tokens)
    return Trace(
        provenance=_provenance(target, geometry),
        geometry=geometry,
        tokens=tokens,
        stages=stages,
        path=target.path,
        tokens_verified=verified,
    )


def _provenance(target: Target, geometry: Geometry) -> Provenance:
    return Provenance(
        runtime="apr",
        driver=f"apr-falsify {__version__} (recorded)",
        model=adopted_model(target),
        prompt=APR_PROMPT,
        arithmetic="unknown",
        created=utc_now(),
    )
