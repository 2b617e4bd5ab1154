"""Environment variables that vLLM reads and that may change a byte of the KV cache."""

from __future__ import annotations

import os
import re

# Patterns of names that do not count: vLLM has some three hundred variables, which differ from version to version.
# Variables that vLLM leaves out of the cache key of its compiled code do not count either.
_HARMLESS = (
    r"_PORT$|_HOST$|_HOSTNAME$|_IP$|_IPS$|_PEERS?$|_RANK$|_RANK_LOCAL$|_DP_SIZE$",  # where a process is
    r"_PATH$|_DIR$|_ROOT$|_LIST$|_URL$|_HOME$|_SEGMENT$|^VLLM_PLUGINS$",  # where something lies
    r"TIMEOUT|_INTERVAL$|LOG|DEBUG|TRACE|PROFILING|_NAME_PREFIX$|USAGE|SYNC_CHECK|NANS?_|_NANS$",  # watching
    r"^(NVCC|CMAKE|VERBOSE|CUDA_HOME)|PRECOMPILED|_BUILD_|_IMAGE_TAG$|_TARGET_DEVICE$|_CI_ENV$|CUBIN$|_MAIN_CUDA",
    r"^RAY_|_RAY_|MOONCAKE|NIXL|P2P|_EC_|_KV_EVENTS_|OFFLOAD|_LORA_RESOLVER_|_NIC_|SPINLOOP|MSGPACK|_MQ_|INSECURE",
    r"_ALLOW_LONG_MAX_MODEL_LEN$|_RUNTIME_LORA_|FASTSAFETENSORS_QUEUE|_KV_CACHE_LAYOUT$|OMP_THREADS_BIND$|_RESERVED_CPU$|_RPC_|_DIST_IDENT$|_GC|_ENGINE_READY|_DISABLE_PYNCCL$|RUST|STARTUP",
    r"_MAX_(N_|COMPLETION|STOP|NUM_BAD|BAD_|MEDIA)|XGRAMMAR|OUTLINES|REGEX|TOOL|HARMONY|RESPONSES|COHERE_API|SYSTEM_START",
    r"COMPILE_CACHE|_COMPILE_CACHE_SAVE_FORMAT$|_WARMUP$|ESTIMATE_CUDAGRAPHS$|FLASHINFER_SAMPLER$|FASTOKENS$|RANDOMIZ",
    r"^VLLM_(USE_BREAKABLE_CUDAGRAPH|MLA_DISABLE|DISABLE_SHARED_EXPERTS_STREAM|USE_AOT_COMPILE)$",  # vLLM sets these
)
_SKIPPED = re.compile("|".join(_HARMLESS))


def environment() -> dict[str, object]:
    """The variables that are set and may change KV: name and the value as vLLM parses it."""
    from vllm import envs

    factors = envs.compile_factors()
    return {name: str(factors[name]) for name in sorted(factors) if name in os.environ and not _SKIPPED.search(name)}
