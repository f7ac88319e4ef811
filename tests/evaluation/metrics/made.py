"""Features whose true metrics are known."""

from __future__ import annotations

import numpy as np

from guidestack.evaluation.metrics import Samples


def samples(features: object, prompts: object = None) -> Samples:
    rows = np.asarray(features, np.float32)
    return Samples(rows, np.arange(len(rows)) if prompts is None else np.asarray(prompts, np.int64))


def whole(metric: object, made: Samples) -> float:
    """The metric of all samples."""
    return float(metric.prepare(made)(np.arange(len(made))))  # type: ignore[attr-defined]


def with_moments(mean: object, covariance: object, count: int, seed: int = 0) -> np.ndarray:
    """`count` vectors whose mean and unbiased covariance are these exactly."""
    mean, covariance = np.asarray(mean, float), np.asarray(covariance, float)
    rows = np.random.default_rng(seed).normal(size=(count, len(mean)))
    rows -= rows.mean(0)
    white = np.linalg.inv(np.linalg.cholesky(rows.T @ rows / (count - 1)))
    values, vectors = np.linalg.eigh(covariance)
    return rows @ white.T @ ((vectors * np.sqrt(values.clip(0))) @ vectors.T) + mean
