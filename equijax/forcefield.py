"""A loaded model: hyper-parameters, arrays and provenance, with everything a user calls on it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ase
import jax
import jraph
import numpy as np
from ase.calculators.calculator import Calculator
from tqdm import tqdm

from equijax import checkpoint, derivatives, dispersion, graph, potential
from equijax.config import Compute, ModelConfig
from equijax.errors import InputError, NotFinite
from equijax.graph import packing, prefetch
from equijax.graph.fields import Topology
from equijax.potential import Evaluated

if TYPE_CHECKING:
    from equijax.relax import batched


@dataclass(frozen=True, eq=False)
class ForceField:
    """A potential; make one with `equijax.load`.

    Raises:
      InputError: an unknown head.
    """

    config: ModelConfig
    variables: dict  # {"params": ..., "constants": ...} numpy arrays
    metadata: dict
    head: str | None = None  # the one in use, of a model that has several
    # of single structures
    pool: graph.SizePool = field(default_factory=lambda: graph.SizePool(ladders=graph.SHARED), repr=False)
    batch_pool: graph.SizePool = field(default_factory=graph.SizePool, repr=False)  # of `evaluate`
    _on_device: dict = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.head is not None:
            self._index_of(self.head)

    @property
    def head_index(self) -> int:
        """Position of the head in use among the model's heads.

        Raises:
          InputError: a model with several, and none chosen.
        """
        return 0 if self.head is None and len(self.config.heads) == 1 else self._index_of(self.head)

    def _index_of(self, head: str | None) -> int:
        heads = self.config.heads
        if head not in heads:
            raise InputError(f"head {head!r}: expected one of {', '.join(heads)}")
        return heads.index(head)

    def with_head(self, name: str) -> "ForceField":
        """The same model with another head, sharing arrays and compiled programs.

        Raises:
          InputError: an unknown head.
        """
        return replace(self, head=name)

    def device_variables(self, dtype: str = "float32") -> dict:
        """The arrays in `dtype` on the default device, transferred once; E0 stays here, in float64."""
        dtype = np.dtype(dtype).name
        if dtype not in self._on_device:
            # also right when first called while a function is being traced: a tracer must not end up in the cache
            with jax.enable_x64(dtype == "float64"), jax.ensure_compile_time_eval():
                arrays = jax.device_put(potential.cast(self.variables, dtype))
            e0 = np.asarray(self.variables["constants"]["atomic_energies"], np.float64)
            self._on_device[dtype] = {**arrays, "constants": {**arrays["constants"], "atomic_energies": e0}}
        return self._on_device[dtype]

    def node_energies(self, variables: dict, vectors: jax.Array, topology: Topology) -> jax.Array:
        """Interaction energies [N] eV of a graph on the device; see `potential.energy_from_vectors`."""
        return potential.energy_from_vectors(self.config, variables, vectors=vectors, topology=topology)

    def calculator(self, dtype: str = "float64", fast: bool = False) -> Calculator:
        """An ASE calculator, see `equijax.calculator`; `fast`: see `specialise`."""
        from equijax.calculator import EquijaxCalculator

        return EquijaxCalculator(self, dtype=dtype, fast=fast)

    def with_dispersion(self, functional: str = "pbe", cutoff: float = dispersion.CUTOFF_A) -> "ForceField":
        """The same model with D3(BJ) dispersion added, stored with it: see `equijax.dispersion.add`."""
        config, variables = dispersion.add(self.config, self.variables, functional=functional, cutoff=cutoff)
        return ForceField(config, variables, self.metadata, self.head)

    def specialise(self, species: Iterable[int | str], tolerance: dict | None = None) -> "ForceField":
        """The same potential for these species alone, several times faster: see `equijax.specialise`.

        Made once for each set of species; the errors against this model are printed and stand in its
        `metadata["specialised"]`. A specialised model that has them all is returned as it is.
        """
        from equijax import specialise

        numbers = specialise.numbers(self.config, species)
        if self.config.spline is not None:
            return self
        key = ("specialised", self.head, numbers, tuple(sorted((tolerance or {}).items())))
        if key not in self._on_device:
            config, variables, errors = specialise.specialise(
                self.config, self.variables, species=species, tolerance=tolerance
            )
            print(specialise.summary(config, errors))
            self._on_device[key] = ForceField(
                config, variables, self.metadata | {"specialised": errors._asdict()}, self.head
            )
        return self._on_device[key]

    def evaluate(
        self,
        images: Sequence[ase.Atoms],
        *,
        compute: Compute = Compute("float32"),
        errors: Literal["raise", "report"] = "raise",
        names: Sequence[str] | None = None,
    ) -> list[Evaluated]:
        """Energy, forces and stress of many structures in full padded batches of few shapes, in input order.

        Args:
          images: structures, of any mixture of sizes and elements.
          compute: dtype, and whether to show a bar of structures done; batches need little memory.
          errors: what to do with a structure the model cannot describe: "raise", or "report" it as the `error` of its
            own result and go on with the rest.
          names: what messages call the structures, such as file and frame; their indices in `images` by default.

        Returns:
          one `Evaluated` a structure; stresses are over the volume of the cell, a slab's vacuum included.

        Raises:
          InputError: a structure the model cannot describe, named (unknown elements and broken cells are
            found before anything is computed); an unknown `errors`.
          NotFinite: a non-finite energy or force, the structure named.
        """
        if errors not in ("raise", "report"):
            raise InputError(f"errors = {errors!r}: expected 'raise' or 'report'")
        index = self.head_index
        results: list[Evaluated | None] = [None] * len(images)
        called = names or [f"structure {i}" for i in range(len(images))]
        called = [f"{name} ({a.get_chemical_formula()})" for name, a in zip(called, images, strict=True)]

        def attempt(i: int, function: Callable, *args: Any) -> Any:
            """The value; None, and an entry in the results, where it fails and errors are to be reported."""
            try:
                return function(*args, name=called[i])
            except (InputError, NotFinite) as error:
                if errors == "raise":
                    raise
                results[i] = failed(len(images[i]), str(error))

        def structures() -> Iterator[packing.Structure]:
            for i, atoms in enumerate(images):
                edges = None if results[i] is not None else attempt(i, graph.listed, atoms, self.config)
                if edges is not None:
                    yield packing.structure(i, atoms, edges=edges)

        for i, atoms in enumerate(images):
            attempt(i, graph.check_atoms, atoms, self.config)
        batches = packing.batches(
            structures(), self.batch_pool, known=len(self.config.species), budget=packing.batch_slots()
        )
        prepared = prefetch.ahead((b, b.build(self.config, index)) for b in batches)
        with tqdm(total=len(images), desc="evaluate", unit="structure", disable=not compute.progress) as bar:
            for batch, found in self._computed(prepared, compute.dtype):
                for s, result in zip(batch.members, found, strict=True):
                    if attempt(s.index, finite, result):
                        results[s.index] = result
                bar.update(len(batch.members))
            bar.update(len(images) - bar.n)
        return [result for result in results if result is not None]

    def relax(self, images: Sequence[ase.Atoms], **options: Any) -> list["batched.Relaxed"]:
        """Relax many structures in batches; see `equijax.relax.batched.relax`."""
        from equijax.relax import batched

        return batched.relax(self, images, **options)

    def _computed(self, prepared: Iterable[tuple], dtype: str) -> Iterator[tuple]:
        """(batch, one result per member): the device is given the next batch before the last one is read."""
        variables, waiting = self.device_variables(dtype), None
        for batch, padded in prepared:
            started = derivatives.start(self.config, variables, graph=padded, dtype=dtype)
            if waiting is not None:
                yield self._finished(*waiting)
            waiting = batch, padded, started
        if waiting is not None:
            yield self._finished(*waiting)

    def _finished(self, batch: packing.Batch, padded: jraph.GraphsTuple, started: derivatives.Derivatives) -> tuple:
        out = derivatives.finish(self.config, self.variables, graph=padded, started=started)
        return batch, list(_split(out, [s.atoms for s in batch.members]))


def _split(out: derivatives.Derivatives, images: list[ase.Atoms]) -> Iterator[Evaluated]:
    """Results of each structure of a batch."""
    first = 0
    for g, atoms in enumerate(images):
        rows = slice(first, first + len(atoms))
        first += len(atoms)
        stress = out.stress[g] if graph.has_stress(atoms) else np.full((3, 3), np.nan)
        yield Evaluated(float(out.energy[g]), out.node_energy[rows], out.forces[rows], stress)


def failed(num_atoms: int, error: str) -> Evaluated:
    """The result of a structure that has none."""
    return Evaluated(
        np.nan, np.full(num_atoms, np.nan), np.full((num_atoms, 3), np.nan), np.full((3, 3), np.nan), error
    )


def finite(result: Evaluated, name: str) -> Evaluated:
    """The result itself.

    Raises:
      NotFinite: an energy or force is not finite.
    """
    if not (np.isfinite(result.energy) and np.isfinite(result.forces).all()):
        raise NotFinite(f"{name}: the potential returned a non-finite energy or force")
    return result


def load(path: str | Path, *, head: str | None = None) -> ForceField:
    """Load a model directory written by `python -m convert` or by fine-tuning.

    Args:
      path: the directory.
      head: the head to use, of a model that has several; needed there before anything is computed.

    Raises:
      FileNotFoundError, InputError: see `equijax.checkpoint.load`; an unknown head.
    """
    return ForceField(*checkpoint.load(path), head=head)
