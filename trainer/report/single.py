"""The report of one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from shlex import quote
from typing import Any

from trainer.report.axes import counted, said
from trainer.report.folder import Run, Session, flat, step_of
from trainer.report.history import PHASES, Written, listed, number
from trainer.report.markup import Markup, rows, tag
from trainer.report.page import curves, footer, page, pill, section, shares, tiles
from trainer.report.pictures import pictures, thinning_note

_OPEN_SAMPLES = 3
_MOST_SESSIONS = 50


def report(run: Run, defaults: Mapping[str, Any]) -> bytes:
    """The page.

    Args:
        run: read.
        defaults: what each key of its config would be had nobody set it.
    """
    drawn, data = pictures(run)
    state, sentence = run.state
    return page(
        f"{run.name}: {state}",
        tag("div", f"Isotrain run · {_kind(run)}", class_="eyebrow"),
        tag("div", tag("h1", run.name), pill(state), class_="head"),
        tag("p", sentence, class_="sentence"),
        tiles(_facts(run)),
        curves(drawn),
        _time(run),
        _ranks(run.history.ranks),
        _left_out(run),
        _samples(run.history.samples.newest_first()),
        _config(run.config, run.options, defaults),
        _passport(run.passport),
        data,
        footer(
            f"Drawn from {run.history.num_steps:,} lines of {run.history.path}. {thinning_note(run.history)}",
            f"{run.history.unread:,} lines could not be read and were passed over." if run.history.unread else "",
            f"To draw it again: isotrain report {quote(str(run.folder))}",
        ),
    )


def _facts(run: Run) -> Iterator[tuple[str, str, str]]:
    """(Name, value, more) of the tiles."""
    history, last, held_out = run.history, run.history.last, run.history.evaluation
    step, unit = step_of(last), run.unit
    yield "step", f"{step:,}", f"of {run.steps:,}" if run.steps else ""
    yield "final loss" if run.exit else "loss", loss_of(last), f"grad norm {said(number(last.get('grad_norm')))}" if last else ""
    if held_out:
        metrics = {name: number(value) for name, value in held_out.items() if name not in ("step", "num_targets") and "/" not in name}
        others = ", ".join(f"{name} {said(value)}" for name, value in metrics.items() if name != "loss" and value == value)
        first = "loss" if "loss" in metrics else next(iter(metrics), "")
        yield f"held-out {first}", said(metrics.get(first, float("nan"))), others or f"at step {step_of(held_out):,}"
    yield (
        f"{unit} seen",
        counted(history.tokens) if history.tokens else "",
        f"{history.tokens:,.0f} targets" if history.tokens < 1e7 else "targets",
    )
    speed = history.tokens / history.seconds if history.seconds else 0
    yield f"{unit}/s", f"{speed:,.0f}" if speed else "", "while stepping"
    count = len(run.sessions)
    yield "time", said(run.seconds, "seconds") if run.seconds else "", f"{count} session{'s' * (count != 1)}" if count else ""
    precision = run.config.get("precision.compute", "")
    yield "layout", run.layout, " · ".join(text for text in (run.device, precision) if text)
    mfu = number(last.get("mfu"))
    yield "MFU", said(mfu, "share") if mfu == mfu else "", "at the last step"
    yield "step takes", said(history.seconds / history.num_steps, "seconds") if mfu == mfu and history.num_steps else "", "on average"
    memory = number(last.get("peak_memory_bytes"))
    yield "peak memory", said(memory, "bytes") if memory == memory else "", "of rank 0"


def loss_of(record: Mapping[str, Any]) -> str:
    """A line's loss, or what it was where it was no number."""
    named, loss = record.get("nonfinite"), number(record.get("loss"))
    if loss == loss:
        return f"{loss:.4f}"
    return str(named.get("loss", "-")) if isinstance(named, dict) else "-" if record else ""


def _kind(run: Run) -> str:
    """What is trained, for what, on what."""
    size = number(run.passport.get("parameters"))
    parts = [
        run.options.get("model", ""),
        f"{counted(size)} parameters" if size > 0 else "",
        run.options.get("objective", ""),
        run.options.get("data", ""),
    ]
    return " · ".join(part for part in parts if part)


def _time(run: Run) -> Markup | None:
    """What time was spent with, in all and by session."""
    phases = _spent(run)
    parts = [tag("div", bar, class_="card")] if (bar := shares(phases)) else []
    if run.sessions:
        told = [_session(n, session, run.sessions[n:]) for n, session in enumerate(run.sessions, 1)]
        hidden = len(told) - _MOST_SESSIONS
        heads = ("session", "began", "layout", "device", "steps", "time", "spent with", "ended")
        table = rows(told[-_MOST_SESSIONS:], heads, class_="numbers")
        parts.append(
            tag("div", table, tag("p", f"{hidden:,} earlier sessions are left out.", class_="dim") if hidden > 0 else None, class_="card")
        )
    return section("Time", *parts) if parts else None


def _spent(run: Run) -> dict[str, float]:
    """Seconds by phase over all sessions; by the steps' own account where sessions have none."""
    total = run.seconds
    phases: dict[str, float] = {}
    for session in run.sessions:
        for phase, seconds in session.phases.items():
            phases[phase] = phases.get(phase, 0.0) + seconds
    if not phases:
        curves_of = {phase: run.history.train.curve(f"seconds.{phase}") for phase in PHASES}
        every = run.history.num_steps
        phases = {
            phase: float(curve.mean[curve.mean == curve.mean].mean()) * every for phase, curve in curves_of.items() if not curve.empty
        }
    rest = total - sum(phases.values())
    return phases | ({"rest": rest} if rest > 0.001 * total else {})


def _session(count: int, session: Session, later: Sequence[Session]) -> tuple[Any, ...]:
    begun, ended = session.begun, session.ended
    until = step_of(session.spent)
    done = f"{session.first + 1:,} to {until:,}" if until > session.first else "-"
    if later and later[0].first < until:
        done += f"; taken up again after {later[0].first:,}"
    rest = session.seconds - sum(session.phases.values())
    bar = shares(session.phases | ({"rest": rest} if rest > 0 else {}), thin=True)
    word = str(ended.get("sentence") or f"code {ended.get('code')}") if ended else ("without a word" if later else "")
    began = str(begun.get("time", "")).replace("T", " ").partition("+")[0]
    layout = tag("span", session.layout, title=str(begun.get("axes", "")))
    device = "CPU" if begun.get("device") == "cpu" else str(begun.get("device", ""))
    return count, began, layout, f"{device}, {begun.get('precision', '?')}", done, said(session.seconds, "seconds"), bar, word


def _ranks(record: Mapping[str, Any] | None) -> Markup | None:
    """Memory and waiting by rank, where a run has told them."""
    if record is None:
        return None
    memory, waited = (listed(record.get(name)) for name in ("peak_memory_bytes", "waited_seconds"))
    slowest, told = record.get("slowest_rank"), []
    for rank in range(min(512, max(len(memory), len(waited)))):
        cells = [
            said(number(column[rank]), kind) if rank < len(column) else "-" for column, kind in ((memory, "bytes"), (waited, "seconds"))
        ]
        told.append((f"rank {rank}", *cells, "slowest: the others wait for it" if rank == slowest else ""))
    table = rows(told, ("", "peak memory", "waited for others", ""))
    return section(f"Ranks at step {step_of(dict(record)):,}", tag("div", table, class_="card")) if told else None


def _left_out(run: Run) -> Markup | None:
    """Steps that were not applied, and values that were not finite."""
    history = run.history
    if not (history.left_out or history.nonfinite):
        return None
    named = ", ".join(f"{step:,}" for step in history.left_out_steps)
    more = f" and {history.left_out - len(history.left_out_steps):,} more" if history.left_out > len(history.left_out_steps) else ""
    strange = [(f"{step:,}", column, value) for step, column, value in history.nonfinite]
    return section(
        "Steps that were not applied",
        tag(
            "div",
            tag("p", f"{history.left_out:,} of {history.num_steps:,}: step {named}{more}.") if history.left_out else None,
            rows(strange, ("step", "value", "was")) if strange else None,
            class_="card",
        ),
    )


def _samples(written: Sequence[Written]) -> Markup | None:
    """What the model wrote, the newest first; older ones are folded away."""
    if not written:
        return None
    items = [
        tag(
            "details",
            tag("summary", f"after step {one.step:,}"),
            [_text(one, *pair) for pair in one.pairs],
            open=place < _OPEN_SAMPLES,
            class_="item",
        )
        for place, one in enumerate(written)
    ]
    return section("What the model writes", tag("div", items, class_="card"))


def _text(written: Written, known: str, text: str) -> Markup:
    if not written.prompted:
        return tag("pre", tag("b", "model  "), text.strip() or "(nothing)", "\n", tag("b", "truth  "), known.strip())
    if known and text.startswith(known):
        return tag("pre", tag("b", known), text[len(known) :].rstrip())
    return tag("pre", text.strip("\n") or "(nothing)")


def _config(config: Mapping[str, Any], options: Mapping[str, str], defaults: Mapping[str, Any]) -> Markup | None:
    """What was set, and all else."""
    if not config:
        return None
    chosen = {key for key, value in config.items() if key != "run.dir" and key in defaults and defaults[key] != value}
    listed = [(key, tag("mark", shown(config[key])), tag("span", shown(defaults[key]), class_="dim")) for key in config if key in chosen]
    first = tag(
        "div",
        rows(listed, ("key", "here", "by default")) if listed else tag("p", "Everything is as it is by default.", class_="dim"),
        class_="card",
    )
    groups: dict[str, list[tuple[str, Any]]] = {}
    for key, value in config.items():
        group, _, name = key.partition(".")
        cell = tag("mark", shown(value)) if key in chosen else shown(value)
        groups.setdefault(group, []).append((name or group, cell))
    blocks = [
        tag(
            "div",
            tag("h3", group, tag("span", f" {options[group]}", class_="dim") if group in options else None),
            rows(pairs, class_="facts"),
        )
        for group, pairs in groups.items()
    ]
    return section(
        "Configuration: what differs from the defaults",
        first,
        tag("details", tag("summary", f"All {len(config)} keys"), tag("div", blocks, class_="columns"), class_="card"),
    )


def shown(value: Any) -> str:
    """A value as it is typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value) if value != "" else "''"


def _passport(passport: Mapping[str, Any]) -> Markup | None:
    if not passport:
        return None
    blocks = []
    plain = [(name, shown(value)) for name, value in passport.items() if not isinstance(value, dict)]
    for title, pairs in (("machine", plain), *((name, flat(value)) for name, value in passport.items() if isinstance(value, dict))):
        cells = [(key, value if isinstance(value, str) else shown(value)) for key, value in pairs]
        blocks.append(tag("div", tag("h3", title), rows(cells, class_="facts")))
    return section("Passport", tag("details", tag("summary", "What ran, on what"), tag("div", blocks, class_="columns"), class_="card"))
