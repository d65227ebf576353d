"""``bundle.json``: what a bundle says of itself, in one object.

Every other file of a bundle is listed, with its sha256, in ``statement.json``; this one too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from apr_falsify import __version__
from apr_falsify.evidence.outcome import Outcome, TestRecord

SCHEMA = "apr-falsify/bundle/v1"

TOOL = f"apr-falsify {__version__}"
"""What writes bundles."""

EMBEDDED_LANE = "embedded"
"""The lane of what runs on the checkpoint that the package carries; it can never earn FUNCTIONAL."""

UNNAMED_LANE = "unnamed"
"""The lane that options alone describe; no contract can name it."""

CHANGED_LANE = ", changed by options"
"""What follows the name of a lane of which options changed a setting; no contract names one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a lane, as the capturing machine reported it.

    Attributes:
        runtime: ``hf``, ``apr``, ``llama-cpp``, ``embedded`` ...
        version: its version, ``unknown`` where it reports none.
        device: what it reported, ``unknown`` where it reports none.
        dtype: its number format.
        model: the model's name, a hub id without its revision; see :mod:`apr_falsify.portable`.
        model_sha256: digest of the model's weight files.
        binary_sha256: digest of its binary, where it is one.
        recorded: whether it was read from a recording or a trace, which alone says all of the above, and not
            run by the session.

    """

    runtime: str
    version: str = "unknown"
    device: str = "unknown"
    dtype: str = "unknown"
    model: str = ""
    model_sha256: str | None = None
    binary_sha256: str | None = None
    recorded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneFacts:
    """The set-up that was measured.

    Attributes:
        name: the lane's name, :data:`EMBEDDED_LANE` for the default.
        prompt: the text, where there was one.
        tokens: the ids that were run.
        layers: first layer and the one behind the last; ``None`` where no forward pass was run.
        oracle: the reference's side; ``None`` where no forward pass was run.
        subject: the subject's side; ``None`` where no forward pass was run.

    """

    name: str
    prompt: str | None = None
    tokens: tuple[int, ...] = ()
    layers: tuple[int, int] | None = None
    oracle: Side | None = None
    subject: Side | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The state of the project's sources when the falsifier ran. Recorded, not bound: a squash changes it.

    Attributes:
        project: name of the project, from pyproject.toml.
        commit: git commit, ``None`` outside a checkout.
        uncommitted: files that differ from it, relative to the project; empty where it is clean.

    """

    project: str
    commit: str | None = None
    uncommitted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Code that the evidence rests on.

    Attributes:
        functions: ``path::qualified.name`` -> digest of its canonical syntax tree, for every function that
            the claim or its tests name, and every first-party function that these call.
        unbound: names of the claim that could not be bound -> why (another repository, Rust, not found).

    """

    functions: Mapping[str, str] = field(default_factory=dict)
    unbound: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a bundle says of itself.

    Attributes:
        falsifier: the falsifier's id.
        contract: the contract's id.
        contract_version: its version at the time of the run.
        contract_path: its file, relative to the project.
        claim: the bound fields of the claim.
        claim_sha256: digest of their canonical JSON.
        outcome: what the run says.
        tests: every test of the falsifier, as it ended.
        lane: the set-up.
        bound: the code it rests on.
        sources: the state of the sources.
        environment: versions of Python, the system and the libraries, by name.
        created: UTC time, ISO 8601.
        tool: name and version of this package.

    """

    falsifier: str
    contract: str
    contract_version: str
    contract_path: str
    claim: Mapping[str, Any]
    claim_sha256: str
    outcome: Outcome
    tests: tuple[TestRecord, ...]
    lane: LaneFacts
    bound: Bound
    sources: Sources
    environment: Mapping[str, str]
    created: str
    tool: str

    def to_json(self) -> dict[str, Any]:
        """Return the object of schema ``apr-falsify/bundle/v1``."""
        return {
            "schema": SCHEMA,
            **asdict(self),
            "outcome": self.outcome.to_json(),
            "tests": [one.to_json() for one in self.tests],
        }
