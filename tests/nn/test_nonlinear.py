"""Non-linear interactions, narrow convolutions, embedded charges, biased readouts, attention: a tiny model of each.

Numbers are compared with mace-torch in `tests/parity`; here everything that is made of a model must work for them too.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
from ase import Atoms

from equijax import graph, potential, pytrees, testing
from equijax.adapters import lora
from equijax.config import Compute, Embedding, ModelConfig, from_dict
from equijax.errors import InputError
from equijax.forcefield import ForceField
from equijax.md.boxes import Space
from equijax.md.potential import energy_in
from equijax.md.simulation import inputs
from tests.samples import check_second_derivatives, folded, low_symmetry

NONLINEAR = "RealAgnosticResidualNonLinearInteractionBlock"
ATTENTION = "RealAgnosticAttResidualInteractionBlock"
TINY = {"channels": 4, "species": (11, 14, 17), "max_ell": 1, "correlation": (2, 2), "radial_mlp": (8,), "r_max": 4.5}
SHAPES = {
    "non-linear": TINY
    | {
        "interaction_first": NONLINEAR,
        "interaction": NONLINEAR,
        "edge_channels": (2, 2),
        "apply_cutoff": False,
        "agnostic_product": True,
        "readout": "NonLinearBiasReadoutBlock",
        "heads": ("a", "b"),
        "embeddings": (Embedding("total_charge", 3, classes=5, offset=2), Embedding("total_spin", 3)),
        "embedding_readout": True,
    },
    "attention": TINY
    | {
        "interaction_first": ATTENTION,
        "interaction": ATTENTION,
        "apply_cutoff": False,
        "so3": True,
        "hidden_irreps": "4x0e+4x1e",
        "last_readout_only": True,
        "contraction_paths": (((1, 2), (1, 3)), ((1, 2),)),
    },
}


def model(name: str, **changes) -> ForceField:
    """Random weights, also of what starts at zero."""
    ff = testing.random_forcefield(testing.random_config(**SHAPES[name] | changes))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda w: w + 0.1 * rng.normal(size=w.shape), ff.variables["params"])
    return ForceField(ff.config, {**ff.variables, "params": params}, {}).with_head(ff.config.heads[-1])


@pytest.fixture(scope="module", params=SHAPES)
def ff(request):
    return model(request.param)


@pytest.fixture(scope="module")
def charged():
    return model("non-linear")


def salt(charge: float = 1) -> Atoms:
    atoms = testing.rattled()
    atoms.info["charge"] = charge
    return atoms


def test_configuration_survives_json(ff):
    assert from_dict(ModelConfig, json.loads(ff.config.to_json())) == ff.config


def test_energy_is_invariant_and_forces_rotate(ff):
    """Those of `so3` alone under proper rotations, which a molecule and its mirror image show."""

    def evaluate(atoms):
        return ff.evaluate([atoms], compute=Compute("float64"))[0]

    atoms = salt()
    if not ff.config.so3:
        testing.assert_equivariant(evaluate, atoms, tolerance=testing.TOLERANCE["float64"])
        return
    turned, mirrored = atoms.copy(), atoms.copy()
    turned.rotate(70.0, (1.0, 2.0, -0.5), rotate_cell=True)
    mirrored.set_cell(-atoms.cell.array, scale_atoms=True)
    energies = [evaluate(a).energy for a in (atoms, turned, mirrored)]
    assert abs(energies[1] - energies[0]) < 1e-11 < abs(energies[2] - energies[0])


@pytest.mark.parametrize("name", SHAPES)
def test_third_derivatives_are_finite_and_match_differences(name):
    """Of a crystal and an isolated atom in one padded batch, and of one interaction of each kind."""
    last = {key: SHAPES[name][key][1:] for key in ("edge_channels", "contraction_paths") if key in SHAPES[name]}
    ff = model(name, num_interactions=1, correlation=(2,), last_readout_only=False, **last)
    images = [salt(), Atoms("Na")]
    structures = [(a, graph.neighbour_list(a, ff.config.r_max)) for a in images]
    batch = graph.build(structures, ff.config, size=graph.round_up(graph.size_of(structures, ff.config)))
    u = np.random.default_rng(0).normal(size=batch.nodes.positions.shape)
    with jax.enable_x64(True):
        variables, x = ff.device_variables("float64"), batch.nodes.positions

        @jax.jit
        def derivatives(s):
            def energy(s):
                return potential.total_energy(ff.config, variables, graph=batch, positions=x + s * u)

            def slope(derivative):  # and the derivatives that it is made of, so that each is compiled once
                def extended(s):
                    values, slopes = jax.jvp(derivative, (s,), (1.0,))
                    return *values, slopes[-1]

                return extended

            return slope(slope(lambda s: (jax.grad(energy)(s),)))(s)

        at, plus, minus = (np.asarray(derivatives(s)) for s in (0.0, 1e-4, -1e-4))
    np.testing.assert_allclose(at[1:], (plus - minus)[:2] / 2e-4, rtol=1e-5)


def test_charges_of_structures_are_read_defaulted_and_refused(charged):
    """One batch of differently charged structures gives each its own energy."""

    def evaluate(*images):
        return [e.energy for e in charged.evaluate(list(images), compute=Compute("float64"))]

    neutral, plus = evaluate(testing.rattled(), salt(1))
    assert abs(plus - neutral) > 1e-6
    assert evaluate(salt(0), salt(1)) == pytest.approx([neutral, plus], abs=1e-9)
    for wrong in (0.5, 3, "one", np.nan):
        with pytest.raises(InputError, match="'charge'.*whole number from -2 to 2"):
            evaluate(salt(wrong))


def test_the_calculator_sees_that_the_charge_has_changed(charged):
    """ASE compares what an `Atoms` holds but its `info`."""
    atoms = salt(0)
    atoms.calc = charged.calculator()
    energies = [atoms.get_potential_energy()]
    atoms.info["charge"] = 1
    energies.append(atoms.get_potential_energy())
    expected = [e.energy for e in charged.evaluate([salt(0), salt(1)], compute=Compute("float64"))]
    assert energies == pytest.approx(expected, abs=1e-9)
    atoms.info["charge"] = 99
    with pytest.raises(InputError, match="'charge'"):
        atoms.get_potential_energy()


def test_dynamics_know_the_charge(charged):
    atoms = salt(-1)
    space = Space(False, (True, True, True), charged.config.r_max, 0.5)
    with jax.enable_x64(True):
        neighbor_fn, energy_fn = energy_in(
            atoms.cell.array.T, space, ff=charged, numbers=atoms.numbers, info=atoms.info
        )
        found = float(jax.jit(energy_fn)(atoms.positions, neighbor=neighbor_fn.allocate(atoms.positions)))
    expected = charged.evaluate([atoms], compute=Compute("float64"))[0].energy
    rows = [charged.config.species.index(z) for z in atoms.numbers]
    e0 = charged.variables["constants"]["atomic_energies"][charged.head_index, rows].sum()
    assert found == pytest.approx(expected - e0, abs=1e-8)


def test_a_restart_compares_the_charge(charged):
    """Charge 0 is what a structure without one has."""
    assert inputs(charged, salt(0)) == inputs(charged, testing.rattled()) != inputs(charged, salt(1))


def test_cutoff_is_smooth(charged):
    """An atom crosses the cutoff: energy and forces do not notice."""

    def at(r):
        atoms = Atoms("NaClNa", [[0, 0, 0], [2.4, 0, 0], [0, r, 0]])
        result = charged.evaluate([atoms], compute=Compute("float64"))[0]
        return np.append(result.forces, result.energy)

    r_max = charged.config.r_max
    np.testing.assert_allclose(at(r_max - 1e-5), at(r_max + 1e-5), rtol=0, atol=1e-9)


def test_specialised_model_is_the_same(charged):
    fast = folded(charged, (11, 17))
    found, expected = (f.evaluate([salt()], compute=Compute("float64"))[0] for f in (fast, charged))
    assert found.energy == pytest.approx(expected.energy, abs=1e-5)
    np.testing.assert_allclose(found.forces, expected.forces, rtol=0, atol=1e-5)


def test_attention_is_not_specialised():
    ff = testing.random_forcefield(testing.random_config(**SHAPES["attention"]))
    with pytest.raises(InputError, match="attention"):
        ff.specialise({"Na"})


def test_dynamical_matrices(ff):
    check_second_derivatives(ff, low_symmetry())


def test_default_adapters_fit_merge_and_learn(ff):
    """The energy of a crystal depends on every adapter."""
    adapters = lora.init_lora(ff.variables["params"], 2, alpha=2.0, rows=[0, 2])
    changed = jax.tree.map(lambda a: a + 0.1, adapters)
    for found in (lora.init_delta(ff.variables["params"]), changed):
        merged = lora.merge(ff.variables, found)
        assert jax.tree.map(np.shape, merged) == jax.tree.map(np.shape, ff.variables)
    batch, variables = graph.from_atoms(salt(), ff.config, heads=[ff.head_index]), ff.device_variables("float64")

    @jax.jit
    @jax.grad
    def slopes(arrays):
        params = lora.apply(variables["params"], lora.Adapters(arrays, changed.alpha, changed.rows))
        return potential.total_energy(ff.config, {**variables, "params": params}, graph=batch)

    with jax.enable_x64(True):
        found = pytrees.paths_of(jax.tree.map(np.asarray, slopes(changed.arrays)))
    assert not [path for path, x in found.items() if not np.isfinite(x).all() or not x.any()]


@pytest.mark.parametrize(
    "change", [{"edge_channels": (2,)}, {"embeddings": ()}, {"readout": "none"}, {"hidden_irreps": "4x0e+4x1e"}]
)
def test_contradicting_options_are_refused(charged, change):
    with pytest.raises(InputError):
        dataclasses.replace(charged.config, **change)
