"""Downloads published checkpoints, with resume, into a cache.

A file that differs from what others have seen is reported loudly with both sums, each time, and converted all the
same, but never handed to torch.
"""

import fcntl
import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
import warnings
from pathlib import Path
from typing import IO, BinaryIO

import platformdirs
from tqdm import tqdm

from convert import families
from convert.published import LICENCES as LICENCES
from convert.published import PUBLISHED as PUBLISHED
from convert.published import Published as Published
from convert.published import find as find

TIMEOUT_S = 60  # without a byte: servers of files answer within seconds
BLOCK = 1 << 18  # bytes between two steps of the progress bar


class DownloadError(OSError):
    """A published model could not be fetched; the message says which file to put where."""


class ChecksumWarning(UserWarning):
    """A published file differs from the one that others have seen."""


def listing() -> str:
    """The table of published models as text: name, size, licence, elements, citation; and what is not converted."""
    row = "{:<24}{:>8}  {:<8} {:<36} {}".format
    lines = [row("name", "size", "licence", "elements", "cite")]
    lines += [row(p.name, p.megabytes, p.licence, p.elements, p.citation) for p in PUBLISHED.values()]
    lines += ["", *(f"not converted: {what}" for what in families.of_mace())]
    lines += ["", *(f"{key}: {text}" for key, text in LICENCES.items()), f"cache: {cache_directory()}"]
    return "\n".join(lines)


def cache_directory() -> Path:
    """Where downloaded models are kept."""
    return Path(platformdirs.user_cache_dir("equijax")) / "models"


def fetch(name: str, *, accept_licence: bool = False, cache: Path | None = None) -> Path:
    """Path of the published model `name`, downloaded unless the cache has it.

    Args:
      name: see `find`.
      accept_licence: the caller has read and accepts a licence other than MIT.
      cache: directory to keep files in; default `cache_directory()`.

    Raises:
      FileNotFoundError: no published model of that name.
      PermissionError: the licence must be accepted first.
      DownloadError: no network, refused by the server, or cut off.

    Warns:
      ChecksumWarning: the file's sha256 is not the known one; also of a file that was in the cache.
    """
    published = find(name)
    if published.licence != "MIT":
        text = f"{published.name} is published under the {LICENCES[published.licence]}"
        if not accept_licence:
            raise PermissionError(f"{text}. Read it and convert it with --accept-licence if you accept it")
        print(text, file=sys.stderr)
    if name != published.name:
        print(f"{name} is the published model {published.name}", file=sys.stderr)
    directory = cache or cache_directory()
    target = directory / published.filename
    if not target.is_file():
        directory.mkdir(parents=True, exist_ok=True)
        _download(published, target)
    _check(published, target)
    return target


def cached(path: Path) -> Published | None:
    """The published model that a file of the cache is; None for other files."""
    inside = path.absolute().parent == cache_directory().absolute()
    return next((p for p in PUBLISHED.values() if inside and p.filename == path.name), None)


def is_published(published: Published, path: Path) -> bool:
    """Whether size and checksum of a file are those that others have seen, as far as they are known."""
    if published.sha256 is None:
        return path.stat().st_size == published.size
    return sha256_of(path) == published.sha256


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(published: Published, target: Path) -> None:
    """Fetch into TARGET.part, continuing a previous attempt, check, and rename to TARGET."""
    part = target.with_name(target.name + ".part")
    with open(part, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(f"another process is downloading {part}; wait for it") from None
        resumed = file.tell() > 0
        _transfer(published, target, file=file)
        if resumed and published.sha256 not in (None, sha256_of(part)):
            file.truncate(0)  # the pieces may stem from different files: fetch once more in one piece
            _transfer(published, target, file=file)
        os.fsync(file.fileno())
        os.replace(part, target)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to an address that is not."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if req.type == "https" and urllib.parse.urlsplit(newurl).scheme != "https":
            raise urllib.error.URLError(f"redirected from https to {newurl}, which is refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _transfer(published: Published, target: Path, *, file: BinaryIO) -> None:
    """Append to `file` what it lacks of the published file; what arrived stays for the next attempt."""
    start = file.seek(0, os.SEEK_END)
    request = urllib.request.Request(published.url, headers={"User-Agent": "equijax"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        with urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT_S) as reply:
            if reply.headers.get_content_type() == "text/html":
                raise DownloadError(_by_hand(published, target, reason="the server answered with a web page"))
            if reply.status != http.HTTPStatus.PARTIAL_CONTENT or not _continues(reply, start):
                file.truncate(0)
                start = 0
            length = reply.headers.get("Content-Length")
            total = start + int(length) if length else None
            with tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=published.name) as progress:
                while block := reply.read(BLOCK):
                    file.write(block)
                    progress.update(len(block))
            file.flush()
    except DownloadError:
        raise
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                file.truncate(0)  # more on disk than the server has
                return _transfer(published, target, file=file)
            raise DownloadError(
                _by_hand(published, target, reason=f"the server answered {error.code} {error.reason}")
            ) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DownloadError(_by_hand(published, target, reason=f"{type(error).__name__}: {reason}")) from None
    got = file.seek(0, os.SEEK_END)
    if total is not None and got != total:
        raise DownloadError(
            _by_hand(
                published,
                target,
                reason=f"the connection ended after {got} of {total} bytes; the same command continues from there",
            )
        )


def _continues(reply: http.client.HTTPResponse, start: int) -> bool:
    """Whether the partial reply begins at byte `start`."""
    return (reply.headers.get("Content-Range") or "").startswith(f"bytes {start}-")


def _by_hand(published: Published, target: Path, *, reason: str) -> str:
    return (
        f"cannot download {published.name}: {reason}. Fetch {published.url} ({published.megabytes}) on a "
        f"machine with a network and put it at {target}, or give its path instead of the name"
    )


def _check(published: Published, path: Path) -> None:
    """Warn where size or checksum differ from what others have seen."""
    if is_published(published, path):
        return
    found = sha256_of(path)
    if published.sha256 is None:
        text = f"{path.stat().st_size} bytes, others have seen {published.size}; sha256 {found}"
    else:
        text = f"THIS IS NOT THE FILE OTHERS HAVE SEEN\n expected sha256 {published.sha256}\n received sha256 {found}"
    warnings.warn(f"{published.name}: {text}\n {path}, from {published.url}", ChecksumWarning, stacklevel=3)
