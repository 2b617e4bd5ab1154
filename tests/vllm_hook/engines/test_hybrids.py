"""Models with recurrent states answer as they do without the flag, whether kvmarket takes part or not.

vLLM 0.26 looks their prefixes up in another way as soon as there is a connector, and takes blocks for computed whose
states are not there: see `compat.keep_joint_lookup`. For the version matrix; the version installed here does not.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bench.engines.process import GPUS, EngineProcess
from tests.vllm_hook.engines.model import VOCAB, save_tiny_hybrid
from tests.vllm_hook.engines.versions import INSTALLED, interpreters

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(GPUS > 0, reason="made for the CPU build's kernels"),
]
LLM = {
    "dtype": "bfloat16",
    "mamba_ssm_cache_dtype": "float32",  # the kernel of the CPU build knows no other
    "enforce_eager": True,
    "max_model_len": 2048,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 2048,  # a step is a prompt: a state is kept where it ends, and nowhere before
    "num_gpu_blocks_override": 96,
}


@pytest.mark.parametrize("version", sorted({*interpreters()} - {INSTALLED}))
def test_a_shared_prefix_without_its_states_is_computed_again(version: str, tmp_path: Path):
    model, chance = save_tiny_hybrid(tmp_path / "model"), random.Random(3)
    prompts = []
    for _ in range(4):
        shared = [chance.randrange(VOCAB) for _ in range(514)]  # two more than blocks of it are whole
        prompts += [[*shared, *(chance.randrange(VOCAB) for _ in range(tail))] for tail in (600, 2)]
    found = {}
    for address in (None, str(tmp_path / "s")):
        options = {"model": model, "address": address, "llm": LLM}
        log = tmp_path / f"{address is None}.log"
        with EngineProcess(log, options, interpreters()[version], {"PYTHONHASHSEED": "0"}) as engine:
            assert engine.wait().vllm == version
            found[address] = [engine.generate([prompt], 16) for prompt in prompts]
            off = [name for name in engine.ask("counters") if name.startswith("vllm_hook_off{the model is hybrid")]
            assert bool(off) == (address is not None), "a market for such models wants a test of its own"
    without, with_flag = found.values()
    assert [answer["tokens"] for answer in with_flag] == [answer["tokens"] for answer in without]
    assert [answer["cached"] for answer in with_flag] == [answer["cached"] for answer in without]
