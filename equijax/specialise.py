"""Fold everything that is constant for fixed weights and a fixed set of species: the same potential, but faster.

    fast = ff.specialise({"Si"})          # or atomic numbers; has the interface of ff
    atoms.calc = fast.calculator(dtype="float32")

Radial functions become quintic splines of the distance (`equijax.nn.folded`), adjacent linear maps one matrix, and
coupling coefficients and contraction weights one polynomial per species. The result is compared with the plain model in
float64 on rattled structures before it is handed out.
"""

import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import ase
import jax
import jraph
import numpy as np
from ase.data import atomic_numbers, covalent_radii

from equijax import couplings, derivatives, graph, potential
from equijax.config import ModelConfig, Spline
from equijax.errors import InputError
from equijax.kernels import convolution, polynomial
from equijax.nn.convolution import kernel_platform
from equijax.nn.folded import DEGREE, TERMS, num_pairs, pair_index
from equijax.nn.radial import RadialBasis, RadialMLP

START_A = 0.25  # where tables begin: closer atoms repel by tens of keV, so how accurate the rest is does not matter
STEPS_A = (0.04, 0.02, 0.01)  # spacing of spline knots, the first that meets the tolerances is taken
SAMPLES = 3  # of a radial function in an interval between knots, for its least-squares spline
MAX_SPECIES = 20  # 210 tables of 1.1 MB each on the published shape in float32
TOLERANCE = {"energy": 1e-6, "forces": 1e-5}  # eV/atom, eV/A
CHECK_SCALES = (0.85, 1.0, 1.25)  # of the distance between neighbours, in units of touching covalent spheres
CHECK_RATTLE_A = 0.15


def specialise(
    config: ModelConfig, variables: dict, species: Iterable[int | str], tolerance: dict | None = None
) -> tuple[ModelConfig, dict, dict]:
    """Fold a model for some of its species.

    Args:
      config, variables: of a plain model.
      species: atomic numbers or chemical symbols.
      tolerance: largest error accepted, {"energy": eV/atom, "forces": eV/A}; `TOLERANCE` by default.

    Returns:
      config and variables of the specialised model; its largest errors against the plain model, both in float64:
      {"energy": eV/atom, "forces": eV/A, "hvp": eV/A^2, "step": A}, where hvp is the largest component of the
      Hessian times a random displacement of unit length.

    Raises:
      InputError: no species, species the model lacks, more than `MAX_SPECIES`, or a model that is specialised already;
        tolerances that the finest table does not meet.
    """
    chosen = numbers(config, species)
    if config.spline is not None:
        raise InputError(f"the model is specialised already, for {_symbols(config.species)}: specialise the plain one")
    tolerance = TOLERANCE | (tolerance or {})
    _compile_kernels(config)
    structures = _check_structures(config, chosen)
    expected = _evaluate(config, variables, structures)
    for step in STEPS_A:
        small = shrink(config, chosen, step)
        folded = {"params": {}, "constants": fold(config, variables, small)}
        found = _evaluate(small, folded, structures)
        errors = {k: float(np.abs(found[k] - expected[k]).max()) for k in expected} | {"step": step}
        if all(errors[k] <= tolerance[k] for k in tolerance):
            return small, folded, errors
    raise InputError(
        f"specialised for {_symbols(chosen)}, the model would be off by {errors['energy']:.1e} eV/atom and "
        f"{errors['forces']:.1e} eV/A even with knots {STEPS_A[-1]} A apart; the tolerance is "
        f"{tolerance['energy']:.1e} and {tolerance['forces']:.1e}: raise it, or use the plain model"
    )


def summary(config: ModelConfig, errors: dict) -> str:
    """One line: for what, and how exact."""
    return (
        f"specialised for {_symbols(config.species)}: within {errors['energy']:.1e} eV/atom, "
        f"{errors['forces']:.1e} eV/A and {errors['hvp']:.1e} eV/A^2 of the plain model "
        f"(splines with knots {errors['step']} A apart)"
    )


def shrink(config: ModelConfig, species: tuple[int, ...], step: float) -> ModelConfig:
    """Hyper-parameters of the specialised model: some of the species, and splines with knots `step` A apart."""
    intervals = math.ceil((config.r_max - START_A) / step)
    return dataclasses.replace(config, species=species, spline=Spline(START_A, step, intervals + DEGREE))


def fold(config: ModelConfig, variables: dict, small: ModelConfig) -> dict:
    """Arrays (float64) of the specialised model `small` from those of the plain model `config`.

    Per interaction t: up [C, C] per degree ([S, C] of the embedding for t = 0), radial [pairs rows, P, C], density
    [pairs rows], mix [P_l C, S or 1, C] per degree, skip and contraction per output degree, linear [C, C] per output
    degree; beside them E0, scale, shift, ZBL constants and readouts.
    """
    rows = np.array([config.species.index(z) for z in small.species])
    params, constants = (
        jax.tree.map(lambda x: np.asarray(x, np.float64), variables[k]) for k in ("params", "constants")
    )
    embedding = params["node_embedding"][rows] / math.sqrt(len(config.species))
    ones = np.ones(len(config.heads))
    out = {
        "atomic_energies": constants["atomic_energies"][:, rows],
        "scale": constants.get("scale", ones) if config.scale_shift else ones,
        "shift": constants.get("shift", 0 * ones) if config.scale_shift else 0 * ones,
    }
    if config.pair_repulsion:
        out["zbl"] = constants["zbl"]
    tables = _tables(config, params, constants, small)
    for t in range(config.num_interactions):
        out[f"interactions_{t}"] = tables[t] | _linear_maps(config, params, constants, rows, embedding, t)
        name = f"readouts_{t}"
        out[name] = {"params": params[name]} | ({"constants": constants[name]} if name in constants else {})
    return out


def _linear_maps(
    config: ModelConfig, params: dict, constants: dict, rows: np.ndarray, embedding: np.ndarray, t: int
) -> dict:
    """Everything of interaction t that is a matrix: see `fold`."""
    block, product = params[f"interactions_{t}"], params[f"products_{t}"]
    name, channels = config.interaction_name(t), config.channels
    up = [block["linear_up"][f"l{l}"] / math.sqrt(channels) for l in range(config.input_lmax(t) + 1)]
    skip_norm = 1 / math.sqrt(channels * len(config.species))
    skip = [w[:, rows] * skip_norm for _, w in sorted(block["skip_tp"].items())]
    mix = []
    for l in range(config.max_ell + 1):
        w = block["linear"][f"l{l}"]  # [P_l, C, C]
        w = w.reshape(-1, channels) / math.sqrt(w.shape[0] * channels)
        w = w if "Density" in name else w / config.avg_num_neighbors
        mix.append(w[:, None] if "Residual" in name else np.einsum("xc,czd->xzd", w, skip[l]))
    out = {"up": embedding @ up[0] if t == 0 else up, "mix": mix}
    if "Residual" in name:
        out |= {"skip": skip} | ({"embedding": embedding} if t == 0 else {})
    out["contraction"], out["linear"] = [], []
    for L in range(config.output_lmax(t) + 1):
        w, u = product[f"contraction_l{L}"], constants[f"products_{t}"][f"contraction_l{L}"]
        names = [f"l{L}_nu{nu}" for nu in range(1, config.correlation[t] + 1)]
        out["contraction"].append(np.concatenate([np.einsum("qp,zpc->zqc", u[n], w[n][rows]) for n in names], axis=1))
        out["linear"].append(product["linear"][f"l{L}"] / math.sqrt(channels))
    return out


def _tables(config: ModelConfig, params: dict, constants: dict, small: ModelConfig) -> list[dict]:
    """Per interaction {"radial": [pairs rows, P, C], "density": [pairs rows]}, stacked by pair of species."""
    from scipy.interpolate import make_lsq_spline  # not at the top: few models need it

    spline = small.spline
    intervals = spline.rows - DEGREE
    r = np.linspace(spline.start, config.r_max, SAMPLES * intervals + 1)
    knots = spline.start + spline.step * np.arange(-DEGREE, intervals + DEGREE + 1)
    coefficients = [None] * num_pairs(small)
    for i, a in enumerate(small.species):
        for j, b in enumerate(small.species[: i + 1]):
            pair = int(pair_index(small, np.array(i), np.array(j)))
            if coefficients[pair] is None:
                functions = _radial_functions(config, params, constants, r, a, b)
                coefficients[pair] = make_lsq_spline(r, functions, knots, DEGREE).c
    stacked = np.concatenate(coefficients)
    tables, first = [], 0
    for t in range(config.num_interactions):
        mlp = params[f"interactions_{t}"]["radial_mlp"]
        last = mlp[f"layer{len(config.radial_mlp)}"]  # [U, P, C]
        hidden = stacked[:, first : first + len(last)]
        tables.append({"radial": np.einsum("xu,upc->xpc", hidden, last / math.sqrt(len(last)))})
        first += len(last)
        if "Density" in config.interaction_name(t):
            tables[-1]["density"] = stacked[:, first]
            first += 1
    return tables


def _radial_functions(config: ModelConfig, params: dict, constants: dict, r: np.ndarray, a: int, b: int) -> np.ndarray:
    """[len(r), F] hidden units of the radial MLP, and the density's edge function, of every interaction in turn."""
    with jax.enable_x64(True):
        shape = (1, len(r))
        radial = {"constants": constants.get("radial", {})}
        basis, cutoff = RadialBasis(config).apply(radial, r[None], np.full(shape, a), np.full(shape, b))
        out = []
        for t in range(config.num_interactions):
            name = f"interactions_{t}"
            given = {"params": params[name]["radial_mlp"], "constants": constants[name]["radial_mlp"]}
            hidden, _ = RadialMLP(config, len(_paths(config, t))).apply(given, basis)
            factor = np.ones((len(r), 1)) if config.apply_cutoff else np.asarray(cutoff)[0, :, None]
            out.append(np.asarray(hidden)[0] * factor)
            if "Density" in config.interaction_name(t):
                w = params[name]["density"] / math.sqrt(config.num_radial)
                out.append(np.tanh((np.asarray(basis)[0] @ w) ** 2) * factor)
    return np.concatenate(out, axis=1)


def _compile_kernels(config: ModelConfig) -> None:
    """Start compiling C++ kernels on other cores: the check waits for those of float64, a later call for float32."""
    if kernel_platform(config.channels, "float64") != "cpu":
        return
    with_tables = [tuple(map(tuple, _paths(config, t))) for t in range(config.num_interactions)]
    jobs = [partial(convolution.target, paths, 0, config.channels, "float64") for paths in with_tables[1:]]
    for dtype in ("float64", "float32"):
        jobs += [partial(convolution.target, paths, TERMS, config.channels, dtype) for paths in with_tables]
        variables = (config.max_ell + 1) ** 2
        jobs.append(partial(polynomial.target, max(config.correlation), variables, config.channels, dtype))
    pool = ThreadPoolExecutor(os.cpu_count())
    for job in jobs:
        pool.submit(job)  # what goes wrong there goes wrong again, and is said, where the kernel is needed
    pool.shutdown(wait=False)


def _paths(config: ModelConfig, t: int) -> list:
    return couplings.conv_paths(config.input_lmax(t), config.max_ell, config.max_ell)


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
        out.append((atoms, graph.neighbour_list(atoms, config.r_max)))
    return out


def _evaluate(
    config: ModelConfig, variables: dict, structures: list[tuple[ase.Atoms, graph.Edges]]
) -> dict[str, np.ndarray]:
    """energy per atom [G], forces [N, 3] and the Hessian times a fixed random displacement, in float64."""
    batch = graph.build(structures, config)
    num = sum(len(atoms) for atoms, _ in structures)
    tangent = np.random.default_rng(1).normal(size=batch.nodes.positions.shape)
    tangent[num:] = 0
    sizes = np.repeat([len(atoms) for atoms, _ in structures], [len(atoms) for atoms, _ in structures])
    tangent[:num] /= np.sqrt(3 * sizes)[:, None]  # of unit length in each structure, on average

    # run once, so compiled without optimisation, in half the time
    @partial(
        jax.jit, compiler_options={"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    )
    def compute(variables: dict, batch: jraph.GraphsTuple, tangent: jax.Array) -> tuple[jax.Array, ...]:
        energies = potential.per_graph(batch, potential.energy(config, variables, batch))
        return energies, *derivatives.gradient_and_product(config, variables, batch, tangent)

    with jax.enable_x64(True):
        cast = potential.cast(variables, "float64"), potential.cast(batch, "float64")
        energies, gradient, hvp = (np.asarray(x) for x in compute(*cast, tangent))
    counts = np.array([len(atoms) for atoms, _ in structures])
    return {"energy": energies[: len(counts)] / counts, "forces": -gradient[:num], "hvp": hvp[:num]}


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
