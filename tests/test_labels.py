"""Labels: every decision is a file, several people lose nothing, and all readers see one table."""

from __future__ import annotations

import csv
import io
import json
import pickle
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray.contracts import InputError
from hcs_ray.labels import Decision, FieldLabel, LabelLog, LabelState, decide, labels_csv, read_labels, undo
from hcs_ray.labels.decision import EVENTS, next_stamp
from hcs_ray.labels.table import field_labels
from hcs_ray.storage import LocalStorage, Storage, open_storage
from hcs_ray.study import open_study
from hcs_ray.verify import verify
from tests import scored_study
from tests.command import hcs_ray, refused
from tests.test_exclusions import drawn_index

KEYS = [f"Week1_22123_B02_s{site}" for site in range(1, 5)]


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path / "study"))
    return open_storage(f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}")


def rows(table: pd.DataFrame) -> dict[str, tuple[str | None, list[str], str]]:
    """Key -> verdict, tags, user."""
    return {row["key"]: (row["verdict"], list(row["tags"]), row["user"]) for row in table.to_dict("records")}


def test_a_day_of_labelling(storage: Storage) -> None:
    first = decide(storage, "Ana", KEYS[:2], verdict="bad", add_tags=["debris"])
    second = decide(storage, "Bo", KEYS[1:3], verdict="unsure", add_tags=["odd", "debris"])
    assert rows(read_labels(storage)) == {
        KEYS[0]: ("bad", ["debris"], "Ana"),
        KEYS[1]: ("unsure", ["debris", "odd"], "Bo"),
        KEYS[2]: ("unsure", ["debris", "odd"], "Bo"),
    }
    decide(storage, "Ana", KEYS[:1], clear=True, remove_tags=["debris"])
    assert KEYS[0] not in rows(read_labels(storage)), "nothing is left to say of it"
    undo(storage, "Ana", second.id)
    log = LabelLog(storage)
    assert log.refresh()
    assert rows(log.table()) == {KEYS[1]: ("bad", ["debris"], "Ana")}
    last = log.last_of("Ana")
    assert last is not None
    assert last.clear
    assert log.last_of("Bo") is None
    log.undo("Ana", last.id)
    assert rows(log.table())[KEYS[0]] == ("bad", ["debris"], "Ana")
    assert log.last_of("Ana") == first
    with pytest.raises(InputError, match=r"no decision .* that could be taken back"):
        log.undo("Bo", last.id)
    assert not log.refresh(), "the log knows what it has written itself"
    assert sorted(storage.sizes(EVENTS)) == [decision.path for decision in log.decisions]


def test_the_table_as_a_file_for_a_spreadsheet(storage: Storage) -> None:
    decide(storage, "Müller, Ana", KEYS[:1], verdict="bad", add_tags=["out of focus", "µ-bubble"])
    decide(storage, "Bo", KEYS[1:2], add_tags=["odd"])
    (one, other) = csv.DictReader(io.StringIO(labels_csv(read_labels(storage)).decode()))
    assert (one["verdict"], one["tags"], one["user"]) == ("bad", "out of focus;µ-bubble", "Müller, Ana")
    assert (other["key"], other["verdict"], other["tags"]) == (KEYS[1], "", "odd")
    assert datetime.fromisoformat(one["time"]).tzinfo is not None


# --- Several people at once -------------------------------------------------------------------------------


def test_people_who_label_at_the_same_moment_lose_nothing(storage: Storage) -> None:
    each = 12
    start = threading.Barrier(4)

    def work(person: int) -> None:
        log = LabelLog(storage)
        start.wait()
        for number in range(each):
            log.decide(f"user{person % 2}", [f"P_B02_s{person * each + number}"], verdict="bad")
            if number % 4 == 3:
                log.refresh()

    threads = [threading.Thread(target=work, args=(person,)) for person in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    table = read_labels(storage)
    assert set(table["key"]) == {f"P_B02_s{number}" for number in range(4 * each)}
    assert len(storage.sizes(EVENTS)) == 4 * each


def test_one_log_is_shared_by_the_threads_of_a_server(tmp_path: Path) -> None:
    log = LabelLog(LocalStorage(tmp_path))
    stop = threading.Event()
    failures: list[BaseException] = []

    def keep(act: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                act()
        except BaseException as error:
            failures.append(error)

    watchers = [threading.Thread(target=keep, args=(act,)) for act in (log.refresh, log.table)]
    for thread in watchers:
        thread.start()
    for number in range(60):
        made = log.decide("Ana", [f"P_B02_s{number}"], verdict="good")
        assert made in log.decisions, "a refresh that began before must not take it away"
    stop.set()
    for thread in watchers:
        thread.join()
    assert not failures
    assert len(log.table()) == 60


USERS = ("ana", "bo", "cy")


def says_something(asked: dict[str, Any]) -> bool:
    """Whether a decision is one that can be made."""
    changes = [asked[name] for name in ("verdict", "clear", "add_tags", "remove_tags")]
    contradicts = (asked["verdict"] and asked["clear"]) or asked["add_tags"] & asked["remove_tags"]
    return any(changes) and not contradicts


DECISIONS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "keys": st.lists(st.sampled_from(KEYS), min_size=1, max_size=3),
        "verdict": st.sampled_from(["good", "bad", "unsure", None]),
        "clear": st.booleans(),
        "add_tags": st.sets(st.sampled_from("xyz"), max_size=2),
        "remove_tags": st.sets(st.sampled_from("xyz"), max_size=2),
    }
)
STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.one_of(
            st.tuples(st.just("decide"), DECISIONS.filter(says_something)),
            st.tuples(st.just("undo"), st.integers(0, 30)),
            st.tuples(st.just("look"), st.none()),
        ),
    ),
    max_size=14,
)


def naive_table(decisions: list[Decision]) -> dict[str, tuple[str | None, list[str], str]]:
    """Key by key: the last one that sets or clears the verdict, and the last word on each tag."""
    undone = [decision.undoes for decision in decisions]
    held = sorted((d for d in decisions if d.undoes is None and d.id not in undone), key=lambda d: d.id)
    found: dict[str, tuple[str | None, list[str], str]] = {}
    for key in sorted({key for decision in held for key in decision.keys}):
        mine = [decision for decision in held if key in decision.keys]
        spoken = [decision for decision in mine if decision.verdict or decision.clear]
        verdict = spoken[-1].verdict if spoken else None
        tags = []
        for tag in sorted({tag for decision in mine for tag in decision.add_tags}):
            words = [d for d in mine if tag in d.add_tags + d.remove_tags]
            tags += [tag] if tag in words[-1].add_tags else []
        if verdict or tags:
            found[key] = (verdict, tags, mine[-1].user)
    return found


@settings(max_examples=40, deadline=None)
@given(STEPS, st.lists(st.integers(-3600, 3600), min_size=3, max_size=3), st.randoms())
def test_any_interleaving_gives_one_table_with_any_clocks(
    steps: list[tuple[int, tuple[str, Any]]], skews_s: list[int], random: Any
) -> None:
    with TemporaryDirectory() as folder:
        storage = LocalStorage(Path(folder))

        def clock(skew_s: int) -> Callable[[], datetime]:
            return lambda: datetime.now(UTC) + timedelta(seconds=skew_s)

        logs = [LabelLog(storage, clock(skew_s)) for skew_s in skews_s]
        made: list[Decision] = []
        for person, (kind, what) in steps:
            log = logs[person]
            before = log.decisions
            if kind == "look":
                log.refresh()
                continue
            if kind == "decide":
                made.append(log.decide(USERS[person], what.pop("keys"), **what))
            else:
                undone = {d.undoes for d in before}
                held = [d for d in before if d.undoes is None and d.id not in undone]
                if not held:
                    continue
                made.append(log.undo(USERS[person], held[what % len(held)].id))
            assert all(seen.id < made[-1].id for seen in before), "what was seen comes before"
        for log in logs:
            log.refresh()
        assert len(storage.sizes(EVENTS)) == len(made) == len({decision.id for decision in made})
        expected = naive_table(made)
        for log in logs:
            assert rows(log.table()) == expected
            assert log.decisions == sorted(made, key=lambda decision: decision.id)
        shuffled = random.sample(made, len(made))
        with TemporaryDirectory() as other:  # files that come in any order, as a copy brings them
            copy = LocalStorage(Path(other))
            late = LabelLog(copy)
            for decision in shuffled:
                copy.put_if_absent(decision.path, decision.to_bytes())
                late.refresh()
            assert rows(late.table()) == rows(read_labels(copy)) == expected


def drawn(number: int, what: dict[str, Any] | int) -> Decision:
    """The decision of some number: what it says, or the number of that which it takes back."""
    names = [f"20261123T12043312345{digit}Z-x-{'0' * 32}" for digit in range(10)]
    about: dict[str, Any] = {"undoes": names[what]} if isinstance(what, int) else what
    about = {name: tuple(set(one)) if isinstance(one, (list, set)) else one for name, one in about.items()}
    return Decision(names[number], f"at {number}", USERS[number % 3], **about)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(DECISIONS.filter(says_something), st.integers(0, 9)), max_size=10),
    st.lists(st.sets(st.integers(0, 9)), max_size=6),
)
def test_labels_that_follow_each_change_are_those_of_all_decisions(
    made: list[dict[str, Any] | int], looks: list[set[int]]
) -> None:
    every = [drawn(number, what) for number, what in enumerate(made)]
    one_by_one = [set(range(count)) for count in range(len(every) + 1)]
    state, told = LabelState(), dict[str, FieldLabel]()
    for look in [*one_by_one, *looks]:  # then some are gone, and others come between or before
        known = [decision for number, decision in enumerate(every) if number in look]
        for key, label in state.follow(reversed(known)).items():
            told.pop(key, None)
            told |= {} if label is None else {key: label}
        assert state.labels() == told == field_labels(known)
    assert {key: (one.verdict, sorted(one.tags), one.user) for key, one in told.items()} == naive_table(known)


def test_a_decision_more_touches_its_own_fields_alone() -> None:
    many = [drawn(0, {"keys": KEYS, "verdict": "bad"}), drawn(1, {"keys": KEYS, "add_tags": ("odd",)})]
    one, undone = drawn(2, {"keys": KEYS[:1], "verdict": "good"}), drawn(3, 2)
    state = LabelState()
    assert len(state.follow(many)) == len(KEYS)
    before = state.labels()
    assert state.follow([*many, one]) == {KEYS[0]: FieldLabel("good", frozenset({"odd"}), one.user, one.time)}
    assert state.follow([*many, one, undone]) == {KEYS[0]: before[KEYS[0]]}
    assert all(state.labels()[key] is before[key] for key in KEYS[1:]), "not computed again"


def test_a_clock_that_runs_ahead_does_not_win_for_an_hour(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    ahead = LabelLog(storage, lambda: datetime.now(UTC) + timedelta(hours=1))
    ahead.decide("ana", KEYS[:1], verdict="bad")
    decide(storage, "bo", KEYS[:1], verdict="good")
    assert rows(read_labels(storage))[KEYS[0]] == ("good", [], "bo")
    unseen = LabelLog(storage)  # bo did not look before: then the clocks decide, as the docstring says
    made = unseen.decide("bo", KEYS[:1], verdict="unsure")
    assert made.id < ahead.decisions[0].id
    assert rows(read_labels(storage))[KEYS[0]][0] == "good"
    end = f"99991231T235959999999Z-ana-{'0' * 32}"
    with pytest.raises(InputError, match=r"its time cannot be followed; delete that file"):
        next_stamp(datetime.now(UTC), end)


# --- Files that are not ours, and words that cannot be ------------------------------------------------------

GOOD_ID = f"20261123T120433123456Z-ana-{'a' * 32}"


def event(**changes: Any) -> bytes:
    """A sound file of `GOOD_ID`, with some keys changed."""
    document = {"format": 1, "id": GOOD_ID, "time": "2026-11-23T12:04:33.123456Z", "user": "ana",
                "keys": [KEYS[0]], "verdict": "bad"}  # fmt: skip
    return json.dumps(document | changes).encode()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        (f"{GOOD_ID}.json", b"", "damaged"),
        (f"{GOOD_ID}.json", event()[:-20], "damaged"),
        (f"{GOOD_ID}.json", b"\xff\xfe", "damaged"),
        (f"{GOOD_ID}.json", b"[1]", "damaged"),
        (f"{GOOD_ID}.json", b"[" * 100_000, "damaged"),
        (f"{GOOD_ID}.json", event(verdict="awful"), "damaged"),
        (f"{GOOD_ID}.json", event(keys=KEYS[0]), "damaged"),
        (f"{GOOD_ID}.json", event(extra=1), "damaged"),
        (f"{GOOD_ID}.json", event(format=2), "label format 2; this version reads format 1"),
        (f"{GOOD_ID}.json", event(id="another"), "holds the decision 'another', not that of its name"),
        (f"{GOOD_ID}.json", event(keys=["../../study.yaml"]), "a field is named as in the index"),
        (f"{GOOD_ID}.json", event(user="a\nb"), "use printable characters"),
        (f"{GOOD_ID}.json", event(add_tags=["a;b"]), "use printable characters"),
        (f"{GOOD_ID}.json", event(undoes=GOOD_ID), "says nothing else"),
        (".DS_Store", b"Bud1", "not a label's file; move it elsewhere"),
        ("notes/read me.txt", b"hello", "not a label's file; move it elsewhere"),
        (f"copies/{GOOD_ID}.json", event(), "not a label's file; move it elsewhere"),
    ],
)
def test_a_damaged_or_foreign_file_is_named_and_hides_nothing(
    tmp_path: Path, name: str, data: bytes, words: str
) -> None:
    storage = LocalStorage(tmp_path)
    kept = decide(storage, "bo", KEYS[1:2], verdict="good")
    storage.write(f"{EVENTS}/{name}", data)
    log = LabelLog(storage)
    assert log.refresh()
    assert rows(log.table()) == {KEYS[1]: ("good", [], "bo")}
    (line,) = log.problems
    assert line.startswith(f"{tmp_path}/{EVENTS}/{name}: ")
    assert words in line
    assert "\n" not in line
    assert not log.refresh(), "nothing has changed"
    decide(storage, "bo", KEYS[:1], verdict="good")
    assert len(read_labels(storage)) == 2, "and it keeps nobody from labelling"
    storage.write(f"{EVENTS}/{GOOD_ID}.json", event())
    assert log.refresh()
    assert log.labels()[KEYS[0]].verdict == "good", "as bo decided later"
    assert log.decisions[0].user == "ana"
    assert log.problems == ([] if name.startswith("2026") else [line])
    storage.delete(kept.path)
    assert log.refresh()
    assert KEYS[1] not in log.labels(), "the view is of what is there"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"keys": []}, "needs the key of at least one field"),
        ({"verdict": None}, "needs a verdict, a tag"),
        ({"clear": True}, "cannot give the verdict bad and take it away"),
        ({"verdict": "awful"}, "verdict 'awful': it is one of good, bad, unsure"),
        ({"add_tags": ["x"], "remove_tags": ["x"]}, "cannot add the tag 'x' and take it away"),
        ({"add_tags": [" x"]}, "tag ' x'"),
        ({"add_tags": ["x" * 41]}, "at most 40"),
        ({"add_tags": ["=cmd()"]}, "a letter or digit first"),
        ({"user": ""}, "user ''"),
        ({"user": "a\tb"}, "printable"),
        ({"keys": ["a/b_s1"]}, "key 'a/b_s1'"),
        ({"keys": ["a.b_s1"]}, "key 'a.b_s1'"),
    ],
)
def test_what_cannot_be_decided_is_one_line_and_writes_nothing(
    tmp_path: Path, asked: dict[str, Any], words: str
) -> None:
    storage = LocalStorage(tmp_path)
    told = {"user": "ana", "keys": KEYS[:1], "verdict": "bad"} | asked
    with pytest.raises(InputError) as error:
        decide(storage, told.pop("user"), told.pop("keys"), **told)
    assert words in str(error.value)
    assert storage.sizes() == {}


def test_the_same_tag_in_another_spelling_of_unicode_is_one_tag(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    decide(storage, "ana", KEYS[:1], add_tags=["Pru\u0308fen", "Pr\u00fcfen"])
    assert rows(read_labels(storage))[KEYS[0]][1] == ["Pr\u00fcfen"]


# --- The commands ------------------------------------------------------------------------------------------


def test_labels_from_the_terminal(tmp_path: Path) -> None:
    study = scored_study.make_study(tmp_path / "study", drawn_index())
    one, two, three = drawn_index()["key"][:3]
    root = study.storage.url
    done = hcs_ray("label", root, one, two, "--verdict", "bad", "--tag", "debris", "--user", "Ana")
    assert done.returncode == 0, done.stderr
    assert f"bad, tag debris: {one}, {two}, by Ana" in done.stderr
    assert f"hcs-ray label {root} --undo --user Ana" in done.stderr
    decide(study.storage, "Bo", [two], clear=True, remove_tags=["debris"])
    hcs_ray("label", root, three, "--tag", "odd", "--user", "Bo")
    table = tmp_path / "labels.csv"
    done = hcs_ray(
        "labels", root, "--csv", table, "--json", "--set", "labels.exclude=[bad, unsure, 'tag:odd']"
    )
    assert json.loads(done.stdout) == {
        "labelled fields": 2, "verdicts": {"bad": 1}, "tags": {"debris": 1, "odd": 1},
        "last decided by": {"Ana": 1, "Bo": 1}, "left out (bad, unsure, tag:odd)": 2,
    }  # fmt: skip
    assert [row["key"] for row in csv.DictReader(table.open())] == [one, three]
    done = hcs_ray("label", root, "--undo", "--user", "Bo")
    assert f"taken back: tag odd: {three}" in done.stderr
    assert rows(read_labels(study.storage)) == {one: ("bad", ["debris"], "Ana")}
    listed = tmp_path / "some.csv"
    listed.write_text(f"key,why\n{two},dust\n{three},dust\n")
    done = hcs_ray("label", root, "--keys", listed, "--verdict", "unsure", "--user", "Bo")
    assert f"unsure: {two}, {three}, by Bo" in done.stderr
    hcs_ray("label", root, "--undo", "--user", "Bo")
    assert "Cy has made no decision" in refused("label", root, "--undo", "--user", "Cy")
    assert "has no field W0P0_B99_s1" in refused("label", root, "W0P0_B99_s1", "--verdict", "bad")
    assert "give --verdict, --tag" in refused("label", root, one)
    assert "labels.exclude: 'awful' is none of good, bad, unsure and tag:NAME" in refused(
        "labels", root, "--set", "labels.exclude=awful"
    )
    (tmp_path / f"study/{EVENTS}/stray.txt").write_text("x")
    done = hcs_ray("labels", root)
    assert "stray.txt: not a label's file" in done.stderr
    assert done.returncode == 0
    checked, flaws = verify(study, scored_study.quiet)
    assert [(flaw.stage, flaw.path, flaw.mendable) for flaw in flaws] == [
        ("labels", f"{EVENTS}/stray.txt", False)
    ]
    assert checked > len(read_labels(study.storage))


def test_an_opened_study_sees_one_state_of_the_labels_wherever_it_travels(tmp_path: Path) -> None:
    scored_study.make_study(tmp_path, drawn_index(), {"labels": {"exclude": ["tag:odd", "bad"]}})
    study = open_study(str(tmp_path))
    one, two = drawn_index()["key"][:2]
    decide(study.storage, "Ana", [one], verdict="bad", add_tags=["odd", "even"])
    assert study.excluded().reasons == {one: ("label bad", "tag odd")}
    decide(study.storage, "Ana", [two], verdict="bad")
    assert set(study.excluded().reasons) == {one}
    assert pickle.loads(pickle.dumps(study)).excluded() == study.excluded()
    assert set(open_study(str(tmp_path)).excluded().reasons) == {one, two}
