"""Make the figures of the README with the bundled model: python docs/figures.py [phonons kappa modes expansion]"""

import importlib
import sys
import tempfile
from importlib import resources
from pathlib import Path

import ase.io
from ase.build import bulk
from PIL import Image

from convert.__main__ import main as convert

SI, GETE = bulk("Si", "diamond", a=5.43), bulk("GeTe", "rocksalt", a=6.0)
FIGURES = {  # program: structure, its options, the file it draws
    "phonons": (SI, "--supercell 4 4 4 --relax", "bands.png"),
    "kappa": (SI, "--supercell 3 3 3 --relax --mesh 9 9 9", "kappa.png"),
    "modes": (GETE, "--mesh 1 1 1 --rounds 1 --max-directions 3 --random-directions 0", "energy_of_Q.png"),
    "expansion": (SI, "--supercell 3 3 3", "expansion.png"),
}


def main(names):
    """Run the programs and keep their figures beside this file."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        convert([str(resources.files("equijax") / "assets" / "mini.model"), str(work / "model")])
        for name in names or FIGURES:
            atoms, options, figure = FIGURES[name]
            ase.io.write(work / "structure.extxyz", atoms)
            common = [str(work / "structure.extxyz"), "--model", str(work / "model"), "--out", str(work / name)]
            code = importlib.import_module(f"equijax.programs.{name}").main([*common, *options.split()])
            if code:
                sys.exit(code)
            # few colours: the files live in the repository
            Image.open(work / name / figure).quantize(32).save(Path(__file__).parent / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
