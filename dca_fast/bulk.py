"""Many pictures by somebody else's scheduler: Ray Data, Dask, Spark, or a loop. docs/guide/bulk.md shows each.

Two shapes of the same work, and neither imports a scheduler:

    encode_items, decode_items    an iterator of (name, bytes) to one of (name, bytes or error): `mapPartitions`
    Encoder, Decoder              a batch of Ray Data to a batch, and files through a pyarrow file system

A picture that cannot be converted stops nothing. It comes back under its name, with what is wrong.
"""

from __future__ import annotations

import posixpath
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from inspect import signature
from typing import Any, TypeAlias

import numpy as np

from dca_fast.codec import Codec
from dca_fast.encoder.rate_control import GOALS
from dca_fast.errors import ConfigError, InputError
from dca_fast.files import image_io, image_out

__all__ = ["Decoder", "Encoder", "decode_items", "encode_items"]

Item: TypeAlias = tuple[str, bytes]
Result: TypeAlias = tuple[str, "bytes | Exception"]
EXTENSION = ".dca"
_WHOLE_AT_ONCE = ("s3", "gcs", "abfs")  # stores that show an object when all of it is there


@cache
def _default() -> Codec:
    """One of each process."""
    return Codec()


def encode_items(items: Iterable[Item], codec: Codec | None = None, **options: Any) -> Iterator[Result]:
    """Picture files to .dca files, one after the other.

    Args:
        items: name and content of each file, of any format that `Codec.encode` reads.
        codec: default: one of the process, with the shipped weights on the CPU.
        options: of `Codec.encode`, or, with one of its goals, of `Codec.encode_to`.

    Yields:
        The name with `.dca` behind it and the file; or the name as it was and the exception. In the order of the items.

    Raises:
        TypeError, ConfigError: an option that is unknown or out of range, which is no fault of a picture.
    """
    codec = codec or _default()
    encode = codec.encode_to if options.keys() & set(GOALS) else codec.encode
    signature(encode).bind(None, **options)
    exact = options.get("quality") == "lossless"

    def convert(name: str, data: bytes) -> Item:
        with image_io.no_limit_of_pillow():  # the codec has one
            image = image_io.load_image(bytes(data), exact=exact, max_pixels=codec.max_pixels)
        return name + EXTENSION, encode(image, **options)

    return _each(items, convert)


def decode_items(
    items: Iterable[Item], codec: Codec | None = None, *, extension: str = ".png", **options: Any
) -> Iterator[Result]:
    """.dca files to picture files, one after the other.

    Args:
        items: name and content of each file.
        codec: as of `encode_items`.
        extension: of the format that is written, as `dca-fast decode --format` knows it.
        options: `region` or `reduce` of `Codec.decode`.

    Yields:
        The name without `.dca`, with the extension behind it unless it is there already, and the file; or the name as
        it was and the exception. In the order of the items.

    Raises:
        InputError: an extension that cannot be written.
        TypeError, ConfigError: as of `encode_items`.
    """
    codec = codec or _default()
    signature(codec.decode).bind(None, **options)
    image_out.format_of(extension)

    def convert(name: str, data: bytes) -> Item:
        target = name.removesuffix(EXTENSION)
        target = target if target.lower().endswith(extension) else target + extension
        return target, image_out.image_bytes(codec.decode(data, **options), extension)

    return _each(items, convert)


def _each(items: Iterable[Item], convert: Callable[[str, bytes], Item]) -> Iterator[Result]:
    for name, data in items:
        try:
            yield convert(name, data)
        except ConfigError:
            raise
        except Exception as error:  # of any kind: the other files are not to suffer from it
            yield name, error


class _Batches:
    """What `Encoder` and `Decoder` have in common."""

    def __init__(
        self,
        work: Callable[..., Iterator[Result]],
        out: str | None,
        filesystem: Any,
        root: str,
        codec: Mapping[str, Any] | None,
        options: dict[str, Any],
    ) -> None:
        self._work, self._options = work, options
        self._codec = Codec(**(codec or {}))
        self._store = None if out is None else _Store(out, filesystem)
        self._root = _bare(root).rstrip("/")

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        paths = [str(path) for path in batch["path"]]
        names, contents, errors = [], [], []
        items = zip(map(self._name, paths), map(bytes, batch["bytes"]), strict=True)
        for name, result in self._work(items, self._codec, **self._options):
            try:
                if isinstance(result, Exception):
                    raise result
                names.append(name if self._store is None else self._store.write(name, result))
                contents.append(result)
                errors.append("")
            except Exception as error:  # of this picture, or of writing it
                names.append("")
                contents.append(b"")
                errors.append(f"{type(error).__name__}: {error}")
        columns: dict[str, Any] = {"path": paths, "error": errors}
        if self._store is None:
            columns |= {"name": names, "bytes": contents}
        else:
            columns |= {"output": names, "output_bytes": list(map(len, contents))}
        return {key: np.array(values, np.int64 if key == "output_bytes" else object) for key, values in columns.items()}

    def _name(self, path: str) -> str:
        """Below the root, or the last part of the path: what the output is called by."""
        inside = _bare(path)
        if self._root and inside.startswith(f"{self._root}/"):
            return inside[len(self._root) + 1 :]
        return posixpath.basename(inside)


class Encoder(_Batches):
    """Encodes batches of Ray Data: `dataset.map_batches(Encoder, compute=ActorPoolStrategy(...), ...)`.

    Each actor has one codec, with a thread for each CPU that Ray gives it: Ray sets OMP_NUM_THREADS to `num_cpus`,
    which `dca_fast.threads.default_threads` follows.

    A batch has the columns of `ray.data.read_binary_files(..., include_paths=True)`: `path` and `bytes`. The result
    has a row for each, with `path` as it was and `error`, "" or what went wrong. Without `out` it also has `name`, what
    the file becomes, and `bytes`, empty after an error. With `out` files are written, and it has `output`, the path of
    the file, "" after an error, and `output_bytes`, its size.

    Args:
        out: folder or bucket for the files; None: they go on as a column.
        filesystem: of pyarrow, where `out` is; default: what `pyarrow.fs.FileSystem.from_uri` makes of it.
        root: of the inputs: outputs keep their places below it. "": outputs go by the last part of their path.
        codec: arguments of `Codec`.
        options: of `Codec.encode` or `Codec.encode_to`.

    Raises:
        ConfigError: as `Codec`.
    """

    def __init__(
        self,
        out: str | None = None,
        *,
        filesystem: Any = None,
        root: str = "",
        codec: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(encode_items, out, filesystem, root, codec, options)


class Decoder(_Batches):
    """Decodes batches of Ray Data, as `Encoder` encodes them.

    Args:
        out, filesystem, root, codec: as of `Encoder`.
        extension: of the files that are made.
        options: of `decode_items`.
    """

    def __init__(
        self,
        out: str | None = None,
        *,
        extension: str = ".png",
        filesystem: Any = None,
        root: str = "",
        codec: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        image_out.format_of(extension)
        super().__init__(decode_items, out, filesystem, root, codec, {"extension": extension, **options})


class _Store:
    """A folder of a pyarrow file system, in which nothing is replaced and no half of a file is seen."""

    def __init__(self, out: str, filesystem: Any) -> None:
        from pyarrow import fs

        self._folder = out
        if filesystem is None:
            filesystem, self._folder = fs.FileSystem.from_uri(out)
        self._fs, self._not_found = filesystem, fs.FileType.NotFound

    def write(self, name: str, data: bytes) -> str:
        """The path of the file. What a killed worker wrote already is written no second time.

        Raises:
            InputError: there is another file of that name, or the name leads out of the folder.
        """
        path = posixpath.join(self._folder, posixpath.normpath(name))
        if posixpath.normpath(name).startswith(("../", "/")):
            raise InputError(f"{name} leads out of {self._folder}")
        if self._fs.get_file_info(path).type != self._not_found:
            with self._fs.open_input_stream(path) as file:
                if file.read() != data:
                    raise InputError(f"{path} exists, and is another file")
            return path
        self._fs.create_dir(posixpath.dirname(path), recursive=True)
        once = self._fs.type_name in _WHOLE_AT_ONCE
        first = path if once else f"{path}.{secrets.token_hex(4)}.tmp"
        try:
            with self._fs.open_output_stream(first) as file:
                file.write(data)
            if not once:
                self._fs.move(first, path)
        except BaseException:
            if not once and self._fs.get_file_info(first).type != self._not_found:
                self._fs.delete_file(first)
            raise
        return path


def _bare(path: str) -> str:
    """A path without the scheme of a URI, as Ray gives those of buckets."""
    return path.split("://", 1)[-1]
