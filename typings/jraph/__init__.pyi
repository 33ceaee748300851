# What equijax uses of jraph, whose own annotations make every field of a graph a union that nothing can index.
from typing import Any, NamedTuple

class GraphsTuple(NamedTuple):
    nodes: Any
    edges: Any
    receivers: Any
    senders: Any
    globals: Any
    n_node: Any
    n_edge: Any
