"""Packed rows: the sequences of several clips, one after another, as a generator reads them.

A clip takes the given tokens of frame prediction (if there are any), its class, and then the
sequence of `models/sequence.py`. Which clips share a row is a plan's to say
(`data/plans.Packing`). This is NumPy: rows are made on the host, while the device works.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from evatok_jax.data.plans import PackedRows
from evatok_jax.models.sequence import LENGTH, PADDING, VISUAL, Grammar


def packed_lengths(table: Mapping[str, np.ndarray]) -> Int[np.ndarray, " n"]:
    """Positions that each clip of a token table takes in a row: 2,053 at most for paper128."""
    lengths = table["lengths"]
    return _given(table) + 1 + lengths.shape[1] + lengths.sum(axis=1)


def pack(
    table: Mapping[str, np.ndarray], rows: PackedRows, grammar: Grammar
) -> dict[str, Int[np.ndarray, "rows capacity"]]:
    """The rows of a plan over `packed_lengths(table)`, filled from the token table.

    Args:
      table: codes [n, longest], lengths [n, blocks], label [n], and for frame prediction condition
        [n, given], as curation writes them.

    Returns int32 arrays, one entry a position:
      inputs: given codes, class (numbered behind the vocabulary), lengths and codes; 0 on padding.
      targets: the input that follows, for the loss; 0 where there is none to be predicted.
      kind: of the target: VISUAL, LENGTH, or PADDING where nothing is to be predicted.
      segment: place of the clip in its row, -1 on padding. A position may see those of its own
        segment that do not stand behind it.
      position: place within the clip.
    """
    clips = rows.clips[rows.clips >= 0]
    codes, lengths = table["codes"][clips], table["lengths"][clips].astype(np.int64)
    labels = grammar.vocab + table["label"][clips].astype(np.int32)[:, None]
    before = [table["condition"][clips].astype(np.int32)] if _given(table) else []
    levels = grammar.codebook_size + np.searchsorted(grammar.levels, lengths).astype(np.int32)
    put = np.concatenate([*before, labels, levels], axis=1)
    # All codes of all clips in one row; each block's length goes before its first code, and the
    # class of a clip before the length of its first block.
    flat = codes[np.arange(codes.shape[1]) < lengths.sum(axis=1, keepdims=True)].astype(np.int32)
    ends = np.cumsum(lengths).reshape(lengths.shape)
    block = np.maximum(np.arange(put.shape[1]) - _given(table) - 1, 0)
    at = (ends - lengths)[:, block].ravel()
    ids = np.insert(flat, at, put.ravel())
    own = np.full(put.shape, LENGTH, np.int32)
    own[:, : _given(table) + 1] = PADDING
    kinds = np.insert(np.full(len(flat), VISUAL, np.int32), at, own.ravel())

    def laid(values: np.ndarray, empty: int) -> np.ndarray:
        out = np.full(rows.segments.shape, empty, np.int32)
        out[rows.segments >= 0] = values  # both go clip by clip through row after row
        return out

    inputs, kind = laid(ids, 0), laid(kinds, PADDING)
    # What follows the last position of a clip is another clip's, or nothing: of kind PADDING.
    kind = np.pad(kind[:, 1:], [(0, 0), (0, 1)], constant_values=PADDING)
    targets = np.where(kind == PADDING, 0, np.pad(inputs[:, 1:], [(0, 0), (0, 1)]))
    return {
        "inputs": inputs,
        "targets": targets,
        "kind": kind,
        "segment": rows.segments,
        "position": rows.positions,
    }


def row_positions(longest: int) -> int:
    """A row's usual number of positions: two of the longest clips, in whole tiles of 128."""
    return -(-2 * longest // 128) * 128


def _given(table: Mapping[str, np.ndarray]) -> int:
    return table["condition"].shape[1] if "condition" in table else 0
