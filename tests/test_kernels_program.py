"""The whole integer program on Triton kernels: the same symbols, latents and pixels as the reference."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dca_fast.config import RINGS, SKIP_ROW, TRELLIS_PRICE
from dca_fast.encoder import restoration_fit
from dca_fast.encoder.effort import Step, first_pass, second_pass, step_multipliers
from dca_fast.encoder.full_gradient import Exponents, Gradient
from dca_fast.encoder.linear_gradient import Adjoint
from dca_fast.engines import ahead
from dca_fast.entropy.coder import Coder
from dca_fast.entropy.tables import build_gaussian_tables
from dca_fast.network import models, walk, weights
from dca_fast.network.program import Program, ProgramSet
from dca_fast.ops import Ops, reference
from dca_fast.testing import photograph
from tests.kernel_tools import DEVICE, INFINITE_PRODUCTS, int16, kernels

ops = kernels("ops")
pytestmark = INFINITE_PRODUCTS


@pytest.fixture(scope="module")
def quantise() -> walk.Quantiser:
    """The search on the CPU, for tensors of any device."""
    tables = build_gaussian_tables()
    found = walk.quantiser(reference.arrays(), Coder(tables), tables.charges(1 / TRELLIS_PRICE), 1)
    return lambda residuals, rows: found(residuals.cpu(), rows.cpu()).to(rows.device)


class Kept(walk.EncoderSource):
    """Quantises, and keeps values and rows of each part on the CPU."""

    def _keep(self, symbols: Tensor, rows: Tensor) -> Tensor:
        self.parts.append((symbols.cpu(), rows.cpu()))
        return symbols


class Checked(Kept):
    """The same, and compares them with what another encoder kept: then a decoder's walk is this one too."""

    def __init__(
        self,
        program: Program,
        y: Tensor,
        z: dict[str, Tensor],
        quantise: walk.Quantiser,
        expected: list[tuple[Tensor, Tensor]],
    ) -> None:
        super().__init__(program, y, z, quantise)
        self._expected = expected

    def _keep(self, symbols: Tensor, rows: Tensor) -> Tensor:
        part = len(self.parts)
        super()._keep(symbols, rows)
        assert torch.equal(self.parts[part][1], self._expected[part][1]), f"rows of part {part}"
        assert torch.equal(self.parts[part][0], self._expected[part][0]), f"symbols of part {part}"
        return symbols


@pytest.mark.slow
def test_the_program_on_kernels_is_the_reference_program(quantise: walk.Quantiser) -> None:
    grid = walk.Grid((4, 8), (4, 7))
    model = weights.load(models.named("dca-s"))
    program = ProgramSet(model, ops.OPS, DEVICE).at(6000, 3)
    oracle = ProgramSet(model, reference.OPS).at(6000, 3)
    image = torch.from_numpy(photograph(64, 128, seed=7))[None]
    y, mine = oracle.analyse(image), program.analyse(image.to(DEVICE))
    assert torch.equal(mine.cpu(), y)
    source = Kept(oracle, y, oracle.hyper_analyse(y), quantise)
    y_hat = walk.code(oracle, source, grid)
    assert sum(int((rows != SKIP_ROW).sum()) for _, rows in source.parts) > 500
    checked = Checked(program, mine, program.hyper_analyse(mine), quantise, source.parts)
    mine = walk.code(program, checked, grid)
    assert len(checked.parts) == len(source.parts)
    assert torch.equal(mine.cpu(), y_hat)
    assert torch.equal(program.synthesise(mine).cpu(), oracle.synthesise(y_hat))


@pytest.mark.slow
def test_a_step_of_effort_on_kernels_is_that_of_the_reference(quantise: walk.Quantiser) -> None:
    """Values of level 1, of a picture that its last site is not full of."""
    model, image = weights.load(models.named("dca-s")), torch.from_numpy(photograph(64, 64, seed=8))[None]
    parts, pictures = [], []
    for operations, device in ((reference.OPS, torch.device("cpu")), (ops.OPS, DEVICE)):
        program = ProgramSet(model, operations, device).at(6000)
        multipliers = torch.from_numpy(step_multipliers(program.gain.cpu().numpy(), 60)).to(device)
        step = Step(Adjoint(model, operations, device), lambda groups: quantise, multipliers)
        there, size = image.to(device), (60, 41)
        first = first_pass(program, step, there, size, Kept)
        w = restoration_fit.as_array(program.arrays, tuple(range(-18, 18)), len(RINGS))
        (source,), picture = second_pass(program, step, first, w, there, size)
        parts.append(source.parts)
        pictures.append(picture.cpu())
    assert torch.equal(*pictures)
    assert all(a.equal(b) for mine, theirs in zip(*parts, strict=True) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.slow
def test_the_gradient_on_kernels_is_that_of_the_reference() -> None:
    model, slopes = weights.load(models.named("dca-s")), []
    exponents: list[Exponents] = []
    y_hat, error = int16(1, 4, 4, 384, limit=400), int16(1, 8, 8, 192, limit=30)
    for operations, device in ((reference.OPS, torch.device("cpu")), (ops.OPS, DEVICE)):
        at_16, at_8, _ = ProgramSet(model, operations, device).at(6000).synthesis_halves(y_hat.to(device))
        exponents.append({})
        gradient = Gradient(Adjoint(model, operations, device), operations)
        slopes.append(gradient.slope(at_16, at_8, error.to(device), exponents[-1]).cpu())
    assert torch.equal(*slopes)
    assert slopes[0].count_nonzero() > 5000
    assert exponents[0] == exponents[1]


@pytest.mark.slow
def test_kernels_are_compiled_ahead(tmp_path: Path) -> None:
    """Into Triton's cache, several at a time; what is there is not compiled again."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "dca_fast.engines.ahead", "sm_90", "--size", "64x64", "--jobs", "2"]

    def compiled() -> tuple[int, dict[str, int]]:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        count = re.fullmatch(r"(\d+) kernels for sm_90\n", done.stdout)
        assert count is not None, done.stdout
        return int(count[1]), {str(path): path.stat().st_mtime_ns for path in tmp_path.glob("*/*.cubin")}

    count, files = compiled()
    assert len(files) == count > 40
    assert compiled() == (count, files)
    names = {Path(path).stem for path in files}
    for name in ("_depth_kernel", "_head_kernel", "_restore_sums_kernel", "_pad_kernel", "_reconstruct_kernel"):
        assert name in names


@pytest.mark.parametrize("arguments", [["90"], ["sm_90", "--size", "64"]])
def test_what_to_compile_is_told_apart(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ahead.main(arguments)
    assert "an architecture is sm_ and a number" in capsys.readouterr().err


def test_operations_have_the_names_and_signatures_of_the_reference() -> None:
    assert ops.OPS.name == "triton"
    for field in dataclasses.fields(Ops):
        if field.name != "name":
            mine, definition = getattr(ops.OPS, field.name), getattr(reference, field.name)
            assert inspect.signature(mine) == inspect.signature(definition), field.name
