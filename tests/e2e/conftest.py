"""Processes that these tests share: they take longer to start than most tests to run."""

import pytest

from tests.e2e.engines import EngineServer


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start all of their own come first: what is shared would take their time. So `shared` is started once,
    and no Ray of a test's own meets it in this process."""
    places = [place for place, item in enumerate(items) if item.path.parent.name == "e2e"]
    ordered = sorted((items[place] for place in places), key=_turn)
    for place, item in zip(places, ordered, strict=True):
        items[place] = item


def _turn(item: pytest.Item) -> int:
    names = item.fixturenames
    return 2 if "shared" in names else 1 if "shared_later" in names else 0


@pytest.fixture(scope="package")
def shared(tmp_path_factory):
    """Ray, two ranks and engines that serve one run after another."""
    from megatron_nft.cluster.placement import ray_cluster
    from tests.e2e.shared import MAX_ENGINES, Shared, base

    with ray_cluster(base(f"rollout.engines={MAX_ENGINES}")) as placement:
        yield Shared(placement, tmp_path_factory.mktemp("logs"))


@pytest.fixture
def shared_later(request):
    """`shared`, when it is called: for a test that first starts a run of its own."""
    return lambda: request.getfixturevalue("shared")


@pytest.fixture(scope="session")
def engine_server(tmp_path_factory):
    """Forks engines of a process that has imported vLLM."""
    server = EngineServer(tmp_path_factory.mktemp("s"))
    yield server
    server.close()
