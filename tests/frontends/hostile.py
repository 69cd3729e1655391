"""Makers of hostile model files: what a stranger may send, and the error that each must become.

``HOSTILE`` lists ``(name, maker, error, code)``; ``maker(folder)`` writes what it needs into a
fresh folder and returns the path to load. The files are small: what would be large is declared,
not written.
"""

from tests.frontends import hostile_external, hostile_files, hostile_graphs, hostile_parts
from tests.frontends.hostile_base import CASES, Case, Maker

HOSTILE: list[Case] = list(CASES)
MODULES = (hostile_files, hostile_external, hostile_graphs, hostile_parts)

__all__ = ["HOSTILE", "MODULES", "Case", "Maker"]
