"""The alarm for the gap between engine and actor: when it warns, what it keeps, when it stops."""

from types import SimpleNamespace

import pytest

from megatron_nft.config import RecipeError, load_config
from megatron_nft.observe.batches import load_batch
from megatron_nft.run.gap_alarm import GapAlarm, GapTooLarge
from tests.unit.observe.test_gap import batch_of, sampled, sequence

FINE, BAD = batch_of(sequence(9, [1e-6] * 4)), batch_of(sequence(9, [0.1, -0.1, 0.1, -0.1]))


@pytest.fixture
def alarm(tmp_path):
    """With what it has said and counted."""

    def make(*overrides, is_ahead=False):
        config = load_config("launch/recipes/quickstart.toml", [f"run.dir={tmp_path}", *overrides])
        said, metrics = [], []
        report = SimpleNamespace(add=metrics.append, announce=said.append)
        return GapAlarm(config, report, is_ahead=is_ahead), said, metrics

    return make


def test_a_step_beyond_the_bound_is_said_and_its_batch_kept(alarm, tmp_path):
    mine, said, metrics = alarm()
    for step, batch in enumerate([FINE, BAD], 1):
        mine.look(step, batch)
        mine.stop_if_told()
    (line,) = said
    assert line.startswith("step 2: gap alarm (weights): KL(engine || actor) is about 0.005 nats a token")
    assert "observe.gap_bound is 1e-06" in line and f"The batch is {tmp_path}/quickstart/gap/step_2.npz" in line
    assert load_batch(tmp_path / "quickstart" / "gap" / "step_2.npz")[0][0].num_answer_tokens == 4
    assert [m["rollout/gap_alarms"] for m in metrics] == [0, 1] and "rollout/gap_kl" in metrics[0]


def test_it_stops_after_as_many_in_a_row_as_it_is_told(alarm):
    mine, *_ = alarm("observe.gap_stop_after=2")
    for step, batch in enumerate([BAD, FINE, BAD], 1):
        mine.look(step, batch)
        mine.stop_if_told()
    mine.look(4, BAD)
    with pytest.raises(
        GapTooLarge, match=r"step 4: gap alarm .* step 2 in a row, and observe.gap_stop_after = 2; mend"
    ):
        mine.stop_if_told()


@pytest.mark.parametrize(
    ("overrides", "is_ahead", "alarms"),
    [
        (["rollout.dtype=bfloat16"], False, 1),  # 0.005 is beyond 1e-3
        (["rollout.dtype=bfloat16", 'rollout.vllm={quantization = "fp8"}'], False, 0),  # and not beyond 0.01
        (["actor.precision=bf16", "observe.gap_bound=0.004"], False, 1),
        (["observe.gap_bound=0"], False, 0),
        (["rollout.top_p=0.9"], False, 0),
        (["rollout.tail=keep"], False, 0),
        ([], True, 0),
        (["observe.gap_bound=1e-3"], True, 1),
    ],
)
def test_what_is_watched(alarm, overrides, is_ahead, alarms):
    mine, said, _ = alarm(*overrides, is_ahead=is_ahead)
    mine.look(1, BAD)
    assert len(said) == alarms


def test_a_gap_that_is_not_a_number_is_beyond(alarm):
    mine, said, _ = alarm()
    mine.look(1, batch_of(sequence(9, [float("nan"), 0.0])))
    assert "gap alarm" in said[0]


def test_a_mixtures_bound_is_its_own(alarm):
    assert load_config("launch/recipes/quickstart.toml").gap_bound(is_ahead=False) == 1e-6
    config = load_config("launch/recipes/quickstart.toml", ["actor.precision=bf16"])
    assert [config.gap_bound(is_ahead=False, has_experts=x) for x in (False, True)] == [1e-3, 5e-3]


@pytest.mark.parametrize("setting", ['{quantization = "fp8"}', '{kv_cache_dtype = "fp8_e5m2"}'])
def test_a_quantized_engine_is_not_exact_whatever_else_is(setting):
    config = load_config("launch/recipes/quickstart.toml", [f"rollout.vllm={setting}", "cluster.device=cuda"])
    assert config.gap_bound(is_ahead=False) == 1e-2 and config.canary_gap == 0.1


def test_a_stop_after_alarms_that_never_come_is_refused():
    settings = ["algorithm.old_logprobs=engine", "lora.rank=4", "lora.dropout=0.1", "observe.gap_stop_after=2"]
    with pytest.raises(RecipeError, match=r"lora.dropout = 0.1 no pass of the actor has all inputs"):
        load_config("launch/recipes/quickstart.toml", settings)


def test_a_temperature_is_said_below_the_bound_unless_answers_are_old(alarm):
    colder = batch_of(*sampled(lambda logits, place: logits / 0.99))
    mine, said, metrics = alarm("actor.precision=bf16")
    mine.look(1, colder)
    assert metrics[0]["rollout/gap_kl"] < 1e-3 and "gap alarm (temperature)" in said[0]
    mine, said, _ = alarm("actor.precision=bf16", "observe.gap_bound=1e-3", is_ahead=True)
    mine.look(1, colder)
    assert not said
