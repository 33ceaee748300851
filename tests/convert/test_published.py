"""The table of published models, and the names that people type."""

import re

import pytest

from convert import download
from convert.download import PUBLISHED, find

MP, OFF = "https://github.com/ACEsuit/mace-mp/releases/download", "https://github.com/ACEsuit/mace-off/blob/main"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        # what mace_mp and mace_off take
        ("small", "mace-mp-0a-small"),
        ("medium", "mace-mp-0a-medium"),
        ("large", "mace-mp-0-large-2022.9"),
        ("small-0b", "mace-mp-0b-small"),
        ("medium-0b", "mace-mp-0b-medium"),
        ("small-0b2", "mace-mp-0b2-small"),
        ("medium-0b2", "mace-mp-0b2-medium"),
        ("large-0b2", "mace-mp-0b2-large"),
        ("medium-0b3", "mace-mp-0b3-medium"),
        ("medium-mpa-0", "mace-mpa-0-medium"),
        ("small-omat-0", "mace-omat-0-small"),
        ("medium-omat-0", "mace-omat-0-medium"),
        ("mace-matpes-r2scan-0", "mace-matpes-r2scan-0"),
        ("mh-0", "mace-mh-0"),
        ("mh-1", "mace-mh-1"),
        ("mace_off23_small", "mace-off23-small"),
        # names of files and families, and how mace-torch's cache spells them
        ("MACE-MP-0b3", "mace-mp-0b3-medium"),
        ("2023-12-03-mace-128-L1_epoch-199.model", "mace-mp-0a-medium"),
        ("20231203mace128L1_epoch199model", "mace-mp-0a-medium"),
        ("mace-mp-0b3-medium.model", "mace-mp-0b3-medium"),
        ("MACE-OFF23_medium.model", "mace-off23-medium"),
        # addresses
        (f"{MP}/mace_mp_0b3/mace-mp-0b3-medium.model", "mace-mp-0b3-medium"),
        (f"{OFF}/mace_off23/MACE-OFF23_small.model?raw=true", "mace-off23-small"),
    ],
)
def test_names_that_people_type(typed, meant):
    assert find(typed) is PUBLISHED[meant]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_spelling_of_a_published_name_means_it_alone(name):
    for typed in (name, name.upper(), name.replace("-", "_"), name + ".model", PUBLISHED[name].filename):
        assert find(typed) is PUBLISHED[name]


def test_table_and_listing():
    text = download.listing()
    assert all(f"not converted: a {family}" in text for family in ("MACE-LES", "MACE-POLAR", "dipole"))
    for name, entry in PUBLISHED.items():
        assert (
            name in text
            and entry.citation in text
            and entry.licence in download.LICENCES
            and entry.url.startswith("https://")
        )
        assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
