"""The rules and the algebra they live in: all that is needed to write a rule.

Nothing here depends on pipelines, text or images. ``prediction``: noise levels, and conversions between what networks
emit. ``query``: the questions that rules ask, and their evaluation. ``step``: a run's position, and the estimate that
rules improve. ``rule``: the interface of a rule, stacks and wrappers. ``rules``: the methods. ``notation``: their names
and text forms. ``run``: one run. ``testing``: the oracle and the invariants that every rule passes.
The public names and their modules are listed once, in ``__init__.pyi``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
