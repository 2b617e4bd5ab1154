"""A connector whose loads fail on rank 1 while the file named by KVMARKET_TEST_GATE exists."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from vllm_hook.connector import KVMarketConnector
from vllm_hook.engine import facts
from vllm_hook.metadata import StepMetadata
from vllm_hook.worker.side import WorkerSide


class LameWorker(WorkerSide):
    """Drops the hit of every load on rank 1 while the file exists, so that the load fails."""

    def start(self, step: StepMetadata) -> None:
        if step.loads and facts.rank_of() == 1 and Path(os.environ["KVMARKET_TEST_GATE"]).exists():
            step = dataclasses.replace(step, loads=tuple(dataclasses.replace(load, hit=None) for load in step.loads))
        super().start(step)


class LameConnector(KVMarketConnector):
    """See the module."""

    def make_worker(self) -> WorkerSide:
        return LameWorker(self._vllm_config, self._kv_cache_config, self._refusal)
