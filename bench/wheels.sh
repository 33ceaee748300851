#!/bin/sh
# Fetch the packages that an isolated accelerator machine with JAX, Flax, Optax, Orbax, SciPy and matplotlib lacks, as
# wheels that can be carried there; versions are those of constraints.txt.
#
#   sh bench/wheels.sh [FOLDER=.whl] [PYTHON_VERSION=3.12] [PACKAGE ...]      here, with a network
#
# bench/README.md says how they are used there.
# Further packages, such as the peer mace-torch and what it needs, are named behind; nothing is resolved.
set -e
folder=${1:-.whl}
version=${2:-3.12}
[ $# -gt 2 ] && shift 2 || set --
needed="ase e3nn-jax jraph phonopy phonors spglib symfc seekpath vesin tyro docstring_parser typeguard platformdirs
  jax-md ml_collections frozendict"
platforms=$(for n in 2_28 2_27 2_24 2_17; do printf ' --platform manylinux_%s_x86_64' $n; done)
# shellcheck disable=SC2086
python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
  --python-version "$version" $platforms --platform manylinux2014_x86_64 -c "$(dirname "$0")/../constraints.txt" \
  -d "$folder" $needed "$@"
du -sh "$folder"
