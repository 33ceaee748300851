"""float32 products on accelerators: read from the traced programs, since a CPU multiplies in full either way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from equijax import couplings, derivatives, graph, potential, precision
from equijax.md import boxes
from equijax.md.potential import energy_in
from equijax.testing import random_config, random_forcefield, rattled
from tests.samples import CHEAP

FF = random_forcefield(random_config(**CHEAP))

ATOMS = rattled()
SPACE = boxes.Space(False, (True,) * 3, FF.config.r_max, 0.5)


def products(jaxpr) -> list:
    """(precision, shapes of the factors) of every float32 product in a program, those of inner programs too."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general" and equation.invars[0].aval.dtype == np.float32:
            found.append((equation.params["precision"], [v.aval.shape for v in equation.invars]))
        for inner in jaxprs_in_params(equation.params):
            found += products(inner)
    return found


def forces():
    batch = potential.cast(graph.from_atoms(ATOMS, FF.config), "float32")
    return jax.make_jaxpr(lambda v, g: derivatives.energy_forces_stress(FF.config, v, graph=g))(
        FF.device_variables(), batch
    )


def product_with_hessian():
    batch = potential.cast(graph.from_atoms(ATOMS, FF.config), "float32")
    R, variables = jnp.asarray(batch.nodes.positions), FF.device_variables()
    gradient = jax.grad(lambda R: potential.total_energy(FF.config, variables, graph=batch, positions=R))
    return jax.make_jaxpr(lambda R: jax.jvp(gradient, (R,), (jnp.ones_like(R),)))(R)


def dynamics():
    T = ATOMS.cell.array.T
    neighbor_fn, energy_fn = energy_in(T, SPACE, ff=FF, numbers=ATOMS.numbers)
    R = jnp.asarray(ATOMS.positions, jnp.float32)
    neighbors = neighbor_fn.allocate(R)

    def step(R, neighbors, variables, strain):
        neighbors = neighbors.update(R)
        return jax.grad(energy_fn, argnums=0)(R, neighbors, perturbation=strain, variables=variables)

    return jax.make_jaxpr(step)(R, neighbors, FF.device_variables(), jnp.eye(3))


PROGRAMS = {"forces": forces, "hessian product": product_with_hessian, "dynamics": dynamics}


@pytest.mark.parametrize("name", PROGRAMS)
def test_products_are_full_float32_unless_asked(name):
    assert precision.of_model() == "highest"
    found = products(PROGRAMS[name]().jaxpr)
    assert len(found) > 20
    full = jax.lax.Precision.HIGHEST
    assert [p for p in found if p[0] != (full, full)] == []


def test_less_can_be_asked_of_the_model_and_never_of_geometry():
    full = jax.lax.Precision.HIGHEST
    with jax.default_matmul_precision("tensorfloat32"):
        assert precision.of_model() == "tensorfloat32"
        found = products(dynamics().jaxpr)
    # cells and strains, and the constant matrices of spherical harmonics
    Y = couplings.harmonics(FF.config.max_ell)
    fixed = {(3, 3), Y.linear[:, 1:].shape[1:], Y.mix.shape}
    geometry = [shapes for p, shapes in found if p == (full, full)]
    assert len(geometry) > 3 and all(fixed & {y for s in shapes for y in (s, s[::-1])} for shapes in geometry)
    assert not [p for p, shapes in found if any(s == (3, 3) for s in shapes) and p != (full, full)]
    assert len(found) - len(geometry) > 20
