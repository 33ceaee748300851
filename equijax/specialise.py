"""Fold everything that is constant for fixed weights and a fixed set of species: the same potential, but faster.

    fast = ff.specialise({"Si"})          # or atomic numbers; has the interface of ff
    atoms.calc = fast.calculator(dtype="float32")

Radial functions become quintic splines of the distance (`equijax.nn.folded`), adjacent linear maps one matrix, and
coupling coefficients and contraction weights one polynomial per species. The result is compared with the plain model in
float64 on rattled structures before it is handed out.
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import ase
import jax
import jraph
import numpy as np
from ase.data import atomic_numbers, covalent_radii

from equijax import derivatives, executables, folding, graph, potential
from equijax.config import ModelConfig
from equijax.errors import InputError
from equijax.nn import kernels
from equijax.nn.folded import TERMS

STEPS_A = (0.04, 0.02, 0.01)  # spacing of spline knots, the first that meets the tolerances is taken
MAX_SPECIES = 20  # 210 tables of 1.1 MB each on the published shape in float32
TOLERANCE = {"energy": 1e-6, "forces": 1e-5}  # eV/atom, eV/A
CHECK_SCALES = (0.85, 1.0, 1.25)  # of the distance between neighbours, in units of touching covalent spheres
CHECK_RATTLE_A = 0.15


class Errors(NamedTuple):
    """Largest errors against the plain model, both in float64."""

    energy: float  # eV/atom
    forces: float  # eV/A
    hvp: float  # eV/A^2, of the Hessian times a random displacement of unit length
    step: float  # A, between the knots that were chosen


class Specialised(NamedTuple):
    """A specialised model."""

    config: ModelConfig
    variables: dict
    errors: Errors


def specialise(
    config: ModelConfig, variables: dict, *, species: Iterable[int | str], tolerance: dict | None = None
) -> Specialised:
    """Fold a model for some of its species.

    Args:
      config, variables: of a plain model.
      species: atomic numbers or chemical symbols.
      tolerance: largest error accepted, {"energy": eV/atom, "forces": eV/A}; `TOLERANCE` by default.

    Raises:
      InputError: no species, species the model lacks, more than `MAX_SPECIES`, or a model that is specialised already;
        tolerances that the finest table does not meet.
    """
    chosen = numbers(config, species)
    if config.spline is not None:
        raise InputError(f"the model is specialised already, for {_symbols(config.species)}: specialise the plain one")
    if any("Att" in config.interaction_name(t) for t in range(config.num_interactions)):
        raise InputError("radial functions of a model with attention are no functions of the distance: use it as it is")
    tolerance = TOLERANCE | (tolerance or {})
    _compile_kernels(config)
    structures = _check_structures(config, chosen)
    expected = _evaluate(config, variables, structures=structures)
    for step in STEPS_A:
        small = folding.shrink(config, chosen, step=step)
        folded = {"params": {}, "constants": folding.fold(config, variables, small=small)}
        found = _evaluate(small, folded, structures=structures)
        errors = Errors(*(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True)), step=step)
        if all(getattr(errors, name) <= largest for name, largest in tolerance.items()):
            return Specialised(small, folded, errors)
    raise InputError(
        f"specialised for {_symbols(chosen)}, the model would be off by {errors.energy:.1e} eV/atom and "
        f"{errors.forces:.1e} eV/A even with knots {STEPS_A[-1]} A apart; the tolerance is "
        f"{tolerance['energy']:.1e} and {tolerance['forces']:.1e}: raise it, or use the plain model"
    )


def summary(config: ModelConfig, errors: Errors) -> str:
    """One line: for what, and how exact."""
    return (
        f"specialised for {_symbols(config.species)}: within {errors.energy:.1e} eV/atom, "
        f"{errors.forces:.1e} eV/A and {errors.hvp:.1e} eV/A^2 of the plain model "
        f"(splines with knots {errors.step} A apart)"
    )


def _compile_kernels(config: ModelConfig) -> None:
    """Start compiling C++ kernels on other cores: the check waits for those of float64, a later call for float32."""
    kernels.start(config, "float64")
    for dtype in ("float64", "float32"):
        kernels.start(config, dtype, terms=TERMS)


def _check_structures(config: ModelConfig, numbers: Sequence[int]) -> list[tuple[ase.Atoms, graph.Edges]]:
    """Rattled crystals of random occupation, from compressed to stretched, that hold every species."""
    rng = np.random.default_rng(0)
    out = []
    for scale in CHECK_SCALES:
        chosen = rng.permutation(np.resize(numbers, max(8, len(numbers))))
        spacing = scale * 2 * covalent_radii[chosen].mean()
        side = math.ceil(len(chosen) ** (1 / 3))
        grid = np.stack(np.meshgrid(*[np.arange(side)] * 3), axis=-1).reshape(-1, 3)[: len(chosen)]
        atoms = ase.Atoms(chosen, spacing * grid, cell=[side * spacing] * 3, pbc=True)
        atoms.positions += rng.normal(scale=CHECK_RATTLE_A, size=atoms.positions.shape)
        out.append((atoms, graph.listed(atoms, config)))
    return out


class _Found(NamedTuple):
    """Results of a model on the structures that it is checked with, in float64."""

    energy: np.ndarray  # [G] per atom
    forces: np.ndarray  # [N, 3]
    hvp: np.ndarray  # [N, 3] the Hessian times a fixed random displacement


def _evaluate(config: ModelConfig, variables: dict, *, structures: list[tuple[ase.Atoms, graph.Edges]]) -> _Found:
    batch = graph.build(structures, config)
    num = sum(len(atoms) for atoms, _ in structures)
    tangent = np.random.default_rng(1).normal(size=batch.nodes.positions.shape)
    tangent[num:] = 0
    sizes = np.repeat([len(atoms) for atoms, _ in structures], [len(atoms) for atoms, _ in structures])
    tangent[:num] /= np.sqrt(3 * sizes)[:, None]  # of unit length in each structure, on average

    @partial(jax.jit, compiler_options=executables.compiler_options(executables.HASTY))  # run once
    def compute(variables: dict, batch: jraph.GraphsTuple, tangent: jax.Array) -> tuple[jax.Array, ...]:
        energies = potential.per_graph(batch, potential.energy(config, variables, graph=batch))
        return energies, *derivatives.gradient_and_product(config, variables, graph=batch, tangent=tangent)

    with jax.enable_x64(True):
        cast = potential.cast(variables, "float64"), potential.cast(batch, "float64")
        energies, gradient, hvp = (np.asarray(x) for x in compute(*cast, tangent))
    counts = np.array([len(atoms) for atoms, _ in structures])
    return _Found(energies[: len(counts)] / counts, -gradient[:num], hvp[:num])


def numbers(config: ModelConfig, species: Iterable[int | str]) -> tuple[int, ...]:
    """Sorted atomic numbers of `species`; raises what `specialise` does."""
    species = [species] if isinstance(species, str | int | np.integer) else list(species)
    unknown = [s for s in species if isinstance(s, str) and s not in atomic_numbers]
    if unknown or not species:
        raise InputError(f"species {species}: expected atomic numbers or chemical symbols, at least one")
    chosen = tuple(sorted({atomic_numbers[s] if isinstance(s, str) else int(s) for s in species}))
    if missing := [z for z in chosen if z not in config.species]:
        raise InputError(f"the model lacks {_symbols(missing)}; it has {_symbols(config.species)}")
    if len(chosen) > MAX_SPECIES:
        raise InputError(
            f"{len(chosen)} species: at most {MAX_SPECIES} can be specialised together; use the plain model"
        )
    return chosen


def _symbols(numbers: Iterable[int]) -> str:
    return ", ".join(ase.data.chemical_symbols[z] if 0 <= z < 119 else str(z) for z in numbers)
