"""Batched evaluation and relaxation: order, bad structures, full batches, known minima."""

import ase
import ase.constraints
import numpy as np
import pytest
from ase.build import bulk

from equijax import forcefield, graph, screen
from equijax.testing import random_config, random_forcefield, rattled


@pytest.fixture(scope="module")
def ff():
    return random_forcefield(
        random_config(
            channels=2, lmax=0, max_ell=1, correlation=(1, 1), num_radial=3, radial_mlp=(8, 8), species=(11, 14, 17)
        )
    )


def mixed():
    """Sizes, coordinations and elements in no order, a bad one in between."""
    broken = bulk("Si", cubic=True)
    broken.positions[3] = np.nan
    return [rattled(), bulk("Si", a=5.4), broken, rattled("Si", "diamond", 5.2), bulk("Na", "bcc", a=4.1) * (2, 1, 1)]


def test_results_in_order_and_bad_structure_reported(ff):
    images = mixed()
    results = ff.evaluate(images, "float64", errors="report")
    assert "structure 2" in results[2]["error"] and "non-finite position" in results[2]["error"]
    for i in (0, 1, 3, 4):
        alone = ff.evaluate([images[i]], "float64")[0]
        assert results[i]["energy"] == pytest.approx(alone["energy"], abs=1e-9)
        np.testing.assert_allclose(results[i]["forces"], alone["forces"], atol=1e-9)
    with pytest.raises(ValueError, match="structure 2"):
        ff.evaluate(images)
    with pytest.raises(ValueError, match="expected 'raise' or 'report'"):
        ff.evaluate(images, errors="ignore")


def test_a_thousand_crystals_fill_few_shapes():
    """Padding included, at least 80 % of the edge slots computed belong to the structures."""
    rng = np.random.default_rng(0)
    ff = random_forcefield(random_config(species=(13,), r_max=5.0, channels=2, lmax=0, max_ell=0, correlation=(1, 1)))
    structures = []
    for _ in range(1000):
        atoms = bulk("Al", rng.choice(["fcc", "bcc", "sc", "diamond"]), a=rng.uniform(3.2, 5.5), cubic=True)
        structures.append((atoms, graph.neighbour_list(atoms, ff.config.r_max)))
    batches = forcefield.pack(structures, forcefield.BATCH_SLOTS)
    assert sorted(i for members in batches for i in members) == list(range(1000))
    groups = [[structures[i] for i in members] for members in batches]
    sizes = ff._sizes(groups)
    assert len(set(sizes)) <= 24
    needed = sum(len(e.receivers) for _, e in structures)
    assert needed / sum(size.cost for size in sizes) > 0.8


class Springs:
    """Every atom bound to a site by k = 2 eV/A^2: a force field whose minimum is known."""

    def evaluate(self, images, dtype, head, errors):
        """What `ForceField.evaluate` returns."""
        out = []
        for atoms in images:
            if len(atoms) == 1:
                out.append({"error": "a single atom"})
                continue
            d = atoms.positions - np.arange(3 * len(atoms)).reshape(-1, 3)
            out.append({"energy": float((d**2).sum()), "forces": -2 * d, "stress": np.full((3, 3), np.nan)})
        return out


def test_each_structure_converges_on_its_own():
    rng = np.random.default_rng(1)
    images = [ase.Atoms("Na" * n, rng.normal(size=(n, 3))) for n in (2, 1, 5)]
    done = screen.relax(Springs(), images, fmax=1e-6, steps=2000)
    assert [d.converged for d in done] == [True, False, True]
    assert done[1].error == "a single atom" and done[1].atoms is images[1]
    for d in (done[0], done[2]):
        np.testing.assert_allclose(d.atoms.positions.ravel(), np.arange(3 * len(d.atoms)), atol=1e-5)
        assert d.fmax <= 1e-6
    short = screen.relax(Springs(), images, fmax=1e-6, steps=3)
    assert [d.steps for d in short] == [3, 0, 3] and not short[0].converged


class Strained:
    """E = V_0 c/2 |strain|^2 + springs in fractional coordinates, for cells: strain against a cube of side 4."""

    def evaluate(self, images, dtype, head, errors):
        """What `ForceField.evaluate` returns, stress by the chain rule."""
        out = []
        for atoms in images:
            F = atoms.cell.array / 4.0
            G = F @ F.T - np.eye(3)
            # E = sum G^2 -> dE/dstrain = 4 F^T G F for row vectors
            virial = 4 * F.T @ G @ F
            out.append({"energy": float((G**2).sum()), "forces": np.zeros((len(atoms), 3)),
                        "stress": virial / atoms.get_volume()})  # fmt: skip
        return out


def test_cell_relaxes_to_its_minimum():
    atoms = ase.Atoms("Na", cell=np.diag([4.3, 3.9, 4.1]) + 0.1, pbc=True)
    (done,) = screen.relax(Strained(), [atoms], fmax=1e-6, steps=3000, cell=True)
    assert done.converged
    np.testing.assert_allclose(done.atoms.cell.cellpar(), [4, 4, 4, 90, 90, 90], atol=1e-4)
    with pytest.raises(ValueError, match="constraints"):
        atoms.set_constraint(ase.constraints.FixAtoms([0]))
        screen.relax(Strained(), [atoms])
