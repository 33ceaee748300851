"""Couplings and spherical harmonics against those of e3nn_jax; what is not equivariant is refused."""

import e3nn_jax as e3nn
import numpy as np
import pytest

from equijax import couplings
from equijax.config import ModelConfig
from equijax.errors import InputError
from equijax.testing import random_config

LMAX = 4


def test_couplings_are_those_of_e3nn():
    for l1, l2 in np.ndindex(LMAX + 1, LMAX + 1):
        for l3 in range(abs(l1 - l2), l1 + l2 + 1):
            expected = np.asarray(e3nn.clebsch_gordan(l1, l2, l3)) * np.sqrt(2 * l3 + 1)
            np.testing.assert_allclose(couplings.condon_shortley(l1, l2, l3=l3), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("lmax", range(LMAX + 1))
def test_harmonics_are_those_of_e3nn(lmax):
    u = np.random.default_rng(0).normal(size=(7, 3))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    linear, mix = couplings.harmonics(lmax)
    found = np.prod(np.insert(u, 0, 1.0, axis=1) @ linear, axis=0) @ mix
    expected = e3nn.spherical_harmonics(e3nn.Irreps.spherical_harmonics(lmax), u, False, normalization="component")
    np.testing.assert_allclose(found, expected.array, rtol=0, atol=3e-6)  # e3nn_jax in float32
    np.testing.assert_allclose((found**2).sum(1), (lmax + 1) ** 2, rtol=0, atol=1e-13)


def hidden(text: str) -> ModelConfig:
    return random_config(hidden_irreps=text)


@pytest.mark.parametrize("text", ["8x0e+8x1o", " 8x0e + 8x1o ", "0e+1o", "8x0e"])
def test_hidden_irreps_are_read_as_e3nn_reads_them(text):
    parsed = e3nn.Irreps(text)
    assert hidden(text).channels == parsed[0].mul
    assert hidden(text).hidden_lmax == parsed.lmax


@pytest.mark.parametrize("text", ["", "8x0e+", "8x", "8x0e,8x1o", "8x0e+4x1o", "8x0o", "8x0e+8x2e", "8x1o+8x0e"])
def test_other_hidden_irreps_are_refused(text):
    with pytest.raises(InputError, match="hidden_irreps"):
        hidden(text)


def test_a_u_tensor_in_another_basis_is_refused():
    u = couplings.u_tensor(3, 1, degree=2)
    rotated = np.roll(u, 1, axis=1)
    with pytest.raises(ValueError, match="equivariance demands"):
        couplings.compress_u(rotated, 3, L=1)
