"""ASE calculator."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from equijax import compiled, derivatives, graph
from equijax.config import Compute
from equijax.errors import NotFinite, needed
from equijax.graph.neighbours import embedded_numbers
from equijax.potential import Potential


class EquijaxCalculator(Calculator):
    """Energy, energies per atom, forces and stress for ASE; made by `ForceField.calculator`.

    The stress is dE/dstrain over the volume of the cell, for every structure whose cell has one: that of a slab counts
    the vacuum, as in `ForceField.evaluate`, mace-torch and ASE's own calculators.

    Neighbour lists are exact at every step; pairs are listed anew when atoms or cell have moved too far. Padded shapes
    grow on a coarse ladder, so a moving system compiles once or twice, not at each change of its neighbour count. With
    `fast`, the model specialised for the structure's elements does the work; its errors are printed when it is made.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]

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
        given = needed(self.atoms, "no structure to calculate: give the calculator one")
        ff = self.forcefield.specialise(given.numbers) if self.fast else self.forcefield
        batch = graph.from_atoms(given, ff.config, pool=ff.pool, heads=[self.head], lists=[self.neighbours])
        out = derivatives.evaluate(ff.config, ff.device_variables(self.dtype), graph=batch, dtype=self.dtype)
        n = len(given)
        if not np.isfinite(out.forces).all():
            raise NotFinite(f"the potential returned a non-finite force for {given.get_chemical_formula()}")
        energy = float(out.energy[0])
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": out.node_energy[:n],
            "forces": out.forces[:n],
        }
        if graph.has_stress(given):
            self.results["stress"] = full_3x3_to_voigt_6_stress(out.stress[0])
        elif "stress" in properties:
            raise PropertyNotImplementedError("stress needs three cell vectors that span a volume")
