"""Reading hyper-parameters: old files, and files that contradict themselves."""

import dataclasses

import jax
import numpy as np
import pytest

from convert.errors import UnreadableModel
from convert.mapping import to_flax
from tests.convert.samples import changed


def test_old_files_lack_attributes_and_buffers(mini):
    """MACE-MP-0a was written before heads, switches, zeroed flags and biases existed; E0, scale and shift were flat."""
    new_names = {
        "heads",
        "apply_cutoff",
        "use_reduced_cg",
        "use_agnostic_product",
        "use_so3",
        "edge_irreps",
        "use_last_readout_only",
        "use_edge_irreps_first",
        "lammps_mliap",
        "radial_embedding.apply_cutoff",
        "readouts.1.num_heads",
    }
    new_names |= {n for n in mini.attributes if n.endswith(("cueq_config", "oeq_config", "radial_MLP", ".edge_irreps"))}
    new_names |= {n for n in mini.tensors if n.endswith(("_zeroed", ".bias"))}
    flat = {n: mini.tensors[n].reshape(-1) for n in ("atomic_energies_fn.atomic_energies",)}
    flat |= {n: mini.tensors[n].reshape(()) for n in ("scale_shift.scale", "scale_shift.shift")}
    unused = {"pair_repulsion_fn.r_max": np.float32(5), "pair_repulsion_fn.cutoff.p": np.float32(5)}
    old = changed(mini, drop=new_names, tensors=flat | unused)
    config, variables = to_flax(old)
    wanted_config, wanted = to_flax(mini)
    assert config == wanted_config
    jax.tree.map(np.testing.assert_array_equal, variables, wanted)


def test_numbers_of_old_files_are_plain_attributes(mini):
    """Before mace-torch 0.2: atomic_numbers a list, scalars plain numbers, and bare tensors that are no buffers."""
    names = {
        "r_max",
        "num_interactions",
        "radial_embedding.cutoff_fn.p",
        "radial_embedding.cutoff_fn.r_max",
        "radial_embedding.bessel_fn.r_max",
        "radial_embedding.bessel_fn.prefactor",
    }
    plain = {name: mini.tensors[name].reshape(()).item() for name in names}
    plain |= {n: tuple(mini.tensors[n].tolist()) for n in ("atomic_numbers", "scale_shift.scale", "scale_shift.shift")}
    old = changed(mini, drop=set(plain))
    old = dataclasses.replace(old, attributes=old.attributes | plain)
    config, variables = to_flax(old)
    wanted_config, wanted = to_flax(mini)
    assert config == wanted_config
    jax.tree.map(np.testing.assert_array_equal, variables, wanted)


@pytest.mark.parametrize("value", [(8, "O"), ((1,), (2, 3)), (8, None)])
def test_species_that_are_no_numbers_are_refused(mini, value):
    old = changed(mini, drop={"atomic_numbers"})
    with pytest.raises(UnreadableModel, match="atomic_numbers"):
        to_flax(dataclasses.replace(old, attributes=old.attributes | {"atomic_numbers": value}))


def test_repulsion_switch_and_module_must_agree(mini):
    with pytest.raises(UnreadableModel, match="pair_repulsion"):
        to_flax(changed(mini, drop={"pair_repulsion"}))
