"""The store of a screening run: a folder of parquet files that readers of parquet take as one table (extra `screen`).

Each file is written beside its place and renamed, and none is changed once it is there: whatever is killed, what is in
the store is whole. Of rows with one name the last one counts.
"""

import typing
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import ase
import ase.io
import numpy as np
from phonopy import Phonopy

from equijax import outputs
from equijax.errors import InputError, MissingExtra
from equijax.phonons import force_constants
from equijax.screen.compute import Row

FOLDER = "results.parquet"
STRUCTURES = "structures.extxyz"
Key = tuple[str, str]  # name and digest of a crystal


def parquet() -> ModuleType:
    """pyarrow.parquet.

    Raises:
      MissingExtra: pyarrow is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("the store of a screening run needs pyarrow: pip install 'equijax[screen]'") from error
    return parquet


def schema() -> Any:
    """The columns of a `Row`, as pyarrow has them."""
    import pyarrow as pa  # here, because it comes with an extra

    single = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    kinds = {**single, **{list[kind]: pa.list_(column) for kind, column in single.items()}}
    hints = typing.get_type_hints(Row)
    return pa.schema(
        [(name, next(kinds[k] for k in (t, *typing.get_args(t)) if k in kinds)) for name, t in hints.items()]
    )


def write(out: Path, rows: Sequence[Row]) -> None:
    """Add rows to the store below `out`, all of them or none."""
    import pyarrow as pa  # here, because it comes with an extra

    folder = out / FOLDER
    folder.mkdir(exist_ok=True)
    columns = {name: list(values) for name, values in zip(Row._fields, zip(*rows, strict=True), strict=True)}
    number = max((int(path.stem) for path in parts(out)), default=-1) + 1
    with outputs.beside(folder / f"{number:06d}.parquet") as part:
        parquet().write_table(pa.table(columns, schema=schema()), part)


def parts(out: Path) -> list[Path]:
    """The files of the store, oldest first."""
    return sorted((out / FOLDER).glob("[0-9]*.parquet"))


def table(out: Path, columns: Sequence[str] = Row._fields) -> Any:
    """The store below a run's folder as a pyarrow.Table, one row a crystal, in the order of their names.

    Args:
      out: folder of the run.
      columns: fields of `Row`, its name among them.

    Raises:
      FileNotFoundError: there is no store.
      MissingExtra: pyarrow is not installed.
    """
    read = parquet().read_table
    import pyarrow as pa  # here, because it comes with an extra

    if not (found := parts(out)):
        raise FileNotFoundError(f"{out / FOLDER} does not exist or is empty: expected the folder of a screening run")
    whole = pa.concat_tables([read(path, columns=list(columns)) for path in found])
    last = {name: i for i, name in enumerate(whole["name"].to_pylist())}
    return whole.take([last[name] for name in sorted(last)])


def done(out: Path, *, retry: bool = False) -> set[Key]:
    """The crystals that need no computing; with `retry`, those that failed do."""
    rows = table(out, ["name", "digest", "error"]).to_pylist() if parts(out) else []
    return {(row["name"], row["digest"]) for row in rows if not (retry and row["error"])}


def rows(out: Path, columns: Sequence[str] = Row._fields) -> list[Row]:
    """The rows of `table`; columns left out, such as "force_constants" of very many, are as if there were none."""
    return [Row(**row) for row in table(out, [*dict.fromkeys(("name", "digest", *columns))]).to_pylist()]


def structure(row: Row) -> ase.Atoms:
    """The relaxed crystal of a row, the row's single values in its `info`.

    Raises:
      InputError: there is none.
    """
    if not row.numbers:
        raise InputError(f"{row.name} has no structure: {row.error}")
    single = {name: value for name, value in row._asdict().items() if isinstance(value, str | int | float)}
    positions, cell = np.reshape(row.positions, (-1, 3)), np.reshape(row.cell, (3, 3))
    return ase.Atoms(row.numbers, positions, cell=cell, pbc=row.pbc, info=single)


def phonon(row: Row, symprec: float = 1e-5) -> Phonopy:
    """A phonopy.Phonopy with the force constants of a row.

    Args:
      row: of the store.
      symprec: A, of the run.

    Raises:
      InputError: it has none.
    """
    if not row.force_constants:
        raise InputError(f"{row.name} has no force constants: {row.error}")
    found = force_constants.make_phonon(structure(row), row.supercell, symprec=symprec)
    found.force_constants = np.reshape(row.force_constants, (-1, len(found.supercell), 3, 3))
    return found


def write_structures(out: Path) -> None:
    """structures.extxyz: the relaxed crystals of the store, see `structure`."""
    small = [name for name in Row._fields if name != "force_constants"]
    frames = [structure(row) for row in rows(out, small) if row.numbers]
    if frames:
        with outputs.beside(out / STRUCTURES) as part:
            ase.io.write(part, frames, format="extxyz")
