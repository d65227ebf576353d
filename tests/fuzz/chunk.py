"""Some inputs of one reader, one after the other in this process, and what became of them."""

from __future__ import annotations

import ctypes
import gc
import mmap
import resource
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.gauge import ALLOWANCE, Result, held, measured, strict
from tests.fuzz.readers.inputs import Maker
from tests.fuzz.readers.table import READERS, Row

_WARM_UP = 3
"""Inputs that are read before any is judged: what they import stays in memory."""

_MOST_KEPT = 3
"""Cases kept of one defect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One input: what makes it again.

    Attributes:
        reader: the reader's name.
        seed: the campaign's.
        index: the input's number.

    """

    reader: str
    seed: int
    index: int

    @property
    def chance(self) -> Random:
        """What all its changes follow from."""
        return Random(f"{self.reader}/{self.seed}/{self.index}")

    def __str__(self) -> str:
        return f"{self.reader}:{self.seed}:{self.index}"


@dataclass(slots=True, kw_only=True)
class Tally:
    """What became of some inputs of one reader; filled while they are read.

    Attributes:
        reader: the reader's name.
        inputs: how many there were.
        ended: how they ended, and how many each.
        defects: what is wrong with the reader -> how often, and the first cases of it.
        seconds: of the processor, all together.
        slowest: the most that one took, and its number.
        largest: the most bytes that one made the process grow, and its number.

    """

    reader: str
    inputs: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    defects: dict[str, list[Any]] = field(default_factory=dict)
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, 0)
    largest: tuple[int, int] = (0, 0)

    def add(self, case: Case, result: Result) -> None:
        """Count one input."""
        self.inputs += 1
        self.ended[result.ended] += 1
        self.seconds += result.seconds
        self.slowest = max(self.slowest, (result.seconds, case.index))
        self.largest = max(self.largest, (result.growth, case.index))
        if result.defect is not None:
            self.defect(result.defect, str(case))

    def defect(self, what: str, case: str) -> None:
        """Note a defect."""
        count, *cases = self.defects.get(what, [0])
        self.defects[what] = [count + 1, *[*cases, case][:_MOST_KEPT]]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def merge(self, data: Mapping[str, Any]) -> None:
        """Add what :meth:`to_json` of another gave."""
        self.inputs += data["inputs"]
        self.ended.update(data["ended"])
        self.seconds += data["seconds"]
        self.slowest = max(self.slowest, tuple(data["slowest"]))
        self.largest = max(self.largest, tuple(data["largest"]))
        for what, (count, *cases) in data["defects"].items():
            known, *others = self.defects.get(what, [0])
            self.defects[what] = [known + count, *[*others, *cases][:_MOST_KEPT]]


@contextmanager
def bench(reader: str, rows: Mapping[str, Row] = READERS) -> Iterator[Maker]:
    """Give what makes the inputs of a reader; they lie in memory where there is a folder that does."""
    memory = Path("/dev/shm")
    place = tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if memory.is_dir() else None)
    with strict(), place as folder:
        make = rows[reader].prepare(Path(folder))
        for index in range(_WARM_UP):
            one = make(Random(f"{reader}/warm-up/{index}"))
            measured(one.read, one.size, held())
        yield make


def read_some(
    reader: str,
    seed: int,
    numbers: range,
    note: Callable[[int], None] = lambda index: None,
    rows: Mapping[str, Row] = READERS,
) -> Tally:
    """Read inputs of one reader.

    Args:
        reader: its name.
        seed: the campaign's.
        numbers: which inputs.
        note: called with an input's number before it is read: the last word where the process is killed.
        rows: the table of readers.

    """
    tally = Tally(reader=reader)
    with bench(reader, rows) as make:
        start = _trimmed()
        for index in numbers:
            note(index)
            case = Case(reader=reader, seed=seed, index=index)
            one = make(case.chance)
            result = measured(one.read, one.size, held())
            tally.add(case, result)
            if result.growth > _WORTH_TRIMMING:
                _trimmed()  # what the next one takes of it would not be seen
        if _trimmed() - start > ALLOWANCE:
            tally.defect("keeps memory from input to input", str(case))
    return tally


_WORTH_TRIMMING = 8 << 20


def _trimmed() -> int:
    """Give back what is free, and return how many bytes are held then."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library than glibc has no such function
        ctypes.CDLL(None).malloc_trim(0)
    return held()


_HEADROOM = 2 << 30


def limit_memory() -> None:
    """Let this process address 2 GiB more than now: a reader gone wild is then an error and no swapping."""
    with open("/proc/self/statm", "rb") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (used + _HEADROOM, resource.getrlimit(resource.RLIMIT_AS)[1]))


def noting(path: Path) -> Callable[[int], None]:
    """Return what writes a number where another process sees it, even after this one was killed."""
    with path.open("r+b") as file:
        shared = mmap.mmap(file.fileno(), 8)

    def note(index: int) -> None:
        shared[:8] = index.to_bytes(8, "little")

    return note
