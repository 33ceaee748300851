"""Names of crystals, and files that cannot be read: a crystal with its error each, which stops no other."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.constraints import FixAtoms

from equijax.errors import InputError
from equijax.screen import crystals

GOOD = '2\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3\nNa 0 0 0\nCl 2 2 2\n'


def test_files_and_frames_of_a_folder(tmp_path):
    """Every frame has the name of its file and its number; what ASE cannot read says so, from that frame on."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.xyz").write_text(GOOD + GOOD + GOOD.replace("2 2 2", "2 2 two"))
    (tmp_path / "a.vasp").write_text("nothing that is a crystal")
    (tmp_path / "empty.xyz").touch()
    (tmp_path / ".hidden").write_text("not looked at")
    found = crystals.read([tmp_path])
    names = [str(Path(c.name).relative_to(tmp_path)) for c in found]
    assert names == ["a.vasp:0", "deep/b.xyz:0", "deep/b.xyz:1", "deep/b.xyz:2", "empty.xyz:0"]
    assert [c.atoms is None for c in found] == [bool(c.error) for c in found] == [True, False, False, True, True]
    assert "neither this frame nor those after it were read" in found[3].error


def test_what_is_given_twice_or_not_there(tmp_path):
    (tmp_path / "b.xyz").write_text(GOOD)
    with pytest.raises(InputError, match=r"b.xyz:0 is given twice: name every file"):
        crystals.read([tmp_path, tmp_path / "b.xyz"])
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        crystals.read([tmp_path / "nowhere"])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="no structures in .*nothing"):
        crystals.read([tmp_path / "nothing"])


def test_disorder_is_the_crystal_s_own_error():
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms.set_array("occupancy", np.array([1.0, 0.5]))
    assert "has occupancy 0.5, expected 1" in crystals.named(atoms, "x:0").error
    assert crystals.named(ase.Atoms(), "x:1").error == "x:1: a structure without atoms"


@pytest.mark.parametrize("what", ["positions", "cell", "masses", "charge", "constraint"])
def test_the_digest_follows_what_is_computed_from(what):
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    other = atoms.copy()
    assert crystals.Crystal("a", atoms).digest == crystals.Crystal("b", other).digest
    if what in ("positions", "masses"):
        other.set_array(what, other.get_array("positions") + 0.1 if what == "positions" else np.array([24.0, 35.0]))
    elif what == "cell":
        other.set_cell(other.cell * 1.01)
    elif what == "charge":
        other.info["charge"] = 1.0
    else:
        other.set_constraint(FixAtoms([0]))
    assert crystals.Crystal("a", atoms).digest != crystals.Crystal("a", other).digest
