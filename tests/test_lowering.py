"""Programs for accelerators, lowered where there is none: what they call, their precision, scatters and size."""

import re
from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from equijax import derivatives, folding, graph, md, potential, testing
from equijax.adapters import lora
from equijax.data import Labelled, items
from equijax.finetune import trainer
from equijax.finetune.defaults import LOSS, TRAINING
from equijax.finetune.strategies import Trainable, fill
from equijax.forcefield import ForceField
from equijax.md import blocks
from equijax.nn import contraction, convolution

TRITON = "__gpu$xla.gpu.triton"
# kernels of 16 channels and more; two interactions, so that features of degree 1 are convolved
FF = testing.random_forcefield(
    testing.random_config(channels=16, max_ell=1, correlation=(2, 2), num_radial=4, radial_mlp=(8,), species=(11, 17))
)
ATOMS = testing.rattled()
WIDE = 100  # numbers: fewer, per graph or species, may be scattered
MAX_BYTES = 4e6  # of a module's text


@cache
def batch(ff):
    return potential.cast(graph.from_atoms(ATOMS, ff.config), "float32")


def energies(ff):
    return lambda v, g: potential.energy(ff.config, v, graph=g), (ff.device_variables(), batch(ff))


def forces(ff):
    return lambda v, g: derivatives.energy_forces_stress(ff.config, v, graph=g), (ff.device_variables(), batch(ff))


def hessian_products(ff):
    tangents = np.ones((len(ATOMS), 2, 3), np.float32)
    return partial(derivatives.hessian_products, ff.config), (ff.device_variables(), batch(ff), tangents)


def dynamical_matrix(ff):
    kind = derivatives.WaveKind(ff.config, "float32", real=False, slopes=False)
    waves = np.ones((1, 3), np.float32), np.ones((1, len(ATOMS), 3), np.float32)
    return partial(derivatives.wave_columns, kind), (ff.device_variables(), batch(ff), *waves)


def dynamics(ff):
    from jax_md import simulate, space

    displacement, shift = space.periodic(5.6)
    neighbor_fn, energy_fn = md.energy_neighbor(displacement, 5.6, ff=ff, numbers=ATOMS.numbers)
    R = jnp.asarray(ATOMS.positions, jnp.float32)
    init, apply = simulate.nve(energy_fn, shift, 0.1)
    neighbors, variables = neighbor_fn.allocate(R), ff.device_variables()
    momenta, mass = jnp.zeros_like(R), jnp.ones((len(R), 1), jnp.float32)
    state = jax.eval_shape(
        lambda R: init(
            jax.random.PRNGKey(0), R, 0.0, mass=mass, momenta=momenta, neighbor=neighbors, variables=variables
        ),
        R,
    )
    return blocks.compiled_block(blocks.Stepper(apply, neighbor_fn)), (state, neighbors, 2, {"variables": variables})


def training(ff, adapters: bool):
    params = potential.cast(ff.variables["params"], "float32")
    trained = Trainable(lora.init_lora(params, 2, alpha=2), lora.apply) if adapters else Trainable(params, fill)
    labelled = [Labelled(ATOMS, 0.0, np.ones((len(ATOMS), 3)), np.eye(3), source="test")]
    prepared = items.batch(items.prepare(labelled, ff.config), ff.config, energies=np.zeros((1, 2)))
    step = trainer.make_step(ff.config, trained, losses=LOSS, options=TRAINING, total_steps=2)
    state = trainer.init(trained.start, TRAINING, total_steps=2)
    return step, (state, potential.cast(ff.variables, "float32"), potential.cast(prepared, "float32"))


PROGRAMS = {
    "energies": energies,
    "forces": forces,
    "hessian products": hessian_products,
    "dynamical matrix": dynamical_matrix,
    "dynamics": dynamics,
    "training": partial(training, adapters=False),
    "training of adapters": partial(training, adapters=True),
}
SPECIALISED = ("energies", "hessian products", "dynamics")
CASES = [("plain", name) for name in PROGRAMS if name != "dynamics"] + [("specialised", name) for name in SPECIALISED]


@cache
def specialised():
    """Without the comparison with the plain model, which tests of `specialise` make."""
    small = folding.shrink(FF.config, FF.config.species, step=0.04)
    return ForceField(small, {"params": {}, "constants": folding.fold(FF.config, FF.variables, small=small)}, {})


def lowered(function: Callable, arguments: tuple, platforms: list[str]) -> str:
    """Its StableHLO for other platforms than this one."""
    allowed = [export.DisabledSafetyCheck.custom_call(TRITON)]
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    return export.export(jitted, platforms=platforms, disabled_checks=allowed)(*arguments).mlir_module()


def check(text: str, calls: set[str]) -> None:
    assert set(re.findall(r"custom_call @([\w$.]+)", text)) == calls
    assert "f64" not in text
    assert len(text) < MAX_BYTES


def scattered(text: str) -> list[int]:
    """How many numbers each scatter of float32 writes into."""
    shapes = re.findall(r'"stablehlo.scatter"\(.*?\}\) : \([^)]*\) -> tensor<([0-9x]*)f32>', _one_line_each(text))
    return [int(np.prod([int(n) for n in s.split("x") if n])) for s in shapes]


def _one_line_each(text: str) -> str:
    """Operations with a region on one line, others as they are."""
    return re.sub(r"\(\{\n.*?\n\s*\}\)", lambda m: m[0].replace("\n", " "), text, flags=re.DOTALL)


def on(platform: str, monkeypatch) -> None:
    """Trace as a process on such a device does."""
    for module in (convolution, contraction):
        monkeypatch.setattr(module, "kernel_platform", lambda *args: platform)


@pytest.mark.parametrize(("model", "name"), CASES)
def test_programs_for_gpus_and_tpus(model, name, monkeypatch):
    ff = FF if model == "plain" else specialised()
    program = PROGRAMS[name](ff)
    on("other", monkeypatch)
    text = lowered(*program, ["cuda", "rocm", "tpu"])
    check(text, set())
    assert max(scattered(text), default=0) < WIDE or "training" in name


def test_kernels_of_nvidia_gpus(monkeypatch):
    program = hessian_products(FF)
    on("cuda", monkeypatch)
    monkeypatch.setenv("EQUIJAX_KERNELS", "require")
    text = lowered(*program, ["cuda"])
    check(text, {TRITON})
    assert max(scattered(text), default=0) < WIDE
