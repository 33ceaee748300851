"""`python -m convert SOURCE OUT`: a mace-torch model to an equijax checkpoint, or back with --to-torch."""

import importlib.util
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from convert import download
from convert.errors import UnreadableModel, UnsupportedModel
from equijax import outputs
from equijax.errors import InputError, MissingExtra
from equijax.programs import runner


@dataclass(frozen=True)
class ConvertConfig:
    """Convert a mace-torch model to an equijax checkpoint. Nothing in the file is executed."""

    source: Annotated[str | None, tyro.conf.Positional] = None
    """A torch .model file, or the name of a published model (see --list); with --to-torch an equijax checkpoint."""
    out: Annotated[Path | None, tyro.conf.Positional] = None
    """Directory to write the checkpoint to; with --to-torch the .model file to write."""
    dtype: Literal["file", "float32", "float64"] = "file"
    """Type of the weights: as in the file, or converted."""
    verify: bool = False
    """Compare with mace-torch on rattled structures (parity extra). Loads SOURCE with torch, which runs code in it."""
    list: bool = False
    """Print the published models and stop."""
    to_torch: bool = False
    """Convert an equijax checkpoint to a mace-torch .model file (parity extra)."""
    accept_licence: bool = False
    """Accept the licence of a published model that is not MIT."""


@runner.program("python -m convert")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m convert` and `equijax-convert`."""
    config = tyro.cli(ConvertConfig, args=argv, prog="python -m convert", config=(tyro.conf.FlagCreatePairsOff,))
    if config.list:
        print(download.listing())
        return 0
    if config.source is None or config.out is None:
        raise InputError("give SOURCE and OUT (or --list; --help explains)")
    if config.to_torch:
        return _to_torch(config.source, config.out)
    return _from_torch(config.source, config.out, config)


def _from_torch(source: str, out: Path, options: ConvertConfig) -> int:
    outputs.check_replaceable(out, outputs.MODEL)
    if options.verify:
        _require_torch("--verify")
    path = _locate(source, options)

    import equijax  # what needs jax comes after the answers that do not
    from convert.mapping import source_dtype, to_flax
    from convert.torch_model import read_model
    from equijax import checkpoint

    started = time.perf_counter()
    try:
        model = read_model(path)
        config, variables = to_flax(model, None if options.dtype == "file" else options.dtype)
    except (UnreadableModel, UnsupportedModel) as error:
        raise type(error)(f"cannot convert {source}: {error}") from error
    dtype = source_dtype(model) if options.dtype == "file" else options.dtype
    metadata = {
        "source": path.name,
        "sha256": download.sha256_of(path),
        "source_dtype": source_dtype(model),
        "dtype": dtype,
        "torch_class": model.classes[""],
        "version": equijax.__version__,
    }
    checkpoint.save(out, config, variables, metadata)
    print(f"{path.name} -> {out} ({time.perf_counter() - started:.1f} s)\n{_summary(config, variables, dtype)}")
    if options.verify:
        from convert.verify import compare

        coarser = "float32" if "float32" in (dtype, metadata["source_dtype"]) else "float64"
        return compare(path, config, variables, coarser)
    return 0


def _locate(source: str, options: ConvertConfig) -> Path:
    """The file that SOURCE means: a path, or a published model to download.

    Raises:
      FileNotFoundError, DownloadError: neither; see `convert.download`.
      PermissionError: a licence must be accepted, or torch would run a file whose checksum failed.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        raise FileNotFoundError(f"{source} is a directory; SOURCE is a .model file (use --to-torch for a checkpoint)")
    published = download.cached(path)
    if path.is_file() and published is None:
        return path
    published = published or download.find(source)
    path = download.fetch(published.name, accept_licence=options.accept_licence)
    if options.verify and not download.is_published(published, path):
        raise PermissionError(f"--verify would run code in {path}, whose checksum failed: convert it without --verify")
    return path


def _summary(config, variables, dtype: str) -> str:
    import jax

    count = sum(a.size for a in jax.tree.leaves(variables["params"]))
    return (
        f"{len(config.species)} elements, heads {', '.join(config.heads)}, {config.num_interactions} interactions, "
        f"{config.hidden_irreps}, r_max {config.r_max:g} A, {count:,} parameters in {dtype}"
    )


def _require_torch(option: str) -> None:
    missing = [name for name in ("torch", "mace") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(f"{option} needs {' and '.join(missing)}: pip install 'equijax[parity]'")


def _to_torch(source: str, out: Path) -> int:
    _require_torch("--to-torch")
    if out.exists() and not zipfile.is_zipfile(out):
        raise FileExistsError(f"refusing to replace {out}: it is not a torch file; choose another name")

    from convert.to_torch import write_torch
    from equijax import checkpoint

    config, variables, _ = checkpoint.load(source)
    write_torch(out, config, variables)
    print(f"{source} -> {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
