"""Known files that are no plain MACE model: each is answered with what it is and which file to convert instead."""

import pickle
import zipfile

import pytest

from convert import families, mapping
from convert.errors import UnreadableModel, UnsupportedModel
from convert.torch_model import read_model

NAMES = [(name, what) for what, _, *names in families.FAMILIES for name in names]
# A module of the class, without the rest of a model; a package stands for any class in it.
STREAM = b"\x80\x02c%s\n%s\n)R}X\x08\x00\x00\x00_modules}sb."


def answer(path, entries: dict[str, bytes], compression=zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in entries.items():
            file.writestr(name, data, compression if "code/" in name else zipfile.ZIP_STORED)
    with pytest.raises((UnreadableModel, UnsupportedModel)) as caught:
        mapping.to_flax(read_model(path))
    return str(caught.value)


@pytest.mark.parametrize(("name", "what"), [row for row in NAMES if " " not in row[0]])
def test_class_names_its_family(tmp_path, name, what):
    module, _, cls = (name if name.rpartition(".")[2][0].isupper() else f"{name}.Model").rpartition(".")
    found = answer(tmp_path / "x.model", {"m/data.pkl": STREAM % (module.encode(), cls.encode())})
    assert what in found and "trust" not in found
    assert "convert" in found


@pytest.mark.parametrize(
    ("paths", "what"),
    [
        (("code/__torch__/mace/modules/models.py", "constants.pkl"), "_compiled.model"),
        (
            ("code/__torch__/mace/calculators/lammps_mace.py", "code/__torch__/mace/modules/models.py"),
            "made for LAMMPS",
        ),
        (("code/__torch__/nequip/model.py",), "TorchScript archive of another program"),
        (("archive_format",), "torch.export"),
    ],
)
def test_compiled_archives(tmp_path, paths, what):
    """TorchScript compresses its code, which no .model file does: it is recognised before that is refused."""
    entries = {"m/data.pkl": pickle.dumps(1, 2)} | {f"m/{path}": b"text" * 100 for path in paths}
    assert what in answer(tmp_path / "x.model", entries, zipfile.ZIP_DEFLATED)


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuK\x02tQK\x00K\x02\x85K\x01\x85\x89NtR"
)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (pickle.dumps({"model": {}, "optimizer": {}, "lr_scheduler": {}}, 2), "training checkpoint"),
        (pickle.dumps({"state_dict": {}, "pytorch-lightning_version": "2"}, 2), "Lightning"),
        (b"\x80\x02}X\x01\x00\x00\x00w" + TENSOR + b"s.", "state_dict"),
        (pickle.dumps({"_delta_params.model__DOT__w": 1}, 2), "equitrain-export"),
        (pickle.dumps({"base_wrapper.model.w": 1, "_lora_a_params.x": 1}, 2), "equitrain-export"),
        (b"\x80\x02]" + STREAM[2:-1] % (b"mace.modules.models", b"MACE") + b"a.", "several models"),
        (pickle.dumps({"some": 1}, 2), "a dict with keys 'some'"),
    ],
)
def test_files_without_a_model(tmp_path, content, what):
    assert what in answer(tmp_path / "x.model", {"m/data.pkl": content, "m/data/0": bytes(8)})


def test_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes((60).to_bytes(8, "little") + b'{"weight":{"dtype":"F32"}}')
    with pytest.raises(UnreadableModel, match="safetensors file"):
        read_model(path)


def test_first_row_that_fits_is_the_most_special_one():
    for name, what in NAMES:
        assert what in str(families.family(name)), name
    assert families.family("lessons.Model") is None and families.family("mace.modules.models.MACE") is None
