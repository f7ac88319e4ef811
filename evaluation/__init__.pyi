"""The public names of sweeps from Python, and where each comes from."""

from . import interpolation as interpolation
from . import metrics as metrics
from . import verdicts as verdicts
from . import world as world
from .analysis.planning import plan as plan
from .metrics.registry import parse_metric as parse_metric
from .report.report import report as report
from .run.run import run as run
from .spec.sweep import Sweep as Sweep
from .spec.sweep import load_sweep as load_sweep
from .store.folder import RunFolder as RunFolder
