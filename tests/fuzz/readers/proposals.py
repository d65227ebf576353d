"""What ``--print-mapping`` makes of a recording that nobody has described yet."""

from __future__ import annotations

from pathlib import Path
from random import Random

from apr_falsify.commands.print_mapping import mapping_starter
from apr_falsify.formats.weights import open_model
from apr_falsify.model.stages import STAGES
from apr_falsify.subjects.recorded import RecordedSubject
from apr_falsify.traces.capture import Request, TraceWriter
from tests.fuzz.folders import Folder
from tests.fuzz.readers.inputs import Input, Maker
from tests.fuzz.readers.recordings import members_of, other_archive, recorded
from tests.unit.helpers import TINY


def proposal(folder: Path) -> Maker:
    """A recording beside the trace of the same run, or beside nothing."""
    trace = recorded(open_model(TINY))
    oracle, members = folder / "trace", members_of(trace)
    with TraceWriter(oracle) as writer:
        request = Request(tokens=trace.tokens, layers=range(3), stages=tuple(STAGES))
        RecordedSubject(trace=trace).capture(request, writer)
    shown = Folder(folder / "recording")
    path = folder / "recording" / "x.npz"

    def make(chance: Random) -> Input:
        data, said = other_archive(members, chance)
        size = shown.show({path.name: data})
        spec = None if chance.random() < 0.3 else str(oracle)

        def read() -> None:
            mapping_starter(path, spec, tokens=None, dtype=None, device="cpu")

        return Input(read=read, size=size, said=said)

    return make
