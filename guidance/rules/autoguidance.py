"""Autoguidance: guide a network away from a weaker version of itself (Karras et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from ..contrasting import Contrasting
from ..errors import RuleError, shown
from ..fields import number, set_field
from ..notation.registry import register
from ..prediction import Prediction
from ..query import Query
from ..step import Estimate, State, Step
from .cfg import extrapolated

KARRAS_2024 = """@inproceedings{karras2024guiding,
  title     = {Guiding a Diffusion Model with a Bad Version of Itself},
  author    = {Karras, Tero and Aittala, Miika and Kynk{\\"a}{\\"a}nniemi, Tuomas and Lehtinen, Jaakko and Aila, Timo
               and Laine, Samuli},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  note      = {arXiv:2406.02507}
}"""


@register(
    "autoguidance",
    references=(KARRAS_2024,),
    example="autoguidance(2)",
)
@dataclass(frozen=True)
class Autoguidance(Contrasting):
    r"""Autoguidance: guide away from a weak network's prediction for the same prompt.

    .. math:: \tilde D = D_{weak}(c) + w\,\big(D(c) - D_{weak}(c)\big)

    The weak network is smaller or less trained, and makes the same mistakes to a larger degree. The prompt is in both
    answers, so that the samples keep their variety: behind or before `CFG`, which trades that for the prompt, the two
    differences add up. It is ``CFG(w, against="positive@weak")`` with a name.

    Args:
        scale: w, any number up to 1e6 in size; 1 is no guidance, 0 the weak network. The paper, its code (EDM2) and
            this project count alike.
        network: name of the weak network, as given to `guide` in ``networks={"weak": ...}``, to `sample` among its
            models, or on the command line as ``--network weak=FOLDER``.

    Queries: "positive", and "positive" of the weak network: 2 evaluations a step, in a call of each network; the weak
    one costs as much as it is large. None of its own at ``scale=1``.

    State: none. Space: any, since the weights sum to one.

    References:
        Karras, Aittala, Kynkäänniemi, Lehtinen, Aila & Laine, "Guiding a Diffusion Model with a Bad Version of Itself",
        arXiv:2406.02507, eq. 3.

    >>> from guidestack import CFG, Autoguidance
    >>> print(CFG(4) | Autoguidance(2))
    cfg(4) | autoguidance(2)
    >>> Autoguidance(2).contrast == CFG(2, against="positive@weak").contrast
    True
    """

    scale: float
    network: str = "weak"

    def __post_init__(self) -> None:
        number(self, "scale")
        name = self.network
        if not isinstance(name, str) or not name.isidentifier() or len(name) > 100 or name == "main":
            raise RuleError(f"Autoguidance: network is the name of a network other than 'main', got {shown(name)}")
        set_field(self, "network", str(name))

    @property
    def contrast(self) -> Query:
        """The query that the rule guides away from: the prompt, on the weak network."""
        return Query("positive", model=self.network)

    def guided(
        self, estimate: Estimate, c: Prediction, u: Prediction, step: Step, state: State
    ) -> tuple[Estimate, State]:
        """Guide the estimate away from the weak network's prediction, by the scale."""
        return extrapolated(estimate, c, u, self.scale), state
