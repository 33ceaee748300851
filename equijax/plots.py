"""Every figure, drawn from arrays and written to a file."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seekpath
from phonopy import Phonopy
from phonopy.phonon.band_structure import get_band_qpoints
from phonopy.structure.atoms import PhonopyAtoms

from equijax import outputs

POINTS = 51  # a segment of the path
GREEK = ("GAMMA", "SIGMA", "DELTA", "LAMBDA")  # letters among seekpath's names of points


def bands(axis, phonons: Sequence[tuple[Phonopy, dict]], points: int = POINTS) -> None:
    """Draw band structures along seekpath's path through the Brillouin zone of the first one's primitive cell.

    Args:
      axis: of matplotlib; its y axis becomes the frequency in THz.
      phonons: (Phonopy with force constants, keywords of `Axes.plot`) of each.
      points: on a segment of the path.
    """
    primitive = phonons[0][0].primitive
    qpoints, labels, connections = path(primitive, points)
    found = [p.run_band_structure(qpoints, path_connections=connections, labels=labels) for p, _ in phonons]
    for bands, (_, style) in zip(found, phonons, strict=True):
        for i, (x, y) in enumerate(zip(bands.distances, bands.frequencies, strict=True)):
            axis.plot(x, y, **style | ({"label": None} if i else {}))  # one entry in the legend
    ticks = [found[0].distances[0][0], *(x[-1] for x in found[0].distances)]
    axis.set_xticks(ticks, tick_labels(labels, connections))
    for tick in ticks:
        axis.axvline(tick, color="0.85", lw=0.8, zorder=0)
    axis.axhline(0.0, color="k", lw=0.5)
    axis.set(ylabel="frequency (THz), imaginary below 0", xlim=(ticks[0], ticks[-1]))


def path(cell: PhonopyAtoms, points: int = POINTS) -> tuple[list, list[str], list[bool]]:
    """seekpath's path through the Brillouin zone, in units of the reciprocal vectors of the cell as it is.

    Args:
      cell: any cell of the crystal, left-handed or not the smallest.
      points: on the longest segment.

    Returns:
      q-points of each segment, labels of its ends (those of a joint once), and whether it joins the next.
    """
    found = seekpath.get_path_orig_cell(cell.totuple())
    segments, places = found["path"], found["point_coords"]
    ends = [[places[name] for name in segment] for segment in segments]
    qpoints = get_band_qpoints(ends, points, np.linalg.inv(cell.cell))
    connections = [a[1] == b[0] for a, b in itertools.pairwise(segments)] + [False]
    names = [name for segment, joined in zip(segments, connections, strict=True) for name in segment[: 2 - joined]]
    return qpoints, [_label(name) for name in names], connections


def _label(name):
    """seekpath's GAMMA, SIGMA_0, X_1 ... for matplotlib."""
    letter = next((letter for letter in GREEK if name.startswith(letter)), None)
    text = rf"\mathrm{{{name}}}" if letter is None else name.replace(letter, rf"\{letter.capitalize()}")
    return f"${text}$"


def draw_bands(phonon: Phonopy, path: str | Path, title: str = "", dos=None) -> None:
    """Draw the band structure, and the total density of states beside it where one is given, into a file."""
    plt = _pyplot()
    ratio = [4, 1] if dos is not None else [1]
    figure, axes = plt.subplots(
        1, len(ratio), figsize=(7, 4.5), sharey=True, squeeze=False, width_ratios=ratio, layout="constrained"
    )
    bands(axes[0, 0], [(phonon, {"color": "C0", "lw": 1.0})])
    axes[0, 0].set_title(title)
    if dos is not None:
        axes[0, 1].plot(dos.dos, dos.frequency_points, color="C0", lw=1.0)
        axes[0, 1].set(xlabel="DOS (1/THz)", xlim=(0, None))
    with outputs.beside(path) as part:
        figure.savefig(part, dpi=150)
    plt.close(figure)


def tick_labels(labels: list[str], connections: list[bool]) -> list[str]:
    """One label a tick: where the path jumps, the end of one segment and the start of the next share it."""
    names, rest = [labels[0]], list(labels[1:])
    for i, joined in enumerate(connections):
        name = rest.pop(0)
        if not joined and i < len(connections) - 1:
            name = f"{name}|{rest.pop(0)}"
        names.append(name)
    return names


def draw_parity(path: Path, panels: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Prediction against label, one panel a quantity: its title, labels and predictions; labels may be NaN."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 4.2), layout="constrained", squeeze=False)
    for axis, (title, (x, y)) in zip(axes[0], panels.items(), strict=True):
        known = np.isfinite(x)
        ends = [min(x[known].min(), y[known].min()), max(x[known].max(), y[known].max())]
        axis.plot(ends, ends, color="0.6", lw=0.8)
        axis.plot(x[known], y[known], ".", ms=3, alpha=0.5)
        axis.locator_params(nbins=5)
        axis.set(title=title, xlabel="label", ylabel="model", aspect="equal")
    with outputs.beside(path) as part:
        figure.savefig(part, dpi=130)
    plt.close(figure)


def cell_text(value: object) -> str:
    """An entry of a table or legend."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list):
        return " ".join("(" + ",".join(f"{x:g}" for x in q) + ")" for q in value)
    return str(value)


def draw_scans(scans: list[dict], path: Path) -> None:
    """E(Q) of every distortion that was scanned."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6, 4.5))
    for scan in scans:
        star = cell_text(scan["q"][:1]) + ("..." if len(scan["q"]) > 1 else "")
        name = f"{scan['from_space_group']}, {star} {scan['frequency_THz']:.2f} THz -> {scan['distorted_space_group']}"
        axes.plot(scan["Q"], scan["energy_meV_atom"], ".-", lw=1, label=name)
    deepest = max([scan["well_meV_atom"] for scan in scans], default=1.0)
    widest = max([abs(scan["Q_min"]) for scan in scans], default=0.0) or 1.0
    axes.set(xlim=(-2 * widest, 2 * widest), xlabel="Q (Å amu$^{1/2}$ per primitive cell)", ylabel="E (meV/atom)",
             ylim=(-1.2 * max(deepest, 1.0), 1.5 * max(deepest, 1.0)))  # fmt: skip
    axes.axhline(0, color="0.7", lw=0.8, zorder=0)
    if scans:
        axes.legend(fontsize=5)
    figure.tight_layout()
    with outputs.beside(path) as part:
        figure.savefig(part, dpi=150)
    plt.close(figure)


def learning_curve(history: list[dict], start: dict, path: Path) -> None:
    """Training and validation loss, and validation force MAE, by epoch; those of epoch 0 (new E0s) are dashed."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    epochs = [h["epoch"] for h in history]
    axes[0].semilogy(epochs, [h["train_loss"] for h in history], label="train")
    axes[0].semilogy(epochs, [h["loss"] for h in history], label="validation")
    axes[0].axhline(start["loss"], color="k", ls="--", lw=0.8, label="before training")
    axes[0].set(xlabel="epoch", ylabel="loss")
    axes[0].legend()
    if start["forces_mae"] is not None:
        axes[1].plot(epochs, [1e3 * h["forces_mae"] for h in history], color="C1")
        axes[1].set_ylim(bottom=0.0)
        axes[1].axhline(1e3 * start["forces_mae"], color="k", ls="--", lw=0.8)
    axes[1].set(xlabel="epoch", ylabel="validation force MAE (meV/A)")
    with outputs.beside(path) as part:
        figure.savefig(part, dpi=120)
    plt.close(figure)


def _pyplot() -> Any:
    import matplotlib.pyplot as plt  # only where a figure is drawn: slow to import

    return plt
