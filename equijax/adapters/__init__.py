"""Low-rank and full-size adapters of a frozen backbone."""

from typing import TYPE_CHECKING

from equijax.faces import face

if TYPE_CHECKING:
    from equijax.adapters.files import attach as attach
    from equijax.adapters.files import load as load
    from equijax.adapters.files import save as save
    from equijax.adapters.lora import Adapters as Adapters
    from equijax.adapters.lora import merge as merge

__getattr__, __dir__ = face(
    __name__, {"Adapters": "lora", "attach": "files", "load": "files", "merge": "lora", "save": "files"}
)
