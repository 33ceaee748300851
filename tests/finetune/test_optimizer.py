"""The update rule: averages, and options that cannot be."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from equijax.finetune.defaults import TRAINING
from equijax.finetune.optimizer import moving_average


def test_average_forgets_the_start_quickly_then_holds():
    ema, new = jnp.zeros(()), jnp.ones(())
    np.testing.assert_allclose(moving_average(ema, new, step=jnp.int32(0), decay=0.99), 0.9)
    np.testing.assert_allclose(moving_average(ema, new, step=jnp.int32(10**6), decay=0.99), 0.01, rtol=1e-5)


@pytest.mark.parametrize("name, value", [("lr", 0.0), ("ema", 1.0), ("epochs", 0), ("optimizer", "schedule_free")])
def test_impossible_options_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name} = {value}|needs schedule='constant'"):
        dataclasses.replace(TRAINING, **{name: value})
