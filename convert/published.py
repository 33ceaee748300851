"""Published MACE checkpoints: name -> address, checksum, size, elements, licence; and what people call them.

Sizes and checksums were collected from independent third parties, since the publisher states none.
"""

import difflib
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

HOSTS = ("github.com", "raw.githubusercontent.com")  # where addresses of published files are understood

_FOUNDATIONS = "https://github.com/ACEsuit/mace-foundations/releases/download"
_OFF = "https://raw.githubusercontent.com/ACEsuit/mace-off/main"
_ALL = "89 elements"
_MOLECULES = "83 elements"
_ORGANIC = "10 elements: H C N O F P S Cl Br I"
LICENCES = {
    "MIT": "MIT licence, free for any use",
    "ASL": "Academic Software License: academic, non-commercial use only; text at https://github.com/gabor1/ASL",
}


@dataclass(frozen=True)
class Published:
    """One published checkpoint."""

    name: str
    url: str
    size: int | None  # bytes; None: not known
    sha256: str | None  # None: not known
    elements: str
    licence: str  # key of LICENCES
    citation: str  # what its authors ask to cite, or the paper of its data

    @property
    def filename(self) -> str:
        return self.url.rsplit("/", 1)[1]

    @property
    def megabytes(self) -> str:
        """Its size as text."""
        return "? MB" if self.size is None else f"{self.size / 1e6:.1f} MB"


# Beginning of a name -> papers, the longest that fits
CITATIONS = {
    "mace-mp": "arXiv:2401.00096",
    "mace-omat": "arXiv:2401.00096, data 2410.12771",
    "mace-matpes": "arXiv:2401.00096, data 2503.04070",
    "mace-off": "arXiv:2312.15211",
    "mace-mh": "arXiv:2510.25380",
    "mace-omol": "data arXiv:2505.08762",
}

# (name, path in its release, size in bytes, sha256)
_ROWS = [
    (
        "mace-mp-0a-small",
        "mace_mp_0/2023-12-10-mace-128-L0_energy_epoch-249.model",
        32_581_838,
        "2ddb079cee0e131eaaf6912ba581b394551ead283e95c99cfe78c605d10b5736",
    ),
    (
        "mace-mp-0a-medium",
        "mace_mp_0/2023-12-03-mace-128-L1_epoch-199.model",
        44_422_970,
        "01bfe22100139f424713cf921144e5509cbe353d67aa9fa1be9c6e1e0ed35845",
    ),
    (
        "mace-mp-0a-large",
        "mace_mp_0/2024-01-07-mace-128-L2_epoch-199.model",
        63_509_066,
        "514bd2f1938653c37929f7c275a489378f03a7e3ffb27aa2ae0ddce8d0c859c8",
    ),
    (
        "mace-mp-0-large-2022.9",
        "mace_mp_0/MACE_MPtrj_2022.9.model",
        133_803_220,
        "f80e992b65ab8f88fdf26964511357c022e92704e4d9bcd086652635a8495b32",
    ),
    (
        "mace-mp-0b-small",
        "mace_mp_0b/mace_agnesi_small.model",
        67_603_120,
        "7e3a0abcaf41e03a80e69f778e1b11b29de1cca704783dc25917a736392f8cf0",
    ),
    (
        "mace-mp-0b-medium",
        "mace_mp_0b/mace_agnesi_medium.model",
        79_447_096,
        "ab8baff639a8f295f3eccad3d3ccf574efb6fb63220bd52cd88664211569e521",
    ),
    (
        "mace-mp-0b2-small",
        "mace_mp_0b2/mace-small-density-agnesi-stress.model",
        67_622_684,
        "d5773bf9440e96d6eb8c598f84bd0e6369fcfa432f626a87f890e07da3c651c9",
    ),
    (
        "mace-mp-0b2-medium",
        "mace_mp_0b2/mace-medium-density-agnesi-stress.model",
        79_462_798,
        "a90be07c8aa6623c390fcc4653d3e319c4a356f8b4a53d323f96b2012d375caf",
    ),
    (
        "mace-mp-0b2-large",
        "mace_mp_0b2/mace-large-density-agnesi-stress.model",
        98_544_548,
        "348390e758e1c90011c7675e864850f8e9c5b3e7c217f79a2b4bad1baaa657ad",
    ),
    (
        "mace-mp-0b3-medium",
        "mace_mp_0b3/mace-mp-0b3-medium.model",
        79_472_952,
        "2f2be696351ac9e94fbe01cdfb6f017679acdbd2db7645209ef55fec9826b012",
    ),
    (
        "mace-mpa-0-medium",
        "mace_mpa_0/mace-mpa-0-medium.model",
        79_462_305,
        "75428afe3a1d7d8062e19bcaabd5c433623cabf308242ec9fb493e38604fb638",
    ),
    (
        "mace-omat-0-small",
        "mace_omat_0/mace-omat-0-small.model",
        67_630_500,
        "0abfde07862cf1e93b8b4d03cb702f29ce9c344ff2fc4de2ec0d7166d6c113a5",
    ),
    (
        "mace-omat-0-medium",
        "mace_omat_0/mace-omat-0-medium.model",
        79_463_999,
        "d4b14be9afa294eebdbe31a0280b26a0fa29715771e978cbfd3ca24e0d90307a",
    ),
    (
        "mace-matpes-pbe-0",
        "mace_matpes_0/MACE-matpes-pbe-omat-ft.model",
        79_471_284,
        "e618ad582b84239905b9c3b77ce6e9ce111b0ecd1533223a1a6aac7a696b8aa0",
    ),
    (
        "mace-matpes-r2scan-0",
        "mace_matpes_0/MACE-matpes-r2scan-omat-ft.model",
        79_470_738,
        "8f147ecffa1d06a696e5648b13b81abda9c96fda9d0fb3faba3cd3fb27d9bba9",
    ),
    (
        "mace-mh-0",
        "mace_mh_1/mace-mh-0.model",
        None,
        "d62ff8f293664e6556cfa49364b28ee72a70cf1e6150f3c111a578397fed609d",
    ),
    (
        "mace-mh-1",
        "mace_mh_1/mace-mh-1.model",
        59_208_139,
        "a522eb7f59c7879963d41586528f4980baf33e086c94aa92e3eafdeccad3be47",
    ),
    (
        "mace-omol-0-extra-large",
        "mace_omol_0/MACE-omol-0-extra-large-1024.model",
        422_242_640,
        "9b64b4fd5153ca578c694abc57806d8111050de6ff652e695c9b525bc4d36469",
    ),
    (
        "mace-off23-small",
        "mace_off23/MACE-OFF23_small.model",
        7_347_350,
        "165cce4cfec5a34b9c64d4ebf95de15d71106bb584b7291c8470f0749977c46f",
    ),
    (
        "mace-off23-medium",
        "mace_off23/MACE-OFF23_medium.model",
        18_350_596,
        "4842c52ad210d6e1f84d6cf1ffa70fae25a7e0d755ed55cf223f43913f587db7",
    ),
    (
        "mace-off23-large",
        "mace_off23/MACE-OFF23_large.model",
        55_492_786,
        "a29e397dbf3e7a24ac50a9b0dfc919bd5a62efa346f5895a6237b0950c1d76f4",
    ),
    (
        "mace-off23b-medium",
        "mace_off23/MACE-OFF23b_medium.model",
        None,
        "871653738a4fbc8124dba1ff5bc595bd0abf7b849a8538c0825dc29ebadf1680",
    ),
    (
        "mace-off24-medium",
        "mace_off24/MACE-OFF24_medium.model",
        18_375_569,
        "e5ccf5837f685899811a68754e7c994393bfd1a81720393b03c643b46c70bc69",
    ),
]


def _table() -> dict[str, Published]:
    table = {}
    for name, path, size, sha256 in _ROWS:
        organic = path.startswith("mace_off")
        licence = "MIT" if name.startswith(("mace-mp-", "mace-mpa-")) else "ASL"
        url = f"{_OFF if organic else _FOUNDATIONS}/{path}"
        elements = _ORGANIC if organic else _MOLECULES if path.startswith("mace_omol") else _ALL
        citation = CITATIONS[max((key for key in CITATIONS if name.startswith(key)), key=len)]
        table[name] = Published(name, url, size, sha256, elements, licence, citation)
    return table


PUBLISHED = _table()

# What mace_mp means by these names, and families of which one size is published. Other spellings need no entry: words
# count in any order, so medium-0b3 is mace-mp-0b3-medium.
ALIASES = {
    "small": "mace-mp-0a-small",
    "medium": "mace-mp-0a-medium",
    "large": "mace-mp-0-large-2022.9",
    "mace-mp-0-small": "mace-mp-0a-small",
    "mace-mp-0-medium": "mace-mp-0a-medium",
    "mace-mp-0-large": "mace-mp-0-large-2022.9",
    "mace-mp-0b3": "mace-mp-0b3-medium",
    "mace-mpa-0": "mace-mpa-0-medium",
    "mace-omol": "mace-omol-0-extra-large",
    "mace-omol-0": "mace-omol-0-extra-large",
    "mace-off23b": "mace-off23b-medium",
    "mace-off24": "mace-off24-medium",
}


def find(name: str) -> Published:
    """The published model that a name means: its own, mace-torch's, that of its file or the address of that file.

    Raises:
      FileNotFoundError: unknown; three names that come close are suggested.
    """
    known = {_words(alias): PUBLISHED[meant] for alias, meant in ALIASES.items() if meant in PUBLISHED}
    known |= {_words(p.name): p for p in PUBLISHED.values()}
    addresses: dict[tuple[str, ...] | None, Published] = {
        place: p for p in PUBLISHED.values() if (place := _place(p.url))
    }
    files = {p.filename.lower(): p for p in PUBLISHED.values()} | {_squeezed(p.filename): p for p in PUBLISHED.values()}
    found = addresses.get(_place(name)) if "/" in name else files.get(name.lower()) or known.get(_words(name))
    if found is not None:
        return found
    what = "there is no file" if "/" in name or Path(name).suffix == ".model" else "there is no file or published model"
    if "://" in name:
        what = "fetch it and give the file; no published model has the address"
    raise FileNotFoundError(
        f"{what} {name}; perhaps {', '.join(suggestions(name))}? `python -m convert --list` prints all published models"
    )


def suggestions(name: str) -> list[str]:
    """The three names of published models that come closest."""
    last = name.rsplit("/", 1)[-1].lower()
    by_file = {p.filename.lower(): p.name for p in PUBLISHED.values()} | ALIASES | {n: n for n in PUBLISHED}
    close = difflib.get_close_matches(last, by_file, n=len(by_file), cutoff=0.0)
    return list(dict.fromkeys(by_file[candidate] for candidate in close))[:3]


def _words(name: str) -> frozenset[str]:
    """The words of a name in lower case, without mace, mp and model."""
    return frozenset(re.split("[^a-z0-9.]+", name.lower().removesuffix(".model"))) - {"", "mace", "mp"}


def _squeezed(filename: str) -> str:
    """A file name as mace-torch's cache spells it."""
    return re.sub("[^a-z0-9_]", "", filename.lower())


def _place(url: str) -> tuple[str, ...] | None:
    """Release and file name in the address of a published file; None for other addresses."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or parts.hostname not in HOSTS or "/acesuit/" not in parts.path.lower():
        return None
    return tuple(parts.path.split("/")[-2:])
