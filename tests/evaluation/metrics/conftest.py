"""References of made-up features."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from guidestack.evaluation import extractors, references

Refer = Callable[[Any], str]


@pytest.fixture
def refer(monkeypatch: pytest.MonkeyPatch) -> Refer:
    """Makes features a reference; returns its text, which no other reference has."""
    known: dict[str, np.ndarray] = {}
    numbers = itertools.count()

    def add(features: Any) -> str:
        text = f"made-up-{next(numbers)}-{id(known)}"
        known[text] = np.asarray(features, np.float32)
        return text

    monkeypatch.setattr(references, "features", lambda text, extractor, device="cpu": known[text])
    monkeypatch.setattr(references, "full_name", lambda text: text)
    monkeypatch.setattr(extractors, "full_name", lambda text: f"{text}@1")
    return add
