"""Options of the demo."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DemoConfig:
    """Convert a MACE model, evaluate it, fine-tune it on ten structures of silicon, draw phonons before and after."""

    model: str | None = None
    """A torch .model file or the name of a published model; the small bundled model by default."""
    out: Path = Path("demo_output")
    """Folder for everything the demo makes."""
    head: str | None = None
    """Head of a model that has several."""
    epochs: int | None = None
    """Passes of the fine-tuning over its ten structures."""
