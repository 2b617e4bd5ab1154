"""Connectors for the tests' engines: one can hold loads, one sees the weights, one takes the page callbacks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata, SupportsHMA

from vllm_hook.connector import KVMarketConnector
from vllm_hook.metadata import Load, StepMetadata
from vllm_hook.worker.side import WorkerSide
from vllm_hook.worker.weights import RankWeights, checksum_of


def checksum_of_the_rest(model: torch.nn.Module) -> str:
    """A checksum of the weights that vLLM's CPU build shows, embeddings and norms: the tests' weights differ there."""
    shown = [module for name, module in model.named_modules() if name.endswith(("norm", "embed_tokens"))]
    return checksum_of(torch.nn.ModuleList(shown))


class SeenWorker(WorkerSide):
    """A worker side that can name the model's weights on the CPU build too."""

    def make_weights(self) -> RankWeights:
        return RankWeights(checksum_of_the_rest)


class SeenConnector(KVMarketConnector):
    """See the module."""

    def make_worker(self) -> WorkerSide:
        return SeenWorker(self._vllm_config, self._kv_cache_config, self._refusal)


class GatedWorker(SeenWorker):
    """Holds loads while the file named by KVMARKET_TEST_GATE exists; then a file beside it says that a load waits."""

    held: tuple[StepMetadata, ...] = ()

    def start_now(self, load: Load) -> None:
        """Do nothing: loads start in `start`, which has the gate."""

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


class NoMetadata(KVConnectorMetadata):
    """Empty metadata."""


class WatchingConnector(KVConnectorBase_V1, SupportsHMA):
    """Shares nothing, but sets the reuse callback of every page of a request: a page has only one callback."""

    pool: Any = None

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        self.pool = gpu_block_pool

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if hasattr(self.pool, "unpin_blocks"):
            pages = [page for page in blocks.blocks[0] if page.ref_cnt > 0 and not page.is_null]
            self.pool.touch(pages)
            self.pool.unpin_blocks(pages, self.reused)

    def reused(self, block: Any) -> None:
        """Do nothing."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        return 0, False

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        return NoMetadata()

    def request_finished(self, request: Any, block_ids: Any) -> tuple[bool, None]:
        return False, None

    def request_finished_all_groups(self, request: Any, block_ids: Any) -> tuple[bool, None]:
        return False, None

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """No loads."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """No loads."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """No stores."""

    def wait_for_save(self) -> None:
        """No stores."""
