"""The specialised model against the plain one: values, first and second derivatives, refusals, every variant."""

import jax
import numpy as np
import pytest
from ase import Atoms

from equijax import specialise, testing
from equijax.config import Compute
from equijax.nn.folded import TERMS, spline_weights
from tests.samples import ONE, folded

SMALL = {"channels": 4, "max_ell": 2, "radial_mlp": (16, 16)}
SPECIES = ("O", "Ca", "Ti")
# Errors the tables may cause, keyed like testing.TOLERANCE; in float32 rounding is larger than they are.
TOLERANCE = {
    "float64": {"energy": 1e-8, "forces": 1e-6, "stress": 1e-7, "hessian": 1e-6},
    "float32": testing.TOLERANCE["float32"],
}
VARIANTS = {
    "published blocks": {},
    "no density, transform, repulsion, scale and shift": {
        "interaction_first": "RealAgnosticInteractionBlock",
        "interaction": "RealAgnosticResidualInteractionBlock",
        "distance_transform": "none",
        "pair_repulsion": False,
        "scale_shift": False,
        "radial_basis": "gaussian",
    },
    "residual first, three interactions, two heads, cutoff after the MLP": {
        "interaction_first": "RealAgnosticDensityResidualInteractionBlock",
        "num_interactions": 3,
        "heads": ("a", "b"),
        "correlation": (2, 2, 2),
        "apply_cutoff": False,
        "distance_transform": "soft",
    },
}


@pytest.fixture(scope="module")
def perovskite():
    return testing.structures()["perovskite"]


@pytest.fixture(scope="module")
def plain():
    return testing.random_forcefield(testing.random_config(**SMALL))


@pytest.fixture(scope="module")
def fast(plain):
    return folded(plain, (8, 20, 22))


@pytest.fixture(scope="module")
def plain_one():
    """Of one interaction: its errors are measured in half the time."""
    return testing.random_forcefield(testing.random_config(**SMALL | ONE))


@pytest.fixture(scope="module")
def fast_one(plain_one):
    return plain_one.specialise(SPECIES)


@pytest.mark.parametrize("variant", VARIANTS)
def test_same_energies_forces_and_stress(variant, perovskite):
    ff = testing.random_forcefield(testing.random_config(**SMALL, **VARIANTS[variant]))
    ff = ff.with_head(ff.config.heads[-1])
    (a,), (b,) = (x.evaluate([perovskite], compute=Compute()) for x in (ff, folded(ff, (8, 20, 22))))
    tolerance = TOLERANCE["float64"]
    np.testing.assert_allclose(b.energies, a.energies, rtol=0, atol=tolerance["energy"])
    np.testing.assert_allclose(b.forces, a.forces, rtol=0, atol=tolerance["forces"])
    np.testing.assert_allclose(b.stress, a.stress, rtol=0, atol=tolerance["stress"])
    assert np.abs(a.forces).max() > 1e2 * tolerance["forces"]


def test_same_hessian(plain, fast, perovskite):
    from equijax import hessian

    a, b = (hessian.hessian(ff, perovskite, rows=[0, 7]) for ff in (plain, fast))
    np.testing.assert_allclose(b, a, rtol=0, atol=TOLERANCE["float64"]["hessian"])


def test_subset_of_the_species_and_float32(plain, fast):
    atoms = Atoms("TiO", positions=[[0, 0, 0], [1.9, 0.1, 0.2]], cell=[4.2, 4.3, 4.4], pbc=True)
    (a,), (b,) = (ff.evaluate([atoms]) for ff in (plain, fast))
    np.testing.assert_allclose(b.energies, a.energies, rtol=0, atol=TOLERANCE["float32"]["energy"])
    np.testing.assert_allclose(b.forces, a.forces, rtol=0, atol=TOLERANCE["float32"]["forces"])


def test_errors_are_measured_and_stored(fast_one, plain_one, monkeypatch):
    errors = fast_one.metadata["specialised"]
    assert 0 < errors["forces"] <= specialise.TOLERANCE["forces"] and 0 < errors["hvp"] < 1e-4
    assert plain_one.specialise([22, 8, 20]) is fast_one  # made once
    monkeypatch.setattr(specialise, "STEPS_A", specialise.STEPS_A[:1])  # one program to compile, not three
    with pytest.raises(ValueError, match=r"off by .* eV/atom .* tolerance"):
        specialise.specialise(plain_one.config, plain_one.variables, species=["Si"], tolerance={"forces": 1e-18})


def test_elements_outside_the_set_are_refused(plain_one, fast_one):
    plain, fast = plain_one, fast_one
    with pytest.raises(ValueError, match="Si"):
        fast.evaluate([testing.structures()["Si"]])
    with pytest.raises(ValueError, match="the model lacks U"):
        plain.specialise(["U", "O"])
    assert fast.specialise(["O"]) is fast
    with pytest.raises(ValueError, match="specialised already"):
        specialise.specialise(fast.config, fast.variables, species=["O"])
    for wrong in ([], ["Xx"]):
        with pytest.raises(ValueError, match="at least one"):
            plain.specialise(wrong)


def test_splines_are_smooth_and_end_at_the_cutoff(fast):
    """Four derivatives of the tabulated functions are continuous across a knot; nothing is left at the cutoff."""
    spline, r_max = fast.config.spline, fast.config.r_max
    W = np.asarray(fast.variables["constants"]["interactions_1"]["radial"])[:, 0, 0]

    def value(r):
        phi, first = spline_weights(spline, r.reshape(1, 1), pair=np.zeros((1, 1), np.int32), r_max=r_max)
        return (phi[0, 0] * jax.numpy.asarray(W)[first[0] + np.arange(TERMS)]).sum()

    with jax.enable_x64(True):
        knot, f = spline.start + 40 * spline.step, value
        for _ in range(5):
            left, right = (float(f(jax.numpy.float64(knot + e))) for e in (-1e-9, 1e-9))
            assert abs(left - right) < 1e-5 * max(1.0, abs(left))
            f = jax.grad(f)
        assert abs(float(value(jax.numpy.float64(r_max * (1 - 1e-12))))) < 1e-7
        assert float(value(jax.numpy.float64(r_max))) == 0.0
