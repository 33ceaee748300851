"""Clebsch-Gordan couplings: what is not equivariant is refused."""

import numpy as np
import pytest

from equijax import couplings


def test_a_u_tensor_in_another_basis_is_refused():
    u = couplings.u_tensor(3, 1, degree=2)
    rotated = np.roll(u, 1, axis=1)
    with pytest.raises(ValueError, match="equivariance demands"):
        couplings.compress_u(rotated, 3, L=1)
