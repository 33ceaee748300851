"""`python -m convert SOURCE OUT`: a mace-torch model to an equijax checkpoint, or back with --to-torch."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from convert import download
from convert.unpickle import UnreadableModel, UnsupportedModel


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


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m convert` and `equijax-convert`.

    Raises:
      SystemExit: the conversion is impossible; the message says what was found and what to do.
    """
    config = tyro.cli(ConvertConfig, args=argv, prog="python -m convert", config=(tyro.conf.FlagCreatePairsOff,))
    if config.list:
        print(download.listing())
        return 0
    if config.source is None or config.out is None:
        raise SystemExit("python -m convert: give SOURCE and OUT (or --list; --help explains)")
    try:
        if config.to_torch:
            return _to_torch(config.source, config.out)
        return _from_torch(config)
    except (UnreadableModel, UnsupportedModel) as error:
        raise SystemExit(f"python -m convert: cannot convert {config.source}: {error}") from None
    except (download.DownloadError, PermissionError, FileNotFoundError, FileExistsError) as error:
        raise SystemExit(f"python -m convert: {error}") from None
    except KeyError as error:  # an unknown name: KeyError quotes its message
        raise SystemExit(f"python -m convert: {error.args[0]}") from None


def _from_torch(config: ConvertConfig) -> int:
    assert config.source is not None and config.out is not None
    out = config.out
    if out.exists() and not (out / "config.json").is_file():
        raise FileExistsError(f"{out} exists and is no equijax checkpoint; choose another name for OUT")
    path = _locate(config.source, config.accept_licence)

    import equijax  # what needs jax comes after the answers that do not
    from convert.mapping import source_dtype, to_flax
    from convert.modules import read_model
    from equijax import checkpoint

    started = time.perf_counter()
    model = read_model(path)
    model_config, variables = to_flax(model, None if config.dtype == "file" else config.dtype)
    dtype = source_dtype(model) if config.dtype == "file" else config.dtype
    metadata = {"source": path.name, "sha256": download.sha256_of(path), "source_dtype": source_dtype(model),
                "dtype": dtype, "torch_class": model.classes[""], "version": equijax.__version__}  # fmt: skip
    checkpoint.save(out, model_config, variables, metadata)
    print(f"{path.name} -> {out} ({time.perf_counter() - started:.1f} s)\n{_summary(model_config, variables, dtype)}")
    if config.verify:
        coarser = "float32" if "float32" in (dtype, metadata["source_dtype"]) else "float64"
        return _verify(path, model_config, variables, coarser)
    return 0


def _locate(source: str, accept_licence: bool) -> Path:
    """The file that SOURCE means: a path, or a published name to download."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise FileNotFoundError(f"{source} is a directory; SOURCE is a .model file (use --to-torch for a checkpoint)")
    if path.suffix or "/" in source:
        raise FileNotFoundError(f"there is no file {source}")
    return download.fetch(source, accept_licence=accept_licence)


def _summary(config, variables, dtype: str) -> str:
    import jax

    count = sum(a.size for a in jax.tree.leaves(variables["params"]))
    return (f"{len(config.species)} elements, heads {', '.join(config.heads)}, {config.num_interactions} interactions, "
            f"{config.hidden_irreps}, r_max {config.r_max:g} A, {count:,} parameters in {dtype}")  # fmt: skip


def _verify(path: Path, config, variables, dtype: str) -> int:
    try:
        from convert.verify import compare
    except ImportError as error:
        raise SystemExit(f"--verify needs mace-torch ({error}): pip install 'equijax[parity]'") from None
    return compare(path, config, variables, dtype)


def _to_torch(source: str, out: Path) -> int:
    try:
        from convert.to_torch import write_torch
    except ImportError as error:
        raise SystemExit(f"--to-torch needs mace-torch ({error}): pip install 'equijax[parity]'") from None
    from equijax import checkpoint

    config, variables, _ = checkpoint.load(source)
    write_torch(out, config, variables)
    print(f"{source} -> {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
