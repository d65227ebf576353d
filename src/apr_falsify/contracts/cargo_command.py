"""What a ``cargo test`` or ``cargo nextest run`` asks for, read from its words.

Source: ``cargo test --help``, ``cargo nextest run --help``, and the runner's own ``--help`` behind ``--``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from apr_falsify.contracts.shell import Command

_VALUED = frozenset(
    """
    -p --package --exclude --test --bench --example --bin --features -F --target --manifest-path --profile
    -j --jobs --color --target-dir --message-format -Z --config -C --lockfile-path -E --filter-expr
    --filterset --run-ignored --test-threads --retries --partition --status-level --final-status-level
    --failure-output --success-output --cargo-profile --max-fail --archive-file
    --tool-config-file --config-file
    """.split()  # noqa: SIM905 - words read best as words
)
_RUNNER_VALUED = frozenset(
    ["--skip", "--test-threads", "--format", "--color", "--report-time", "--logfile", "-Z"]
)
_KINDS = {"--test": "test", "--bin": "bin", "--example": "example", "--bench": "bench"}
_GROUPS = {
    "--lib": "lib", "--bins": "bin", "--examples": "example", "--benches": "bench", "--tests": "tests",
    "--all-targets": "all", "--doc": "doc",
}  # fmt: skip
_STAND_INS = ("NAME", "TEST", "TEST_NAME", "TESTNAME", "FILTER", "PATTERN")
_PLACEHOLDER = re.compile(r"[<>$…]|\.\.\.|\{[^}]*\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CargoTest:
    """One ``cargo test``.

    Attributes:
        packages: patterns of ``-p``.
        excluded: patterns of ``--exclude``.
        whole: whether every member of the workspace is asked for.
        targets: kind and name of each target that is named; the name is empty for all of that kind.
        filters: parts of the paths of tests.
        skips: parts that a test's path must not hold.
        filtersets: expressions of nextest.
        is_exact: whether a filter is a whole path.
        ignored: ``no``, ``also`` or ``only``: whether ignored tests run.
        features, all_features, default_features: which features are on.
        flags: options set by ``--cfg`` in RUSTFLAGS.
        folder: where it runs, as far as the command says.
        is_nextest: whether nextest runs it.
        is_doc: whether only documentation is tested.
        only_targets: whether it runs the targets that it names and none of their tests.

    """

    packages: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    whole: bool = False
    targets: tuple[tuple[str, str], ...] = ()
    filters: tuple[str, ...] = ()
    skips: tuple[str, ...] = ()
    filtersets: tuple[str, ...] = ()
    is_exact: bool = False
    ignored: str = "no"
    features: tuple[str, ...] = ()
    all_features: bool = False
    default_features: bool = True
    flags: tuple[str, ...] = ()
    folder: str = ""
    is_nextest: bool = False
    is_doc: bool = False
    only_targets: bool = False

    @property
    def package(self) -> str:
        """The one package that is named, for messages; empty where it is none or several."""
        return self.packages[0] if len(self.packages) == 1 else ""


class _Reading:
    def __init__(self) -> None:
        self.packages: list[str] = []
        self.excluded: list[str] = []
        self.targets: list[tuple[str, str]] = []
        self.filters: list[str] = []
        self.skips: list[str] = []
        self.filtersets: list[str] = []
        self.features: list[str] = []
        self.ignored = "no"
        self.folder = ""
        self.whole = self.exact = self.all_features = self.no_default = False

    def option(self, option: str, value: str) -> None:
        """Take one option that stands before ``--``."""
        if option in ("-p", "--package"):
            self.packages.append(value)
        elif option == "--exclude":
            self.excluded.append(value)
        elif option in _KINDS:
            self.targets.append((_KINDS[option], value))
        elif option in _GROUPS:
            self.targets.append((_GROUPS[option], ""))
        elif option in ("--features", "-F"):
            self.features += re.split(r"[,\s]+", value)
        elif option in ("-E", "--filter-expr", "--filterset"):
            self.filtersets.append(value)
        elif option == "--run-ignored":
            self.ignored = {"all": "also", "default": "no"}.get(value, "only")
        elif option in ("--manifest-path", "-C"):
            self.folder = re.sub(r"/?Cargo\.toml$", "", value)
        elif option in ("--workspace", "--all"):
            self.whole = True
        elif option == "--all-features":
            self.all_features = True
        elif option == "--no-default-features":
            self.no_default = True
        else:
            self.runner(option, value)

    def runner(self, option: str, value: str) -> None:
        """Take one option of the runner, which stands behind ``--``."""
        if option == "--skip":
            self.skips.append(value)
        elif option == "--exact":
            self.exact = True
        elif option == "--ignored":
            self.ignored = "only"
        elif option == "--include-ignored":
            self.ignored = "also"


def read_cargo(command: Command) -> CargoTest | None:
    """Read a command; ``None`` where cargo neither tests nor runs a target by its name."""
    through, words = _without_wrapper(list(command.words[1:]))
    only_targets = through == "" and words[:1] in (["run"], ["bench"])
    found = words[1:] if only_targets else _after_test(words)
    if found is None:
        return None
    reading = _Reading()
    is_nextest = not only_targets and "nextest" in words
    _take(reading, found, is_nextest)
    if only_targets:
        reading.targets = [one for one in reading.targets if one[0] in _RUN[words[0]] and one[1]]
        reading.filters, reading.whole = [], True
        if not reading.targets:
            return None
    if ("doc", "") in reading.targets and not reading.filters:
        return None
    within = command.within
    folder = f"{within}/{reading.folder}" if within and reading.folder else within or reading.folder
    return CargoTest(
        packages=tuple(reading.packages),
        excluded=tuple(reading.excluded),
        whole=reading.whole,
        targets=tuple(reading.targets),
        filters=tuple(reading.filters),
        skips=tuple(reading.skips),
        filtersets=tuple(reading.filtersets),
        is_exact=reading.exact,
        ignored=reading.ignored,
        features=tuple(one for one in reading.features if one),
        all_features=reading.all_features,
        default_features=not reading.no_default,
        flags=(*_flags(command.settings), *(("miri",) if through == "miri" else ())),
        folder=folder.removeprefix("./").rstrip("/"),
        is_nextest=is_nextest,
        is_doc=("doc", "") in reading.targets,
        only_targets=only_targets,
    )


_RUN = {"run": ("bin", "example"), "bench": ("bench",)}
"""What runs targets by their names -> their kinds."""
_WRAPPERS = ("miri", "llvm-cov", "hack", "careful", "insta")
"""Commands of cargo that hand on what stands behind them to ``cargo test`` or nextest."""
_WRAPPER_VALUED = ("--output-path", "--output-dir", "--ignore-filename-regex", "--depth", "--group-features")
_EVERY_FEATURE = ("--each-feature", "--feature-powerset")


def _without_wrapper(words: list[str]) -> tuple[str, list[str]]:
    """``llvm-cov --lcov nextest -p a`` -> ``nextest run -p a``, and what it went through."""
    start = next((at for at, word in enumerate(words) if not word.startswith(("+", "-"))), len(words))
    if words[start : start + 1] == ["watch"]:
        inner = next((words[at + 1] for at, word in enumerate(words[:-1]) if word in ("-x", "--exec")), "")
        return "watch", [*inner.split()]
    if words[start : start + 1] == [] or words[start] not in _WRAPPERS:
        return "", words
    through, rest = words[start], words[start + 1 :]
    at = next((at for at, word in enumerate(rest) if word in ("test", "t", "nextest")), -1)
    if at < 0:
        return through, [] if through != "llvm-cov" else ["test", *_handed_on(rest)]
    verb = ["nextest", "run"] if rest[at] == "nextest" else ["test"]
    behind = rest[at + 1 :][1 if rest[at + 1 : at + 2] in (["run"], ["r"]) else 0 :]
    before = _handed_on(rest[:at])
    return through, [*verb, *before, *behind]


def _handed_on(words: list[str]) -> list[str]:
    """Options of a wrapper that ``cargo test`` knows too; of those that try each feature, that all are on."""
    found: list[str] = []
    pending = iter(words)
    for word in pending:
        if word in _WRAPPER_VALUED:
            next(pending, "")
        elif word in _EVERY_FEATURE:
            found.append("--all-features")
        else:
            found.append(word)
    return found


def _after_test(words: list[str]) -> list[str] | None:
    """Return what follows ``test``, ``t`` or ``nextest run``; ``None`` where cargo does something else."""
    before: list[str] = []
    while words and words[0].startswith(("+", "-")):  # a toolchain, options of cargo itself
        valued = words[0] in ("-C", "-Z", "--config", "--color")
        before += words[:2] if valued else []
        words = words[2 if valued else 1 :]
    if words[:2] in (["nextest", "run"], ["nextest", "r"]):
        return [*before, *words[2:]]
    return [*before, *words[1:]] if words[:1] in (["test"], ["t"]) else None


_PROSE = frozenset(
    """
    passes pass passed succeeds succeed exits exit returns runs fails fail reports is are must should shall
    can will has with on in for and or to the all green stays still
    """.split()  # noqa: SIM905 - words read best as words
)
"""Words that follow a command in a sentence."""


def _take(reading: _Reading, words: list[str], is_nextest: bool) -> None:
    behind = False
    pending = iter(words)
    for word in pending:
        if word == "--" and not behind:
            behind = True
        elif word.startswith("-") and word != "-":
            option, equals, value = word.partition("=")
            if not equals and option[:2] in ("-p", "-F", "-E", "-C") and len(option) > 2 and option[1] != "-":
                option, equals, value = option[:2], "=", option[2:]
            if not equals and option in (_RUNNER_VALUED if behind else _VALUED):
                value = next(pending, "")
            (reading.runner if behind else reading.option)(option, value)
        elif behind or is_nextest or not reading.filters:
            reading.filters.append(word)  # cargo takes one before `--`: a second word is prose
    while reading.filters and reading.filters[-1] in _PROSE:
        reading.filters.pop()


def _flags(settings: tuple[str, ...]) -> tuple[str, ...]:
    texts = [
        one.partition("=")[2] for one in settings if one.startswith(("RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"))
    ]
    return tuple(name for text in texts for name in re.findall(r"--cfg[=\s]+['\"]?(\w+)", text))


def is_placeholder(text: str) -> bool:
    """``<name>``, ``$TEST``, ``NAME`` or ``...``: stands for something that is not said."""
    return text in _STAND_INS or bool(_PLACEHOLDER.search(text))


def is_left_open(expression: str) -> bool:
    """Whether an expression of nextest holds a word that stands for another; ``$`` is a sign of patterns."""
    return bool(re.search(r"<\w[\w -]*>|\$\w|\$\{|…|\.\.\.", expression))
