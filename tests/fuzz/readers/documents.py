"""What people and programs write as text: contracts, the roadmap, the project's settings, a baseline."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from apr_falsify.commands.lanes import read_lanes
from apr_falsify.contracts.baseline import Extent, read_baseline
from apr_falsify.contracts.claim import Pin
from apr_falsify.contracts.promote import Move, PromotionPlan, plan_edit
from apr_falsify.contracts.roots import Roots, SearchScope
from apr_falsify.contracts.settings import project_name, read_settings
from apr_falsify.contracts.statuses import BLOCKER, FUNCTIONAL, PARTIAL
from apr_falsify.contracts.tally import tally
from apr_falsify.contracts.validate import read_facts, resolve_names
from apr_falsify.errors import AprFalsifyError
from apr_falsify.pytest_plugin.project import configured_root
from apr_falsify.reading import read_toml, table
from apr_falsify.symbols.collect import read_settings as pytest_settings
from apr_falsify.symbols.modules import plugins_of
from tests.fuzz import lines, trees
from tests.fuzz.folders import Folder
from tests.fuzz.readers.inputs import Input, Maker

REPOSITORY = Path(__file__).parents[3]


def contract(folder: Path) -> Maker:
    """A contract: read, held against its tree, and every falsifier of it promoted or renewed on paper."""
    seeds = [path.read_text() for path in sorted((REPOSITORY / "contracts").glob("*-v1.yaml"))]
    corpus = (REPOSITORY / "tests" / "corpus" / "invalid").glob("*/tree/contracts/*.yaml")
    raw = [path.read_bytes() for path in sorted(corpus) if path.stat().st_size < 10_000]
    seeds += [one.decode("utf-8", "replace") for one in dict.fromkeys(raw)]
    shown, roots = Folder(folder / "contracts"), Roots({})
    (folder / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1"\n')
    path = folder / "contracts" / "x-v1.yaml"

    def make(chance: Random) -> Input:
        text = chance.choice(seeds)
        large = chance.random() < trees.LARGE
        data, words = lines.large_yaml(text, chance) if large else lines.yaml_bytes(text, chance)
        size = shown.show({path.name: data})
        moved = chance.random() < 0.3 and len(data) < 50_000  # an edit reads it four times

        def read() -> None:
            facts = read_facts(path, "contracts/x-v1.yaml")
            resolve_names(facts, SearchScope(path, roots))
            for one in facts.falsifiers[:3] if moved else ():
                _moved(path, data, one.id)

        return Input(read=read, size=size, said=words)

    return make


_PIN = Pin(bundle="../evidence/x", statement_sha256="0" * 64)
_STEPS = (
    (Move.PROMOTE, PARTIAL, None),
    (Move.PROMOTE, FUNCTIONAL, _PIN),
    (Move.RENEW, FUNCTIONAL, _PIN),
    (Move.DEMOTE, PARTIAL, None),
    (Move.DEMOTE, BLOCKER, None),
)


def _moved(path: Path, data: bytes, name: str) -> None:
    """Plan the edits that a promotion, a renewal and a demotion would make; a refusal is an answer."""
    for move, rung, pin in _STEPS:
        plan = PromotionPlan(falsifier=name, move=move, rung=rung, pin=pin, date="2026-01-01")
        try:
            plan_edit(path, data, plan)
        except AprFalsifyError as error:
            str(error)


def roadmap(folder: Path) -> Maker:
    """The roadmap that ``apr-falsify status`` reads."""
    text = (REPOSITORY / "contracts" / "roadmap.yaml").read_text()
    suite = [read_facts(path, path.name) for path in sorted((REPOSITORY / "contracts").glob("*-v1.yaml"))]
    shown = Folder(folder)

    def make(chance: Random) -> Input:
        large = chance.random() < trees.LARGE
        data, words = lines.large_yaml(text, chance) if large else lines.yaml_bytes(text, chance)
        size = shown.show({"roadmap.yaml": data})
        return Input(read=lambda: tally(suite, folder / "roadmap.yaml"), size=size, said=words)

    return make


def settings(folder: Path) -> Maker:
    """The table of a project's ``pyproject.toml``."""
    text = (REPOSITORY / "pyproject.toml").read_text()
    start, end = text.index("[tool.pytest.ini_options]"), text.index("[tool.ruff]")
    text = text[: text.index("dependencies")] + text[start:end]
    text += '\n[[tool.apr-falsify.ignores]]\ncode = "says-not-yet"\nreason = "prose"\npath = "x-v1.yaml"\n'
    text += '\n[tool.apr-falsify.sources]\naprender = "../aprender"\n'
    text += '\n[tool.apr-falsify.severities]\nsays-not-yet = "error"\n'
    shown = Folder(folder)

    def make(chance: Random) -> Input:
        data, words = lines.toml_bytes(text, chance)
        size = shown.show({"pyproject.toml": data})

        def read() -> None:
            pytest_settings(folder)
            plugins_of(folder)
            project_name(folder)
            configured_root(folder)
            read_settings(folder)
            read_lanes(
                table(read_toml(folder / "pyproject.toml"), "tool", "apr-falsify").get("lanes", {}), folder
            )

        return Input(read=read, size=size, said=words)

    return make


def baseline(folder: Path) -> Maker:
    """The baseline of a project that adopted ``validate-contracts``."""
    sound = trees.tree(
        {
            "schema": "apr-falsify/baseline/v1",
            "paths": ["contracts"],
            "problems": [
                {
                    "fingerprint": "0" * 16,
                    "shown": "x.yaml: says-not-yet",
                    "code": "says-not-yet",
                    "key": "a[0]",
                },
                {"fingerprint": "1", "shown": "y"},
            ],
        }
    )
    shown = Folder(folder)

    def make(chance: Random) -> Input:
        large = trees.maybe_large(json.dumps(sound.value).encode(), chance)
        data, words = large or trees.json_bytes(sound, chance)
        size = shown.show({"baseline.json": data})

        def read() -> object:
            return read_baseline(folder / "baseline.json").match((), Extent(paths=(".",)))

        return Input(read=read, size=size, said=words)

    return make
