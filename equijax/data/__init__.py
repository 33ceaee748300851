"""Labelled structures: files in, checked labels, isolated-atom energies, padded batches out.

The face is what a user of labelled structures needs; batches, E0s and phonopy's files are asked of their modules.
"""

from equijax.data.files import read_file, read_structures
from equijax.data.items import predictions
from equijax.data.labelled import Keys, Labelled, to_atoms

__all__ = ["Keys", "Labelled", "predictions", "read_file", "read_structures", "to_atoms"]
