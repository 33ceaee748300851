"""Band structure and density of states of a Phonopy object: seekpath's path, phonopy's numbers, one figure."""

from pathlib import Path

import matplotlib
import numpy as np
from phonopy import Phonopy
from phonopy.phonon.band_structure import get_band_qpoints_by_seekpath

POINTS = 51  # a segment of the path


def band_structure(phonon: Phonopy, points: int = POINTS):
    """Frequencies along seekpath's path through the Brillouin zone.

    Returns:
      (bands, labels, connections): phonopy's BandStructure (distances and frequencies in THz per segment), the names of
      the special points, and whether each segment joins the next.
    """
    qpoints, labels, connections = get_band_qpoints_by_seekpath(phonon.primitive, points, is_const_interval=True)
    bands = phonon.run_band_structure(qpoints, path_connections=connections, labels=labels)
    return bands, labels, connections


def draw(phonon: Phonopy, path: str | Path, title: str = "", dos=None) -> None:
    """Draw the band structure, and the total density of states beside it where one is given, into a file."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bands, labels, connections = band_structure(phonon)
    ratio = [4, 1] if dos is not None else [1]
    figure, axes = plt.subplots(
        1, len(ratio), figsize=(7, 4.5), sharey=True, squeeze=False, width_ratios=ratio, layout="constrained"
    )
    axis = axes[0, 0]
    for x, y in zip(bands.distances, bands.frequencies, strict=True):
        axis.plot(x, y, color="C0", lw=1.0)
    ticks = [bands.distances[0][0], *(x[-1] for x in bands.distances)]
    axis.set_xticks(ticks, tick_labels(labels, connections))
    for tick in ticks:
        axis.axvline(tick, color="0.85", lw=0.8, zorder=0)
    axis.axhline(0.0, color="k", lw=0.5)
    axis.set(title=title, ylabel="frequency (THz), imaginary below 0", xlim=(ticks[0], ticks[-1]))
    if dos is not None:
        axes[0, 1].plot(dos.dos, dos.frequency_points, color="C0", lw=1.0)
        axes[0, 1].set(xlabel="DOS (1/THz)", xlim=(0, None))
    figure.savefig(path, dpi=150)
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
    np.savetxt(
        path,
        np.column_stack([dos.frequency_points, dos.dos]),
        delimiter=",",
        header="frequency_THz,dos_1/THz",
        comments="",
        fmt="%.10g",
    )
