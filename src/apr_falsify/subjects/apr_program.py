"""The ``apr`` binary itself: how it is installed, what its exit codes mean, what a version knows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from apr_falsify.model.stages import APR_STAGES
from apr_falsify.subjects.logs import Log, scratch
from apr_falsify.subjects.process import Program

REMEDY = "cargo install apr-cli"
"""The command that installs it."""

EXITS: Mapping[int, str] = {
    3: "no such file",
    5: "validation failed",
    6: "the model cannot be loaded",
    8: "inference failed",
    101: "it panicked",
}
"""What its exit codes mean, as 0.72.3 was seen to use them."""

TOKENS = re.compile(r"Token ids:\s*\[([^\]\n]*)\](?: *\((\d+) tokens\))?")
"""What it prints of its token ids, and how many it says they are."""

_VERSION = re.compile(r"\bapr (\d+\.\d+\S*(?: \([0-9a-f]+\))?)")
_KNOWN_STAGES = re.compile(r"unknown.*?\bvalid(?: stages)?:\s*\"?([a-z0-9_, ]+)", re.IGNORECASE | re.DOTALL)
_ASKING_SECONDS = 10.0


def known_stages(printed: str) -> tuple[str, ...] | None:
    """Return the stages that a version knows, by its complaint about one, ``None`` where it has none."""
    match = _KNOWN_STAGES.search(printed)
    return None if match is None else tuple(name.strip() for name in match[1].split(",") if name.strip())


def why_no_tokens(found: Sequence[tuple[str, str]], vocab: int) -> str | None:
    """Say what is wrong with the ids, as texts, that a program printed and counted once or more often."""
    (ids, count), *others = found
    if any(other != (ids, count) for other in others):
        return "it printed others later on"
    each = [token.strip() for token in ids.split(",")]
    strange = [token for token in each if not (token.isdecimal() and token.isascii() and int(token) < vocab)]
    if strange:
        return f"{strange[0] or 'nothing between two commas'} is none of the ids from 0 to {vocab - 1}"
    if count and int(count) != len(each):
        return f"it printed {len(each)} and counted {count}"
    return None


def version_of(program: Program, log: Log) -> str:
    """Return what the binary calls itself, e.g. ``0.72.3 (9c34b9a91)``, ``unknown`` where it does not say.

    Raises:
        ProcessError: it failed.

    """
    match = _VERSION.search(program.run("--version", log=log))
    return "unknown" if match is None else match[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a binary says of itself.

    Attributes:
        version: what it calls itself.
        lacks: the stages of our table that it does not know, ``None`` where it would not say.

    """

    version: str
    lacks: tuple[str, ...] | None


def abilities_of(binary: Path) -> Abilities:
    """Ask a binary for its version and, by a stage that none knows, for the stages that it does.

    Raises:
        ProcessError: it cannot be run.

    """
    program = Program(name="apr", binary=binary, seconds=_ASKING_SECONDS, exits=EXITS)
    with scratch("apr") as folder:
        log = Log(path=folder / "log")
        version = version_of(program, log)
        model = folder / "no.apr"
        model.touch()
        asking = ("trace", "--skip-contract", "--payload", str(model), "--save-tensor", "no-such-stage")
        with program.start(*asking, log=log) as running:
            running.wait_for(None)
            known = known_stages(running.printed)
    lacks = None if known is None else tuple(name for name in APR_STAGES if name not in known)
    return Abilities(version=version, lacks=lacks)
