"""Arrays of a specialised model: splines of radial functions, linear maps in one matrix, one polynomial a species."""

import dataclasses
import math
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from equijax.config import ModelConfig, Spline
from equijax.errors import needed
from equijax.graph.fields import Topology
from equijax.nn.blocks import Geometry
from equijax.nn.convolution import paths
from equijax.nn.folded import DEGREE, knows_species, num_pairs, pair_index
from equijax.nn.nonlinear import EdgeFunctions
from equijax.nn.radial import RadialBasis, RadialMLP

START_A = 0.25  # where tables begin: closer atoms repel by tens of keV, so how accurate the rest is does not matter
SAMPLES = 3  # of a radial function in an interval between knots, for its least-squares spline


def shrink(config: ModelConfig, species: tuple[int, ...], *, step: float) -> ModelConfig:
    """Hyper-parameters of the specialised model: some of the species, and splines with knots `step` A apart."""
    intervals = math.ceil((config.r_max - START_A) / step)
    return dataclasses.replace(config, species=species, spline=Spline(START_A, step, intervals + DEGREE))


def fold(config: ModelConfig, variables: dict, *, small: ModelConfig) -> dict:
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
    if config.dispersion is not None:
        found = constants["dispersion"]
        out["dispersion"] = {name: x[rows] for name, x in found.items()} | {"c6": found["c6"][rows][:, rows]}
    tables = _tables(config, params, constants=constants, small=small)
    for t in range(config.num_interactions):
        out[f"interactions_{t}"] = tables[t] | _linear_maps(
            config, params, constants=constants, rows=rows, embedding=embedding, t=t
        )
    if config.embeddings:
        out["embedding"] = embedding
    for name in params:
        if name.startswith(("readouts_", "joint_embedding", "embedding_readout")):
            out[name] = {"params": params[name]} | ({"constants": constants[name]} if name in constants else {})
    return out


def _linear_maps(
    config: ModelConfig, params: dict, *, constants: dict, rows: np.ndarray, embedding: np.ndarray, t: int
) -> dict:
    """Everything of interaction t that is a matrix: see `fold`."""
    block, product = params[f"interactions_{t}"], params[f"products_{t}"]
    name, channels = config.interaction_name(t), config.channels
    up = [block["linear_up"][f"l{l}"] / math.sqrt(channels) for l in range(config.input_lmax(t) + 1)]
    by_species = t == 0 and not config.embeddings
    if "NonLinear" in name:
        out = {"up": embedding @ up[0] if by_species else up} | ({"embedding": embedding} if by_species else {})
        out |= _nonlinear_maps(block, constants[f"interactions_{t}"])
        return out | _contraction(config, product, constants=constants, rows=rows, t=t)
    skip_norm = 1 / math.sqrt(channels * len(config.species))
    skip = [w[:, rows] * skip_norm for _, w in sorted(block["skip_tp"].items())]
    mix = []
    for l in range(config.max_ell + 1):
        w = block["linear"][f"l{l}"]  # [P_l, C, C]
        w = w.reshape(-1, channels) / math.sqrt(w.shape[0] * w.shape[1])
        w = w if "Density" in name else w / config.avg_num_neighbors
        mix.append(w[:, None] if "Residual" in name else np.einsum("xc,czd->xzd", w, skip[l]))
    out = {"up": embedding @ up[0] if by_species else up, "mix": mix}
    if "Residual" in name:
        out |= {"skip": skip} | ({"embedding": embedding} if by_species else {})
    return out | _contraction(config, product, constants=constants, rows=rows, t=t)


def _contraction(config: ModelConfig, product: dict, *, constants: dict, rows: np.ndarray, t: int) -> dict:
    """Polynomial coefficients of the species `rows` and the matrix after them, per output degree."""
    out, rows = {"contraction": [], "linear": []}, np.zeros(1, int) if config.agnostic_product else rows
    for L in range(config.output_lmax(t) + 1):
        w, u = product[f"contraction_l{L}"], constants[f"products_{t}"][f"contraction_l{L}"]
        names = [f"l{L}_nu{nu}" for nu in range(1, config.correlation[t] + 1)]
        out["contraction"].append(np.concatenate([np.einsum("qp,zpc->zqc", u[n], w[n][rows]) for n in names], axis=1))
        out["linear"].append(product["linear"][f"l{L}"] / math.sqrt(config.channels))
    return out


def _tables(config: ModelConfig, params: dict, *, constants: dict, small: ModelConfig) -> list[dict]:
    """Per interaction {"radial": [pairs rows, P, C], "density": [pairs rows]}, stacked by pair of species."""
    from scipy.interpolate import make_lsq_spline  # not at the top: few models need it

    spline = needed(small.spline, "the model is not specialised: see `shrink`")
    intervals = spline.rows - DEGREE
    r = np.linspace(spline.start, config.r_max, SAMPLES * intervals + 1)
    knots = spline.start + spline.step * np.arange(-DEGREE, intervals + DEGREE + 1)
    coefficients: dict[int, np.ndarray] = {}
    for i, a in enumerate(small.species):
        for j, b in enumerate(small.species if knows_species(config) else small.species[: i + 1]):
            pair = int(pair_index(small, np.array(i), b=np.array(j)))
            if pair not in coefficients:
                functions = _radial_functions(config, params, constants=constants, r=r, a=a, b=b)
                coefficients[pair] = make_lsq_spline(r, functions, knots, DEGREE).c
    stacked = np.concatenate([coefficients[pair] for pair in range(num_pairs(small))])
    tables, first = [], 0
    for t in range(config.num_interactions):
        if nonlinear := "NonLinear" in config.interaction_name(t):
            last = _last_layer(config, params[f"interactions_{t}"], t=t)
        else:
            last = params[f"interactions_{t}"]["radial_mlp"][f"layer{len(config.radial_mlp)}"]  # [U, P, C]
            last = last / math.sqrt(len(last))
        hidden = stacked[:, first : first + len(last)]
        tables.append({"radial": np.einsum("xu,upc->xpc", hidden, last)})
        first += len(last)
        if nonlinear or "Density" in config.interaction_name(t):
            tables[-1]["density"] = stacked[:, first]
            first += 1
    return tables


def _radial_functions(
    config: ModelConfig, params: dict, *, constants: dict, r: np.ndarray, a: int, b: int
) -> np.ndarray:
    """[len(r), F] hidden units of the radial MLP, and the density's edge function, of every interaction in turn."""
    with jax.enable_x64(True):
        shape = (1, len(r))
        radial = {"constants": constants.get("radial", {})}
        basis, cutoff = RadialBasis(config).apply(radial, r[None], np.full(shape, a), np.full(shape, b))
        out = []
        for t in range(config.num_interactions):
            name = f"interactions_{t}"
            if "NonLinear" in config.interaction_name(t):
                edges = EdgeBasis(np.asarray(basis), np.asarray(cutoff), a, b)
                out.append(_edge_functions(config, params[name], t=t, edges=edges))
                continue
            given = {"params": params[name]["radial_mlp"], "constants": constants[name]["radial_mlp"]}
            hidden, _ = RadialMLP(config, len(paths(config, t)), config.edge_width(t)).apply(given, basis)
            factor = np.ones((len(r), 1)) if config.apply_cutoff else np.asarray(cutoff)[0, :, None]
            out.append(np.asarray(hidden)[0] * factor)
            if "Density" in config.interaction_name(t):
                w = params[name]["density"] / math.sqrt(config.num_radial)
                out.append(np.tanh((np.asarray(basis)[0] @ w) ** 2) * factor)
    return np.concatenate(out, axis=1)


class EdgeBasis(NamedTuple):
    """Radial basis and cutoff at K lengths of edges to one species from another."""

    basis: np.ndarray  # [1, K, B]
    cutoff: np.ndarray  # [1, K]
    receiver: int  # atomic number
    sender: int


def _nonlinear_maps(block: dict, constants: dict) -> dict:
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


def _last_layer(config: ModelConfig, block: dict, *, t: int) -> np.ndarray:
    """[U+1, P, C]: the last radial layer with its bias."""
    mlp, last = block["edges"]["radial_mlp"], len(config.radial_mlp)
    both = np.concatenate([mlp[f"layer{last}"].T, mlp[f"bias{last}"][None]])
    return both.reshape(len(both), -1, config.edge_width(t))


def _edge_functions(config: ModelConfig, block: dict, *, t: int, edges: EdgeBasis) -> np.ndarray:
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
