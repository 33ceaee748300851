"""D3 dispersion with Becke-Johnson damping: attraction of pairs, weaker or stronger by how coordinated both atoms are.

    E_i  = -1/2 sum_j C6_ij [ s6 / (r^6 + R_ij^6) + s8 Q_ij / (r^8 + R_ij^8) ],   R_ij = a1 sqrt(Q_ij) + a2
    Q_ij = C8_ij / C6_ij = 3 q_i q_j
    C6_ij = sum_ab w_ia w_jb C6[Z_i a, Z_j b],   w_ia = exp(-4 (CN_i - CN[Z_i a])^2) / sum_a' (the same)
    CN_i = sum_j 1 / (1 + exp(-16 (r_ij0 / r - 1))),   r_ij0 = 4/3 (R_i + R_j)

over all atoms j within the cutoff, periodic images included, in Hartree and Bohr. Grimme, Antony, Ehrlich and Krieg,
J. Chem. Phys. 132, 154104 (2010): coordination numbers CN, Eq. 15, and C6 between those of reference molecules a and b,
Eq. 16; Grimme, Ehrlich and Goerigk, J. Comput. Chem. 32, 1456 (2011): the damping. Without three-body terms. The cutoff
is sharp, as in mace-torch's `dispersion=True`: a pair that crosses 40 Bohr changes the energy by 7e-9 eV times its C6.
"""

import jax
import jax.numpy as jnp
from ase.units import Bohr, Hartree

from equijax import precision
from equijax.config import Dispersion
from equijax.graph.fields import Topology

STEEPNESS, SHARPNESS = 16.0, 4.0  # k1 of Eq. 15 and k3 of Eq. 16


@precision.exact
def node_energies(spec: Dispersion, tables: dict, *, vectors: jax.Array, topology: Topology) -> jax.Array:
    """Dispersion energies [N] eV of atoms, half of each pair's to either: differentiable to any order.

    Args:
      spec: parameters of the functional, and the cutoff.
      tables: of all species of the model, see `equijax.dispersion.tables`.
      vectors: [N, K, 3] receiver minus sender, A; masked slots longer than the cutoff.
      topology: species, senders and reverse of the edges.
    """
    slot, present = jnp.asarray(topology.slot), jnp.asarray(topology.table)
    sender = slot[topology.senders].reshape(vectors.shape[:2])  # [N, K]
    radius, q, reference, c6 = (jnp.asarray(tables[name], vectors.dtype) for name in ("radius", "q", "reference", "c6"))
    radius, q, reference, c6 = radius[present], q[present], reference[present], c6[present][:, present]
    r = jnp.sqrt((vectors**2).sum(-1)) / Bohr
    inside = r < spec.cutoff / Bohr

    touching = radius[slot][:, None] + radius[sender]
    coordination = jnp.where(inside, jax.nn.sigmoid(STEEPNESS * (touching / r - 1.0)), 0.0).sum(1)
    weights = jax.nn.softmax(-SHARPNESS * (coordination[:, None] - reference[slot]) ** 2, axis=1)  # [N, R]

    ratio = 3.0 * q[slot][:, None] * q[sender]
    damped = spec.a1 * jnp.sqrt(ratio) + spec.a2
    pair = spec.s6 / (r**6 + damped**6) + spec.s8 * ratio / (r**8 + damped**8)
    pair = jnp.where(inside, pair, 0.0)
    # C6 is bilinear in the weights, so neighbours of one species are summed before it: no C6 an edge
    theirs = topology.gather(weights, topology.senders, topology.reverse)  # [N, K, R]
    of_species = jax.nn.one_hot(sender, len(present), dtype=vectors.dtype)  # [N, K, S]
    summed = jnp.einsum("nks,nk,nkb->nsb", of_species, pair, theirs)
    return -0.5 * Hartree * jnp.einsum("na,nsab,nsb->n", weights, c6[slot], summed)
