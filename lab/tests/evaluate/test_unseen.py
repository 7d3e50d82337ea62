"""Routers over unseen models: each against a case whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from semroute_lab.evaluate import unseen
from semroute_lab.fit.clusters import k_means
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict


def two_topics(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings around two opposite directions, and the topic of each."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(0, 2, rows)
    x = 0.15 * rng.standard_normal((rows, 8))
    x[:, 0] += np.where(topic == 0, 1.0, -1.0)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), topic


def errors(topic: np.ndarray, good_at: list[int], seed: int) -> np.ndarray:
    """Each model errs on 10 % of the topic it is good at and on 80 % of the other."""
    rng = np.random.default_rng(seed)
    rates = np.where(topic[:, None] == np.asarray(good_at), 0.1, 0.8)
    return (rng.random(rates.shape) < rates).astype(float)


@pytest.fixture
def trial() -> unseen.Trial:
    train, train_topic = two_topics(400, 1)
    validation, validation_topic = two_topics(120, 2)
    test, _ = two_topics(200, 3)
    centers, near = k_means(train, 2, seed=0)
    return unseen.Trial(
        train=train,
        validation=validation,
        test=test,
        train_errors=errors(train_topic, [0, 1, 0, 1], 4),
        validation_errors=errors(validation_topic, [0, 1], 5),
        forbidden_errors=errors(train_topic, [0, 1], 6),
        centers=centers,
        near=near,
        seed=0,
    )


@pytest.mark.parametrize("router", unseen.ROUTERS.values(), ids=list(unseen.ROUTERS))
def test_every_router_finds_which_new_model_is_good_at_which_topic(
    router: object, trial: unseen.Trial
) -> None:
    found = router(trial)  # type: ignore[operator]
    topic = (trial.test[:, 0] < 0).astype(int)
    assert found.shape == (200, 2)
    assert np.mean(np.argmin(found, axis=1) == topic) > 0.95
    assert found[topic == 0, 0].mean() == pytest.approx(0.1, abs=0.15)
    assert found[topic == 0, 1].mean() == pytest.approx(0.8, abs=0.15)


def test_k_means_recovers_two_topics_and_every_row_is_at_its_nearest_centre() -> None:
    x, topic = two_topics(300, 9)
    centers, near = k_means(x, 2, seed=4)
    assert np.mean(near == topic) in (0.0, 1.0)
    distance = ((x[:, None, :] - centers[None]) ** 2).sum(axis=2)
    assert (np.argmin(distance, axis=1) == near).all()


def test_k_means_of_fewer_distinct_points_than_clusters_does_not_fail() -> None:
    centers, near = k_means(np.ones((12, 3), dtype=np.float32), 4, seed=0)
    assert centers.shape == (4, 3)
    assert len(set(near.tolist())) == 1


def test_laplace_pulls_an_empty_cluster_to_one_half_and_shrinkage_to_the_models_mean() -> None:
    """All validation prompts are in cluster 0; a test prompt in cluster 1 knows nothing of its own."""
    axis = np.eye(2, dtype=np.float32)
    trial = unseen.Trial(
        train=axis,
        validation=np.repeat(axis[:1], 10, axis=0),
        test=axis,
        train_errors=np.zeros((2, 1)),
        validation_errors=np.asarray([[1.0]] * 3 + [[0.0]] * 7),
        forbidden_errors=np.zeros((2, 1)),
        centers=np.eye(2),
        near=np.asarray([0, 1]),
        seed=0,
    )
    assert unseen.ROUTERS["K-means, Laplace"](trial).tolist() == [[pytest.approx(4 / 12)], [0.5]]
    assert unseen.ROUTERS["K-means, shrunk"](trial).tolist() == [[pytest.approx(0.3)], [pytest.approx(0.3)]]


def test_the_linear_model_is_the_ridge_with_the_least_leave_one_out_error() -> None:
    rng = np.random.default_rng(8)
    x = rng.standard_normal((40, 5)).astype(np.float32)
    y = x @ rng.standard_normal((5, 2)) + rng.standard_normal((40, 2))
    test = rng.standard_normal((7, 5)).astype(np.float32)

    def left_out(weight: float) -> float:
        guess = cross_val_predict(Ridge(alpha=weight), x.astype(float), y, cv=LeaveOneOut())
        return float(((guess - y) ** 2).sum())

    best = min(unseen.RIDGES, key=left_out)
    expected = Ridge(alpha=best).fit(x.astype(float), y).predict(test.astype(float))
    assert unseen.ridge(x, y, test) == pytest.approx(expected, abs=1e-5)
