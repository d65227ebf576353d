"""The real ``apr`` as a host of the exam: faults are written into checkpoints, imported and traced."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_falsify.capture import Request, Sink
from apr_falsify.errors import ModelError
from apr_falsify.exam.cases import Case, Ran
from apr_falsify.exam.material import Material, Setting, Store
from apr_falsify.faults import Fault
from apr_falsify.geometry import Geometry
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.recorded import open_recorded

_SECONDS = 60
_TOKENS = re.compile(r"Token ids:\s*\[([0-9, ]+)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class AprHost:
    """The program at ``binary``.

    Attributes:
        binary: the program.
        directory: where it may write; what it writes is removed after each run.
        models: the models on which it was seen to be right.
        fixed_tokens: the ids of its fixed prompt.

    """

    binary: str
    directory: Path
    models: tuple[str, ...]
    fixed_tokens: tuple[int, ...] | None

    def can(self, fault: Fault, geometry: Geometry, setting: Setting) -> bool:
        """Whether the fault can be written into a checkpoint; its token ids must stay recognisable."""
        seedable = fault.edit is not None or fault.config is not None
        return seedable and fault.fits(geometry) and "embedding" not in fault.stages

    def runs(self, material: Material, setting: Setting) -> bool:
        """It runs the checkpoints of HuggingFace, in f32."""
        return material.name in self.models and not material.kind and setting.name == "f32"

    def run(self, store: Store, case: Case, request: Request, sink: Sink) -> Ran:
        """Run ``case``."""
        sound = store.model(case.material)
        config: dict[str, Any] = store.config(case.material)
        tensors: dict[Any, Any] = {}
        for each in case.seeded:
            tensors.update(each.tensors(sound.weights))
            # Where both can be written, the tensors are the fault, and the config stays.
            if each.fault.edit is None and each.fault.config is not None:
                config = each.fault.config(config)
        path = store.spoiled(case.material, config, tensors)
        stages = self.directory / "apr-stages"
        try:
            traced(self.binary, path, stages, request.layers)
            target = Target(path=stages, model=sound, tokens=request.tokens)
            return Ran(trace=open_recorded(target).capture(request, sink))
        finally:
            for folder in (path, stages):
                shutil.rmtree(folder, ignore_errors=True)


def traced(binary: str, model: Path, stages: Path, layers: range) -> tuple[int, ...]:
    """Import and trace ``model`` and return the token ids that ``apr`` says it ran.

    Raises:
        ModelError: it failed, or said no ids.

    """
    imported = stages.with_suffix(".apr")
    try:
        _ran(binary, "import", str(model), "-o", str(imported), "--offline")
        span = f"{layers.start}..{layers.stop}"
        save = ("--save-tensor", "all", "--save-tensor-dir", str(stages), "--save-tensor-layers", span)
        said = _ran(binary, "trace", "--payload", str(imported), *save)
    finally:
        imported.unlink(missing_ok=True)
    match = _TOKENS.search(said)
    if match is None:
        raise ModelError("apr trace printed no token ids", where=model)
    return tuple(int(token) for token in match[1].split(","))


def _ran(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    if done.returncode:
        raise ModelError(
            f"{' '.join(command[:2])} exited with {done.returncode}: {done.stderr.strip()[-300:]}",
            where=command[2],
        )
    return done.stdout


def find_apr(store: Store, directory: Path, models: tuple[str, ...]) -> AprHost | None:
    """Return the ``apr`` on PATH as a host, ``None`` where there is none.

    Args:
        store: where the models are.
        directory: where it may write.
        models: the models to run on it.

    """
    binary = shutil.which("apr")
    if binary is None:
        return None
    stages = directory / "apr-probe"
    try:
        tokens = traced(binary, store.model(Material(name=models[0], seed=0)).path, stages, range(1))
    finally:
        shutil.rmtree(stages, ignore_errors=True)
    return AprHost(binary=binary, directory=directory, models=models, fixed_tokens=tokens)
