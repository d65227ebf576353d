"""``apr-falsify promote``: a falsifier rises by a rung on a bundle, its evidence is renewed, or it falls."""

from __future__ import annotations

import datetime
import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from apr_falsify.commands import options
from apr_falsify.commands.output import tell
from apr_falsify.errors import ContractError, EvidenceError, ExitCode, UsageError

if TYPE_CHECKING:
    from apr_falsify.contracts.claim import Claim, Pin
    from apr_falsify.contracts.promote import Edit, Move, PromotionPlan
    from apr_falsify.evidence.earn import Earned


@click.command()
@click.argument("contract", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("falsifiers", metavar="FALSIFIER...", nargs=-1, required=True)
@click.option(
    "--evidence",
    "bundles",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The bundle it rests on.",
)
@click.option("--expect", metavar="SHA256", help="The digest that the bundle's statement must have.")
@click.option("--renew", is_flag=True, help="Replace the bundle at the rung it stands on.")
@click.option("--demote", is_flag=True, help="Write it a rung down, where its evidence is gone.")
@click.option("--dry-run", is_flag=True, help="Print the change and write nothing.")
@options.debug
def promote(
    contract: Path,
    falsifiers: tuple[str, ...],
    bundles: tuple[Path, ...],
    expect: str | None,
    renew: bool,
    demote: bool,
    dry_run: bool,
) -> int:
    """Raise FALSIFIER of CONTRACT by one rung, on the evidence of a bundle that verifies.

    Changes the status, the evidence, the version and the changelog, and no other byte of the contract.
    A rung is a MINOR version, renewed evidence a PATCH. --renew takes several falsifiers, each with its
    --evidence, in the same order: one version and one line of the changelog for all.
    """
    _refuse_options(falsifiers, bundles, expect, renew=renew, demote=demote)
    from apr_falsify.contracts.promote import plan_edit

    data = _read(contract)
    if demote:
        found = [_demotion(contract, falsifiers[0])]
    else:
        pairs = zip(falsifiers, bundles, strict=True)
        found = [_promotion(contract, one, bundle, expect, renew=renew) for one, bundle in pairs]
    plans = [plan for plan, _ in found]
    edit = plan_edit(contract, data, *plans)
    if dry_run:
        tell(diff(edit, contract).rstrip("\n"))
        return int(ExitCode.OK)
    from apr_falsify.contracts.replace import replace_bytes

    replace_bytes(contract, edit.before, edit.after)
    tell("\n".join(line for plan, told in found for line in (_summary(contract, plan, edit), *told)))
    return int(ExitCode.OK)


def _refuse_options(
    falsifiers: tuple[str, ...], bundles: tuple[Path, ...], expect: str | None, *, renew: bool, demote: bool
) -> None:
    if renew and demote:
        raise UsageError("--renew and --demote exclude each other", where="promote")
    if demote and (bundles or expect is not None):
        raise UsageError("--demote takes the evidence away: it needs none", where="--evidence")
    if not demote and not bundles:
        raise UsageError("a rung is earned by a bundle", where="promote", remedy="--evidence BUNDLE")
    _refuse_number(falsifiers, bundles, expect, renew=renew, demote=demote)
    if expect is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", expect):
        raise UsageError(f"{expect!r} is no sha256", where="--expect", expected="64 hexadecimal digits")


def _refuse_number(
    falsifiers: tuple[str, ...], bundles: tuple[Path, ...], expect: str | None, *, renew: bool, demote: bool
) -> None:
    twice = [one for one in falsifiers if falsifiers.count(one) > 1]
    if twice:
        raise UsageError("is named twice", where=twice[0])
    if len(falsifiers) > 1 and not renew:
        raise UsageError("moves one falsifier at a time", where="promote", remedy="one run for each")
    if not demote and len(bundles) != len(falsifiers):
        raise UsageError(
            f"{len(bundles)} for {len(falsifiers)} falsifiers",
            where="--evidence",
            expected="one for each falsifier, in their order",
        )
    if expect is not None and len(falsifiers) > 1:
        raise UsageError("one digest cannot be that of several bundles", where="--expect")


def _read(contract: Path) -> bytes:
    from apr_falsify.contracts.files import read_bytes
    from apr_falsify.contracts.problem import Problem

    data = read_bytes(contract)
    if isinstance(data, Problem):
        raise ContractError(data.message, where=contract, expected=data.hint)
    return data


def _promotion(
    contract: Path, falsifier: str, bundle: Path, expect: str | None, *, renew: bool
) -> tuple[PromotionPlan, list[str]]:
    from apr_falsify.commands.standings import judge_bundle, project_at
    from apr_falsify.contracts.claim import Pin, read_claim
    from apr_falsify.contracts.promote import Move

    claim = read_claim(contract, falsifier)
    move = Move.RENEW if renew else Move.PROMOTE
    rung = _target(claim, move)
    project = project_at(contract)
    verification, answer = judge_bundle(claim, bundle, project, pin=expect)
    _refuse(contract, claim, rung, answer)
    pin = Pin(bundle=_inside(bundle, project.root), statement_sha256=verification.statement_sha256)
    plan = _plan(falsifier, move, rung, pin)
    told = [f"  evidence: {pin.bundle}, statement sha256 {pin.statement_sha256}"]
    if answer.lacks:
        told.append(f"  for a higher rung it lacks: {', '.join(answer.lacks)}")
    return plan, told


def _target(claim: Claim, move: Move) -> str:
    """The rung that the move leads to; where it leads to none, the edit says why."""
    from apr_falsify.contracts.promote import STEPS
    from apr_falsify.contracts.statuses import LADDER

    if claim.rung not in LADDER:
        return ""
    at = LADDER.index(claim.rung) + STEPS[move]
    return LADDER[at] if 0 <= at < len(LADDER) else ""


def _refuse(contract: Path, claim: Claim, rung: str, answer: Earned) -> None:
    """Refuse with every reason at once; a rung that does not exist is left to the edit."""
    from apr_falsify.contracts.statuses import BLOCKER

    if rung == BLOCKER:
        raise ContractError(f"{claim.falsifier} is {BLOCKER}, which rests on no bundle", where=contract)
    bars = answer.bars(rung) if rung else ()
    if bars:
        reasons = "".join(f"\n  {one}" for one in bars)
        raise EvidenceError(
            f"the bundle does not carry {claim.falsifier} as {rung}:{reasons}", where=contract
        )


def _inside(bundle: Path, root: Path) -> str:
    try:
        return bundle.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        raise EvidenceError(
            "the bundle lies outside the project, where no reader of the contract finds it",
            where=bundle,
            expected=f"a path below {root}",
        ) from None


def _demotion(contract: Path, falsifier: str) -> tuple[PromotionPlan, list[str]]:
    from apr_falsify.commands.standings import project_at, standing
    from apr_falsify.contracts.claim import read_claim
    from apr_falsify.contracts.promote import Move

    claim = read_claim(contract, falsifier)
    state = standing(claim, project_at(contract))
    rung = _target(claim, Move.DEMOTE)
    remark = f"its evidence being {state.state}"
    plan = _plan(falsifier, Move.DEMOTE, rung, None, remark)
    return plan, [f"  its evidence is {state.state}", *(f"  {one}" for one in state.why)]


def _plan(falsifier: str, move: Move, rung: str, pin: Pin | None, remark: str = "") -> PromotionPlan:
    from apr_falsify.contracts.promote import PromotionPlan

    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return PromotionPlan(falsifier=falsifier, move=move, rung=rung, pin=pin, date=today, remark=remark)


def diff(edit: Edit, contract: Path) -> str:
    """Return the unified diff of an edit; a line without its line break says so, as ``diff -u`` does."""
    from apr_falsify.contracts.files import shown_path

    shown = shown_path(contract)
    before, after = (one.decode("utf-8").splitlines(keepends=True) for one in (edit.before, edit.after))
    lines = difflib.unified_diff(before, after, f"a/{shown}", f"b/{shown}")
    return "".join(
        one if one.endswith(("\n", "\r")) else f"{one}\n\\ No newline at end of file\n" for one in lines
    )


def _summary(contract: Path, plan: PromotionPlan, edit: Edit) -> str:
    from apr_falsify.contracts.promote import Move

    status = f"stays {plan.rung}" if plan.move is Move.RENEW else " -> ".join(edit.status)
    return f"{contract}: {plan.falsifier} {status}, version {edit.version[0]} -> {edit.version[1]}"
