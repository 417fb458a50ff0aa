"""Lossless codecs on full-size fields: megabytes a field, milliseconds to encode and to decode on one core.

    python benchmarks/field_codecs.py [--fields 8] [--repeats 3] [--only blosc2]

The fields are 3 x 1024 x 1280 uint16, 12 bits stored as multiples of 16, drawn by our own generator and
exposed anew (`exposed`), since as drawn they are darker and noisier than real ones; the first lines say how
near the result comes to real crops. Every codec takes its turn in every repeat, on every field, both as the
field is stored and with the unused low bits removed (finding and shifting them is timed too); every decoded
field is compared with the original. Sizes are means over the fields, times medians of the process's CPU time,
so that other programs on a shared machine weigh less. Prints Markdown.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import imagecodecs as _imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile
from scipy import ndimage

from hcs_ray.screen.synthetic import SyntheticConfig
from hcs_ray.screen.synthetic.draw import draw_field
from hcs_ray.screen.synthetic.layout import plan
from hcs_ray.screen.synthetic.truth import fields_of
from hcs_ray.shards import codec, residuals
from hcs_ray.shards.codec import Codec, Pixels

imagecodecs: Any = _imagecodecs
KB, MB = 2**10, 2**20
# MB of a field made of real BBBC021 crops: blosc2 zstd-1 with bitshuffle, blosc2 LZ4 with bitshuffle, JPEG XL
# effort 1 without the low bits.
REAL_MB = (3.64, 4.03, 2.72)
DEFAULT = "**blosc2** (the default)"


@dataclass(frozen=True)
class Method:
    """A codec under test; ``decode`` writes into a field's place."""

    name: str
    encode: Callable[[Pixels], bytes]
    decode: Callable[[bytes, Pixels], object]
    low_bits: tuple[bool, ...] = (False, True)  # tried without and with their removal
    available: bool = True


@dataclass
class Figures:
    sizes_mb: list[float] = field(default_factory=list)
    encode_ms: list[float] = field(default_factory=list)
    decode_ms: list[float] = field(default_factory=list)

    def text(self) -> str:
        times = f"{statistics.median(self.encode_ms):.1f} | {statistics.median(self.decode_ms):.1f}"
        return f"{statistics.mean(self.sizes_mb):.2f} | {times}"


def drawn(count: int) -> list[Pixels]:
    """Fields of different plates, wells and weeks of the generator's full-size screen."""
    config = SyntheticConfig.preset("bbbc021")
    screen = plan(config)
    plates = [screen.plates[len(screen.plates) * number // count] for number in range(count)]
    places = [37 * number % (len(plate.wells) * config.sites) for number, plate in enumerate(plates)]
    chosen = [
        fields_of(screen, plate, place, place + 1)[0] for plate, place in zip(plates, places, strict=True)
    ]
    return [np.stack(draw_field(one)) for one in chosen]


def exposed(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """The field as a quieter camera sees it in more light: smoothed, 2.2 x the counts, fresh noise."""
    smooth = [ndimage.gaussian_filter(plane.astype(np.float32), 1.2) for plane in pixels]
    light: npt.NDArray[np.float32] = np.float32(2.2) * np.stack(smooth)
    light += rng.standard_normal(light.shape, dtype=np.float32) * np.sqrt(np.float32(0.75) * light + 900)
    counts = np.minimum(np.maximum(light / 16 + 0.5, 0), 4095).astype(np.uint16)
    return counts << np.uint16(4)


def methods() -> list[Method]:
    """All of them, ours first."""
    found = [_ours(DEFAULT, "blosc2"), _ours("**jpegxl** (the alternative)", "jpegxl")]
    found += [
        _blosc2("zstd", 1, "bitshuffle", None),
        _blosc2("zstd", 1, "bitshuffle", 256 * KB),
        _blosc2("zstd", 1, "bitshuffle", MB),
        _blosc2("zstd", 1, "bitshuffle", 2560 * KB),
        _blosc2("zstd", 5, "bitshuffle", MB),
        _blosc2("lz4", 5, "bitshuffle", None),
        _blosc2("lz4", 5, "bitshuffle", MB),
        _blosc2("zstd", 1, "shuffle", MB),
    ]
    found += [
        _blosc2("zstd", 1, "shuffle", None, delta=True),
        _blosc2("zstd", 1, "shuffle", MB, delta=True),
        _blosc2("zstd", 1, "bitshuffle", None, delta=True),
        _blosc2("zstd", 1, "bitshuffle", MB, delta=True),
        _blosc2("lz4", 5, "bitshuffle", MB, delta=True),
    ]
    found += [_raw_bitshuffle(), _bitshuffle_lz4(), _pcodec()]
    found += [_tiff(kind, tiled) for kind in ("zstd", "deflate") for tiled in (False, True)]
    found += [
        _planes("LERC", imagecodecs.lerc_encode, imagecodecs.lerc_decode, imagecodecs.LERC.available),
        _planes("PNG", imagecodecs.png_encode, imagecodecs.png_decode, imagecodecs.PNG.available),
        _planes(
            "JPEG-LS", imagecodecs.jpegls_encode, imagecodecs.jpegls_decode, imagecodecs.JPEGLS.available
        ),
        _planes("HTJ2K", imagecodecs.htj2k_encode, imagecodecs.htj2k_decode, imagecodecs.HTJ2K.available),
    ]
    return found + [_jpegxl(effort) for effort in (1, 2, 3)]


def _ours(name: str, kind: Codec) -> Method:
    return Method(name, lambda pixels: codec.encode(pixels, kind), codec.decode, low_bits=(True,))


def _blosc2(
    compressor: str,
    level: int,
    shuffle: Literal["bitshuffle", "shuffle"],
    block_bytes: int | None,
    delta: bool = False,
) -> Method:
    settings = {"level": level, "compressor": compressor, "shuffle": shuffle, "blocksize": block_bytes}
    scratch: dict[tuple[int, ...], Pixels] = {}

    def encode(pixels: Pixels) -> bytes:
        if delta:
            into = scratch.setdefault(pixels.shape, np.empty_like(pixels))
            residuals.take(pixels, 0, into)
            pixels = into
        return bytes(imagecodecs.blosc2_encode(pixels, typesize=2, numthreads=1, **settings))

    def decode(data: bytes, out: Pixels) -> None:
        imagecodecs.blosc2_decode(data, numthreads=1, out=out.reshape(-1).view(np.uint8))
        if delta:
            residuals.restore(out, 0)

    block = "own blocks" if block_bytes is None else f"{block_bytes // KB} KiB blocks"
    name = f"{'row residuals, ' if delta else ''}blosc2 {compressor}-{level}, {shuffle}, {block}"
    return Method(name, encode, decode)


def _raw_bitshuffle() -> Method:
    def encode(pixels: Pixels) -> bytes:
        return bytes(imagecodecs.bitshuffle_encode(pixels.tobytes(), itemsize=2))

    def decode(data: bytes, out: Pixels) -> None:
        imagecodecs.bitshuffle_decode(data, itemsize=2, out=out.reshape(-1).view(np.uint8))

    return Method("bitshuffle alone", encode, decode)


def _bitshuffle_lz4() -> Method:
    raw = _raw_bitshuffle()

    def decode(data: bytes, out: Pixels) -> None:
        raw.decode(imagecodecs.lz4_decode(data, out=out.nbytes), out)

    return Method(
        "bitshuffle + LZ4", lambda pixels: bytes(imagecodecs.lz4_encode(raw.encode(pixels))), decode
    )


def _pcodec() -> Method:
    def decode(data: bytes, out: Pixels) -> None:
        imagecodecs.pcodec_decode(data, out=out.reshape(-1))

    available: bool = imagecodecs.PCODEC.available
    return Method(
        "pcodec",
        lambda pixels: bytes(imagecodecs.pcodec_encode(pixels.reshape(-1))),
        decode,
        available=available,
    )


def _tiff(kind: str, tiled: bool) -> Method:
    layout: dict[str, Any] = {"tile": (256, 256)} if tiled else {"rowsperstrip": 128}

    def encode(pixels: Pixels) -> bytes:
        file = io.BytesIO()
        tifffile.imwrite(
            file,
            pixels,
            photometric="minisblack",
            compression=kind,
            compressionargs={"level": 1} if kind == "zstd" else None,
            predictor=True,
            metadata=None,
            maxworkers=1,
            **layout,
        )
        return file.getvalue()

    def decode(data: bytes, out: Pixels) -> None:
        tifffile.imread(io.BytesIO(data), out=out, maxworkers=1)

    name = f"TIFF {kind}{'-1' if kind == 'zstd' else ''}, horizontal predictor"
    return Method(f"{name}, {'tiles of 256' if tiled else 'strips of 128 rows'}", encode, decode)


def _planes(
    name: str, encode_plane: Callable[..., Any], decode_plane: Callable[..., Any], available: bool
) -> Method:
    """A codec of single planes: their sizes, then their bytes."""

    def encode(pixels: Pixels) -> bytes:
        parts = [bytes(encode_plane(plane)) for plane in pixels]
        return struct.pack(f"<{len(parts)}I", *map(len, parts)) + b"".join(parts)

    def decode(data: bytes, out: Pixels) -> None:
        start = 4 * len(out)
        for plane, size in zip(out, struct.unpack_from(f"<{len(out)}I", data), strict=True):
            plane[:] = decode_plane(data[start : start + size])
            start += size

    return Method(name, encode, decode, available=available)


def _jpegxl(effort: int) -> Method:
    def encode(pixels: Pixels) -> bytes:
        tall = pixels.reshape(-1, pixels.shape[-1])
        return bytes(imagecodecs.jpegxl_encode(tall, lossless=True, effort=effort, numthreads=1))

    def decode(data: bytes, out: Pixels) -> None:
        imagecodecs.jpegxl_decode(data, numthreads=1, out=out.reshape(-1, out.shape[-1]))

    return Method(f"JPEG XL, effort {effort}", encode, decode, available=imagecodecs.JPEGXL.available)


def measure(method: Method, pixels: Pixels, without_low_bits: bool, figures: Figures) -> None:
    """One encoding and one decoding of a field; `SystemExit` where it does not come back."""
    out, work = np.empty_like(pixels), np.empty_like(pixels)
    out[:], work[:] = 1, 1  # memory that is there already, as where fields follow each other
    ours = method.low_bits == (True,)
    started = time.process_time()
    shift = np.uint16(codec.unused_low_bits(pixels) if without_low_bits and not ours else 0)
    source = np.right_shift(pixels, shift, out=work) if shift else pixels
    data = method.encode(source)
    encoded = time.process_time()
    method.decode(data, out)
    if shift:
        np.left_shift(out, shift, out=out)
    decoded = time.process_time()
    if not np.array_equal(out, pixels):
        raise SystemExit(f"{method.name} is not lossless")
    figures.sizes_mb.append(len(data) / 1e6)
    figures.encode_ms.append(1000 * (encoded - started))
    figures.decode_ms.append(1000 * (decoded - encoded))


def table(fields: list[Pixels], repeats: int, only: str) -> Iterator[str]:
    tried = [method for method in methods() if only in method.name or method.name == DEFAULT]
    figures = {(method.name, low): Figures() for method in tried for low in method.low_bits}
    for method in tried:  # first calls load and compile
        if method.available:
            measure(method, fields[0], method.low_bits[0], Figures())
    for _ in range(repeats):
        for pixels in fields:
            for method in tried:
                for low in method.low_bits if method.available else ():
                    measure(method, pixels, low, figures[method.name, low])
    yield "| codec | MB | encode ms | decode ms | MB, low bits removed | encode ms | decode ms | of default |"
    yield "|---|" + "---:|" * 7
    size = statistics.mean(figures[DEFAULT, True].sizes_mb)
    for method in tried:
        yield _row(method, figures, size)


def _row(method: Method, figures: dict[tuple[str, bool], Figures], default_mb: float) -> str:
    if not method.available:
        return f"| {method.name} | not installed | | | | | | |"
    before = figures[method.name, False].text() if False in method.low_bits else " | | "
    after = figures[method.name, True]
    ratio = statistics.mean(after.sizes_mb) / default_mb
    return f"| {method.name} | {before} | {after.text()} | {ratio:.2f} |"


def likeness(as_drawn: list[Pixels], fields: list[Pixels]) -> Iterator[str]:
    """How near the fields come to real ones."""
    known = [
        ("blosc2 zstd-1, bitshuffle", _blosc2("zstd", 1, "bitshuffle", None).encode),
        ("blosc2 LZ4, bitshuffle", _blosc2("lz4", 5, "bitshuffle", None).encode),
        ("JPEG XL effort 1, low bits removed", lambda pixels: _jpegxl(1).encode(pixels >> np.uint16(4))),
    ]
    yield "| MB a field | real crops | as drawn | exposed anew |"
    yield "|---|---:|---:|---:|"
    for (name, encode), real in zip(known, REAL_MB, strict=True):
        means = [statistics.mean(len(encode(one)) / 1e6 for one in some) for some in (as_drawn, fields)]
        shares = " | ".join(f"{mean:.2f} ({mean / real - 1:+.1%})" for mean in means)
        yield f"| {name} | {real:.2f} | {shares} |"


def threads(fields: list[Pixels], kind: Codec, rounds: int) -> str:
    """What a second thread adds where there is a second core: the GIL's share shows here."""
    members = [codec.encode(pixels, kind) for pixels in fields]

    def encode() -> None:
        for number in range(rounds):
            codec.encode(fields[number % len(fields)], kind)

    def decode() -> None:
        out = np.empty_like(fields[0])
        for number in range(rounds):
            codec.decode(members[number % len(members)], out)

    rates = [2 * seconds_of(work, 1) / seconds_of(work, 2) for work in (encode, decode)]
    return f"{kind}: two threads encode {rates[0]:.2f} times as fast as one, and decode {rates[1]:.2f} times"


def seconds_of(work: Callable[[], None], workers: int) -> float:
    """The shortest of five times in which each of so many threads does the work."""
    seconds = []
    for _ in range(5):
        running = [threading.Thread(target=work) for _ in range(workers)]
        started = time.perf_counter()
        for one in running:
            one.start()
        for one in running:
            one.join()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fields", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="codecs whose name holds this, and the default")
    options = parser.parse_args()
    as_drawn, rng = drawn(options.fields), np.random.default_rng(0)
    fields = [exposed(pixels, rng) for pixels in as_drawn]
    print("\n".join(likeness(as_drawn, fields)), end="\n\n", flush=True)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    print("\n".join(table(fields, options.repeats, options.only)), end="\n\n", flush=True)
    os.sched_setaffinity(0, cores)
    print(threads(fields, "blosc2", 100))
    print(threads(fields, "jpegxl", 5))


if __name__ == "__main__":
    main()
