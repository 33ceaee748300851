"""Low-rank and full-size adapters of a frozen backbone."""

from equijax.adapters.files import attach, load, save
from equijax.adapters.lora import Adapters, merge

__all__ = ["Adapters", "attach", "load", "merge", "save"]
