"""Files that earlier releases of mace-torch write, converted and compared with the release that wrote them.

`make parity` takes a few of them; `make matrix` sets EQUIJAX_MATRIX to the file where it writes what it found for all.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from ase.io import read

from convert import __main__ as cli
from equijax import checkpoint, derivatives, graph
from tests.parity import _versions as versions

OUTCOME = os.environ.get("EQUIJAX_MATRIX")
QUICK = {
    3: ["two_stages", "calculator_widened"],
    9: ["foundation_density"],
    14: ["nonlinear"],
    16: ["multihead", "lora", "embedded"],
}
CASES = {release: versions.recipes_of(release) for release in versions.RELEASES} if OUTCOME else QUICK
# In float64. Files built in float32 hold couplings and Bessel prefactors that were rounded to float32.
LIMITS = {
    "float64": {"energy": 1e-9, "forces": 1e-8, "stress": 1e-10},  # eV/atom, eV/A, eV/A^3
    "float32": {"energy": 1e-6, "forces": 1e-5, "stress": 1e-7},
}
MIN_FORCE = 0.05  # eV/A, far above the limits


@pytest.mark.parametrize("release", CASES)
def test_files_of_a_release(release, tmp_path):
    try:
        versions.write_models(release, CASES[release], tmp_path)
    except ConnectionError as error:
        pytest.skip(str(error))
    outcome = {name: outcome_of(tmp_path / name) for name in CASES[release]}
    if OUTCOME:
        write_outcome(Path(OUTCOME), f"0.3.{release}", outcome)
    wrong = [
        f"{name}, {file}: {found}"
        for name, files in outcome.items()
        for file, found in files.items()
        if isinstance(found, str) or exceeds(found, versions.RECIPES[name].dtype)
    ]
    assert not wrong, f"mace-torch 0.3.{release}:\n" + "\n".join(wrong)


def outcome_of(folder: Path) -> dict[str, dict[str, float] | str]:
    """Largest differences of every file that a recipe left in its folder, or what went wrong."""
    if not (folder / "done.json").is_file():
        return {"written": (folder / "failed.txt").read_text().strip().splitlines()[-1]}
    found = {}
    for name in json.loads((folder / "done.json").read_text()):
        try:
            found[name] = differences(folder / name)
        except ValueError as error:  # how the converter refuses
            found[name] = str(error)
    return found


def differences(path: Path) -> dict[str, float]:
    """Largest differences over heads and structures to what the release itself computed, both in float64."""
    out, images = path.with_suffix(""), read(path.parents[1] / "test.xyz", ":")
    sizes = np.array([len(atoms) for atoms in images])
    assert cli.main.__wrapped__([str(path), str(out)]) == 0  # which raises what it refuses
    config, variables, _ = checkpoint.load(out)
    crystal = [atoms.pbc.all() for atoms in images]
    theirs = np.load(path.with_suffix(".npz"))
    worst = dict.fromkeys(("energy", "forces", "stress"), 0.0)
    for i, head in enumerate(theirs["heads"]):
        assert np.abs(theirs[f"forces{i}"]).max() > MIN_FORCE, f"{path} has learnt nothing that could be compared"
        batch = graph.from_atoms(images, config, heads=[config.heads.index(head)] * len(images))
        ours = derivatives.evaluate(config, variables, graph=batch, dtype="float64")
        error = {
            "energy": (ours.energy[: len(images)] - theirs[f"energy{i}"]) / sizes,
            "forces": ours.forces[: sizes.sum()] - theirs[f"forces{i}"],
            "stress": ours.stress[: len(images)][crystal] - theirs[f"stress{i}"],
        }
        worst = {key: float(np.maximum(worst[key], np.abs(value).max())) for key, value in error.items()}
    return {key: float(f"{value:.1e}") for key, value in worst.items()}


def exceeds(found: dict[str, float], dtype: str) -> bool:
    return any(not value <= LIMITS[dtype][key] for key, value in found.items())


def write_outcome(path: Path, release: str, outcome: dict) -> None:
    """Put the rows of one release in place of its earlier ones."""
    rows = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(rows | {release: outcome}, indent=1) + "\n")
