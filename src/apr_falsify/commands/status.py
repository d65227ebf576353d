"""``apr-falsify status``: the tally of falsifiers, the roadmap, and how much of each model ships."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apr_falsify.commands import options
from apr_falsify.contracts.standing import ABSENT, BROKEN, FRESH, STALE
from apr_falsify.contracts.statuses import BLOCKER
from apr_falsify.errors import ExitCode

if TYPE_CHECKING:
    from apr_falsify.contracts.tally import CountedModel, RoadmapStep, Tally


@click.command()
@click.argument("contracts", type=click.Path(path_type=Path), default=Path("contracts"))
@options.output_format
@options.debug
def status(contracts: Path, output: str) -> int:
    """Say where the falsifiers under CONTRACTS stand: tally, roadmap, ship percentage.

    Computed from the contracts and from roadmap.yaml beside them; nothing here is written by hand.
    """
    click.echo(render(read(contracts), output), nl=False)
    return int(ExitCode.OK)


def read(contracts: Path) -> Tally:
    """Tally the contracts of a directory, with its roadmap where it has one.

    Raises:
        UsageError: there are no contracts, or the roadmap names what no contract has.

    """
    from apr_falsify.commands.standings import survey
    from apr_falsify.contracts.discover import discover
    from apr_falsify.contracts.files import shown_path
    from apr_falsify.contracts.settings import read_settings
    from apr_falsify.contracts.tally import tally
    from apr_falsify.contracts.validate import read_facts

    folder = contracts if contracts.is_dir() else contracts.parent
    roadmap = folder / "roadmap.yaml"
    suite = [read_facts(path, shown_path(path)) for path in discover([contracts]) if path != roadmap]
    evidence = survey([contracts], read_settings(folder.absolute()))
    return tally(suite, roadmap if roadmap.is_file() else None, evidence)


def render(found: Tally, form: str) -> str:
    """The tally as ``text`` or ``json``."""
    if form == "json":
        import json

        return json.dumps(_as_json(found), indent=1) + "\n"
    return "\n".join(_text(found)) + "\n"


def _text(found: Tally) -> Iterator[str]:
    total = sum(found.rungs.values()) + found.unranked
    yield f"{found.short} (FUNCTIONAL + PARTIAL) of {total} falsifiers in {found.contracts} contracts"
    for rung, count in found.rungs.items():
        yield f"  {rung:24} {count:4}{_states(found, rung)}"
    if found.unranked:
        yield f"  {'no rung claimed':24} {found.unranked:4}"
    if found.steps:
        done = sum(step.is_done for step in found.steps)
        yield f"roadmap: {done} of {len(found.steps)} steps done"
        for step in found.steps:
            yield from _step_lines(step)
    for model in found.models:
        yield from _model_lines(model)


_SAID = {FRESH: "fresh", STALE: "stale", BROKEN: "not carried by their bundle", ABSENT: "without a bundle"}


def _states(found: Tally, rung: str) -> str:
    """How much of a rung rests on evidence, in the states that there are."""
    states = (found.evidence or {}).get(rung, {})
    said = {state: word for state, word in _SAID.items() if (rung, state) != (BLOCKER, ABSENT)}
    told = [f"{states[state]} {word}" for state, word in said.items() if states.get(state)]
    return f"   {', '.join(told)}" if told else ""


def _step_lines(step: RoadmapStep) -> Iterator[str]:
    state = "done" if step.is_done else "open"
    yield f"  {step.number:>2} {state:4} {step.level:9} {step.title}"
    standing = ", ".join(f"{one} {rung or 'no rung'}" for one, rung in step.falsifiers.items())
    yield f"       to reach {step.reach}: {standing or 'bound to nothing'}"
    if not step.is_done and step.waits_for:
        yield f"       waits for {step.waits_for}"


def _model_lines(model: CountedModel) -> Iterator[str]:
    percent = "no criteria" if model.ship_percent is None else f"ship {model.ship_percent} %"
    met = sum(criterion.is_met for criterion in model.criteria)
    yield f"{model.name}: {percent} ({met} of {len(model.criteria)} acceptance criteria FUNCTIONAL)"
    for criterion in model.criteria:
        yield f"  {'met' if criterion.is_met else 'open':4} {criterion.id}: {criterion.title}"


def _as_json(found: Tally) -> dict[str, Any]:
    return {
        "schema": "apr-falsify/status/v1",
        "contracts": found.contracts,
        "tally": {"short": found.short, "by_status": dict(found.rungs), "no_rung": found.unranked},
        "evidence": None
        if found.evidence is None
        else {key: dict(one) for key, one in found.evidence.items()},
        "roadmap": [
            {
                "step": step.number,
                "title": step.title,
                "level": step.level,
                "reach": step.reach,
                "done": step.is_done,
                "falsifiers": dict(step.falsifiers),
                "waits_for": step.waits_for or None,
            }
            for step in found.steps
        ],
        "models": [
            {
                "model": model.name,
                "ship_percent": model.ship_percent,
                "criteria": [
                    {"id": one.id, "title": one.title, "met": one.is_met, "falsifiers": dict(one.falsifiers)}
                    for one in model.criteria
                ],
            }
            for model in found.models
        ],
    }
