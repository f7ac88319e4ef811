"""The rules and the algebra they live in: all that is needed to write a rule.

Nothing here knows of pipelines, text or images. ``prediction``: levels, and what an answer means. ``query``: what
rules ask, and how it is answered. ``rule``: the interface of a method. ``stack``: sequences of rules. ``rules``: the
methods. ``registry``: their names. ``run``: one run. ``testing``: the oracle and the invariants that every rule passes.
The public names and their modules are listed once, in ``__init__.pyi``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
