"""Committees: adapters of one backbone that were trained apart; how far they disagree says how sure their mean is.

    E = 1/M sum_m E_m,    F = 1/M sum_m F_m,    var = 1/M sum_m (x_m - mean)^2

A committee is a potential like any other, the mean, for relaxations, phonons and dynamics; what its members say apart
comes from one program, which maps over the weights that differ and does everything else once. Its directory holds the
backbone (`base/`), the members' numbers stacked (`adapters/`) and `committee.json`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ase
import jax
import jraph
import numpy as np
from ase.calculators.calculator import Calculator

from equijax import checkpoint, derivatives, forcefield, graph, outputs, potential
from equijax.adapters import files, lora
from equijax.adapters.lora import Adapters
from equijax.calculator import EquijaxCalculator
from equijax.config import Compute, ModelConfig
from equijax.derivatives import Derivatives
from equijax.errors import InputError, NotFinite
from equijax.forcefield import ForceField
from equijax.graph.fields import Topology
from equijax.potential import Potential
from equijax.pytrees import path_name, paths_of

FORMAT = 1  # raise when the meaning of an entry of committee.json changes
KEPT = ("energy", "forces", "stress")  # of which the calculator gives every member's value and the variance


@dataclass(frozen=True)
class CommitteeConfig:
    """Members that differ in some of their weights, as one potential: the mean of their energies."""

    model: ModelConfig  # of every member
    members: int  # M

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers that the members know."""
        return self.model.species

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the members' heads."""
        return self.model.heads

    @property
    def r_max(self) -> float:
        """Cutoff of the members, A."""
        return self.model.r_max

    @property
    def dispersion(self) -> Any:
        """Of the members, see `ModelConfig`."""
        return self.model.dispersion

    @property
    def embeddings(self) -> tuple:
        """Numbers of a structure that the members read, see `ModelConfig`."""
        return self.model.embeddings

    @property
    def num_interactions(self) -> int:
        """Of the members."""
        return self.model.num_interactions

    def to_dict(self) -> dict:
        """What there is to tell of it."""
        return {"model": self.model.to_dict(), "members": self.members}

    def node_energies(self, variables: dict, vectors: jax.Array, topology: Topology) -> jax.Array:
        """[N] eV, the mean over the members; `variables` as those of `Committee`."""

        def one(own: dict) -> jax.Array:
            return potential.energy_from_vectors(
                self.model, with_own(variables, own), vectors=vectors, topology=topology
            )

        return jax.vmap(one)(variables["members"]).mean(0)


def with_own(variables: dict, own: Mapping[str, Any]) -> dict:
    """Variables of one member: the shared ones, with its own parameters, by path, in their place."""
    params = jax.tree_util.tree_map_with_path(lambda path, w: own.get(path_name(path), w), variables["params"])
    return {"params": params, "constants": variables["constants"]}


class Members(NamedTuple):
    """What each of M members says of a structure of n atoms; `.mean(0)` is the mean, `.std(0)` the deviation."""

    energy: np.ndarray  # [M] eV
    node_energy: np.ndarray  # [M, n] eV, E0 included
    forces: np.ndarray  # [M, n, 3] eV/A
    stress: np.ndarray  # [M, 3, 3] eV/A^3, ASE sign; NaN where the cell vectors span no volume


@dataclass(frozen=True, eq=False)
class Committee(ForceField):
    """A committee; make one with `equijax.load_committee`.

    `evaluate`, `relax` and whatever takes a potential work with the mean. Its variables are those of the backbone, and
    "members": the arrays that differ, by path and stacked, [M, ...].
    """

    @property
    def members(self) -> tuple[ForceField, ...]:
        """The members as force fields, which share shapes and so programs."""
        stacked, config = self.variables["members"], self.config.model  # pyright: ignore[reportAttributeAccessIssue]
        own = [{path: x[m] for path, x in stacked.items()} for m in range(size(self))]
        return tuple(
            ForceField(config, with_own(self.variables, o), self.metadata, self.head, self.pool, self.batch_pool)
            for o in own
        )

    def calculator(self, dtype: str = "float64", fast: bool = False) -> Calculator:
        """An ASE calculator that also says how sure it is, see `CommitteeCalculator`."""
        return CommitteeCalculator(self, dtype=dtype, fast=fast)

    def specialise(self, species: Any, tolerance: dict | None = None) -> ForceField:
        """Not for a committee.

        Raises:
          InputError: always.
        """
        raise InputError(
            "a committee cannot be specialised, its members have radial functions of their own: leave --fast away, or "
            "specialise one of `committee.members`"
        )

    def evaluate_members(self, images: Sequence[ase.Atoms], *, compute: Compute = Compute()) -> list[Members]:
        """What every member says of every structure, all members in one program.

        Raises:
          InputError: a structure the model cannot describe.
          NotFinite: a member returned a force that is not finite.
        """
        index, out = self.head_index, []
        for i, atoms in enumerate(images):
            name = f"structure {i} ({atoms.get_chemical_formula()})"
            graph.check_atoms(atoms, self.config, name=name)
            batch = graph.from_atoms(atoms, self.config, pool=self.pool, heads=[index])
            found, n = members_of(self, batch, dtype=compute.dtype), len(atoms)
            stress = found.stress[:, 0] if graph.has_stress(atoms) else np.full((size(self), 3, 3), np.nan)
            if not np.isfinite(found.forces).all():
                raise NotFinite(f"{name}: a member of the committee returned a non-finite force")
            out.append(Members(found.energy[:, 0], found.node_energy[:, :n], found.forces[:, :n], stress))
        return out


def force_factor(committee: Committee) -> float:
    """By how much force errors were larger than standard deviations when it was trained; 1 where that is not known."""
    stored = committee.metadata.get("committee", {}).get("calibration", {})
    return stored.get("forces", {}).get("factor") or 1.0


def size(committee: Potential) -> int:
    """M, how many members there are."""
    return committee.config.members


def members_of(committee: Potential, batch: jraph.GraphsTuple, *, dtype: str) -> Derivatives:
    """`derivatives.evaluate` of every member in one program: float64 numpy arrays with a leading axis [M]."""
    variables = committee.device_variables(dtype)
    started = derivatives.launch("committee", _members, config=committee.config, inputs=(variables, batch), dtype=dtype)
    out = [
        derivatives.finish(committee.config, variables, graph=batch, started=Derivatives(*one))
        for one in zip(*(np.asarray(x) for x in started), strict=True)
    ]
    return Derivatives(*(np.stack(x) for x in zip(*out, strict=True)))


@partial(jax.jit, static_argnums=0)
def _members(config: CommitteeConfig, inputs: tuple[dict, jraph.GraphsTuple]) -> Derivatives:
    """[M, ...]: mapped over what differs, so that geometry and everything else that is shared is done once."""
    variables, batch = inputs

    def one(own: dict) -> Derivatives:
        return derivatives.energy_forces_stress(config.model, with_own(variables, own), graph=batch)

    return jax.vmap(one)(variables["members"])


def gather(base: Potential, adapters: Adapters, *, energies: np.ndarray | None = None) -> Committee:
    """The committee of a backbone and its members' adapters.

    Args:
      base: the backbone.
      adapters: arrays with a leading axis [M] over the members.
      energies: [H, Z] eV isolated-atom energies of all members, the backbone's by default.
    """
    members = len(jax.tree.leaves(adapters)[0])
    own = [jax.tree.map(lambda x, m=m: np.asarray(x)[m], adapters) for m in range(members)]
    merged = [lora.merge(base.variables, one, energies=energies) for one in own]
    params = [paths_of(one["params"]) for one in merged]
    variables = {
        "params": base.variables["params"],
        "constants": merged[0]["constants"],
        "members": {path: np.stack([found[path] for found in params]) for path in adapters.arrays},
    }
    config: Any = CommitteeConfig(base.config, members)  # an `OtherConfig`
    return Committee(config, variables, base.metadata, base.head)


def save(
    path: str | Path,
    adapters: Adapters,
    *,
    base: Potential,
    energies: np.ndarray | None = None,
    document: Mapping[str, Any] | None = None,
) -> Path:
    """Write a committee directory; it appears complete or not at all.

    Args:
      path: directory to make.
      adapters: arrays with a leading axis [M] over the members.
      base: the backbone as loaded.
      energies: [H, Z] eV isolated-atom energies that belong to the adapters.
      document: what committee.json also holds.

    Raises:
      InputError: a non-finite array, named.
      FileExistsError: `path` holds something other than a committee directory, which is left alone.
    """
    members = len(jax.tree.leaves(adapters)[0])
    with outputs.replaced(path, outputs.COMMITTEE) as beside:
        checkpoint.save(beside / "base", base.config, variables=base.variables, metadata=base.metadata)
        files.save(beside / "adapters", adapters, base=base, energies=energies, metadata={"members": members})
        content = {"format": FORMAT, "members": members} | dict(document or {})
        outputs.write_json(beside / outputs.COMMITTEE.document, content)
    return Path(path).absolute()


def load_committee(path: str | Path, *, head: str | None = None) -> Committee:
    """Load a committee directory written by fine-tuning.

    Args:
      path: the directory.
      head: the head to use, of a model that has several.

    Raises:
      FileNotFoundError: not a committee directory.
      InputError: files that do not belong together, or another format; an unknown head.
    """
    folder = outputs.present(path).absolute()
    if not (folder / outputs.COMMITTEE.document).is_file():
        raise FileNotFoundError(f"{path} is not a committee directory (no {outputs.COMMITTEE.document} in it)")
    document = outputs.COMMITTEE.read(folder)
    if document is None or document["format"] != FORMAT:
        raise InputError(f"{path}: {outputs.COMMITTEE.document} is not what this version of fine-tuning writes")
    base = forcefield.load(folder / "base", head=head)
    saved = files.load(folder / "adapters", base, several=True)
    found = gather(base, saved.adapters, energies=saved.energies)
    return replace(found, metadata={"base": base.metadata, "committee": document})


def load_any(path: str | Path, *, head: str | None = None) -> ForceField:
    """The potential of a model directory, or of a committee directory, whose mean it is; errors as `load_committee`."""
    is_committee = (outputs.present(path) / outputs.COMMITTEE.document).is_file()
    return load_committee(path, head=head) if is_committee else forcefield.load(path, head=head)


class CommitteeCalculator(EquijaxCalculator):
    """The mean of a committee for ASE, with what each member says and their variances; made by `Committee.calculator`.

    Names and shapes are those of mace-torch's `MACECalculator` of several models: "energy_comm" [M] eV, "energy_var"
    eV^2, "forces_comm" [M, N, 3] eV/A, "forces_var" [N, 3], "stress_comm" [M, 3, 3] eV/A^3 and "stress_var" [3, 3].
    Variances are of the members, over M and not M - 1; `get_hessian` and `get_descriptors` return a list, one a member.
    """

    implemented_properties = [
        *EquijaxCalculator.implemented_properties,
        *(f"{name}_{kind}" for name in KEPT for kind in ("comm", "var")),
    ]

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        """Fill `results`; ASE calls this when something changed."""
        super().calculate(*args, **kwargs)
        each = {"energy": self._each.energy[:, 0], "forces": self._each.forces, "stress": self._each.stress[:, 0]}
        each["forces"] = each["forces"][:, : len(self.results["forces"])]
        for name in (n for n in KEPT if n in self.results):
            self.results |= {f"{name}_comm": each[name], f"{name}_var": each[name].var(0)}
        self.results["energy_var"] = float(self.results["energy_var"])

    def _derivatives(self, ff: Potential, batch: jraph.GraphsTuple) -> Derivatives:
        self._each = members_of(ff, batch, dtype=self.dtype)
        return Derivatives(*(x.mean(0) for x in self._each))

    def get_hessian(self, atoms: ase.Atoms | None = None) -> Any:
        """[3N, N, 3] eV/A^2 of each member, see `EquijaxCalculator.get_hessian`."""
        return [one.get_hessian(atoms or self.atoms) for one in self._apart()]

    def get_descriptors(
        self, atoms: ase.Atoms | None = None, invariants_only: bool = True, num_layers: int = -1
    ) -> Any:
        """[N, features] of each member, see `EquijaxCalculator.get_descriptors`."""
        return [one.get_descriptors(atoms or self.atoms, invariants_only, num_layers) for one in self._apart()]

    def _apart(self) -> list[EquijaxCalculator]:
        return [EquijaxCalculator(one, dtype=self.dtype) for one in self.forcefield.members]  # type: ignore[attr-defined]
