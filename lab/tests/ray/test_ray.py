"""A local Ray cluster of two workers gives the figures of one machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from many_files import IN_PARTS, make_home, run

ray = pytest.importorskip("ray", reason="needs the extra ray: make test-ray")
pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two nodes with a core each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    ray.init(made.address, log_to_driver=False)
    yield made.address
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("many"))


@pytest.mark.parametrize("name", ["replay", "drop", "clusters", "factorization", "profile", "eval"])
def test_the_cluster_finds_what_one_machine_finds(
    home: Path, tmp_path: Path, cluster: str, name: str
) -> None:
    assert sum(each["Alive"] for each in ray.nodes()) == 2
    one = run(name, home, tmp_path / "out.npz", *IN_PARTS)
    many = run(name, home, tmp_path / "out.npz", *IN_PARTS, "--engine", "ray", "--work", tmp_path / "work")
    assert one == many
