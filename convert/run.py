"""From a mace-torch model to an equijax checkpoint and back: what `python -m convert` does."""

import importlib.util
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro

from convert import download
from convert.errors import UnreadableModel, UnsupportedModel
from equijax import outputs
from equijax.errors import InputError, MissingExtra

if TYPE_CHECKING:
    from convert.torch_model import TorchModel
    from convert.verify import Compared
    from equijax.config import ModelConfig


@dataclass(frozen=True)
class ConvertOptions:
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
    dispersion: str | None = None
    """Add D3(BJ) dispersion for this functional, such as pbe, to be stored with the model (d3 extra)."""
    accept_licence: bool = False
    """Accept the licence of a published model that is not MIT."""


class Converted(NamedTuple):
    """A model that was converted, and where it is."""

    source: Path
    out: Path
    seconds: float  # it took
    config: "ModelConfig"
    variables: dict[str, Any]
    dtype: str  # of the weights written
    source_dtype: str  # of the weights read

    @property
    def summary(self) -> str:
        """The model in one line."""
        import jax  # after the answers that do not need it

        config, count = self.config, sum(a.size for a in jax.tree.leaves(self.variables["params"]))
        return (
            f"{len(config.species)} elements, heads {', '.join(config.heads)}, {config.num_interactions} interactions, "
            f"{config.hidden_irreps}, r_max {config.r_max:g} A, {count:,} parameters in {self.dtype}"
            + (f", with D3(BJ) of {config.dispersion.functional}" if config.dispersion else "")
        )


def convert(options: ConvertOptions) -> Converted:
    """Write the model that the options name in the other format.

    Raises:
      InputError: source or destination missing; a file that cannot be converted, see `convert.errors`.
      MissingExtra: the options need torch.
      OSError: no such file, or a destination that would be lost; see `locate`.
    """
    if options.source is None or options.out is None:
        raise InputError("give SOURCE and OUT (or --list; --help explains)")
    if options.to_torch:
        return _to_torch(options.source, options.out)
    return _from_torch(options.source, options.out, options=options)


def verify(done: Converted) -> "list[Compared]":
    """Differences to mace-torch of a converted file, by head and quantity; torch runs code in the file."""
    from convert.verify import compare  # torch, which the parity extra brings
    from equijax import dispersion

    coarser = "float32" if "float32" in (done.dtype, done.source_dtype) else "float64"
    config, variables = dispersion.without(done.config, done.variables)  # which no file of mace-torch holds
    return compare(done.source, config, variables=variables, dtype=coarser)


def locate(source: str, *, accept_licence: bool, verify: bool) -> Path:
    """The file that SOURCE means: a path, or a published model to download.

    Args:
      source: what the user named.
      accept_licence: see `convert.download.fetch`.
      verify: torch will run code in the file.

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
    path = download.fetch(published.name, accept_licence=accept_licence)
    if verify and not download.is_published(published, path):
        raise PermissionError(f"--verify would run code in {path}, whose checksum failed: convert it without --verify")
    return path


def read(path: Path, *, name: str, dtype: str | None = None) -> "tuple[TorchModel, ModelConfig, dict]":
    """A .model file, and its hyper-parameters and arrays: see `convert.mapping.to_flax`.

    Args:
      path: the file.
      name: what errors call it.
      dtype: of the trained arrays; None: as in the file.

    Raises:
      UnreadableModel, UnsupportedModel: a file that cannot be converted.
    """
    from convert.mapping import to_flax  # needs JAX
    from convert.torch_model import read_model

    try:
        model = read_model(path)
        return model, *to_flax(model, dtype)
    except (UnreadableModel, UnsupportedModel) as error:
        raise type(error)(f"cannot convert {name}: {error}") from error


def _from_torch(source: str, out: Path, *, options: ConvertOptions) -> Converted:
    outputs.check_replaceable(out, outputs.MODEL)
    if options.verify:
        _require_torch("--verify")
    path = locate(source, accept_licence=options.accept_licence, verify=options.verify)

    import equijax  # here, because these need JAX, and the answers above come sooner without it
    from convert.mapping import source_dtype
    from equijax import checkpoint, dispersion

    started = time.perf_counter()
    model, config, variables = read(path, name=source, dtype=None if options.dtype == "file" else options.dtype)
    if options.dispersion is not None:
        config, variables = dispersion.add(config, variables, functional=options.dispersion)
    found = source_dtype(model)
    dtype = found if options.dtype == "file" else options.dtype
    metadata = {
        "source": path.name,
        "sha256": download.sha256_of(path),
        "source_dtype": found,
        "dtype": dtype,
        "torch_class": model.classes[""],
        "version": equijax.__version__,
    }
    checkpoint.save(out, config, variables=variables, metadata=metadata)
    return Converted(path, out, time.perf_counter() - started, config, variables, dtype, found)


def _to_torch(source: str, out: Path) -> Converted:
    _require_torch("--to-torch")
    if out.exists() and not zipfile.is_zipfile(out):
        raise FileExistsError(f"refusing to replace {out}: it is not a torch file; choose another name")

    from convert.to_torch import params_dtype, write_torch  # torch, which the parity extra brings
    from equijax import checkpoint, dispersion

    started = time.perf_counter()
    config, variables, _ = checkpoint.load(source)
    network, arrays = dispersion.without(config, variables)
    write_torch(out, network, variables=arrays)
    dtype = params_dtype(variables)
    return Converted(Path(source), out, time.perf_counter() - started, config, variables, dtype, dtype)


def _require_torch(option: str) -> None:
    missing = [name for name in ("torch", "mace") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(f"{option} needs {' and '.join(missing)}: pip install 'equijax[parity]'")
