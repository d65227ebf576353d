"""Readers with one defect each: what the fuzzer must find."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

from apr_falsify.errors import ModelError
from tests.fuzz.readers.inputs import Input, Maker
from tests.fuzz.readers.table import Row

AT = 7
"""The input that each of them does not stand."""

SIZE = 1000
_kept: list[bytes] = []


def _raises() -> None:
    raise KeyError("a")


def _hangs() -> None:
    while True:
        pass


def _waits() -> None:
    time.sleep(3600)


def _grows() -> None:
    bytearray(b"x") * (100 << 20)


def _keeps() -> None:
    _kept.append(b"x" * (100 << 20))


def _warns() -> None:
    warnings.warn("as numpy does", RuntimeWarning, stacklevel=2)


def _exits() -> None:
    raise SystemExit(3)


def _dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _tells_nothing() -> None:
    raise ModelError("x", where=_Unsayable())


class _Unsayable:
    def __str__(self) -> str:
        raise ValueError("no words")


def _with(defect: Callable[[], None]) -> Callable[[Path], Maker]:
    def prepare(folder: Path) -> Maker:
        def make(chance: Random) -> Input:
            number = next(places)
            return Input(read=defect if number == AT + 3 else _sound(chance), size=SIZE, said=(str(number),))

        places = iter(range(1 << 30))  # three inputs come before: the warm-up
        return make

    return prepare


def _sound(chance: Random) -> Callable[[], None]:
    """Accept half of all inputs and refuse the others."""

    def read() -> None:
        if refused:
            raise ModelError("not a sound one")

    refused = chance.random() < 0.5
    return read


READERS: Mapping[str, Row] = {
    name: Row(prepare=_with(defect), share=1)
    for name, defect in {
        "raises": _raises,
        "hangs": _hangs,
        "waits": _waits,
        "grows": _grows,
        "keeps": _keeps,
        "warns": _warns,
        "exits": _exits,
        "dies": _dies,
        "tells-nothing": _tells_nothing,
        "sound": lambda: None,
    }.items()
}
