"""What a manifest says of the rows that a bundle was trained and calibrated on."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from semroute_lab.train import bundling  # noqa: E402
from semroute_lab.train.datasets import DOMAINS, TASKS, Example, Part, Rights  # noqa: E402
from semroute_lab.train.fit import States, Targets  # noqa: E402
from semroute_lab.train.spec import SHIPPED, read_spec  # noqa: E402

from semroute_extproc.encoder.manifest import EncoderSpec  # noqa: E402
from semroute_extproc.request.text import SURFACE_NAMES  # noqa: E402

IDS = {"cls_id": 1, "sep_id": 2, "pad_id": 0, "unk_id": 3}
BASE = EncoderSpec(base="b", base_sha256="0", dimensions=3, window=16, **IDS)


class KnownHeads:
    """Heads whose difficulty logit is the state's first value, and whose embedding is the other ones."""

    def parts(self, pooled, surface):
        return pooled

    def recalled(self, out):
        return torch.nn.functional.normalize(out[:, 1:], dim=-1)

    def __call__(self, pooled, surface):
        rows = len(pooled)
        domain, task = torch.zeros(rows, len(DOMAINS)), torch.zeros(rows, len(TASKS))
        return pooled[:, 1:], domain, pooled[:, 0], task, self.recalled(pooled)


def example(kind, difficulty=None, part=Part.CALIBRATE):
    return Example(
        "t", "s", "s:2", Rights("MIT", True), part, difficulty=difficulty, kind=kind, domain=0, task=0
    )


def states(rows, logits, direction=None):
    ahead = torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(rows), 1) if direction is None else direction
    pooled = torch.cat([logits[:, None], ahead], dim=1)
    return States(pooled, torch.zeros(len(rows), len(SURFACE_NAMES)), Targets.of(rows))


def manifest(spec, rows, check):
    fit = [example("chat", part=Part.FIT) for _ in range(8)]
    known = states(fit, torch.zeros(8))
    return bundling.make_manifest(spec, BASE, KnownHeads(), fit, rows, known, check, seed=1)[0]


def soft(logits):
    """The rows' true difficulties: a sigmoid that is half as steep and shifted by -1."""
    return torch.sigmoid(0.5 * logits - 1.0).tolist()


def test_the_difficulty_is_calibrated_on_the_calibration_rows(shipped):
    logits = torch.linspace(-3, 3, 50)
    rows = [example("chat", value) for value in soft(logits)]
    found = manifest(shipped, rows, states(rows, logits)).difficulty
    assert (found.scale, found.shift) == (pytest.approx(0.5, abs=1e-3), pytest.approx(-1.0, abs=1e-3))


def test_the_quantiles_are_those_of_the_traffic_by_kind(shipped):
    # Nine in ten rows are mathematics, and a quarter of the traffic; another kind is no traffic.
    counts = {"math": (90, 4.0), "chat": (10, -4.0), "exam": (50, 9.0)}
    logits = torch.cat([torch.full((count,), logit) for count, logit in counts.values()])
    kinds = [kind for kind, (count, _) in counts.items() for _ in range(count)]
    rows = [example(kind, value) for kind, value in zip(kinds, soft(logits), strict=True)]
    spec = shipped.model_copy(update={"traffic": {"math": 0.25, "chat": 0.75}})
    quantiles = manifest(spec, rows, states(rows, logits)).difficulty.quantiles
    easy, hard = soft(torch.tensor([-4.0, 4.0]))
    assert quantiles[50] == quantiles[70] == pytest.approx(easy, abs=1e-3)
    assert quantiles[80] == quantiles[100] == pytest.approx(hard, abs=1e-3)


def test_without_rows_of_the_traffics_kinds_every_row_counts(shipped):
    logits = torch.linspace(-3, 3, 101)
    rows = [example("planning", value) for value in soft(logits)]
    quantiles = manifest(shipped, rows, states(rows, logits)).difficulty.quantiles
    assert quantiles[50] == pytest.approx(soft(torch.zeros(1))[0], abs=1e-3)


def test_a_users_own_logs_are_the_traffic(shipped):
    logits = torch.tensor([-4.0] * 10 + [4.0] * 90)
    rows = [example("logs" if n < 10 else "chat", value) for n, value in enumerate(soft(logits))]
    quantiles = manifest(shipped, rows, states(rows, logits)).difficulty.quantiles
    assert quantiles[0] == quantiles[100] == pytest.approx(soft(logits)[0], abs=1e-3)


@pytest.mark.parametrize("kind", ["command", "housekeeping"])
def test_commands_and_chores_do_not_set_the_threshold_of_the_unknown(shipped, kind):
    rows = [example("everyday", 0.1) for _ in range(20)] + [example(kind, 0.1) for _ in range(20)]
    away = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).repeat_interleave(20, 0)
    logits = torch.linspace(-1, 1, 40)
    found = manifest(shipped, rows, states(rows, logits, away)).unknown
    assert found.threshold == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("bundle", "graphs"),
    [
        ("semroute-minilm", {"cpu": "model.int8.onnx", "cuda": "model.fp16.onnx"}),
        ("semroute-use", {"cpu": "model.int8.onnx"}),
    ],
)
def test_the_specification_gives_the_languages_and_the_graphs(bundle, graphs):
    spec = read_spec(SHIPPED.with_name(f"{bundle}.toml"))
    logits = torch.linspace(-3, 3, 20)
    rows = [example("chat", value) for value in soft(logits)]
    found = manifest(spec, rows, states(rows, logits))
    assert (found.name, found.version) == (spec.name, spec.version)
    assert found.languages == spec.languages
    assert found.graphs == graphs
