"""What a Rust file defines, read with tree-sitter: items only, never the expressions inside bodies."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from apr_falsify.symbols.index import Definition, SymbolIndex

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

# tree-sitter's node type -> our word for it
_KINDS = {
    "function_item": "function",
    "function_signature_item": "function",
    "struct_item": "struct",
    "union_item": "union",
    "enum_item": "enum",
    "enum_variant": "variant",
    "field_declaration": "field",
    "trait_item": "trait",
    "type_item": "type",
    "associated_type": "type",
    "const_item": "constant",
    "static_item": "static",
    "macro_definition": "macro",
    "mod_item": "module",
}
_CONTAINERS = {"mod_item", "trait_item", "enum_item", "struct_item", "union_item", "function_item"}
_LISTS = {
    "declaration_list",
    "enum_variant_list",
    "field_declaration_list",
    "block",
    "foreign_mod_item",
    "extern_block",
}
_MACRO_ITEM = re.compile(
    r"(?P<attributes>(?:#\s*\[[^\]]*\]\s*)*)(?:pub(?:\([^)]*\))?\s+)?(?:async\s+|unsafe\s+|const\s+(?=fn))*"
    r"\b(?P<kind>fn|struct|enum|trait|const|static(?:\s+ref)?|type|mod|union)\s+(?:r#)?(?P<name>[A-Za-z_]\w*)"
)
_MACRO_KINDS = {"fn": "function", "const": "constant", "mod": "module"}
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_QUOTED = re.compile(r'"([^"]*)"')
# `#[test]`, `#[tokio::test(...)]`, `#[rstest]`, `#[test_case(...)]`, `#[quickcheck]`: each yields a test
_TEST_ATTRIBUTE = re.compile(
    r"^(?:\w+::)*(?:\w*test\w*|rstest|quickcheck|proptest|case|apply|test_case)\s*(?:\(|$)"
)


@functools.cache
def _parser() -> Parser:
    import tree_sitter
    import tree_sitter_rust

    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_rust.language()))


def index_rust(source: bytes) -> SymbolIndex:
    """Index a Rust file; one that does not parse yields what could be read, and ``error_line``."""
    root = _parser().parse(source).root_node
    reader = _Reader()
    reader.items(root, ())
    error = _first_error(root) if root.has_error else None
    return SymbolIndex(
        language="rust",
        definitions=tuple(reader.found),
        error_line=error,
        error="" if error is None else "not valid Rust from here on",
        includes=tuple(reader.includes),
        modules=tuple(reader.modules),
        reexports=tuple(reader.reexports),
        possible=frozenset(reader.possible),
        traits_of={name: tuple(traits) for name, traits in reader.traits.items()},
    )


def _first_error(node: Node) -> int:
    """Line of the first node that tree-sitter could not read."""
    while True:
        broken = next((child for child in node.children if child.has_error or child.is_missing), None)
        if broken is None or node.type == "ERROR":
            return node.start_point[0] + 1
        node = broken


def _text(node: Node | None) -> str:
    return "" if node is None or node.text is None else node.text.decode("utf-8", "replace")


@dataclass(slots=True)
class _Reader:
    """Collects definitions while walking items."""

    found: list[Definition] = field(default_factory=list)
    includes: list[str] = field(default_factory=list)
    modules: list[tuple[str, str]] = field(default_factory=list)
    reexports: list[tuple[str, str]] = field(default_factory=list)
    possible: set[str] = field(default_factory=set)
    traits: dict[str, list[str]] = field(default_factory=dict)

    def items(self, parent: Node, parents: tuple[str, ...], inherited: tuple[str, ...] = ()) -> None:
        """Walk the items of a block; attributes stand before the item they belong to."""
        attributes: list[str] = []
        for node in parent.named_children:
            if node.type == "attribute_item":
                attributes.append(_text(node).removeprefix("#[").removesuffix("]").strip())
            elif "comment" not in node.type:
                self.item(node, parents, attributes, inherited)
                attributes = []

    def item(
        self, node: Node, parents: tuple[str, ...], attributes: list[str], inherited: tuple[str, ...]
    ) -> None:
        kind = node.type
        if kind in _KINDS:
            self.definition(node, parents, attributes, inherited)
        elif kind == "impl_item":
            self.implementation(node, parents, inherited)
        elif kind in _LISTS:
            self.items(node, parents, inherited)
        elif kind == "use_declaration":
            self.use(node)
        elif kind == "macro_invocation":
            self.macro(node, parents)
        elif kind == "expression_statement":
            self.items(node, parents, inherited)

    def definition(
        self, node: Node, parents: tuple[str, ...], attributes: list[str], inherited: tuple[str, ...]
    ) -> None:
        name = _text(node.child_by_field_name("name")).removeprefix("r#")  # as rustdoc calls it
        marks = (*inherited, *_marks(attributes))
        kind = _KINDS[node.type]
        line = node.start_point[0] + 1
        if derived := _derived(attributes):
            self.traits.setdefault(name, []).extend(derived)
        self.found.append(Definition(name=name, kind=kind, line=line, parents=parents, marks=marks))
        body = node.child_by_field_name("body")
        if body is not None and node.type in _CONTAINERS:
            self.items(body, (*parents, name), tuple(mark for mark in marks if mark.startswith("cfg")))
        elif node.type == "mod_item":
            self.modules.append((name, _path_attribute(attributes)))

    def implementation(self, node: Node, parents: tuple[str, ...], inherited: tuple[str, ...]) -> None:
        owner = _bare_type(_text(node.child_by_field_name("type")))
        trait = _bare_type(_text(node.child_by_field_name("trait")))
        if trait:
            self.traits.setdefault(owner, []).append(trait)
        body = node.child_by_field_name("body")
        if body is not None:
            self.items(body, (*parents, owner), inherited)

    def use(self, node: Node) -> None:
        text = _text(node)
        if not text.startswith("pub"):
            return
        path = text.partition("use ")[2].rstrip("; \n")
        self.reexports.extend(_use_names(path))

    def macro(self, node: Node, parents: tuple[str, ...]) -> None:
        text = _text(node)
        name = _text(node.child_by_field_name("macro"))
        if name == "include":
            self.includes.extend(_QUOTED.findall(text))
            return
        self.possible.update(_IDENTIFIER.findall(text))
        for match in _MACRO_ITEM.finditer(text):
            attributes = re.findall(r"#\s*\[([^\]]*)\]", match["attributes"])
            kind = match["kind"].split()[0]
            line = node.start_point[0] + 1 + text.count("\n", 0, match.start("name"))
            self.found.append(
                Definition(
                    name=match["name"],
                    kind=_MACRO_KINDS.get(kind, kind),
                    line=line,
                    parents=parents,
                    marks=_marks(attributes),
                )
            )


def _bare_type(text: str) -> str:
    """``a::Foo<'a, T>`` -> ``Foo``."""
    return text.partition("<")[0].rpartition("::")[2].strip("&' ")


def _marks(attributes: list[str]) -> tuple[str, ...]:
    marks = []
    for attribute in attributes:
        if _TEST_ATTRIBUTE.match(attribute) and not attribute.startswith("cfg"):
            marks.append("test")
        elif attribute.startswith("ignore"):
            marks.append("ignored")
        elif attribute.startswith("cfg("):
            marks.append(attribute)
    return tuple(marks)


def _derived(attributes: list[str]) -> list[str]:
    """Traits of ``derive(A, b::C)``: they give a type methods that stand nowhere."""
    inside = [one.partition("(")[2].rstrip(")") for one in attributes if one.startswith("derive")]
    return [_bare_type(part) for text in inside for part in text.split(",") if part.strip()]


def _path_attribute(attributes: list[str]) -> str:
    for attribute in attributes:
        if attribute.startswith("path"):
            return "".join(_QUOTED.findall(attribute)[:1])
    return ""


def _use_names(path: str) -> list[tuple[str, str]]:
    """``a::{b, c as d, e::*}`` -> ``[(b, a::b), (d, a::c), (*, a::e)]``."""
    path = " ".join(path.split())
    head, brace, rest = path.partition("{")
    if brace:
        inner = rest.rsplit("}", 1)[0]
        return [name for part in _split_top(inner) for name in _use_names(head + part.strip())]
    if path.endswith("::*") or path == "*":
        return [("*", path.removesuffix("*").removesuffix("::"))]
    target, _, alias = path.partition(" as ")
    target = target.removesuffix("::self")
    return [(alias.strip() or target.rpartition("::")[2], target)] if target else []


def _split_top(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [part for part in (*parts, text[start:]) if part.strip()]
