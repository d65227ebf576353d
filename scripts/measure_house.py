"""Measure the house: rooms, circles, tables, names, lines, and what one bisection runs through.

``python scripts/measure_house.py [COMMIT ...]`` prints a column for the working tree and one for each commit.
A bisection is run by the code of that column, over the model that the package carries.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = "apr_falsify"

_RUN = """
import sys, threading
from pathlib import Path
root = Path(sys.argv[1]) / "apr_falsify"
sys.path.insert(0, sys.argv[1])
seen = set()
def note(frame, event, argument):
    if event == "call":
        seen.add((frame.f_code.co_filename, frame.f_code.co_qualname))
model = str(root / "data" / "tiny-qwen2")
sys.argv = ["apr-falsify", "bisect", "--oracle", model, "--subject", f"embedded:{model}", "--format", "json"]
from apr_falsify.commands.main import main
threading.setprofile(note)
sys.setprofile(note)
try:
    main()
except SystemExit:
    pass
sys.setprofile(None)
ours = {each for each in seen if each[0].startswith(str(root)) and not each[1].endswith("<module>")}
print(len({where for where, _ in ours}), len(ours), file=sys.stderr)
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("commits", nargs="*", help="commits to measure beside the working tree")
    commits = parser.parse_args().commits
    columns = {"here": measured(REPOSITORY / "src")}
    for commit in commits:
        with tempfile.TemporaryDirectory() as scratch:
            archive = subprocess.run(
                ["git", "archive", commit, "src"], cwd=REPOSITORY, check=True, capture_output=True
            )
            subprocess.run(["tar", "-x", "-C", scratch], input=archive.stdout, check=True)
            columns[commit] = measured(Path(scratch) / "src")
    rows = dict.fromkeys(name for column in columns.values() for name in column)
    print(f"{'':46}" + "".join(f"{name:>12}" for name in columns))
    for row in rows:
        print(f"{row:46}" + "".join(f"{column.get(row, ''):>12}" for column in columns.values()))


def measured(source: Path) -> Mapping[str, str]:
    """Return what there is to say of one tree."""
    files = {path: path.read_text(encoding="utf-8") for path in sorted((source / PACKAGE).rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in files.items()}
    top = [path for path in files if path.parent == source / PACKAGE and path.name != "__init__.py"]
    ran = _files_and_functions(source)
    families = [path for path in files if path.parent.name == "families" and path.name != "__init__.py"]
    lines = [len(files[path].splitlines()) for path in families]
    return {
        "modules loose at the top": str(len(top)),
        "import circles": str(len(list(_circles(source, trees)))),
        "files of one default bisect": ran[0],
        "functions of one default bisect": ran[1],
        "tables keyed by stage or role": str(sum(1 for tree in trees.values() for _ in _tables(tree))),
        "files with such tables": str(sum(1 for tree in trees.values() if any(_tables(tree)))),
        "class names with several meanings": str(len(_shared_names(trees.values()))),
        "imports within functions": str(sum(_inner_imports(tree) for tree in trees.values())),
        "source files": str(len(files)),
        "source lines": str(sum(len(text.splitlines()) for text in files.values())),
        "files of families, largest in lines": f"{len(lines)}, {max(lines)}" if lines else "",
    }


def _files_and_functions(source: Path) -> tuple[str, str]:
    ran = subprocess.run(
        [sys.executable, "-c", _RUN, str(source)], capture_output=True, text=True, check=False, cwd="/"
    )
    found = ran.stderr.split()[-2:]
    if len(found) != 2 or not all(part.isdecimal() for part in found):
        raise SystemExit(f"a bisection over {source} failed:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    return found[0], found[1]


def _module(source: Path, path: Path) -> str:
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def _circles(source: Path, trees: Mapping[Path, ast.Module]) -> Iterator[frozenset[str]]:
    """Give the groups of modules that import each other, lazily or not."""
    known = {_module(source, path) for path in trees}
    graph: dict[str, set[str]] = defaultdict(set)
    for path, tree in trees.items():
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            own = _module(source, path)
            graph[own] |= {name for name in names if name in known and name not in (own, PACKAGE)}
    reach = {name: _reached(name, graph) for name in known}
    groups = {
        frozenset(other for other in reach[name] if name in reach[other]) | {name}
        for name in known
        if name in reach[name]
    }
    yield from (group for group in groups if len(group) > 1)


def _reached(name: str, graph: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    left = list(graph.get(name, ()))
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left += graph.get(one, ())
    return found


_STAGES = frozenset(
    [
        "embedding",
        "attn_norm",
        "qkv_matmul",
        "qkv_bias",
        "q_post_rope",
        "k_post_rope",
        "attn_scores",
        "attn_softmax",
        "attention",
        "attn_out",
        "post_attn_residual",
        "ffn_norm",
        "ffn_gate",
        "ffn_up",
        "ffn_silu",
        "ffn_swigl",
        "ffn_out",
        "post_ffn_residual",
        "moe_router",
        "moe_ffn_out",
        "moe_router_indices",
        "final_norm",
        "lm_head",
        "q",
        "k",
        "v",
        "o",
        "gate",
        "up",
        "down",
        "embed",
        "router",
        "q_bias",
        "k_bias",
        "v_bias",
        "o_bias",
        "gate_bias",
        "up_bias",
        "down_bias",
        "q_norm",
        "k_norm",
        "attn_post_norm",
        "ffn_post_norm",
    ]
)


def _tables(tree: ast.Module) -> Iterator[ast.Dict]:
    """Give the dictionaries of a module's top level of which most keys are stages or roles."""
    for statement in tree.body:
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        for node in ast.walk(value) if value is not None else ():
            if isinstance(node, ast.Dict):
                keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
                if len(keys) > 1 and 2 * sum(key in _STAGES for key in keys) > len(keys):
                    yield node


def _shared_names(trees: Iterable[ast.Module]) -> list[str]:
    names = Counter(
        node.name
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    return [name for name, count in names.items() if count > 1]


def _inner_imports(tree: ast.Module) -> int:
    return sum(
        isinstance(inner, ast.Import | ast.ImportFrom)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for inner in ast.walk(node)
    )


if __name__ == "__main__":
    main()
