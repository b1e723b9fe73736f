"""Small video files with the codec, rotation and sound of a test's choice."""

import av
import numpy as np


def encode(path, frames, codec="libx264", pix_fmt="yuv420p", rate=25, rotation=None, audio=False):
    """Writes uint8 frames [n, h, w, 3], or None of them; returns the path."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        if frames is not None:
            track = container.add_stream(codec, rate=rate)
            track.thread_count = 1  # x264's bits depend on how its threads meet
            track.height, track.width = frames.shape[1:3]
            track.pix_fmt = pix_fmt
            if rotation:
                track.set_display_rotation(**rotation)
        if audio:
            sound = container.add_stream("aac", rate=44100, layout="mono")
        for frame in () if frames is None else frames:
            container.mux(track.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        if frames is not None:
            container.mux(track.encode(None))
        if audio:
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            samples.sample_rate = 44100
            container.mux(sound.encode(samples) + sound.encode(None))
    return path
