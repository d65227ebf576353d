"""Drives any subject of the registry through the same checks; a new runtime adds one line to ``DRIVEN``."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apr_falsify.commands.runtimes import open_side
from apr_falsify.compare.bisection import Kind
from apr_falsify.compare.layout import canonical
from apr_falsify.compare.localise import bisect
from apr_falsify.errors import AprFalsifyError, MissingDependencyError, ProcessError
from apr_falsify.formats.weights import open_model
from apr_falsify.model.stages import STAGES, canonical_shape
from apr_falsify.oracle.capture import capture as capture_oracle
from apr_falsify.subjects.interface import Startable, Subject, Target
from apr_falsify.traces.capture import MemorySink, Request, TraceWriter
from apr_falsify.traces.trace import Trace, read_trace
from tests.acceptance.programs import PROGRAM, TINY
from tests.subjects.fake_apr import MODEL, TOKENS, fake_apr
from tests.subjects.ports import BUILT
from tests.support import DATA, machine_paths_in

Overrides = Mapping[str, Any]
"""Fields of ``Target``, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Driven:
    """One runtime, as the harness drives it.

    Attributes:
        runtime: its name in the registry.
        path: what stands after the colon for a correct run.
        oracle: the model that it ran.
        tokens: the ids that it runs, or is given.
        layers: how many layers its model has.
        needs: a program that must be on PATH.
        package: a package that must be installed.
        broken: gives the target a program that does what the word says: ``hangs``, ``fails``, ``is-killed``.
        unfit: check -> why it does not apply to this runtime.

    """

    runtime: str
    path: Path
    oracle: Path = TINY
    tokens: tuple[int, ...] = TOKENS
    layers: int = 3
    needs: str | None = None
    package: str | None = None
    broken: Callable[[Path, str], Overrides] | None = None
    unfit: Mapping[str, str] = field(default_factory=dict)

    def open(self, path: Path | None = None, **overrides: Any) -> Subject:
        """Open it as ``bisect`` would."""
        oracle = open_model(self.oracle)
        target = Target(path=path or self.path, model=oracle, tokens=self.tokens, **overrides)
        return open_side(self.runtime, target)

    def request(self, layers: range) -> Request:
        """Return a request for every stage of ``layers``."""
        return Request(tokens=self.tokens, layers=layers, stages=tuple(STAGES), feeder=True)

    def capture(self, layers: range, place: Path | None = None, **overrides: Any) -> Trace:
        """Capture ``layers``, into memory or the directory ``place``."""
        subject, request = self.open(**overrides), self.request(layers)
        if place is None:
            return subject.capture(request, MemorySink())
        with TraceWriter(place) as writer:
            return subject.capture(request, writer)


def identity(driven: Driven, folder: Path) -> None:
    """A capture is known again as the same; one of fewer layers, or of other tokens, is not."""
    whole = range(driven.layers)
    trace = driven.capture(whole, folder / "trace")
    subject, request = driven.open(), driven.request(whole)
    assert subject.differs(trace, request) is None
    assert subject.differs(read_trace(folder / "trace"), request) is None
    other = Trace(
        provenance=trace.provenance,
        geometry=trace.geometry,
        tokens=(*trace.tokens[:-1], trace.tokens[-1] + 1),
        stages=trace.stages,
    )
    assert subject.differs(other, request)
    few = {key: array for key, array in trace.stages.items() if key[0] == 0}
    fewer = Trace(provenance=trace.provenance, geometry=trace.geometry, tokens=trace.tokens, stages=few)
    assert subject.differs(fewer, request)


def determinism(driven: Driven, folder: Path) -> None:
    """Two captures are byte for byte the same."""
    one, two = (driven.capture(range(driven.layers), folder / name) for name in ("one", "two"))
    assert one.tokens == two.tokens
    assert {key: array.sha256 for key, array in one.stages.items()} == {
        key: array.sha256 for key, array in two.stages.items()
    }
    assert one.provenance.binary_sha256 == two.provenance.binary_sha256


def every_stage(driven: Driven, folder: Path) -> None:
    """Every stage that its model has is there, finite, and of its canonical shape in its layout."""
    trace = driven.capture(range(driven.layers))
    wanted = set(driven.request(range(driven.layers)).keys(trace.geometry))
    told = {key for key in wanted if key[1] in trace.provenance.absent}
    assert set(trace.stages) >= wanted - told
    assert len(set(trace.stages)) >= 15 * driven.layers
    dims = trace.geometry.dims(len(trace.tokens))
    for key, array in trace.stages.items():
        name = key[1]
        assert np.isfinite(array.data).all(), name
        values = canonical(array, key, trace.geometry, len(trace.tokens))
        assert values.shape in (canonical_shape(name, dims), canonical_shape(name, dims)[1:]), name


def agreement(driven: Driven, folder: Path) -> None:
    """A correct run is not accused, and every stage of it is compared."""
    model = open_model(driven.oracle)
    layers = range(driven.layers)
    trace = driven.capture(layers)
    oracle = capture_oracle(model, driven.request(layers), MemorySink())
    own = driven.open().model
    result = bisect(
        oracle, trace, weights=model.weights, subject_weights=None if own is None else own.weights
    )
    assert (result.kind, result.sources) == (Kind.CONSISTENT, ())
    assert sum(row.accumulated is not None for row in result.rows) == len(trace.stages)


def layer_selection(driven: Driven, folder: Path) -> None:
    """One layer alone is what it is in the whole run, with what feeds it and nothing else."""
    whole = driven.capture(range(driven.layers))
    last = driven.capture(range(driven.layers - 1, driven.layers))
    feeder = (driven.layers - 2, "post_ffn_residual")
    assert {key for key in last.stages if key[0] != driven.layers - 1} == {feeder}
    for key, array in last.stages.items():
        assert array.data.tobytes() == whole.stages[key].data.tobytes(), key


def portable(driven: Driven, folder: Path) -> None:
    """A trace names no path of the machine that made it, neither of its model nor of a program."""
    copies = [shutil.copytree, shutil.copy2]
    places = [folder / "oracle" / driven.oracle.name, folder / "subject" / driven.path.name]
    for source, place in zip((driven.oracle, driven.path), places, strict=True):
        place.parent.mkdir()
        copies[source.is_file()](source, place)
    moved = replace(driven, oracle=places[0], path=places[1])
    trace = moved.capture(range(1), folder / "trace")
    assert machine_paths_in(folder / "trace", folder) == {}
    ran = places[0] if driven.runtime == "recorded" else places[1]
    assert trace.provenance.model.startswith(f"{ran.name}@sha256:")


def wrong_model(driven: Driven, folder: Path) -> None:
    """What is no model, or no run, is a typed error that names it."""
    (folder / "empty").mkdir()
    (folder / "notes.apr").write_text("not a model")
    (folder / "notes.gguf").write_text("not a model")
    for name in ("nowhere", "empty", "notes.apr", "notes.gguf"):
        with pytest.raises(AprFalsifyError) as caught:
            driven.open(folder / name).capture(driven.request(range(1)), MemorySink())
        assert name in str(caught.value)


def killed_half_way(driven: Driven, folder: Path) -> None:
    """Killed at any moment, a capture leaves a whole trace or none, and the next one is not in its way."""
    model = [str(driven.oracle)] if driven.runtime in ("recorded", "torch") else []
    tokens = ",".join(str(token) for token in driven.tokens)
    place = folder / "trace"
    command = [str(PROGRAM), "capture", f"{driven.runtime}:{driven.path}", *model, "--tokens", tokens]
    command += ["--out", str(place)]
    for begun in (folder / "nothing", place.with_name(f".{place.name}.partial-*")):
        _kill_once_there(command, begun)
        if place.exists():  # it was faster
            assert read_trace(place).tokens == driven.tokens
            shutil.rmtree(place)
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    assert read_trace(place).tokens == driven.tokens
    assert {path.name for path in folder.iterdir()} == {"trace"}


def _kill_once_there(command: list[str], begun: Path) -> None:
    """Run ``command`` and kill it as soon as something of the name ``begun`` is there, at most after 1 s."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        seen, deadline = False, time.monotonic() + (1.0 if begun.name == "nothing" else 60.0)
        while not seen and process.poll() is None and time.monotonic() < deadline:
            seen = any(begun.parent.glob(begun.name))
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)


def no_program(driven: Driven, folder: Path) -> None:
    """A program that is not there is a typed error with what to do."""
    with pytest.raises((MissingDependencyError, ProcessError)) as caught:
        driven.capture(range(1), program=folder / "nowhere")
    assert "nowhere" in str(caught.value)
    assert caught.value.remedy


def time_out(driven: Driven, folder: Path) -> None:
    """A program that hangs is killed when its time is over, and its log is named."""
    error = _failure(driven, folder, "hangs", seconds=1.0)
    assert "did not end within 1 s" in error.what


def crash(driven: Driven, folder: Path) -> None:
    """A program that fails or is killed is a typed error that quotes what it said last."""
    error = _failure(driven, folder, "fails")
    assert "exited with 7" in error.what
    assert "| out of luck" in error.remedy
    assert "SIGKILL" in _failure(driven, folder, "is-killed").what


def _failure(driven: Driven, folder: Path, how: str, **overrides: Any) -> ProcessError:
    assert driven.broken is not None
    broken = driven.broken(folder / how, how)
    with pytest.raises(ProcessError) as caught:
        driven.capture(range(1), folder / "trace", **broken, **overrides, log=folder / f"{how}.log")
    assert not (folder / "trace").exists()
    assert str(folder / f"{how}.log") in caught.value.remedy
    assert (folder / f"{how}.log").is_file()
    return caught.value


def fixed_tokens(driven: Driven, folder: Path) -> None:
    """A program that fixes its ids says them as soon as it is begun, and runs those."""
    subject = driven.open()
    assert isinstance(subject, Startable)
    with subject.begin(driven.request(range(1))) as run:
        assert run.tokens == driven.tokens
        trace = run.capture(driven.request(range(1)), MemorySink())
    assert trace.tokens == driven.tokens


CHECKS: Mapping[str, Callable[[Driven, Path], None]] = {
    "identity": identity,
    "determinism": determinism,
    "every-stage": every_stage,
    "agreement": agreement,
    "layer-selection": layer_selection,
    "portable": portable,
    "wrong-model": wrong_model,
    "killed-half-way": killed_half_way,
    "no-program": no_program,
    "time-out": time_out,
    "crash": crash,
    "fixed-tokens": fixed_tokens,
}
"""What every subject is driven through, unless its line says why it is not."""

OF_PROGRAMS = ("no-program", "time-out", "crash")

_BROKEN = {
    "hangs": "ids; sleep 1000",
    "fails": "ids; echo 'out of luck'; exit 7",
    "is-killed": "ids; play; kill -KILL $$",
}


def _broken_apr(folder: Path, how: str) -> Overrides:
    return {"program": fake_apr(folder / "apr", _BROKEN[how])}


def _broken_python(folder: Path, how: str) -> Overrides:
    folder.mkdir()
    program = folder / "python"
    what = _BROKEN[how].replace("ids; ", "echo started; ").replace("play; ", "")
    program.write_text(f"#!/bin/sh\n{what}\n")
    program.chmod(0o755)
    return {"options": {"python": str(program)}}


_OWN_CODE = dict.fromkeys(OF_PROGRAMS, "there is no program: it is this package's own code")
_NOTHING_RUNS = dict.fromkeys(OF_PROGRAMS, "there is no program: nothing is run")
_GIVEN = {"fixed-tokens": "it runs the ids that it is given"}

DRIVEN: Mapping[str, Driven] = {
    "apr": Driven(runtime="apr", path=TINY, needs="apr", broken=_broken_apr),
    "apr-q4k": Driven(runtime="apr", path=MODEL, needs="apr", broken=_broken_apr),
    "embedded": Driven(runtime="embedded", path=TINY, unfit=_OWN_CODE | _GIVEN),
    "llama-cpp": Driven(
        runtime="llama-cpp",
        path=MODEL.with_suffix(".gguf"),
        oracle=MODEL.with_suffix(".gguf"),
        package="llama_cpp",
        broken=_broken_python,
        unfit={"no-program": "it is a package of the Python that runs us", **_GIVEN},
    ),
    "recorded": Driven(
        runtime="recorded",
        path=DATA / "apr-tiny-qwen2" / "base",
        unfit=_NOTHING_RUNS | _GIVEN | {"layer-selection": "a recording hands out all that it holds"},
    ),
    "torch": Driven(
        runtime="torch",
        path=BUILT.with_name(f"{BUILT.name}:right"),
        unfit=_OWN_CODE
        | _GIVEN
        | {"portable": "its file is named with a function; test_wired_subjects.py has the same check"},
    ),
}
"""The runtimes, one line each; two where one takes models of very different kinds."""

UNDRIVEN: Mapping[str, str] = {
    "transformers": "it is the oracle itself under other settings, which test_ports_in_passes.py drives",
    "onnx": "it needs packages that few have; tests/subjects/test_wired_subjects.py runs it where they are",
}
"""Runtimes of the registry that no line drives, and why."""
