"""Which of many structures are worth a DFT calculation: those that would teach a model most.

| by          | each next one is the candidate                                                                      |
| ----------- | --------------------------------------------------------------------------------------------------- |
| farthest    | farthest from all chosen before, in the model's node features                                       |
| gradients   | that raises log det(1 + J J^T) most, J the derivatives of energies and forces by adapters' numbers  |
| uncertainty | whose forces the members of a committee disagree on most                                            |
| random      | drawn                                                                                               |

The second is D-optimal design (Fedorov, Theory of Optimal Experiments, 1972) for the linear model that fine-tuning is
close to its start: J is in units of the errors of labels and of a prior of the numbers, so that J J^T compares what a
candidate says with what is known. Forces enter by their components along a few random directions of all atoms.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import ase
import jax
import jax.numpy as jnp
import jraph
import numpy as np

from equijax import derivatives, descriptors, executables, graph, outputs, potential, structures
from equijax.adapters import committee, lora
from equijax.adapters.committee import Committee
from equijax.adapters.lora import Adapters
from equijax.config import Compute, ModelConfig
from equijax.data import rattle, select
from equijax.errors import InputError
from equijax.finetune.defaults import LORA_TARGETS
from equijax.finetune.options import SelectConfig
from equijax.forcefield import ForceField

RANK = 8  # of the adapters whose numbers the derivatives are taken by
PRIOR = 0.1  # standard deviation of a trained number of an adapter
ENERGY_EV, FORCE_EV_A = 0.002, 0.02  # what labels are trusted to: per atom, per component
DIRECTIONS = 4  # random ones of all atoms at once, for forces


class Chosen(NamedTuple):
    """What a run wrote."""

    kinds: list[str]  # "frame 3 of FILE", in the order of choice, POSCAR-001 first
    formulas: list[str]
    scores: list[float]  # of the way to choose: a distance, a gain of information, eV/A
    candidates: int  # so many there were
    by: str


@outputs.locked
def run(options: SelectConfig) -> Chosen:
    """Choose, and write what was chosen to `options.out`, in the order of choice, without labels.

    Raises:
      FileExistsError: structures of another run are there.
      FileNotFoundError: a file that does not exist.
      InputError: a structure the model cannot describe, fewer candidates than asked for, no committee where one is
        needed.
    """
    rattle.check_free(options.out)
    ff = committee.load_any(options.model, head=options.head)
    images, sources = _read(options.candidates)
    known, names = _read(options.labelled)
    for atoms, name in zip([*images, *known], [*sources, *names], strict=True):
        graph.check_atoms(atoms, ff.config, name=name)
    if not 1 <= options.count <= len(images):
        raise InputError(f"count = {options.count} must be between 1 and the {len(images)} candidates")
    order, scores = WAYS[options.by](ff, images, known, options)
    picked = [(_bare(images[i]), sources[i]) for i in order]
    rattle.write(options.out, picked, report={"options": asdict(options), "scores": scores, "candidates": len(images)})
    formulas = [atoms.get_chemical_formula() for atoms, _ in picked]
    return Chosen([sources[i] for i in order], formulas, scores, len(images), options.by)


def summary(chosen: Chosen) -> str:
    """The lines printed at the end of a run."""
    head = f"{len(chosen.kinds)} of {chosen.candidates} candidates by {chosen.by}, each with its {TELLS[chosen.by]}:"
    rows = enumerate(zip(chosen.scores, chosen.formulas, chosen.kinds, strict=True), start=1)
    lines = (f"  POSCAR-{i:03d}  {score:10.4g}  {formula:12s} {kind}" for i, (score, formula, kind) in rows)
    return "\n".join([head, *lines])


def _read(paths: Sequence) -> tuple[list[ase.Atoms], list[str]]:
    """Structures and what messages call them."""
    images = [(atoms, f"frame {i} of {path}") for path in paths for i, atoms in enumerate(structures.read_all(path))]
    return [atoms for atoms, _ in images], [name for _, name in images]


def _bare(atoms: ase.Atoms) -> ase.Atoms:
    """The structure alone, without labels."""
    return ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


Images = Sequence[ase.Atoms]
Order = tuple[list[int], list[float]]  # indices of what is chosen, and the score of each


def by_farthest(ff: ForceField, images: Images, known: Images, options: SelectConfig) -> Order:
    """Farthest points, beginning with the candidate farthest from all that is labelled, or from the mean."""
    points = features(single(ff), [*known, *images], compute=Compute(options.dtype))
    return farthest(points, options.count, given=len(known))


def farthest(points: np.ndarray, number: int, *, given: int = 0) -> Order:
    """Greedy farthest points, a function of the points alone.

    Args:
      points: [given + n, features], the given ones first.
      number: to choose of the n.
      given: how many are chosen already; where none is, distances are first from the mean.
    """
    start = points[:given] if given else points.mean(0)[None]
    distance = np.linalg.norm(points[given:, None] - start[None], axis=-1).min(1)
    chosen: list[int] = []
    scores: list[float] = []
    for _ in range(number):
        i = int(np.argmax(distance))
        chosen.append(i)
        scores.append(float(distance[i]))
        near = np.linalg.norm(points[given:] - points[given + i], axis=1)
        distance = near if len(chosen) == 1 and not given else np.minimum(distance, near)
        distance[chosen] = -1.0  # identical structures are 0 from each other: never the same one twice
    return chosen, scores


def features(ff: ForceField, images: Sequence[ase.Atoms], *, compute: Compute) -> np.ndarray:
    """[structures, features]: composition, and mean and spread of each element's invariant node features.

    Each of the three blocks is scaled to a mean square distance of 1 from its mean.
    """
    present = sorted({int(z) for atoms in images for z in atoms.numbers})
    found = descriptors.descriptors(ff, images, compute=compute)
    share = np.array([[np.mean(atoms.numbers == z) for z in present] for atoms in images])

    def block(statistic: Callable) -> np.ndarray:
        def of(atoms: ase.Atoms, x: np.ndarray, z: int) -> np.ndarray:
            own = x[atoms.numbers == z]
            return statistic(own, axis=0) if len(own) else np.zeros(x.shape[1])

        return np.array([np.concatenate([of(a, x, z) for z in present]) for a, x in zip(images, found, strict=True)])

    return np.concatenate([select.scaled(b) for b in (share, block(np.mean), block(np.std))], axis=1)


def by_gradients(ff: ForceField, images: Images, known: Images, options: SelectConfig) -> Order:
    """D-optimal design with the derivatives by adapters of the elements that are there."""
    jacobians = gradients(single(ff), [*known, *images], compute=Compute(options.dtype), seed=options.seed)
    return d_optimal(jacobians, options.count, given=len(known))


def d_optimal(jacobians: np.ndarray, number: int, *, given: int = 0) -> Order:
    """Greedy D-optimal design: next is the structure with the largest log det(1 + J_s C J_s^T).

    C is the covariance of the parameters after all before, 1 at the start. The score is that gain, in nats.

    Args:
      jacobians: [given + n, rows, parameters] J_s of each structure, the given ones first.
      number: to choose of the n.
      given: how many are chosen already.
    """
    J = np.asarray(jacobians, np.float64)
    own, one = J @ J.swapaxes(1, 2), np.eye(J.shape[1])  # J_s C J_s^T of each structure, [n, rows, rows]
    known: list[
        np.ndarray
    ] = []  # C = 1 - sum_k v_k v_k^T: J v_k [n, rows, rows] of what has been learnt, one at a time

    def learn(s: int) -> np.ndarray:
        """`own` after structure s; no covariance between all structures is ever held."""
        cross = J @ J[s].T - sum((v @ v[s].T for v in known), start=np.zeros_like(own))
        known.append(np.linalg.solve(np.linalg.cholesky(own[s] + one), cross.swapaxes(1, 2)).swapaxes(1, 2))
        return own - known[-1] @ known[-1].swapaxes(1, 2)

    for s in range(given):
        own = learn(s)
    chosen: list[int] = []
    scores: list[float] = []
    for _ in range(number):
        gains = np.linalg.slogdet(one + own)[1]
        gains[[*range(given), *(given + i for i in chosen)]] = -np.inf
        s = int(np.argmax(gains))
        chosen.append(s - given)
        scores.append(float(gains[s]))
        own = learn(s)
    return chosen, scores


def gradients(ff: ForceField, images: Sequence[ase.Atoms], *, compute: Compute, seed: int = 0) -> np.ndarray:
    """[structures, 1 + DIRECTIONS, parameters]: what adapters change of energies and forces, in units of label errors.

    Rows are (s / e) dE/dB of the energy per atom, and (s / f) d(F.x)/dB / sqrt(DIRECTIONS) along random directions x, s
    the prior of the numbers B and e, f the errors of labels; adapters of rank 8 at their start, where A is random.

    Args:
      ff: a plain MACE.
      images: structures.
      compute: dtype.
      seed: of the directions and of A.
    """
    config, dtype = ff.config, compute.dtype
    present = {int(z) for atoms in images for z in atoms.numbers}
    rows = sorted(config.species.index(z) for z in present)
    rng, out = np.random.default_rng(seed), []
    jacobian = executables.keep(jax.jit(partial(_jacobian, config)), ("adapter_jacobian", config))
    with jax.enable_x64(dtype == "float64"):
        params = potential.cast(ff.variables["params"], dtype)
        adapters = lora.init_lora(params, RANK, alpha=RANK, targets=LORA_TARGETS, key=seed, rows=rows)
        for atoms in images:
            batch = graph.from_atoms(atoms, config, pool=ff.pool, heads=[ff.head_index])
            probes = np.zeros((DIRECTIONS, *batch.nodes.positions.shape))
            probes[:, : len(atoms)] = rng.normal(size=(DIRECTIONS, len(atoms), 3))
            inputs = potential.cast((ff.device_variables(dtype), adapters, batch, probes), dtype)
            found = np.array(jacobian(inputs), np.float64)
            found[0] *= PRIOR / (ENERGY_EV * len(atoms))
            found[1:] *= PRIOR / (FORCE_EV_A * np.sqrt(DIRECTIONS))
            out.append(found.astype(np.float32))
    return np.stack(out)


def _jacobian(config: ModelConfig, inputs: tuple[dict, Adapters, jraph.GraphsTuple, jax.Array]) -> jax.Array:
    """[1 + directions, parameters] by the factors B and the full residuals: at the start nothing depends on A."""
    variables, adapters, batch, probes = inputs

    def energy(adapters: Adapters, positions: jax.Array) -> jax.Array:
        model = {**variables, "params": lora.apply(variables["params"], adapters)}
        return potential.total_energy(config, model, graph=batch, positions=positions)

    first, slopes = derivatives.by_parameters(energy, adapters, positions=batch.nodes.positions, directions=probes)

    def flat(found: Adapters, leading: tuple[int, ...]) -> jax.Array:
        parts = [x.reshape(*leading, -1) for entry in found.arrays.values() for k, x in entry.items() if k != "A"]
        return jnp.concatenate(parts, axis=-1)

    return jnp.concatenate([flat(first, ())[None], flat(slopes, (len(probes),))])


def by_uncertainty(ff: ForceField, images: Images, known: Images, options: SelectConfig) -> Order:
    """The largest root mean square, over atoms and components, of the members' standard deviation of forces."""
    if not isinstance(ff, Committee):
        raise InputError(
            f"--by uncertainty asks a committee, and {options.model} is a single model: give the OUT/committee that "
            "`python -m equijax.finetune --committee 8` made"
        )
    found = ff.evaluate_members(images, compute=Compute(options.dtype))
    spread = np.array([np.sqrt(np.mean(f.forces.var(0))) for f in found])
    order = np.argsort(-spread, kind="stable")[: options.count]
    return order.tolist(), spread[order].tolist()


def by_chance(ff: ForceField, images: Images, known: Images, options: SelectConfig) -> Order:
    """Drawn without looking, to compare with."""
    order = np.random.default_rng(options.seed).permutation(len(images))[: options.count]
    return order.tolist(), [0.0] * options.count


def single(ff: ForceField) -> ForceField:
    """The first member of a committee, or the model itself."""
    return ff.members[0] if isinstance(ff, Committee) else ff


WAYS = {"farthest": by_farthest, "gradients": by_gradients, "uncertainty": by_uncertainty, "random": by_chance}
TELLS = {
    "farthest": "distance from those before",
    "gradients": "gain of information (nats)",
    "uncertainty": "force deviation of the committee (eV/A)",
    "random": "score, none",
}
