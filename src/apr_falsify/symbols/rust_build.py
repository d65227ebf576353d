"""Which conditions hold in one build of a package: ``cargo test`` with these features and flags.

Rules: the Rust reference, "Set configuration options"; the Cargo book, "Features" and "Feature unification".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from apr_falsify.symbols.cargo import Package, Workspace
from apr_falsify.symbols.rust_cfg import holds, options_of
from apr_falsify.symbols.rust_crate import RustTest
from apr_falsify.symbols.tree import SourceTree

# set by the compiler for the machine and the profile: only a build tells
_OF_THE_MACHINE = frozenset(
    """
    unix windows debug_assertions panic proc_macro overflow_checks ub_checks relocation_model sanitize
    target_abi target_arch target_endian target_env target_family target_feature target_has_atomic
    target_has_atomic_equal_alignment target_has_atomic_load_store target_os target_pointer_width
    target_thread_local target_vendor fmt_debug emscripten wasm accessible version
    """.split()  # noqa: SIM905 - a table of words reads best as words
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One build of one package.

    Attributes:
        package: which.
        features: those that are on; ``None`` where the command is not known, so that any may be.
        all_features: whether all that there are are on.
        flags: options that the command itself sets by ``--cfg``.
        asked: features that other packages of the tree ask of it, so that they may be on.
        settable: options that a setting, a script or a build script of the tree names; ``None`` where one
            sets options by names that only its run shows.

    """

    package: Package
    features: frozenset[str] | None
    all_features: bool
    flags: frozenset[str]
    asked: frozenset[str]
    settable: frozenset[str] | None

    def decide(self, name: str, value: str) -> bool | None:
        """Whether an option is set; ``None`` where that is not known."""
        if name == "test":
            return True
        if name == "feature":
            return self._feature(value)
        if name in self.flags:
            return True if not value else None
        if name in _OF_THE_MACHINE or self.settable is None or name in self.settable:
            return None
        return None if self.features is None else False

    def _feature(self, name: str) -> bool | None:
        known = self.package.features
        if known is None:
            return None
        if name not in known and name not in self.asked:
            return False  # cargo refuses to set what the manifest does not list
        if self.all_features or (self.features is not None and name in self.features):
            return True
        return None if self.features is None or name in self.asked else False

    def why_off(self, cfgs: tuple[str, ...]) -> str:
        """Why what depends on these predicates is not compiled; empty where it is, or may be."""
        off = next((one for one in cfgs if holds(one, self.decide) is False), None)
        if off is None:
            return ""
        for name, value in options_of(off):
            if name == "feature" and self.decide(name, value) is False:
                return self._without(value)
            if name != "test" and self.decide(name, value) is False:
                return f"it is behind cfg({off}), and nothing sets {name}"
        return f"it is behind cfg({off}), which does not hold under cargo test"

    def _without(self, feature: str) -> str:
        if feature not in (self.package.features or {}):
            return f"it is behind the feature {feature!r}, which {self.package.name} does not have"
        return (
            f"it is behind the feature {feature!r}, which the command does not enable (--features {feature})"
        )

    def is_ignored(self, test: RustTest) -> bool | None:
        """Whether a test is ignored; ``None`` where that is not known."""
        found = [True if one == "true" else holds(one, self.decide) for one in test.ignores]
        return True if True in found else None if None in found else False


def settable_options(tree: SourceTree) -> frozenset[str] | None:
    """Return the options that the tree's settings, scripts and build scripts may set; ``None``: any.

    Only lines that speak of ``cfg`` count, and none that only declares an option to the compiler's lint.
    """
    names: set[str] = set()
    scripts = [file for file in tree.listing.settings if not file.endswith("Cargo.toml")]
    builds = tree.named_files("build.rs")
    for file in (*scripts, *builds):
        text = (tree.read_bytes(file) or b"").decode("utf-8", "replace")
        for line in text.splitlines():
            if "cfg" not in line or "check-cfg" in line or "check_cfg" in line:
                continue
            if file in builds and re.search(r"rustc-cfg=\{", line):
                return None
            names.update(re.findall(r"[A-Za-z_]\w*", line))
    return frozenset(names)


def asked_of(workspace: Workspace, package: Package, chosen: frozenset[str]) -> frozenset[str]:
    """Return the features that what is built beside a package asks of it, with those that these enable.

    Args:
        workspace: whose packages.
        package: of which features.
        chosen: names of the packages that are tested together.

    """
    if not package.features:
        return frozenset()
    return package.enabled(workspace.asked(chosen).get(package.name, ()), default=False)
