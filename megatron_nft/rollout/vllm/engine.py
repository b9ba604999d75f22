"""One vLLM engine in its caller's process (rollout/api.py, `Engine`): requests in, answers out; and new weights.

`advance` works for a while on requests that stay under way from call to call, and over weight updates: rollout.on_sync
says what an update means for them. Several streams of requests may be under way, such as a run's rollouts and an
evaluation; each call is one stream's, and brings that one's groups.

cluster/fleet.py wraps it in a Ray actor, tests run it in a plain process. That process must carry the variables of
`engine_environment` before it imports vllm, and must run nothing else: vLLM changes torch for the whole process (on a
CPU torch.set_num_threads no longer works) and sets LD_PRELOAD for its children.

Answers are reproducible: each answer's seed comes from (sampling seed, prompt_id, its place in the group), so neither
the number of engines nor the order of the prompts matters, up to the rounding of differently composed batches.
"""

import logging
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from megatron_nft.config import LoraConfig, RolloutConfig
from megatron_nft.data.prompts import load_tokenizer
from megatron_nft.rollout.api import CANARY, DecodeSteps, EngineError, Load, Request
from megatron_nft.rollout.vllm.answer import rollout_of
from megatron_nft.rollout.vllm.arguments import engine_arguments
from megatron_nft.rollout.vllm.experts import experts_of_answers, with_experts
from megatron_nft.rollout.vllm.sampling import sampling_params
from megatron_nft.rollout.vllm.steps import StepCounts
from megatron_nft.types import RolloutGroup


def import_vllm() -> None:
    """Takes seconds, and no memory of a GPU; an engine's process may do it before its engine is asked for."""
    from vllm import LLM  # noqa: F401

    from megatron_nft.rollout.vllm import receive  # noqa: F401


class VllmEngine:
    """One vLLM engine.

    Args:
        model_path: HF folder with config.json, *.safetensors (unless it starts empty) and a tokenizer.
        device: "cpu" or "cuda".
        max_model_len: longest prompt + answer, in tokens.
        seed: of what is left random in vLLM; the answers' seeds come with `Sampling`.
        index: of this engine among all.
        is_colocated: it takes turns on its GPU: `sleep` and `wake` are to free memory.
        starts_empty: reads no weights, and refuses to generate before a weight update.
        gives_experts: of a mixture: answers whose `Sampling` asks for it say which experts their tokens went to.
        lora: weight updates bring these adapters, for the model that is read.

    Raises:
        EngineError: vLLM can't start on this model with these settings.
    """

    def __init__(
        self,
        model_path: str,
        config: RolloutConfig,
        *,
        device: str,
        max_model_len: int,
        seed: int,
        index: int = 0,
        is_colocated: bool = False,
        starts_empty: bool = False,
        gives_experts: bool = False,
        lora: LoraConfig | None = None,
    ):
        from vllm import LLM
        from vllm.platforms import current_platform

        from megatron_nft.rollout.vllm import adapter

        if device == "cpu" and not current_platform.is_cpu():
            raise EngineError(
                "cluster.device = cpu, and the vLLM that is installed is a build for GPUs, with no CPU in it; use the "
                "environment of launch/install.sh"
            )
        logging.getLogger("vllm").setLevel(logging.WARNING)
        self._adapters = lora and lora.adapters
        self._lora = {"lora_request": adapter.REQUEST} if self._adapters else {}
        try:
            arguments = engine_arguments(
                model_path,
                config,
                device=device,
                max_model_len=max_model_len,
                seed=seed,
                is_colocated=is_colocated,
                starts_empty=starts_empty,
                gives_experts=gives_experts,
                lora=lora,
            )
            self._llm = LLM(**arguments)
        except Exception as error:
            suspect = f"; rollout.vllm = {config.vllm}: does it start without?" if config.vllm else ""
            raise EngineError(
                f"vLLM does not start on {model_path} with max_model_len {max_model_len}: {error}{suspect}"
            ) from error
        self._experts = experts_of_answers(self._llm, device, gives_experts)
        self._tokenizer = load_tokenizer(model_path)  # vLLM's own may be of another class: data/tokenizer.py
        self._place = index * config.tp  # of its first worker among the workers of all engines
        self._names: list[str] = []
        self._update_open = False
        self._on_sync = config.on_sync
        self._under_way: dict[str, tuple[str, Request]] = {}  # by vLLM's id: its stream, and what was asked
        self._finished: dict[str, list[tuple[int, RolloutGroup]]] = {}  # by stream, until its next `advance`
        self._unusable = (
            "it started without weights" if starts_empty else ""
        )  # why the weights are not to be sampled from; empty: they are fine
        self._steps = StepCounts(self._llm)
        self.policy_version = 0
        self._llm.llm_engine.set_weight_version("0")  # vLLM's label of every token

    def advance(
        self, stream: str, requests: list[Request], dropped: list[int], seconds: float
    ) -> tuple[list[tuple[int, RolloutGroup]], Load]:
        """See rollout/api.py. Other streams' requests go on beside this one's, as long as it has any under way."""
        start = time.perf_counter()
        self._refuse_if_unusable()
        # An id that is asked again: whoever asked before was cut short, and wants it no more.
        unwanted = {*dropped, *(request.request_id for request in requests)}
        names = [_name(stream, request_id) for request_id in unwanted]
        lengths = self._abort([name for name in names if self._under_way.pop(name, None)])
        finished = [(key, group) for key, group in self._finished.pop(stream, []) if key not in unwanted]
        self._begin(stream, requests)
        while any(of_stream == stream for of_stream, _ in self._under_way.values()):
            self._step()
            self._steps.note(stream)
            if time.perf_counter() - start >= seconds:
                break
        running, waiting, kv_use = self._steps.counts()
        return finished + self._finished.pop(stream, []), Load(
            seconds=time.perf_counter() - start,
            running=running,
            waiting=waiting,
            kv_use=kv_use,
            dropped_tokens=lengths,
        )

    def _abort(self, names: list[str]) -> tuple[int, ...]:
        """Ends requests; how long their unfinished answers were."""
        vllm = self._llm.llm_engine
        answers = [key for name in names for key in vllm.output_processor.external_req_ids.get(name, ())]
        requests = vllm.engine_core.engine_core.scheduler.requests
        lengths = tuple(requests[key].num_output_tokens for key in answers if key in requests)
        vllm.abort_request(names)
        self._experts.drop(names)
        return lengths

    def decode_steps(self) -> dict[str, DecodeSteps]:
        """See rollout/api.py."""
        return self._steps.take()

    def forget(self) -> None:
        """See rollout/api.py."""
        self._abort(list(self._under_way))
        self._under_way, self._finished = {}, {}

    def _begin(self, stream: str, requests: list[Request]) -> None:
        """All of them, or none if vLLM refuses one."""
        begun: list[str] = []
        try:
            for request in requests:
                name = _name(stream, request.request_id)
                self._ask(name, request)
                begun.append(name)
                self._under_way[name] = (stream, request)
        except EngineError:
            self._abort([name for name in begun if self._under_way.pop(name, None)])
            raise

    def _refuse_if_unusable(self) -> None:
        if self._unusable:
            raise EngineError(f"refusing to generate: {self._unusable}; send a complete weight update first")

    def _ask(self, name: str, request: Request) -> None:
        # Salted: requests under way keep blocks of older weights in the prefix cache, which no other may find; and no
        # number of a run may depend on whether the canary was asked.
        salt = f"{CANARY if name.startswith(CANARY) else 'policy'} {self.policy_version}"
        tokens = {"prompt_token_ids": request.prompt.token_ids_P.tolist(), "cache_salt": salt}
        try:
            params = sampling_params(request.sampling, request.seed_id)
            vllm_id = self._llm.llm_engine.add_request(name, tokens, params, **self._lora)
        except Exception as error:  # VLLMValidationError, which is no ValueError
            raise EngineError(f"vLLM refuses prompt {request.prompt.prompt_id}: {error}") from error
        self._experts.begin(name, vllm_id, request.sampling.group_size)

    def _step(self) -> None:
        """One decode step of everything."""
        for output in self._llm.llm_engine.step():
            if output.finished and (known := self._under_way.pop(output.request_id, None)) is not None:
                stream, request = known
                experts = self._experts.take(output.request_id, output.outputs)
                group = self._group(request, output.outputs, experts)
                self._finished.setdefault(stream, []).append((request.request_id, group))

    def start_update(self, names: list[str]) -> None:
        """Begins a weight update that will bring the HF parameters `names`.

        An update still open, say of a sender that died, is dropped. From here on the engine refuses to generate until
        a `finish_update` succeeds. Requests stay under way, paused between two decode steps.

        Raises:
            EngineError: `names` are not the model's (the old weights then stay usable).
        """
        self._pause()
        if self._update_open:
            self._drop_update()
        if names != self._names:
            info = {"names": names, "place": self._place, "adapters": self._adapters and asdict(self._adapters)}
            self._call("names of a weight update", self._llm.init_weight_transfer_engine, {"init_info": info})
            self._names = list(names)
        self._unusable = "a weight update has begun and not finished"
        self._call("start of a weight update", self._llm.start_weight_update)
        self._update_open = True

    def update(self, manifests: list[dict[str, Any]]) -> None:
        """Loads one bucket of each pipeline stage, given as `BucketManifest.to_dict()`.

        Raises:
            EngineError: no update is open, or a bucket is wrong; the update is then over and must start again.
        """
        for manifest in manifests:
            self._receive(f"{manifest.get('bucket', 'a bucket')} of a weight update", manifest)

    def finish_update(self, policy_version: int) -> None:
        """Ends the update: checks that every parameter came, and stamps `policy_version` on every rollout from here on.

        Raises:
            EngineError: no update is open, or a parameter did not come; the update is then over and must start again.
        """
        self._receive("end of a weight update", None)
        self._call("finish of a weight update", self._llm.finish_weight_update, str(policy_version))
        if self._adapters:
            self._call("adapters of a weight update", self._llm.collective_rpc, "install_adapters")
        self._update_open = False
        self.policy_version = policy_version
        if self._on_sync == "restart":
            self._abort(list(self._under_way))
        # Cached blocks hold keys and values of the old weights; running requests may go on with theirs.
        keeps_blocks = self._on_sync == "keep" and self._under_way
        if not keeps_blocks and not self._llm.reset_prefix_cache(reset_running_requests=self._on_sync == "recompute"):
            self._unusable = "vLLM did not give up its prefix cache after a weight update"
            raise EngineError(self._unusable)
        self._unusable = ""
        if self._on_sync == "restart":
            for stream, request in list(self._under_way.values()):
                self._begin(stream, [request])

    def _pause(self) -> None:
        """Takes the tokens of steps under way: on a GPU vLLM is a step ahead, and would stamp them with new weights."""
        core = self._llm.llm_engine.engine_core.engine_core
        if core.batch_queue:
            core.pause_scheduler("keep", clear_cache=False)
            while core.batch_queue:  # nothing new is scheduled but, once, an empty batch after answers that end here
                self._step()
            core.resume_scheduler()

    def sleep(self) -> None:
        """Gives the memory of weights and KV cache back (vLLM's sleep level 2). On a CPU vLLM frees nothing. At
        level 1 a model that no update brings stays in host memory. Requests under way stand still, and have their keys
        and values computed again afterwards."""
        self._pause()
        self._unusable = "the engine sleeps"
        self._call("sleep", self._llm.sleep, 1 if self._adapters else 2, "keep")

    def wake(self, what: str) -> None:
        """Takes the memory of "weights" or of the "kv_cache" again. The weights are of no use until an update."""
        self._call(f"wake {what}", self._llm.wake_up, [what])

    def shutdown(self) -> None:
        """Ends vLLM and frees its memory. The engine is of no use afterwards."""
        self._unusable = "the engine has been shut down"
        self._llm.llm_engine.engine_core.shutdown()

    def _receive(self, what: str, manifest: dict[str, Any] | None) -> None:
        if not self._update_open:
            raise EngineError(f"{what}: no weight update is open; call start_update first")
        try:
            self._call(what, self._llm.update_weights, {"update_info": {"manifest": manifest}})
        except EngineError as error:
            self._update_open = False
            self._unusable = f"the last weight update failed ({error})"
            raise

    def _drop_update(self) -> None:
        """Closes vLLM's update session, whatever it has received. The weights are unusable already."""
        self._update_open = False
        try:
            # Fails, and so ends the session, if parameters are missing.
            self._llm.update_weights({"update_info": {"manifest": None}})
            self._llm.finish_weight_update()
        except Exception as error:
            logging.getLogger(__name__).warning("dropped an unfinished weight update: %s", error)

    def _call(self, what: str, verb: Any, *arguments: Any) -> None:
        try:
            verb(*arguments)
        except Exception as error:
            raise EngineError(f"{what}: {error}") from error

    def _group(self, request: Request, answers: list[Any], experts: list[np.ndarray | None]) -> RolloutGroup:
        texts = self._tokenizer.batch_decode([a.token_ids for a in answers], skip_special_tokens=True)
        rollouts = [rollout_of(request.prompt, answer, text) for answer, text in zip(answers, texts, strict=True)]
        if request.sampling.with_experts:
            rollouts = [with_experts(request.prompt, r, rows) for r, rows in zip(rollouts, experts, strict=True)]
        return RolloutGroup(prompt=request.prompt, rollouts=tuple(rollouts))


def _name(stream: str, request_id: int) -> str:
    return f"{stream} {request_id}"
