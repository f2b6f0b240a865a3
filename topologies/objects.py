"""The lab's document root: the same bytes at every start."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

_SEED = 20260101
_CHUNK = 1 << 20
SIZES = {"object.bin": 256 << 20, "1m": 1 << 20, "64k": 64 << 10, "1k": 1 << 10}
UPLOADS = "/incoming"
"""A folder where the lab's FTP user may write."""
CLIP_SECONDS = 60
CLIP_FRAMES = 25
"""Per second."""


def make(folder: Path) -> None:
    """Write the objects that the contract names. Seeded: two labs serve equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / UPLOADS.lstrip("/")).mkdir(exist_ok=True)
    with subprocess.Popen(_clip_command(folder / "clip.ts", CLIP_SECONDS)) as clip:
        _make_random(folder)
    if clip.returncode != 0:
        raise subprocess.CalledProcessError(clip.returncode, clip.args)


def _make_random(folder: Path) -> None:
    for name, size in SIZES.items():
        source = random.Random(f"{_SEED}/{name}")
        with open(folder / name, "wb") as file:
            for start in range(0, size, _CHUNK):
                file.write(source.randbytes(min(_CHUNK, size - start)))


def make_clip(path: Path, seconds: int, *options: str) -> None:
    """As `/clip.ts`, but perhaps shorter. `options`: ffmpeg's, for the output."""
    subprocess.run(_clip_command(path, seconds, *options), check=True)


def _clip_command(path: Path, seconds: int, *options: str) -> list[str]:
    """A transport stream of ffmpeg's test source, which burns its time in hundredths of a second into every frame
    (frame n shows 4 n), with a tone. One thread and no dates: the same bytes from the same ffmpeg."""
    video = f"testsrc=size=320x240:rate={CLIP_FRAMES}:decimals=2:duration={seconds}"
    tone = f"sine=frequency=440:sample_rate=48000:duration={seconds}"
    command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-y", "-f", "lavfi", "-i", video, "-f", "lavfi", "-i", tone]
    command += ["-c:v", "libx264", "-preset", "ultrafast", "-threads", "1", "-g", str(CLIP_FRAMES), "-bf", "0"]
    command += ["-b:v", "1M", "-pix_fmt", "yuv420p", "-c:a", "mp2", "-b:a", "128k"]
    return [*command, *options, "-flags", "+bitexact", "-fflags", "+bitexact", "-f", "mpegts", str(path)]
