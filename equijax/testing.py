"""What tests of a potential need, shipped for users who build on it: tolerances, random models, pair potentials whose
answers are known on paper, equivariance."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.build import bulk
from scipy.spatial.transform import Rotation

from equijax import couplings, potential
from equijax.config import ModelConfig
from equijax.forcefield import ForceField
from equijax.graph.fields import Topology
from equijax.potential import Evaluated

# Largest difference accepted between two routes to the same quantity, by dtype of the computation.
TOLERANCE = {
    "float64": {"energy": 1e-9, "forces": 1e-8, "stress": 1e-10, "hessian": 1e-8},  # eV/atom, eV/A, eV/A^3, eV/A^2
    "float32": {"energy": 1e-5, "forces": 1e-4, "stress": 1e-6, "hessian": 1e-3},
}


def random_config(
    channels: int = 8, lmax: int = 1, *, species: tuple[int, ...] = (8, 11, 12, 14, 17, 20, 22), **changes: Any
) -> ModelConfig:
    """A ModelConfig of the MACE-MP-0b3 architecture; keyword arguments replace any of its options.

    The defaults (8 channels, 4 A cutoff) compile in seconds; channels=128, r_max=6, species=range(1, 90),
    num_radial=10 is the published shape.
    """
    options = {
        "species": species,
        "heads": ("Default",),
        "r_max": 4.0,
        "hidden_irreps": "+".join(f"{channels}x{l}{'eo'[l % 2]}" for l in range(lmax + 1)),
        "max_ell": 3,
        "num_interactions": 2,
        "interaction_first": "RealAgnosticDensityInteractionBlock",
        "interaction": "RealAgnosticDensityResidualInteractionBlock",
        "radial_basis": "bessel",
        "num_radial": 8,
        "distance_transform": "agnesi",
        "cutoff_power": 5,
        "apply_cutoff": True,
        "radial_mlp": (64, 64, 64),
        "readout_mlp": 16,
        "gate": "silu",
        "avg_num_neighbors": 30.0,
        "pair_repulsion": True,
        "zbl_power": 5,
        "scale_shift": True,
    } | changes
    num = options["num_interactions"]
    options.setdefault("correlation", (3,) * num)
    options.setdefault(
        "contraction_paths", contraction_paths(lmax, options["max_ell"], correlation=options["correlation"])
    )
    return ModelConfig(**options)


def contraction_paths(lmax: int, max_ell: int, *, correlation: tuple[int, ...]) -> tuple:
    """Path counts of the non-reduced U tensors for hidden features up to `lmax`, scalars only after the last step."""
    last = len(correlation) - 1
    return tuple(
        tuple(
            tuple(couplings.u_tensor(max_ell, L, degree=nu).shape[-1] for nu in range(1, correlation[t] + 1))
            for L in range((0 if t == last else lmax) + 1)
        )
        for t in range(last + 1)
    )


def random_forcefield(config: ModelConfig | None = None, seed: int = 0) -> ForceField:
    """A ForceField of random weights; energies are of order 1 eV per atom so that tolerances mean something."""
    config = random_config() if config is None else config
    variables = potential.init_variables(config, seed)
    rng = np.random.default_rng(seed)
    variables["constants"]["atomic_energies"] = rng.normal(size=(len(config.heads), len(config.species)))
    return ForceField(config, variables, {"source": f"random weights, seed {seed}"})


@dataclass(frozen=True)
class PairConfig:
    """Atoms with a pair potential in the place of a MACE: everything built on `potential.energy` works with it."""

    energy: Callable[[jax.Array], jax.Array]  # V(r) in eV of a pair, r in A
    r_max: float  # A, where it is cut off sharply: keep it between shells of neighbours
    species: tuple[int, ...]
    heads: tuple[str, ...] = ("Default",)

    def to_dict(self) -> dict:
        """What there is to tell of it."""
        return asdict(self) | {"energy": repr(self.energy)}

    def node_energies(self, variables: dict, vectors: jax.Array, topology: Topology) -> jax.Array:
        """[N] eV, half of each pair's energy to either atom."""
        r = jnp.sqrt((vectors**2).sum(-1))
        return 0.5 * jnp.where(r < self.r_max, self.energy(r), 0.0).sum(1)


def pair_forcefield(energy: Callable, r_max: float, *, species: tuple[int, ...]) -> ForceField:
    """A ForceField of a `PairConfig`."""
    constants = {"atomic_energies": np.zeros((1, len(species)))}
    config: Any = PairConfig(energy, r_max, species)  # an `OtherConfig`
    return ForceField(config, {"params": {}, "constants": constants}, {})


def rattled(
    name: str = "NaCl",
    structure: str = "rocksalt",
    *,
    a: float = 5.6,
    repeat: tuple[int, int, int] = (1, 1, 1),
    seed: int = 0,
) -> Atoms:
    """A rattled conventional cell (0.05 A), so that no derivative vanishes by symmetry."""
    atoms = bulk(name, structure, a=a, cubic=True) * repeat
    atoms.rattle(0.05, seed=seed)
    return atoms


def assert_equivariant(evaluate: Callable[[Atoms], Evaluated], atoms: Atoms, *, tolerance: dict, seed: int = 0) -> None:
    """Energy invariant, forces covariant under a random improper rotation, translation and permutation.

    Args:
      evaluate: structure -> its energy and forces.
      atoms: any structure.
      tolerance: "energy" (per atom) and "forces", e.g. an entry of `TOLERANCE`.
      seed: of the random transformation.

    Raises:
      AssertionError: with the largest deviation.
    """
    rng = np.random.default_rng(seed)
    R = -Rotation.from_quat(rng.normal(size=4)).as_matrix()  # uniform
    order = rng.permutation(len(atoms))
    moved = atoms[order]
    moved.set_cell(atoms.cell.array @ R.T)
    moved.positions = (atoms.positions @ R.T + rng.normal(size=3))[order]
    before, after = evaluate(atoms), evaluate(moved)
    np.testing.assert_allclose(after.energy, before.energy, rtol=0, atol=tolerance["energy"] * len(atoms))
    np.testing.assert_allclose(after.forces, (before.forces @ R.T)[order], rtol=0, atol=tolerance["forces"])


def structures() -> dict[str, Atoms]:
    """One of each kind of structure a potential must get right; elements O, Na, Mg, Si, Cl, Ca, Ti only."""
    rng = np.random.default_rng(7)
    places = [[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    perovskite = Atoms("CaTiO3", scaled_positions=places, cell=[3.85] * 3, pbc=True) * (2, 1, 1)
    perovskite.rattle(0.05, rng=rng)
    triclinic = rattled()
    strain = np.eye(3) + 0.06 * rng.normal(size=(3, 3))
    triclinic.set_cell(triclinic.cell.array @ strain, scale_atoms=True)
    slab = rattled()[:6]
    slab.set_cell([5.6, 5.6, 25.0])
    slab.pbc = [True, True, False]
    molecule = Atoms("OSiNaCl", positions=[[0, 0, 0], [1.6, 0.1, 0], [0.3, 2.2, 0.4], [2.1, 1.9, 1.8]])
    return {
        "Si": rattled("Si", "diamond", a=5.43),
        "NaCl": rattled(),
        "hcp Mg": bulk("Mg", "hcp", a=3.2, c=5.2) * (2, 1, 1),
        "perovskite": perovskite,
        "triclinic": triclinic,
        "one-atom cell": bulk("Na", "bcc", a=3.0),
        "molecule": molecule,
        "slab": slab,
        "isolated atom": Atoms("Na"),
        "high pressure": rattled("Si", "diamond", a=3.6),
    }
