"""Results: preference rates with intervals, agreement, attention checks, and the answers as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from dit4sr.studies.user_study.agreement import krippendorff_alpha, pairwise_agreement, resampled_interval, wilson
from dit4sr.studies.user_study.store import Store, Vote

QUESTIONS = ("realism", "fidelity")

ALL = "all of them"
"""The row over all competitors."""

COLUMNS = (
    "volunteer",
    "position",
    "benchmark",
    "photo",
    "competitor",
    "attention_check",
    "ours_side",
    "realism_side",
    "fidelity_side",
    "realism_preferred",
    "fidelity_preferred",
    "answered_utc",
    "seconds",
    "passed_checks",
)


@dataclass(frozen=True)
class Rate:
    """How often our result was preferred.

    Attributes:
        competitor: label, or :data:`ALL`.
        question: realism or fidelity.
        votes: answers.
        share: of them for our result, in [0, 1].
        wilson: its 95% interval if answers were independent.
        resampled: its 95% interval with whole volunteers resampled; NaN for fewer than two.
    """

    competitor: str
    question: str
    votes: int
    share: float
    wilson: tuple[float, float]
    resampled: tuple[float, float]


@dataclass(frozen=True)
class Agreement:
    """How far volunteers agree on which of two results is better.

    Attributes:
        question: realism or fidelity.
        alpha: Krippendorff's α; NaN where undefined.
        same: share of pairs of answers to one comparison that are the same; NaN without any.
        units: comparisons with two answers or more.
    """

    question: str
    alpha: float
    same: float
    units: int


@dataclass(frozen=True)
class Summary:
    """All results of a study.

    Attributes:
        ours: label of our method.
        joined, finished: volunteers.
        excluded: anonymous codes of those who failed more attention checks than allowed.
        rates: by competitor, then over all, for each question; of volunteers who are not excluded.
        agreement: for each question.
        left: share of left answers in the comparisons, which no habit should move far from a half.
        votes: comparisons answered by volunteers who are not excluded.
    """

    ours: str
    joined: int
    finished: int
    excluded: tuple[str, ...]
    rates: tuple[Rate, ...]
    agreement: tuple[Agreement, ...]
    left: float
    votes: int

    @property
    def counts(self) -> str:
        """Who took part, as a sentence."""
        without = f"; {len(self.excluded)} left out for failed attention checks" if self.excluded else ""
        side = "" if math.isnan(self.left) else f" The left image was chosen in {100 * self.left:.1f}% of the answers."
        return f"{self.joined} volunteers, {self.finished} finished{without}. {self.votes} pairs answered.{side}"

    @property
    def agreement_text(self) -> str:
        """The agreement, as a sentence."""
        parts = [
            f"{a.question}: "
            + (
                "no pair has two answers"
                if math.isnan(a.same)
                else f"{100 * a.same:.1f}% of answer pairs are the same, Krippendorff's α "
                + ("undefined (all answers are the same)" if math.isnan(a.alpha) else f"{a.alpha:.3f}")
                + f" over {a.units} pairs of images"
            )
            for a in self.agreement
        ]
        return f"Agreement. {'; '.join(parts)}."


def summarise(store: Store, allowed_failures: int | None = None) -> Summary:
    """The results so far.

    Args:
        store: of the study; it may be in use.
        allowed_failures: attention checks that a volunteer may fail; None for the study's own setting.
    """
    every, progress = store.votes(), store.volunteers()
    excluded = failed_more_than(every, _allowed(store, allowed_failures))
    votes = [v for v in every if v.competitor is not None and v.volunteer not in excluded]
    rates = []
    for competitor in [*store.competitors(), ALL]:
        chosen = [v for v in votes if competitor in (v.competitor, ALL)]
        if chosen:
            rates += [rate(competitor, question, chosen) for question in QUESTIONS]
    sides = [getattr(v, question) for v in votes for question in QUESTIONS]
    return Summary(
        ours=store.facts["ours"],
        joined=len(progress),
        finished=sum(answered == count for answered, count in progress.values()),
        excluded=tuple(sorted(excluded)),
        rates=tuple(rates),
        agreement=tuple(agreement(question, votes) for question in QUESTIONS),
        left=sides.count("left") / len(sides) if sides else math.nan,
        votes=len(votes),
    )


def _allowed(store: Store, given: int | None) -> int:
    return store.facts["allowed_failures"] if given is None else given


def failed_more_than(votes: Sequence[Vote], allowed: int) -> set[str]:
    """Codes of volunteers who answered more attention checks wrongly, by either question, than that."""
    failures: dict[str, int] = defaultdict(int)
    for v in votes:
        if v.competitor is None and not all(v.prefers_ours(question) for question in QUESTIONS):
            failures[v.volunteer] += 1
    return {volunteer for volunteer, count in failures.items() if count > allowed}


def rate(competitor: str, question: str, votes: Sequence[Vote]) -> Rate:
    """The preference rate of some votes."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for v in votes:
        groups[v.volunteer].append(v.prefers_ours(question))
    wins = sum(map(sum, groups.values()))
    return Rate(
        competitor,
        question,
        len(votes),
        wins / len(votes),
        wilson(wins, len(votes)),
        resampled_interval([(sum(values), len(values)) for values in groups.values()]),
    )


def agreement(question: str, votes: Sequence[Vote]) -> Agreement:
    """The agreement of some votes; a unit is one photo with one competitor."""
    units: dict[tuple[str, str, str | None], list[bool]] = defaultdict(list)
    for v in votes:
        units[v.benchmark, v.photo, v.competitor].append(v.prefers_ours(question))
    several = sum(len(values) > 1 for values in units.values())
    return Agreement(question, krippendorff_alpha(units.values()), pairwise_agreement(units.values()), several)


def answers_csv(store: Store, allowed_failures: int | None = None) -> str:
    """Every answer, of excluded volunteers too, with method names; nothing that tells who a volunteer is.

    The arguments are those of :func:`summarise`.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    votes = store.votes()
    excluded = failed_more_than(votes, _allowed(store, allowed_failures))
    ours = store.facts["ours"]
    for v in votes:
        check = v.competitor is None
        names = ("intact", "ruined") if check else (ours, v.competitor)
        preferred = [names[0] if v.prefers_ours(question) else names[1] for question in QUESTIONS]
        row = [
            v.volunteer, v.position, v.benchmark, v.photo, "" if check else v.competitor, int(check),
            "left" if v.ours_left else "right", v.realism, v.fidelity, *preferred,
            datetime.fromtimestamp(v.answered, UTC).isoformat(timespec="seconds"), f"{v.seconds:.1f}",
            int(v.volunteer not in excluded),
        ]  # fmt: skip
        writer.writerow([inert(value) for value in row])
    return text.getvalue()


def inert(value: object) -> object:
    """The value, so that no spreadsheet takes a text for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def table_text(summary: Summary) -> str:
    """The results as Markdown."""
    lines = [
        f"# User study: how often {summary.ours} was preferred",
        "",
        summary.counts,
        "",
        f"| {summary.ours} against | question | votes | preferred | 95% (Wilson) | 95% (volunteers resampled) |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for r in summary.rates:
        lines.append(
            f"| {r.competitor} | {r.question} | {r.votes} | {100 * r.share:.1f}% | "
            f"{percent(r.wilson)} | {percent(r.resampled)} |"
        )
    return "\n".join([*lines, "", summary.agreement_text])


def percent(interval: tuple[float, float]) -> str:
    """An interval in percent; a dash where it is undefined."""
    return "–" if math.isnan(interval[0]) else f"{100 * interval[0]:.1f} – {100 * interval[1]:.1f}"


def rate_rows(summary: Summary) -> list[dict[str, object]]:
    """table.csv, a row a rate."""
    return [
        {
            "ours": summary.ours,
            "competitor": inert(r.competitor),
            "question": r.question,
            "votes": r.votes,
            "preferred": f"{r.share:.6f}",
            "wilson_low": f"{r.wilson[0]:.6f}",
            "wilson_high": f"{r.wilson[1]:.6f}",
            "resampled_low": f"{r.resampled[0]:.6f}",
            "resampled_high": f"{r.resampled[1]:.6f}",
        }
        for r in summary.rates
    ]
