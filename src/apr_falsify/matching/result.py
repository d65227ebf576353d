"""What a search found, as the stages of a mapping file: one form a stage, a pattern or a list of names.

A mapping says of a stage one order of axes for all layers. Of arrays that are equal, those are taken whose
form and name most layers share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from apr_falsify.matching.bag import Bag, Hit
from apr_falsify.matching.forms import Form, StagePlace
from apr_falsify.matching.forward import JOINED
from apr_falsify.matching.names import pattern_of, template
from apr_falsify.matching.readers import Use
from apr_falsify.matching.search import Open
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import STAGES, Layout, Scope
from apr_falsify.model.wiring import stages_of
from apr_falsify.subjects.mapped_parts import Axis, Slice, Stored
from apr_falsify.subjects.mapping_names import name_of

Shape = tuple[tuple[Axis, ...], tuple[tuple[str, Slice], ...], tuple[Layout, ...], bool]
"""Axes, what is taken of them, layout words, whether the mask was added: what all layers share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WiredStage:
    """One stage of the mapping file.

    Attributes:
        stage: its name there.
        names: layer (``None`` where it has none) -> the names of its arrays; three for q, k, v apart.
        pattern: the names with ``{layer}``, empty where they are listed by layer.
        stored: how each array lies.
        layout: what the axes do not say.
        why: what shows it, in words, one line each.

    """

    stage: str
    names: Mapping[int | None, tuple[str, ...]]
    pattern: tuple[str, ...]
    stored: tuple[Stored, ...]
    layout: tuple[Layout, ...]
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """Which array is which stage.

    Attributes:
        stages: those that were found, in forward order.
        open: places that were left, because it cannot be decided which array they are.
        left_out: what was found and a mapping cannot say, in words.
        unused: the names of the arrays that no stage is.
        lacking: the stages of which no layer has an array.

    """

    stages: tuple[WiredStage, ...]
    open: tuple[Open, ...]
    left_out: tuple[str, ...]
    unused: tuple[str, ...]
    lacking: frozenset[str]


@dataclass(slots=True)
class _Choice:
    """What is shared while stages are chosen: arrays that are taken, and notes."""

    bag: Bag
    reserved: set[int]
    notes: list[str] = field(default_factory=list)


def wiring_of(
    bag: Bag, uses: Mapping[StagePlace, Use], opened: Iterable[Open], every: Sequence[str]
) -> Wiring:
    """Return what was found, as a mapping file can say it.

    Args:
        bag: the arrays.
        uses: the array of each place.
        opened: the places that were left open.
        every: the names of all arrays, those that can be no stage too.

    """
    uses = _settled(bag, uses)
    choice = _Choice(bag=bag, reserved={use.at for use in uses.values()})
    stages = [stage for name in STAGES if (stage := _stage(name, uses, choice)) is not None]
    used = {name for stage in stages for names in stage.names.values() for name in names}
    return Wiring(
        stages=tuple(stages),
        open=tuple(opened),
        left_out=tuple(choice.notes),
        unused=tuple(name for name in every if name not in used),
        lacking=frozenset(stages_of(bag.geometry)) - {stage.stage for stage in stages},
    )


def _settled(bag: Bag, uses: Mapping[StagePlace, Use]) -> dict[StagePlace, Use]:
    """Exchange arrays of equal values between places, so that each stage lies alike in all layers."""
    found = dict(uses)
    holder = {use.at: place for place, use in found.items()}
    for name, part in dict.fromkeys((place.key.stage, place.part) for place in uses):
        places = [place for place in found if (place.key.stage, place.part) == (name, part)]
        shapes = Counter(
            shape for place in places for shape in {_shape_of(hit) for hit in found[place].equals}
        )
        if not shapes:
            continue
        common = max(shapes, key=lambda shape: shapes[shape])
        for place in places:
            use = found[place]
            if _shape_of(use.hit) == common:
                continue
            for hit in use.equals:
                other = holder.get(hit.entry.at)
                if _shape_of(hit) != common or other is None or other == place or other.axes != place.axes:
                    continue
                theirs = found[other]
                if theirs.hit.entry.form.stored.take or use.hit.entry.form.stored.take:
                    continue
                found[place] = replace(use, hit=hit)
                found[other] = replace(theirs, hit=use.hit, equals=(use.hit, *theirs.equals))
                holder[hit.entry.at], holder[use.at] = place, other
                break
    return found


def _stage(name: str, uses: Mapping[StagePlace, Use], choice: _Choice) -> WiredStage | None:
    parts = tuple("qkv") if name in JOINED else ("",)
    found: dict[str, dict[int | None, Use]] = {
        part: {
            place.key.layer: use
            for place, use in uses.items()
            if place.key.stage == name and place.part == part
        }
        for part in parts
    }
    layers = [layer for layer in found[parts[0]] if all(layer in found[part] for part in parts)]
    for part, held in found.items():
        if lacking := [layer for layer in held if layer not in layers]:
            choice.notes.append(
                f"{name} of {_layers(lacking)}: {part} of it was found, and not all of q, k and v"
            )
    chosen = {part: _one_form({layer: found[part][layer] for layer in layers}, choice) for part in parts}
    kept = [layer for layer in layers if all(layer in chosen[part] for part in parts)]
    if lost := [layer for layer in layers if layer not in kept]:
        choice.notes.append(f"{name} of {_layers(lost)}: it lies otherwise there than in other layers")
    if not kept:
        return None
    hits = {layer: tuple(chosen[part][layer] for part in parts) for layer in kept}
    first = next(iter(hits.values()))
    layout = _layout(first, parts)
    if layout is None:
        choice.notes.append(f"{name}: a layout of q without that of k cannot be said")
        return None
    names: Mapping[int | None, tuple[str, ...]] = {
        layer: tuple(choice.bag.arrays[hit.entry.at].name for hit in each) for layer, each in hits.items()
    }
    stored = tuple(hit.entry.form.stored for hit in first)
    stage, names, stored = _joined(name, names, stored, choice.bag.geometry, kept)
    return WiredStage(
        stage=stage,
        names=names,
        pattern=_patterns(stage, names, choice.bag),
        stored=stored,
        layout=tuple(word for word in layout if not (word is Layout.LAST_TOKEN and stage in _OF_LAST)),
        why=tuple(_why({layer: tuple(found[part][layer] for part in parts) for layer in kept})),
    )


_OF_LAST = ("moe_ffn_out", "moe_router", "moe_router_indices")


def _shape_of(hit: Hit) -> Shape:
    form: Form = hit.entry.form
    return form.stored.axes, tuple(form.stored.take.items()), form.words, hit.masked


def _one_form(uses: Mapping[int | None, Use], choice: _Choice) -> dict[int | None, Hit]:
    """Return the array of each layer in the form that most share, of equal ones those named alike."""
    if not uses:
        return {}
    shared: Counter[Shape] = Counter()
    for use in uses.values():
        shared.update({_shape_of(hit) for hit in _free(use, choice)})
    oddity = {_shape_of(hit): hit.entry.form.oddity for use in uses.values() for hit in _free(use, choice)}
    form = max(shared, key=lambda shape: (shared[shape], -oddity[shape]))
    options = {
        layer: [hit for hit in _free(use, choice) if _shape_of(hit) == form] for layer, use in uses.items()
    }
    alike = Counter(
        kind
        for hits in options.values()
        for kind in {template(choice.bag.arrays[hit.entry.at].name) for hit in hits}
    )
    found: dict[int | None, Hit] = {}
    for layer, hits in options.items():
        if hits:
            found[layer] = max(hits, key=lambda hit: alike[template(choice.bag.arrays[hit.entry.at].name)])
            choice.reserved.add(found[layer].entry.at)
    return found


def _free(use: Use, choice: _Choice) -> list[Hit]:
    return [use.hit, *(hit for hit in use.equals if hit.entry.at not in choice.reserved)]


def _layout(hits: Sequence[Hit], parts: Sequence[str]) -> tuple[Layout, ...] | None:
    """Return the words of a stage, ``None`` where its parts have words that cannot be said together."""
    words = {part: set(hit.entry.form.words) for part, hit in zip(parts, hits, strict=True)}
    both = {Layout.INTERLEAVED, Layout.ROOT_SCALED}
    if len(parts) > 1 and words["q"] & both != words["k"] & both:
        return None
    masked = any(hit.masked for hit in hits)
    found = set().union(*words.values()) | ({Layout.VISIBLE_ONLY} if masked else set())
    return tuple(word for word in Layout if word in found)


def _joined(
    name: str,
    names: Mapping[int | None, tuple[str, ...]],
    stored: tuple[Stored, ...],
    geometry: Geometry,
    layers: Sequence[int | None],
) -> tuple[str, Mapping[int | None, tuple[str, ...]], tuple[Stored, ...]]:
    """Say q|k|v in one array by its own axis, and a mixture's output by the stage that ``apr`` has."""
    if name == "ffn_out" and all(geometry.is_mixture(layer) for layer in layers):
        return "moe_ffn_out", names, stored
    if len(stored) == 1 or any(len(set(each)) > 1 for each in names.values()):
        return name, names, stored
    words = [next(iter(one.take), "") for one in stored]
    for own, whole in ((("q", "kv", "kv"), "qkv"), (("heads", "kv_heads", "kv_heads"), "qkv_heads")):
        ends = [one.take.get(word, (0, 0, 0)) for one, word in zip(stored, words, strict=True)]
        if tuple(words) == own and ends[0][0] == 0 and ends[0][1] == ends[1][0] and ends[1][1] == ends[2][0]:
            axes = tuple(whole if axis == own[0] else axis for axis in stored[0].axes)
            return name, {layer: each[:1] for layer, each in names.items()}, (Stored(axes=axes),)
    return name, names, stored


def _patterns(stage: str, names: Mapping[int | None, tuple[str, ...]], bag: Bag) -> tuple[str, ...]:
    """Return the names with ``{layer}``, where they give these arrays and no others."""
    if STAGES[stage].scope is not Scope.LAYER:
        return next(iter(names.values()))
    known = {array.name for array in bag.arrays}
    found = []
    for index in range(len(next(iter(names.values())))):
        each = {layer: every[index] for layer, every in names.items() if layer is not None}
        pattern = pattern_of(each) if len(each) > 1 else None
        if pattern is None:
            return ()
        others = [layer for layer in range(bag.geometry.layers + 1) if layer not in each]
        if any(name_of(pattern, layer) in known for layer in others):
            return ()
        found.append(pattern)
    return tuple(found)


def _layers(layers: Sequence[int | None]) -> str:
    named = sorted(layer for layer in layers if layer is not None)
    if not named:
        return "the whole model"
    return f"layer{'s' if len(named) > 1 else ''} {', '.join(map(str, named))}"


def _why(uses: Mapping[int | None, tuple[Use, ...]]) -> Iterator[str]:
    right = [use for each in uses.values() for use in each if use.why == "inputs"]
    if right:
        yield f"what its inputs make it, to {max(use.hit.distance for use in right):.0e}"
    wrong = {layer: [use for use in each if use.why != "inputs"] for layer, each in uses.items()}
    for layer, each in wrong.items():
        where = "" if layer is None else f" in layer {layer}"
        for use in each:
            off = f"not what its inputs make it{where}: off by {use.hit.distance:.1e}"
            if use.why == "readers":
                names = ", ".join(dict.fromkeys(reader.key.stage for reader in use.readers))
                yield f"{off}; it is the array of which {names} is made"
            else:
                yield f"{off}; it is the only array left that is like it, and nothing recorded is made of it"
