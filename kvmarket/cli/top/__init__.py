"""``kvmarket top``: the engines of a market, their offers, and the facts by which engines of two spaces differ."""

from kvmarket.cli.top.live import top as top
from kvmarket.registry.client.asking import ask_status as ask_status
