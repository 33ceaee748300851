"""ASE calculator."""

from collections.abc import Sequence
from typing import Any

import jraph
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.outputs import Properties, all_outputs
from ase.stress import full_3x3_to_voigt_6_stress

from equijax import compiled, derivatives, descriptors, graph, hessian, potential
from equijax.config import Compute
from equijax.derivatives import Derivatives
from equijax.errors import NotFinite, needed
from equijax.graph.neighbours import embedded_numbers
from equijax.potential import Potential

NO_ATOMS = "no structure to calculate: give the calculator one"


class EquijaxCalculator(Calculator):
    """Energy, energies per atom, forces and stress for ASE; made by `ForceField.calculator`.

    `results`, `get_hessian` and `get_descriptors` have the names and shapes of mace-torch's `MACECalculator`:
    "energies" [N] eV with the isolated atoms' energies, "node_energy" [N] eV without them. "stresses" [N, 6] eV/A^3,
    each atom's part of the stress, are computed where they are asked for (`atoms.get_stresses()`).

    The stress is dE/dstrain over the volume of the cell, for every structure whose cell has one: that of a slab counts
    the vacuum, as in `ForceField.evaluate`, mace-torch and ASE's own calculators.

    Neighbour lists are exact at every step; pairs are listed anew when atoms or cell have moved too far. Padded shapes
    grow on a coarse ladder, so a moving system compiles once or twice, not at each change of its neighbour count. With
    `fast`, the model specialised for the structure's elements does the work; its errors are printed when it is made.
    """

    implemented_properties = ["energy", "free_energy", "energies", "node_energy", "forces", "stress", "stresses"]

    def __init__(self, forcefield: Potential, dtype: str = "float64", fast: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        Compute(dtype)  # refuses another
        compiled.use_cache()
        self.forcefield, self.dtype, self.fast = forcefield, dtype, fast
        self.head, self.neighbours = forcefield.head_index, graph.SkinList(graph.longest_cutoff(forcefield.config))

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What may have changed since the last calculation: also charge and spin in `Atoms.info` that a model reads.

        Where atoms have moved nothing else is compared: everything is looked at anew.
        """
        if self.atoms is None or not np.array_equal(self.atoms.positions, atoms.positions):
            return list(all_changes)
        changes = super().check_state(atoms, tol)
        before, now = (embedded_numbers(a.info, self.forcefield.config) for a in (self.atoms, atoms))
        return changes if before == now else [*changes, "info"]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill `results`; ASE calls this when something changed. Non-finite forces are an error, not a result."""
        super().calculate(atoms, properties, system_changes)
        given = needed(self.atoms, NO_ATOMS)
        ff = self._model(given)
        batch = graph.from_atoms(given, ff.config, pool=ff.pool, heads=[self.head], lists=[self.neighbours])
        out, n = self._derivatives(ff, batch), len(given)
        if not np.isfinite(out.forces).all():
            raise NotFinite(f"the potential returned a non-finite force for {given.get_chemical_formula()}")
        energy = float(out.energy[0])
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": out.node_energy[:n],
            "node_energy": (out.node_energy - potential.isolated_energies(ff.config, ff.variables, graph=batch))[:n],
            "forces": out.forces[:n],
        }
        if graph.has_stress(given):
            self.results["stress"] = full_3x3_to_voigt_6_stress(out.stress[0])
        elif {"stress", "stresses"} & set(properties):
            raise PropertyNotImplementedError("stress needs three cell vectors that span a volume")
        if "stresses" in properties:
            virials = derivatives.atomic_virials(
                ff.config, ff.device_variables(self.dtype), graph=batch, dtype=self.dtype
            )
            self.results["stresses"] = full_3x3_to_voigt_6_stress(virials[:n] / given.cell.volume)

    def export_properties(self) -> Properties:
        """Those of `results` that ASE knows: "node_energy" is mace-torch's."""
        return Properties({name: value for name, value in self.results.items() if name in all_outputs})

    def get_hessian(self, atoms: Atoms | None = None) -> np.ndarray:
        """Second derivatives d2E / dr_ia dr_jb [3N, N, 3] eV/A^2, rows (i, a): exact, in the calculator's dtype.

        See `equijax.hessian`; constraints do not enter.
        """
        given = needed(self.atoms if atoms is None else atoms, NO_ATOMS)
        found = hessian.hessian(self._model(given), given, compute=Compute(self.dtype))
        return found.reshape(-1, len(given), 3)

    def get_descriptors(
        self, atoms: Atoms | None = None, invariants_only: bool = True, num_layers: int = -1
    ) -> np.ndarray:
        """Node features [N, features] of the first `num_layers` interactions, -1 for all: see `equijax.descriptors`."""
        given = needed(self.atoms if atoms is None else atoms, NO_ATOMS)
        layers, compute = None if num_layers == -1 else num_layers, Compute(self.dtype)
        return descriptors.descriptors(
            self.forcefield, [given], invariants_only=invariants_only, num_layers=layers, compute=compute
        )[0]

    def _derivatives(self, ff: Potential, batch: jraph.GraphsTuple) -> Derivatives:
        return derivatives.evaluate(ff.config, ff.device_variables(self.dtype), graph=batch, dtype=self.dtype)

    def _model(self, atoms: Atoms) -> Potential:
        return self.forcefield.specialise(atoms.numbers) if self.fast else self.forcefield
