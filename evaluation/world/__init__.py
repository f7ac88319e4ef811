"""Worlds in which every law is known: guidance measured against the exact law instead of against other samples.

>>> from guidestack.evaluation.world import WORLDS, draw, measured
>>> world = WORLDS["plane"]
>>> drawn = draw(world, "cfg(3)", "a", count=200, steps=5)
>>> drawn.x.shape, drawn.evaluations
(torch.Size([200, 2]), 10.0)
>>> sorted(measured(world, drawn, "a", ["distance", "norm"], batch=100))
['distance', 'norm']
"""

from .draws import Drawn, draw
from .measures import MEASURES, Number, measured
from .worlds import WORLDS, Law, World

__all__ = ["MEASURES", "WORLDS", "Drawn", "Law", "Number", "World", "draw", "measured"]
