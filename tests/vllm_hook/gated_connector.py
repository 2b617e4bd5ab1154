"""The connector with a gate in front of its loads: while the file named by KVMARKET_TEST_GATE exists, loads wait."""

from __future__ import annotations

import os
from pathlib import Path

from vllm_hook.connector import KVMarketConnector
from vllm_hook.metadata import StepMetadata
from vllm_hook.worker import WorkerSide


class GatedWorker(WorkerSide):
    """Says in a file beside the gate that a load waits, and starts it when the gate is gone."""

    held: tuple[StepMetadata, ...] = ()

    def start(self, step: StepMetadata) -> None:
        gate = Path(os.environ["KVMARKET_TEST_GATE"])
        if step.loads and gate.exists():
            self.held += (step,)
            gate.with_suffix(".waiting").touch()
        else:
            super().start(step)

    def poll(self, step: StepMetadata | None = None) -> None:
        if self.held and not Path(os.environ["KVMARKET_TEST_GATE"]).exists():
            held, self.held = self.held, ()
            for step in held:
                super().start(step)
        super().poll(step)


class GatedConnector(KVMarketConnector):
    """See the module."""

    def make_worker(self) -> WorkerSide:
        return GatedWorker(self._vllm_config, self._kv_cache_config, self._refusal)
