"""The options, and what they and ``[tool.apr-falsify]`` say together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from apr_falsify.commands.lanes import EMBEDDED, UNNAMED, Lane, lane_of, read_lanes, rooted
from apr_falsify.contracts.settings import KNOWN_KEYS
from apr_falsify.errors import UsageError, nearest
from apr_falsify.evidence.facts import CHANGED_LANE
from apr_falsify.portable import id_of
from apr_falsify.pytest_plugin.project import OPTIONS, TABLE
from apr_falsify.reading import read_toml, table


def add_options(parser: pytest.Parser) -> None:
    """Add the options of a configured project."""
    group = parser.getgroup("apr-falsify", "falsifiers (apr-falsify)")
    group.addoption(
        "--gpu",
        action="store_true",
        dest="apr_falsify_gpu",
        help="measure on the GPU lane of [tool.apr-falsify]: the oracle runs on CUDA",
    )
    for name, metavar, text in (
        ("lane", "NAME", "measure on this lane of [tool.apr-falsify.lanes]"),
        ("oracle-model", "MODEL", "the reference: HF directory, .gguf, hub id or trace, for the lane's own"),
        ("subject", "RUNTIME:PATH", "the run in question, for the lane's own, e.g. apr:MODEL.apr"),
        ("contracts", "DIR", "the contracts, for those of [tool.apr-falsify]"),
        ("evidence-dir", "DIR", "leave a bundle for every falsifier that was run, in DIR/<ID>"),
    ):
        group.addoption(f"--{name}", metavar=metavar, dest=_destination(name), default=None, help=text)


def _destination(name: str) -> str:
    return f"apr_falsify_{name.replace('-', '_')}"


def path_taken_for_a_test(config: pytest.Config) -> pytest.UsageError:
    """Return the error for an option whose path pytest took for a test path, so that it left the project."""
    given = [str(one) for one in config.invocation_params.args]
    pairs = [f"{one}={given[at + 1]}" for at, one in enumerate(given[:-1]) if one in OPTIONS[1:]] or list(
        OPTIONS[1:]
    )
    return pytest.UsageError(
        f"pytest looks for its configuration from {config.rootpath} on: it takes a path behind a blank for "
        f"a test path. Write it with an equals sign: {' '.join(pairs)}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """What the options and the project ask of a session.

    Attributes:
        root: the project's folder.
        project: the project's name.
        contracts: the contracts' folders and files.
        lane: the lane to measure on.
        gpu: whether ``--gpu`` chose it.
        evidence_dir: where bundles go, ``None`` for nowhere.
        bundles: the folder in which the project keeps its bundles, ``None`` where it names none.

    """

    root: Path
    project: str
    contracts: tuple[Path, ...]
    lane: Lane
    gpu: bool
    evidence_dir: Path | None
    bundles: Path | None


def read_session_options(config: pytest.Config, root: Path) -> SessionOptions:
    """Return what the options and the project's table say together.

    Raises:
        UsageError: an unknown key, lane or value.

    """
    where = root / "pyproject.toml"
    try:
        content = read_toml(where)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot be read: {error}", where=where) from error
    said = table(content, "tool", TABLE)
    for key in said:
        if key not in KNOWN_KEYS:
            expected = ", ".join(KNOWN_KEYS)
            raise UsageError(
                f"[tool.{TABLE}] has no key {key!r}",
                where=where,
                expected=expected,
                remedy=nearest(key, KNOWN_KEYS),
            )
    here = config.invocation_params.dir
    evidence = _option(config, "evidence-dir")
    kept = said.get("evidence-dir")
    return SessionOptions(
        root=root,
        project=str(table(content, "project").get("name", root.name)),
        contracts=_contracts(_option(config, "contracts"), said.get("contracts", []), root, here),
        lane=_lane(config, said, root),
        gpu=bool(config.getoption(_destination("gpu"))),
        evidence_dir=None if evidence is None else (here / evidence),
        bundles=root / kept if isinstance(kept, str) else None,
    )


def _option(config: pytest.Config, name: str) -> str | None:
    value = config.getoption(_destination(name))
    if value == "":
        raise UsageError("an empty value", where=f"--{name}")
    return None if value is None else str(value)


def _contracts(given: str | None, said: object, root: Path, here: Path) -> tuple[Path, ...]:
    if given is not None:
        return (here / given,)
    listed = [said] if isinstance(said, str) else said
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise UsageError("contracts is no list of paths", where=root / "pyproject.toml")
    return tuple(root / one for one in listed)


def _lane(config: pytest.Config, said: Mapping[str, Any], root: Path) -> Lane:
    lanes = read_lanes(said.get("lanes", {}), root)
    gpu = bool(config.getoption(_destination("gpu")))
    here = config.invocation_params.dir
    changes: dict[str, Any] = {}
    for key, option in (("oracle", "oracle-model"), ("subject", "subject")):
        given = _option(config, option)
        if given is not None:
            changes[key] = rooted(given, here)
    lane = _chosen(_option(config, "lane"), gpu, bool(changes), said.get("gpu-lane"), lanes, root)
    if gpu:
        changes["device"] = "cuda"
        changes["dtype"] = lane.dtype if lane.device == "cuda" else None
    return _changed(lane, changes)


def _changed(lane: Lane, changes: Mapping[str, Any]) -> Lane:
    """Return a lane with what options say in place of its own; another set-up does not keep its name."""
    changed = replace(lane, **changes)
    if _set_up(changed) == _set_up(lane) or lane.name == UNNAMED:
        return changed
    return replace(changed, name=f"{lane.name}{CHANGED_LANE}")


def _set_up(lane: Lane) -> Lane:
    """The lane without the places where this machine keeps things.

    The oracle's model goes by its hub id where it is in huggingface_hub's cache or fetched into it, the
    subject's file by its runtime and its own name.
    """
    oracle = lane.oracle and (id_of(lane.oracle) or lane.oracle)
    runtime, _, path = (lane.subject or "").partition(":")
    is_file = Path(path).suffix in (".apr", ".gguf")
    return replace(lane, oracle=oracle, subject=f"{runtime}:{Path(path).name}" if is_file else lane.subject)


def _chosen(
    name: str | None, gpu: bool, described: bool, gpu_lane: object, lanes: Mapping[str, Lane], root: Path
) -> Lane:
    where = "--lane"
    if name is None and gpu and gpu_lane is not None:
        name, where = str(gpu_lane), f"{root / 'pyproject.toml'}: gpu-lane"
    if name in (None, EMBEDDED):
        return Lane(name=UNNAMED if described or gpu else EMBEDDED)
    assert name is not None
    return lane_of(lanes, name, where)
