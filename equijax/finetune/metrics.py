"""Errors of a model: against labels, of phonons against reference phonons, and of dimers pushed together."""

import itertools
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import ase
import jax
import jax.numpy as jnp
import jraph
import numpy as np
from ase.data import chemical_symbols, covalent_radii

from equijax import derivatives, executables
from equijax.config import ModelConfig
from equijax.data.labelled import LABELS
from equijax.finetune import loss
from equijax.potential import Potential

DIMER_RANGE = (0.45, 0.85)  # of the sum of covalent radii: well inside any bond
DIMER_POINTS = 21


class LabelErrors(NamedTuple):
    """Of a set of structures, over all labelled components; None without such labels."""

    loss: float
    energy_mae: float | None  # eV/atom
    energy_rmse: float | None
    forces_mae: float | None  # eV/A
    forces_rmse: float | None
    stress_mae: float | None  # eV/A^3
    stress_rmse: float | None


class Deviation(NamedTuple):
    """Sums over the labelled components of a quantity."""

    absolute: jax.Array  # [] sum |d|
    square: jax.Array  # [] sum d^2
    count: jax.Array  # []


def _sums(
    config: ModelConfig, losses: loss.LossConfig, variables: dict, graph: jraph.GraphsTuple
) -> tuple[dict[str, tuple[jax.Array, jax.Array]], dict[str, Deviation]]:
    """Loss terms as (sum of numerators, count), and the deviation of each quantity."""
    found = derivatives.energy_forces_stress(config, variables, graph=graph)
    n = jnp.maximum(graph.n_node, 1)
    labels = graph.globals.labels
    pairs = {
        "energy": ((found.energy - labels.energy) / n, labels.energy_mask),
        "forces": (found.forces - graph.nodes.labels.forces, graph.nodes.labels.forces_mask[:, None]),
        "stress": (found.stress - labels.stress, labels.stress_mask[:, None, None]),
    }
    errors = {}
    for name, (d, mask) in pairs.items():
        d = jnp.where(mask > 0, d, 0.0)
        count = jnp.broadcast_to(mask > 0, d.shape).sum()
        errors[name] = Deviation(jnp.abs(d).sum(), (d**2).sum(), count)
    terms = loss.sums(config, variables, graph=graph, options=losses)
    return {name: (term.numerators.sum(), term.count) for name, term in terms.items()}, errors


def label_errors(
    config: ModelConfig, variables: dict, *, graphs: Iterable[jraph.GraphsTuple], losses: loss.LossConfig
) -> LabelErrors:
    """MAE and RMSE over all labelled components of a set, and its loss.

    Args:
      config, variables: the model, arrays on the device.
      graphs: labelled batches, see `equijax.finetune.loss`.
      losses: weights and penalty.
    """
    terms: dict[str, np.ndarray] = {}
    errors = {name: np.zeros(3) for name in LABELS}
    sums = executables.keep(jax.jit(partial(_sums, config, losses)), ("label_errors", config, losses))
    for graph in graphs:
        found_terms, found = jax.device_get(sums(variables, graph))
        for name, values in found_terms.items():
            terms[name] = terms.get(name, np.zeros(2)) + np.asarray(values, float)
        for name in LABELS:
            errors[name] += np.asarray(found[name], float)
    value = float(sum(losses.weight(t) * v / max(count, 1.0) for t, (v, count) in terms.items()))
    means: list[float | None] = []
    for absolute, square, count in errors.values():
        means += [absolute / count, float(np.sqrt(square / count))] if count else [None, None]
    return LabelErrors(value, *means)


class Dimer(NamedTuple):
    """A pair of elements pushed together."""

    pair: str  # symbols
    repulsive: float  # fraction of the scanned distances (0.45 to 0.85 of the sum of covalent radii) with dE/dr < 0
    energy: float  # E at the shortest minus E at the longest of them, eV
    shortest: float  # A


def dimer_scan(ff: Potential, numbers: Iterable[int]) -> list[Dimer]:
    """Push every pair of elements together: does the model still repel?

    Args:
      ff: the model.
      numbers: atomic numbers.
    """
    pairs = list(itertools.combinations_with_replacement(sorted(set(numbers)), 2))
    images, distances = [], []
    for a, b in pairs:
        r = np.linspace(*DIMER_RANGE, DIMER_POINTS) * (covalent_radii[a] + covalent_radii[b])
        images += [ase.Atoms([a, b], [[0.0, 0.0, 0.0], [0.0, 0.0, x]]) for x in r]
        distances.append(r)
    found = ff.evaluate(images)
    energies = np.array([f.energy for f in found]).reshape(len(pairs), DIMER_POINTS)
    slopes = np.array([-f.forces[1, 2] for f in found]).reshape(len(pairs), DIMER_POINTS)
    symbols = ["-".join(chemical_symbols[z] for z in pair) for pair in pairs]
    scans = zip(symbols, energies, slopes, distances, strict=True)
    return [Dimer(pair, float((slope < 0).mean()), float(e[0] - e[-1]), float(r[0])) for pair, e, slope, r in scans]
