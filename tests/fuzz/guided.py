"""``python -m tests.fuzz.guided -atheris_runs=1000000``: fuzzing guided by coverage (`pip install atheris` first).

The targets are those of targets.py, the options those of libFuzzer. An input that breaks a target is printed, and kept
in a file.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kvmarket.registry", "kvmarket.market.peers"]):
    from tests.fuzz.targets import ReplicaTarget, ServiceTarget, check_offering, quiet


def main() -> None:
    """Fuzz; atheris ends the process itself."""
    quiet()
    service, replica = ServiceTarget(), ReplicaTarget()

    def one(data: bytes) -> None:
        kind, rest = data[:1], data[1:]
        match kind:
            case b"r":
                replica.run(rest)
            case b"o":
                check_offering(rest)
            case _:
                service.run(rest, stranger=kind == b"x")

    corpus = Path(tempfile.mkdtemp(prefix="kvm-fuzz-"))
    for kind, seeds in ((b"s", service.seeds()), (b"x", service.seeds()), (b"r", replica.seeds())):
        for number, seed in enumerate(seeds):
            (corpus / f"{kind.decode()}{number}").write_bytes(kind + seed)
    try:
        atheris.Setup([*sys.argv, "-max_len=2048", str(corpus)], one)
        atheris.Fuzz()
    finally:
        shutil.rmtree(corpus)


if __name__ == "__main__":
    main()
