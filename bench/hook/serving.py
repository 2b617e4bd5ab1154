"""What serving engines gain from the hook: with a shared system prompt, and with repeated questions about documents.

    python -m bench.hook.serving --write h200x2      two GPUs; seven minutes
    python -m bench.hook.serving --cpu               a tiny model: shows that it runs, its times mean nothing

chat: a system prompt of `--system` tokens, and `--turns` turns in all, four per user. They come at random moments, at
each of the `--rates` (requests a second of all engines together), and go to the engines in turn. The prompt of a turn
is the system prompt, the user's earlier turns with given (random) answers, and `--say` new tokens; its answer has
`--answer` tokens.
retrieval: `--documents` documents of `--document` tokens, four questions about each, short answers. Each request goes
to a random engine; the four questions about a document are some documents apart. Each of `--windows` is a number of
requests that run at a time on each engine; the result is how soon all are done.

Modes: "hook on"; "hook off", no connector; "host offload", vLLM's OffloadingConnector (chat only). The modes of one
tuple in TOGETHER run side by side: their engines are up at the same time, share each GPU's memory, and take turns run
by run. Every run begins with empty caches, and every mode gets the same requests at the same moments.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

from bench import report
from bench.engines import load
from bench.engines.process import EngineProcess
from bench.engines.shapes import Engines, await_up

MODES: dict[str, dict[str, Any]] = {
    "hook on": {"hook": True},
    "hook off": {},
    "host offload": {"llm": {"kv_offloading_size": 24}},
}
TOGETHER = (("hook on", "hook off"), ("host offload",))
TURNS, ASKS = 4, 4  # turns of each user, questions about each document
APART = 2.5  # documents between two questions about the same one
Plans = list[load.Requests]


def chat(options: argparse.Namespace, engines: int, rate: float) -> Plans:
    """Each engine's requests for chat: one round of turns after the other, each in a new random order of users."""
    chance, system = random.Random(1), [load.fresh(), options.system]
    users: list[list[list[int]]] = [[system] for _ in range(max(1, options.turns // TURNS))]
    plans: Plans = [[] for _ in range(engines)]
    now, count = 0.0, 0
    for _ in range(TURNS):
        for said in chance.sample(users, len(users)):
            said.append([load.fresh(), options.say])
            plans[count % engines].append({"at": now, "parts": list(said), "tokens": options.answer})
            said.append([load.fresh(), options.answer])
            now, count = now + chance.expovariate(rate), count + 1
    return plans


def retrieval(options: argparse.Namespace, engines: int) -> Plans:
    """Each engine's requests for retrieval, in order; questions about a document are some documents apart."""
    chance = random.Random(1)
    documents = [[load.fresh(), options.document] for _ in range(options.documents)]
    order = [(at + ask * APART + chance.random(), at) for at in range(len(documents)) for ask in range(ASKS)]
    plans: Plans = [[] for _ in range(engines)]
    for _, at in sorted(order):
        question = [load.fresh(), options.question]
        request = {"at": 0.0, "parts": [documents[at], question], "tokens": options.short_answer}
        chance.choice(plans).append(request)
    return plans


def summary(name: str, plans: Plans, done: Plans, **more: Any) -> dict[str, Any]:
    """The row of one run: milliseconds to the first token, rates, the computed share of prompt tokens, and TPOT."""
    asked = [request for plan in plans for request in plan]
    answered = [one for each in done for one in each]
    prompts, seconds = sum(count for one in asked for _, count in one["parts"]), load.span(answered)
    found = load.row(name, load.first_tokens(answered), "ms", **more)
    cached = sum(one["cached"] for one in answered)
    return found | {
        "requests": len(answered),
        "requests_per_s": round(len(answered) / seconds, 3),
        "tokens_per_s": round((prompts + sum(one["count"] for one in answered)) / seconds, 1),
        "computed_share": round(1 - cached / prompts, 4),
        "tpot_p50": report.percentiles(load.per_token(answered))["p50"],
    }


def start(
    options: argparse.Namespace, engines: Engines, modes: list[str], stack: ExitStack
) -> dict[str, list[EngineProcess]]:
    """Start an engine of each of these modes on every GPU, or two of each on the CPU."""
    longest = max(options.system + TURNS * (options.say + options.answer), options.document + options.question)
    more: dict[str, Any] = {"share": 0.95 / len(modes), "longest": longest + options.answer + 64, "seqs": 128}
    made: dict[str, list[EngineProcess]] = {}
    for mode in modes:
        own = {name: value for name, value in MODES[mode].items() if name != "hook"}
        if "hook" in MODES[mode]:
            own["address"] = engines.address
        if not engines.gpus:
            own["llm"] = {"num_gpu_blocks_override": 4 * longest // engines.block_size}
        made[mode] = [engines.start(f"{mode}-{at}", at, **own, **more) for at in range(len(engines.gpus) or 2)]
    await_up(stack, chain.from_iterable(made.values()))
    return made


def run(group: list[EngineProcess], plans: Plans, window: int = 0) -> Plans:
    """Empty the engines' caches and replay `plans` on them."""
    for engine in group:
        engine.ask("reset")
    return load.replay(group, plans, window)


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="MACHINE", help="also write bench/results/MACHINE-serving.json")
    parser.add_argument("--gpus", type=int, nargs="+", default=[0, 1], help="an engine of each mode on each")
    parser.add_argument("--cpu", action="store_true", help="a tiny model on the CPU, without host offload")
    parser.add_argument("--modes", nargs="+", choices=MODES, help="all; CPU: without host offload")
    parser.add_argument("--rates", type=float, nargs="*", help="of chat (16 32 64; CPU: 8)")
    parser.add_argument("--system", type=int, help="8,192")
    parser.add_argument("--turns", type=int, help="500")
    parser.add_argument("--say", type=int, help="256")
    parser.add_argument("--answer", type=int, help="64")
    parser.add_argument("--documents", type=int, help="32; none: no retrieval")
    parser.add_argument("--document", type=int, help="16,384")
    parser.add_argument("--windows", type=int, nargs="+", help="2 and 8; CPU: 2")
    parser.add_argument("--question", type=int, default=32)
    parser.add_argument("--short-answer", type=int, default=16)
    options = parser.parse_args()
    usual: dict[str, Any] = {"modes": list(MODES), "rates": [16, 32, 64], "system": 8192, "turns": 500}
    usual |= {"say": 256, "answer": 64, "documents": 32, "document": 16_384, "windows": [2, 8]}
    tiny: dict[str, Any] = {"modes": list(TOGETHER[0]), "rates": [8], "system": 512, "turns": 16}
    tiny |= {"say": 40, "answer": 8, "documents": 3, "document": 768, "windows": [2]}
    for name, value in (tiny if options.cpu else usual).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    rows: list[dict[str, Any]] = []
    settings = {name: value for name, value in vars(options).items() if name != "write"}

    def note(row: dict[str, Any]) -> None:
        rows.append(load.show(row))
        if options.write:
            packages = ("torch", "triton", "vllm", "kvmarket")
            report.write(options.write, "serving", rows, packages, settings=settings, **report.facts(engines.gpus))

    with tempfile.TemporaryDirectory(prefix="serving-", dir="/tmp") as folder:
        engines = Engines(Path(folder), [] if options.cpu else options.gpus)
        count = len(engines.gpus) or 2
        chats = {rate: chat(options, count, rate) for rate in options.rates}
        asked = retrieval(options, count)
        lineups = [[mode for mode in lineup if mode in options.modes] for lineup in TOGETHER]
        for modes in filter(None, lineups):
            with ExitStack() as stack:
                groups = start(options, engines, modes, stack)
                for group in groups.values():
                    warm = {"at": 0.0, "parts": [[load.fresh(), options.system]], "tokens": 8}
                    for requests in ([warm], [warm] * 8):  # compile kernels and capture graphs before the timed runs
                        run(group, [requests] * count)
                for rate, plans in chats.items():
                    for mode in modes:
                        done = run(groups[mode], plans)
                        note(summary(f"chat, {rate:g}/s, {mode}", plans, done, load="chat", mode=mode, rate=rate))
                for window in options.windows if options.documents else ():
                    for mode in [mode for mode in modes if mode in ("hook on", "hook off")]:
                        done = run(groups[mode], asked, window)
                        more: dict[str, Any] = {"load": "retrieval", "window": window, "engines": count}
                        note(summary(f"retrieval, {window} at a time, {mode}", asked, done, mode=mode, **more))
                for engine in groups.get("hook on", ()):
                    print("counters of an engine with the hook:", engine.ask("counters"))


if __name__ == "__main__":
    main()
