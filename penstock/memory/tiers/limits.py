"""Limits of the tiers as a declaration: what a method says, and a pool is made from."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.errors import BudgetError


@dataclass(frozen=True)
class Tiers:
    """Bytes of main memory and of disk for the archives of one memory, all layers and rows together."""

    ram: int
    disk: int = 0
    folder: str = ""

    def __post_init__(self) -> None:
        if self.ram <= 0 or self.disk < 0:
            raise BudgetError(f"tiers of {self.ram} and {self.disk} bytes are not possible: give ram=64MiB, say.")
        if self.disk and not self.folder:
            raise BudgetError("a disk tier needs a folder: name one, or give it no bytes.")

    def options(self) -> dict[str, object]:
        """Keyword arguments of a Pool."""
        return {"ram": self.ram, "disk": self.disk, "folder": self.folder or None}
