"""llama.cpp itself, through llama-cpp-python's eval callback, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from apr_falsify import __version__
from apr_falsify.errors import MissingDependencyError, OutputError, ProcessError
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.passes import Passes
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import Key
from apr_falsify.subjects.adoption import verify_tokens
from apr_falsify.subjects.interface import DEFAULT_SECONDS, Target
from apr_falsify.subjects.llama_cpp.graph import stages_of_capture
from apr_falsify.subjects.llama_cpp.nodes import FLASH_HIDES, check_family, nodes_of
from apr_falsify.subjects.llama_cpp.recording import embedding_rows, opened_capture
from apr_falsify.subjects.llama_cpp.settings import FLASH, PARAMETERS, parameters
from apr_falsify.subjects.logs import Log, keeping_log, scratch
from apr_falsify.subjects.process import Program
from apr_falsify.traces.capture import Request, Sink
from apr_falsify.traces.identity import difference, model_sha256, name_of
from apr_falsify.traces.provenance import Provenance, utc_now
from apr_falsify.traces.trace import Trace

INSTALL = "pip install 'apr-falsify[llama-cpp]'"
PACKAGE = "llama_cpp"
CHILD = Path(__file__).with_name("child.py")

NOT_SETTINGS = ("raw-capture", "python")
"""Options that change nothing of what is computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppSubject:
    """A GGUF file to be run by llama.cpp.

    Attributes:
        model: the file.
        options: what the user hands to llama.cpp.
        seconds: how long one run of it may take.
        log: the file for what it prints, ``None`` for one that stays only where it failed.

    """

    model: Model
    options: Mapping[str, str] = field(default_factory=dict)
    seconds: float = DEFAULT_SECONDS
    log: Path | None = None
    tokens: tuple[int, ...] | None = None
    prompt: str | None = None
    layers: tuple[int, ...] | None = None
    passes: Passes | None = None

    @property
    def geometry(self) -> Geometry:
        """The geometry of its model."""
        return self.model.geometry

    @property
    def settings(self) -> dict[str, str]:
        """What the user hands to llama.cpp and changes what it computes."""
        return {name: text for name, text in self.options.items() if name not in NOT_SETTINGS}

    def encode(self, prompt: str) -> tuple[int, ...]:
        """Return the ids that llama.cpp's own tokenizer of this file gives."""
        found = self._run("encode", {"text": prompt})
        return tuple(found["ids"])

    def capture(self, request: Request, sink: Sink) -> Trace:
        """Run ``request`` and hand its stages to ``sink``.

        Raises:
            ProcessError: llama.cpp refused, crashed or did not end.
            OutputError: the raw capture cannot be stored where the user wants it.
            TraceError: it ran other tokens than it was given.

        """
        request.check(self.geometry)
        keys = request.keys(self.geometry)
        chosen = parameters(self.options, len(request.tokens))
        raw: Path | None = chosen["ours"].get("raw_capture")
        if raw is not None and raw.exists():
            raise OutputError("exists already", where=raw, remedy="remove it, or choose another name")
        with scratch("llama-cpp") as folder:
            out = folder / "graph.npz"
            wanted = {
                "tokens": list(request.tokens),
                "passes": list(request.passes.sizes),
                "positions": list(request.passes.positions),
                "nodes": nodes_of([Key(0, "embedding"), *keys]),
                "out": str(out),
                "compressed": raw is not None,
                "model_params": chosen["model"],
                "context_params": chosen["context"],
            }
            found = self._run("capture", wanted, self.log)
            given, argmax = self._hand_over(out, request, set(keys), sink)
            if raw is not None:
                _keep(out, raw)
        return sink.finish(
            provenance=replace(
                self._provenance(request, found["description"], chosen),
                argmax=None if argmax is None else {"id": argmax},
                absent={name: why_absent(name, chosen) for _, name in keys if name not in given},
            ),
            geometry=self.geometry,
            tokens=request.tokens,
            in_passes=request.in_passes,
        )

    def _run(self, verb: str, request: Mapping[str, Any], log: Path | None = None) -> dict[str, Any]:
        python = Path(self.options.get("python", sys.executable))
        return run_child(verb, self.model.path, request, python=python, seconds=self.seconds, log=log)

    def _hand_over(
        self, out: Path, request: Request, keys: set[Key], sink: Sink
    ) -> tuple[set[str], int | None]:
        """Read the raw capture as any other.

        Returns:
            The stages that it has, and the most likely next token, where it has the logits.

        """
        given: set[str] = set()
        argmax = None
        with opened_capture(out) as arrays:
            rows = embedding_rows(arrays, self.geometry, self.model.path)
            verify_tokens(Target(path=self.model.path, model=self.model), rows, request.tokens)
            interleaved = self.model.weights.interleaved
            found = stages_of_capture(
                arrays, self.geometry, len(request.tokens), interleaved, self.model.path
            )
            for key, array in found:
                if key in keys:
                    sink.add(key, array.data, array.layout)
                    given.add(key.stage)
                if key == (None, "lm_head"):
                    argmax = int(np.argmax(array.data))
        return given, argmax

    def _provenance(
        self, request: Request, found: Mapping[str, Any], chosen: Mapping[str, Any]
    ) -> Provenance:
        return Provenance(
            runtime="llama-cpp",
            version=version_of(found),
            binary_sha256=model_sha256(tuple(Path(file) for file in found["files"])),
            driver=f"apr-falsify {__version__}",
            model=name_of(self.model.path, self.model.files),
            model_sha256=model_sha256(self.model.files),
            prompt=request.prompt,
            device="gpu" if found["offload"] and chosen["model"]["n_gpu_layers"] else "cpu",
            settings=self.settings,
            libraries={"llama-cpp-python": found["package"], "system": found["system"]},
            layers=(request.layers.start, request.layers.stop),
            stages=request.stages,
            created=utc_now(),
        )

    def differs(self, trace: Trace, request: Request) -> str | None:
        """Say how ``trace`` is not what :meth:`capture` would give."""
        wanted = {
            "runtime": "llama-cpp",
            "version": version_of(self._run("describe", {})["description"]),
            "model_sha256": model_sha256(self.model.files),
            "settings": self.settings,
        }
        return difference(trace, request, self.geometry, wanted)


def why_absent(name: str, chosen: Mapping[str, Any]) -> str:
    """Say why llama.cpp's graph has no node for a stage."""
    if name in FLASH_HIDES and chosen["context"]["flash_attn_type"] != FLASH["off"]:
        return "flash attention computes it within one operation; flash-attn=off shows it"
    return "llama.cpp's graph computes it within another node"


def version_of(found: Mapping[str, Any]) -> str:
    """Return the version in words: the package's, and that of the ggml that it carries."""
    ggml = f", ggml {found['ggml']}" if found["ggml"] else ""
    commit = f" ({found['commit']})" if found["commit"] not in ("", "unknown") else ""
    return f"llama-cpp-python {found['package']}{ggml}{commit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What a llama-cpp-python is.

    Attributes:
        version: its version in words.
        lacks: the settings that it does not know.
        offload: whether it can use a GPU.

    """

    version: str
    lacks: tuple[str, ...]
    offload: bool


def abilities() -> Features:
    """Ask llama.cpp what it is.

    Raises:
        MissingDependencyError: it is not installed.
        ProcessError: it cannot be loaded.

    """
    fields: dict[str, list[str]] = {"model": [], "context": []}
    for row in PARAMETERS.values():
        fields.get(row.owner, []).extend(row.fields)
    found = run_child("describe", Path(), {"fields": fields})
    missing = found["lacks"]
    return Features(
        version=version_of(found["description"]),
        lacks=tuple(name for name, row in PARAMETERS.items() if set(row.fields) & set(missing)),
        offload=found["description"]["offload"],
    )


def installed() -> bool:
    """Whether llama-cpp-python is there; it is not imported."""
    return importlib.util.find_spec(PACKAGE) is not None


def run_child(
    verb: str,
    model: Path,
    request: Mapping[str, Any],
    *,
    python: Path = Path(sys.executable),
    seconds: float = DEFAULT_SECONDS,
    log: Path | None = None,
) -> dict[str, Any]:
    """Let llama.cpp do one thing in a process of its own, and return what it found.

    Raises:
        MissingDependencyError: it is not installed.
        ProcessError: it refused, crashed or did not end; the last lines of its log are quoted.

    """
    if python == Path(sys.executable) and not installed():
        raise MissingDependencyError(
            "llama-cpp-python is not installed", where=f"llama-cpp:{model}", remedy=INSTALL
        )
    program = Program(name="llama.cpp", binary=python, seconds=seconds)
    with scratch("llama-cpp") as folder:
        result, place = folder / "result.json", folder / "request.json"
        place.write_text(json.dumps({**request, "model": str(model), "result": str(result)}))
        with keeping_log(log, "llama.cpp") as kept, _explained(program, kept, verb, model, result):
            program.run(str(CHILD), verb, str(place), log=kept)
        found: dict[str, Any] = json.loads(result.read_text())
    return found


@contextmanager
def _explained(program: Program, log: Log, verb: str, model: Path, result: Path) -> Iterator[None]:
    """Tell what llama.cpp refused in its own words, and any other end of it as it was."""
    try:
        yield
    except ProcessError as error:
        said = json.loads(result.read_text()).get("error") if result.exists() else None
        what = said or error.what.replace(str(CHILD), verb)
        failure = program.failed(what, log, remedy="check the file and the settings")
        failure.where = f"llama-cpp:{model}"
        raise failure from error


def _keep(out: Path, raw: Path) -> None:
    """Move the raw capture to where the user wants it: whole, or not at all."""
    partial = raw.with_name(f".{raw.name}.partial")
    try:
        raw.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(out, partial)
        partial.replace(raw)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"the raw capture cannot be saved: {error.strerror}", where=raw) from error


def open_live(target: Target) -> LlamaCppSubject:
    """Open the GGUF file at ``target`` as a subject; nothing is run.

    Raises:
        ModelError: it cannot be read.
        TraceError: a family whose graph is not known here.

    """
    model = open_model(target.path)
    check_family(model.geometry, target.path)
    return LlamaCppSubject(model=model, options=target.options, seconds=target.seconds, log=target.log)
