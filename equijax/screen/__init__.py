"""Many crystals over the processes of a Dask cluster, their results in one store (extra `screen`)."""

from typing import TYPE_CHECKING

from equijax.faces import face

if TYPE_CHECKING:
    from equijax.screen.options import ScreenConfig as ScreenConfig
    from equijax.screen.store import phonon as phonon
    from equijax.screen.store import table as table

__getattr__, __dir__ = face(__name__, {"ScreenConfig": "options", "phonon": "store", "table": "store"})
