"""``apr-falsify doctor``: say what is there, what is missing, and the command that fixes it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from apr_falsify.commands import options
from apr_falsify.commands.checks import Check, CheckState
from apr_falsify.commands.output import wrapped
from apr_falsify.errors import ExitCode

if TYPE_CHECKING:
    from apr_falsify.model.family import Family


@click.command()
@click.option(
    "--lane", metavar="NAME", help="Also what this lane of pyproject.toml needs, memory and disk too."
)
@options.family
@options.output_format
@options.debug
def doctor(lane: str | None, output: str) -> int:
    """Say what is there, what is missing, and how to get it."""
    checks = [check() for check in CHECKS]
    if lane is not None:
        from apr_falsify.commands.lane_needs import checks_of, lane_named

        checks += checks_of(lane_named(lane, Path.cwd()))
    if output == "json":
        import json

        rows = [{**_json(check)} for check in checks]
        click.echo(json.dumps({"schema": "apr-falsify/doctor/v1", "checks": rows}, indent=1))
    else:
        for check in checks:
            _print(check)
    return int(ExitCode.USAGE if any(check.state is CheckState.MISSING for check in checks) else ExitCode.OK)


def _json(check: Check) -> dict[str, str]:
    return {
        "part": check.part,
        "state": check.state.value,
        "detail": check.detail,
        "try": check.remedy,
    }


def _print(check: Check) -> None:
    for line in wrapped(check.detail, f"{check.state.value:8} {check.part:14} ", " " * 24):
        click.echo(line)
    if check.remedy and check.state is not CheckState.FOUND:
        click.echo(f"{'':24}try: {check.remedy}")


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    state = CheckState.FOUND if sys.version_info >= (3, 11) else CheckState.MISSING
    return Check(part="python", state=state, detail=version, remedy="install Python 3.11 or later")


def _package(name: str, needed_for: str, remedy: str, absent: CheckState) -> Callable[[], Check]:
    def check() -> Check:
        if importlib.util.find_spec(name) is None:
            return Check(part=name, state=absent, detail=f"needed for {needed_for}", remedy=remedy)
        from importlib.metadata import version  # here, for --help

        return Check(part=name, state=CheckState.FOUND, detail=version(name))

    return check


def _cuda() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check(part="cuda", state=CheckState.OPTIONAL, detail="not looked for: torch is not installed")
    from apr_falsify.oracle.libraries import cuda_devices

    found = cuda_devices()
    if not found:
        return Check(
            part="cuda",
            state=CheckState.OPTIONAL,
            detail="needed for --device cuda",
            remedy="an NVIDIA driver, and a CUDA build of torch",
        )
    return Check(part="cuda", state=CheckState.FOUND, detail=", ".join(found))


def _apr() -> Check:
    path = shutil.which("apr")
    if path is None:
        return Check(
            part="apr",
            state=CheckState.OPTIONAL,
            detail="the real apr, for --subject apr:MODEL; recordings of it need none",
            remedy=_APR,
        )
    from apr_falsify.errors import ProcessError
    from apr_falsify.subjects.apr_program import abilities_of

    try:
        able = abilities_of(Path(path))
    except ProcessError as error:
        return Check(part="apr", state=CheckState.OPTIONAL, detail=f"{path}: {error.what}", remedy=_APR)
    if able.lacks is None:
        told = "it does not say which stages it knows"
    else:
        told = f"does not know {', '.join(able.lacks)}; try: {_APR}" if able.lacks else "knows every stage"
    return Check(part="apr", state=CheckState.FOUND, detail=f"{able.version}, {path}: {told}", remedy=_APR)


def _llama_cpp() -> Check:
    from apr_falsify.errors import ProcessError
    from apr_falsify.subjects.llama_cpp.live import INSTALL, abilities, installed

    part = "llama.cpp"
    if not installed():
        return Check(
            part=part,
            state=CheckState.OPTIONAL,
            detail="llama-cpp-python, for --subject llama-cpp:MODEL.gguf; recordings of it need none; "
            "installing it needs a C++ compiler",
            remedy=INSTALL,
        )
    try:
        able = abilities()
    except ProcessError as error:
        return Check(part=part, state=CheckState.OPTIONAL, detail=error.what, remedy=INSTALL)
    told = [f"lacks the settings {', '.join(able.lacks)}"] if able.lacks else ["takes every setting"]
    told += [] if able.offload else ["runs on the CPU alone"]
    return Check(
        part=part, state=CheckState.FOUND, detail=f"{able.version}: {', '.join(told)}", remedy=INSTALL
    )


def _default_model() -> Check:
    from apr_falsify.commands.specs import DEFAULT_MODEL
    from apr_falsify.formats.weights import open_model
    from apr_falsify.model.families import family_of

    geometry = open_model(DEFAULT_MODEL).geometry
    detail = f"{family_of(geometry).title}, {geometry.layers} layers, carried by the package"
    return Check(part="default model", state=CheckState.FOUND, detail=detail)


def titles(families: Iterable[Family]) -> str:
    """Return the names of model families for people, as README and the report list them."""
    names = (name for each in families for name in each.title.split(", "))
    return ", ".join(sorted(names, key=str.casefold))


def _families() -> Check:
    from apr_falsify.model.families import FAMILIES
    from apr_falsify.model.families.of_users import families_of_users

    detail = titles(FAMILIES)
    if own := families_of_users():
        detail += f"; of your own: {titles(own)}"
    return Check(part="families", state=CheckState.FOUND, detail=detail)


_APR = "cargo install apr-cli"
_ORACLE = "pip install 'apr-falsify[oracle]'"
_BASE = "pip install apr-falsify"

CHECKS: tuple[Callable[[], Check], ...] = (
    _python,
    _package("numpy", "everything", _BASE, CheckState.MISSING),
    _package("safetensors", "reading models", _BASE, CheckState.MISSING),
    _package("gguf", "reading .gguf models", _BASE, CheckState.MISSING),
    _default_model,
    _families,
    _package("torch", "the oracle", _ORACLE, CheckState.OPTIONAL),
    _package("transformers", "the oracle", _ORACLE, CheckState.OPTIONAL),
    _package("tokenizers", "--prompt", _ORACLE, CheckState.OPTIONAL),
    _cuda,
    _apr,
    _llama_cpp,
)
"""What is looked for, in the order of the report."""
