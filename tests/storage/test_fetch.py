"""Downloads from a server on this machine: wrong bytes, missing files, cut connections, partial files."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from apts_mpi.storage import fetch as module
from apts_mpi.storage.fetch import FetchError, Remote, fetch
from apts_mpi.storage.files import DataError

BODY = np.random.default_rng(0).bytes(300_000)


@dataclass
class Server:
    """What the mirrors answer, by path, and what was asked of them."""

    address: str = ""
    bodies: dict[str, bytes] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=dict)  # bytes after which the next answers end
    ranges: bool = True
    asked: list[tuple[str, str]] = field(default_factory=list)

    def remote(self, *mirrors: str, checksum: str = hashlib.md5(BODY).hexdigest()) -> dict[str, tuple[Remote, ...]]:
        return {"set": (Remote("file.gz", len(BODY), checksum, tuple(f"{self.address}/{mirror}" for mirror in mirrors)),)}


class Handler(http.server.BaseHTTPRequestHandler):
    state: Server

    def do_GET(self) -> None:
        path, wish = self.path.strip("/"), self.headers.get("Range", "")
        self.state.asked.append((path, wish))
        if path not in self.state.bodies:
            self.send_error(404)
            return
        body, start = self.state.bodies[path], 0
        found = re.fullmatch(r"bytes=(\d+)-", wish)
        if found and self.state.ranges:
            start = int(found[1])
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        cuts = self.state.cut.get(path, [])
        stop = cuts.pop(0) if cuts else len(body)
        self.wfile.write(body[start:stop])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state = Server()
    handler = type("Bound", (Handler,), {"state": state})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as real:
        state.address = f"http://127.0.0.1:{real.server_address[1]}"
        thread = threading.Thread(target=real.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        real.shutdown()
        thread.join()


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_file_comes_whole_and_is_kept(server: Server, tmp_path: Path, algorithm: str) -> None:
    server.bodies["a/file.gz"] = BODY
    sets = server.remote("a", checksum=hashlib.new(algorithm, BODY).hexdigest())
    seen: list[tuple[str, int, int]] = []
    (path,) = fetch("set", tmp_path / "new" / "folder", lambda *state: seen.append(state), sets)
    assert path.read_bytes() == BODY
    assert seen[-1] == ("file.gz", len(BODY), len(BODY))
    assert [entry.name for entry in path.parent.iterdir()] == ["file.gz"]
    fetch("set", tmp_path / "new" / "folder", None, sets)
    assert len(server.asked) == 1  # the second time nothing is asked


def test_a_damaged_file_is_fetched_again(server: Server, tmp_path: Path) -> None:
    server.bodies["a/file.gz"] = BODY
    (tmp_path / "file.gz").write_bytes(BODY[:-1])
    assert fetch("set", tmp_path, None, server.remote("a"))[0].read_bytes() == BODY


def test_not_found_then_the_next_mirror(server: Server, tmp_path: Path) -> None:
    server.bodies["b/file.gz"] = BODY
    assert fetch("set", tmp_path, None, server.remote("a", "b"))[0].read_bytes() == BODY
    assert [path for path, _ in server.asked] == ["a/file.gz", "b/file.gz"]


@pytest.mark.parametrize("wrong", [b"x" + BODY[1:], b"<html>log in</html>", BODY + b"more", b""])
def test_wrong_bytes_are_never_kept(server: Server, tmp_path: Path, wrong: bytes) -> None:
    server.bodies |= {"a/file.gz": wrong}
    with pytest.raises(FetchError, match=r"file\.gz: no mirror gave the right file\n  http://127.*a: "):
        fetch("set", tmp_path, None, server.remote("a"))
    assert not (tmp_path / "file.gz").exists()
    server.bodies["b/file.gz"] = BODY
    assert fetch("set", tmp_path, None, server.remote("a", "b"))[0].read_bytes() == BODY


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_connection_is_taken_up_again(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.bodies["a/file.gz"], server.cut["a/file.gz"], server.ranges = BODY, [100_000, 200_000], ranges
    assert fetch("set", tmp_path, None, server.remote("a"))[0].read_bytes() == BODY
    assert [wish for _, wish in server.asked] == ["", "bytes=100000-", "bytes=200000-"]


def test_another_mirror_goes_on_where_one_ended(server: Server, tmp_path: Path) -> None:
    server.bodies |= {"a/file.gz": BODY, "b/file.gz": BODY}
    server.cut["a/file.gz"] = [1000, 2000, 3000]
    assert fetch("set", tmp_path, None, server.remote("a", "b"))[0].read_bytes() == BODY
    assert server.asked[-1] == ("b/file.gz", "bytes=3000-")


def test_an_earlier_partial_file_is_resumed_or_dropped(server: Server, tmp_path: Path) -> None:
    server.bodies["a/file.gz"] = BODY
    (tmp_path / "file.gz.part").write_bytes(BODY[:7])
    assert fetch("set", tmp_path, None, server.remote("a"))[0].read_bytes() == BODY
    assert server.asked == [("a/file.gz", "bytes=7-")]
    (tmp_path / "file.gz").unlink()
    (tmp_path / "file.gz.part").write_bytes(BODY + b"too long")
    assert fetch("set", tmp_path, None, server.remote("a"))[0].read_bytes() == BODY


def test_a_wrong_partial_file_costs_one_mirror_alone(server: Server, tmp_path: Path) -> None:
    server.bodies |= {"a/file.gz": BODY, "b/file.gz": BODY}
    (tmp_path / "file.gz.part").write_bytes(b"something else")
    assert fetch("set", tmp_path, None, server.remote("a", "b"))[0].read_bytes() == BODY


def test_a_range_the_server_cannot_give(server: Server, tmp_path: Path) -> None:
    server.bodies |= {"a/file.gz": BODY[:50], "b/file.gz": BODY}
    (tmp_path / "file.gz.part").write_bytes(BODY[:100])
    assert fetch("set", tmp_path, None, server.remote("a", "b"))[0].read_bytes() == BODY


def test_nobody_there(server: Server, tmp_path: Path) -> None:
    sets = {"set": (Remote("file.gz", 3, "0" * 32, ("http://127.0.0.1:9/nothing",)),)}
    with pytest.raises(FetchError, match="127.0.0.1:9") as caught:
        fetch("set", tmp_path, None, sets)
    assert f"or put file.gz into {tmp_path} by hand, then: apts-mpi data convert mnist {tmp_path} data/set" in str(caught.value)


def test_proxy_variables_are_honoured(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that does not exist is asked through the proxy that the environment names."""
    monkeypatch.setenv("http_proxy", server.address)
    server.bodies["http://mirror.invalid/a/file.gz"] = BODY
    sets = {"set": (Remote("file.gz", len(BODY), hashlib.md5(BODY).hexdigest(), ("http://mirror.invalid/a",)),)}
    assert fetch("set", tmp_path, None, sets)[0].read_bytes() == BODY
    assert server.asked[0][0] == "http://mirror.invalid/a/file.gz"


def test_the_list_of_public_files() -> None:
    assert set(module.SETS) == {"mnist", "fashion-mnist", "cifar10"}
    for remotes in module.SETS.values():
        for remote in remotes:
            assert len(remote.mirrors) >= 2
            assert re.fullmatch(r"[0-9a-f]{32}|[0-9a-f]{64}", remote.checksum)
    with pytest.raises(DataError, match="known data sets are mnist"):
        fetch("imagenet", "nowhere")
