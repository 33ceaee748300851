"""Labelled structures: files in, checked labels, isolated-atom energies, padded batches out.

The face is what a user of labelled structures needs; batches, E0s and phonopy's files are asked of their modules.
"""

from typing import TYPE_CHECKING

from equijax.faces import face

if TYPE_CHECKING:
    from equijax.data.files import read_file as read_file
    from equijax.data.files import read_structures as read_structures
    from equijax.data.items import predictions as predictions
    from equijax.data.labelled import Labelled as Labelled
    from equijax.data.labelled import to_atoms as to_atoms
    from equijax.data.options import Keys as Keys

__getattr__, __dir__ = face(
    __name__,
    {
        "Keys": "options",
        "Labelled": "labelled",
        "predictions": "items",
        "read_file": "files",
        "read_structures": "files",
        "to_atoms": "labelled",
    },
)
