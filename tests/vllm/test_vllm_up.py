"""`semroute up` and `semroute go` in front of two real vLLM servers."""

from __future__ import annotations

from pathlib import Path

from gateway import wait_for
from servers import CONTEXTS, Pools
from test_up import Up, run

from semroute_extproc.config import source


def test_up_observes_and_go_routes(pools: Pools, tmp_path: Path) -> None:
    # The names do not say which model is larger.
    up = Up(tmp_path, pools.small.url, pools.large.url, "--strong", "large-model")
    try:
        found = source.load(tmp_path / "semroute.yaml", {}).config.pools
        assert {each.model: each.context for each in found.values()} == {
            f"{name}-model": context for name, context in CONTEXTS.items()
        }
        assert all(each.metrics for each in found.values()), "vLLM's gauges were found"
        for name in ("small-model", "large-model"):
            assert {up.model(name) for _ in range(3)} == {name}
        wait_for(lambda: "3 observed" in up.printed, 60, "the requests to be observed")
        assert run("go", "--share", "1", "--dir", str(tmp_path)).returncode == 0
        wait_for(lambda: up.model("large-model") == "small-model", 60, "an easy request at the small model")
    finally:
        up.stop()
