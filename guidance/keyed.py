"""Randomness inside a run: a generator for each sample, step and purpose, from the sample's seed alone.

What a sample draws depends on nothing else: not on its neighbours in the batch, not on the device, not on which rules
drew before, and a run that is resumed in the middle draws what it would have drawn.

Anybody can draw the same numbers. The generator of a sample is::

    text = repr((seed, step, evaluation, purpose))         # such as "(7, 0, 0, 'independent:tokens')"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)

where step counts the sampler's steps from 0, evaluation those within a step. In the turns that rules take before an
evaluation the text is ``repr((seed, step, evaluation, turn, purpose))``, the turns of all rules counted from 1. From it
comes one draw, on the CPU and in float32, whatever the model's device and type:

==================================  =================================================================================
purpose                             draw
==================================  =================================================================================
``"independent:tokens"``            ``torch.randint(vocabulary, (length,))``, the token ids of a random text
``"independent:gaussian"``          ``torch.randn(length, size)``, the shape of the prompt's embedding
``"independent:class"``             ``torch.randint(classes, ())``
``"tome"``                          ``torch.rand(places)``, at each place of a sample a number for the evaluation
                                    that follows this one; step -1 is for the first
``"time positive"``                 ``torch.randn(size)``, the size of the embedding to which it is added; the
                                    perturbation's kind and the condition
==================================  =================================================================================

A sample's seed is `own_seed` of the generator that a pipeline is given for it.

A random condition that was given to `sample` has the name that it has there as its purpose, and draws what it draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def keyed(seed: int, *key: object) -> torch.Generator:
    """A generator on the CPU whose numbers are a function of `seed` and `key`, plain numbers and strings."""
    # A seed may come as a number of numpy's, which reads as another text.
    digest = hashlib.blake2b(repr((int(seed), *key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def own_seed(generator: torch.Generator) -> int:
    """The seed of a generator that has not drawn yet, else a number made of its state; the generator stays as it is.

    A generator that is handed to one call after the other gives each of them another.
    """
    state = generator.get_state()
    unused = torch.Generator(generator.device).manual_seed(generator.initial_seed()).get_state()
    return generator.initial_seed() if torch.equal(state, unused) else of_state(state)


def of_state(state: Tensor) -> int:
    """A number made of the state of a random number generator."""
    digest = hashlib.blake2b(bytes(state.tolist()), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def global_seed(device: torch.device) -> int:
    """A number made of the state of PyTorch's own generator for `device`, which stays as it is."""
    module = torch.get_device_module(device)
    return of_state(module.get_rng_state() if hasattr(module, "get_rng_state") else torch.get_rng_state())


def normal(generators: Sequence[torch.Generator], shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal numbers in float32, shape ``(len(generators), *shape)``: row i from generator i alone.

    Drawn on the CPU; no step waits for the device to which they are sent.
    """
    drawn = torch.stack([torch.randn(tuple(shape), generator=one, dtype=torch.float32) for one in generators])
    return drawn.to(device, non_blocking=True)


@dataclass(frozen=True)
class Keys:
    """The seeds and counters from which the random numbers of one evaluation are made.

    Args:
        seeds: one for each sample.
        index: step of the sampler.
        evaluation: evaluation within the step.
        turn: 0 for the sampler's own evaluation, else which of the turns before it.
    """

    seeds: tuple[int, ...]
    index: int = 0
    evaluation: int = 0
    turn: int = 0

    def generators(self, samples: Sequence[int], purpose: str) -> list[torch.Generator]:
        """Return a generator for each of `samples`, on the CPU, whose numbers depend on its key alone."""
        where = (self.index, self.evaluation, *(self.turn,) * bool(self.turn))
        return [keyed(self.seeds[sample], *where, purpose) for sample in samples]
