"""What engines receive equals the HF folder that the trainer holds, bit for bit: every layout, family and carrier.

The receivers are those of the engines (weights/carriers.py), without vLLM; tests/e2e/test_resharding.py goes on from
there, into running engines.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import combinations, product

import pytest
import torch
from safetensors.torch import load_file

from megatron_nft.weights.carriers import make_receiver
from megatron_nft.weights.sync import sync_weights
from tests.parallel.covering import at_night, covering, pairs
from tests.parallel.families import FAMILIES, make_folder
from tests.parallel.trainer import LocalEngines, trainer

pytestmark = pytest.mark.parallel

LAYOUTS = {
    "tp1": [],
    "tp2": ["actor.tp=2"],
    "pp2": ["actor.pp=2"],
    "tp2 pp2": ["actor.tp=2", "actor.pp=2"],
    "pp2 vpp2": ["actor.pp=2", "actor.vpp=2"],
    "tp2 dp2": ["actor.tp=2", "actor.dp=2"],
}
CARRIERS = ("shared_memory", "collective")
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
CASES = [
    # Every layout with every family by every carrier; the number formats take turns.
    (family, layout, carrier, tuple(DTYPES)[number // 2 % 2])
    for number, (family, layout, carrier) in enumerate(product(FAMILIES, LAYOUTS, CARRIERS))
]
ON_A_PUSH = covering(CASES, pairs)
SP = "actor.sequence_parallel=true"
OF_EXPERTS = {
    "dp2 ep2": ["actor.dp=2", "actor.ep=2"],
    "tp2 ep2": ["actor.tp=2", SP, "actor.ep=2"],
    "tp2 etp2": ["actor.tp=2", SP],
    "tp2 dp2 ep4": ["actor.tp=2", SP, "actor.dp=2", "actor.ep=4"],
    "tp2 dp2 ep2 etp2": ["actor.tp=2", SP, "actor.dp=2", "actor.ep=2", "actor.etp=2"],
    "pp2 dp2 ep2": ["actor.pp=2", "actor.dp=2", "actor.ep=2"],
    "dp4 ep2": ["actor.dp=4", "actor.ep=2"],
}
MIXTURE_CASES = [
    ("qwen3_moe", "dp2 ep2", "shared_memory", "bf16"),
    ("qwen2_moe", "tp2 dp2 ep2 etp2", "shared_memory", "fp32"),
    ("mixtral", "tp2 dp2 ep4", "collective", "bf16"),
    ("qwen3_moe mixed", "pp2 dp2 ep2", "collective", "fp32"),
    ("qwen3_moe", "tp2 etp2", "collective", "fp32"),
    ("qwen2_moe", "tp2 ep2", "collective", "bf16"),
    ("mixtral", "dp4 ep2", "shared_memory", "fp32"),
    ("qwen3_moe", "pp2 dp2 ep2", "shared_memory", "bf16"),
]
MIXTURES_ON_A_PUSH = MIXTURE_CASES[:4]
ROUNDS = 5


class Checker(LocalEngines):
    """Engines of two workers, as weights/sync.py sees them, that compare what comes with an HF folder."""

    def __init__(self, carrier):
        self.receivers = [make_receiver(carrier, place, torch.device("cpu")) for place in range(2)]

    def expect(self, folder):
        self.expected, self.arrived = load_file(folder / "model.safetensors"), [set(), set()]

    def start_update(self, names):
        assert sorted(names) == sorted(self.expected)

    def update(self, manifests):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda place: self.receive(place, manifests), range(2)))

    def receive(self, place, manifests):
        for manifest in manifests:
            for name, tensor in self.receivers[place].receive(manifest).items():
                assert tensor.dtype == self.expected[name].dtype and torch.equal(tensor, self.expected[name]), name
                assert name not in self.arrived[place]
                self.arrived[place].add(name)

    def finish_update(self, policy_version):
        assert self.arrived == [set(self.expected)] * 2


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """folder_of(family, dtype, seed): its HF folder, made once."""
    return cache(lambda *model: make_folder(*model, tmp_path_factory.mktemp("model")))


def test_a_push_has_every_family_by_every_carrier_and_layout_and_every_layout_by_every_carrier():
    found = set().union(*map(pairs, ON_A_PUSH))
    columns = (FAMILIES, LAYOUTS, CARRIERS)
    for (one, values), (other, others) in combinations(enumerate(columns), 2):
        assert {((one, value), (other, its)) for value, its in product(values, others)} <= found


@pytest.mark.parametrize(
    "case",
    [
        *at_night(CASES, ON_A_PUSH, "the other carrier for the same family and layout"),
        *at_night(MIXTURE_CASES, MIXTURES_ON_A_PUSH, "further layouts of experts by either carrier"),
    ],
    ids=", ".join,
)
def test_engines_receive_the_folder_bit_for_bit(case, folder_of, tmp_path):
    family, layout, carrier, precision = case
    dtype = DTYPES[precision]
    folders = [folder_of(family, dtype, seed) for seed in range(ROUNDS)]
    recipe = [
        f"model.path={folders[0]}", "actor.tp=1", *(LAYOUTS | OF_EXPERTS)[layout], f"actor.precision={precision}",
        f"rollout.dtype={dtype}", f"weights.carrier={carrier}", "rollout.engines=2", "weights.bucket_mib=1",
        f"weights.checksums={str(carrier == 'shared_memory').lower()}",
    ]  # fmt: skip
    engines = Checker(carrier)
    with trainer(tmp_path, recipe) as actor:
        for version, folder in enumerate(folders):
            actor.call("read", str(folder))
            engines.expect(folder)
            metrics = sync_weights(actor, engines, version)
            assert metrics["weights/buckets"] > 2
    for receiver in engines.receivers:
        receiver.close()


def test_an_engine_gets_its_own_number_format_whatever_the_actors(tmp_path):
    """bf16 weights held in fp32 are the same in bf16 again; an engine would keep any other format."""
    folder = make_folder("qwen2 tied", "bfloat16", 0, tmp_path / "0")
    recipe = [f"model.path={folder}", "actor.tp=1", "actor.precision=fp32", "rollout.dtype=bfloat16"]
    engines = Checker("shared_memory")
    with trainer(tmp_path, recipe) as actor:
        engines.expect(folder)
        sync_weights(actor, engines, 1)


def test_a_weight_that_differs_in_one_bit_is_noticed(tmp_path):
    """The negative control of the test above."""
    folder = make_folder("qwen2 tied", "float32", 0, tmp_path / "0")
    engines = Checker("shared_memory")
    with trainer(tmp_path, [f"model.path={folder}", "actor.tp=2", "rollout.dtype=float32"]) as actor:
        engines.expect(folder)
        norm = engines.expected["model.norm.weight"]
        engines.expected["model.norm.weight"] = torch.nextafter(norm, torch.full_like(norm, torch.inf))
        engines.update = lambda manifests: engines.receive(0, manifests)
        with pytest.raises(AssertionError, match=r"model\.norm\.weight"):
            sync_weights(actor, engines, 1)
