"""Band structure and density of states of a Phonopy object: seekpath's path, phonopy's numbers, one figure."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import seekpath
from phonopy import Phonopy
from phonopy.phonon.band_structure import get_band_qpoints
from phonopy.structure.atoms import PhonopyAtoms

from equijax import files

POINTS = 51  # a segment of the path
GREEK = ("GAMMA", "SIGMA", "DELTA", "LAMBDA")  # letters among seekpath's names of points


def plot(axis, phonons: Sequence[tuple[Phonopy, dict]], points: int = POINTS) -> None:
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


def draw(phonon: Phonopy, path: str | Path, title: str = "", dos=None) -> None:
    """Draw the band structure, and the total density of states beside it where one is given, into a file."""
    import matplotlib  # only where a figure is drawn

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ratio = [4, 1] if dos is not None else [1]
    figure, axes = plt.subplots(
        1, len(ratio), figsize=(7, 4.5), sharey=True, squeeze=False, width_ratios=ratio, layout="constrained"
    )
    plot(axes[0, 0], [(phonon, {"color": "C0", "lw": 1.0})])
    axes[0, 0].set_title(title)
    if dos is not None:
        axes[0, 1].plot(dos.dos, dos.frequency_points, color="C0", lw=1.0)
        axes[0, 1].set(xlabel="DOS (1/THz)", xlim=(0, None))
    with files.beside(path) as part:
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


def write_dos(dos, path: str | Path) -> None:
    """frequency (THz), states per THz and primitive cell."""
    columns = np.column_stack([dos.frequency_points, dos.dos])
    with files.beside(path) as part:
        np.savetxt(part, columns, delimiter=",", header="frequency_THz,dos_1/THz", comments="", fmt="%.10g")
