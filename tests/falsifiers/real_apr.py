"""The real ``apr``, driven from its command line: nothing of this package stands between it and a test."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

SECONDS = 60
Values = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Apr:
    """The program, and a model in its own format.

    Attributes:
        program: the binary.
        model: the .apr file.
        folder: where it writes.

    """

    program: str
    model: Path
    folder: Path

    @classmethod
    def importing(cls, program: str, source: Path, folder: Path) -> Self:
        """Import the checkpoint at ``source``."""
        model = folder / "model.apr"
        command = [program, "import", str(source), "-o", str(model), "--offline"]
        subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
        return cls(program=program, model=model, folder=folder)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it; what it prints and its exit code come back."""
        command = [self.program, *arguments]
        return subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=SECONDS
        )

    def trace(self, name: str, stages: str, layers: str) -> Path:
        """Trace its fixed prompt and return the folder of the stage files."""
        save = ("--save-tensor", stages, "--save-tensor-dir", name, "--save-tensor-layers", layers)
        done = self.run("trace", "--payload", str(self.model), *save)
        assert done.returncode == 0, done.stderr
        return self.folder / name

    def traced_without_capture(self) -> str:
        """Return what it prints of a trace in which nothing is captured."""
        done = self.run("trace", "--payload", str(self.model))
        assert done.returncode == 0, done.stderr
        return done.stdout


def stages_it_knows(message: str) -> list[str]:
    """Return the list in the error that it prints for an unknown stage."""
    found = re.search(r'valid: "([^"]+)"', message)
    assert found, message
    return found[1].split(",")


def contents(folder: Path) -> Mapping[str, bytes]:
    """Return every stage file below ``folder``, by its path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.bin"))}


def values(content: bytes) -> Values:
    """Return the values of a stage file, read by the published format alone."""
    magic, _, count = struct.unpack_from("<4sII", content)
    assert magic == b"APRT"
    return np.frombuffer(content, dtype="<f4", offset=12, count=count)
