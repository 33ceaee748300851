"""A loaded model: hyper-parameters, arrays and provenance, with everything a user calls on it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import ase
import jax
import numpy as np
from tqdm import tqdm

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
            # also right when first called while a function is being traced: a tracer must not end up in the cache
            with jax.enable_x64(dtype == "float64"), jax.ensure_compile_time_eval():
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

    def calculator(self, dtype: str = "float64", head: str | None = None, fast: bool = False):
        """An ASE calculator (energy, free_energy, energies, forces, stress); `fast`: see `specialise`."""
        from equijax.calculator import EquijaxCalculator

        return EquijaxCalculator(self, dtype=dtype, head=head, fast=fast)

    def specialise(self, species, tolerance: dict | None = None) -> "ForceField":
        """The same potential for these species alone, several times faster: see `equijax.specialise`.

        Made once for each set of species; the errors against this model are printed and stand in its
        `metadata["specialised"]`. A specialised model that has them all is returned as it is.
        """
        from equijax import specialise

        numbers = specialise.numbers(self.config, species)
        if self.config.spline is not None:
            return self
        key = ("specialised", numbers, tuple(sorted((tolerance or {}).items())))
        if key not in self._on_device:
            config, variables, errors = specialise.specialise(self.config, self.variables, species, tolerance)
            print(specialise.summary(config, errors))
            self._on_device[key] = ForceField(config, variables, self.metadata | {"specialised": errors})
        return self._on_device[key]

    def evaluate(
        self,
        images: list[ase.Atoms],
        dtype: str = "float32",
        head: str | None = None,
        *,
        progress: bool = False,
        errors: Literal["raise", "report"] = "raise",
    ) -> list[dict]:
        """Energy, forces and stress of many structures in full padded batches of few shapes, in input order.

        Args:
          images: structures, of any mixture of sizes and elements.
          dtype: "float32" or "float64".
          head: required for a model with several.
          progress: show a bar of structures done.
          errors: what to do with a structure the model cannot describe: "raise" before anything is computed, or
            "report" it in its own result, {"error": message}, and go on with the rest.

        Returns:
          per structure: energy (eV), energies [n] (eV), forces [n, 3] (eV/A), stress [3, 3] (eV/A^3, ASE sign; NaN
          where the structure is not periodic in all directions).

        Raises:
          ValueError: a structure the model cannot describe, named by its index; an unknown `errors`.
        """
        if errors not in ("raise", "report"):
            raise ValueError(f"errors = {errors!r}: expected 'raise' or 'report'")
        index = self.head_index(head)
        results: list[dict] = [{} for _ in images]
        structures = {}
        for i, atoms in enumerate(images):
            name = f"structure {i} ({atoms.get_chemical_formula()})"
            try:
                graph.check_atoms(atoms, self.config, name)
                structures[i] = (atoms, graph.neighbour_list(atoms, self.config.r_max, name))
            except ValueError as error:
                if errors == "raise":
                    raise
                results[i] = {"error": str(error)}
        with tqdm(total=len(images), desc="evaluate", unit="structure", disable=not progress) as bar:
            bar.update(len(images) - len(structures))
            order = list(structures)
            batches = pack([structures[i] for i in order], BATCH_SLOTS)
            groups = [[structures[order[j]] for j in members] for members in batches]
            for members, chosen, size in zip(batches, groups, self._sizes(groups), strict=True):
                batch = graph.build(chosen, self.config, size, [index] * len(chosen))
                for j, result in zip(members, self._split(batch, chosen, dtype), strict=True):
                    results[order[j]] = result
                bar.update(len(members))
        return results

    def relax(self, images: list[ase.Atoms], **options) -> list:
        """Relax many structures in batches; see `equijax.screen.relax`."""
        from equijax import screen

        return screen.relax(self, images, **options)

    def _sizes(self, groups) -> list[graph.Size]:
        """Padded shape of each batch: one for each rounded K where batches are full, the pool's where they are not."""
        needed = [graph.size_of(chosen, self.config) for chosen in groups]
        rounded = [graph.round_up(size) for size in needed]
        sizes = []
        for size, up in zip(needed, rounded, strict=True):
            full = up._replace(
                nodes=BATCH_SLOTS // up.slots,
                species=max(r.species for r in rounded),
                graphs=max(r.graphs for r in rounded),
            )
            tight = full.holds(size) and full.nodes <= 1.25 * size.nodes
            sizes.append(full if tight and self.pool.offer(full) else self.pool.fit(size))
        return sizes

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
    slots = [graph.size_of([s], None).slots for s in structures]
    padded = [graph.round_up(graph.Size(1, k, 1, 2)).slots for k in slots]
    batches: list[list[int]] = []
    nodes = 0
    for i in sorted(range(len(structures)), key=lambda i: (slots[i], -len(structures[i][0]))):
        size = len(structures[i][0])
        if batches and (nodes + size) * padded[i] <= budget:
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
