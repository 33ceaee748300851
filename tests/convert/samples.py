"""Files and streams that the tests of the converter share."""

import dataclasses
import zipfile
from importlib import resources
from pathlib import Path

from convert.torch_model import TorchModel

MINI = Path(str(resources.files("equijax"))) / "assets" / "mini.model"


def raw(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def write_zip(path: Path, entries: dict[str, bytes], compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path


def changed(model, *, attributes=None, tensors=None, classes=None, drop=()) -> TorchModel:
    """`model` with entries replaced, and those whose name is in `drop` removed."""
    edits = {"attributes": attributes, "tensors": tensors, "classes": classes}
    fields = {
        f: {k: v for k, v in (getattr(model, f) | (new or {})).items() if k not in drop} for f, new in edits.items()
    }
    return dataclasses.replace(model, **fields)
