"""A loaded model: hyper-parameters, arrays and provenance, with everything a user calls on it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import ase
import jax
import numpy as np

from equijax import checkpoint, graph, predict
from equijax.config import ModelConfig

# Edge slots N*K in one batch of `evaluate`: large enough to fill two cores, small enough to stay in about 1 GB.
BATCH_SLOTS = 32768


@dataclass(frozen=True)
class ForceField:
    """A potential; make one with `equijax.load`."""

    config: ModelConfig
    variables: dict  # {"params": ..., "constants": ...} numpy arrays
    metadata: dict
    pool: graph.SizePool = field(default_factory=graph.SizePool, repr=False, compare=False)
    _on_device: dict = field(default_factory=dict, repr=False, compare=False)

    def device_variables(self, dtype: str = "float32") -> dict:
        """The arrays in `dtype` on the default device, transferred once."""
        dtype = np.dtype(dtype).name
        if dtype not in self._on_device:
            with jax.enable_x64(dtype == "float64"):
                self._on_device[dtype] = jax.device_put(predict.cast(self.variables, dtype))
        return self._on_device[dtype]

    def head_index(self, head: str | None) -> int:
        """Position of `head` among the model's heads.

        Raises:
          ValueError: unknown head, or none given for a model with several.
        """
        heads = self.config.heads
        if head is None and len(heads) == 1:
            return 0
        if head not in heads:
            raise ValueError(f"head {head!r}: expected one of {', '.join(heads)}")
        return heads.index(head)

    def node_energies(self, variables: dict, vectors: jax.Array, inputs: dict) -> jax.Array:
        """Interaction energies [N] eV of a graph on the device; see `predict.energy_from_vectors`."""
        return predict.energy_from_vectors(self.config, variables, vectors, inputs)

    def calculator(self, dtype: str = "float64", head: str | None = None):
        """An ASE calculator (energy, free_energy, energies, forces, stress)."""
        from equijax.calculator import EquijaxCalculator

        return EquijaxCalculator(self, dtype=dtype, head=head)

    def evaluate(self, images: list[ase.Atoms], dtype: str = "float32", head: str | None = None) -> list[dict]:
        """Energy, forces and stress of many structures in a few padded batches, in input order.

        Args:
          images: structures, of any mixture of sizes and elements.
          dtype: "float32" or "float64".
          head: required for a model with several.

        Returns:
          per structure: energy (eV), energies [n] (eV), forces [n, 3] (eV/A), stress [3, 3] (eV/A^3, ASE sign; NaN
          where the structure is not periodic in all directions).

        Raises:
          ValueError: a structure the model cannot describe, named by its index.
        """
        index = self.head_index(head)
        structures = []
        for i, atoms in enumerate(images):
            name = f"structure {i} ({atoms.get_chemical_formula()})"
            graph.check_atoms(atoms, self.config, name)
            structures.append((atoms, graph.neighbour_list(atoms, self.config.r_max, name)))
        results: list[dict] = [{} for _ in images]
        for members in pack(structures, BATCH_SLOTS):
            chosen = [structures[i] for i in members]
            size = self.pool.fit(graph.size_of(chosen, self.config))
            batch = graph.build(chosen, self.config, size, [index] * len(chosen))
            for i, result in zip(members, self._split(batch, chosen, dtype), strict=True):
                results[i] = result
        return results

    def _split(self, batch, structures, dtype) -> Iterator[dict]:
        out = predict.evaluate(self.config, self.device_variables(dtype), batch, dtype)
        first = 0
        for g, (atoms, _) in enumerate(structures):
            rows = slice(first, first + len(atoms))
            first += len(atoms)
            stress = out["stress"][g] if atoms.pbc.all() else np.full((3, 3), np.nan)
            yield {
                "energy": float(out["energy"][g]),
                "energies": out["node_energy"][rows],
                "forces": out["forces"][rows],
                "stress": stress,
            }


def pack(structures: list[tuple[ase.Atoms, graph.Edges]], budget: int) -> list[list[int]]:
    """Group structures of like coordination into batches of at most `budget` edge slots (one structure at least)."""
    slots = [int(np.bincount(e.receivers, minlength=1).max()) for _, e in structures]
    batches: list[list[int]] = []
    nodes = 0
    for i in sorted(range(len(structures)), key=lambda i: (slots[i], len(structures[i][0]))):
        size = len(structures[i][0])
        if batches and (nodes + size) * max(slots[i], 1) <= budget:
            batches[-1].append(i)
            nodes += size
        else:
            batches.append([i])
            nodes = size
    return batches


def load(path: str | Path) -> ForceField:
    """Load a model directory written by `python -m convert` or by fine-tuning.

    Raises:
      FileNotFoundError, ValueError: see `equijax.checkpoint.load`.
    """
    config, variables, metadata = checkpoint.load(path)
    return ForceField(config, variables, metadata)
