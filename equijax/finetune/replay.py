"""What keeps a model what it was: structures labelled by the model itself, and a second head."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np

from equijax import derivatives, graph, potential
from equijax.config import Compute, ModelConfig
from equijax.data.items import Item, prepare, size_of
from equijax.data.labelled import Labelled
from equijax.data.phonopy_files import AMPLITUDE_A
from equijax.errors import InputError
from equijax.potential import Potential

PRODUCT_GROUP = 4  # structures per batch when force-constant products are made


def pseudo_label(
    teacher: Potential,
    structures: Sequence[Labelled],
    *,
    tangents: int = 0,
    amplitude: float = AMPLITUDE_A,
    seed: int = 0,
    dtype: str = "float64",
) -> list[Labelled]:
    """The same structures with the model's own energies, forces and stresses in place of whatever labels they had.

    Args:
      teacher: the starting model; its head is that of the results.
      structures: labels they carry are dropped, weights kept.
      tangents: if positive, also force-constant products along this many random tangents each.
      amplitude: rms component of a tangent, A.
      seed: of the tangents.
      dtype: of the model while it labels.

    Raises:
      InputError: a structure the model cannot describe, or a label that is not finite; source named.
    """
    items = prepare(structures, teacher.config)  # refuses by source before anything is computed
    found = teacher.evaluate([s.atoms for s in structures], compute=Compute(dtype), errors="report")
    out = []
    for s, f in zip(structures, found, strict=True):
        if f.error is not None:
            raise InputError(
                f"{s.source}: the starting model gives a non-finite energy or force: leave it out of replay"
            )
        stress = f.stress if s.atoms.pbc.all() else None  # of crystals alone, as for labels from files
        labels = {"energy": f.energy, "forces": f.forces, "stress": stress, "tangents": None, "hvp": None}
        out.append(replace(s, head=teacher.head, **labels))
    if not tangents:
        return out
    rng = np.random.default_rng(seed)
    directions = [amplitude * rng.normal(size=(len(s.atoms), tangents, 3)) for s in structures]
    directions = [u - u.mean(0) for u in directions]
    products = _products(teacher, items, directions=directions, dtype=dtype)
    return [replace(s, tangents=u, hvp=p) for s, u, p in zip(out, directions, products, strict=True)]


def _products(
    teacher: Potential, items: Sequence[Item], *, directions: Sequence[np.ndarray], dtype: str
) -> list[np.ndarray]:
    """Phi u [n, B, 3] eV/A of each structure along its directions [n, B, 3] A, by the model."""
    config, variables = teacher.config, teacher.device_variables(dtype)
    out = []
    for start in range(0, len(items), PRODUCT_GROUP):
        group = items[start : start + PRODUCT_GROUP]
        some = np.concatenate(directions[start : start + PRODUCT_GROUP])
        size = teacher.pool.fit(size_of(group, config))
        pairs = [(i.labelled.atoms, i.edges) for i in group]
        g = graph.build(pairs, config, size=size, heads=[teacher.head_index] * len(group))
        padded = np.zeros((size.nodes, *some.shape[1:]))
        padded[: len(some)] = some
        g, along = potential.cast((g, padded), dtype)
        with jax.enable_x64(dtype == "float64"):
            products = np.asarray(_hessian_products(config, variables, g, along), np.float64)
        first = 0
        for item in group:
            n = len(item.labelled.atoms)
            out.append(products[first : first + n])
            if not np.isfinite(out[-1]).all():
                raise InputError(f"{item.labelled.source}: the starting model gives a non-finite second derivative")
            first += n
    return out


_hessian_products = jax.jit(derivatives.hessian_products, static_argnums=0)


WIDENED = ({"linear"}, {"linear_1", "linear_2"})  # weights of the readouts that `add_head` knows


def add_head(config: ModelConfig, variables: dict, *, name: str, like: str | None = None) -> tuple[ModelConfig, dict]:
    """A model with one more head, which predicts exactly what the head it is copied from does.

    New columns of the readouts, a row of isolated-atom energies, and entries of scale and shift are copied. The last
    layer of a nonlinear readout is normalised by 1/sqrt(units of all heads), so its weights grow by
    sqrt((H + 1) / H) to leave every head as it was.

    Args:
      config, variables: of the model, left untouched; numpy arrays.
      name: of the new head, which becomes the last.
      like: head to copy, the only one by default.

    Raises:
      InputError: the name is taken, `like` unknown, or not given for a model with several heads; readouts with biases
        or of embeddings, whose heads share hidden units in other ways.
    """
    if name in config.heads:
        raise InputError(f"head {name!r} exists already: {', '.join(config.heads)}")
    if like is None and len(config.heads) > 1 or like is not None and like not in config.heads:
        raise InputError(f"head to copy {like!r}: expected one of {', '.join(config.heads)}")
    readouts = {key: set(part) for key, part in variables["params"].items() if "readout" in key}
    if other := sorted(key for key, names in readouts.items() if names not in WIDENED or "embedding" in key):
        raise InputError(
            f"no head can be added to {', '.join(other)}, which have biases or read embeddings: choose a strategy that "
            "trains the head there is (lora, delta, naive, freeze)"
        )
    old = 0 if like is None else config.heads.index(like)
    heads, width = len(config.heads), config.readout_mlp
    params = dict(variables["params"])
    for key in [k for k in params if k.startswith("readouts_")]:
        params[key] = _wider(params[key], old, heads=heads, width=width)
    constants = {**variables["constants"]}
    for key in ("atomic_energies", "scale", "shift"):
        if key in constants:
            x = np.asarray(constants[key])
            constants[key] = np.concatenate([x, x[old : old + 1]])
    return replace(config, heads=(*config.heads, name)), {**variables, "params": params, "constants": constants}


def _wider(readout: dict, old: int, *, heads: int, width: int) -> dict:
    """Readout weights with one more head, a copy of head `old`."""
    if "linear" in readout:
        w = np.asarray(readout["linear"])  # [C, H]
        return {"linear": np.concatenate([w, w[:, old : old + 1]], axis=1)}
    first, second = np.asarray(readout["linear_1"]), np.asarray(readout["linear_2"])  # [C, H M], [H M, H]
    units = slice(old * width, (old + 1) * width)
    grown = np.zeros(((heads + 1) * width, heads + 1), second.dtype)
    grown[: heads * width, :heads] = second
    grown[heads * width :, heads] = second[units, old]
    grown[heads * width :, :heads] = second[units]  # never read: hidden units of one head see that head alone
    grown[: heads * width, heads] = second[:, old]
    scale = np.asarray(np.sqrt((heads + 1) / heads), second.dtype)
    return {"linear_1": np.concatenate([first, first[:, units]], axis=1), "linear_2": scale * grown}
