"""Processes that we start import what we can, and not what lies where the user stands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from kvmarket import child
from kvmarket.cli.top import ask_status
from kvmarket.registry.protocol.address import Address
from tests.model_engine import until

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("msgspec", "numpy", "torch", "xxhash", "rich", "typer", "pynvml")
START = "import sys; from kvmarket.registry.client.launch import *; start_service(Address(sys.argv[1]))"
SAY = "import sys, kvmarket, msgspec; print(kvmarket.__file__, sys.argv[1:])"
ASK = "import subprocess; from kvmarket import child; raise SystemExit(subprocess.run(child.command('kvmarket.say', 'a'), env=child.environment()).returncode)"  # noqa: E501


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current directory with a file in place of every module."""
    for name in (*sys.stdlib_module_names, *PACKAGES):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('imported {name} from the current directory')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python(*arguments: str, path: Path | None = ROOT) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {} if path is None else {"PYTHONPATH": str(path)}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=False)


def test_a_service_starts_wherever_its_engine_stands(here, own_address, tmp_path_factory):
    script = tmp_path_factory.mktemp("elsewhere") / "engine.py"
    script.write_text(START)
    run = python(str(script), own_address)
    assert run.returncode == 0, run.stderr + Path(own_address + ".log").read_text()
    os.kill(ask_status(Address(own_address)).service.pid, signal.SIGTERM)
    until(lambda: not Address(own_address).service_lives())


@pytest.mark.parametrize("module", ["kvmarket", "kvmarket.cli"])
def test_the_command_line_runs_wherever_one_stands(tmp_path, monkeypatch, module):
    """Even as ``python -m``, for whose own imports nobody can do anything."""
    for name in (*PACKAGES, "uuid", "logging", "select", "socket", "signal", "secrets"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('imported {name} from the current directory')")
    monkeypatch.chdir(tmp_path)
    run = python("-m", module, "top", "--once", "--address", str(tmp_path / "nobody"))
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("AddressError: no service at ") and run.stderr.count("\n") == 1


@pytest.mark.parametrize("packed", [False, True])
def test_a_package_that_lies_in_the_current_directory_or_an_archive(tmp_path, monkeypatch, packed):
    files = {f"kvmarket/{name}.py": (ROOT / "kvmarket" / f"{name}.py").read_text() for name in ("errors", "child")}
    files |= {"kvmarket/__init__.py": "", "kvmarket/say.py": SAY}
    place = tmp_path / "archive" if packed else tmp_path
    if packed:
        with zipfile.ZipFile(place, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
    else:
        (place / "kvmarket").mkdir()
        for name, text in files.items():
            (place / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    run = python("-c", ASK, path=place if packed else None)
    assert run.stdout == f"{place}/kvmarket/__init__.py ['a']\n", run.stderr


def test_the_search_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "/lib", "sub", "."])
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert child.search_path() == ["/lib", str(tmp_path / "sub")]
    assert child.environment()["PYTHONPATH"] == f"/lib:{tmp_path}/sub"
    for named in (str(tmp_path), f"/lib:{tmp_path}/"):
        monkeypatch.setenv("PYTHONPATH", named)
        assert child.search_path() == [str(tmp_path), "/lib", str(tmp_path / "sub"), str(tmp_path)]


@pytest.mark.parametrize("file", ["msgspec/__init__.py", "msgspec.py"])
def test_what_we_stand_on_lies_in_the_current_directory(tmp_path, monkeypatch, file):
    """As after ``pip install --target .``: then it is meant, but comes last."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/lib"])
    monkeypatch.delenv("PYTHONPATH", raising=False)
    module = ModuleType("msgspec")
    module.__file__ = str(tmp_path / file)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "msgspec", module)
        assert child.search_path() == ["/lib", str(tmp_path)]
    assert sys.modules["msgspec"] is msgspec and child.search_path() == ["/lib"]


def test_the_root_is_a_directory_like_any_other(monkeypatch):
    """Where services of systemd stand."""
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "path", ["/", "/lib"])
    monkeypatch.setattr(child, "_DEPENDENCIES", ("not loaded", "sys"))
    assert child.search_path() == ["/lib"]


def test_a_current_directory_that_was_removed(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(sys, "path", ["", "lib", "/lib"])
    assert child.search_path() == ["/lib"]
