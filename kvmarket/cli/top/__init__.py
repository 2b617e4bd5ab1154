"""``kvmarket top``: who is in a market, what is on offer, and which fact keeps two engines apart."""

from kvmarket.cli.top.live import top as top
from kvmarket.registry.client.asking import ask_status as ask_status
