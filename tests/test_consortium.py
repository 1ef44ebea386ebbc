"""A consortium's file: everything wrong with it is said at once, each at its line."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from nvflare.apis.utils.format_check import name_check

from fl_app.cli.__main__ import main
from fl_app.errors import ConfigError
from provisioning.consortium import Consortium, load_consortium, parse_consortium

EXAMPLES = sorted((Path(__file__).parents[1] / "provisioning" / "examples").glob("*.yaml"))
GOOD = """\
name: spleen
server:
  hosts: [fl.example.org]
sites:
  - {name: site-a, organisation: hospital_a}
administrators:
  - {email: lead@example.org, role: lead}
"""


@pytest.fixture(name="fedspleen")
def fedspleen_in_process(monkeypatch, capsys, tmp_path):
    """Runs the command line in this process, which is quicker than a new one, in the test's own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fl_app.cli.__main__.raise_on_signals", lambda: None)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["fedspleen", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return SimpleNamespace(returncode=ended.value.code or 0, stdout=printed.out, stderr=printed.err)

    return run


def mistakes(text):
    with pytest.raises(ConfigError) as caught:
        parse_consortium(text, "c.yaml")
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


def mistake(old, new):
    assert old in GOOD
    lines = mistakes(GOOD.replace(old, new))
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_right(path):
    assert load_consortium(path).sites


def test_a_short_file_is_enough():
    consortium = parse_consortium(GOOD)
    assert consortium.server.port == consortium.server.opened_port == 8002
    assert (consortium.certificates.root_days, consortium.certificates.kit_days) == (3650, 365)


def test_every_mistake_is_reported_at_once_at_its_line():
    text = """\
nme: spleen
server:
  hosts: [http://fl.example.org, 10.0.0.300]
  prt: 8002
  port: 70000
  bind: everything
sites:
  - {nam: site-a}
  - {name: server, organisation: hospital-b}
administrators:
  - {email: lead, role: leed}
certificates:
  root_days: 100
  kit_days: 200
"""
    expected = [
        "c.yaml:1 name: missing - of the consortium: letters, digits, '-' and '_'",
        "c.yaml:1 nme: unknown key - allowed here: name, server, sites, administrators, certificates "
        "(did you mean name?)",
        "c.yaml:3 server.hosts.0: 'http://fl.example.org' - a host name such as fl.example.org, or an IPv4 address; "
        "no scheme, no port",
        "c.yaml:3 server.hosts.1: '10.0.0.300' - an IPv4 address is four numbers up to 255",
        "c.yaml:4 server.prt: unknown key - allowed here: hosts, port, listen_port, bind, transport, organisation "
        "(did you mean port?)",
        "c.yaml:5 server.port: 70000 - 65535 or less",
        "c.yaml:6 server.bind: 'everything' - one of all, loopback",
        "c.yaml:8 sites.0.nam: unknown key - allowed here: name, organisation, own_key (did you mean name?)",
        "c.yaml:8 sites.0.name: missing - the site's identity: letters, digits, '-' and '_'",
        "c.yaml:8 sites.0.organisation: missing - whose site this is: letters, digits and '_'",
        "c.yaml:9 sites.1.organisation: 'hospital-b' - letters, digits and '_', at most 64 (FLARE's rule for "
        "organisations)",
        "c.yaml:11 administrators.0.email: 'lead' - an e-mail address of at most 64 characters, such as "
        "lead@example.org",
        "c.yaml:11 administrators.0.role: 'leed' - one of lead, site-admin, member (did you mean lead?)",
        "c.yaml:14 certificates.kit_days: 200 - at most root_days: no certificate outlives the one that signed it",
    ]
    found = mistakes(text)
    assert [line for line in found if "sites.1.name" not in line] == expected
    assert any(line.startswith("c.yaml:9 sites.1.name: 'server' - another name: ") for line in found)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("site-a", "../a", "letters, digits"),
        ("site-a", "a" * 41, "at most 40"),
        ("site-a", '"a\\n"', "letters, digits"),
        ("site-a", "CON", "another name"),
        ("site-a", "1", "a text"),
        ("{name: site-a,", "{name: A, organisation: h}\n  - {name: a,", "each name once"),
        ("[fl.example.org]", "[]", "at least one host name"),
        ("[fl.example.org]", "[a.org, A.org]", "each name once"),
        ("[fl.example.org]", "[fl_1.org]", "a host name"),
        ("role: lead", "role: member", "at least one administrator with role: lead"),
        ("- {email", "- {email: b@x.org, role: site-admin, organisation: other}\n  - {email", "b@x.org"),
        ("lead@example.org", "a/b@example.org", "an e-mail address"),
        ("lead@example.org", '"lead@example.org\\n"', "an e-mail address"),
        ("  - {name: site-a, organisation: hospital_a}", "  []", "at least one site"),
    ],
)
def test_what_is_not_allowed(old, new, words):
    assert words in mistake(old, new)


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="there is no such consortium file"):
        load_consortium(tmp_path / "nowhere.yaml")
    assert mistakes("- 1") == [
        "c.yaml:1: a consortium file holds keys such as 'name:', 'server:' and 'sites:', not [1]"
    ]
    assert len(mistakes("")) == 4
    assert "not valid YAML" in mistakes("a: [")[0]


def test_names_that_pass_here_pass_in_flare():
    for text in EXAMPLES:
        consortium = load_consortium(text)
        for site in consortium.sites:
            assert not name_check(site.name, "client")[0] and not name_check(site.organisation, "org")[0]
        assert not any(name_check(each.email, "admin")[0] for each in consortium.administrators)
        assert not any(name_check(host, "host_name")[0] for host in consortium.server.hosts)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(["name", "server", "sites", "administrators", "certificates", "other"])


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(keys, anything))
def test_any_file_is_right_or_ends_in_sentences(values):
    try:
        assert isinstance(parse_consortium(yaml.safe_dump({**yaml.safe_load(GOOD), **values})), Consortium)
    except ConfigError as error:
        assert str(error)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(GOOD)), st.integers(0, 30), st.text("{}[]:-,&*!|>'\"#%@ \n\tab1", max_size=6))
def test_any_change_of_the_text_is_right_or_ends_in_sentences(start, length, new):
    try:
        parse_consortium(GOOD[:start] + new + GOOD[start + length :])
    except ConfigError as error:
        assert str(error)
