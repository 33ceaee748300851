"""Structures as regular, padded graphs: neighbour lists, shapes, batches, and the sender gather."""

from equijax.graph.fields import Globals as Globals
from equijax.graph.fields import Nodes as Nodes
from equijax.graph.fields import Slots as Slots
from equijax.graph.fields import Topology as Topology
from equijax.graph.gather import gather_senders as gather_senders
from equijax.graph.neighbours import Edges as Edges
from equijax.graph.neighbours import check_atoms as check_atoms
from equijax.graph.neighbours import has_stress as has_stress
from equijax.graph.neighbours import listed as listed
from equijax.graph.neighbours import longest_cutoff as longest_cutoff
from equijax.graph.neighbours import neighbour_list as neighbour_list
from equijax.graph.regular import build as build
from equijax.graph.regular import from_atoms as from_atoms
from equijax.graph.shapes import MAX_SIZES as MAX_SIZES
from equijax.graph.shapes import SHARED as SHARED
from equijax.graph.shapes import Size as Size
from equijax.graph.shapes import SizePool as SizePool
from equijax.graph.shapes import round_up as round_up
from equijax.graph.shapes import size_of as size_of
from equijax.graph.skin import SkinList as SkinList
