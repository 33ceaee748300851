"""What --verify compares with, without torch: structures that could be, limits that scale."""

from types import SimpleNamespace

import numpy as np
import pytest
from ase.data import covalent_radii

from convert import verify
from equijax.graph.neighbours import neighbour_list


@pytest.mark.parametrize("species", [(1,), (55,), (1, 55), (6, 1, 8), tuple(range(1, 90))], ids=len)
@pytest.mark.parametrize("r_max", [4.5, 6.0])
def test_neighbours_are_as_far_apart_as_atoms_can_be_and_within_the_cutoff(species, r_max):
    for seed in range(10):
        for atoms in verify.structures(SimpleNamespace(species=species, r_max=r_max), seed):
            assert set(atoms.numbers) <= set(species)
            edges = neighbour_list(atoms, r_max)
            ends = atoms.positions[edges.senders] + edges.shifts @ atoms.cell.array
            distances = np.linalg.norm(ends - atoms.positions[edges.receivers], axis=1)
            radii = covalent_radii[atoms.numbers]
            assert set(edges.receivers) == set(range(len(atoms)))  # every atom has neighbours
            assert distances.min() > 1.1  # A
            assert (distances / (radii[edges.senders] + radii[edges.receivers])).min() > 0.75


def test_limits_scale_with_the_numbers():
    """A float32 file may differ by 1e-7 of an energy of 1e7 eV/atom; float64 files and small numbers may not."""
    rounded = verify.Difference(1.0, 1e7)
    assert rounded.value < rounded.limit("float32", "energy") and rounded.value > rounded.limit("float64", "energy")
    assert verify.Difference(0.0, 10.0).limit("float32", "energy") < 3e-5
    assert verify.Difference(0.0, 10.0).limit("float64", "energy") < 2e-9


def test_a_number_that_is_none_is_no_small_difference():
    """NaN in one structure is neither hidden by the next nor within a limit, and the line says so."""
    small, broken = verify.Difference(0.0, 1.0), verify.Difference(np.nan, np.nan)
    for pair in ((small, broken), (broken, small)):
        assert max(pair, key=lambda d: d.share("float64", "energy")) is broken
    rows = [verify.Compared("Default", "energy", d, d.limit("float64", "energy")) for d in (small, broken)]
    assert [row.within for row in rows] == [True, False]
    assert str(rows[0]).endswith("ok") and str(rows[1]).endswith("TOO LARGE")
