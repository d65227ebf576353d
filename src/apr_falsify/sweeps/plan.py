"""The sweep file: models x subjects x prompts x layers x lanes x repeats, as TOML; one job for each.

    [models]
    tiny = "models/tiny-qwen2"                  # what stands behind --oracle
    own = { spec = "models/own", family = "own.py" }

    [subjects]
    f32 = "embedded:{model}"                    # what stands behind --subject
    q8 = { spec = "embedded:{model}", arithmetic = "f32; q8_0 blocks of 32", models = ["tiny"] }
    port = { spec = "recorded:runs/{model_name}.npz", prompts = ["ids"] }

    [prompts]                                   # default: what bisect runs
    sum = "What is 2+2?"
    ids = [1, 2, 3]
    steps = { tokens = [1, 2, 3, 4], passes = [2, 1, 1] }

    [layers]                                    # default: the first
    two = "0..2"

    [lanes]                                     # default: the CPU
    f32 = { device = "cpu", dtype = "f32" }

    [limits]
    seconds = 900                               # of one job
    memory = "8 GiB"                            # of one job, its programs included
    repeat = 1                                  # how often each job is run: one that differs is flaky

Paths are relative to the folder of the file.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apr_falsify.errors import SweepError, nearest
from apr_falsify.reading import items, mapping, read_toml, text, whole
from apr_falsify.sweeps.job import AXES, Job

TABLES = ("models", "subjects", "prompts", "layers", "lanes", "limits")
_OF_MODEL = ("spec", "family")
_OF_SUBJECT = ("spec", "arithmetic", "options", "weights", "timeout", "models", "prompts")
_OF_PROMPT = ("text", "tokens", "passes", "positions", "decode", "chunks")
_OF_LANE = ("device", "dtype", "stages")
_OF_LIMITS = ("seconds", "memory", "repeat")

MOST_JOBS = 100_000
SECONDS = 900.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(MiB|GiB)")
_UNITS = {"MiB": 1 << 20, "GiB": 1 << 30}
_BASE = 600 << 20
"""Bytes of a worker with torch in it, before any model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """What a sweep runs.

    Attributes:
        name: of the sweep: its file's, without the suffix.
        folder: where paths of its jobs begin.
        jobs: the jobs, in the order of the file.
        seconds: how long one may take.
        memory: how many bytes one may take, its programs included; 0: no limit.

    """

    name: str
    folder: Path
    jobs: tuple[Job, ...]
    seconds: float = SECONDS
    memory: int = 0

    def job(self, name: str) -> Job:
        """Return the job of that name.

        Raises:
            SweepError: there is none.

        """
        found = next((job for job in self.jobs if job.id == name), None)
        if found is None:
            near = nearest(name, [job.id for job in self.jobs])
            raise SweepError(
                f"no job {name!r} in this sweep", where="--job", expected="a job of `sweep plan`", remedy=near
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """One entry of a table: its name, the arguments that it brings, and what it is combined with alone."""

    name: str
    arguments: tuple[str, ...] = ()
    models: tuple[str, ...] | None = None
    prompts: tuple[str, ...] | None = None

    def goes_with(self, model: str, prompt: str) -> bool:
        """Whether it is combined with a model and a prompt."""
        return model in (self.models or (model,)) and prompt in (self.prompts or (prompt,))


def read_plan(path: Path) -> SweepPlan:
    """Read a sweep file.

    Raises:
        SweepError: it cannot be read, a key that is not known, a name that stands for nothing, or no job.

    """
    try:
        data = read_toml(path)
    except OSError as error:
        raise SweepError(f"cannot be read: {error.strerror or error}", where=path) from error
    except ValueError as error:
        raise SweepError(f"is no sweep file: {error}", where=path, expected="TOML") from error
    try:
        return _Reader(path, data).plan()
    except ValueError as error:
        raise SweepError(str(error), where=path) from error


@dataclass(slots=True)
class _Reader:
    path: Path
    data: Mapping[str, Any]
    sizes: dict[str, int] = field(default_factory=dict)

    def plan(self) -> SweepPlan:
        """Return what the file says."""
        self._known(self.data, TABLES, "")
        limits = mapping(self.data.get("limits", {}), "limits")
        self._known(limits, _OF_LIMITS, "limits")
        repeat = whole(limits.get("repeat", 1), "limits.repeat")
        seconds = limits.get("seconds", SECONDS)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e7:
            raise ValueError(f"limits.seconds is {seconds!r}, not a number of seconds above 0")
        if not 1 <= repeat <= 1000:
            raise ValueError(f"limits.repeat is {repeat}, not between 1 and 1000")
        jobs = tuple(self._jobs(repeat))
        if not jobs:
            raise ValueError("it has no job: no subject is of any model")
        if len(jobs) > MOST_JOBS:
            raise ValueError(f"it has {len(jobs)} jobs, more than {MOST_JOBS}: make it several files")
        return SweepPlan(
            name=self.path.name.removesuffix(".toml"),
            folder=self.path.absolute().parent,
            jobs=jobs,
            seconds=float(seconds),
            memory=0 if "memory" not in limits else _size(limits["memory"]),
        )

    def _jobs(self, repeat: int) -> Iterator[Job]:
        models = self._models()
        subjects, prompts = self._table("subjects", self._subject), self._prompts()
        layers, lanes = self._layers(), self._table("lanes", self._lane) or [_Choice(name="")]
        if not subjects:
            raise ValueError("[subjects] names nothing to compare with its model")
        repeats = [str(number) for number in range(1, repeat + 1)] if repeat > 1 else [""]
        chosen = itertools.product(models.items(), subjects, prompts, layers, lanes, repeats)
        for (model, (spec, more)), subject, prompt, span, lane, number in itertools.islice(
            chosen, MOST_JOBS + 1
        ):
            if not subject.goes_with(model, prompt.name):
                continue
            names = {"model": spec, "model_name": model, "prompt_name": prompt.name, "layers_name": span.name}
            filled = [self._filled(one, names, subject.name) for one in subject.arguments]
            names_of = (model, subject.name, prompt.name, span.name, lane.name, number)
            yield Job(
                axes={axis: name for axis, name in zip(AXES, names_of, strict=True) if name},
                arguments=(
                    *("--oracle", spec, *more),
                    *filled,
                    *prompt.arguments,
                    *span.arguments,
                    *lane.arguments,
                ),
                reserve=_BASE + 3 * self._bytes_of(spec),
            )

    def _filled(self, argument: str, names: Mapping[str, str], subject: str) -> str:
        """Put names into ``{...}`` of a spec."""

        def put(found: re.Match[str]) -> str:
            if found[1] not in names:
                known = ", ".join(f"{{{name}}}" for name in names)
                raise ValueError(f"subjects.{subject}: {{{found[1]}}} stands for nothing; there are {known}")
            return names[found[1]]

        return re.sub(r"\{(\w*)\}", put, argument)

    def _models(self) -> Mapping[str, tuple[str, tuple[str, ...]]]:
        """Return each model's spec, and the arguments that it brings."""
        found: dict[str, tuple[str, tuple[str, ...]]] = {}
        for name, value in mapping(self.data.get("models", {}), "models").items():
            self._name(name, "models")
            held = {"spec": value} if isinstance(value, str) else mapping(value, f"models.{name}")
            self._known(held, _OF_MODEL, f"models.{name}")
            spec = text(held.get("spec"), f"models.{name}.spec")
            if not spec:
                raise ValueError(f"models.{name} is empty")
            family = ("--family", text(held["family"], f"models.{name}.family")) if "family" in held else ()
            found[name] = spec, family
        if not found:
            raise ValueError("[models] names no model")
        return found

    def _table(self, name: str, read: Any) -> list[_Choice]:
        found = mapping(self.data.get(name, {}), name)
        for key in found:
            self._name(key, name)
        return [read(key, value) for key, value in found.items()]

    def _subject(self, name: str, value: object) -> _Choice:
        held = {"spec": value} if isinstance(value, str) else mapping(value, f"subjects.{name}")
        place = f"subjects.{name}"
        self._known(held, _OF_SUBJECT, place)
        arguments = ["--subject", text(held.get("spec"), f"{place}.spec")]
        for key in ("arithmetic", "weights"):
            if key in held:
                arguments += [f"--{key}", text(held[key], f"{place}.{key}")]
        if "timeout" in held:
            arguments += ["--timeout", str(held["timeout"])]
        for key, option in mapping(held.get("options", {}), f"{place}.options").items():
            arguments += ["--subject-option", f"{key}={option}"]
        return _Choice(
            name=name,
            arguments=tuple(arguments),
            models=self._only(held, "models", place),
            prompts=self._only(held, "prompts", place),
        )

    def _only(self, held: Mapping[str, Any], axis: str, place: str) -> tuple[str, ...] | None:
        """Return the names of another table that a subject is combined with; ``None``: with all."""
        if axis not in held:
            return None
        known = mapping(self.data.get(axis, {}), axis)
        names = tuple(text(one, f"{place}.{axis}") for one in items(held[axis], f"{place}.{axis}"))
        if not names:
            raise ValueError(f"{place}.{axis} is empty: leave it out, or the subject")
        for one in names:
            if one not in known:
                near = nearest(one, known)
                raise ValueError(f"{place}.{axis}: no {axis[:-1]} {one!r} in [{axis}]{near and f'; {near}'}")
        return names

    def _prompts(self) -> list[_Choice]:
        return self._table("prompts", self._prompt) or [_Choice(name="")]

    def _prompt(self, name: str, value: object) -> _Choice:
        place = f"prompts.{name}"
        if isinstance(value, str):
            return _Choice(name=name, arguments=("--prompt", value))
        held = {"tokens": value} if isinstance(value, list) else mapping(value, place)
        self._known(held, _OF_PROMPT, place)
        if ("text" in held) == ("tokens" in held):
            raise ValueError(f"{place} needs text or tokens, one of the two")
        arguments: list[str] = ["--prompt", text(held["text"], f"{place}.text")] if "text" in held else []
        for key in ("tokens", "passes", "positions"):
            if key in held:
                numbers = [whole(one, f"{place}.{key}") for one in items(held[key], f"{place}.{key}")]
                arguments += [f"--{key}", ",".join(map(str, numbers))]
        for key in ("decode", "chunks"):
            if key in held:
                arguments += [f"--{key}", str(whole(held[key], f"{place}.{key}"))]
        return _Choice(name=name, arguments=tuple(arguments))

    def _layers(self) -> list[_Choice]:
        def read(name: str, value: object) -> _Choice:
            return _Choice(name=name, arguments=("--layers", text(value, f"layers.{name}")))

        return self._table("layers", read) or [_Choice(name="")]

    def _lane(self, name: str, value: object) -> _Choice:
        place = f"lanes.{name}"
        held = mapping(value, place)
        self._known(held, _OF_LANE, place)
        pairs = [(f"--{key}", text(held[key], f"{place}.{key}")) for key in _OF_LANE if key in held]
        return _Choice(name=name, arguments=tuple(one for pair in pairs for one in pair))

    def _known(self, held: Mapping[str, Any], keys: tuple[str, ...], place: str) -> None:
        for key in held:
            if key not in keys:
                near = nearest(key, keys)
                where = f"{place}.{key}" if place else key
                raise ValueError(
                    f"{where} is no key of a sweep file{near and f'; {near}'}: {', '.join(keys)}"
                )

    def _name(self, name: str, place: str) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{place}: {name!r} is no name: letters, digits, '.', '_' and '-', 32 at most")

    def _bytes_of(self, spec: str) -> int:
        """Return the bytes of a model's weights on disk, 0 where they are not here."""
        if spec not in self.sizes:
            place = self.path.absolute().parent / spec
            suffixes = (".safetensors", ".gguf", ".apr")
            files = [place] if place.is_file() else [*place.glob("*")] if place.is_dir() else []
            self.sizes[spec] = sum(file.stat().st_size for file in files if file.suffix in suffixes)
        return self.sizes[spec]


def _size(value: object) -> int:
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"limits.memory is {value!r}, not a size such as '8 GiB' or '500 MiB'")
    return int(float(found[1]) * _UNITS[found[2]])
