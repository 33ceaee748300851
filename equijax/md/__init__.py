"""Molecular dynamics: a potential for `jax_md.simulate`, and runs with files and restarts."""
