"""The layers of previews, fitted to photographs by least squares: y_hat to the means of squares of decoded pixels.

    python -m dca_fast.train.fit_previews dca_fast/data/dca-s.safetensors PHOTOGRAPHS

writes them into a file of integer weights, whose model id changes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from dca_fast.codec import Codec
from dca_fast.config import STRIDE
from dca_fast.engines.cpu import CpuEngine
from dca_fast.files import container
from dca_fast.network import weights as weights_io
from dca_fast.network.layout import PREVIEWS
from dca_fast.network.weights import Weights
from dca_fast.reduced import box_mean
from dca_fast.region import Region
from dca_fast.train.data import Crops, open_data
from dca_fast.train.export import WIDE_LIMIT, WIDE_SUM

CROPS, SIZE = 128, 256
SEED = 0
RIDGE = 1e-4  # of the mean square of y_hat's channels


def moments(
    codec: Codec, photographs: Crops, crops: int
) -> tuple[npt.NDArray[np.float64], dict[int, npt.NDArray[np.float64]]]:
    """Products of y_hat's channels and a one, [M + 1, M + 1], and with the pixels of each preview, [M + 1, O]; over
    all qualities alike."""
    generator, engine, width = np.random.default_rng(SEED), codec.engine, codec.config.latent + 1
    assert isinstance(engine, CpuEngine)
    squares = np.zeros((width, width))
    wanted = {reduce: np.zeros((width, 3 * (STRIDE // reduce) ** 2)) for reduce in PREVIEWS}
    for i in track(range(crops), "fitting previews", console=Console(stderr=True)):
        pixels = (photographs.batch(generator, 1, SIZE)[0] + 128).byte().numpy()
        data = codec.encode(pixels, 100 * i / crops, effort=0)
        dca = container.parse(data)
        if dca.header.exact:
            continue
        _, y_hat, _, _ = engine.latent(dca.stream, dca.header, Region(0, 0, SIZE, SIZE))
        x = np.concatenate([y_hat[0], np.ones((*y_hat.shape[1:3], 1))], 2).reshape(-1, width)
        squares += x.T @ x
        decoded = codec.decode(data, "numpy")
        for reduce, sums in wanted.items():
            mean, n = box_mean(decoded, reduce).astype(float) - 128, STRIDE // reduce
            blocks = mean.reshape(SIZE // STRIDE, n, SIZE // STRIDE, n, 3).transpose(0, 2, 1, 3, 4)
            sums += x.T @ blocks.reshape(len(x), -1)
    return squares, wanted


def fit(path: Path, photographs: Crops, crops: int = CROPS) -> Weights:
    """Put the layers into a file of integer weights, in place of those that it has.

    Returns:
        The weights, with their new model id.
    """
    weights = weights_io.load(path)
    squares, wanted = moments(Codec(weights=path), photographs, crops)
    ridge = np.diag(np.append(np.full(len(squares) - 1, RIDGE * np.trace(squares[:-1, :-1]) / (len(squares) - 1)), 0))
    tensors = dict(weights.tensors)
    for reduce, products in wanted.items():
        solution = np.linalg.solve(squares + ridge, products).T
        w, b = solution[:, :-1], solution[:, -1]
        worst = WIDE_LIMIT * np.abs(w).sum(1) + np.abs(b)
        r = np.minimum(WIDE_LIMIT / np.abs(w).max(1), WIDE_SUM / worst).clip(max=2.0**20)
        tensors[f"preview.{reduce}.w"] = np.rint(w * r[:, None]).astype(np.int16)
        tensors[f"preview.{reduce}.b"] = np.rint(b * r).astype(np.int32)
        tensors[f"preview.{reduce}.m"] = (1 / r).astype(np.float32)
    return weights_io.save(path, tensors, weights.config, weights.skip)


def main() -> None:
    """Fit those of a file of weights."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("weights", type=Path, help="integer weights (.safetensors), written again")
    parser.add_argument("data", type=Path, help="photographs: a folder, a packed .bin or a .crops file")
    args = parser.parse_args()
    with TemporaryDirectory() as cache:
        weights = fit(args.weights, open_data(args.data, Path(cache) / "photographs", SIZE))
    print(f"{args.weights}: model id {weights.model_id.hex()}")


if __name__ == "__main__":
    main()
