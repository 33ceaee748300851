"""ASE calculators of mace-torch's files under mace-torch's names: a script changes one import.

from convert import mace_mp          # instead of mace.calculators
atoms.calc = mace_mp(model="medium-0b3", dispersion=True, default_dtype="float64")
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ase.calculators.calculator import Calculator

from convert import run
from equijax.errors import InputError

if TYPE_CHECKING:
    from equijax import ForceField

DEFAULT = "medium-mpa-0"  # mace-torch's since 0.3.10
BACKENDS = {"cpu": "cpu", "cuda": "gpu"}  # torch's name -> JAX's


def mace_mp(
    model: str | Path | None = None,
    device: str = "",
    *,
    default_dtype: str = "float32",
    dispersion: bool = False,
    dispersion_xc: str = "pbe",
    head: str | None = None,
) -> Calculator:
    """What mace-torch's function of this name gives, computed by equijax: see `equijax.calculator`.

    Args:
      model: a published name (see `python -m convert --list`), downloaded once; a .model file, read anew each time; or
        a folder that `python -m convert` or fine-tuning wrote. A name whose licence is not MIT is refused: convert it
        once with --accept-licence and give the folder.
      device: "", "cpu" or "cuda". It chooses nothing, JAX does; another than JAX's is an error.
      default_dtype: "float32" or "float64".
      dispersion: add D3 with Becke-Johnson damping over pairs within 40 Bohr (extra `d3`).
      dispersion_xc: the functional that it is for.
      head: of a model that has several.

    Raises:
      InputError: an unknown dtype, head, functional or device; a file that cannot be converted.
      OSError: no such file or published name, no network, a licence to accept.
    """
    _check_device(device)
    ff = _forcefield(DEFAULT if model is None else model, head=head)
    return (ff.with_dispersion(dispersion_xc) if dispersion else ff).calculator(dtype=default_dtype)


def _forcefield(model: str | Path, *, head: str | None) -> "ForceField":
    import equijax  # not at the top: `import convert` does without JAX

    if Path(model).expanduser().is_dir():
        return equijax.load(Path(model).expanduser(), head=head)
    path = run.locate(str(model), accept_licence=False, verify=False)
    _, config, variables = run.read(path, name=str(model))
    return equijax.ForceField(config, variables, {"source": path.name}, head)


def _check_device(device: str) -> None:
    import jax  # see `_forcefield`

    wanted, found = device.split(":")[0], jax.default_backend()
    if wanted and BACKENDS.get(wanted) != found:
        raise InputError(
            f"device = {device!r}: JAX computes on {found}; leave it out, or choose with the environment variable "
            "JAX_PLATFORMS (cpu, cuda) before Python starts; a GPU needs the extra cuda"
        )
