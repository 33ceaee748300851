"""Batched evaluation and relaxation: order, bad structures, full batches, known minima."""

import itertools
import threading

import ase
import ase.constraints
import numpy as np
import pytest
from ase.build import bulk

from equijax import graph
from equijax.config import Compute
from equijax.forcefield import ForceField, failed
from equijax.graph import packing, prefetch
from equijax.potential import Evaluated
from equijax.relax import batched
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
    return [rattled(), bulk("Si", a=5.4), broken, rattled("Si", "diamond", a=5.2), bulk("Na", "bcc", a=4.1) * (2, 1, 1)]


def test_results_in_order_and_bad_structure_reported(ff):
    images = mixed()
    results = ff.evaluate(images, compute=Compute(), errors="report")
    assert "structure 2" in results[2].error and "non-finite position" in results[2].error
    for i in (0, 1, 3, 4):
        alone = ff.evaluate([images[i]], compute=Compute())[0]
        assert results[i].energy == pytest.approx(alone.energy, abs=1e-9)
        np.testing.assert_allclose(results[i].forces, alone.forces, atol=1e-9)
    with pytest.raises(ValueError, match="structure 2"):
        ff.evaluate(images)
    with pytest.raises(ValueError, match="expected 'raise' or 'report'"):
        ff.evaluate(images, errors="ignore")


def test_non_finite_result_is_reported_and_stays_alone(ff):
    images = [rattled("Si", "diamond", a=5.2), rattled()]
    good = ff.evaluate(images)[0]
    constants = {**ff.variables["constants"], "atomic_energies": np.array([[1.0, 1.0, np.nan]])}
    broken = ForceField(ff.config, {**ff.variables, "constants": constants}, {})
    silicon, salt = broken.evaluate(images, errors="report")
    assert "structure 1 (Cl4Na4): the potential returned a non-finite" in salt.error
    np.testing.assert_array_equal(silicon.forces, good.forces)
    with pytest.raises(FloatingPointError, match="structure 1"):
        broken.evaluate(images)


def test_a_thousand_crystals_fill_few_shapes():
    """Padding included, at least 80 % of the edge slots computed belong to the structures."""
    rng = np.random.default_rng(0)
    structures = []
    for i in range(1000):
        atoms = bulk("Al", rng.choice(["fcc", "bcc", "sc", "diamond"]), a=rng.uniform(3.2, 5.5), cubic=True)
        structures.append(packing.structure(i, atoms, edges=graph.neighbour_list(atoms, 5.0)))
    pool = graph.SizePool()
    batches = list(packing.batches(iter(structures), pool, known=1, budget=packing.BATCH_SLOTS["cpu"]))
    assert sorted(s.index for batch in batches for s in batch.members) == list(range(1000))
    assert len({batch.size for batch in batches}) <= 16
    assert all(batch.size.cost <= 1.1 * packing.BATCH_SLOTS["cpu"] for batch in batches)
    needed = sum(len(s.edges.receivers) for s in structures)
    assert needed / sum(batch.size.cost for batch in batches) > 0.8


def test_a_batch_is_ready_before_the_stream_ends():
    """The first batch leaves when it is full, not when the last structure has come."""
    atoms = rattled()
    edges, taken = graph.neighbour_list(atoms, 4.0), []

    def endless():
        for i in itertools.count():
            taken.append(i)
            yield packing.structure(i, atoms, edges=edges)

    batches = packing.batches(endless(), graph.SizePool(), known=2, budget=4096)
    first, second = next(batches), next(batches)
    assert [s.index for s in (*first.members, *second.members)] == list(range(len(taken) - 1))
    assert first.size == second.size and first.size.cost <= 4096


def test_a_structure_beyond_every_shape_does_not_inflate_the_others():
    """With the pool full, a batch is halved until known shapes hold it, and one large structure gets its own shape."""
    small = [packing.structure(i, a, edges=graph.neighbour_list(a, 4.0)) for i, a in enumerate([rattled(seed=1)] * 40)]
    large = rattled(repeat=(4, 3, 3))
    pool = graph.SizePool([graph.Size(16, 32, 2, 17)] * graph.MAX_SIZES)
    batches = list(
        packing.batches(
            [*small, packing.structure(40, large, edges=graph.neighbour_list(large, 4.0))], pool, known=2, budget=4096
        )
    )
    assert sorted(s.index for b in batches for s in b.members) == list(range(41))
    (own,) = [b for b in batches if b.members[0].index == 40]
    assert len(own.members) == 1 and own.size.nodes < 2 * len(large)
    assert {b.size.nodes for b in batches if b is not own} <= {16, own.size.nodes}


def test_background_thread_passes_on_items_errors_and_the_end():
    def items():
        yield from range(5)
        raise ValueError("in the thread")

    seen = []
    with pytest.raises(ValueError, match="in the thread"):
        for item in prefetch.ahead(items()):
            seen.append(item)
    assert seen == list(range(5))
    before = threading.active_count()
    endless = prefetch.ahead(itertools.count())
    assert next(endless) == 0
    endless.close()
    assert threading.active_count() == before


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
