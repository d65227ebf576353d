"""The published rule's answer beside ours, and why the two differ where they do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from apr_falsify.compare.published import THRESHOLD
from apr_falsify.evidence.page.view import PageRow, PageView, PublishedAnswer, RowState
from apr_falsify.evidence.page.words import joined, ranges
from apr_falsify.model.stages import ATTENTION_CHAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleAnswer:
    """Both answers for one or more layers that share them.

    Attributes:
        layers: the layers, in words.
        rule: where the rule sees the error come in; empty where it sees none.
        ours: the sources within the chain; empty for none.
        reasons: why the two differ; empty where they agree.

    """

    layers: str
    rule: str
    ours: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One stage of a layer's chain.

    Attributes:
        stage: its name.
        cosine: its cosine, ``None`` where it was not measured.
        good: whether that reaches the published threshold, ``None`` where it was not measured.
        crossing: whether the rule sees the error come in here.
        row: the stage's row, ``None`` where it has none.

    """

    stage: str
    cosine: float | None
    good: bool | None
    crossing: bool
    row: PageRow | None


def links(view: PageView, rule: PublishedAnswer) -> list[Link]:
    """Return the chain of one layer, with what both methods say of each stage."""
    rows = {row.stage: row for row in view.of_layer(rule.layer)}
    named = {bad for _, bad in rule.crossings}
    return [
        Link(
            stage=name,
            cosine=cosine,
            good=None if cosine is None else cosine >= THRESHOLD,
            crossing=name in named,
            row=rows.get(name),
        )
        for name, cosine in zip(rule.chain, rule.cosines, strict=True)
    ]


def answers(view: PageView) -> list[RuleAnswer]:
    """Return both answers, layers with the same ones together."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[int]] = {}
    for rule in view.rules:
        if rule.chain:
            found = links(view, rule)
            ours = ", ".join(link.stage for link in found if _is_source(link))
            said = ", ".join(f"{good} → {bad}" for good, bad in rule.crossings)
            groups.setdefault((said, ours, tuple(_reasons(found))), []).append(rule.layer)
    return [
        RuleAnswer(layers=ranges(layers), rule=said, ours=ours, reasons=reasons)
        for (said, ours, reasons), layers in groups.items()
    ]


def _reasons(chain: list[Link]) -> list[str]:
    said = [_not_seen(link, chain) for link in chain if _is_source(link) and not link.crossing]
    said += [_wrongly_named(link, chain) for link in chain if link.crossing and not _is_source(link)]
    return said


def _is_source(link: Link) -> bool:
    return link.row is not None and link.row.state is RowState.SOURCE


def _not_seen(link: Link, chain: list[Link]) -> str:
    figures = None if link.row is None else link.row.accumulated
    ratio = None if figures is None else figures.norm_ratio
    if link.good is None:
        return f"{link.stage} is wrong, but no cosine was measured for it"
    if not link.good:
        before = [each.stage for each in chain[: chain.index(link)]]
        told = (
            f"{before[-1]} before it is below {THRESHOLD} already" if before else "no stage comes before it"
        )
        return f"{link.stage} is wrong and its cosine is low, but {told}, so the rule sees no crossing there"
    if ratio is not None and not _SAME_NORM[0] < ratio < _SAME_NORM[1]:
        return (
            f"{link.stage} is wrong, but a cosine cannot see a scale: the subject's norm is "
            f"{ratio:.3g} times the reference's"
        )
    return f"{link.stage} is wrong by less than a cosine of {THRESHOLD} can show"


_SAME_NORM = (0.97, 1.03)


def _wrongly_named(link: Link, chain: list[Link]) -> str:
    place = chain.index(link)
    neighbour = chain[place - 1].stage if place else ""
    verdict = "differs only because its inputs do" if _inherits(link) else "is right"
    source = _NOT_FROM_ITS_NEIGHBOUR.get(link.stage, neighbour)
    if neighbour and neighbour != source:
        return (
            f"{link.stage} {verdict} (the rule sets it beside {neighbour}, but it is computed from {source})"
        )
    return f"{link.stage} {verdict}: recomputed from them, it is what it should be"


_NOT_FROM_ITS_NEIGHBOUR: Mapping[str, str] = {"k_post_rope": "qkv_bias"}
"""Stage of the rule's chain -> what it is computed from, where that is not the stage before it there."""


def _inherits(link: Link) -> bool:
    return link.row is not None and link.row.state is RowState.INHERITS


def outside(view: PageView) -> str:
    """Say which sources the rule cannot name, since they are no part of its chain; empty for none."""
    names = dict.fromkeys(
        name for each in view.sources for name in each.stages if name not in ATTENTION_CHAIN
    )
    if not names:
        return ""
    verb = "is" if len(names) == 1 else "are"
    return f"{joined(names)} {verb} no part of the nine stages that the rule looks at."
