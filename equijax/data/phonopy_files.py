"""phonopy's files as training data: displaced supercells with forces, and force constants as references."""

from dataclasses import dataclass
from pathlib import Path

import ase
import numpy as np
import phonopy
from phonopy.harmonic.dynmat_to_fc import get_commensurate_points
from phonopy.harmonic.force_constants import compact_fc_to_full_fc
from phonopy.interface.calculator import get_calculator_physical_units
from phonopy.interface.phonopy_yaml import PhonopyYaml

from equijax.data.labelled import Labelled, from_values

YAML_NAMES = ("phonopy_disp.yaml", "phonopy_params.yaml", "phonopy.yaml")
AMPLITUDE_A = 0.1  # rms component of a random tangent


@dataclass(frozen=True, eq=False)
class ForceConstants:
    """Reference force constants of a supercell."""

    atoms: ase.Atoms  # the undisplaced supercell
    values: np.ndarray  # [n, n, 3, 3] eV/A^2
    source: str
    primitive: ase.Atoms  # its p atoms are atoms of the supercell
    first: np.ndarray  # [p] which ones
    image: np.ndarray  # [n] the atom of the primitive cell that a supercell atom repeats
    cells: np.ndarray  # [n, 3] in which cell, integer
    qpoints: np.ndarray  # [Q, 3] commensurate with the supercell, in units of the reciprocal primitive vectors


def is_phonopy(path: Path) -> bool:
    """Whether a file is one of phonopy's, by its name and, for YAML, its first lines."""
    name = path.name
    if name.startswith(("FORCE_SETS", "FORCE_CONSTANTS")) or name.endswith(".hdf5"):
        return True
    if path.suffix not in (".yaml", ".yml"):
        return False
    with path.open() as file:
        return any(line.startswith("phonopy:") for _, line in zip(range(20), file, strict=False))


def read(path: str | Path) -> phonopy.Phonopy:
    """A Phonopy object with the forces or force constants of `path`, in eV and A; nothing is read from elsewhere.

    Raises:
      FileNotFoundError: FORCE_SETS or FORCE_CONSTANTS without a phonopy yaml beside it.
      ValueError: neither forces nor force constants, or units that phonopy does not name.
    """
    path = Path(path)
    description = path if path.suffix in (".yaml", ".yml") else _beside(path)
    stored = PhonopyYaml()
    stored.read(description)
    if stored.unitcell is None or stored.supercell_matrix is None:
        raise ValueError(f"{description}: no unit cell or supercell matrix")
    options = {"produce_fc": False, "symmetrize_fc": False, "is_nac": False, "is_compact_fc": False, "log_level": 0}
    if path != description:
        kind = "force_sets_filename" if path.name.startswith("FORCE_SETS") else "force_constants_filename"
        options[kind] = path
    elif not _has_forces(stored.dataset) and stored.force_constants is None:
        # phonopy would go on to look in the working directory; look beside the file instead
        beside = {"force_sets_filename": "FORCE_SETS", "force_constants_filename": "FORCE_CONSTANTS"}
        found = {k: path.with_name(name) for k, name in beside.items() if path.with_name(name).is_file()}
        if not found:
            raise ValueError(
                f"{path}: neither forces nor force constants in it, nor FORCE_SETS or FORCE_CONSTANTS beside"
            )
        options |= dict(list(found.items())[:1])
    phonon = phonopy.load(description, **options)
    _check_units(phonon, description)
    return phonon


def load(path: str | Path, tangents: int = 0, seed: int = 0) -> list[Labelled]:
    """Displaced supercells with forces (and energies where stored); see `equijax.data.load`.

    Raises:
      ValueError: force constants alone and no tangents asked for.
    """
    phonon = read(path)
    out = _displaced(phonon, path) if _has_forces(phonon.dataset) else []
    if tangents:
        out += products(_constants(phonon, path), tangents, seed=seed)
    if not out:
        raise ValueError(f"{path} holds force constants but no forces: ask for tangents to train on their products")
    return out


def force_constants(path: str | Path) -> ForceConstants:
    """Force constants of a phonopy file, made from its forces where it stores none."""
    return _constants(read(path), path)


def products(
    reference: ForceConstants, tangents: int, copies: int = 1, amplitude: float = AMPLITUDE_A, seed: int = 0
) -> list[Labelled]:
    """The undisplaced supercell labelled with Phi u along random tangents u, no net translation.

    Args:
      reference: force constants Phi.
      tangents: B of each copy.
      copies: structures to make, each with its own tangents.
      amplitude: rms component of a tangent, A.
      seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    n = len(reference.atoms)
    out = []
    for i in range(copies):
        u = amplitude * rng.normal(size=(n, tangents, 3))
        u -= u.mean(0)
        hvp = np.einsum("ijab,jtb->ita", reference.values, u)
        out.append(from_values(reference.atoms, f"{reference.source}:force constants {i}", tangents=u, hvp=hvp))
    return out


def waves(
    reference: ForceConstants, tangents: int, copies: int = 1, amplitude: float = AMPLITUDE_A, seed: int = 0
) -> list[Labelled]:
    """The primitive cell labelled with the response to displacement waves u_j e^{2 pi i q.S} (phases per cell S).

    hvp_i = sum_{j S} Phi[0 i, S j] e^{2 pi i q.S} u_j at random commensurate q, where the sum over the supercell is
    exact: all that the supercell knows, from a cell as small as it gets. Arguments as for `products`.
    """
    rng = np.random.default_rng(seed)
    p = len(reference.primitive)
    out = []
    for i in range(copies):
        q = reference.qpoints[rng.integers(len(reference.qpoints), size=tangents)]
        u = amplitude * (rng.normal(size=(p, tangents, 3)) + 1j * rng.normal(size=(p, tangents, 3)))
        phase = np.exp(2j * np.pi * reference.cells @ q.T)  # [n, B]
        displaced = u[reference.image] * phase[..., None]
        hvp = np.einsum("ijab,jtb->ita", reference.values[reference.first], displaced)
        source = f"{reference.source}:force constants {i}"
        out.append(from_values(reference.primitive, source, tangents=u, hvp=hvp, q=q))
    return out


def to_ase(cell) -> ase.Atoms:
    """A PhonopyAtoms as ase.Atoms."""
    return ase.Atoms(numbers=cell.numbers, cell=cell.cell, scaled_positions=cell.scaled_positions, pbc=True)


def _beside(path):
    for name in YAML_NAMES:
        if path.with_name(name).is_file():
            return path.with_name(name)
    raise FileNotFoundError(f"{path} needs the structure it belongs to: one of {', '.join(YAML_NAMES)} beside it")


def _has_forces(dataset) -> bool:
    if dataset is None:
        return False
    return "forces" in dataset or any("forces" in d for d in dataset.get("first_atoms", ()))


def _check_units(phonon, path):
    units = get_calculator_physical_units(phonon.calculator)
    factors = (units.distance_to_A, units.force_to_eVperA)
    if factors[0] is None or factors[1] is None or not np.allclose(factors, 1.0, atol=1e-6):
        raise ValueError(
            f"{path}: made with {phonon.calculator}, whose lengths and forces phonopy keeps in {units.length_unit} and "
            f"{units.force_unit}; expected A and eV/A: convert the file"
        )


def _displaced(phonon, path) -> list[Labelled]:
    dataset = phonon.dataset
    if "first_atoms" in dataset:
        forces = [d.get("forces") for d in dataset["first_atoms"]]
        energies = [d.get("supercell_energy") for d in dataset["first_atoms"]]
    else:
        forces = list(dataset["forces"])
        energies = list(dataset.get("supercell_energies", [None] * len(forces)))
    cells = phonon.supercells_with_displacements
    return [
        from_values(to_ase(cell), f"{path}:{i}", energy=e, forces=f)
        for i, (cell, e, f) in enumerate(zip(cells, energies, forces, strict=True))
        if cell is not None and f is not None
    ]


def _constants(phonon, path) -> ForceConstants:
    if phonon.force_constants is None:
        phonon.produce_force_constants()
        phonon.symmetrize_force_constants()
    values = np.asarray(phonon.force_constants)
    if values.shape[0] != values.shape[1]:
        values = compact_fc_to_full_fc(phonon.primitive, values)
    supercell, primitive = phonon.supercell, phonon.primitive
    first = np.asarray(primitive.p2s_map)
    image = np.array([primitive.p2p_map[s] for s in primitive.s2p_map])
    inverse = np.linalg.inv(primitive.cell)
    cells = np.rint((supercell.positions - supercell.positions[first][image]) @ inverse).astype(int)
    cell = ase.Atoms(supercell.numbers[first], supercell.positions[first], cell=primitive.cell, pbc=True)
    qpoints = get_commensurate_points(np.rint(supercell.cell @ inverse).astype(int).T)
    return ForceConstants(to_ase(supercell), values, str(path), cell, first, image, cells, qpoints)
