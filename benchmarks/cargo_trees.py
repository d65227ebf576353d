"""Rust trees and contracts that cite their tests, for bench_validate_contracts.py."""

from __future__ import annotations

import re
from pathlib import Path

FILES_IN_A_FOLDER = 40


def write_crate(root: Path, files: int, size: int) -> None:
    """Write a crate of ``files`` modules of some ``size`` bytes each, with two tests in every one."""
    write(root / "Cargo.toml", '[package]\nname = "engine"\nversion = "0.1.0"\nedition = "2021"\n')
    groups = range(0, files, FILES_IN_A_FOLDER)
    for start in groups:
        numbers = range(start, min(start + FILES_IN_A_FOLDER, files))
        folder = root / f"src/group_{start // FILES_IN_A_FOLDER}"
        for number in numbers:
            write(folder / f"part_{number}.rs", module(number, size))
        write(folder / "mod.rs", "".join(f"pub mod part_{number};\n" for number in numbers))
    write(root / "src/lib.rs", "".join(f"pub mod group_{at};\n" for at in range(len(groups))))


def module(number: int, size: int) -> str:
    pieces, length = [f"//! Part {number}.\nuse std::fmt;\n"], 0
    while length < size:
        pieces.append(function(number, len(pieces)))
        length += len(pieces[-1])
    return "".join([*pieces, tests(number)])


def function(number: int, at: int) -> str:
    return f"""
/// Adds {at} times, and says so: "{{}}".
pub fn compute_{number}_{at}(a: i32, b: i32) -> i32 {{
    let mut total = a + b * {at};
    for step in 0..10 {{
        if step % 2 == 0 {{ total += step; }} else {{ total -= b.max(step); }}
    }}
    let text = format!("{{}} and {{}}", total, a);
    assert!(!text.is_empty());
    total
}}
pub struct Shape{number}x{at} {{ pub a: i32, pub b: Vec<f32> }}
"""


def tests(number: int) -> str:
    body = f"assert_eq!(compute_{number}_1(1, 2), compute_{number}_1(1, 2));"
    return (
        "\n#[cfg(test)]\nmod tests {\n    use super::*;\n"
        f"    #[test]\n    fn computes_{number}() {{ {body} }}\n"
        f"    #[test]\n    fn falsify_part_{number}() {{ {body} }}\n}}\n"
    )


def write_contracts(root: Path, template: str, count: int, files: int) -> None:
    """Write contracts that differ in their ids, and that each cite tests of one file, the one by its path."""
    for number in range(count):
        part = number % files
        group = part // FILES_IN_A_FOLDER
        text = template.replace("C-TRACE-ATTN-SUB-STAGES", f"C-CARGO-{number}")
        text = re.sub(r"FALSIFY-ATTN-SUB-(\d+)", rf"FALSIFY-C{number}-\1", text)
        text = re.sub(
            r"(file_paths:\n)(?:\s+- .*\n)+", rf"\1      - src/group_{group}/part_{part}.rs\n", text
        )
        text = re.sub(r"(function_names:\n)(?:\s+- .*\n)+", rf"\1      - compute_{part}_1\n", text)
        text = re.sub(
            r"applies_to: .*", f"applies_to: src/group_{group}/part_{part}.rs::compute_{part}_1", text
        )
        text = re.sub(r"(?ms)^  references:.*?(?=^equations)", "", text)
        text = re.sub(
            r"(?m)^    cargo test .*$",
            f"    cargo test -p engine --lib part_{part}::tests::computes_{part}",
            text,
        )
        text += f"\n# cargo\ngates:\n  - id: GATE-C{number}-001\n    rule: r\n"
        text += "    prediction: p\n    if_fails: x\n"
        text += f"    test: cargo test -p engine falsify_part_{part}\n"
        write(
            root / f"contracts/cargo-{number:05}-v1.yaml",
            text.replace("8 capture points", "9 capture points"),
        )


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
