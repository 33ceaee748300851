"""Converts mace-torch models to equijax checkpoints and back: `python -m convert SOURCE OUT`."""
