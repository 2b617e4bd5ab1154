"""Makes a run crowded: an engine with thousands of branches and tenants, and connections that lose messages."""

from __future__ import annotations

import multiprocessing
import random
import time

import numpy as np
import torch

from kvmarket import PagedCache
from kvmarket.market.control import ControlHalf
from kvmarket.market.offer import Stage
from kvmarket.registry.protocol.packets import PacketSocket
from kvmarket.transport import export
from tests.model_engine import BLOCK, FACTS

HEAD, TURN_SECONDS = 64, 0.01  # blocks of the prompt that all branches share; seconds between replacements


def lose_messages(share: float, seed: int) -> None:
    """Make every connection of this process lose this share of the messages that it sends and receives."""
    chance, send, receive = random.Random(seed), PacketSocket.send, PacketSocket.receive

    def losing_send(sock: PacketSocket, message: bytes) -> bool:
        return True if chance.random() < share else send(sock, message)

    def losing_receive(sock: PacketSocket) -> bytes | None:
        while (message := receive(sock)) is not None and chance.random() < share:
            pass
        return message

    PacketSocket.send, PacketSocket.receive = losing_send, losing_receive  # type: ignore[method-assign]


def crowd(address: str, branches: int, tenants: int) -> None:
    """Run an engine whose offers nobody fetches. It keeps replacing them one by one until its driver has ended."""
    import kvmarket

    slots = HEAD + branches + tenants
    layers = [torch.zeros((slots, 2, BLOCK, 24), dtype=torch.int16) for _ in range(2)]
    cache = PagedCache(layers, block_size=BLOCK)
    stage = Stage(cache.layout, (export(cache.storages()),))
    control = ControlHalf([stage], kvmarket.Fingerprint.of(**FACTS), address=address)
    head, chance = np.arange(HEAD * BLOCK, dtype=np.int32), random.Random(1)
    control.offer(head, range(HEAD), control.generations(range(HEAD)))

    def put_up(slot: int) -> None:
        token = chance.randrange(1 << 30)
        control.retire([slot])
        generations = control.generations([slot])
        if slot < HEAD + branches:
            tokens = np.concatenate([head, np.full(BLOCK, token, np.int32)])
            control.offer(tokens, [slot], generations, first=HEAD)
        else:
            tokens = np.full(BLOCK, token, np.int32)
            control.offer(tokens, [slot], generations, tenant=f"tenant {slot}")

    for slot in range(HEAD, slots):
        put_up(slot)
    driver = multiprocessing.parent_process()
    while driver is not None and driver.is_alive():
        put_up(chance.randrange(HEAD, slots))
        time.sleep(TURN_SECONDS)
