"""The report: what it works out, and the page it makes."""

import base64
import dataclasses
import math
import re
from typing import Any

import pytest
import torch

import pabee_fast as pf
from pabee_fast.calibration.risks import Risk, answers
from pabee_fast.report.claims import claims
from pabee_fast.report.metrics import METRICS
from pabee_fast.report.page import tag, text
from pabee_fast.report.rule import Clock, Rule, Stored
from pabee_fast.report.sections import in_short, report
from pabee_fast.report.study import Candidates, Study, looks_at_rows
from tests.calibration.traces import CONDITIONS, made_up
from tests.report.pages import read

HOSTILE = '<script>alert("$x$ & y")</script>'


def study(rows: int = 120, seeds: int = 1, kind: str = "label", **changes: Any) -> Study:
    """Of made-up traces, whose labels are the first one's last answers but for some rows."""
    classes = 1 if kind == "value" else 3
    first = made_up(rows, classes=classes, kind=kind)  # type: ignore[arg-type]
    labels = first.labels
    assert labels is not None
    labels = labels + 0.1 * torch.arange(rows).remainder(7) if kind == "value" else labels.roll(1, 0)
    labels[: rows // 2] = answers(first.logits[-1], first.kind)[: rows // 2]
    traces = [
        dataclasses.replace(first, logits=first.logits + seed * torch.randn(first.logits.shape), labels=labels)
        for seed in range(seeds)
    ]
    generator = torch.Generator().manual_seed(9)
    shuffled = labels[torch.randperm(rows, generator=generator)]
    given: dict[str, Any] = {
        "model": "a model", "data": "some rows", "texts": [(f"text {i}",) for i in range(rows)],
        "traces": tuple(traces), "truncated": {3: (shuffled,)}, "tolerance": 0.5 if kind == "value" else None,
    }  # fmt: skip
    return Study(**given | changes)


def test_a_cross_fitted_point_answers_each_half_by_what_the_other_chose() -> None:
    made = study()
    candidates = Candidates(made)
    point = candidates.best(looks_at_rows, 0.6, "best")
    assert point is not None
    trace, (one, other) = made.traces[0], candidates.halves
    for policy, half in zip(point.policies, (other, one), strict=True):
        found = pf.replay(trace, policy)
        assert torch.equal(point.answers[0][half], answers(found.logits, "label")[half])
        choosing = one if half is other else other
        seen = pf.replay(trace.select(choosing), policy)
        assert 1 / seen.layer_ratio <= 0.6
    assert point.score[0] == METRICS["accuracy"](point.answers[0], made.labels)
    assert sorted(torch.cat(candidates.halves).tolist()) == list(range(120))


@pytest.mark.parametrize("metric", ["accuracy", "macro-F1"])
def test_no_candidate_does_better_on_the_half_that_chooses(metric: str) -> None:
    made = study(60, metric=metric)
    candidates = Candidates(made)
    point = candidates.best(looks_at_rows, 0.7, "best")
    assert point is not None
    half = candidates.halves[0]
    replayer = pf.Replayer(made.traces[0].select(half))

    def score(policy: pf.Policy) -> float:
        return METRICS[metric](answers(replayer.replay(policy).logits, "label"), made.labels[half])

    rivals = candidates.policies[::40]
    able = [policy for policy in rivals if 1 / replayer.replay(policy).layer_ratio <= 0.7]
    best = [score(policy) for policy in able if not isinstance(policy, pf.FixedDepth)]
    assert score(point.policies[0]) >= max(best)


def test_every_claim_has_a_test_and_is_adjusted_for_their_number() -> None:
    made = study(300)
    found = claims(made, Candidates(made))
    assert [claim.test for claim in found] == ["McNemar, exact"] * 4
    against_truncated = found[0]
    assert "truncated to 3 layers" in against_truncated.second
    # The truncated model's answers are shuffled labels.
    assert against_truncated.verdict == "better"
    assert against_truncated.low > 0
    assert all(claim.p_value <= claim.adjusted <= 1 for claim in found)
    assert found[-1].second == "full depth"


def test_a_seed_is_one_of_several_pairs_of_a_bootstrap() -> None:
    made = study(80, seeds=2)
    assert {claim.test for claim in claims(made, Candidates(made))} == {"paired bootstrap"}


@pytest.mark.parametrize(("kind", "seeds"), [("label", 1), ("label", 2), ("label_set", 1), ("value", 1)])
def test_a_page_answers_every_question_for_every_kind_of_answer(kind: str, seeds: int) -> None:
    made = study(60, seeds, kind, facts={"hardware": "a machine", "dtype": "float32"}, stored=Stored(pf.FixedDepth(4)))
    page = report([made])
    reader = read(page)
    said = " ".join(reader.words)
    for question in (
        "How good is each head?", "What does speed cost?", "Is any of it better", "err independently?",
        "later layers undo", "Where do rows leave?", "ensemble of all heads", "truncated to 3", "a machine", "float32",
        "Left earliest by", "Left latest by", "60", "Is the stored rule fine?", "nothing is promised of it",
    ):  # fmt: skip
        assert question in said, question
    assert ("±" in said) == (seeds > 1) or "so no ± is shown" in said
    assert sum(name == "img" for name, _ in reader.seen) == 5
    assert report([made]) == page, "the same study, the same page"


def test_the_page_refers_to_nothing_outside_and_escapes_what_it_shows() -> None:
    made = study(60, model=HOSTILE, data=HOSTILE, texts=[(HOSTILE, HOSTILE)] * 60, label_names=(HOSTILE, "b", "c"))
    page = report([made, made])
    reader = read(page)
    assert "<script" not in page
    assert HOSTILE in " ".join(reader.words)
    links = [value for _, attributes in reader.seen for key, value in attributes.items() if key in ("src", "href")]
    assert len(links) == 12
    assert all(str(link).startswith(("data:image/svg+xml;base64,", "#study-")) for link in links)
    assert not re.search(r"url\(|@import|https?://", page)
    assert text(tag("b", "<")) == "<b>&lt;</b>"


def test_long_texts_are_cut() -> None:
    page = report([study(60, texts=[("w" * 5000,)] * 60)])
    assert "w" * 281 not in page
    assert "w" * 280 + " …" in page


@pytest.mark.parametrize("kind", ["label", "value"])
def test_what_cannot_be_counted_in_some_seed_is_said_so_on_the_page(kind: str) -> None:
    """Two seeds without an error at full depth, and a head that answers all rows alike."""
    made = study(60, 2, kind)
    logits, labels = made.traces[0].logits.clone(), answers(made.traces[0].logits[-1], made.traces[0].kind)
    logits[0] = 0.0
    made = dataclasses.replace(
        made, traces=tuple(dataclasses.replace(trace, logits=logits, labels=labels) for trace in made.traces)
    )
    assert "none" in " ".join(read(report([made])).words)


@pytest.mark.parametrize("last", [1.5, math.nan])
def test_full_depth_that_tells_no_rows_apart_is_refused(last: float) -> None:
    made = study(60, kind="value")
    logits = made.traces[0].logits.clone()
    logits[-1] = last
    with pytest.raises(pf.InputError, match="full depth has no Pearson"):
        dataclasses.replace(made, traces=(dataclasses.replace(made.traces[0], logits=logits),))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"traces": ()}, "needs a trace"),
        ({"texts": [("a",)]}, "1 texts for 120 rows"),
        ({"truncated": {6: ()}}, "has 6 layers, the model 6"),
        ({"metric": "Pearson"}, "accuracy, macro-F1, Matthews"),
        ({"tolerance": 0.5}, "tolerance where answers are values"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(pf.InputError, match=says):
        study(**changes)


def test_seeds_are_of_the_same_rows_with_labels_of_two_kinds() -> None:
    made = study()
    (trace,) = made.traces
    without = pf.Trace(trace.logits, trace.lengths, "label", CONDITIONS)
    with pytest.raises(pf.InputError, match="needs labels"):
        study(traces=(trace, without))
    other = dataclasses.replace(trace, logits=trace.logits[1:])
    with pytest.raises(pf.InputError, match="one recipe"):
        study(traces=(trace, other))
    with pytest.raises(pf.InputError, match="two labels or more"):
        study(traces=(dataclasses.replace(trace, labels=torch.zeros(120, dtype=torch.int64)),))


def promised(policy: pf.Policy, epsilon: float, **changes: Any) -> Stored:
    risk = Risk("disagreement")
    guarantee = pf.Guarantee(policy, risk, epsilon, 0.05, rows=500, errors=0, ordering_rows=100, cost=0.5,
                             conditions=CONDITIONS)  # fmt: skip
    return Stored(policy, guarantee, **changes)


def test_a_rule_is_judged_by_its_own_exits_on_these_rows() -> None:
    made = study(400, stored=promised(pf.Patience(1), 0.9, clock=Clock(1.75, 100)))
    rule, found = made.rule, pf.replay(made.traces[0], pf.Patience(1))
    assert rule is not None
    assert torch.equal(rule.exit_layers, found.exit_layers) and rule.layer_ratio == found.layer_ratio
    own, full = answers(found.logits, "label"), answers(made.traces[0].logits[-1], "label")
    assert rule.differing == rule.errors == int((own != full).sum()) > 0
    said = " ".join(read(report([made])).words)
    share = f"{rule.differing / 400:.2%}"
    for words in (share, "1.75x", f"{found.layer_ratio:.2f}x", f"{METRICS['accuracy'](own, made.labels):.4f}", "kept"):
        assert words in said[: said.index("How good is each head?")], words
    lines = list(in_short(made))
    assert lines[0].startswith("a model on some rows: accuracy ") and share in " ".join(lines)


@pytest.mark.parametrize(
    ("epsilon", "void", "says"),
    [
        (0.9, (), "is kept: "),
        (0.01, (), "is broken here, "),
        (0.9, ("the tokenizer is another",), "is void here: the "),
    ],
)
def test_whether_the_promise_is_kept_is_said(epsilon: float, void: tuple[str, ...], says: str) -> None:
    made = study(400, stored=promised(pf.Patience(1), epsilon, void=void))
    assert made.rule is not None and says in made.rule.verdict
    assert says in " ".join(in_short(made))


def test_a_few_errors_above_the_promise_are_called_chance() -> None:
    (trace,) = study(400).traces
    rule = Rule.of(promised(pf.Patience(1), 0.01), trace, None)
    within = dataclasses.replace(rule, errors=6)
    assert "is not contradicted: 1.50% of these rows against 1.00% promised, within chance" in within.verdict


def test_without_a_stored_rule_the_report_says_how_to_have_one() -> None:
    assert "pabee-fast tune chooses one" in " ".join(in_short(study(60)))
    assert "No rule is stored with the model" in " ".join(read(report([study(60)])).words)


def svgs(page: str) -> list[str]:
    return [base64.b64decode(found).decode() for found in re.findall(r"svg\+xml;base64,([^\"]+)", page)]


def test_the_stored_rule_is_marked_in_every_figure() -> None:
    marked, unmarked = study(60, stored=Stored(pf.FixedDepth(4))), study(60)
    assert [svg.count("dc2626") > 0 or "stored: fixed-depth:4" in svg for svg in svgs(report([marked]))] == [True] * 5
    assert not any("dc2626" in svg for svg in svgs(report([unmarked])))


def test_lines_end_inside_the_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a deep model, whose curves go on to many times the speed that is shown."""
    drawn: list[Any] = []
    monkeypatch.setattr("pabee_fast.report.figures.as_svg", lambda figure: drawn.append(figure) or "<svg/>")
    deep = made_up(200, layers=12)
    report([study(200, traces=(deep,), texts=[("a",)] * 200, truncated={}, stored=Stored(pf.Patience(2)))])
    for axes in (axes for figure in drawn for axes in figure.axes):
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        for line in axes.lines:
            if line.get_transform() == axes.transData:
                xs, ys = line.get_xdata(), line.get_ydata()
                assert all(left <= x <= right for x in xs) and all(bottom <= y <= top for y in ys if y == y)


def test_heads_that_answer_all_rows_alike_are_told_of_on_the_page() -> None:
    made = study(120)
    logits = made.traces[0].logits.clone()
    logits[1] = logits[1, :1]
    made = dataclasses.replace(made, traces=(dataclasses.replace(made.traces[0], logits=logits),))
    assert "The head of layer 2 answers 95% of the rows or more alike" in " ".join(read(report([made])).words)


def test_a_metric_without_a_value_is_said_in_words() -> None:
    from pabee_fast.report.sections import _number, _p, _percent

    assert _number((math.nan, 0.0)) == _percent((math.nan, 0.0)) == _p(math.nan) == "none"
    assert _number((0.5, 0.01)) == "0.5000 ± 0.0100"
