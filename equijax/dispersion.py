"""Numbers of the D3 dispersion of `equijax.nn.dispersion`, read from the package torch-dftd: the extra `d3`, no torch.

ff = equijax.load("model/").with_dispersion("pbe")     # the same as mace-torch's dispersion=True
"""

import dataclasses
import importlib
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np
from ase.units import Bohr

from equijax.config import Dispersion, ModelConfig
from equijax.errors import InputError, MissingExtra

CUTOFF_A = 40.0 * Bohr  # mace-torch's
PACKAGE = "torch-dftd"
TABLES = "torch_dftd/nn/params/dftd3_params.npz"
NOBODY = 1e3  # coordination number of a reference that there is not: no atom comes near it, so its weight is exactly 0


def add(
    config: ModelConfig, variables: dict, *, functional: str = "pbe", cutoff: float = CUTOFF_A
) -> tuple[ModelConfig, dict]:
    """The model with D3(BJ) dispersion: its parameters in the configuration, its tables among the constants.

    Args:
      config, variables: of a plain model.
      functional: as torch-dftd spells it, such as pbe, revpbe, pbesol, b3-lyp.
      cutoff: A, of pairs and coordination numbers.

    Raises:
      InputError: no MACE, dispersion there already, a specialised model, an unknown functional, an element without
        tables.
      MissingExtra: torch-dftd is not installed.
    """
    if not isinstance(config, ModelConfig):
        raise InputError(f"dispersion is added to a MACE, not to a {type(config).__name__}")
    if config.dispersion is not None:
        raise InputError(f"the model has dispersion already, of {config.dispersion.functional}")
    if config.spline is not None:
        raise InputError("the model is specialised: add dispersion to the plain one, then specialise that")
    constants = variables["constants"] | {"dispersion": tables(config.species)}
    config = dataclasses.replace(config, dispersion=parameters(functional, cutoff))
    return config, variables | {"constants": constants}


def without(config: ModelConfig, variables: dict) -> tuple[ModelConfig, dict]:
    """The network alone; a model without dispersion as it is."""
    constants = {name: value for name, value in variables["constants"].items() if name != "dispersion"}
    return dataclasses.replace(config, dispersion=None), variables | {"constants": constants}


def parameters(functional: str, cutoff: float = CUTOFF_A) -> Dispersion:
    """s6, s8, a1 and a2 of a functional.

    Raises:
      InputError: torch-dftd has none for it.
      MissingExtra: torch-dftd is not installed.
    """
    _installed()
    known = importlib.import_module("torch_dftd.dftd3_xc_params")  # imports no torch
    try:
        found = known.get_dftd3_default_params("bj", functional.lower())
    except ValueError as error:
        raise InputError(
            f"dispersion: {PACKAGE} has no Becke-Johnson damping for the functional {functional!r}; it knows pbe, "
            "revpbe, pbesol, b3-lyp and others, spelt as in its dftd3_xc_params.py"
        ) from error
    return Dispersion(functional.lower(), found["s6"], found["s18"], found["rs6"], found["rs18"], float(cutoff))


def tables(species: Sequence[int]) -> dict[str, np.ndarray]:
    """What D3 knows of elements, in the order of `species`, float64.

    Returns:
      radius [Z] Bohr, covalent, times 4/3; q [Z] Bohr, sqrt(sqrt(Z) <r^4> / <r^2> / 2); reference [Z, R] coordination
      numbers of the reference molecules; c6 [Z, Z, R, R] Hartree Bohr^6 between them, 0 where there is none.

    Raises:
      InputError: an element that it does not know.
      MissingExtra: torch-dftd is not installed.
    """
    with np.load(_installed()) as file:
        radius, q, c6ab = (np.asarray(file[name], np.float64) for name in ("rcov", "r2r4", "c6ab"))
    if unknown := sorted(z for z in species if not 0 < z < len(radius)):
        raise InputError(f"dispersion: {PACKAGE} has no coefficients for the atomic numbers {unknown}")
    z = np.asarray(species)
    own = np.einsum("zaax->zax", c6ab[z, z])  # C6 of a reference with itself, its coordination number twice
    reference = np.where(own[..., 0] > 0, own[..., 1], NOBODY)
    return {"radius": radius[z], "q": q[z], "reference": reference, "c6": np.maximum(c6ab[z][:, z][..., 0], 0.0)}


def _installed() -> Any:
    """Path of the tables; the package is not imported, as its modules would ask for torch."""
    try:
        return metadata.distribution(PACKAGE).locate_file(TABLES)
    except metadata.PackageNotFoundError as error:
        raise MissingExtra(f"dispersion needs {PACKAGE}: pip install 'equijax[d3]'") from error
