"""Arrays of a specialised model's non-linear interactions, see `equijax.specialise.fold`."""

import math
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from equijax.config import ModelConfig
from equijax.graph.fields import Topology
from equijax.nn.blocks import Geometry
from equijax.nn.nonlinear import EdgeFunctions


class EdgeBasis(NamedTuple):
    """Radial basis and cutoff at K lengths of edges to one species from another."""

    basis: np.ndarray  # [1, K, B]
    cutoff: np.ndarray  # [1, K]
    receiver: int  # atomic number
    sender: int


def maps(block: dict, constants: dict) -> dict:
    """Matrices and numbers of a non-linear interaction but its `up` and radial functions.

    mix [P_l C, 1, D] per degree, skip, res and out [C, D] per degree, alpha and beta, gate [2] factors of activations.
    """
    mix = [w.reshape(-1, w.shape[2]) / math.sqrt(w.shape[0] * w.shape[1]) for w in _degrees(block["linear"])]
    names = {"skip": "skip_tp", "res": "linear_res", "out": "linear_out"}
    maps = {key: [w / math.sqrt(len(w)) for w in _degrees(block[name])] for key, name in names.items()}
    return maps | {
        "mix": [w[:, None] for w in mix],
        "alpha": block["alpha"],
        "beta": block["beta"],
        "gate": constants["gate"],
    }


def last_layer(config: ModelConfig, block: dict, *, t: int) -> np.ndarray:
    """[U+1, P, C]: the last radial layer with its bias."""
    mlp, last = block["edges"]["radial_mlp"], len(config.radial_mlp)
    both = np.concatenate([mlp[f"layer{last}"].T, mlp[f"bias{last}"][None]])
    return both.reshape(len(both), -1, config.edge_width(t))


def edge_functions(config: ModelConfig, block: dict, *, t: int, edges: EdgeBasis) -> np.ndarray:
    """[K, U+2] hidden radial units and density of edges, by the parameters of interaction t of the plain model."""
    basis, cutoff, k = edges.basis, edges.cutoff, edges.basis.shape[1]
    rows = np.array([config.species.index(z) for z in (edges.receiver, edges.sender)], np.int32)
    senders = np.repeat(np.array([1, 0], np.int32), k)  # two atoms, K edges to each from the other
    topology = Topology(np.arange(2, dtype=np.int32), rows, np.zeros(2, np.int32), senders, senders)
    # a basis with the cutoff leaves functions that end with a step, which the spline's own range makes
    cutoff = np.ones_like(cutoff) if config.apply_cutoff else cutoff
    twice: Any = [np.concatenate([x, x]) for x in (basis, cutoff)]  # numpy, which keeps float64 by itself
    geometry = Geometry(jax.numpy.zeros(()), *twice)
    found = EdgeFunctions(config, t).apply({"params": block["edges"]}, geometry, topology)
    hidden, _, density = cast(tuple, found)
    return np.concatenate([np.asarray(hidden)[0], np.asarray(density)[0][:, None]], axis=1)


def _degrees(arrays: dict) -> list[np.ndarray]:
    return [arrays[f"l{l}"] for l in range(len(arrays))]
