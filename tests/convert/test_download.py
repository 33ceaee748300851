"""Downloads against a server on 127.0.0.1: progress, resume, checksum, licence, no network."""

import hashlib
import http.server
import re
import ssl
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from convert import download
from convert.download import PUBLISHED, ChecksumWarning, DownloadError, Published, fetch

CONTENT = bytes(range(256)) * 4000


SHA256 = hashlib.sha256(CONTENT).hexdigest()


NAME = "mace-mp-0b3-medium"


CERTIFICATE = Path(__file__).parent / "localhost.pem"  # with its key, for these tests; valid for a hundred years


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT at /model; the mode in the path makes it misbehave."""

    def do_GET(self):
        log = self.server.log
        log.append(self.headers.get("Range"))
        start = 0
        if (found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")) and "norange" not in self.path:
            start = int(found[1])
        if "missing" in self.path:
            return self.send_error(404)
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved"))
            return self.end_headers()
        if start >= len(CONTENT):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Type", "text/html" if "page" in self.path else "application/octet-stream")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        stop = len(CONTENT) // 2 if "cut" in self.path and len(log) == 1 else len(CONTENT)
        self.wfile.write(CONTENT[start:stop])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.log = []
        thread = threading.Thread(target=running.serve_forever, args=[0.02])
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def publish(monkeypatch, server, path="model.model", sha256=SHA256, name=NAME, **changes):
    url = f"http://127.0.0.1:{server.server_address[1]}/{path}"
    entry = replace(PUBLISHED[name], url=url, sha256=sha256, size=len(CONTENT), **changes)
    monkeypatch.setitem(PUBLISHED, name, entry)


def test_download_then_cache(server, monkeypatch, tmp_path, capsys):
    publish(monkeypatch, server)
    path = fetch(NAME, cache=tmp_path / "deep" / "cache")
    assert path.read_bytes() == CONTENT and path.name == "model.model"
    assert NAME in capsys.readouterr().err  # progress
    assert fetch(NAME, cache=tmp_path / "deep" / "cache") == path
    assert server.log == [None]
    assert [p.name for p in path.parent.iterdir()] == ["model.model"]


@pytest.mark.parametrize("path", ["cut.model", "cut-norange.model"])
def test_cut_off_download_is_resumed(server, monkeypatch, tmp_path, path):
    publish(monkeypatch, server, path)
    with pytest.raises(DownloadError, match="continues from there"):
        fetch(NAME, cache=tmp_path)
    assert not (tmp_path / path).exists()
    assert fetch(NAME, cache=tmp_path).read_bytes() == CONTENT
    assert server.log == [None, f"bytes={len(CONTENT) // 2}-"]


@pytest.mark.parametrize("stale", [b"other bytes", CONTENT + b"more"])
def test_wrong_partial_file_is_replaced(server, monkeypatch, tmp_path, stale):
    publish(monkeypatch, server)
    (tmp_path / "model.model.part").write_bytes(stale)
    assert fetch(NAME, cache=tmp_path).read_bytes() == CONTENT


def test_checksum_mismatch_is_loud_and_prints_both(server, monkeypatch, tmp_path):
    publish(monkeypatch, server, sha256="0" * 64)
    for _ in range(2):  # the second time from the cache
        with pytest.warns(ChecksumWarning, match=f"(?s){'0' * 64}.*{SHA256}"):
            path = fetch(NAME, cache=tmp_path)
        assert path.read_bytes() == CONTENT and not download.is_published(PUBLISHED[NAME], path)
    assert server.log == [None]


@pytest.mark.parametrize(("path", "reason"), [("missing", "404"), ("page", "web page")])
def test_server_errors_say_what_to_put_where(server, monkeypatch, tmp_path, path, reason):
    publish(monkeypatch, server, path)
    with pytest.raises(DownloadError, match=f"{reason}.*Fetch http.*put it at {re.escape(str(tmp_path / path))}"):
        fetch(NAME, cache=tmp_path)


def test_no_network_says_what_to_put_where(monkeypatch, tmp_path):
    entry = Published("x", "http://no-such-host.invalid/a/x.model", 1, None, "", "MIT", "")
    monkeypatch.setitem(PUBLISHED, "x", entry)
    with pytest.raises(DownloadError, match=f"Fetch .*x.model .*put it at {re.escape(str(tmp_path))}/x.model"):
        fetch("x", cache=tmp_path)


def test_file_put_by_hand_is_used_and_checked(tmp_path, monkeypatch):
    entry = replace(PUBLISHED[NAME], sha256=hashlib.sha256(b"by hand").hexdigest())
    monkeypatch.setitem(PUBLISHED, NAME, entry)
    (tmp_path / entry.filename).write_bytes(b"by hand")
    assert fetch(NAME, cache=tmp_path).read_bytes() == b"by hand"
    (tmp_path / entry.filename).write_bytes(b"another")
    with pytest.warns(ChecksumWarning):
        fetch(NAME, cache=tmp_path)


def test_other_licences_must_be_accepted(server, monkeypatch, tmp_path, capsys):
    name = "mace-off23-small"
    publish(monkeypatch, server, name=name, sha256=None)
    with pytest.raises(PermissionError, match="Academic Software License.*--accept-licence"):
        fetch(name, cache=tmp_path)
    assert fetch(name, accept_licence=True, cache=tmp_path).is_file()
    assert "non-commercial" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "suggested"),
    [
        ("mace-mp-0b3-medum", "mace-mp-0b3-medium"),
        ("mace-off-small", "mace-off23-small"),
        ("extra_large", "mace-off23-large"),
        ("mh-2", "mace-mh-1"),
        ("https://example.org/mace_mp_0b3/mace-mp-0b3-medium.model", "mace-mp-0b3-medium"),
        ("folder/mace-mp-0b3-medium.model", "mace-mp-0b3-medium"),
    ],
)
def test_unknown_names_get_three_suggestions(typed, suggested):
    with pytest.raises(FileNotFoundError, match="--list") as raised:
        fetch(typed)
    names = re.search(r"perhaps (.*)\?", str(raised.value))[1].split(", ")
    assert len(set(names)) == 3 and set(names) <= set(PUBLISHED) and suggested in names


def test_an_alias_is_said_to_be_one(tmp_path, monkeypatch, capsys):
    entry = replace(PUBLISHED[NAME], sha256=hashlib.sha256(b"x").hexdigest())
    monkeypatch.setitem(PUBLISHED, NAME, entry)
    (tmp_path / entry.filename).write_bytes(b"x")
    fetch("medium-0b3", cache=tmp_path)
    assert f"medium-0b3 is the published model {NAME}" in capsys.readouterr().err


class Redirecting(http.server.BaseHTTPRequestHandler):
    """Sends whoever asks to the address of the test."""

    def do_GET(self):
        self.send_response(302)
        self.send_header("Location", self.server.location)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def secure(monkeypatch):
    """A https server with the certificate of localhost.pem, which is trusted here alone, that redirects."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as running:
        running.socket = context.wrap_socket(running.socket, server_side=True)
        thread = threading.Thread(target=running.serve_forever, args=[0.02])
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("secured", [True, False])
def test_no_redirect_leaves_https(server, secure, monkeypatch, tmp_path, secured):
    """From https to http is refused before anything is asked there; from http to http is not."""
    secure.location = f"http://127.0.0.1:{server.server_address[1]}/model.model"
    if secured:
        url = f"https://127.0.0.1:{secure.server_address[1]}/model.model"
    else:
        url = f"http://127.0.0.1:{server.server_address[1]}/moved/model.model"
    monkeypatch.setitem(PUBLISHED, NAME, replace(PUBLISHED[NAME], url=url, sha256=SHA256, size=len(CONTENT)))
    if not secured:
        assert fetch(NAME, cache=tmp_path).read_bytes() == CONTENT
        return
    with pytest.raises(DownloadError, match="redirected from https to http://127.0.0.1"):
        fetch(NAME, cache=tmp_path)
    assert server.log == [] and not (tmp_path / "model.model").exists()
