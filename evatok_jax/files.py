"""Files in, files out: video to .evt and back, and sets of clips."""

from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from evatok_jax.api import Generator, Tokenizer
from evatok_jax.data.builders.folder import VIDEO_SUFFIXES
from evatok_jax.storage.evt import info, read_evt, write_evt
from evatok_jax.storage.evt_file import EvtFile, flat_codes, padded_codes
from evatok_jax.storage.framing import SourceInfo
from evatok_jax.storage.video_files import Video, clips_of, write_back, write_video
from evatok_jax.tokens import Tokens


def _chunks(iterable, size: int):
    iterator = iter(iterable)
    while chunk := list(islice(iterator, size)):
        yield chunk


def encode_file(
    model,
    source: str | Path,
    target: str | Path,
    mode: str = "letterbox",
    budget: int | None = None,
    level: int | None = None,
) -> dict:
    """Encodes a video of any length into an .evt file; returns what `info` says of it.

    The video is letterboxed or cropped to the tokenizer's size. The router decides the lengths,
    within a budget if there is one; with `level` every block has that many tokens. "notes" says
    what is lost.

    Raises ValueError for a file that is no video, for a tokenizer without a router where no level
    is given, and for a level that it does not have.
    """
    tokenizer = tokenizer_of(model)
    g = tokenizer.geometry
    if tokenizer.config.continuous:
        raise ValueError("this model's tokens are vectors: an .evt file holds ids of a codebook")
    if level is None and tokenizer.router is None:
        raise ValueError(
            "this model has no router to decide the lengths: name one (--router=EXPORT), or give "
            f"every block the same number of tokens (--level=N, one of {_listed(g.levels)})"
        )
    if level is not None and level not in g.levels:
        raise ValueError(f"level {level}: a block has one of {_listed(g.levels)} tokens")
    clips, picture = clips_of(source, g.frames, g.height, g.width, mode)
    lengths, codes = [], []
    for part in _chunks(clips, tokenizer.batch):
        same = None if level is None else np.full((len(part), g.blocks), level)
        tokens = tokenizer.encode(np.stack(part), same, budget)
        lengths.append(tokens.lengths)
        codes.append(flat_codes(tokens.codes, tokens.lengths))
    evt = EvtFile(
        codebook=tokenizer.config.codebook_size,
        geometry=g,
        tokenizer=tokenizer.digest,
        source=picture,
        lengths=np.concatenate(lengths),
        codes=np.concatenate(codes),
    )
    size = write_evt(target, evt)
    return {"file": str(target), "bytes": size, "notes": _notes(picture), **info(evt)}


def decode_file(model, source: str | Path, target: str | Path) -> dict:
    """Decodes an .evt file into a video of the original length, size, rate and time stamps.

    "notes" in the result says what the original had and this video has not. Raises ValueError where
    the file is damaged or was written by another tokenizer.
    """
    tokenizer, evt = tokenizer_of(model), read_evt(source)
    if not tokenizer.digest.startswith(evt.tokenizer):
        raise ValueError(
            f"{source} was written by tokenizer {evt.tokenizer}, this one is "
            f"{tokenizer.digest[: len(evt.tokenizer)]}: the ids mean something else"
        )

    def clips():
        for first in range(0, evt.clips, tokenizer.batch):
            last = min(first + tokenizer.batch, evt.clips)
            lengths = evt.lengths[first:last]
            codes = padded_codes(evt, first, last, int(lengths.sum(axis=1).max()))
            yield from tokenizer.decode(Tokens(codes, np.zeros_like(codes), lengths))

    write_back(target, clips(), evt.source)
    return {"file": str(target), "frames": evt.source.frames, "notes": _notes(evt.source)}


def tokenizer_of(model: Tokenizer | Generator) -> Tokenizer:
    """The tokenizer that a model is, or has."""
    return model if isinstance(model, Tokenizer) else model.tokenizer


def _notes(source: SourceInfo) -> list[str]:
    return [f"{what} is not kept" for what in source.lost]


def _listed(numbers) -> str:
    return ", ".join(map(str, numbers))


def first_frames(model: Generator, source: str | Path) -> UInt8[np.ndarray, "f h w 3"]:
    """As many first frames of a video as the model takes, cropped to its size.

    Raises ValueError for a file that is no video, or a model that takes none.
    """
    count, g = model.config.condition_frames, model.tokenizer.geometry
    if not count:
        raise ValueError("this generator takes a class, no frames: it was not trained to predict")
    clips, _ = clips_of(source, g.frames, g.height, g.width, "crop")
    return next(iter(clips))[:count]


def load_clips(path: str | Path, frames: int) -> UInt8[np.ndarray, "n t h w 3"]:
    """Clips of a folder of videos (the first frames of each, by name), or of an .npy file.

    Raises ValueError where videos are too short or differ in size, or the array is no clips.
    """
    path = Path(path)
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
    if not files:
        raise ValueError(f"{path} holds no videos and is no .npy file")
    clips = []
    for file in files:
        clip = list(islice(Video(file), frames))
        if len(clip) < frames:
            raise ValueError(f"{file} has {len(clip)} frames, {frames} are needed (--frames)")
        clips.append(np.stack(clip))
        if clips[-1].shape != clips[0].shape:
            raise ValueError(
                f"{file} is {clips[-1].shape[1:3]}, {files[0]} is {clips[0].shape[1:3]}: videos "
                "must have one size"
            )
    return np.stack(clips)


def save_clips(clips: UInt8[np.ndarray, "n t h w 3"], target: str | Path, rate: int = 25) -> dict:
    """Writes clips into an .npy file, or as videos into a folder."""
    target = Path(target)
    if target.suffix == ".npy":
        beside = target.with_suffix(".tmp")
        with beside.open("wb") as file:
            np.save(file, clips)
        beside.replace(target)
    else:
        target.mkdir(parents=True, exist_ok=True)
        times = np.arange(clips.shape[1] + 1)  # the last one ends the last frame
        for n, clip in enumerate(clips):
            write_video(target / f"sample-{n:04d}.mp4", iter(clip), times, Fraction(1, rate))
    return {"clips": len(clips), "written_to": str(target)}
