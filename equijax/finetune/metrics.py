"""Errors of a model: against labels, of phonons against reference phonons, and of dimers pushed together."""

import itertools
from collections.abc import Iterable
from functools import partial

import ase
import jax
import jax.numpy as jnp
import jraph
import numpy as np
from ase.data import chemical_symbols, covalent_radii

from equijax import derivatives
from equijax.config import ModelConfig
from equijax.finetune import loss
from equijax.potential import Potential

QUANTITIES = ("energy", "forces", "stress")  # per atom in eV; eV/A; eV/A^3
DIMER_RANGE = (0.45, 0.85)  # of the sum of covalent radii: well inside any bond
DIMER_POINTS = 21


@partial(jax.jit, static_argnums=(0, 1))
def _sums(config, losses, variables, graph):
    """Loss terms, and for each quantity (sum |d|, sum d^2, count) over the labelled components."""
    found = derivatives.energy_forces_stress(config, variables, graph)
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
        errors[name] = (jnp.abs(d).sum(), (d**2).sum(), count)
    terms = {t: (p.sum(), c) for t, (p, c) in loss.sums(config, variables, graph, losses).items()}
    return terms, errors


def label_errors(
    config: ModelConfig, variables: dict, graphs: Iterable[jraph.GraphsTuple], losses: loss.LossConfig
) -> dict[str, float | None]:
    """MAE and RMSE over all labelled components of a set, and its loss.

    Args:
      config, variables: the model, arrays on the device.
      graphs: labelled batches, see `equijax.finetune.loss`.
      losses: weights and penalty.

    Returns:
      loss; energy_mae and _rmse (eV/atom), forces_ (eV/A), stress_ (eV/A^3); None without such labels.
    """
    terms: dict[str, np.ndarray] = {}
    errors = {name: np.zeros(3) for name in QUANTITIES}
    for graph in graphs:
        found_terms, found = jax.device_get(_sums(config, losses, variables, graph))
        for name, values in found_terms.items():
            terms[name] = terms.get(name, np.zeros(2)) + np.asarray(values, float)
        for name in QUANTITIES:
            errors[name] += np.asarray(found[name], float)
    out: dict[str, float | None] = {
        "loss": float(sum(getattr(losses, t) * v / max(count, 1.0) for t, (v, count) in terms.items()))
    }
    for name, (absolute, square, count) in errors.items():
        out[f"{name}_mae"] = absolute / count if count else None
        out[f"{name}_rmse"] = float(np.sqrt(square / count)) if count else None
    return out


def dimer_scan(ff: Potential, numbers: Iterable[int]) -> list[dict]:
    """Push every pair of elements together: does the model still repel?

    Args:
      ff: the model.
      numbers: atomic numbers.

    Returns:
      per pair: `pair`, `repulsive` = fraction of the scanned distances (0.45 to 0.85 of the sum of covalent radii) with
      dE/dr < 0, `energy` = E at the shortest minus E at the longest of them, eV.
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
    return [
        {
            "pair": "-".join(chemical_symbols[z] for z in pair),
            "repulsive": float((slope < 0).mean()),
            "energy": float(e[0] - e[-1]),
            "shortest": float(r[0]),
        }
        for pair, e, slope, r in zip(pairs, energies, slopes, distances, strict=True)
    ]
