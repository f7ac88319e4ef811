"""Forwarding of a pipeline's attributes by the object that stands for it."""

from __future__ import annotations

from typing import Any, Self

from .families.record import Pipeline


class Surface:
    """Base class of objects that stand for a pipeline and forward to it every attribute that they lack.

    Attributes:
        pipe: the pipeline.
    """

    pipe: Pipeline

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "pipe" not in vars(self):  # copies are made before anything is in them
            raise AttributeError(name)
        if hasattr(self.pipe, name):
            return getattr(self.pipe, name)
        raise AttributeError(
            f"{type(self).__name__!r} has no attribute {name!r}, nor has its {type(self.pipe).__name__}"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        mine = name in vars(self) or "pipe" not in vars(self) or not hasattr(self.pipe, name)
        if mine:
            object.__setattr__(self, name, value)
        else:
            setattr(self.pipe, name, value)

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *dir(self.pipe)})

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the pipeline, or change its type, as its own method does; returns this object."""
        self.pipe.to(*args, **kwargs)
        return self


def bare(pipe: Pipeline) -> Pipeline:
    """Return the pipeline itself, out of one that is guided already."""
    return pipe.pipe if isinstance(pipe, Surface) else pipe
