"""``kvmarket top``: the engines of a market, their offers, and the facts by which engines of two spaces differ."""

from kvmarket.cli.top.asking import ask_status as ask_status
from kvmarket.cli.top.live import top as top
