"""The report's sections, in the order of its questions."""

import math
from collections.abc import Iterator, Sequence

import torch

from pabee_fast.calibration.alike import told_of_alike_heads
from pabee_fast.calibration.replay import Replayer
from pabee_fast.calibration.risks import answers
from pabee_fast.extras import require
from pabee_fast.policies import Policy
from pabee_fast.report import figures
from pabee_fast.report.claims import LEVEL, claims
from pabee_fast.report.metrics import neighbour_errors, overthinking
from pabee_fast.report.page import Html, facts, figure, page, table, tag, tiles
from pabee_fast.report.study import Candidates, Study, looks_at_rows, mean_sd

EXAMPLES = 6
SHORT = 280
"""Characters of an example that are shown."""
CLOSE = 0.01
"""How far below full depth's metric an operating point may be: one point."""


def report(studies: Sequence[Study]) -> str:
    """Return the page as HTML; the same for the same studies.

    Args:
        studies: a section each.

    Raises:
        PabeeFastError: scikit-learn, scipy or matplotlib is not installed.
    """
    require("matplotlib")
    title = "Early exits: what they save and what they cost"
    links = [tag("a", f"{study.model} on {study.data}", href=f"#study-{i}") for i, study in enumerate(studies)]
    return page(
        title,
        tag("h1", title),
        tag("p", "Speed-ups are by layers: tokens x layers of full depth over those spent. They bound what wall-clock "
                 "can gain; heads, exit steps and compaction are not counted. Every axis of speed grows to the right."),
        tag("nav", *links) if len(links) > 1 else "",
        *(tag("section", *_study(study), id=f"study-{i}") for i, study in enumerate(studies)),
    )  # fmt: skip


def _study(study: Study) -> Iterator[Html]:
    candidates = Candidates(study)
    curves = list(candidates.curves())
    yield tag("h2", f"{study.model} on {study.data}")
    yield from _rule(study)
    yield _facts(study)
    yield from _summary(study, candidates)
    yield from _heads(study)
    yield from _curves(study, candidates, curves)
    yield from _claims(study, candidates)
    yield from _errors(study)
    yield from _overthinking(study)
    yield from _exits(study, candidates)


def _rule(study: Study) -> Iterator[Html]:
    yield tag("h3", "Is the stored rule fine?")
    rule = study.rule
    if rule is None:
        yield tag("p", "No rule is stored with the model: pabee-fast tune chooses one, and promises what it may cost.")
        return
    full = study.score(study.full_depth[:1])
    yield tag("p", tag("code", rule.stored.policy), f": {rule.verdict}.")
    own = study.score((rule.answers(study.traces[0]),))
    clock = rule.stored.clock
    yield tiles(
        [
            (f"{study.main_metric}; full depth has {_number(full)}", _number(own)),
            ("of the rows are answered otherwise than at full depth", f"{rule.differing / len(rule.exit_layers):.2%}"),
            (f"by layers; mean exit layer {rule.mean_exit_layer:.2f} of {study.layers}", f"{rule.layer_ratio:.2f}x"),
            ("by the clock", "none" if clock is None else f"{clock.speed:.2f}x"),
        ]
    )
    told = [("disagreement with full depth", rule.disagreement)]
    if rule.stored.guarantee is not None:
        told.append(("what was promised", rule.stored.guarantee.statement()))
    if clock is not None:
        told.append(
            ("the clock", f"{clock.rows:,} of these rows, tokenized beforehand; full depth and the rule by turns")
        )
    yield facts(told)
    shares = [float((rule.exit_layers == layer).double().mean()) for layer in range(1, study.layers + 1)]
    rows = [[f"layer {layer}", f"{100 * share:.1f} %"] for layer, share in enumerate(shares, 1) if share]
    yield table(["left after", "rows"], rows)


def in_short(study: Study) -> Iterator[str]:
    """Yield what a terminal shows of a study: whether its stored rule is fine."""
    rule, full = study.rule, _number(study.score(study.full_depth[:1]))
    yield f"{study.model} on {study.data}: {study.main_metric} {full} at full depth"
    if rule is None:
        yield "  no rule is stored with the model: pabee-fast tune chooses one"
        return
    own = _number(study.score((rule.answers(study.traces[0]),)))
    clock = "" if rule.stored.clock is None else f", {rule.stored.clock.speed:.2f}x by the clock"
    yield f"  stored {rule.stored.policy}: {study.main_metric} {own}, {rule.layer_ratio:.2f}x by layers{clock}"
    yield f"  differs from full depth on {rule.disagreement}"
    yield f"  {rule.verdict}"


def _facts(study: Study) -> Html:
    lengths = study.traces[0].lengths
    seeds = len(study.traces)
    own = [
        ("rows", f"{len(lengths):,}"),
        ("tokens a row", f"{int(lengths.min())} to {int(lengths.max())}, mean {float(lengths.double().mean()):.1f}"),
        ("layers", study.layers),
        ("seeds", f"{seeds}; ± is the standard deviation over them" if seeds > 1 else "1, so no ± is shown"),
        ("truncated models", ", ".join(f"{d} layers ({len(a)})" for d, a in sorted(study.truncated.items())) or "none"),
    ]
    if study.tolerance is not None:
        own.append(("right", f"an answer within {study.tolerance:g} of its label"))
    return facts([*own, *(study.facts or {}).items()])


def _summary(study: Study, candidates: Candidates) -> Iterator[Html]:
    full = study.score(study.full_depth)
    best = candidates.best(looks_at_rows, 0.999, "")
    near = [
        point
        for k in range(study.layers - 1, 0, -1)
        if (point := candidates.best(looks_at_rows, k / study.layers, "")) is not None
        and point.score[0] >= full[0] - CLOSE
    ]
    undone = mean_sd([overthinking(flags).share for flags in study.right])
    yield tiles(
        [
            (f"full depth, {study.main_metric}", _number(full)),
            ("best exit rule", _number(best.score) if best else "none"),
            (
                f"most speed-up within {CLOSE:g} of full depth, by settings that other rows chose",
                f"{max(point.speed[0] for point in near):.2f}x" if near else "none",
            ),
            ("rows undone by later layers", _percent(undone)),
        ]
    )


def _heads(study: Study) -> Iterator[Html]:
    yield tag("h3", "How good is each head?")
    says = f"{study.main_metric} of every head alone, of all heads together, and of models truncated to that depth."
    yield figure(figures.heads_figure(study), says)
    names, first, trace = study.metrics, study.traces[0].first_layer, study.traces[0]
    if said := told_of_alike_heads(list(trace.logits[first - 1 :]), trace.kind, first):
        yield tag("p", said[0].upper() + said[1:] + ".")
    rows: list[list[str]] = [
        [f"head {layer}", *(_number(study.score(tuple(heads[i] for heads in study.heads), name)) for name in names)]
        for i, layer in enumerate(range(first, study.layers + 1))
    ]
    rows[-1][0] += " (full depth)"
    rows.append(["ensemble of all heads", *(_number(study.score(study.ensemble, name)) for name in names)])
    for depth, answered in sorted(study.truncated.items()):
        rows.append([f"truncated to {depth}", *(_number(study.score(answered, name)) for name in names)])
    yield table(["", *names], rows)


def _curves(study: Study, candidates: Candidates, curves: Sequence[tuple[str, Sequence[object]]]) -> Iterator[Html]:
    yield tag("h3", "What does speed cost?")
    yield figure(
        figures.curves_figure(study, curves),  # type: ignore[arg-type]
        f"{study.main_metric} against speed-up by layers. A rule's settings (threshold, patience, first layer, every) "
        "are chosen on one half of the rows and answer the other half, so no point is flattered by the choice.",
    )
    full, rows = study.score(study.full_depth)[0], []
    for rule, _ in curves:
        chosen = candidates.cheapest(rule, full - CLOSE)
        if chosen is not None:
            cost, score = candidates.figures(chosen)
            rows.append([rule, tag("code", candidates.policies[chosen]), f"{1 / cost:.2f}x", f"{score:.4f}"])
    caption = (
        f"The fastest setting of each rule within {CLOSE:g} of full depth ({full:.4f}), chosen on all of these rows: a "
        "place to start, and no promise; pabee-fast tune makes one."
    )
    yield table(["rule", "setting", "speed-up", study.main_metric], rows, caption=caption, texts=2)


def _claims(study: Study, candidates: Candidates) -> Iterator[Html]:
    yield tag("h3", "Is any of it better, or only luckier?")
    found = claims(study, candidates)
    rows = [
        [
            claim.first,
            claim.second,
            f"{claim.difference:+.4f}",
            f"{claim.low:+.4f} to {claim.high:+.4f}",
            claim.test,
            _p(claim.p_value),
            _p(claim.adjusted),
            tag("span", claim.verdict, class_=claim.verdict if claim.verdict in ("better", "worse") else ""),
        ]
        for claim in found
    ]
    caption = (
        f"Difference in {study.main_metric} on the same rows, with the 95 % interval of a paired bootstrap over rows. "
        f"A verdict needs p <= {LEVEL:g} after Holm's adjustment for {len(found)} claims."
    )
    head = ["this", "against", "difference", "95 % interval", "test", "p", "adjusted", "verdict"]
    yield table(head, rows, caption=caption, texts=2)


def _errors(study: Study) -> Iterator[Html]:
    yield tag("h3", "Do neighbouring heads err independently?")
    yield tag(
        "p",
        "PABEE's theorem assumes that they do: then a head is wrong as often after a wrong head as after a right one, "
        "and several heads in a row agree on a wrong answer as rarely as the product of their error rates says.",
    )
    says = "Left: how often a head is wrong where the head before was wrong, and where it was right. Right: how often "
    yield figure(figures.neighbours_figure(study), says + "several heads in a row are all wrong (logarithmic).")
    every = [neighbour_errors(flags, study.traces[0].first_layer) for flags in study.right]
    rows = [
        [
            f"{pair.layer} to {pair.layer + 1}",
            _percent(mean_sd([seed[i].after_right for seed in every])),
            _percent(mean_sd([seed[i].after_wrong for seed in every])),
            _percent(mean_sd([seed[i].independent for seed in every])),
        ]
        for i, pair in enumerate(every[0])
    ]
    yield table(["layers", "P(wrong | right before)", "P(wrong | wrong before)", "both, if independent"], rows)


def _overthinking(study: Study) -> Iterator[Html]:
    yield tag("h3", "What do later layers undo?")
    found = [overthinking(flags) for flags in study.right]
    share, of_errors = mean_sd([seed.share for seed in found]), mean_sd([seed.of_errors for seed in found])
    yield tag(
        "p",
        f"{_percent(share)} of all rows are wrong at full depth although an earlier head had them right: "
        f"{_percent(of_errors)} of full depth's errors. No exit rule can win back more than that.",
    )
    yield figure(figures.overthinking_figure(study), "These rows, by the last layer whose head was right.")


def _exits(study: Study, candidates: Candidates) -> Iterator[Html]:
    yield tag("h3", "Where do rows leave?")
    full = study.score(study.full_depth)[0]
    chosen: list[Policy] = [] if study.stored is None else [study.stored.policy]
    for rule in dict.fromkeys(candidates.rules):
        best = candidates.cheapest(rule, full - CLOSE) if looks_at_rows(rule) else None
        if best is not None:
            chosen.append(candidates.policies[best])
    if not chosen:
        yield tag("p", f"No rule stays within {CLOSE:g} of full depth.")
        return
    replayers = [Replayer(trace) for trace in study.traces]
    exits = [
        (_called(study, policy), torch.stack([replayer.replay(policy).exit_layers for replayer in replayers]))
        for policy in dict.fromkeys(chosen)
    ]
    says = f"Exit layers of the fastest setting of each rule within {CLOSE:g} of full depth"
    stored = "; the first is the rule stored with the model." if study.stored is not None else "."
    yield figure(figures.exits_figure(study, exits), says + stored)
    yield from _examples(study, chosen[0])


def _called(study: Study, policy: Policy) -> str:
    is_stored = study.stored is not None and policy == study.stored.policy
    return f"stored: {policy}" if is_stored else str(policy)


def _examples(study: Study, policy: Policy) -> Iterator[Html]:
    found = Replayer(study.traces[0]).replay(policy)
    answered = answers(found.logits, study.traces[0].kind)
    order = found.exit_layers.argsort(stable=True).tolist()
    for name, rows in (("earliest", order[:EXAMPLES]), ("latest", order[: -EXAMPLES - 1 : -1])):
        cells = [
            [
                tag("span", _shortened(" / ".join(study.texts[row]))),
                _named(study, study.labels[row]),
                _named(study, answered[row]),
                int(found.exit_layers[row]),
            ]
            for row in rows
        ]
        yield table(["text", "label", "answer", "exit layer"], cells, caption=f"Left {name} by {policy}", texts=3)


def _shortened(words: str) -> str:
    return words if len(words) <= SHORT else words[:SHORT].rstrip() + " …"


def _named(study: Study, answer: torch.Tensor) -> str:
    if study.traces[0].kind == "value":
        return f"{float(answer):.2f}"
    names = study.label_names or tuple(str(i) for i in range(study.traces[0].classes))
    if answer.ndim == 0:
        return names[int(answer)]
    return "|".join(name for name, chosen in zip(names, answer.tolist(), strict=True) if chosen) or "none"


def _number(series: tuple[float, float]) -> str:
    mean, deviation = series
    if math.isnan(mean):
        return "none"
    return f"{mean:.4f}" + (f" ± {deviation:.4f}" if deviation else "")


def _percent(series: tuple[float, float]) -> str:
    mean, deviation = series
    if math.isnan(mean):
        return "none"
    return f"{100 * mean:.1f} %" + (f" ± {100 * deviation:.1f}" if deviation else "")


def _p(value: float) -> str:
    return "none" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
