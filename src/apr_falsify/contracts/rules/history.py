"""Rules on change: what a contract was at a commit, against what it is now."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from apr_falsify.contracts.model import Contract, Falsifier, place_of, text_of
from apr_falsify.contracts.problem import Place, Problem, problem_at
from apr_falsify.contracts.rules.shape import version_key
from apr_falsify.contracts.source import Mapping, Sequence, Value
from apr_falsify.contracts.statuses import LADDER, rung_of


def _plain(value: Value) -> object:
    """Data without positions, order of keys and line folding: what a change of content is judged on."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return None if value is None else " ".join(value.split())


def _version_place(contract: Contract) -> Place:
    value = contract.metadata.get("version") or contract.data.get("version")
    return place_of(value, "metadata.version")


def version_not_bumped(before: Contract, after: Contract) -> Iterator[Problem]:
    """Content changed: the version went up."""
    if not after.falsifiers and not before.falsifiers:
        return
    if _plain(before.data) == _plain(after.data):
        return
    old, new = version_key(before.version), version_key(after.version)
    if new <= old:
        word = "is still" if new == old else f"went from {before.version} down to"
        message = f"content changed and the version {word} {after.version or 'absent'}"
        yield problem_at(
            after.path,
            "version-not-bumped",
            _version_place(after),
            message,
            subject=after.id,
            hint="raise the version",
        )


def status_raised(before: Contract, after: Contract) -> Iterator[Problem]:
    """A status that rose names the bundle it rests on."""
    old = _by_id(before)
    for falsifier in after.falsifiers:
        was, now = (
            rung_of(old[falsifier.id].status) if falsifier.id in old else None,
            rung_of(falsifier.status),
        )
        if was is None or now is None or LADDER.index(now) <= LADDER.index(was) or _bundle(falsifier):
            continue
        message = f"{falsifier.id} rose from {was} to {now} and names no evidence bundle"
        hint = f"apr-falsify promote {after.path} {falsifier.id} --evidence BUNDLE"
        place = falsifier.status_place or falsifier.place
        yield problem_at(
            after.path, "status-raised-without-bundle", place, message, subject=falsifier.id, hint=hint
        )


def _by_id(contract: Contract) -> dict[str, Falsifier]:
    return {falsifier.id: falsifier for falsifier in contract.falsifiers if falsifier.id}


def _bundle(falsifier: Falsifier) -> bool:
    block = falsifier.data.get("evidence")
    return isinstance(block, Mapping) and bool(text_of(block, "bundle"))


def evidence_changed(before: Contract, after: Contract) -> Iterator[Problem]:
    """algorithm_evidence changed: at least a MINOR version, and a changelog line that names it."""
    old = _by_id(before)
    changed = [
        falsifier
        for falsifier in after.falsifiers
        if falsifier.id in old and _evidence(old[falsifier.id]) != _evidence(falsifier)
    ]
    for falsifier in changed:
        place = falsifier.place
        if version_key(after.version)[:2] <= version_key(before.version)[:2]:
            went = f"{before.version} to {after.version}"
            message = f"algorithm_evidence of {falsifier.id} changed, the version went from {went}"
            yield problem_at(
                after.path,
                "evidence-changed-without-minor",
                place,
                message,
                subject=falsifier.id,
                hint="raise MINOR at least",
            )
        if after.version not in _changelog(after) or _plain_text(before) == _plain_text(after):
            message = f"algorithm_evidence of {falsifier.id} changed and the changelog does not tell"
            hint = f"add a line 'v{after.version} (date): ...' to metadata.description"
            yield problem_at(
                after.path,
                "evidence-changed-without-changelog",
                place,
                message,
                subject=falsifier.id,
                hint=hint,
            )


def _evidence(falsifier: Falsifier) -> object:
    """The evidence blocks, without what is said about them: a status is not evidence."""
    blocks = []
    for key, value in falsifier.evidence:
        plain = _plain(value)
        if isinstance(plain, dict):
            plain = {name: item for name, item in plain.items() if name not in ("status", "verdict")}
        blocks.append((key.rpartition(".")[2], plain))
    return blocks


def _changelog(contract: Contract) -> str:
    return (
        contract.description + " " + text_of(contract.data, "changelog") + str(contract.data.get("changelog"))
    )


def _plain_text(contract: Contract) -> str:
    return " ".join(_changelog(contract).split())


def falsifier_removed(before: Contract, after: Contract) -> Iterator[Problem]:
    """Every falsifier there was is still there."""
    gone = [one for one in _by_id(before) if one not in _by_id(after)]
    for identity in gone:
        message = f"falsifier {identity} was there and is gone"
        place = Place(line=1, column=1, key="falsification_tests")
        yield problem_at(
            after.path,
            "falsifier-removed",
            place,
            message,
            subject=identity,
            hint="keep it, with the status it has",
        )


def removed_file(before: Contract, shown: str) -> Iterator[Problem]:
    """A contract that went away with its falsifiers."""
    for identity in _by_id(before):
        yield Problem(
            code="falsifier-removed",
            path=shown,
            line=1,
            column=1,
            message=f"falsifier {identity} was there and is gone with its file",
            subject=identity,
        )


HistoryRule = Callable[[Contract, Contract], Iterator[Problem]]
HISTORY_RULES: tuple[HistoryRule, ...] = (
    version_not_bumped,
    status_raised,
    evidence_changed,
    falsifier_removed,
)
