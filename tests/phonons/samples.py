"""A small model whose second and third derivatives compile fast."""

SMALL = {"channels": 4, "max_ell": 1, "correlation": (2, 2), "radial_mlp": (8,), "num_radial": 4}  # compiles fast
