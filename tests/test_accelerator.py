"""The script that measures accelerators runs whole on a CPU, with a toy model; a failure is a row, not the end."""

import importlib
import json
from pathlib import Path

import jax
import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    jax.config.update("jax_disable_most_optimizations", True)  # half the time of the compiler
    yield importlib.import_module("accelerator")
    jax.config.update("jax_disable_most_optimizations", False)


def test_everything_is_measured_and_written(accelerator, tmp_path, monkeypatch):
    def broken(bench):
        yield {"first": 1}
        raise ValueError("no such device")

    monkeypatch.setitem(accelerator.ITEMS, "installed_peers", (1, broken))
    accelerator.main(["--tiny", "--seconds", "3600", "--repeats", "1", "--ways", "kernels", "--out", str(tmp_path)])
    stored = json.loads((tmp_path / "accelerator-cpu.json").read_text())
    found = {row["item"]: row for row in stored["rows"]}
    assert set(found) == set(accelerator.ITEMS) - {"profile"}  # nothing to be seen of a CPU
    assert found.pop("installed_peers")["error"] == "ValueError: no such device"
    assert not [row for row in stored["rows"] if "error" in row and row["item"] in found]
    assert found["correctness"]["equivariant"] and found["correctness"]["force_error"] < 1e-8
    assert found["energy_forces"]["atoms"] == 8 and found["energy_forces"]["bound_H100_ms"] > 0
    assert stored["machine"]["backend"] == "cpu" and (tmp_path / "accelerator-cpu.png").exists()
