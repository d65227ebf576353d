"""A campaign: all readers, in pieces that processes of their own read; what was read is not read again."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.chunk import Case, Tally
from tests.fuzz.readers.table import READERS
from tests.fuzz.readers.table import __name__ as READERS_MODULE

PIECE = 10_000
"""Inputs that one process reads: large enough to pay for its start, small enough to be lost."""

_STUCK = 60.0
"""Seconds on one input after which a process is killed; its own clock stops all but C code long before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some inputs of one reader: from ``start`` up to ``stop``."""

    reader: str
    start: int
    stop: int

    def without(self, other: Piece) -> list[Piece]:
        """Return the parts of it that ``other`` does not have."""
        if other.reader != self.reader or other.stop <= self.start or self.stop <= other.start:
            return [self]
        parts = (self.start, other.start), (other.stop, self.stop)
        return [Piece(reader=self.reader, start=start, stop=stop) for start, stop in parts if start < stop]


def pieces(readers: Sequence[str], inputs: int) -> list[Piece]:
    """Share ``inputs`` among readers as the table says, in pieces."""
    shares = {name: READERS[name].share for name in readers}
    found = []
    for name, share in shares.items():
        count = -(-inputs * share // sum(shares.values()))
        found += [
            Piece(reader=name, start=start, stop=min(count, start + PIECE))
            for start in range(0, count, PIECE)
        ]
    return found


@dataclass(slots=True, kw_only=True)
class _Running:
    """A process that reads a piece, and where it says which input it is at."""

    piece: Piece
    process: subprocess.Popen[bytes]
    place: Path
    at: int
    since: float

    def stuck(self) -> bool:
        """Whether it has been at one input for too long."""
        now = int.from_bytes(self.place.read_bytes(), "little")
        if now != self.at:
            self.at, self.since = now, time.monotonic()
        return time.monotonic() - self.since > _STUCK


class Campaign:
    """Runs pieces on several processes and keeps what they found.

    Args:
        seed: what all inputs follow from.
        results: the file that keeps what was found, one piece a line; pieces that it has are not run again.
        table: the module whose ``READERS`` are read.

    """

    def __init__(self, seed: int, results: Path, table: str = READERS_MODULE) -> None:
        self.seed, self.results, self.table = seed, results, table
        self.done: list[tuple[Piece, dict[str, Any]]] = list(self._kept())

    def _kept(self) -> Iterator[tuple[Piece, dict[str, Any]]]:
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        for line in lines:
            with suppress(ValueError):  # the last line of a run that was killed
                row = json.loads(line)
                if row["seed"] == self.seed:
                    yield Piece(**row["piece"]), row["tally"]

    def _left(self, todo: Sequence[Piece]) -> list[Piece]:
        left = list(todo)
        for done, _ in self.done:
            left = [part for piece in left for part in piece.without(done)]
        return left

    def run(self, todo: Sequence[Piece], processes: int, deadline: float) -> bool:
        """Run what is missing until ``deadline`` (of ``time.monotonic``); return whether all is done."""
        missing = self._left(todo)
        running: list[_Running] = []
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            while missing or running:
                while missing and len(running) < processes and time.monotonic() < deadline:
                    running.append(self._start(missing.pop(0), Path(folder)))
                if not running:
                    break
                time.sleep(0.05)
                for one in list(running):
                    if one.process.poll() is not None or one.stuck():
                        running.remove(one)
                        missing[:0] = self._finish(one)
        return not missing

    def _start(self, piece: Piece, folder: Path) -> _Running:
        place = folder / f"{piece.reader}-{piece.start}"
        place.write_bytes(piece.start.to_bytes(8, "little"))
        words = (self.table, piece.reader, self.seed, piece.start, piece.stop, place)
        command = [sys.executable, "-m", "tests.fuzz.worker", *map(str, words)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        return _Running(piece=piece, process=process, place=place, at=piece.start, since=time.monotonic())

    def _finish(self, one: _Running) -> list[Piece]:
        """Keep what a process found; of one that died, name the input, and return what it left to do."""
        if one.process.poll() is None:
            one.process.kill()
        output, _ = one.process.communicate()
        piece, code = one.piece, one.process.returncode
        if code == 0:
            self._keep(piece, json.loads(output))
            return []
        if code > 0:
            raise RuntimeError(f"the fuzzer itself failed on {piece}; what it said stands above")
        at = int.from_bytes(one.place.read_bytes(), "little")
        tally = Tally(reader=piece.reader, inputs=1)
        tally.ended["killed"] += 1
        tally.defect(
            f"the process was ended by signal {-code}",
            str(Case(reader=piece.reader, seed=self.seed, index=at)),
        )
        killer = Piece(reader=piece.reader, start=at, stop=at + 1)
        self._keep(killer, tally.to_json())
        return piece.without(killer)

    def _keep(self, piece: Piece, tally: dict[str, Any]) -> None:
        self.done.append((piece, tally))
        with self.results.open("a") as file:
            file.write(json.dumps({"seed": self.seed, "piece": asdict(piece), "tally": tally}) + "\n")

    def tallies(self) -> dict[str, Tally]:
        """Return what was found, by reader."""
        found: dict[str, Tally] = {}
        for _, data in self.done:
            found.setdefault(data["reader"], Tally(reader=data["reader"])).merge(data)
        return found
