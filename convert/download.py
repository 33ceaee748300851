"""Published MACE checkpoints: name -> address, checksum, size, elements, licence; download with resume into a cache.

Sizes and checksums were collected from independent third parties, since the publisher states none; a file that differs
is reported loudly with both sums and used all the same.
"""

import difflib
import fcntl
import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
import warnings
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from tqdm import tqdm

TIMEOUT_S = 60
BLOCK = 1 << 18

_FOUNDATIONS = "https://github.com/ACEsuit/mace-foundations/releases/download"
_OFF = "https://raw.githubusercontent.com/ACEsuit/mace-off/main"
_ALL = "89 elements"
_ORGANIC = "10 elements: H C N O F P S Cl Br I"
LICENCES = {
    "MIT": "MIT licence, free for any use",
    "ASL": "Academic Software License: academic, non-commercial use only; text at https://github.com/gabor1/ASL",
}


class DownloadError(RuntimeError):
    """A published model could not be fetched; the message says which file to put where."""


class ChecksumWarning(UserWarning):
    """A published file differs from the one that others have seen."""


@dataclass(frozen=True)
class Published:
    """One published checkpoint."""

    name: str
    url: str
    size: int  # bytes
    sha256: str | None  # None: not known
    elements: str
    licence: str  # key of LICENCES

    @property
    def filename(self) -> str:
        return self.url.rsplit("/", 1)[1]


def _table() -> dict[str, Published]:
    rows = [
        ("mace-mp-0a-small", "mace_mp_0/2023-12-10-mace-128-L0_energy_epoch-249.model", 32_581_838,
         "2ddb079cee0e131eaaf6912ba581b394551ead283e95c99cfe78c605d10b5736"),
        ("mace-mp-0a-medium", "mace_mp_0/2023-12-03-mace-128-L1_epoch-199.model", 44_422_970,
         "01bfe22100139f424713cf921144e5509cbe353d67aa9fa1be9c6e1e0ed35845"),
        ("mace-mp-0a-large", "mace_mp_0/2024-01-07-mace-128-L2_epoch-199.model", 63_509_066,
         "514bd2f1938653c37929f7c275a489378f03a7e3ffb27aa2ae0ddce8d0c859c8"),
        ("mace-mp-0b-small", "mace_mp_0b/mace_agnesi_small.model", 67_603_120,
         "7e3a0abcaf41e03a80e69f778e1b11b29de1cca704783dc25917a736392f8cf0"),
        ("mace-mp-0b-medium", "mace_mp_0b/mace_agnesi_medium.model", 79_447_096,
         "ab8baff639a8f295f3eccad3d3ccf574efb6fb63220bd52cd88664211569e521"),
        ("mace-mp-0b2-small", "mace_mp_0b2/mace-small-density-agnesi-stress.model", 67_622_684,
         "d5773bf9440e96d6eb8c598f84bd0e6369fcfa432f626a87f890e07da3c651c9"),
        ("mace-mp-0b2-medium", "mace_mp_0b2/mace-medium-density-agnesi-stress.model", 79_462_798,
         "a90be07c8aa6623c390fcc4653d3e319c4a356f8b4a53d323f96b2012d375caf"),
        ("mace-mp-0b2-large", "mace_mp_0b2/mace-large-density-agnesi-stress.model", 98_544_548,
         "348390e758e1c90011c7675e864850f8e9c5b3e7c217f79a2b4bad1baaa657ad"),
        ("mace-mp-0b3-medium", "mace_mp_0b3/mace-mp-0b3-medium.model", 79_472_952,
         "2f2be696351ac9e94fbe01cdfb6f017679acdbd2db7645209ef55fec9826b012"),
        ("mace-mpa-0-medium", "mace_mpa_0/mace-mpa-0-medium.model", 79_462_305,
         "75428afe3a1d7d8062e19bcaabd5c433623cabf308242ec9fb493e38604fb638"),
        ("mace-omat-0-small", "mace_omat_0/mace-omat-0-small.model", 67_630_500, None),
        ("mace-omat-0-medium", "mace_omat_0/mace-omat-0-medium.model", 79_463_999, None),
        ("mace-matpes-pbe-0", "mace_matpes_0/MACE-matpes-pbe-omat-ft.model", 79_471_284, None),
        ("mace-matpes-r2scan-0", "mace_matpes_0/MACE-matpes-r2scan-omat-ft.model", 79_470_738,
         "8f147ecffa1d06a696e5648b13b81abda9c96fda9d0fb3faba3cd3fb27d9bba9"),
        ("mace-off23-small", "mace_off23/MACE-OFF23_small.model", 7_347_350, None),
        ("mace-off23-medium", "mace_off23/MACE-OFF23_medium.model", 18_350_596, None),
        ("mace-off23-large", "mace_off23/MACE-OFF23_large.model", 55_492_786, None),
    ]  # fmt: skip
    table = {}
    for name, path, size, sha256 in rows:
        organic = path.startswith("mace_off")
        licence = "MIT" if name.startswith(("mace-mp-", "mace-mpa-")) else "ASL"
        url = f"{_OFF if organic else _FOUNDATIONS}/{path}"
        table[name] = Published(name, url, size, sha256, _ORGANIC if organic else _ALL, licence)
    return table


PUBLISHED = _table()


def listing() -> str:
    """The table of published models as text: name, size, elements, licence."""
    lines = [f"{'name':<22} {'size':>8}  {'licence':<7}  elements"]
    lines += [f"{p.name:<22} {p.size / 1e6:5.1f} MB  {p.licence:<7}  {p.elements}" for p in PUBLISHED.values()]
    lines += ["", *(f"{key}: {text}" for key, text in LICENCES.items()), f"cache: {cache_directory()}"]
    return "\n".join(lines)


def cache_directory() -> Path:
    """Where downloaded models are kept."""
    return Path(platformdirs.user_cache_dir("equijax")) / "models"


def fetch(name: str, *, accept_licence: bool = False, cache: Path | None = None) -> Path:
    """Path of the published model `name`, downloaded unless the cache has it.

    Args:
      name: key of `PUBLISHED`.
      accept_licence: the caller has read and accepts a licence other than MIT.
      cache: directory to keep files in; default `cache_directory()`.

    Raises:
      KeyError: no published model of that name.
      PermissionError: the licence must be accepted first.
      DownloadError: no network, refused by the server, or cut off.

    Warns:
      ChecksumWarning: the file's sha256 is not the known one.
    """
    published = find(name)
    if published.licence != "MIT":
        text = f"{name} is published under the {LICENCES[published.licence]}"
        if not accept_licence:
            raise PermissionError(f"{text}. Read it and repeat the command with --accept-licence if you accept it")
        print(text, file=sys.stderr)
    directory = cache or cache_directory()
    target = directory / published.filename
    if not target.is_file():
        directory.mkdir(parents=True, exist_ok=True)
        _download(published, target)
    return target


def find(name: str) -> Published:
    """The published model `name`.

    Raises:
      KeyError: unknown, with the names that come close.
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    close = difflib.get_close_matches(name, PUBLISHED, n=3) or list(PUBLISHED)
    raise KeyError(f"{name!r} is neither a file nor a published model; perhaps {', '.join(close)}? "
                   "`python -m convert --list` prints all")  # fmt: skip


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
        _transfer(published, target, file)
        if resumed and published.sha256 not in (None, sha256_of(part)):
            file.truncate(0)  # the pieces may stem from different files: fetch once more in one piece
            _transfer(published, target, file)
        os.fsync(file.fileno())
        _check(published, part)
        os.replace(part, target)


def _transfer(published: Published, target: Path, file) -> None:
    """Append to `file` what it lacks of the published file; what arrived stays for the next attempt."""
    start = file.seek(0, os.SEEK_END)
    request = urllib.request.Request(published.url, headers={"User-Agent": "equijax"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            if reply.headers.get_content_type() == "text/html":
                raise DownloadError(_by_hand(published, target, "the server answered with a web page"))
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
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                file.truncate(0)  # more on disk than the server has
                return _transfer(published, target, file)
            raise DownloadError(
                _by_hand(published, target, f"the server answered {error.code} {error.reason}")
            ) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DownloadError(_by_hand(published, target, f"{type(error).__name__}: {reason}")) from None
    got = file.seek(0, os.SEEK_END)
    if total is not None and got != total:
        raise DownloadError(_by_hand(published, target, f"the connection ended after {got} of {total} bytes; "
                                     "the same command continues from there"))  # fmt: skip


def _continues(reply, start: int) -> bool:
    """Whether the partial reply begins at byte `start`."""
    return (reply.headers.get("Content-Range") or "").startswith(f"bytes {start}-")


def _by_hand(published: Published, target: Path, reason: str) -> str:
    return (f"cannot download {published.name}: {reason}. Fetch {published.url} ({published.size / 1e6:.1f} MB) on a "
            f"machine with a network and put it at {target}, or give its path instead of the name")  # fmt: skip


def _check(published: Published, path: Path) -> None:
    """Warn where size or checksum differ from what others have seen."""
    found = sha256_of(path)
    if published.sha256 is None:
        if path.stat().st_size != published.size:
            warnings.warn(f"{published.name}: {path.stat().st_size} bytes, others have seen {published.size}; sha256 "
                          f"{found}", ChecksumWarning, stacklevel=4)  # fmt: skip
    elif found != published.sha256:
        warnings.warn(f"{published.name}: THIS IS NOT THE FILE OTHERS HAVE SEEN\n expected sha256 {published.sha256}"
                      f"\n received sha256 {found}\n {published.url}", ChecksumWarning, stacklevel=4)  # fmt: skip
