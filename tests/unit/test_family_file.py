"""A user's own family: what its file brings, and that each thing wrong in it is told with file and node."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apr_falsify.errors import AprFalsifyError, ExitCode, FamilyError, ModelError, UnknownFamilyError
from apr_falsify.formats.weights import open_model
from apr_falsify.model.families import family_of_model_type, graph_of, known_families
from apr_falsify.model.geometry import geometry_of_config
from apr_falsify.model.shape import Geometry
from apr_falsify.operators import table
from apr_falsify.operators.family_file import load_families
from apr_falsify.operators.operator import Inputs
from apr_falsify.operators.site import ModelSite
from apr_falsify.traces.identity import driver_of, same_family_file
from tests.checkpoints import make_checkpoint
from tests.unit.helpers import CONFIG

HEAD = """
from dataclasses import replace
import numpy as np
from apr_falsify.model.blocks import decoder_ends, decoder_layer
from apr_falsify.model.families.llama import LLAMA
from apr_falsify.model.family import Family
from apr_falsify.model.graph import Node, Tap
from apr_falsify.model.names import HF_DECODER
from apr_falsify.operators.operator import Operator, only

def changed(stage, /, **values):  # a Llama's layer with one node changed
    def layer(geometry, n):
        nodes = decoder_layer(geometry, n)
        return [replace(node, **values) if node.stage == stage else node for node in nodes]
    return layer

"""
PLAIN = 'OWN = Family(name="own", title="Own", model_types=("own",), weights=HF_DECODER)'

pytestmark = pytest.mark.usefixtures("no_family_stays")


@pytest.fixture
def no_family_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    # Registries of the process, which no command takes anything out of: each test gets empty ones.
    monkeypatch.setattr("apr_falsify.model.families.of_users._files", {})
    monkeypatch.setattr("apr_falsify.operators.table._of_users", {})
    graph_of.cache_clear()


def written(folder: Path, text: str, name: str = "own.py") -> Path:
    path = folder / name
    path.write_text(HEAD + text)
    return path


def with_layer(layer: str, rest: str = "") -> str:
    return PLAIN[:-1] + f", layer={layer}{rest})"


def own_geometry(**config: object) -> Geometry:
    return geometry_of_config({**CONFIG, "model_type": "own", **config})


def test_a_family_of_a_file_is_known_like_those_of_the_table_once_and_until_it_is_edited(
    tmp_path: Path,
) -> None:
    with pytest.raises(UnknownFamilyError, match="'own'"):
        family_of_model_type("own")
    path = written(tmp_path, PLAIN)
    (own,) = load_families(path)
    assert family_of_model_type("own") is own
    assert known_families()[-1] is own
    assert load_families(Path(os.path.relpath(path)))[0] is own  # unchanged: not run again
    first = own_geometry()
    assert "q_norm" not in graph_of(first).layers[0]
    path.write_text(HEAD + PLAIN.replace("Own", "Edited"))
    assert [each.title for each in load_families(path)] == ["Edited"]
    assert [each.title for each in known_families() if each.name == "own"] == ["Edited"]


def test_what_a_file_only_imports_is_not_its_own(tmp_path: Path) -> None:
    (own,) = load_families(written(tmp_path, PLAIN + "\nALIAS = OWN"))
    assert own.name == "own"


def test_a_trace_of_an_edited_file_is_another_one(tmp_path: Path) -> None:
    path = written(tmp_path, PLAIN)
    load_families(path)
    before = driver_of(own_geometry())
    assert "own.py" in before
    assert same_family_file(own_geometry()) == {"driver": before}
    path.write_text(HEAD + PLAIN + "\n")
    load_families(path)
    assert driver_of(own_geometry()) != before
    assert same_family_file(geometry_of_config(CONFIG)) == {}


OPERATOR = """
def values(node, inputs, site):
    return np.minimum(only(inputs), 1)
def variance(node, ins, y, site, store):
    return 0 * y
def text(node, geometry, layer):
    return (f"{node.stage} = ...",)
CLAMP = Operator(name="clamp", values=values, variance=variance, text=text)
"""
CLAMPED = OPERATOR + with_layer('changed("ffn_silu", operator="clamp")')

REFUSED_FILES = {
    "no-family": ("x = 1", "own.py", "defines no family"),
    "only-ours": ("", "own.py", "defines no family"),
    "no-python": ("def f(:", "own.py:17", "no Python: invalid syntax"),
    "null-byte": ("x = '\0'", "own.py", "no Python"),
    "raises": ("x = 1\n\nnp.no_such", "own.py:19", "AttributeError: module 'numpy' has no attribute"),
    "raises-below": ("decoder_layer(3)", "own.py:17", "TypeError: "),
    "leaves": ("raise SystemExit(0)", "own.py:17", "SystemExit: 0"),
    "no-keyword": ('Family(nmae="x")', "own.py:17", "nmae"),
    "our-name": (PLAIN.replace('"own"', '"llama"', 1), "the family llama", "name 'llama' is taken"),
    "our-type": (PLAIN.replace('("own",)', '("own", "qwen2")'), "family own", "model_type 'qwen2' is taken"),
    "our-gguf": (
        PLAIN[:-1] + ', gguf_architectures=("llama",), gguf_weights=HF_DECODER)',
        "family own",
        "GGUF architecture 'llama' is taken",
    ),
    "twice-in-one-file": (
        PLAIN + "\nTWO = replace(OWN, title='Two')",
        "the family own",
        "taken already by a family of the same file",
    ),
    "types-in-one-string": (PLAIN.replace('("own",)', '"own"'), "the family own", "not a tuple of names"),
    "a-template-of-other-fields": (
        PLAIN.replace("HF_DECODER", '{**HF_DECODER, "q": "a.{layer}.b"}'),
        "the family own",
        "the weight 'q' is called 'a.{layer}.b'",
    ),
    "no-embedding": (PLAIN.replace("HF_DECODER", "{}"), "the family own", "no name for embed, q, k, v, o"),
    "gguf-names-of-other-roles": (
        PLAIN[:-1] + ", gguf_weights={**HF_DECODER, 'extra': 'x'})",
        "the family own",
        "differ in the roles extra",
    ),
    "our-operator": (OPERATOR.replace('"clamp"', '"linear"') + PLAIN, "own.py", "called 'linear' is there"),
}


@pytest.mark.parametrize(("text", "where", "what"), REFUSED_FILES.values(), ids=list(REFUSED_FILES))
def test_a_file_that_cannot_be_taken_is_refused_where_it_is_wrong_and_leaves_nothing(
    text: str, where: str, what: str, tmp_path: Path
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(FamilyError) as refusal:
        load_families(path)
    assert str(path) in str(refusal.value.where)
    assert where in str(refusal.value.where)
    assert what in refusal.value.what
    assert refusal.value.exit_code is ExitCode.USAGE
    assert known_families()[-1].name != "own"
    assert "clamp" not in table.known_operators()


@pytest.mark.parametrize("name", ["missing.py", "."])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match="cannot be read") as refusal:
        load_families(tmp_path / name)
    assert refusal.value.where == str(tmp_path / name)


def test_two_files_do_not_share_a_family_or_an_operator(tmp_path: Path) -> None:
    load_families(written(tmp_path, CLAMPED))
    with pytest.raises(FamilyError, match=r"model_type 'own' is taken already by a family of .*own\.py"):
        load_families(written(tmp_path, PLAIN.replace('name="own"', 'name="two"'), "two.py"))
    other = PLAIN.replace('"own"', '"two"').replace('("two",)', '("two",)')
    with pytest.raises(FamilyError, match="an operator called 'clamp' is there already"):
        load_families(written(tmp_path, OPERATOR + other, "two.py"))


REFUSED_GRAPHS = {
    "no-input": (with_layer('changed("attn_norm", inputs={})'), "the node attn_norm has no input"),
    "a-circle": (
        with_layer('changed("ffn_norm", inputs={"x": "ffn_out"})'),
        "the node ffn_norm is computed from itself: a circle, "
        "ffn_norm <- ffn_out <- ffn_swigl <- ffn_up <- ffn_norm",
    ),
    "of-itself": (
        with_layer('changed("ffn_norm", inputs={"x": "ffn_norm"})'),
        "the node ffn_norm is computed from itself: a circle, ffn_norm <- ffn_norm",
    ),
    "a-wrong-order": (
        with_layer("lambda geometry, n: decoder_layer(geometry, n)[::-1]"),
        "the node post_ffn_residual is computed from post_attn_residual, which comes after it",
    ),
    "of-no-node": (
        with_layer('changed("ffn_norm", inputs={"x": "ffn_nrom"})'),
        "the node ffn_norm is computed from ffn_nrom, which is no node of its layer",
    ),
    "two-of-one-name": (
        with_layer("lambda geometry, n: decoder_layer(geometry, n)[:1] * 2"),
        "two nodes are called attn_norm",
    ),
    "no-stage": (with_layer('changed("ffn_norm", stage="ffn_nrom")'), "the node 'ffn_nrom' is no stage"),
    "a-role-without-a-name": (
        with_layer('changed("attn_out", roles=("down_proj",))'),
        "the node attn_out uses the weight 'down_proj', which has no name in weights",
    ),
    "a-role-without-a-shape": (
        with_layer('changed("attn_out", roles=("sink",))').replace(
            "HF_DECODER", '{**HF_DECODER, "sink": "model.sink"}'
        ),
        "the node attn_out uses the weight 'sink', whose shape nothing says",
    ),
    "a-shape-of-no-axes": (
        with_layer('changed("attn_out", roles=("sink",))', ', role_axes={"sink": ("head",)}').replace(
            "HF_DECODER", '{**HF_DECODER, "sink": "model.sink"}'
        ),
        "the node attn_out uses the weight 'sink', whose axis 'head' has no size",
    ),
    "an-unknown-operator": (
        with_layer('changed("attn_norm", operator="rmsnorm")'),
        "the node attn_norm has the operator 'rmsnorm', which is not known",
    ),
    "a-tap-of-nothing": (
        with_layer('changed("attn_norm", tap=Tap(module="norm1"))'),
        "the node attn_norm is to be seen at 'norm1', which names no module",
    ),
    "no-nodes": (with_layer("lambda geometry, n: None"), "TypeError"),
    "other-than-nodes": (with_layer("lambda geometry, n: [1]"), "gives 1 where a Node is wanted"),
    "roles-in-one-string": (
        with_layer('changed("attn_out", roles="down")'),
        "the node attn_out: inputs is a mapping, and roles a tuple",
    ),
    "a-layer-that-raises": (
        with_layer("lambda geometry, n: geometry.no_such"),
        "AttributeError: 'Geometry' object has no attribute 'no_such'",
    ),
}


@pytest.mark.parametrize(("text", "what"), REFUSED_GRAPHS.values(), ids=list(REFUSED_GRAPHS))
def test_a_graph_that_is_none_is_refused_by_file_family_and_node(
    text: str, what: str, tmp_path: Path
) -> None:
    path = written(tmp_path, text)
    load_families(path)
    with pytest.raises(FamilyError) as refusal:
        graph_of(own_geometry())
    assert what in refusal.value.what
    assert str(refusal.value.where).startswith(str(path))
    assert "the family own" in str(refusal.value.where)


def test_a_near_miss_is_offered_among_operators_and_roles(tmp_path: Path) -> None:
    load_families(written(tmp_path, REFUSED_GRAPHS["an-unknown-operator"][0]))
    with pytest.raises(FamilyError) as refusal:
        graph_of(own_geometry())
    assert refusal.value.remedy == "did you mean 'rms_norm'?"


SETTINGS = {
    "an-unknown-keyword": ("{'embed_scal': 2.0}", FamilyError, "embed_scal"),
    "raises": ("config.no_such", FamilyError, "AttributeError"),
    "a-missing-key": (
        "{'embed_scale': config.number('no_key')}",
        AprFalsifyError,
        "config.json has no 'no_key'",
    ),
    "a-wrong-value": ("{'embed_scale': -1.0}", AprFalsifyError, "not above 0"),
}


@pytest.mark.parametrize(("said", "error", "what"), SETTINGS.values(), ids=list(SETTINGS))
def test_settings_that_say_nothing_usable_are_refused(
    said: str, error: type[AprFalsifyError], what: str, tmp_path: Path
) -> None:
    load_families(written(tmp_path, PLAIN[:-1] + f", settings=lambda config: {said})"))
    with pytest.raises(error) as refusal:
        own_geometry()
    assert what in refusal.value.what


def test_a_tensor_that_the_checkpoint_lacks_is_told_with_its_role_and_the_file(tmp_path: Path) -> None:
    model = open_model(make_checkpoint(tmp_path, "llama"))
    path = written(
        tmp_path, PLAIN.replace("HF_DECODER", '{**HF_DECODER, "o": "model.layers.{n}.attn.o.weight"}')
    )
    load_families(path)
    own = replace(model.geometry, family="own")
    names = {**model.weights.names, "o": "model.layers.{n}.self_attn.o.weight"}
    weights = replace(model.weights, geometry=own, names=names)
    with pytest.raises(ModelError, match=r"model\.layers\.1\.self_attn\.o\.weight is missing") as refusal:
        weights.tensor("o", 1)
    assert f"the weight 'o' by {path}: the family own" in refusal.value.what
    assert refusal.value.remedy == "name it in the family's weights as the checkpoint does"


def computed(tmp_path: Path, change: Callable[[str], str]) -> tuple[Path, np.ndarray]:
    """Compute the clamped node of a model with random inputs."""
    model = open_model(make_checkpoint(tmp_path, "llama"))
    path = written(tmp_path, change(CLAMPED))
    load_families(path)
    weights = replace(model.weights, geometry=replace(model.geometry, family="own"))
    site = ModelSite(weights=weights, layer=0, tokens=(1, 2, 3))
    inputs: Inputs = {"ffn_gate": np.linspace(-3, 3, 3 * 80).reshape(3, 80)}
    return path, table.compute("ffn_silu", inputs, site)


def test_an_operator_of_the_file_computes(tmp_path: Path) -> None:
    _, made = computed(tmp_path, lambda text: text)
    assert made.shape == (3, 80)
    assert made.max() == 1


@pytest.mark.parametrize(
    ("formula", "what", "where"),
    [
        ("only(inputs)[:, :2]", "returned an array of the shape [3, 2]", "own.py"),
        ("3", "returned a int", "own.py"),
        ("inputs['ffn_up']", "raised KeyError: 'ffn_up'", "own.py:19"),
    ],
)
def test_an_operator_that_fails_is_told_with_file_operator_and_node(
    formula: str, what: str, where: str, tmp_path: Path
) -> None:
    with pytest.raises(FamilyError) as refusal:
        computed(tmp_path, lambda text: text.replace("np.minimum(only(inputs), 1)", formula))
    assert refusal.value.what == what
    assert f"{where}: the operator clamp: its function values at the node ffn_silu: " in str(refusal.value)
