"""``apr-falsify evidence``: bundles re-checked, shown, compared and signed; no torch, GPU or network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apr_falsify.commands import options
from apr_falsify.commands.output import tell
from apr_falsify.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from apr_falsify.contracts.claim import Claim
    from apr_falsify.evidence.verify import Verification
    from apr_falsify.formats.weights import Model

BUNDLE = click.Path(path_type=Path)


@click.group()
def evidence() -> None:
    """Re-check, show, report, compare and sign evidence bundles.

    A bundle is a directory that a falsifier wrote with --evidence-dir, or a zip of it.
    """


@evidence.command()
@click.argument("bundles", nargs=-1, required=True, type=BUNDLE, metavar="BUNDLE...")
@click.option("--expect", metavar="SHA256", help="The digest that the bundle's statement must have.")
@click.option("--key", "keys", multiple=True, metavar="ID=BASE64|FILE", help="A key whose signature counts.")
@click.option("--contract", type=click.Path(path_type=Path), help="Take digest, keys and claim from it.")
@click.option("--weights", type=BUNDLE, metavar="MODEL", help="Replay the traces with these weights too.")
@options.output_format
@options.debug
def verify(
    bundles: tuple[Path, ...],
    expect: str | None,
    keys: tuple[str, ...],
    contract: Path | None,
    weights: Path | None,
    output: str,
) -> int:
    """Re-check bundles: every file, and every figure that follows from the files.

    Exit codes: 0 verified, or unpinned (nothing says which bundle was
    reviewed), 1 a bundle does not verify, 2 no bundle or wrong usage.
    """
    against = _verification(bundles, expect, keys, contract, weights)
    checked = [_checked(bundle, against) for bundle in bundles]
    if output == "json":
        tell(json.dumps(_summary(checked), indent=2))
    else:
        from apr_falsify.commands.evidence_text import verification_lines

        for index, one in enumerate(checked):
            tell(("\n" if index else "") + "\n".join(verification_lines(one.found, one.standing)))
    return int(ExitCode.OK if all(one.found.holds for one in checked) else ExitCode.DIVERGENCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verification:
    """What bundles are verified against."""

    pin: str | None
    keys: Mapping[str, str]
    contract: Path | None
    weights: Model | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """One bundle, verified; how its claim stands, where a contract was given."""

    found: Verification
    state: str | None = None
    standing: tuple[str, ...] = ()


def _verification(
    bundles: Sequence[Path],
    expect: str | None,
    keys: Sequence[str],
    contract: Path | None,
    weights: Path | None,
) -> _Verification:
    if expect is not None and len(bundles) > 1:
        raise UsageError("one digest cannot be that of several bundles", where="--expect")
    if expect is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", expect):
        raise UsageError(f"{expect!r} is no sha256", where="--expect", expected="64 hexadecimal digits")
    model = None
    if weights is not None:
        from apr_falsify.formats.weights import open_model

        model = open_model(weights)
    return _Verification(pin=expect, keys=dict(map(_key, keys)), contract=contract, weights=model)


def _key(given: str) -> tuple[str, str]:
    """Read ``ID=BASE64``, ``ID=FILE`` or ``FILE``, whose name is then the id."""
    from apr_falsify.evidence.sign import public_key, read_public_key

    name, equals, value = given.partition("=")
    if not equals or Path(given).is_file():
        return Path(given).stem, read_public_key(Path(given))
    if Path(value).is_file():
        return name, read_public_key(Path(value))
    public_key(value, f"--key {name}")
    return name, value


def _checked(bundle: Path, against: _Verification) -> _Checked:
    from apr_falsify.evidence.verify import verify

    found = verify(bundle, pin=against.pin, keys=against.keys, weights=against.weights)
    if against.contract is None or found.facts is None:
        return _Checked(found=found)
    from apr_falsify.contracts.claim import read_claim

    claim = read_claim(against.contract, found.facts.falsifier)
    pin = against.pin or (claim.pin.statement_sha256 if claim.pin else "") or None
    found = verify(bundle, pin=pin, keys={**claim.keys, **against.keys}, weights=against.weights)
    return _against(found, claim)


def _against(found: Verification, claim: Claim) -> _Checked:
    """Check a bundle against the claim and the code as they are now; one of another claim fails."""
    from dataclasses import replace

    from apr_falsify.commands.standings import project_at
    from apr_falsify.evidence.binding import binding_of
    from apr_falsify.evidence.earn import STALENESS, earned
    from apr_falsify.evidence.files import BUNDLE as BUNDLE_JSON
    from apr_falsify.evidence.files import BundleProblem

    project = project_at(claim.path)
    answer = earned(
        found,
        claim,
        bound_now=binding_of(claim, project.root),
        project=project.name,
        not_sources=project.not_sources,
    )
    foreign = [one for one in answer.refusals if one.code.startswith("other-")]
    problems = [BundleProblem(code=one.code, file=BUNDLE_JSON, message=one.message) for one in foreign]
    stale = [one.message for one in answer.refusals if one.code in STALENESS]
    if problems or not found.holds:
        return _Checked(found=replace(found, problems=(*found.problems, *problems)))
    if stale:
        remedy = f"run the falsifier again: pytest -m {found.facts and found.facts.falsifier}"
        return _Checked(
            found=found, state="stale", standing=tuple(f"STALE: {one}" for one in [*stale, remedy])
        )
    return _Checked(found=found, state="fresh", standing=("fresh: claim and code are as they were measured",))


def _summary(checked: Sequence[_Checked]) -> dict[str, Any]:
    from apr_falsify.evidence.verify import SCHEMA

    entries = [{**one.found.to_json(), "freshness": one.state, "why": list(one.standing)} for one in checked]
    states = [entry["state"] for entry in entries]
    return {
        "schema": SCHEMA,
        **{state: states.count(state) for state in ("verified", "unpinned", "broken")},
        "bundles": entries,
    }


@evidence.command()
@click.argument("bundles", nargs=-1, required=True, type=BUNDLE, metavar="BUNDLE...")
@options.output_format
@options.debug
def show(bundles: tuple[Path, ...], output: str) -> int:
    """Print what bundles say of themselves; nothing is verified."""
    from apr_falsify.commands.evidence_text import bundle_lines
    from apr_falsify.evidence.bundle import read_bundle

    read = [read_bundle(path) for path in bundles]
    if output == "json":
        entries = [{"path": str(one.path), **one.facts.to_json()} for one in read]
        tell(json.dumps({"schema": "apr-falsify/evidence-shown/v1", "bundles": entries}, indent=2))
    for one in read if output == "text" else ():
        tell("\n".join(bundle_lines(one)))
    return int(ExitCode.OK)


@evidence.command()
@click.argument("bundle", type=BUNDLE)
@click.option("--out", type=click.Path(path_type=Path), help="Where to write it.  [default: NAME.html]")
@options.debug
def report(bundle: Path, out: Path | None) -> int:
    """Write the report of a bundle again, from its files, to a file outside of it."""
    from apr_falsify.commands.output import write_file
    from apr_falsify.compare.attempts import Attempts
    from apr_falsify.evidence.bundle import read_bundle
    from apr_falsify.evidence.report import bundle_html

    found = read_bundle(bundle)
    path = out or Path(f"{bundle.resolve().name.removesuffix('.zip')}.html")
    if bundle.is_dir() and path.resolve().is_relative_to(bundle.resolve()):
        raise UsageError(
            "the bundle itself is never written to: its statement digests every file",
            where=path,
            remedy="--out with a file elsewhere",
        )
    page = bundle_html(found.facts, found.bisection, found.traces, found.controls, attempts=Attempts())
    write_file(path, page)
    tell(f"report: {path}")
    return int(ExitCode.OK)


@evidence.command()
@click.argument("first", type=BUNDLE)
@click.argument("second", type=BUNDLE)
@options.output_format
@options.debug
def diff(first: Path, second: Path, output: str) -> int:
    """Say in what two bundles differ: claim, code, what was run, outcome, tests, figures.

    Exit codes: 0 they say the same, 1 they differ, 2 no bundle.
    """
    from apr_falsify.commands.evidence_text import difference_lines
    from apr_falsify.evidence.bundle import read_bundle
    from apr_falsify.evidence.difference import SCHEMA, differences

    changes = differences(read_bundle(first), read_bundle(second))
    if output == "json":
        found = [one.to_json() for one in changes]
        paths = {"first": str(first), "second": str(second)}
        tell(json.dumps({"schema": SCHEMA, **paths, "differences": found}, indent=2))
    else:
        tell("\n".join(difference_lines(changes)))
    return int(ExitCode.DIVERGENCE if changes else ExitCode.OK)


@evidence.command()
@click.argument("bundle", type=BUNDLE)
@click.option("--key", required=True, type=click.Path(path_type=Path), help="An Ed25519 private key, PEM.")
@click.option("--key-id", metavar="ID", help="What contracts list it by.  [default: the file's name]")
@options.debug
def sign(bundle: Path, key: Path, key_id: str | None) -> int:
    """Sign the statement of a bundle that verifies; the public key goes into the contract.

    A key is made with: openssl genpkey -algorithm ed25519 -out lane.pem
    """
    from apr_falsify.evidence.bundle import sign_bundle
    from apr_falsify.evidence.files import ENVELOPE
    from apr_falsify.evidence.sign import load_key

    signer = load_key(key, key_id)
    if not bundle.is_dir():
        raise UsageError("a zip is only read", where=bundle, remedy="unpack it, sign it, pack it again")
    sign_bundle(bundle.resolve(), signer)
    tell(f"signed: {bundle / ENVELOPE}\nin the contract:\nevidence_keys: {{{signer.id}: {signer.public}}}")
    return int(ExitCode.OK)
