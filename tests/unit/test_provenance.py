"""Provenance: what is recorded, and that secrets are not."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from apts_mpi import __version__, provenance
from apts_mpi.provenance import collect, commit, environment, source_sha256


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def package(folder: Path) -> Path:
    """A small package of ours in ``folder``."""
    home = folder / "apts_mpi"
    home.mkdir(parents=True)
    (home / "a.py").write_text("a = 1\n")
    return home


def test_collect_is_json_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "do-not-write-me")
    monkeypatch.setenv("APTS_RUN__SEED", "3")
    monkeypatch.setattr("sys.argv", ["apts-mpi", "train", "with space"])
    facts = collect(
        config_sha256="c",
        seed=3,
        data="d",
        mpi_library="MPICH Version: 5\n\0",
        hosts=["a", "b"],
        threads=2,
        devices=["cpu", "cpu"],
        n_params=7,
        subdomains=4,
    )
    text = json.dumps(facts, allow_nan=False)
    assert "do-not-write-me" not in text and "SECRET_TOKEN" not in text
    variables = facts["environment"]
    assert isinstance(variables, dict) and variables["APTS_RUN__SEED"] == "3"
    assert facts["command"] == "apts-mpi train 'with space'"
    assert facts["ranks"] == 2 and facts["subdomains"] == 4 and facts["package_version"] == __version__
    assert facts["mpi_library"] == "MPICH Version: 5"
    assert str(facts["started_utc"]).endswith("+00:00")
    found = facts["versions"]
    assert isinstance(found, dict) and found["numpy"] == metadata.version("numpy") and "python" in found


@pytest.mark.parametrize(
    "name",
    ["SECRET", "AWS_SECRET_ACCESS_KEY", "SLURM_JWT", "APTS_TOKEN", "APTS_RUN__PASSWORD", "APTS_", "XAPTS_RUN__SEED", "apts_run__seed"],
)
def test_environment_is_an_allow_list(name: str) -> None:
    ours = {"APTS_RUN__SEED": "1", "APTS_METHOD": "sgd", "OMP_NUM_THREADS": "4", "SLURM_JOB_ID": "2"}
    assert environment({**ours, name: "do-not-write-me"}) == ours



def test_versions_leave_out_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "no-such-package-here"))
    assert set(provenance.versions()) == {"python", "numpy"}


def test_source_hash_sees_names_and_contents(tmp_path: Path) -> None:
    first, second = package(tmp_path / "1"), package(tmp_path / "2")
    assert source_sha256(first) == source_sha256(second)
    (second / "a.py").write_text("a = 2\n")
    changed = source_sha256(second)
    (second / "a.py").write_text("a = 1\n")
    (second / "a.py").rename(second / "b.py")
    assert len({source_sha256(first), changed, source_sha256(second)}) == 3


def test_commit_of_a_checkout_and_its_dirt(tmp_path: Path) -> None:
    home = package(tmp_path)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "apts_mpi")
    git(tmp_path, "commit", "-q", "-m", "x")
    head = git(tmp_path, "rev-parse", "HEAD")
    git(tmp_path, "tag", "v1")  # a tag must not replace the hash
    assert commit(home) == head
    (home / "a.py").write_text("a = 2\n")
    assert commit(home) == f"{head}-dirty"


def test_commit_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = tmp_path / "my checkout"
    package(checkout)
    git(checkout, "init", "-q")
    git(checkout, "add", "apts_mpi")
    git(checkout, "commit", "-q", "-m", "x")
    installed = package(tmp_path / "site-packages")
    origin: dict[str, Any] = {"url": (checkout).as_uri(), "dir_info": {}}
    monkeypatch.setattr(provenance, "_origin", lambda: origin)
    assert commit(installed) == git(checkout, "rev-parse", "HEAD")
    (checkout / "apts_mpi" / "a.py").write_text("a = 2\n")
    assert commit(installed) is None  # the checkout has moved on, so its commit says nothing
    origin["vcs_info"] = {"vcs": "git", "commit_id": "f" * 40}
    assert commit(installed) == "f" * 40
    origin.clear()
    assert commit(installed) is None


def test_no_git_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = package(tmp_path)
    (tmp_path / ".git").mkdir()  # not a repository
    assert commit(home) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(home) is None


@pytest.mark.parametrize(("text", "origin"), [(None, {}), ("{", {}), ("[]", {}), ('{"url": "x"}', {"url": "x"})])
def test_pips_note_may_be_missing_or_odd(text: str | None, origin: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Distribution:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return text

    monkeypatch.setattr(metadata, "distribution", lambda name: Distribution())
    assert provenance._origin() == origin


@pytest.mark.parametrize(("flags", "widest"), [("fpu avx avx2", ", avx2"), ("avx2 avx512f", ", avx512f"), ("fpu", "")])
def test_the_processor_is_told_with_its_generation_and_widest_vectors(flags: str, widest: str, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    one = f"processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: Some CPU: fast\nflags\t\t: {flags}\n\n"
    info.write_text(one + one.replace("Some CPU", "Another"))
    told = provenance.cpu(info)
    assert told.startswith(f"Some CPU: fast (family 25, model 1){widest}, ") and told.endswith(" CPUs")


def test_a_processor_of_which_nothing_is_told_has_the_name_of_its_kind(tmp_path: Path) -> None:
    assert provenance.cpu(tmp_path / "none").startswith(f"{platform.machine()}, ")
