"""A secret, whatever key it stands under and however it is written, is in nothing that is recorded, written or printed."""

from __future__ import annotations

import json

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from test_security import GUESS, seen

from runner import sync
from runner.config import dump, parameters
from runner.security import secrets, targets

SECRET = "S3CRETpw"
KEYED = "def loss(x, *, way=1, **anything):\n    return (x - way) ** 2\n"
# Words that give a loss a secret, each in its own way.
FORMS = [
    "+loss.a.api_key=[abc,S]",
    "+loss.b.credentials={user:me,pw:S}",
    "+loss.c.credentials.user=me",
    "+loss.c.credentials.pw=S",
    "+loss.d={a:1,password:'x S',b:[{token:S}]}",
    "+loss.e.password=a b S",
    "+loss.f.password='a \"b\" S'",
    "+loss.g.password='it\\'s S'",
    "+loss.h.token='x]} S'",
    "+loss.i.place='pg://u:pa/S@h/x'",
    "+loss.j.place='pg://u:p@s s\\'S@h/x'",
    "+loss.k.place='pg://h/x?user=u&password=S'",
    "+loss.l.places=['http://u:xS@h','http://v:yS@h']",
    "+loss.m.token=S",
    "+loss.m.note='as ${loss.m.token} says'",
    "+loss.n.token=9876543210123",
    "+loss.n.note=9876543210123",
    "tracking.name='of S'",
]


@pytest.fixture
def keyed(tmp_path, monkeypatch):
    (tmp_path / "holds_key.py").write_text(KEYED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(targets.VARIABLE, "holds_key")
    monkeypatch.setattr(secrets.Known, "values", set())
    monkeypatch.setattr(secrets.Known, "pattern", None)
    return ["loss._target_=holds_key.loss", *GUESS, "max_iterations=1"]


def test_no_form_of_a_secret_is_seen(cli, runs, keyed, tmp_path):
    told = cli(*keyed, *(word.replace("S", SECRET) for word in FORMS))
    assert told.code == 0, told
    hidden_in(tmp_path, told)
    params = runs()[0].data.params
    assert "***" in next(tmp_path.rglob("overrides.yaml")).read_text()
    assert params["loss.a.api_key"] == params["loss.b.credentials"] == params["loss.d.password"] == "***"
    assert params["loss.m.note"] == "as *** says" and params["loss.i.place"] == "pg://u:***@h/x"


def hidden_in(folder, *told):
    for secret in (SECRET, "9876543210123"):
        assert not [each for each in told if secret in each.out + each.err], told
        assert seen(folder, secret) == []
        assert not [path for path in folder.rglob("*") if secret in path.name]


def test_no_sweep_over_secrets_shows_one(cli, keyed, tmp_path):
    words = [f"+loss.api_key=a{SECRET},b{SECRET},[c,{SECRET}]", "hydra.sweep.subdir=${hydra.job.override_dirname}"]
    told = [cli("-m", *keyed, *words, f"hydra/launcher={each}") for each in ("basic", "fused")]
    told += [cli("-m", *keyed, *words, "loss.way=x", "sweep.reuse=false")]
    assert [each.code for each in told] == [0, 0, 1], told
    hidden_in(tmp_path, *told)


@pytest.mark.parametrize(
    "words",
    [
        [f"+loss.password=a[ {SECRET}"],
        [f"+loss.password={SECRET}", "max_iterations=-1"],
        [f"++seed.password={SECRET}"],
        [f"+loss.api_key=[a,{SECRET}]", "seed=-1"],
        [f"loss.password=[x,{SECRET}]"],
        [f"optimizer.learning_rate.token='a {SECRET}'"],
        [f"optimizer.learning_rate={{token:{SECRET}}}"],
        ["-m", f"+loss.password=x{SECRET},y{SECRET}", "loss.nowhere=1,2"],
    ],
)
def test_no_error_shows_one(cli, keyed, tmp_path, words):
    told = cli(*words, *keyed[:1])
    assert told.code == 1 and told.err.count("\n") == 1, told
    hidden_in(tmp_path, told)


@pytest.mark.parametrize("uri", ["http://u:pa/S@127.0.0.1:1", "postgresql+psycopg://u:p/S@127.0.0.1:1/d", "nowhere://u:S@h"])
def test_sync_prints_no_password_of_the_store(cli, keyed, capfd, uri):
    uri = uri.replace("S", SECRET)
    assert cli(*keyed, "tracking.offline=true", f"tracking.uri='{uri}'").code == 0
    secrets.Known.values, secrets.Known.pattern = set(), None
    assert sync.main(["--timeout", "0"]) == 1
    out, err = capfd.readouterr()
    assert SECRET not in out + err and err.startswith("error: ") and err.count("\n") == 1


# Signs that quotes of all kinds, YAML, JSON, URIs and sweeps have a meaning for.
VALUES = st.text("ab '\"\\/:@,=[]{}()#&?%!é\t", max_size=12).map(lambda text: f"{text}{SECRET}") | st.just(f"{SECRET} x")
KEYS = st.sampled_from(["password", "api_key", "my_token", "credentials", "Secret", "aws_secret", "db_passwd", "api-key"])


@st.composite
def places(draw) -> tuple[dict, str]:
    """Return a configuration with a secret somewhere in it, and the secret."""
    secret = draw(VALUES)
    if draw(st.booleans()):
        quoted = secret.replace("@", "").replace(":", "").replace("?", "").replace("#", "")
        node: object = {"uri": f"pg://user:{quoted}@host/db"}
        secret = quoted
    else:
        node = {draw(KEYS): draw(st.sampled_from([secret, [1, secret], {"user": "me", "pw": secret}, [{"x": secret}]]))}
    for _ in range(draw(st.integers(0, 3))):
        node = draw(st.sampled_from([{"a": node}, {"b": 1, "c": node}, {"l": [node, 2]}, {"o": {"n": node, "m": "text"}}]))
    note = draw(st.sampled_from(["{}", "see {}!", "x{}y", "it is '{}'"])).format(secret)
    return {"loss": node, "note": note, "seed": 1}, secret


@settings(max_examples=400, deadline=None)
@given(places(), st.sampled_from(list(Quote)))
@example(({"loss": {"password": f"it's {SECRET}"}, "note": f"it's {SECRET}", "seed": 1}, f"it's {SECRET}"), Quote.single)
def test_a_secret_at_any_place_is_hidden_wherever_it_occurs(place, quote):
    plain, secret = place
    secrets.Known.values, secrets.Known.pattern = set(), None
    secrets.learn(plain)
    hidden = secrets.hidden(plain)
    texts = [dump.text(hidden), OmegaConf.to_yaml(OmegaConf.create(hidden)), str(parameters.flat(hidden)), json.dumps(hidden)]
    typed = [f"+{key}={typed_as(value, quote)}" for key, value in plain.items()]
    texts += [secrets.override(each) for each in typed] + [secrets.lines(repr(plain)), secrets.lines(json.dumps(plain))]
    texts += [secrets.lines(f"failed: {each}") for each in (plain["note"], repr(plain["note"]), " ".join(secret.split()))]
    assert not [text for text in texts if SECRET in text]
    assert hidden["seed"] == 1


def typed_as(value: object, quote: Quote) -> str:
    """Return a value as an override has it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{typed_as(each, quote)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(typed_as(each, quote) for each in value) + "]"
    return QuotedString(value, quote).with_quotes() if isinstance(value, str) else str(value)


@settings(max_examples=100, deadline=None)
@given(places(), st.sampled_from(list(Quote)))
def test_the_words_of_a_command_are_heard(place, quote):
    plain, secret = place
    secrets.Known.values, secrets.Known.pattern = set(), None
    word = f"+loss={typed_as(plain['loss'], quote)}"
    OverridesParser.create().parse_override(word)
    secrets.learn_words([word])
    assert SECRET not in secrets.lines(f"see {secret}") and SECRET not in secrets.lines(f"x {plain['note']!r}")


@pytest.mark.parametrize(
    ("plain", "text", "shown"),
    [
        # What is as short, or as common, as a number or a word is hidden where it stands alone.
        ({"token": "abc"}, "token: abc, abc", "token: '***', abc"),
        ({"use_token": True, "token": None, "password": "none"}, "noise=none true", "noise=none true"),
        ({"uri": "postgresql://postgres:postgres@h/db"}, "postgresql: no postgres", "postgresql: no ***"),
        ({"max_token": 100}, "max_iterations=1000", "max_iterations=1000"),
        ({"password": "${oc.env:PASSWORD}"}, "${oc.env:PASSWORD}", "${oc.env:PASSWORD}"),
    ],
)
def test_what_is_no_secret_is_shown(monkeypatch, plain, text, shown):
    monkeypatch.setattr(secrets.Known, "values", set())
    monkeypatch.setattr(secrets.Known, "pattern", None)
    secrets.learn(plain)
    assert secrets.masked(text) == shown
