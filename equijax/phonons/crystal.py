"""What runs on a crystal begin with: the model and the structure, whether it is at rest, how to compute."""

from typing import NamedTuple

import ase
from phonopy import Phonopy

from equijax import graph, structures
from equijax.adapters import committee
from equijax.config import Compute
from equijax.forcefield import ForceField
from equijax.phonons import born, certificate
from equijax.phonons.options import CrystalConfig, ForceConstantsConfig
from equijax.potential import Potential
from equijax.relax import symmetric


class Start(NamedTuple):
    """What a run is about."""

    ff: ForceField
    atoms: ase.Atoms


def prepare(config: CrystalConfig) -> Start:
    """The model and the crystal as it is in its file.

    Raises:
      FileNotFoundError, InputError: there is none, or the model does not know its elements.
    """
    atoms = structures.read(config.structure)
    ff = committee.load_any(config.model, head=config.head)
    graph.check_atoms(atoms, ff.config, name=str(config.structure))
    return Start(ff, atoms)


class Rest(NamedTuple):
    """What is known of a run before its force constants."""

    provenance: certificate.Provenance
    formula: str
    space_group: str | None  # None where not periodic in three directions
    supercell_atoms: int
    dtype: str
    residual: symmetric.Residuals  # of the structure whose phonons these are
    warnings: list[str]

    def document(self) -> dict[str, object]:
        """By name, for the certificate."""
        values = self._asdict() | {"residual": self.residual.document()}
        return values.pop("provenance")._asdict() | values


def rest(ff: Potential, atoms: ase.Atoms, *, config: ForceConstantsConfig, phonon: Phonopy) -> Rest:
    """Whether the crystal is at rest, and what computes it; warnings included.

    Args:
      ff: the model.
      atoms: the crystal, relaxed or not.
      config: of the run.
      phonon: its supercell, a Phonopy or a Phono3py.

    Raises:
      InputError: forces so large that there is no harmonic analysis, unless the options allow it.
    """
    residual = symmetric.static_residuals(ff, atoms)
    if not config.allow_unrelaxed:
        symmetric.refuse_unrelaxed(residual, str(config.structure))
    notes = symmetric.warn_unrelaxed(residual) + symmetric.warn_fixed(atoms) + born.warn_polar(phonon)
    return Rest(
        certificate.provenance(ff),
        formula=atoms.get_chemical_formula(),
        space_group=symmetric.space_group(atoms, config.symprec),
        supercell_atoms=len(phonon.supercell),
        dtype=config.dtype,
        residual=residual,
        warnings=notes,
    )


def compute(config: ForceConstantsConfig) -> Compute:
    """How force constants are computed: precision, bytes, with a progress bar."""
    return Compute(config.dtype, None if config.memory is None else int(config.memory * 1e9), progress=True)
