"""Low-rank and full-size adapters of a frozen backbone."""
