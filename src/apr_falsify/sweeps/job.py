"""One bisection of a sweep: which cell it is, and the command that runs it."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from apr_falsify.reading import items, mapping, text, whole

AXES = ("model", "subject", "prompt", "layers", "lane", "repeat")
"""What a job may be a choice of, in the order of its name; an axis that the file does not have is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One bisection.

    Attributes:
        axes: axis -> the name that was chosen on it; a model and a subject at least.
        arguments: of ``apr-falsify bisect``; paths are relative to the folder of the sweep file.
        reserve: bytes of memory that it is expected to take.

    """

    axes: Mapping[str, str]
    arguments: tuple[str, ...]
    reserve: int = 0

    @property
    def id(self) -> str:
        """Its name: the choices, in the order of :data:`AXES`; also the name of its directory."""
        return "+".join(self.axes[axis] for axis in AXES if axis in self.axes)

    @property
    def command(self) -> str:
        """What a person types to run it alone, in the folder of the sweep file."""
        return shlex.join(("apr-falsify", "bisect", *self.arguments))

    @property
    def sha256(self) -> str:
        """Digest of what it runs: two jobs of one name with another digest are two jobs."""
        held = {"axes": dict(self.axes), "arguments": list(self.arguments)}
        return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "id": self.id,
            "axes": dict(self.axes),
            "arguments": list(self.arguments),
            "reserve": self.reserve,
            "command": self.command,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: a value of another type.

        """
        axes = mapping(data.get("axes"), "axes")
        for axis in AXES[:2]:
            text(axes.get(axis), f"axes.{axis}")
        return cls(
            axes={axis: text(axes.get(axis), f"axes.{axis}") for axis in AXES if axis in axes},
            arguments=tuple(text(one, "arguments") for one in items(data.get("arguments"), "arguments")),
            reserve=whole(data.get("reserve"), "reserve"),
        )
