"""Every figure, drawn from arrays and written to a file.

A figure belongs to no window and no state of matplotlib's: it is made, drawn, written and forgotten.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import seekpath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from phonopy import Phonopy
from phonopy.phonon.band_structure import get_band_qpoints
from phonopy.structure.atoms import PhonopyAtoms

from equijax import outputs, tables

POINTS = 51  # a segment of the path
GREEK = ("GAMMA", "SIGMA", "DELTA", "LAMBDA")  # letters among seekpath's names of points

DPI = 130
BINS = 10  # of a calibration plot
PANEL = (4.5, 4.0)  # inches: width and height of one panel
LINE = {"color": "C0", "lw": 1.0}  # the one curve of a figure
ERROR: dict[str, Any] = {"color": "C0", "alpha": 0.25, "lw": 0}
BEFORE = {"color": "C3", "lw": 1.0, "ls": "--"}
REFERENCE = {"color": "0.7", "lw": 3.0}
GUIDE: dict[str, Any] = {"color": "0.8", "lw": 0.8, "zorder": 0}  # symmetry points
ZERO: dict[str, Any] = {**GUIDE, "color": "k"}


@contextmanager
def panels(path: str | Path, number: int = 1, *, size: tuple[float, float] = PANEL, **layout: Any) -> Iterator[Any]:
    """Axes [number] side by side to draw on, which become the file `path` when the block ends.

    Args:
      path: to write.
      number: of panels.
      size: width and height of each, inches.
      layout: keywords of `Figure.subplots`.
    """
    figure = Figure(figsize=(size[0] * number, size[1]), dpi=DPI, layout="constrained")
    yield figure.subplots(1, number, squeeze=False, **layout)[0]
    with outputs.beside(path) as part:
        figure.savefig(part)


def bands(axis: Axes, phonons: Sequence[tuple[Phonopy, dict[str, Any]]], *, points: int = POINTS) -> None:
    """Draw band structures along seekpath's path through the Brillouin zone of the first one's primitive cell.

    Args:
      axis: to draw on; its y axis becomes the frequency in THz.
      phonons: (Phonopy with force constants, keywords of `Axes.plot`) of each.
      points: on a segment of the path.
    """
    primitive = phonons[0][0].primitive
    qpoints, labels, connections = path(primitive, points)
    found = [p.run_band_structure(qpoints, path_connections=connections, labels=labels) for p, _ in phonons]
    for curves, (_, style) in zip(found, phonons, strict=True):
        for i, (x, y) in enumerate(zip(curves.distances, curves.frequencies, strict=True)):
            axis.plot(x, y, **(style if not i else {**style, "label": None}))  # one entry in the legend
    ticks = [found[0].distances[0][0], *(x[-1] for x in found[0].distances)]
    axis.set_xticks(ticks, tick_labels(labels, connections))
    for tick in ticks:
        axis.axvline(tick, **GUIDE)
    axis.axhline(0.0, **ZERO)
    axis.set(ylabel="frequency (THz), imaginary below 0", xlim=(ticks[0], ticks[-1]))


def path(cell: PhonopyAtoms, points: int = POINTS) -> tuple[list[np.ndarray], list[str], list[bool]]:
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
    qpoints = get_band_qpoints(ends, points, np.asarray(np.linalg.inv(cell.cell), np.float64))
    connections = [a[1] == b[0] for a, b in itertools.pairwise(segments)] + [False]
    names = [name for segment, joined in zip(segments, connections, strict=True) for name in segment[: 2 - joined]]
    return qpoints, [_label(name) for name in names], connections


def _label(name: str) -> str:
    """seekpath's GAMMA, SIGMA_0, X_1 ... for matplotlib."""
    letter = next((letter for letter in GREEK if name.startswith(letter)), None)
    text = rf"\mathrm{{{name}}}" if letter is None else name.replace(letter, rf"\{letter.capitalize()}")
    return f"${text}$"


def tick_labels(labels: list[str], connections: list[bool]) -> list[str]:
    """One label a tick: where the path jumps, the end of one segment and the start of the next share it."""
    names, rest = [labels[0]], list(labels[1:])
    for i, joined in enumerate(connections):
        name = rest.pop(0)
        if not joined and i < len(connections) - 1:
            name = f"{name}|{rest.pop(0)}"
        names.append(name)
    return names


def error_band(axis: Axes, members: Sequence[Phonopy], *, factor: float = 1.0, points: int = POINTS) -> None:
    """Shade the mean of band structures give or take their standard deviation times a factor, on the path of `bands`.

    Args:
      axis: to draw on.
      members: with force constants, of one crystal; branches are told apart by their order at each q.
      factor: on the standard deviation.
      points: as for `bands`.
    """
    qpoints, labels, connections = path(members[0].primitive, points)
    found = [m.run_band_structure(qpoints, path_connections=connections, labels=labels) for m in members]
    for i, x in enumerate(found[0].distances):
        several = np.array([curves.frequencies[i] for curves in found])  # [M, points, branches]
        mean, deviation = several.mean(0), factor * several.std(0)
        for low, high in zip((mean - deviation).T, (mean + deviation).T, strict=True):
            axis.fill_between(x, low, high, **ERROR)


def draw_bands(path: str | Path, phonon: Phonopy, *, title: str = "", dos: Any = None, apart: Any = None) -> None:
    """The band structure, and beside it phonopy's total density of states.

    Args:
      path: to write.
      phonon: with force constants.
      title: above it.
      dos: of phonopy, None for none.
      apart: members of a committee, for an error band: `equijax.phonons.uncertainty.Apart`.
    """
    widths, sizes = ([4, 1], (3.5, 4.5)) if dos is not None else ([1], (7.0, 4.5))
    with panels(path, len(widths), size=sizes, sharey=True, width_ratios=widths) as axes:
        if apart is not None:
            error_band(axes[0], apart.phonons, factor=apart.factor)
        bands(axes[0], [(phonon, LINE)])
        axes[0].set_title(title)
        if dos is not None:
            axes[1].plot(dos.dos, dos.frequency_points, **LINE)
            axes[1].set(xlabel="DOS (1/THz)", xlim=(0, None))


def compare_bands(path: str | Path, crystals: Mapping[str, Mapping[str, Phonopy]]) -> None:
    """Band structures of "reference", "converted" and "fine-tuned" models, one panel a crystal."""
    styles = {"reference": REFERENCE, "converted": BEFORE, "fine-tuned": LINE}
    with panels(path, len(crystals), size=(6.0, 4.5)) as axes:
        for axis, (title, models) in zip(axes, crystals.items(), strict=True):
            bands(axis, [(phonon, styles[name] | {"label": name}) for name, phonon in models.items()])
            axis.set_ylim(top=1.15 * axis.get_ylim()[1])  # room for the legend
            axis.set_title(title)
            axis.legend(loc="upper right", ncols=len(models), frameon=False)


def draw_parity(path: str | Path, quantities: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Prediction against label, one panel a quantity: its title, labels and predictions; labels may be NaN."""
    with panels(path, len(quantities), size=(4.2, 4.2)) as axes:
        for axis, (title, (x, y)) in zip(axes, quantities.items(), strict=True):
            known = np.isfinite(x)
            ends = [min(x[known].min(), y[known].min()), max(x[known].max(), y[known].max())]
            axis.plot(ends, ends, **GUIDE)
            axis.plot(x[known], y[known], ".", ms=3, alpha=0.5)
            axis.locator_params(nbins=5)
            axis.set(title=title, xlabel="label", ylabel="model", aspect="equal")


def draw_calibration(path: str | Path, quantities: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Errors over standard deviations, one panel a quantity: its title, deviations and errors of single components.

    Root mean squares of `BINS` groups of like deviation; on the solid line both are equal, on the dashed one errors are
    larger by the ratio of all components.
    """
    with panels(path, len(quantities)) as axes:
        for axis, (title, (deviation, error)) in zip(axes, quantities.items(), strict=True):
            groups = np.array_split(np.argsort(deviation), min(BINS, len(deviation)))
            x, y = (np.array([np.sqrt(np.mean(v[g] ** 2)) for g in groups]) for v in (deviation, error))
            known = (x > 0) & (y > 0)
            ends = [min(x[known].min(), y[known].min()), max(x[known].max(), y[known].max())] if known.any() else [1, 2]
            axis.loglog(ends, ends, **GUIDE)
            axis.loglog(ends, np.array(ends) * np.sqrt(np.mean(error**2) / np.mean(deviation**2)), **BEFORE)
            axis.loglog(x[known], y[known], "o", ms=4)
            axis.set(title=title, xlabel="standard deviation of the committee", ylabel="error of its mean, RMS")


def draw_scans(path: str | Path, scans: Sequence[Mapping[str, Any]]) -> None:
    """E(Q) of every distortion that was scanned: entries of `soft_modes.search`."""
    deepest = max([scan["well_meV_atom"] for scan in scans] + [1.0])
    widest = max([abs(scan["Q_min"]) for scan in scans], default=0.0) or 1.0
    with panels(path, size=(6.0, 4.5)) as (axis,):
        for scan in scans:
            star = tables.cell(scan["q"][:1]) + ("..." if len(scan["q"]) > 1 else "")
            mode = f"{scan['from_space_group']}, {star} {scan['frequency_THz']:.2f} THz"
            axis.plot(
                scan["Q"], scan["energy_meV_atom"], ".-", lw=1, label=f"{mode} -> {scan['distorted_space_group']}"
            )
        axis.set(xlabel="Q (Å amu$^{1/2}$ per primitive cell)", ylabel="E (meV/atom)")
        axis.set(xlim=(-2 * widest, 2 * widest), ylim=(-1.2 * deepest, 1.5 * deepest))
        axis.axhline(0, **GUIDE)
        if scans:
            axis.legend(fontsize=5)


def draw_conductivity(
    path: str | Path, curves: Mapping[str, np.ndarray], *, temperatures: npt.ArrayLike, title: str
) -> None:
    """Lattice thermal conductivity (W/m/K) over temperature (K), one curve a component."""
    with panels(path) as (axis,):
        for name, values in curves.items():
            axis.plot(temperatures, values, ".-", label=rf"$\kappa_{{{name}}}$")
        axis.set(xlabel="temperature (K)", ylabel="lattice thermal conductivity (W/m/K)", title=title)
        axis.set(xlim=(0, None), ylim=(0, None))
        axis.legend()


def draw_expansion(
    path: str | Path,
    *,
    modes: tuple[np.ndarray, np.ndarray],
    expansion: tuple[np.ndarray, np.ndarray],
    title: str,
) -> None:
    """Mode Grueneisen parameters over frequency (THz), and volume expansion (1/K) over temperature (K)."""
    with panels(path, 2) as axes:
        axes[0].plot(*modes, ".", ms=3)
        axes[0].set(xlabel="frequency (THz)", ylabel="mode Grüneisen parameter", title=title)
        temperatures, values = expansion
        axes[1].plot(temperatures, 1e6 * np.asarray(values))
        axes[1].set(xlabel="temperature (K)", ylabel="volume expansion (10$^{-6}$/K)")


def draw_learning_curve(path: str | Path, history: Sequence[Mapping[str, Any]], *, start: Mapping[str, Any]) -> None:
    """Training and validation loss, and validation force MAE, by epoch; those of epoch 0 (new E0s) are dashed."""
    epochs, dashed = [h["epoch"] for h in history], {"color": "k", "ls": "--", "lw": 0.8}
    with panels(path, 2, size=(5.0, 4.0)) as axes:
        axes[0].semilogy(epochs, [h["train_loss"] for h in history], label="train")
        axes[0].semilogy(epochs, [h["loss"] for h in history], label="validation")
        axes[0].axhline(start["loss"], **dashed, label="before training")
        axes[0].set(xlabel="epoch", ylabel="loss")
        axes[0].legend()
        if start["forces_mae"] is not None:
            axes[1].plot(epochs, [1e3 * h["forces_mae"] for h in history], color="C1")
            axes[1].set_ylim(bottom=0.0)
            axes[1].axhline(1e3 * start["forces_mae"], **dashed)
        axes[1].set(xlabel="epoch", ylabel="validation force MAE (meV/A)")
