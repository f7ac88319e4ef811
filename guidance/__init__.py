"""The rules and the algebra they live in: all that is needed to write a rule.

Nothing here knows of pipelines, text or images. ``prediction``: levels, and what an answer means. ``query``: what
rules ask, and how it is answered. ``step``: what a rule is told and what it improves. ``rule``: the interface of a
method, sequences of methods, and wrappers. ``rules``: the methods. ``notation``: their names and text forms. ``run``:
one run. ``testing``: the oracle and the invariants that every rule passes.
The public names and their modules are listed once, in ``__init__.pyi``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
