"""Jobs and flows through jobflow's own local manager, against equijax without it; serialised as other managers do."""

import json

import ase.io
import numpy as np
import pytest
from jobflow import Flow, run_locally
from monty.json import MontyDecoder, MontyEncoder
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor

from equijax import checkpoint, phonons
from equijax.errors import InputError
from equijax.flows import FinetuneMaker, KappaMaker, PhononMaker, QhaMaker, RelaxMaker
from equijax.phonons import force_constants

# jobflow 0.4.0 changes folders by a function that monty deprecates
pytestmark = pytest.mark.filterwarnings("ignore:cd is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def model(mini, tmp_path_factory):
    """The bundled model's folder."""
    path = tmp_path_factory.mktemp("flows") / "model"
    checkpoint.save(path, mini.config, variables=mini.variables, metadata=mini.metadata)
    return str(path)


def run(jobs, folder) -> dict[str, dict]:
    """Outputs by name of the job, each job sent through JSON first, as FireWorks and jobflow-remote do."""
    sent = [json.loads(json.dumps(job, cls=MontyEncoder), cls=MontyDecoder) for job in jobs]
    responses = run_locally(Flow(sent), root_dir=folder, create_folders=True, raise_immediately=True, log=False)
    found = {job.name: responses[job.uuid][1].output for job in sent}
    assert json.loads(json.dumps(found)) == found  # plain JSON
    return found


def test_a_relaxed_structure_goes_on_to_phonons(mini, model, silicon, tmp_path):
    start = silicon.copy()
    start.set_cell(silicon.cell * 1.02, scale_atoms=True)
    relax = RelaxMaker(model=model, fmax=1e-6).make(AseAtomsAdaptor.get_structure(start))
    phonon = PhononMaker(model=model, supercell=(2, 2, 2), options={"mesh": (4, 4, 4)}).make(relax.output["structure"])
    found = run([relax, phonon], tmp_path)
    assert found["relax"]["converged"] and found["relax"]["space_group_after"] == "Fd-3m (227)"
    assert Structure.from_dict(found["relax"]["structure"]).volume == pytest.approx(silicon.cell.volume, rel=1e-5)
    expected = phonons.make_phonon(silicon, (2, 2, 2))
    force_constants.force_constants(mini, expected)
    mesh = expected.run_mesh((4, 4, 4), is_gamma_center=True).frequencies
    assert found["phonon"]["highest_THz"] == pytest.approx(mesh.max(), abs=1e-3)
    assert found["phonon"]["dir_name"].startswith(str(tmp_path))


def test_atoms_and_the_other_runs_of_a_crystal(model, silicon, tmp_path):
    meshes = {"mesh": (5, 5, 5), "gruneisen_mesh": (2, 2, 2), "strains": (-0.02, -0.01, 0.0, 0.01, 0.02)}
    qha = QhaMaker(model=model, supercell=(1, 1, 1), options=meshes | {"temperatures": (0.0, 300.0, 100.0)})
    kappa = KappaMaker(model=model, supercell=(2, 2, 2), options={"mesh": (3, 3, 3), "temperatures": (300.0,)})
    found = run([qha.make(silicon)], tmp_path) | run([kappa.make(silicon)], tmp_path)
    assert found["qha"]["mean_gruneisen"] and len(found["qha"]["table"]["temperature_K"]) >= 3
    conductivity = np.array(found["kappa"]["conductivity_W_m_K"])[0]
    np.testing.assert_allclose(conductivity[:3], conductivity[0], rtol=1e-6)
    assert conductivity[0] > 1


def test_fine_tuning_and_what_it_made(folder, tmp_path):
    """Labels from a file, from atoms with a calculator and from a mapping; the new model relaxes the next crystal."""
    images = ase.io.read(folder / "train.extxyz", ":")
    last = images[-1]
    mapping = {"structure": AseAtomsAdaptor.get_structure(last), "energy": last.get_potential_energy()}
    options = {"epochs": 1, "rank": 2, "batch_size": 2, "valid": (str(folder / "test.extxyz"),)}
    tune = FinetuneMaker(model=str(folder / "model"), options=options).make([*images[:3], mapping])
    relax = RelaxMaker(model=str(folder / "model"), steps=1, name="after").make(images[0], tune.output["model"])
    found = run([tune, relax], tmp_path)
    assert found["finetune"]["structures"]["train"] == 4 and found["finetune"]["structures"]["valid"] == 2
    assert np.shape(found["after"]["forces"]) == (len(images[0]), 3)


def test_what_cannot_be_is_refused_before_it_is_submitted(model):
    with pytest.raises(InputError, match=r"options \['supercel'\] of PhononMaker: expected some of"):
        PhononMaker(model=model, supercell=(2, 2, 2), options={"supercel": 1})
    with pytest.raises(InputError, match=r"options \['epoch'\] of FinetuneMaker"):
        FinetuneMaker(model=model, options={"epoch": 1})
