"""Files of labelled structures: extxyz and whatever else ASE reads, and phonopy's files."""

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import ase.io
import numpy as np
from ase.utils import string2index

from equijax.data import phonopy_files
from equijax.data.labelled import Labelled, from_values
from equijax.data.options import Keys
from equijax.errors import InputError
from equijax.structures import check_ordered

# What "auto" looks for: names of a reference first, then plain ones, ASE's own among them.
AUTO = {
    "energy": (("REF_energy",), ("energy",)),
    "forces": (("REF_forces", "REF_force"), ("forces", "force")),
    "stress": (("REF_stress",), ("stress",)),
    "virials": (("REF_virials", "REF_virial"), ("virials", "virial")),
}
BESIDE = {"weight": ("config_weight", "weight"), "head": ("head",)}
# An entry that looks like a label: its name and the numbers it holds, None for one an atom.
LIKELY = {
    "energy": (r"energy|^e$|^e_?tot|^tot_?en", (1,)),
    "forces": (r"force|gradient|^f$", None),
    "stress": (r"stress", (6, 9)),
    "virials": (r"virial", (6, 9)),
    "weight": (r"weight", (1,)),
}
NOT_LABELS = r"std|err|sigma|variance|uncert|config_\w+_weight|MACE_"
ISOLATED = ("isolatedatom", "isolated_atom")  # config_type of a lone atom, whose energy is the E0 of its element


class LabelledFile(NamedTuple):
    """What a file of labelled structures holds."""

    structures: list[Labelled]
    isolated: list[Labelled]  # lone atoms marked config_type=IsolatedAtom, which set E0 and are not trained on
    line: str  # what was read, for how many structures
    warnings: tuple[str, ...]  # likely labels that were not read, and the option that reads them

    @property
    def messages(self) -> tuple[str, ...]:
        """What a program tells of the file, a line each."""
        return (self.line, *(f"WARNING: {text}" for text in self.warnings))


def read_structures(
    path: str | Path, keys: Keys | None = None, *, index: str = ":", tangents: int = 0, seed: int = 0
) -> list[Labelled]:
    """The structures of `read_file`; likely labels that were not read are Python warnings."""
    found = read_file(path, keys, index=index, tangents=tangents, seed=seed)
    for text in found.warnings:
        warnings.warn(text, stacklevel=2)
    return found.structures


def read_file(
    path: str | Path, keys: Keys | None = None, *, index: str = ":", tangents: int = 0, seed: int = 0
) -> LabelledFile:
    """Read a file of labelled structures.

    Args:
      path: extxyz, vasprun.xml, OUTCAR or another trajectory ASE reads; phonopy.yaml, phonopy_params.yaml, FORCE_SETS,
        FORCE_CONSTANTS or force_constants.hdf5 (the latter three beside the phonopy yaml that describes them).
      keys: names of the labels. By default a frame's REF_ labels if it has any, and plain ones for what the REF_ ones
        lack, unless a frame of the file has a label under both: those are two levels of theory, which do not mix.
      index: frames, as for `ase.io.read`.
      tangents: for phonopy files, append the supercell with this many force-constant products along random tangents.
      seed: of those tangents.

    Raises:
      FileNotFoundError: no such file.
      InputError: unreadable, without labels, or labels that cannot be right; file and frame are named.
    """
    path, keys = Path(path), keys or Keys()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if phonopy_files.is_phonopy(path):
        structures = phonopy_files.supercells(path, tangents=tangents, seed=seed)
        return LabelledFile(structures, [], _line(path, structures, isolated=[], used=Counter()), ())
    if tangents:
        raise InputError(f"{path}: force-constant products need a phonopy file")
    frames = _frames(path, index)
    values = [_values(atoms) for _, atoms in frames]
    apart = any(_has(v, reference) and _has(v, plain) for v in values for reference, plain in AUTO.values())
    names = [_names(v, keys, apart=apart) for v in values]
    together = zip(frames, values, names, strict=True)
    structures = [_labelled(atoms, f"frame {i} of {path}", found=v, names=n) for (i, atoms), v, n in together]
    _check_keys(path, keys, values=values, first=frames[0][1])
    alone = [_isolated(s, v.get("config_type")) for s, v in zip(structures, values, strict=True)]
    lost = _lost(path, keys, values=values, names=names, structures=structures)
    if not any(s.has_first_order for s in structures):
        hint = "".join(f"; {text}" for text in lost)
        raise InputError(f"{path}: no energies, forces or stresses; the first frame has {_shown(frames[0][1])}{hint}")
    isolated = [s for s, lone in zip(structures, alone, strict=True) if lone]
    structures = [s for s, lone in zip(structures, alone, strict=True) if not lone]
    _check_zeros(path, structures)
    used = Counter((field, name) for n, lone in zip(names, alone, strict=True) if not lone for field, name in n.items())
    return LabelledFile(structures, isolated, _line(path, structures, isolated=isolated, used=used), lost)


def _frames(path: Path, index: str) -> list[tuple[int, ase.Atoms]]:
    """Frames and their numbers in the file."""
    frames = []
    try:
        for atoms in ase.io.iread(path, ":"):
            frames.append((len(frames), atoms))
    # the readers of ASE raise whatever their parsing meets; all of it means an unreadable file
    except Exception as error:
        raise InputError(f"frame {len(frames)} of {path}: ASE cannot read it: {error}") from error
    chosen = string2index(index)
    frames = frames[chosen] if isinstance(chosen, slice) else [frames[int(chosen)]]
    if not frames:
        raise InputError(f"{path}: no structures")
    for i, atoms in frames:
        check_ordered(atoms, f"frame {i} of {path}")
    return frames


def _labelled(atoms: ase.Atoms, source: str, *, found: dict[str, Any], names: dict[str, str]) -> Labelled:
    values = {field: found[names[field]] for field in AUTO if field in names}
    virials = values.pop("virials", None)
    if virials is not None and "stress" not in values:
        if atoms.cell.rank != 3:
            raise InputError(f"{source}: virials of a structure without a volume")
        values["stress"] = -np.asarray(virials, float) / atoms.get_volume()
    weights = [_number(found, names.get(f"{label}_weight"), source=source) for label in ("energy", "forces")]
    from_virials = "virials" in names and "stress" not in names
    weights.append(_number(found, names.get("virials_weight" if from_virials else "stress_weight"), source=source))
    head = None if "head" not in names else str(found[names["head"]])
    weight = _number(found, names.get("weight"), source=source)
    return from_values(atoms, source, **values, weight=weight, label_weights=tuple(weights), head=head)


def _number(found: dict[str, Any], name: str | None, *, source: str) -> float:
    """The weight under this name, 1 where there is none."""
    if name is None:
        return 1.0
    try:
        return float(found.get(name, 1.0))
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: weight {name} = {found[name]!r} is not a number") from error


def _values(atoms: ase.Atoms) -> dict[str, Any]:
    """Everything a frame carries by name: results of its calculator, per-atom arrays, frame information."""
    results = {} if atoms.calc is None else atoms.calc.results
    return {**{k: v for k, v in results.items() if v is not None}, **atoms.arrays, **atoms.info}


def _has(found: dict[str, Any], names: Sequence[str]) -> bool:
    return any(name in found for name in names)


def _names(found: dict[str, Any], keys: Keys, *, apart: bool) -> dict[str, str]:
    """Name under which each label of a frame is read; where levels stand `apart`, a frame gives one of them."""
    reference = any(_has(found, names) for names, _ in AUTO.values())
    tried = {field: first if reference and apart else first + second for field, (first, second) in AUTO.items()}
    tried |= BESIDE
    if keys.weight_key == "auto":
        tried |= {f"{label}_weight": (f"config_{label}_weight",) for label in AUTO}
    out = {}
    for field, names in tried.items():
        key = getattr(keys, f"{field}_key", "auto")
        for name in {"auto": names, "none": ()}.get(key, (key,)):
            if name in found:
                out.setdefault(field, name)
    return out


def _check_keys(path: Path, keys: Keys, *, values: Sequence[dict], first: ase.Atoms) -> None:
    """A name asked for that no frame has is a mistake, not a missing label."""
    for field in (*AUTO, *BESIDE):
        key = getattr(keys, f"{field}_key")
        if key not in ("auto", "none") and not any(key in v for v in values):
            raise InputError(f"{path}: no frame has {field} under {key!r}; the first has {_shown(first)}")


def _check_zeros(path: Path, structures: Sequence[Labelled]) -> None:
    stresses = [s.stress for s in structures if s.stress is not None]
    if len(stresses) > 1 and not np.any(stresses):
        raise InputError(
            f"{path}: all {len(stresses)} stresses are exactly zero: they stand for missing ones; "
            "leave them out of the file or read it with --stress-key none"
        )


def _isolated(s: Labelled, config_type: Any) -> bool:
    """Whether a frame is marked as an isolated atom."""
    if str(config_type).lower() not in ISOLATED:
        return False
    if len(s.atoms) != 1:
        raise InputError(f"{s.source}: config_type={config_type} with {len(s.atoms)} atoms: expected one")
    return True


def _lost(
    path: Path, keys: Keys, *, values: Sequence[dict], names: Sequence[dict], structures: Sequence[Labelled]
) -> tuple[str, ...]:
    """Entries that look like labels where no such label was read, and the option that reads them."""
    found = Counter()
    for v, n, s in zip(values, names, structures, strict=True):
        read = set(n) | ({"stress", "virials"} if {"stress", "virials"} & set(n) else set())
        for field, (pattern, sizes) in LIKELY.items():
            if field not in read and getattr(keys, f"{field}_key") == "auto":
                sizes = sizes or (3 * len(s.atoms),)
                found.update((field, name) for name, x in v.items() if _looks(name, x, pattern=pattern, sizes=sizes))
    return tuple(
        f"{path}: {name!r} in {number} of {len(values)} frames looks like {field} and was not read; "
        f"--{field}-key {name} reads it, --{field}-key none says that it is none"
        for (field, name), number in found.items()
    )


def _looks(name: str, x: Any, *, pattern: str, sizes: Sequence[int]) -> bool:
    if not re.search(pattern, name, re.IGNORECASE) or re.search(NOT_LABELS, name, re.IGNORECASE):
        return False
    return np.issubdtype(np.asarray(x).dtype, np.number) and np.size(x) in sizes


def _line(path: Path, structures: Sequence[Labelled], *, isolated: Sequence[Labelled], used: Counter) -> str:
    """One line: labels by kind, the number of structures that have them, and the names they were read under."""
    plain = (1.0, (1.0, 1.0, 1.0))
    counts = {
        "energies": ("energy", sum(s.energy is not None for s in structures)),
        "forces": ("forces", sum(s.forces is not None for s in structures)),
        "stresses": ("stress|virials", sum(s.stress is not None for s in structures)),
        "weights": (r"\w*weight", sum((s.weight, s.label_weights) != plain for s in structures)),
        "heads": ("head", sum(s.head is not None for s in structures)),
    }
    told = []
    for title, (fields, number) in counts.items():
        names = sorted({name for field, name in used if re.fullmatch(fields, field)})
        names = f" ({', '.join(names)})" if names and number else ""
        if number or title in ("energies", "forces", "stresses"):
            told.append(f"{title} of {number or 'none'}{names}")
    lone = "".join(f"; {len(isolated)} isolated atom(s) set apart" for _ in isolated[:1])
    return f"{path}: {len(structures)} structures; read {', '.join(told)}{lone}"


def _shown(atoms: ase.Atoms) -> str:
    return ", ".join(sorted(set(_values(atoms)) - {"numbers", "positions"})) or "nothing but a structure"
