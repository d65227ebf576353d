"""What ``apr_falsify.record`` says of a recording beside its arrays: which tokens were run, and by what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from apr_falsify.errors import TraceError
from apr_falsify.reading import items, mapping, read_json, text, whole

RECORDING_JSON = "recording.json"
SCHEMA = "apr-falsify/recording/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingFacts:
    """What is known of a recording besides its arrays.

    Attributes:
        tokens: the ids that were run.
        driver: the program that recorded it, with version.
        runtime: what computed it.
        version: its version, empty where it has none.
        files: the files of arrays in its folder.
        left_out: name -> why a value was not kept.
        created: UTC time, ISO 8601.
        training: whether dropout was active: the values are then none that another run repeats.

    """

    tokens: tuple[int, ...]
    driver: str
    runtime: str
    version: str = ""
    files: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    training: bool = False


def facts_text(facts: RecordingFacts) -> str:
    """Return the file."""
    said = {"schema": SCHEMA, **{name: getattr(facts, name) for name in facts.__slots__}}
    return json.dumps(said, indent=1) + "\n"


def read_facts(path: Path) -> RecordingFacts | None:
    """Return what stands in the folder of a recording, ``None`` where nothing does.

    Raises:
        TraceError: the file cannot be read, or is not what it should be.

    """
    file = path / RECORDING_JSON
    if not file.exists():
        return None
    try:
        said = mapping(read_json(file), "it")
        if said.get("schema") != SCHEMA:
            raise ValueError(f"its schema is {said.get('schema')!r}, not {SCHEMA!r}")
        return RecordingFacts(
            tokens=tuple(whole(token, "a token") for token in items(said["tokens"], "tokens")),
            driver=text(said["driver"], "driver"),
            runtime=text(said["runtime"], "runtime"),
            version=text(said["version"], "version"),
            files=tuple(_own(text(name, "a file")) for name in items(said["files"], "files")),
            left_out={name: text(why, name) for name, why in mapping(said["left_out"], "left_out").items()},
            created=text(said["created"], "created"),
            training=said.get("training", False) is True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise TraceError(
            f"not what apr_falsify.record writes: {error}", where=file, remedy="record the run again"
        ) from error


def _own(name: str) -> str:
    if name != Path(name).name:
        raise ValueError(f"{name!r} is no file of its folder")
    return name
