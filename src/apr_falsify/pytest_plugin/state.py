"""What the parts of the plugin share in one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from apr_falsify.contracts.claim import Claim
from apr_falsify.pytest_plugin.markers import Carried
from apr_falsify.pytest_plugin.measuring import Measurements
from apr_falsify.pytest_plugin.options import SessionOptions
from apr_falsify.pytest_plugin.shared import Shared

CARRIED: pytest.StashKey[tuple[Carried, ...]] = pytest.StashKey()
"""On a test: the falsifiers that it decides."""

FIXTURES_USED: pytest.StashKey[frozenset[str]] = pytest.StashKey()
"""On a test: every fixture that it requested, by argument or while it ran."""

FILES_GIVEN: pytest.StashKey[list[tuple[str, str]]] = pytest.StashKey()
"""On a test: the bisections that it handed over, name and file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a session works with.

    Attributes:
        options: what the options and the project ask of it.
        claims: the claims, by marker.
        shared: the folder that its processes share.
        measurements: what was measured.
        started_ns: when the session began, in nanoseconds since the epoch.

    """

    options: SessionOptions
    claims: Mapping[str, Claim]
    shared: Shared
    measurements: Measurements
    started_ns: int
