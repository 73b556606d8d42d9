"""Damage to every file that the package writes: the same values, or an error that names the file. 500 cases; APTS_NIGHTLY=1: 10,000."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from box import Box
from fuzz_tree import TARGETS, Target, build, damaged, path_of

CASES = 10_000 if os.environ.get("APTS_NIGHTLY") == "1" else 500
SEED = 20261124  # another one: other cases
CLEAN = {"ValueError", "OSError"}  # and what is derived from them


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    box = Box("fuzz_readers")
    yield box
    box.close()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("tree")
    run = build(folder)
    yield folder
    run.close()


def problem(box: Box, tree: Path, target: Target, truth: dict[str, object], raw: bytes) -> str:
    """What is wrong with how ``target`` was read with ``raw`` in the file; empty: nothing."""
    path = path_of(tree, target)
    whole = path.read_bytes()
    path.write_bytes(raw)
    try:
        answer = box.ask(target.reader, str(tree))
    except AssertionError as error:
        return str(error)
    finally:
        path.write_bytes(whole)
    if "value" in answer:
        return "another value was read" if target.exact and answer["value"] != truth.get("value") else ""
    if not CLEAN & set(answer["error"]) or answer["error"][0].startswith("Unicode"):
        return f"{answer['error'][0]}: {answer['text'][:300]}"
    named = path.name in answer["text"] or str(path.parent) in answer["text"]
    return "" if named else f"{answer['error'][0]} does not name the file: {answer['text'][:300]}"


@pytest.mark.fault(33)
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.file}-{target.reader}")
def test_no_damage_is_read_as_something_else(target: Target, box: Box, tree: Path) -> None:
    truth = box.ask(target.reader, str(tree))
    assert "value" in truth or (target.reader == "lock" and "LockError" in truth["error"]), truth
    raw, found, same = path_of(tree, target).read_bytes(), list[str](), 0
    for number in range(CASES // len(TARGETS) + 1):
        case = f"{SEED}-{target.file}-{target.reader}-{number}"
        content = damaged(raw, random.Random(case))
        same += content == raw
        told = problem(box, tree, target, truth, content)
        found += [f"case {case}: {told}"] if told else []
    assert not found, f"{len(found)} cases\n" + "\n".join(found[:20])
    assert same < CASES / len(TARGETS) / 4  # most cases are damage indeed


def test_every_file_of_a_run_is_fuzzed(tree: Path) -> None:
    covered = Counter(path_of(tree, target).name for target in TARGETS)
    unread = {"resumed-1.json", "config-until-1.toml", "completion-until-1.json"}  # by people alone
    written = {path.name for path in (tree / "run").rglob("*") if path.is_file()} - unread
    assert written <= covered.keys()
