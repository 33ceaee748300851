"""Writes an equijax checkpoint as a mace-torch .model file (needs the parity extra: torch and mace-torch)."""

import os
import tempfile
from itertools import permutations
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import torch
from e3nn import o3
from mace import modules
from mace.modules.models import MACE, ScaleShiftMACE
from mace.modules.symmetric_contraction import SymmetricContraction

from convert import mapping
from convert.errors import UnsupportedModel
from convert.torch_model import read_model
from equijax import couplings
from equijax.config import Embedding, ModelConfig

os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # e3nn 0.4.4 loads its own constants by torch.load

GATES = {"silu": torch.nn.functional.silu, "tanh": torch.tanh, "abs": torch.abs, "none": None}
TRANSFORMS = {"none": "None", "agnesi": "Agnesi", "soft": "Soft"}


def write_torch(path: Path, config: ModelConfig, *, variables: dict) -> None:
    """Write the model to the file `path`, which MACECalculator and mace's LAMMPS exporter load.

    The file is read back by `convert.torch_model` and must give the same variables, to the precision of their type,
    before it gets its name.

    Raises:
      UnsupportedModel: mace-torch cannot hold this model.
    """
    model = build(config, variables)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".model", dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        torch.save(model, beside)
        beside.chmod(0o644)  # mkstemp makes it private
        _check(beside, config, variables=variables)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def build(config: ModelConfig, variables: dict) -> MACE:
    """A mace-torch module with the hyper-parameters and values of an equijax model."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, params_dtype(variables)))
    try:
        model = _skeleton(config, variables)
        _fill(model, config, variables=variables)
    finally:
        torch.set_default_dtype(default)
    return model


def params_dtype(variables: dict) -> str:
    """The one floating-point type of the params.

    Raises:
      UnsupportedModel: several types.
    """
    kinds = {np.asarray(leaf).dtype.name for leaf in jax.tree.leaves(variables["params"])}
    if len(kinds) != 1:
        raise UnsupportedModel(f"params of several types {sorted(kinds)}: cast them to one first")
    return kinds.pop()


def _skeleton(config: ModelConfig, variables: dict) -> MACE:
    """An untrained mace-torch module; the coupling basis is the one with as many paths."""
    options = {
        "r_max": config.r_max,
        "num_bessel": config.num_radial,
        "num_polynomial_cutoff": config.cutoff_power,
        "max_ell": config.max_ell,
        "interaction_cls": modules.interaction_classes[config.interaction],
        "interaction_cls_first": modules.interaction_classes[config.interaction_first],
        "num_interactions": config.num_interactions,
        "num_elements": len(config.species),
        "hidden_irreps": o3.Irreps(config.hidden_irreps),
        "MLP_irreps": o3.Irreps(f"{max(config.readout_mlp, 1)}x0e"),
        "atomic_energies": np.asarray(variables["constants"]["atomic_energies"]),
        "avg_num_neighbors": config.avg_num_neighbors,
        "atomic_numbers": list(config.species),
        "correlation": list(config.correlation),
        "gate": GATES[config.gate],
        "pair_repulsion": config.pair_repulsion,
        "apply_cutoff": config.apply_cutoff,
        "distance_transform": TRANSFORMS[config.distance_transform],
        "radial_MLP": list(config.radial_mlp),
        "radial_type": config.radial_basis,
        "heads": list(config.heads),
        "use_so3": config.so3,
        "use_agnostic_product": config.agnostic_product,
        "use_last_readout_only": config.last_readout_only,
        "use_embedding_readout": config.embedding_readout,
        "readout_cls": getattr(modules.blocks, config.readout),
        **_edge_irreps(config),
    }
    if config.embeddings:
        options["embedding_specs"] = {spec.name: _specification(spec) for spec in config.embeddings}
    if config.scale_shift:
        options |= {f"atomic_inter_{k}": np.asarray(variables["constants"][k]) for k in ("scale", "shift")}
    model = (ScaleShiftMACE if config.scale_shift else MACE)(**options, use_reduced_cg=False)
    for reduced in (False, True):
        if reduced:
            use_reduced_basis(model)
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        wanted = {name: _leaf(variables, path).shape for name, (path, _, _) in mapping.u_names(config).items()}
        if all(shapes[name][-1] == shape[-1] for name, shape in wanted.items()):
            return model
    raise UnsupportedModel(
        f"mace-torch has no coupling basis with {config.contraction_paths} paths; the reduced basis "
        "needs cuequivariance: pip install cuequivariance"
    )


def _edge_irreps(config: ModelConfig) -> dict:
    """mace-torch has one width for all interactions but the first, and that or `channels` for the first.

    Raises:
      UnsupportedModel: other widths.
    """
    if not config.edge_channels:
        return {}
    first, *later = config.edge_channels
    width = later[0] if later else first
    if set(later) - {width} or first not in (width, config.channels):
        raise UnsupportedModel(f"edge_channels {config.edge_channels}: mace-torch has one width, after the first")
    irreps = o3.Irreps([(width, ir) for _, ir in o3.Irreps(config.hidden_irreps)])
    return {"edge_irreps": irreps, "use_edge_irreps_first": first == width}


def _specification(spec: Embedding) -> dict:
    """An entry of mace-torch's embedding_specs."""
    if spec.classes:
        kind = {"type": "categorical", "num_classes": spec.classes, "offset": spec.offset}
    else:
        kind = {"type": "continuous", "in_dim": 1, "use_bias": spec.bias}
    return {"per": "graph", "emb_dim": spec.width, **kind}


def use_reduced_basis(model: MACE) -> None:
    """Give the module the linearly independent coupling paths (8 and 12 instead of 23 and 51 for max_ell = 3).

    mace-torch's own switch, `use_reduced_cg`, does nothing unless cuequivariance_torch is installed too.
    """
    for product in cast(Any, model.products):
        old = product.symmetric_contractions
        product.symmetric_contractions = SymmetricContraction(
            irreps_in=old.irreps_in,
            irreps_out=old.irreps_out,
            correlation=old.contractions[0].correlation,
            num_elements=old.contractions[0].weights_max.shape[0],
            use_reduced_cg=True,
        )
    model.use_reduced_cg = True  # pyright: ignore[reportArgumentType]  # a flag, where torch's annotation has modules


def _fill(model: MACE, config: ModelConfig, *, variables: dict) -> None:
    """Copy every array of the table, the U tensors and the activation factors into the module."""
    state = model.state_dict(keep_vars=True)
    for row in mapping.table(config):
        flat = np.concatenate([np.asarray(_leaf(variables, path)).reshape(-1) for path, _ in row.parts])
        _copy(state, row.torch, values=flat)
    for name, (path, L, degree) in mapping.u_names(config).items():
        _copy(state, name, values=expand_u(_leaf(variables, path), config.max_ell, L=L, degree=degree, so3=config.so3))
    if config.pair_repulsion:
        _copy(state, "pair_repulsion_fn.p", values=np.array(config.zbl_power))
    for name, path in mapping.activation_names(config).items():
        factor = float(_leaf(variables, path))
        if name in dict(model.named_modules()):
            act: Any = model.get_submodule(name)
            act.cst, act._is_id = factor, factor == 1.0
    for name, path in mapping.gate_names(config).items():
        gate: Any = model.get_submodule(name)
        gate._scalar_cst, gate._gate_cst = (float(x) for x in _leaf(variables, path))


def expand_u(coefficients: np.ndarray, lmax: int, *, L: int, degree: int, so3: bool = False) -> np.ndarray:
    """Inverse of `cg.compress_u`: [Q, paths] -> the symmetric U tensor [2L+1, m, ..., m, paths].

    mace's own U tensors are not symmetric; the contraction sees their symmetric part alone, so energies agree.
    """
    table = couplings.monomials(lmax, L, degree=degree, so3=so3)
    u = np.zeros((2 * L + 1, *[(lmax + 1) ** 2] * degree, coefficients.shape[-1]))
    multiplicity = np.array([len(set(permutations(f))) for f in table.factors.tolist()])
    for order in permutations(range(degree)):
        u[(table.component, *table.factors.T[list(order)])] = coefficients / multiplicity[:, None]
    return u


def _copy(state: dict, name: str, *, values: np.ndarray) -> None:
    target = state[name]
    if target.numel() != values.size:
        raise UnsupportedModel(f"{name}: mace-torch expects {tuple(target.shape)}, the model has {values.shape}")
    with torch.no_grad():
        target.copy_(torch.as_tensor(values.reshape(tuple(target.shape)), dtype=target.dtype))


def _leaf(variables: dict, path: tuple[str, ...]) -> np.ndarray:
    node = variables
    for key in path:
        if key not in node:
            raise UnsupportedModel(f"the checkpoint lacks {'/'.join(path)}")
        node = node[key]
    return np.asarray(node)


def _check(path: Path, config: ModelConfig, *, variables: dict) -> None:
    """The written file, read without torch, must be the model it was made from, to the precision of its own type."""
    found_config, found = mapping.to_flax(read_model(path))
    if found_config != config:
        raise UnsupportedModel(f"mace-torch changed the hyper-parameters: {found_config}, from {config}")
    dtype = params_dtype(variables)
    leaves = jax.tree_util.tree_leaves_with_path(found)
    for key_path, value in leaves:
        wanted = np.asarray(_leaf(variables, tuple(key.key for key in key_path)))
        tolerance = 4 * np.finfo(dtype).eps * max(1.0, float(np.abs(wanted).max(initial=0.0)))
        if value.shape != wanted.shape or np.abs(value - wanted).max(initial=0.0) > tolerance:
            raise UnsupportedModel(f"mace-torch did not keep {jax.tree_util.keystr(key_path)}")
