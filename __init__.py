"""guidestack: guided sampling for diffusion models.

The public names, nothing else. Each is imported when it is first used, so that `import guidestack` and the command line
start at once; torch comes with the first name, diffusers and transformers with the first pipeline. The names and their
modules are listed once, in ``__init__.pyi``.
"""

import lazy_loader

__getattr__, _, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __dir__() -> list[str]:
    return sorted(__all__)
