"""Batch evaluation: sweeps, their records, metrics and reports. Needs the extra ``evaluation``.

Each name is imported when it is first used, as pyarrow and the extractors take time to import. The public names and
their modules are listed once, in ``__init__.pyi``. `run` and `report` are functions, also after an import from the
packages of the same names (``from guidestack.evaluation.run import runner``).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
