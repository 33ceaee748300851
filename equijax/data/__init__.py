"""Labelled structures: files in, checked labels, isolated-atom energies, padded batches out."""

from equijax.data.batches import Item as Item
from equijax.data.batches import batch as batch
from equijax.data.batches import plan as plan
from equijax.data.batches import predictions as predictions
from equijax.data.batches import prepare as prepare
from equijax.data.batches import size_of as size_of
from equijax.data.energies import Energies as Energies
from equijax.data.energies import given as given
from equijax.data.energies import isolated as isolated
from equijax.data.energies import off_reference as off_reference
from equijax.data.energies import refit as refit
from equijax.data.labelled import Keys as Keys
from equijax.data.labelled import Labelled as Labelled
from equijax.data.labelled import Split as Split
from equijax.data.labelled import check_stress as check_stress
from equijax.data.labelled import elements as elements
from equijax.data.labelled import sha256 as sha256
from equijax.data.labelled import split as split
from equijax.data.labelled import to_atoms as to_atoms
from equijax.data.phonopy_files import ForceConstants as ForceConstants
from equijax.data.phonopy_files import force_constants as force_constants
from equijax.data.phonopy_files import products as products
from equijax.data.phonopy_files import waves as waves
from equijax.data.read import Read as Read
from equijax.data.read import load as load
from equijax.data.read import read as read
