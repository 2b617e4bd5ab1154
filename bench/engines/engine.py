"""One vLLM engine in a process of its own, driven over stdin and stdout, one JSON object per line.

``python engine.py '{"model": ..., "address": ...}'`` prints ``{"up": true, ...}`` when ready, then answers each command
with one line. It imports nothing of the tests, so any interpreter with vLLM and kvmarket can run it, also on GPUs.
The option ``commands`` names a module whose functions are commands too; the first argument of each is the `Engine`.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import time
from collections import deque
from typing import Any

CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",  # vLLM 0.26 would compile its sampler: a minute of g++ per engine
}


def transfer_config(options: dict[str, Any]) -> dict[str, Any] | None:
    """The ``kv_transfer_config`` for these options (``transfer`` if given); None for an engine without connector."""
    if "transfer" in options:
        return dict(options["transfer"])
    if options.get("address") is None:
        return None
    config = {
        "kv_connector": options.get("connector", "KVMarketConnector"),
        "kv_role": options.get("role", "kv_both"),
        "kv_connector_extra_config": {"address": options["address"], **options.get("extra", {})},
        "kv_load_failure_policy": options.get("policy", "recompute"),
    }
    if options.get("module", "vllm_hook.connector"):
        config["kv_connector_module_path"] = options.get("module", "vllm_hook.connector")
    if "beside" in options:  # a second connector, both under vLLM's MultiConnector
        several = {"connectors": [config, {"kv_role": "kv_both", **options["beside"]}]}
        return {
            "kv_connector": "MultiConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": several,
            "kv_load_failure_policy": config["kv_load_failure_policy"],
        }
    return config


def rank_counters(worker: Any) -> dict[str, int]:
    """The counters of kvmarket in a worker's process; called there by ``collective_rpc``."""
    from kvmarket import counters

    return dict(counters.snapshot())


def make_stage_buffers(worker: Any) -> None:
    """Make the buffers into which a pipeline stage receives: vLLM 0.32 does not on a CPU in eager mode."""
    runner = worker.model_runner
    if runner.intermediate_tensors is None:
        runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
        )


def sampling(tokens: int, **more: Any) -> Any:
    """The ``SamplingParams`` for an answer of so many tokens, greedy unless `more` says otherwise."""
    from vllm import SamplingParams

    return SamplingParams(**{"max_tokens": tokens, "temperature": 0.0, "detokenize": False, "ignore_eos": True, **more})


def streamed(tokens: int) -> Any:
    """`sampling` for an answer whose outputs have only the new tokens of each step."""
    from vllm.sampling_params import RequestOutputKind

    return sampling(tokens, output_kind=RequestOutputKind.DELTA)


def overlap_steps(core: Any) -> None:
    """Make an engine core dispatch a step before the last one is back, as on a GPU; on a CPU vLLM does not."""
    core.batch_queue_size, core.batch_queue = 2, deque(maxlen=2)
    core.step_fn = core.step_with_batch_queue


class Engine:
    """The engine and its commands: each public method is one; its result goes back as JSON."""

    def __init__(self, options: dict[str, Any]) -> None:
        from vllm import LLM
        from vllm.v1.core.sched.scheduler import Scheduler

        preempt = Scheduler._preempt_request

        def counted(*args: Any, **kwargs: Any) -> None:
            self.preempted += 1
            preempt(*args, **kwargs)

        self.preempted = 0
        Scheduler._preempt_request = counted
        if not options.get("module", True):  # found by name alone, through the plugin as vLLM loads it
            from vllm_hook.plugin import register

            register()
            register()
        self.llm = LLM(
            options["model"],
            skip_tokenizer_init=True,
            seed=0,
            enable_prefix_caching=True,
            kv_transfer_config=transfer_config(options),
            **options.get("llm", {}),
        )
        if options.get("llm", {}).get("pipeline_parallel_size", 1) > 1 and not options["gpu"]:
            self.llm.collective_rpc(make_stage_buffers)
        if options.get("overlap"):
            overlap_steps(self.llm.llm_engine.engine_core.engine_core)

    def generate(
        self,
        prompts: list[list[int]],
        tokens: int = 1,
        salt: str | None = None,
        temperature: float = 0.0,
        adapter: str | None = None,
    ) -> dict[str, Any]:
        """Answer prompts together: ``ms`` in all; by prompt the answer's ``tokens`` and ``cached`` prompt tokens."""
        requests: list[Any] = [{"prompt_token_ids": prompt} for prompt in prompts]
        if salt is not None:
            requests = [{**request, "cache_salt": salt} for request in requests]
        start = time.perf_counter()
        lora = None
        if adapter is not None:
            from vllm.lora.request import LoRARequest

            lora = LoRARequest("adapter", 1, adapter)
        settings = sampling(tokens, temperature=temperature, seed=0)
        outputs = self.llm.generate(requests, settings, use_tqdm=False, lora_request=lora)
        return {
            "ms": 1e3 * (time.perf_counter() - start),
            "tokens": [list(output.outputs[0].token_ids) for output in outputs],
            "cached": [output.num_cached_tokens for output in outputs],
        }

    def abort(self, prompt: list[int], tokens: int, steps: int) -> dict[str, Any]:
        """Start a request, abort it after so many steps, and run until the engine is idle."""
        engine = self.llm.llm_engine
        request = f"abort-{time.monotonic_ns()}"
        returned = engine.add_request(request, {"prompt_token_ids": prompt}, sampling(tokens))
        for _ in range(steps):
            engine.step()
        engine.abort_request([returned or request], internal=True)
        while engine.has_unfinished_requests():
            engine.step()
        return {}

    def beside(self, prompt: list[int], others: list[list[int]], tokens: int) -> dict[str, Any]:
        """Ask for a prompt while others are answered: the answer's ``tokens``, and the ``steps`` to the first."""
        engine, found, steps, first = self.llm.llm_engine, [], 0, 0
        settings = streamed(tokens)
        for at, other in enumerate(others):
            engine.add_request(f"other-{at}-{time.monotonic_ns()}", {"prompt_token_ids": other}, settings)
        while sum(bool(output.outputs[0].token_ids) for output in engine.step()) < min(1, len(others)):
            pass
        engine.add_request(f"asked-{time.monotonic_ns()}", {"prompt_token_ids": prompt}, settings)
        while engine.has_unfinished_requests():
            steps += 1
            for output in engine.step():
                if output.request_id.startswith("asked"):
                    found += output.outputs[0].token_ids
            first = first or (steps if found else 0)
        return {"tokens": found, "steps": first}

    def reset(self) -> dict[str, Any]:
        """Empty the engine's own prefix cache by the call of vLLM that does not call the connector."""
        return {"reset": self.llm.reset_prefix_cache()}

    def reload(self, path: str) -> dict[str, Any]:
        """Load other weights in place; the prefix cache is kept."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
        return {}

    def load(self, value: float) -> dict[str, Any]:
        """Load one weight into the model itself, as a trainer's own code does over ``collective_rpc``."""

        def into(worker: Any) -> None:
            import torch

            model = worker.model_runner.model
            model.load_weights([("model.layers.0.input_layernorm.weight", torch.full((128,), value))])

        self.llm.collective_rpc(into)
        return {}

    def nap(self, level: int) -> dict[str, Any]:
        """Send the engine to sleep and wake it up."""
        self.llm.sleep(level)
        self.llm.wake_up()
        return {}

    def preemptions(self) -> dict[str, Any]:
        """How many requests were preempted so far."""
        return {"preempted": self.preempted}

    def metrics(self) -> dict[str, Any]:
        """Each metric of kvmarket, or with source "p2p", summed over its labels. Needs ``disable_log_stats=False``."""
        from prometheus_client import generate_latest

        page = generate_latest().decode().splitlines()
        lines = [line for line in page if line.startswith("kvmarket_") or 'source="p2p"' in line]
        found: dict[str, float] = {}
        for sample, value in (line.rsplit(" ", 1) for line in lines):
            name = sample.split("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
        return found

    def counters(self) -> dict[str, Any]:
        """The counters of kvmarket in this process."""
        from kvmarket import counters

        return dict(counters.snapshot())

    def drafts(self) -> dict[str, Any]:
        """How many draft tokens were proposed and accepted so far; the engine needs ``disable_log_stats=False``."""
        values = {metric.name: getattr(metric, "value", 0) for metric in self.llm.get_metrics()}
        names = {name: f"vllm:spec_decode_num_{name}_tokens" for name in ("draft", "accepted")}
        return {name: values[metric] for name, metric in names.items()}

    def found(self, prompt: list[int]) -> dict[str, Any]:
        """How many leading blocks of a prompt peers offer, as far as this engine knows."""
        from vllm_hook.scheduler.requests import tenant_of

        return {"blocks": self._side()._control.match(prompt, tenant=tenant_of("", None)).blocks}

    def ahead(self) -> dict[str, Any]:
        """Whether the scheduler starts loads before the step that carries them."""
        return {"ahead": self._side()._loads.worker is not None}

    def _side(self) -> Any:
        """The scheduler side of our connector, which must be the first one under MultiConnector."""
        connector = self.llm.llm_engine.engine_core.engine_core.scheduler.connector
        return getattr(connector, "_connectors", [connector])[0]._scheduler

    def ranks(self) -> dict[str, Any]:
        """The counters of kvmarket in each worker, by rank."""
        return {"ranks": self.llm.collective_rpc(rank_counters)}


def main() -> None:
    """Start the engine, then run commands from stdin until it ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # other prints go to stderr
    options = json.loads(sys.argv[1])
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")
    if not options["gpu"]:
        for name, value in CPU.items():
            os.environ.setdefault(name, value)
    sys.path[:0] = options.get("path", [])
    engine = Engine(options)
    more = importlib.import_module(options["commands"]) if "commands" in options else None
    import vllm

    print(json.dumps({"up": True, "vllm": vllm.__version__, "pid": os.getpid()}), file=answers)
    for line in sys.stdin:
        command = json.loads(line)
        name = command.pop("do")
        run = getattr(engine, name, None) or functools.partial(getattr(more, name), engine)
        print(json.dumps(run(**command)), file=answers)


if __name__ == "__main__":
    main()
