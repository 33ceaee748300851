"""The model: symmetry, smoothness, finite derivatives, number of parameters."""

import jax
import numpy as np
import pytest
from ase import Atoms

from equijax import graph, potential, testing
from equijax.config import Compute

VARIANTS = {
    "0b3": {},
    "MP-0 large": {
        "lmax": 2,
        "interaction_first": "RealAgnosticInteractionBlock",
        "interaction": "RealAgnosticResidualInteractionBlock",
        "distance_transform": "none",
        "pair_repulsion": False,
    },
    "one interaction, gaussian": {"num_interactions": 1, "radial_basis": "gaussian", "distance_transform": "soft"},
    "three interactions, degree 2, scalars": {"num_interactions": 3, "correlation": (2, 2, 2), "lmax": 0},
    "two heads, bare radials": {"heads": ("a", "b"), "apply_cutoff": False, "scale_shift": False},
}


@pytest.fixture(scope="module")
def lean():
    """Two interactions, few couplings: third derivatives of more take half a minute to compile."""
    return testing.random_forcefield(testing.random_config(channels=4, max_ell=1, radial_mlp=(16,), correlation=(3, 2)))


@pytest.mark.parametrize("variant, dtype", [("0b3", "float32"), *((name, "float64") for name in VARIANTS)])
def test_energy_is_invariant_and_forces_rotate(variant, dtype):
    ff = testing.random_forcefield(testing.random_config(channels=4, radial_mlp=(16,), **VARIANTS[variant]))
    ff = ff.with_head(ff.config.heads[-1])
    testing.assert_equivariant(
        lambda atoms: ff.evaluate([atoms], compute=Compute(dtype))[0],
        testing.rattled(),
        tolerance=testing.TOLERANCE[dtype],
    )


def test_every_derivative_up_to_third_order_is_finite_and_matches_differences(lean):
    """All kinds of structure in one padded batch; each derivative against differences of the last."""
    ff = lean
    images = list(testing.structures().values())
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        variables = ff.device_variables("float64")
        structures = [(a, graph.neighbour_list(a, ff.config.r_max)) for a in images]
        size = graph.round_up(graph.size_of(structures, ff.config))
        batch = graph.build(structures, ff.config, size=size)
        x = batch.nodes.positions
        u = rng.normal(size=x.shape)

        @jax.jit
        def derivatives(s):
            def e(x):
                return potential.total_energy(ff.config, variables, graph=batch, positions=x)

            def contracted(x):
                gradient, product = jax.jvp(jax.grad(e), (x,), (u,))
                return (u * product).sum(), (gradient, product)

            third, lower = jax.grad(contracted, has_aux=True)(x + s * u)
            return *lower, third

        h = 1e-4
        at, plus, minus = (derivatives(s) for s in (0.0, h, -h))
        for order in range(2):
            difference = (plus[order] - minus[order]) / (2 * h)
            np.testing.assert_allclose(at[order + 1], difference, atol=2e-5 * np.abs(difference).max())
    third = np.asarray(at[2])
    assert np.isfinite(third).all()
    padding = np.repeat(np.arange(size.graphs), batch.n_node) == size.graphs - 1
    assert padding.any() and not third[padding].any(), "padding must not feel any force"


def test_energy_force_and_curvature_are_continuous_at_the_cutoff(lean):
    """An atom crosses the cutoff: the graph gains an edge, the energy and two derivatives must not notice."""
    ff = lean
    r_max, pool = ff.config.r_max, graph.SizePool()
    eps = 1e-5

    @jax.jit
    def values(batch):
        x, u = batch.nodes.positions, jax.numpy.zeros_like(batch.nodes.positions).at[2, 1].set(1.0)

        def e(s):
            return potential.total_energy(ff.config, ff.device_variables("float64"), graph=batch, positions=x + s * u)

        d1 = jax.grad(e)
        return jax.numpy.stack([e(0.0), d1(0.0), jax.grad(d1)(0.0)])

    def derivatives(r):
        atoms = Atoms("NaClNa", positions=[[0, 0, 0], [2.4, 0, 0], [0, r, 0.0]])
        with jax.enable_x64(True):
            batch = graph.from_atoms(atoms, ff.config, pool=pool)
            return int(batch.edges.mask.sum()), values(batch)

    (n_in, inside), (n_out, outside) = derivatives(r_max - eps), derivatives(r_max + eps)
    assert n_in == n_out + 2, "the test must cross the cutoff"
    # the slopes bound how far value and force move over 2 eps; the curvature goes to zero linearly
    np.testing.assert_allclose(inside[:2], outside[:2], atol=1e-7)
    np.testing.assert_allclose(inside[2], outside[2], atol=2e-3)


def test_published_shape_has_the_published_number_of_parameters():
    config = testing.random_config(channels=128, species=tuple(range(1, 90)), num_radial=10, r_max=6.0)
    params = potential.init_variables(config)["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == 9_063_204
