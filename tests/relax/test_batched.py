"""Batched relaxation: each structure on its own, known minima."""

import ase
import ase.constraints
import numpy as np
import pytest

from equijax.forcefield import failed
from equijax.potential import Evaluated
from equijax.relax import batched


class Springs:
    """Every atom bound to a site by k = 2 eV/A^2: a force field whose minimum is known."""

    def evaluate(self, images, compute, errors):
        """What `ForceField.evaluate` returns."""
        out = []
        for atoms in images:
            if len(atoms) == 1:
                out.append(failed(1, "a single atom"))
                continue
            d = atoms.positions - np.arange(3 * len(atoms)).reshape(-1, 3)
            out.append(Evaluated(float((d**2).sum()), (d**2).sum(1), -2 * d, np.full((3, 3), np.nan)))
        return out


def test_each_structure_converges_on_its_own():
    rng = np.random.default_rng(1)
    images = [ase.Atoms("Na" * n, rng.normal(size=(n, 3))) for n in (2, 1, 5)]
    done = batched.relax(Springs(), images, fmax=1e-6, steps=2000)
    assert [d.converged for d in done] == [True, False, True]
    assert done[1].error == "a single atom" and done[1].atoms is images[1]
    for d in (done[0], done[2]):
        np.testing.assert_allclose(d.atoms.positions.ravel(), np.arange(3 * len(d.atoms)), atol=1e-5)
        assert d.fmax <= 1e-6
    short = batched.relax(Springs(), images, fmax=1e-6, steps=3)
    assert [d.steps for d in short] == [3, 0, 3] and not short[0].converged


class Strained:
    """E = V_0 c/2 |strain|^2 + springs in fractional coordinates, for cells: strain against a cube of side 4."""

    def evaluate(self, images, compute, errors):
        """What `ForceField.evaluate` returns, stress by the chain rule."""
        out = []
        for atoms in images:
            F = atoms.cell.array / 4.0
            G = F @ F.T - np.eye(3)
            # E = sum G^2 -> dE/dstrain = 4 F^T G F for row vectors
            virial = 4 * F.T @ G @ F
            energies, forces = np.zeros(len(atoms)), np.zeros((len(atoms), 3))
            out.append(Evaluated(float((G**2).sum()), energies, forces, virial / atoms.get_volume()))
        return out


def test_cell_relaxes_to_its_minimum():
    atoms = ase.Atoms("Na", cell=np.diag([4.3, 3.9, 4.1]) + 0.1, pbc=True)
    (done,) = batched.relax(Strained(), [atoms], fmax=1e-6, steps=3000, cell=True)
    assert done.converged
    np.testing.assert_allclose(done.atoms.cell.cellpar(), [4, 4, 4, 90, 90, 90], atol=1e-4)
    with pytest.raises(ValueError, match="constraints"):
        atoms.set_constraint(ase.constraints.FixAtoms([0]))
        batched.relax(Strained(), [atoms], cell=True)
