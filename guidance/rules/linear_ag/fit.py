"""Linear regression of one prediction on those before it, over whole runs, and the file that keeps it.

Columns are the noise predictions of a run of N steps, ``[c_0 ... c_{N-1}, u_0 ... u_{N-1}]``; rows are the elements of
all samples of all runs. What least squares needs of that table A, for any target and any choice of regressors, is the
upper triangle R of ``A = QR``, a matrix of 2N x 2N whatever the number of rows, to which rows are added one run at a
time. ``R'R`` is the Gram matrix; R itself keeps the digits that squaring would lose, and neighbouring predictions are
close to collinear.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ...errors import InputError, nearest, reason
from ...files import write_whole
from ...reading import json_of

FOLDER = Path(__file__).parents[3] / "configs"
SUFFIX = ".safetensors"
KEY = "linear_ag"  # of the file's metadata, whose value is one line of JSON
FORMAT = 1
STEPS = 1000  # at most, so that a file has a size
MAX_BYTES = 64_000_000  # bytes: two matrices for that many steps and the header
CUTOFF = 1e-12  # singular values below this share of the largest are rounding, in float64


@dataclass(frozen=True, eq=False)
class Fit:
    """What was learnt from runs, and what it is valid for.

    Args:
        rule: text of the rule of the runs.
        steps: steps N of each.
        valid: what else it is valid for, as in `Run.identity`.
        triangle: R, shape ``(2N, 2N)``, float64.
        trajectories: runs that R is of.
        elements: elements of a sample.
        made: how it was made, for the record and to go on with it.
    """

    rule: str
    steps: int
    valid: Mapping[str, str]
    triangle: Tensor
    trajectories: int = 0
    elements: int = 0
    made: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def empty(cls, rule: str, steps: int, valid: Mapping[str, str], made: Mapping[str, str] | None = None) -> Fit:
        """A fit that no run went into yet."""
        return cls(rule, steps, valid, torch.zeros(2 * steps, 2 * steps, dtype=torch.float64), made=made or {})

    def with_runs(self, c: Sequence[Tensor], u: Sequence[Tensor]) -> Fit:
        """The fit with the predictions of some more runs taken in.

        Args:
            c: noise predictions for the prompt at every step, N tensors of shape ``(B, ...)``.
            u: those for the contrast.

        Cost: a QR decomposition of ``2N + elements`` rows for each sample, on the host. One sample at a time, so that
        the result does not depend on how runs were put into batches.
        """
        columns = torch.stack([value.detach().flatten(1) for value in (*c, *u)], 2).cpu().to(torch.float64)
        triangle = self.triangle
        for rows in columns:
            triangle = torch.linalg.qr(torch.cat([triangle, rows]), mode="r").R
        # QR leaves the sign of each row open.
        triangle = triangle * torch.where(triangle.diagonal() < 0, -1.0, 1.0).unsqueeze(1).to(torch.float64)
        return dataclasses.replace(
            self, triangle=triangle, trajectories=self.trajectories + len(columns), elements=columns.shape[1]
        )


def regressors(index: int, guided: Sequence[bool]) -> tuple[int, ...]:
    """Columns from which u is estimated at step `index`: every c up to it, and every u before it that is `guided`."""
    steps = len(guided)
    return (*range(index + 1), *(steps + j for j in range(index) if guided[j]))


def solve(triangle: Tensor, target: int, columns: Sequence[int]) -> Tensor:
    """Coefficients of `columns` that come nearest to the column `target`, in float64; of several, the smallest.

    Args:
        triangle: R, shape ``(2N, 2N)``, float64, on the host.
        target: a column.
        columns: others.

    Returns:
        One coefficient for each of `columns`.
    """
    a = triangle[:, list(columns)]
    length = torch.linalg.vector_norm(a, dim=0)
    length = torch.where(length > 0, length, torch.ones_like(length))
    found: Tensor = torch.linalg.lstsq(a / length, triangle[:, [target]], rcond=CUTOFF, driver="gelsd").solution
    return found.squeeze(1) / length


_SOLVED: WeakIdKeyDictionary = WeakIdKeyDictionary()


def solved(triangle: Tensor, target: int, columns: tuple[int, ...]) -> list[float]:
    """`solve` as plain numbers; a triangle that is kept is solved once, for all runs."""
    if triangle not in _SOLVED:
        _SOLVED[triangle] = {}
    known: dict[tuple[int, tuple[int, ...]], list[float]] = _SOLVED[triangle]
    if (target, columns) not in known:
        known[target, columns] = solve(triangle, target, columns).tolist()
    return known[target, columns]


def table(triangle: Tensor, guided: Sequence[bool]) -> Tensor:
    """All coefficients at once: row i estimates u_i from the columns `regressors` names. Shape ``(N, 2N)``."""
    steps = len(guided)
    rows = torch.zeros(steps, 2 * steps, dtype=torch.float64)
    for index in range(steps):
        columns = regressors(index, guided)
        rows[index, list(columns)] = solve(triangle, steps + index, columns)
    return rows


def residuals(triangle: Tensor, guided: Sequence[bool]) -> list[tuple[float, float]]:
    """For each step, how far the estimate is from u over all runs: as a share of u, and as one of c - u.

    Both are ratios of L2 norms over all samples.
    """
    steps = len(guided)
    shares = []
    for index, row in enumerate(table(triangle, guided)):
        c, u = triangle[:, index], triangle[:, steps + index]
        away = torch.linalg.vector_norm(triangle @ row - u)
        shares.append((_share(away, torch.linalg.vector_norm(u)), _share(away, torch.linalg.vector_norm(c - u))))
    return shares


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole > 0 else 0.0


# --- the file ------------------------------------------------------------------------------------------------------


def names() -> list[str]:
    """The fits that come with guidestack."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def locate(coefficients: str) -> Path:
    """The file that `coefficients` means: a path that ends in .safetensors, or the name of one of `names`.

    Raises:
        InputError: neither.
    """
    if coefficients.endswith(SUFFIX):
        return Path(coefficients)
    if coefficients not in names():
        raise InputError(
            f"no coefficients {coefficients!r}{nearest(coefficients, names())}; a file of your own ends in {SUFFIX}, "
            "and `guidestack fit-linear-ag` makes it; others, pickles above all, are not read"
        )
    return FOLDER / f"{coefficients}{SUFFIX}"


def write(fit: Fit, path: Path, guided: Sequence[bool]) -> None:
    """Write the file under a temporary name beside `path`, then rename it.

    Args:
        fit: what to write.
        path: the file.
        guided: the steps whose u is known under the policy whose coefficients are added, for whoever reads the file
            without guidestack, which solves for them itself.

    Raises:
        InputError: the folder, the rights, a full disk.
    """
    header = {
        "format": FORMAT,
        "rule": fit.rule,
        "space": "noise",
        "steps": fit.steps,
        "trajectories": fit.trajectories,
        "elements": fit.elements,
        "valid": dict(fit.valid),
        "made": dict(fit.made),
    }
    tensors = {"triangle": fit.triangle.contiguous(), "coefficients": table(fit.triangle, guided)}
    data = safetensors.torch.save(tensors, {KEY: json.dumps(header, sort_keys=True)})
    try:
        write_whole(path, data)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another --out or make room") from None


def read(path: Path) -> Fit:
    """The fit in a file, which anybody may have made.

    Raises:
        InputError: there is no such file, or it is not one that `write` makes.

    The last few files are kept, until they change on the disk.
    """
    try:
        stat = path.stat()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the coefficients {str(path)!r}: {reason(error)}") from None
    if not path.is_file() or stat.st_size > MAX_BYTES:
        raise InputError(
            f"{str(path)!r} is not a file of coefficients: {stat.st_size} bytes, at most {MAX_BYTES} expected"
        )
    return _read(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=8)
def _read(path: Path, changed: int, size: int) -> Fit:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json_of((file.metadata() or {}).get(KEY, "null"))
            triangle = file.get_tensor("triangle") if "triangle" in file.keys() else None  # noqa: SIM118  # no mapping
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(f"cannot read the coefficients {str(path)!r}: {reason(error)}") from None
    wrong = _wrong(header, triangle)
    if wrong or triangle is None:
        raise InputError(f"{str(path)!r} is not a file of coefficients: {wrong}; guidestack fit-linear-ag makes them")
    whole = {name: header[name] for name in ("rule", "steps", "valid", "trajectories", "elements", "made")}
    return Fit(triangle=triangle, **whole)


def _wrong(header: Any, triangle: Any) -> str:
    """What is wrong with a file's contents, or ""."""
    if not isinstance(header, dict) or header.get("format") != FORMAT or header.get("space") != "noise":
        return f"no metadata {KEY!r} of format {FORMAT} in the space 'noise'"
    counts = [header.get(name) for name in ("steps", "trajectories", "elements")]
    if any(type(count) is not int or not 0 <= count < 2**53 for count in counts) or not 1 <= header["steps"] <= STEPS:
        return f"steps, trajectories or elements are out of range: {counts}"[:200]
    for name in ("valid", "made"):
        value = header.get(name)
        if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
            return f"{name!r} is no mapping of texts"
    if not isinstance(header.get("rule"), str):
        return "'rule' is no text"
    side = 2 * header["steps"]
    if triangle is None or triangle.dtype != torch.float64 or tuple(triangle.shape) != (side, side):
        return f"'triangle' is not a float64 matrix of {side} x {side}"
    if not math.isfinite(float(triangle.abs().sum())):
        return "'triangle' has numbers that are not finite"
    return ""
