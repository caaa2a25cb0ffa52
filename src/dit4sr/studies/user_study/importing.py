"""Making a study of evaluation folders: every picture is decoded and coded anew, so that only its pixels come in."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2

from dit4sr.data.images import Image8, encode_png
from dit4sr.errors import UserError
from dit4sr.files import write_atomically
from dit4sr.studies.evaluations import (
    BICUBIC,
    Evaluation,
    bicubic_of,
    by_benchmark,
    common_stems,
    input_of,
    restored_of,
    truth_of,
)
from dit4sr.studies.user_study.store import create_tables

LEFT_OUT = "left out"
"""Among the counts: photos that some method did not restore."""

TINY = 12
"""Pixels of the long side from which an attention check's other picture is enlarged."""


def create_study(
    path: Path,
    evaluations: Sequence[Evaluation],
    ours: str,
    facts: Mapping[str, Any],
    *,
    images: Sequence[str] = (),
    bicubic: bool = False,
) -> dict[str, int]:
    """Write a study's file, whole or not at all.

    Args:
        path: the file; there is none yet.
        evaluations: of our method and its competitors, on one benchmark or several.
        ours: label of our method.
        facts: JSON values that the application needs: title, consent, contact, length, checks.
        images: stems to show; all that every method restored if empty.
        bicubic: whether the input, enlarged bicubically, is a competitor too.

    Returns:
        Counts of what there is: photos, competitors, comparisons; and photos that some method did not restore, which
        are left out.

    Raises:
        UserError: nothing to compare, sizes that differ, unreadable images, or a study that exists.
    """
    if path.exists():
        raise UserError(f"{path.parent} holds a user study already: leave evaluations= out, or give another out=")
    groups = by_benchmark(e for e in evaluations if e.restored)
    _check(groups, ours, bicubic=bicubic)
    competitors = {e.label: None for members in groups.values() for e in members if e.label != ours}
    labels = [ours, *competitors, *([BICUBIC] if bicubic else [])]
    chosen = _chosen(groups, images)
    everywhere = {(e.benchmark, stem) for members in groups.values() for e in members for stem in e.restored}
    if images:
        everywhere = {(benchmark, stem) for benchmark, stem in everywhere if stem in images}
    with write_atomically(path, durable=True) as temporary:
        db = create_tables(temporary)
        try:
            db.executemany("INSERT INTO methods (id, label) VALUES (?, ?)", list(enumerate(labels, 1)))
            for benchmark, members in groups.items():
                for stem in chosen[benchmark]:
                    _add_photo(db, benchmark, stem, members, labels, bicubic=bicubic)
            values = {**facts, "ours": ours, "key": secrets.token_hex(32)}
            db.executemany("INSERT INTO study VALUES (?, ?)", [(n, json.dumps(v)) for n, v in values.items()])
            counts = {
                name: db.execute(f"SELECT count({what}) FROM {table}").fetchone()[0]
                for name, what, table in (
                    ("photos", "*", "photos"),
                    ("competitors", "DISTINCT competitor", "comparisons"),
                    ("comparisons", "competitor", "comparisons"),
                )
            }
            db.commit()
        finally:
            db.close()
    return {**counts, **({LEFT_OUT: left_out} if (left_out := len(everywhere) - counts["photos"]) else {})}


def _check(groups: Mapping[str, Sequence[Evaluation]], ours: str, *, bicubic: bool) -> None:
    """Refuse evaluations that make no study."""
    if not groups:
        raise UserError("the evaluations hold no restored images: evaluate a checkpoint or another method")
    for benchmark, members in groups.items():
        labels = [e.label for e in members]
        if ours not in labels:
            raise UserError(
                f"ours={ours} is none of the methods on {benchmark} ({', '.join(labels)}): give ours=<label>, or "
                "label the folders with evaluations=<label>=<folder>"
            )
        if BICUBIC in labels and bicubic:
            raise UserError("bicubic=true: one of the evaluations is called bicubic already; leave bicubic out")
        if len(labels) == 1 and not bicubic:
            raise UserError(
                f"{ours} has nothing to be compared with on {benchmark}: give another method's evaluation too, or "
                "bicubic=true"
            )


def _chosen(groups: Mapping[str, Sequence[Evaluation]], images: Sequence[str]) -> dict[str, list[str]]:
    """Benchmark → stems to show."""
    stems = {benchmark: common_stems(members) for benchmark, members in groups.items()}
    if not images:
        return stems
    known = {stem for found in stems.values() for stem in found}
    if unknown := [stem for stem in images if stem not in known]:
        raise UserError(f"images: {', '.join(unknown[:5])} is none of those that all methods restored")
    return {benchmark: [stem for stem in found if stem in images] for benchmark, found in stems.items()}


def _add_photo(
    db: sqlite3.Connection,
    benchmark: str,
    stem: str,
    members: Sequence[Evaluation],
    labels: Sequence[str],
    *,
    bicubic: bool,
) -> None:
    """One photo: its input, its comparisons and its attention check."""
    lq = input_of(members[0], stem)
    results = {e.label: restored_of(e, stem) for e in members}
    ours = results[labels[0]]
    height, width = ours.shape[:2]
    for label, image in results.items():
        if image.shape != ours.shape:
            raise UserError(
                f"{stem}: {labels[0]} is {width}×{height} and {label} {image.shape[1]}×{image.shape[0]} pixels: "
                "volunteers would know them by their sizes; evaluate both at one size"
            )
    if bicubic:
        results[BICUBIC] = bicubic_of(lq, height, width)
    photo = db.execute(
        "INSERT INTO photos (benchmark, stem, lq, width, height) VALUES (?, ?, ?, ?, ?)",
        (benchmark, stem, _add_picture(db, lq), width, height),
    ).lastrowid
    pictures = {label: _add_picture(db, image) for label, image in results.items()}
    add = "INSERT INTO comparisons (photo, competitor, ours, other) VALUES (?, ?, ?, ?)"
    for number, label in enumerate(labels[1:], 2):
        if label in pictures:
            db.execute(add, (photo, number, pictures[labels[0]], pictures[label]))
    truth = truth_of(members[0], stem)
    # Without a ground truth, our own result is the intact picture; checks are never counted as votes.
    intact = ours if truth is None or truth.shape != ours.shape else truth
    db.execute(add, (photo, None, _add_picture(db, intact), _add_picture(db, ruined(intact))))


def _add_picture(db: sqlite3.Connection, image: Image8) -> int:
    number = db.execute("INSERT INTO pictures (png) VALUES (?)", (encode_png(image),)).lastrowid
    assert number is not None
    return number


def ruined(image: Image8) -> Image8:
    """The picture as it looks from :data:`TINY` pixels: uint8 of the same shape (H, W, 3).

    Nobody who looks takes it for the better one.
    """
    height, width = image.shape[:2]
    scale = TINY / max(height, width)
    size = max(2, round(width * scale)), max(2, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).astype(image.dtype)
