"""Objectives: functions of the clean sample that rules steer by, and how a run evaluates them and their gradients.

An objective is ``log f(x0) -> (B,)``: one number for each sample, the larger the better, a function of that sample
alone. A plain function is one. What it sees, its attribute `space` says:

============  =======================================================================================
``"pixels"``  the picture, ``(B, 3, H, W)`` with values in [0, 1] that are not clamped; the default
``"latents"`` the clean sample as the network has it
``"noisy"``   the noisy sample and its level, ``log f(x, level)``: a classifier that was trained on noise
============  =======================================================================================

A gradient is taken at the prediction's clean sample, `Bound.gradient`, and costs no network evaluation. A rule that
`differentiates` carries it on through the denoiser, `pulled_back`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .errors import InputError, RuleError, shown
from .fields import count, is_number, plain
from .keyed import keyed, normal
from .prediction import Level, wide

SPACES = ("pixels", "latents", "noisy")
"""What an objective may see of a sample."""
Decode = Callable[[Tensor], Tensor]
"""From clean samples as the network has them to pictures with values in [0, 1]."""
Encode = Callable[[Tensor], Tensor]
"""From pictures with values in [0, 1] to clean samples as the network has them."""
OBJECTIVE = "objective "
"""Before the name of an objective, where what a sample is made from is listed: the picture that it was given."""
NAME = re.compile(r"[A-Za-z_]\w{0,99}")


class Objective:
    """Base class of objectives: functions ``log f(x0) -> (B,)`` of clean samples that rules steer by.

    A plain function is an objective too. Those that come with guidestack are frozen dataclasses of this class.

    Class attributes:
        space: what it is given: ``"pixels"``, ``"latents"`` or ``"noisy"``.
        differentiable: whether it has a gradient. A rule that needs one refuses an objective without.
        takes: what the objective needs beside its parameters, such as "a picture"; "" if it needs nothing.
    """

    space: ClassVar[str] = "pixels"
    differentiable: ClassVar[bool] = True
    takes: ClassVar[str] = ""

    def __call__(self, x0: Tensor) -> Tensor:
        """``log f(x0)``, shape ``(B,)``."""
        raise NotImplementedError

    def check_size(self, height: int, width: int) -> None:
        """Check that the objective fits pictures of a size in pixels; by default it fits every size.

        Raises:
            InputError: what the objective was given is for another size.
        """
        del height, width

    def given(self, value: Any) -> Objective:
        """Return the objective for what it `takes`: a path, a PIL image or a tensor.

        Raises:
            InputError: the objective takes nothing, or something else.
        """
        raise InputError(f"the objective {type(self).__name__} takes no file; got {shown(value)}")


class Determining(Objective):
    r"""Measurements :math:`y = A x_0` that determine a part of the picture, its projection :math:`A^+ A x_0`.

    That is what `Replace` puts in place. A subclass implements `determined` and `having`.

    Class attributes:
        in_latents: whether `determined` takes latents of an autoencoder too, of another size and number of channels.
    """

    in_latents: ClassVar[bool] = False

    def determined(self, x: Tensor) -> Tensor:
        """:math:`A^+ A x`, an orthogonal projection, of pictures ``(B, 3, H, W)``; shaped like `x`."""
        raise NotImplementedError

    def having(self, height: int, width: int) -> Tensor:
        """A picture that has the measurements, shape ``(3, height, width)``, values in [0, 1].

        Raises:
            InputError: they are those of pictures of another size.
        """
        raise NotImplementedError


def name_of(text: str) -> str:
    """The name in the text of an objective: ``"blur"`` of ``"blur(2)"``."""
    return text.partition("(")[0].strip()


def check_text(text: object) -> str:
    """The text of an objective, if it is one: a name, or a name with literal arguments.

    Raises:
        RuleError: it is something else.
    """
    if isinstance(text, str) and NAME.fullmatch(name_of(text)):
        _name, bracket, rest = text.strip().partition("(")
        if not bracket or rest.endswith(")"):
            return text.strip()
    raise RuleError(f"an objective is named, such as 'blue' or 'blur(2)'; got {shown(text)}")


@dataclass(frozen=True, eq=False)
class Bound:
    """An objective in a run, with the decoder that it needs to see pictures.

    Args:
        name: its text.
        function: the objective.
        decode: as in `Objectives`.
        rows: as in `Objectives`.
        size: as in `Objectives`.
        encode: as in `Objectives`.
    """

    name: str
    function: Any
    decode: Decode | None = None
    rows: int = 0
    size: tuple[int, int] | None = None
    encode: Encode | None = None
    _sample: list[Tensor] = field(default_factory=list, init=False, repr=False)

    @property
    def space(self) -> str:
        """What the objective is given."""
        return str(getattr(self.function, "space", "pixels"))

    def need_gradient(self, asker: object) -> None:
        """Refuse an objective without a gradient, for a rule that error messages call `asker`.

        Raises:
            RuleError: it says that it has none.
        """
        if not getattr(self.function, "differentiable", True):
            raise RuleError(
                f"{asker}: the objective {self.name!r} has no gradient, and this rule needs one; weigh "
                f"particles by it with resample(8, 1, reward={self.name!r})"
            )

    def check_size(self) -> None:
        """Refuse an objective that the pictures of the run do not fit, where their size is known.

        Raises:
            InputError: it was given one of another size.
        """
        if self.size is not None and self.space == "pixels" and isinstance(self.function, Objective):
            self.function.check_size(*self.size)

    def sample(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Return a clean sample that has the measurements of a `Determining` objective; it is made once.

        Args:
            shape: of the run's samples, batch first.
            device: where they are.

        Returns:
            Shape ``(1, ...)``, in float32 or better.

        Raises:
            InputError: the samples of the run are no pictures, and cannot be made of one, or no latents of one.
            UnsupportedPipelineError: how the pipeline makes latents of a picture is not known.
        """
        if not self._sample:
            if self.decode is not None and self.encode is None:
                raise InputError(
                    f"the objective {self.name!r} takes the place of a part of the samples, which are no pictures "
                    "here, and no encoder from pictures to samples is known; give encode= beside decode="
                )
            height, width = self.size or tuple(shape[-2:])
            made: Tensor = self.function.having(height, width).to(device)[None]
            found = made if self.encode is None else self.encode(made).to(wide(made.dtype))
            if found.shape[1:] != tuple(shape[1:]):
                raise InputError(
                    f"a picture of the objective {self.name!r} is a sample of shape {tuple(found.shape[1:])}, and the "
                    f"run's have {tuple(shape[1:])}; this is for pictures with three channels, or their latents"
                )
            if found.shape[1:] != made.shape[1:] and not self.function.in_latents:
                raise InputError(
                    f"the objective {self.name!r} determines a part of pictures, and not of the latents of an "
                    f"autoencoder; steer towards it with tfg({self.name!r}, mu=0.3)"
                )
            self._sample.append(found)
        return self._sample[0]

    def __call__(self, x0: Tensor, *level: Level) -> Tensor:
        """``log f`` of clean samples, shape ``(B,)``, in float32 or better; of a "noisy" one, of samples at a level.

        Raises:
            InputError: the objective returned something else than one number for each sample.
        """
        seen = self._pictures(x0) if self.space == "pixels" and self.decode is not None else x0
        value = self.function(seen, *level)
        self._check(value, x0)
        return value.to(wide(value.dtype))  # type: ignore[no-any-return]

    def gradient(self, x0: Tensor, *level: Level) -> tuple[Tensor, Tensor]:
        """``log f`` of clean samples, and its gradient with respect to them.

        Cost: a forward and a backward pass of the objective and of the decoder, if it sees pictures; no network
        evaluation. Nothing is retained.

        Args:
            x0: clean samples, shape ``(B, ...)``; of a "noisy" objective noisy ones.
            *level: of a "noisy" objective their level.

        Raises:
            InputError: the objective returned something else than one number for each sample, or has no gradient.
        """
        check_recording()
        with torch.enable_grad():
            point = x0.detach().requires_grad_()
            value = self(point, *level)
            found = torch.autograd.grad(value.sum(), point, allow_unused=True)[0] if value.requires_grad else None
        if found is None:
            raise InputError(
                f"the objective {self.name!r} has no gradient with respect to the sample: what it returns does not "
                "depend on x0 by differentiable operations of torch (was it detached, or computed under no_grad?)"
            )
        return value.detach(), found

    def _pictures(self, x0: Tensor) -> Tensor:
        assert self.decode is not None
        if not self.rows or len(x0) <= self.rows:
            return self.decode(x0)
        parts = torch.split(x0, self.rows)
        if not (torch.is_grad_enabled() and x0.requires_grad):
            return torch.cat([self.decode(part) for part in parts])
        return torch.cat([checkpoint(self.decode, part, use_reentrant=False) for part in parts])

    def _check(self, value: Any, x0: Tensor) -> None:
        if not isinstance(value, Tensor) or value.shape != (len(x0),) or not value.is_floating_point():
            got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"the objective {self.name!r} returned {got} for {len(x0)} samples; expected a floating-point tensor "
                f"of shape ({len(x0)},): log f of each sample by itself, no sum or mean over the batch"
            )
        if value.device != x0.device:
            raise InputError(
                f"the objective {self.name!r} returned a tensor on {value.device}, and the samples are on {x0.device}; "
                "move what it holds to the device of x0"
            )


def check_recording() -> None:
    """Refuse to take gradients where torch records none.

    Raises:
        InputError: under ``torch.inference_mode()``.
    """
    if torch.is_inference_mode_enabled():
        raise InputError("gradients cannot be taken under torch.inference_mode(); use torch.no_grad() in its place")


def smoothed_gradient(objective: Bound, x0: Tensor, noises: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    r"""``log f`` averaged over noise, and its gradient.

    .. math:: F(x_0) = \log \tfrac1n \sum_j f(x_0 + \delta_j),\qquad
              \nabla F = \sum_j \frac{f(x_0 + \delta_j)}{\sum_i f(x_0 + \delta_i)}\,\nabla\log f(x_0 + \delta_j)

    Args:
        objective: log f.
        x0: clean samples, shape ``(B, ...)``.
        noises: :math:`\delta_j`, each shaped like `x0`.

    Cost: n passes of the objective, one after the other, in the memory of one.
    """
    total, gradient = objective.gradient(x0 + noises[0])
    for noise in noises[1:]:
        value, slope = objective.gradient(x0 + noise)
        both = torch.logaddexp(total, value)
        keep, add = ((one - both).exp().reshape(-1, *[1] * (x0.ndim - 1)) for one in (total, value))
        total, gradient = both, keep * gradient + add * slope
    return total - torch.log(total.new_tensor(float(len(noises)))), gradient


@dataclass(frozen=True, eq=False)
class Smoothed(Objective):
    """An objective averaged over noise: made by `smoothed`."""

    function: Any
    sigma: float
    n: int

    @property
    def space(self) -> str:  # type: ignore[override]  # that of the objective inside
        """What the objective inside is given."""
        return str(getattr(self.function, "space", "pixels"))

    @property
    def differentiable(self) -> bool:  # type: ignore[override]  # likewise
        """Whether the objective inside has a gradient."""
        return bool(getattr(self.function, "differentiable", True))

    def check_size(self, height: int, width: int) -> None:
        """Refuse pictures of a size that the objective inside does not fit.

        Raises:
            InputError: it does not.
        """
        if isinstance(self.function, Objective):
            self.function.check_size(height, width)

    def __call__(self, x0: Tensor) -> Tensor:
        """``log f`` averaged over the draws, shape ``(B,)``."""
        random = keyed(0, "smoothed", *x0.shape[1:])
        values = []
        for _ in range(self.n):
            noise = normal([random], x0.shape[1:], x0.device).to(x0.dtype)
            values.append(self.function(x0 + self.sigma * noise))
        return torch.stack(values).logsumexp(0) - math.log(self.n)


def smoothed(objective: Callable[..., Tensor], sigma: float, n: int = 8) -> Smoothed:
    r"""An objective averaged over noise, :math:`\log \tfrac1n \sum_j f(x_0 + \sigma \delta_j)`.

    Args:
        objective: ``log f(x0) -> (B,)``, of pictures or latents.
        sigma: the standard deviation of the noise, > 0, in what the objective is given.
        n: draws, always the same ones: the result is a function of x0. Memory is that of n evaluations; `TFG` with its
            `smoothing` takes that of one, and draws anew at each step.

    Raises:
        InputError: `sigma` is not positive, `n` is no whole number from 1, or the objective sees noisy samples.

    >>> import torch
    >>> flat = smoothed(lambda x0: 0 * x0.flatten(1).sum(1), sigma=0.5, n=4)
    >>> flat(torch.zeros(2, 3, 4, 4))
    tensor([0., 0.])
    """
    if not callable(objective) or getattr(objective, "space", "pixels") == "noisy":
        raise InputError(f"smoothed takes a function of clean samples, log f(x0) -> (B,); got {shown(objective)}")
    if not is_number(plain(sigma)) or not sigma > 0:
        raise InputError(f"smoothed: sigma must be a number above 0; got {shown(sigma)}")
    return Smoothed(objective, float(sigma), count("n", n))


@dataclass(frozen=True, eq=False)
class Objectives:
    """The objectives of a run.

    Args:
        lookup: the function that the text of an objective means; it raises `InputError` where there is none.
        decode: from clean samples to pictures; None where the samples are what a "pixels" objective sees.
        rows: samples that are decoded at once where a gradient is taken; 0 for all. Others are decoded anew in the
            backward pass, so that the memory is that of so many.
        size: height and width of the pictures; None where they are not known before one is made.
        encode: from pictures to clean samples, beside `decode`; None where it is not known.
    """

    lookup: Callable[[str], Any]
    decode: Decode | None = None
    rows: int = 0
    size: tuple[int, int] | None = None
    encode: Encode | None = None
    _found: dict[str, Bound] = field(default_factory=dict, init=False, repr=False)

    def find(self, text: str) -> Bound:
        """The objective that a rule names.

        Raises:
            InputError: there is none of that name, or it lacks what it takes.
            StackSyntaxError, RuleError: its arguments are wrong.
        """
        if text not in self._found:
            self._found[text] = Bound(text, self.lookup(text), self.decode, self.rows, self.size, self.encode)
        return self._found[text]
