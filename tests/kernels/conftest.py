"""The device of the kernel tests: a GPU, or the CPU in Triton's interpreter."""

from __future__ import annotations

import pytest

from kvmarket.kernels.tile import interpreted

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(scope="module", params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu" and not interpreted():
        pytest.skip("Triton compiles for GPUs in this process; set TRITON_INTERPRET=1 to run the kernels on the CPU")
    if request.param == "cuda" and interpreted():
        pytest.skip("TRITON_INTERPRET is set; unset it to compile the kernels")
    return str(request.param)
