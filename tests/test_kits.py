"""A kit that anything happened to on its way is refused, and what happened is named."""

import io
import json
import os
import shutil
import stat
import zipfile
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fl_app.errors import KitError, ProvisioningError, UsageError
from provisioning import archive
from provisioning.consortium import parse_consortium
from provisioning.flare import start_scripts
from provisioning.kit_file import write_folder
from provisioning.manifest import MANIFEST, SIGNATURE, Manifest, digests
from provisioning.provision import provision
from provisioning.requests import approve_request, assemble_kit, make_request, read_request
from provisioning.revoke import lock_out
from provisioning.signing import load_signing_key, new_signing_key, parse_fingerprint, public_part, sign
from provisioning.verify import unpack_kit, verify_kit
from tests.test_consortium import fedspleen_in_process  # noqa: F401 - the fixture fedspleen

TEXT = """\
name: trial
server: {hosts: [127.0.0.1], port: 1}
sites: [{name: site-a, organisation: hospital_a}, {name: site-b, organisation: hospital_b}]
administrators: [{email: lead@example.org, role: lead}, {email: x@example.org, role: member}]
certificates: {kit_days: 90}
"""
PASSPHRASE = b"correct horse battery"
NOW = datetime.now(timezone.utc)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("consortium")
    return folder, provision(parse_consortium(TEXT), folder)


@pytest.fixture(scope="module")
def kit(made):
    return made[1].archives["site-a"]


@pytest.fixture(scope="module")
def fingerprint(made):
    return made[1].fingerprint


@pytest.fixture(scope="module")
def sealed(kit):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "_SCRYPT_N", 2**14)
        return archive.seal(kit.read_bytes(), PASSPHRASE)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A file that examples of one test write in turn."""
    return tmp_path_factory.mktemp("scratch") / "kit"


def files_of(kit):
    return archive.unpack(kit.read_bytes())[0]


def problems(path, content, fingerprint=None, **options):
    """What verification says about these bytes; whatever it is, unpacking refuses them and writes nothing."""
    path.write_bytes(content)
    target = path.with_name("unpacked")
    try:
        found = verify_kit(path, fingerprint, **options).problems
    except KitError as error:
        found = (str(error),)
    if found:
        with pytest.raises(KitError):
            unpack_kit(path, target, fingerprint, **options)
        assert not target.exists()
    assert all("\n" not in each and "Traceback" not in each for each in found)
    return found


def resigned(made, files, **changes):
    """A kit that the consortium itself signs, whatever is in it."""
    key = load_signing_key((made[0] / "state/signing.pem").read_bytes())
    content = {name: data for name, data in files.items() if name not in (MANIFEST, SIGNATURE)}
    manifest = {**json.loads(files[MANIFEST]), "signing_key": public_part(key).hex(), **changes}
    manifest = Manifest.model_validate({**manifest, "files": digests(content)}).as_bytes()
    return archive.pack({**content, MANIFEST: manifest, SIGNATURE: sign(key, manifest)})


def test_a_good_kit_says_everything_about_itself(kit, fingerprint):
    report = verify_kit(kit, fingerprint)
    assert report.good and not report.notes
    assert (report.consortium, report.participant, report.kind) == ("trial", "site-a", "site")
    assert (report.organisation, report.server, report.fingerprint) == ("hospital_a", "127.0.0.1:1", fingerprint)
    assert report.days_left == 89


def test_an_unpacked_kit_is_as_good_and_its_key_is_private(kit, fingerprint, tmp_path):
    os.umask(os.umask(0o022))
    folder = tmp_path / "a" / "site"
    unpack_kit(kit, folder, fingerprint)
    assert verify_kit(folder, fingerprint).good and not verify_kit(folder, fingerprint).notes
    assert stat.S_IMODE((folder / "startup/client.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and os.access(folder / "startup/start.sh", os.X_OK)
    (folder / "startup/client.key").chmod(0o644)
    assert any("chmod 600" in note for note in verify_kit(folder).notes)


def test_what_a_site_adds_of_its_own_is_no_damage_to_its_folder(kit, tmp_path):
    folder = tmp_path / "site"
    unpack_kit(kit, folder)
    (folder / "log.txt").write_text("a log")
    (folder / "local/resources.json").write_text("{}")
    report = verify_kit(folder)
    assert report.good and any("local/resources.json: this site's own settings" in note for note in report.notes)


def test_a_renewed_kit_replaces_the_old_one_and_nothing_else_does(made, tmp_path, fingerprint):
    copy = shutil.copytree(made[0], tmp_path / "copy")
    folder = tmp_path / "site"
    unpack_kit(made[1].archives["site-a"], folder)
    (folder / "log.txt").write_text("a log")
    renewed = provision(parse_consortium(TEXT), copy, renew=["site-a"]).archives
    unpack_kit(renewed["site-a"], folder, fingerprint)
    assert verify_kit(folder, fingerprint).good and (folder / "log.txt").exists()
    with pytest.raises(KitError, match="holds a kit of site-a of trial, which site-b's kit of trial does not replace"):
        unpack_kit(renewed["site-b"], folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("")
    with pytest.raises(KitError, match="holds no kit: name a new folder"):
        unpack_kit(renewed["site-b"], other)
    assert sorted(path.name for path in other.iterdir()) == ["precious"]


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_no_byte_of_an_archive_can_be_changed(data, kit, fingerprint, scratch):
    content = bytearray(kit.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    assert problems(scratch, bytes(content), fingerprint)


def test_one_byte_of_any_file_is_noticed_and_the_file_is_named(kit, fingerprint, scratch):
    files = files_of(kit)
    for name, content in files.items():
        changed = bytes([content[0] ^ 1]) + content[1:]
        found = problems(scratch, archive.pack({**files, name: changed}), fingerprint)
        assert any(name in each for each in found), (name, found)
        # the same, changed inside the archive, where its checksum tells as well
        packed = bytearray(kit.read_bytes())
        packed[packed.find(content) + len(content) // 2] ^= 1
        assert any(name in each for each in problems(scratch, bytes(packed), fingerprint))


@pytest.mark.parametrize("name", [MANIFEST, SIGNATURE, "startup/client.key", "local/authorization.json.default"])
def test_a_missing_file_is_named(kit, scratch, name):
    files = files_of(kit)
    del files[name]
    assert any(name in each for each in problems(scratch, archive.pack(files)))


def test_files_that_were_cut_off_or_added_are_named(kit, scratch):
    files = files_of(kit)
    key = files["startup/client.key"]
    found = problems(scratch, archive.pack({**files, "startup/client.key": key[:-9]}))
    assert f"startup/client.key: cut off, {len(key) - 9} of {len(key)} bytes" in found
    found = problems(scratch, archive.pack({**files, "local/custom/evil.py": b"print()"}))
    assert "local/custom/evil.py: added, it is no part of this kit" in found


def test_one_cause_is_told_in_one_sentence(kit, scratch):
    files, name = files_of(kit), "startup/client.crt"
    packed = bytearray(kit.read_bytes())
    packed[packed.find(files[name]) + 100] ^= 1
    assert problems(scratch, bytes(packed)) == (f"{name}: damaged, its bytes do not fit their checksum",)
    without = {each: content for each, content in files.items() if each != name}
    assert problems(scratch, archive.pack(without)) == (f"{name}: missing",)


@pytest.mark.parametrize("name", ["startup/evil.sh", "startup/more.json", "local/custom/evil.py", "local/a.json"])
def test_files_that_were_added_to_a_folder_are_named(kit, tmp_path, name):
    folder = tmp_path / "site"
    unpack_kit(kit, folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("")
    assert f"{name}: added, it is no part of this kit" in verify_kit(folder).problems


def test_links_in_a_folder_are_refused(kit, tmp_path):
    folder = tmp_path / "site"
    unpack_kit(kit, folder)
    (folder / "startup/start.sh").rename(tmp_path / "start.sh")
    (folder / "startup/start.sh").symlink_to(tmp_path / "start.sh")
    found = verify_kit(folder).problems
    assert "startup/start.sh: a link or a special file, which no kit holds" in found
    shutil.move(folder / "local", tmp_path / "local")
    (folder / "local").symlink_to(tmp_path / "local")
    assert "local: a link or a special file, which no kit holds" in verify_kit(folder).problems


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_an_archive_that_was_cut_off_is_refused(data, kit, scratch):
    content = kit.read_bytes()
    length = data.draw(st.integers(0, len(content) - 1))
    assert problems(scratch, content[:length])
    assert problems(scratch, content + b"x" * (length % 50 + 1))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../evil.sh", "a path that leads out of the kit"),
        ("/etc/evil", "a path that leads out of the kit"),
        ("startup/../../evil", "a path that leads out of the kit"),
        ("..\\evil", "a path that leads out of the kit"),
        ("C:evil", "a path that leads out of the kit"),
        ("startup//x", "a name that no kit holds"),
        ("startup/\x1b[31m", "a name that no kit holds"),
        ("startup/x/", "a link or a special file"),
        (MANIFEST, "there twice"),
    ],
)
def test_entries_that_no_kit_holds(kit, scratch, name, words):
    stream = io.BytesIO(kit.read_bytes())
    with zipfile.ZipFile(stream, "a") as opened:
        if name == MANIFEST:
            with pytest.warns(UserWarning, match="Duplicate"):
                opened.writestr(name, b"")
        else:
            opened.writestr(name, b"")
    assert any(words in each for each in problems(scratch, stream.getvalue()))
    assert not (scratch.parent.parent / "evil.sh").exists()


def test_links_and_bombs_in_an_archive(kit, scratch):
    stream = io.BytesIO(kit.read_bytes())
    with zipfile.ZipFile(stream, "a") as opened:
        entry = zipfile.ZipInfo("startup/link")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(entry, "/etc/passwd")
    assert any("startup/link: a link or a special file" in each for each in problems(scratch, stream.getvalue()))
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("startup/zeros", bytes(2**24))
    assert any("more than any kit" in each for each in problems(scratch, stream.getvalue()))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        for number in range(300):
            opened.writestr(str(number), b"")
    assert any("more than any kit" in each for each in problems(scratch, stream.getvalue()))


def test_what_is_no_kit_is_said_to_be_none(tmp_path, scratch):
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    for content in (b"", b"hello", b"PK", empty.getvalue(), b'{"format":"fedspleen sealed kit 1"', b"\n" * 99):
        assert problems(scratch, content, passphrase=PASSPHRASE)
    with pytest.raises(KitError, match="there is no such kit"):
        verify_kit(tmp_path / "nowhere")
    with pytest.raises(KitError, match="not a kit that fedspleen made"):
        verify_kit(tmp_path)


def test_another_consortiums_kit_is_told_by_its_fingerprint(made, tmp_path, fingerprint, scratch):
    other = provision(parse_consortium(TEXT), tmp_path / "other")
    content = other.archives["site-a"].read_bytes()
    assert problems(scratch, content) == ()  # good in itself: only the fingerprint tells
    expected = f"from another consortium: its fingerprint is {other.fingerprint}, not {fingerprint}"
    assert expected in problems(scratch, content, fingerprint)
    # the right root certificate, signed with another key
    files = files_of(made[1].archives["site-a"])
    key = load_signing_key(new_signing_key())
    manifest = {**json.loads(files[MANIFEST]), "signing_key": public_part(key).hex()}
    forged = Manifest.model_validate(manifest).as_bytes()
    forged = archive.pack({**files, MANIFEST: forged, SIGNATURE: sign(key, forged)})
    assert any("from another consortium" in each for each in problems(scratch, forged, fingerprint))
    # the right key's signature, another root certificate
    mixed = {**files, "startup/rootCA.pem": files_of(other.archives["site-a"])["startup/rootCA.pem"]}
    found = problems(scratch, resigned(made, mixed), fingerprint)
    assert "startup/client.crt: signed by another authority than startup/rootCA.pem" in found


def test_a_kit_for_somebody_else_or_with_code_is_refused_whoever_signed_it(made, kit, scratch):
    files = files_of(kit)
    assert problems(scratch, resigned(made, files)) == ()
    others = files_of(made[1].archives["site-b"])
    swapped = {**files, "startup/client.crt": others["startup/client.crt"]}
    found = problems(scratch, resigned(made, swapped))
    assert "startup/client.crt: for site-b, in a kit for site-a" in found
    assert "startup/client.key: does not belong to startup/client.crt" in found
    for name in ("startup/more.sh", "local/custom/x.json", "startup/x.py", "startup/x.so"):
        found = problems(scratch, resigned(made, {**files, name: b""}))
        assert f"{name}: code, or something else that no kit holds" in found
    found = problems(scratch, resigned(made, {**files, "startup/start.sh": b"rm -rf ~"}))
    assert any("startup/start.sh: not the start script of FLARE" in each for each in found)
    scratch.write_bytes(resigned(made, {**files, "startup/start.sh": b"#"}, nvflare="9.9"))
    assert any("FLARE 9.9, which is not installed here" in note for note in verify_kit(scratch).notes)
    found = problems(scratch, resigned(made, {**files, "local/resources.json.default": b'{"class_allow_list": ["*"]}'}))
    assert any("it does not allow the components of fedspleen" in each for each in found)


def test_a_manifest_of_another_format_is_told(kit, scratch):
    files = files_of(kit)
    newer = files[MANIFEST].replace(b"fedspleen kit 1", b"fedspleen kit 2")
    assert any("another format of kits" in each for each in problems(scratch, archive.pack({**files, MANIFEST: newer})))


def test_start_scripts_are_flares_own(made):
    for name, kind, organisation in (("server", "server", "consortium"), ("site-a", "site", "hospital_a")):
        for path, script in start_scripts(kind, name, organisation).items():
            assert (made[0] / "kits" / name / path).read_bytes() == script


def test_dates(kit, fingerprint):
    assert "is this machine's clock right?" in verify_kit(kit, now=NOW - timedelta(days=1)).problems[0]
    late = verify_kit(kit, fingerprint, now=NOW + timedelta(days=91))
    assert len(late.problems) == 1 and "expired on" in late.problems[0] and "lead to renew it" in late.problems[0]
    soon = verify_kit(kit, fingerprint, now=NOW + timedelta(days=80))
    assert soon.good and soon.notes == ("expires in 9 days: ask the lead of trial to renew it",)
    assert not verify_kit(kit, fingerprint, now=NOW + timedelta(days=58)).notes


def test_fingerprints_are_compared_as_people_type_them(kit, fingerprint):
    for typed in (
        fingerprint.upper(),
        fingerprint.replace(" ", ""),
        fingerprint.replace(" ", "-"),
        f" {fingerprint}\n",
    ):
        assert parse_fingerprint(typed) == fingerprint and verify_kit(kit, typed).good
    wrong = ("0" if fingerprint[0] != "0" else "1") + fingerprint[1:]
    assert "from another consortium" in verify_kit(kit, wrong).problems[0]
    for typed in ("", "abc", fingerprint[:-1], fingerprint + "0", "x" * 32):
        with pytest.raises(UsageError, match="32 digits"):
            verify_kit(kit, typed)


def test_a_sealed_kit_opens_with_its_passphrase_only(kit, sealed, fingerprint, scratch):
    assert problems(scratch, sealed, fingerprint, passphrase=PASSPHRASE) == ()
    assert kit.read_bytes()[:200] not in sealed and b"site-a" not in sealed
    assert any("wrong passphrase" in each for each in problems(scratch, sealed, passphrase=b"another passphrase"))
    assert any("cut off: 7 bytes are missing" in each for each in problems(scratch, sealed[:-7], passphrase=PASSPHRASE))
    with pytest.raises(UsageError, match="--passphrase-file"):
        verify_kit(scratch)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_byte_of_a_sealed_kit_can_be_changed(data, sealed, scratch):
    content = bytearray(sealed)
    line = content.index(b"\n")
    content[data.draw(st.integers(0, line + 40) | st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    assert problems(scratch, bytes(content), passphrase=PASSPHRASE)


@settings(max_examples=150, deadline=None)
@example(header={"n": 2**40}, rest=b"")
@example(header={"size": 2**60}, rest=b"")
@example(header={"size": -5, "n": 2**14}, rest=b"")
@given(
    header=st.dictionaries(
        st.sampled_from(["format", "kdf", "n", "r", "p", "cipher", "salt", "nonce", "size", "more"]),
        st.integers() | st.text(max_size=40) | st.none() | st.lists(st.integers(), max_size=2),
        min_size=1,
        max_size=3,
    ),
    rest=st.binary(max_size=40),
)
def test_any_header_is_refused_in_one_sentence_and_at_once(header, rest, sealed, scratch):
    line, _, body = sealed.partition(b"\n")
    changed = json.dumps({**json.loads(line), **header}, separators=(",", ":")).encode()
    content = changed + b"\n" + rest + body
    if content != sealed:
        assert problems(scratch, content, passphrase=PASSPHRASE)


starts = st.sampled_from([b"", b"PK", b"PK\x03\x04", b"PK\x05\x06", b'{"format":"fedspleen sealed kit 1"'])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), starts)
def test_any_bytes_are_no_kit(scratch, content, start):
    assert problems(scratch, start + content, passphrase=PASSPHRASE)


keys = st.sampled_from(["files", "kind", "format", "servers", "x"])
anything = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda each: st.lists(each, max_size=2) | st.dictionaries(keys, each, max_size=3),
    max_leaves=5,
)


@settings(max_examples=20, deadline=None)
@given(value=anything)
def test_any_manifest_and_settings_end_in_sentences(value, made, kit, scratch):
    files = files_of(kit)
    text = json.dumps(value).encode()
    assert problems(scratch, archive.pack({**files, MANIFEST: text}))
    for name in ("startup/fed_client.json", "startup/rootCA.pem", "startup/client.crt", "startup/client.key"):
        assert problems(scratch, resigned(made, {**files, name: text}))


def test_archives_are_the_same_to_the_byte(kit):
    assert archive.pack(files_of(kit)) == kit.read_bytes()


def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    write_folder(tmp_path / "kit", {"a.txt": b"old"})
    monkeypatch.setattr("os.fsync", lambda number: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "kit", {"a.txt": b"new"})
    assert (tmp_path / "kit/a.txt").read_bytes() == b"old"
    assert sorted(path.name for path in (tmp_path / "kit").iterdir()) in (["a.txt"], ["a.txt", "transfer"])


def test_a_site_is_locked_out_by_a_lead_only(made, tmp_path):
    folder = made[0] / "kits"
    with pytest.raises(KitError, match="a site's kit; the kit of a lead is needed"):
        lock_out("site-b", folder / "site-a")
    with pytest.raises(UsageError, match="not the folder of a kit"):
        lock_out("site-b", tmp_path / "nowhere")
    with pytest.raises(UsageError, match="not a site's name"):
        lock_out("site b; shutdown all", folder / "lead@example.org")


def test_the_commands(made, kit, fingerprint, tmp_path, fedspleen):
    good = fedspleen("kit", "verify", kit, "--fingerprint", fingerprint)
    assert good.returncode == 0 and "connects to: 127.0.0.1:1" in good.stdout and fingerprint in good.stdout
    as_json = fedspleen("kit", "verify", kit, "--json")
    report = json.loads(as_json.stdout)
    assert report["good"] and report["participant"] == "site-a" and report["valid_until"].endswith("+00:00")
    (tmp_path / "bad.kit.zip").write_bytes(kit.read_bytes()[:-1])
    bad = fedspleen("kit", "verify", "bad.kit.zip")
    assert bad.returncode == 1 and bad.stderr.startswith("fedspleen: bad.kit.zip: cut off") and not bad.stdout
    bad = fedspleen("kit", "verify", "bad.kit.zip", "--json")
    assert bad.returncode == 1 and json.loads(bad.stdout)["problems"]
    (tmp_path / "short").write_text("abc\n")
    short = fedspleen("kit", "verify", kit, "--passphrase-file", "short")
    assert short.returncode == 2 and "12 characters" in short.stderr
    done = fedspleen("kit", "unpack", kit, tmp_path / "site", "--fingerprint", "0" * 32)
    assert done.returncode == 1 and "from another consortium" in done.stderr and not (tmp_path / "site").exists()
    done = fedspleen("kit", "unpack", kit, tmp_path / "site", "--fingerprint", fingerprint)
    assert done.returncode == 0 and verify_kit(tmp_path / "site").good
    (tmp_path / "site/startup/fed_client.json").write_text("{}")
    changed = fedspleen("kit", "verify", "site")
    assert changed.returncode == 1 and "WRONG: startup/fed_client.json: cut off" in changed.stdout
    nobody = fedspleen("kit", "revoke", "site-b", "--admin", made[0] / "kits" / "lead@example.org")
    assert nobody.returncode == 1 and "does not answer" in nobody.stderr and "Traceback" not in nobody.stderr


OWN = TEXT.replace("organisation: hospital_a}", "organisation: hospital_a, own_key: true}")


@pytest.fixture
def requested(tmp_path):
    """A consortium that waits for site-a's request, and the request."""
    out = tmp_path / "trial"
    done = provision(parse_consortium(OWN), out)
    assert done.waiting == ("site-a",) and "site-a" not in done.archives and not done.removed
    path, request = make_request("site-a", "hospital_a", tmp_path / "key")
    return out, path, request


def test_a_key_that_was_made_at_the_site_stays_there(requested, tmp_path):
    out, path, request = requested
    key = (tmp_path / "key/client.key").read_bytes()
    assert stat.S_IMODE((tmp_path / "key/client.key").stat().st_mode) == 0o600
    done = approve_request(path, parse_consortium(OWN), out, request.fingerprint)
    assert done.new == ("site-a",) and len(done.kept) == 4 and not done.waiting
    assert not any(key in each.read_bytes() for each in out.rglob("*") if each.is_file())
    kit = done.archives["site-a"]
    report = verify_kit(kit, done.fingerprint)
    assert report.good and any("it holds no key" in note for note in report.notes)
    with pytest.raises(KitError, match="it holds no key: `fedspleen kit assemble`"):
        unpack_kit(kit, tmp_path / "site")
    assemble_kit(kit, tmp_path / "key", tmp_path / "site", done.fingerprint)
    assert verify_kit(tmp_path / "site", done.fingerprint).notes == ()
    assert (tmp_path / "site/startup/client.key").read_bytes() == key
    assert stat.S_IMODE((tmp_path / "site/startup/client.key").stat().st_mode) == 0o600
    again = provision(parse_consortium(OWN), out)
    assert set(again.kept) == {"site-a", *done.kept}
    renewed = provision(parse_consortium(OWN), out, renew=["site-a"])
    assert renewed.changed == ("site-a",)
    assemble_kit(renewed.archives["site-a"], tmp_path / "key", tmp_path / "site", done.fingerprint)


def test_a_kit_does_not_go_together_with_another_key(requested, made, tmp_path):
    out, path, request = requested
    kit = approve_request(path, parse_consortium(OWN), out, request.fingerprint).archives["site-a"]
    make_request("site-a", "hospital_a", tmp_path / "other")
    with pytest.raises(KitError, match="the key is not the one"):
        assemble_kit(kit, tmp_path / "other", tmp_path / "site")
    (tmp_path / "other/client.key").write_bytes(b"nonsense")
    with pytest.raises(KitError, match="the key is not the one"):
        assemble_kit(kit, tmp_path / "other", tmp_path / "site")
    with pytest.raises(KitError, match="it holds a key: `fedspleen kit unpack`"):
        assemble_kit(made[1].archives["site-a"], tmp_path / "key", tmp_path / "site")
    with pytest.raises(UsageError, match="cannot be read"):
        assemble_kit(kit, tmp_path / "nowhere", tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_a_site_may_come_with_a_new_key_or_leave_it_to_the_lead(requested, tmp_path):
    out, path, request = requested
    approve_request(path, parse_consortium(OWN), out, request.fingerprint)
    path, request = make_request("site-a", "hospital_a", tmp_path / "new")
    done = approve_request(path, parse_consortium(OWN), out, request.fingerprint)
    assert done.changed == ("site-a",)
    assemble_kit(done.archives["site-a"], tmp_path / "new", tmp_path / "site", done.fingerprint)
    done = provision(parse_consortium(TEXT), out)
    assert done.changed == ("site-a",)
    unpack_kit(done.archives["site-a"], tmp_path / "central", done.fingerprint)
    assert provision(parse_consortium(OWN), out).changed == ("site-a",)
    assert not (out / "kits/site-a/startup/client.key").exists()


def test_requests_that_are_not_approved(requested, tmp_path):
    out, path, request = requested
    wrong = ("0" if request.fingerprint[0] != "0" else "1") + request.fingerprint[1:]
    with pytest.raises(ProvisioningError, match="may have been exchanged on its way"):
        approve_request(path, parse_consortium(OWN), out, wrong)
    with pytest.raises(ProvisioningError, match="not in the consortium's file with own_key: true"):
        approve_request(path, parse_consortium(TEXT), out, request.fingerprint)
    path, request = make_request("site-a", "hospital_b", tmp_path / "b")
    with pytest.raises(ProvisioningError, match="from site-a of hospital_b; the file says hospital_a"):
        approve_request(path, parse_consortium(OWN), out, request.fingerprint)
    with pytest.raises(UsageError, match="name another folder"):
        make_request("site-a", "hospital_a", tmp_path / "b")
    for name, organisation in (("../a", "b"), ("server", "b"), ("a", "b-c")):
        with pytest.raises(UsageError):
            make_request(name, organisation, tmp_path / "c")
    assert not (tmp_path / "c").exists() and provision(parse_consortium(OWN), out).waiting == ("site-a",)


def test_a_changed_request_is_none_or_has_another_fingerprint(tmp_path):
    path, request = make_request("site-a", "hospital_a", tmp_path / "key")
    good = path.read_bytes()
    for position in range(0, len(good), 7):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        try:
            assert read_request(path) == request  # only what is around the request itself
        except KitError as error:
            assert "\n" not in str(error)
    for content in (b"", good[:200], b"\xff" * 50):
        path.write_bytes(content)
        with pytest.raises(KitError, match="no request"):
            read_request(path)


def test_the_commands_of_those_who_keep_their_keys(tmp_path, fedspleen):
    (tmp_path / "c.yaml").write_text(OWN)
    done = fedspleen("provision", "c.yaml")
    assert "waiting for the request of site-a" in done.stdout
    done = fedspleen("kit", "request", "site-a", "--organisation", "hospital_a", "--out", "key")
    assert done.returncode == 0, done.stderr
    told = done.stdout.split("by telephone: ")[1].splitlines()[0]
    done = fedspleen("kit", "approve", "key/site-a.request", "c.yaml", "--fingerprint", told)
    assert done.returncode == 0 and "send back: trial/site-a.kit.zip" in done.stdout, done.stderr
    told = done.stdout.split("by telephone: ")[1].strip()
    done = fedspleen("kit", "assemble", "trial/site-a.kit.zip", "key", "site", "--fingerprint", told)
    assert done.returncode == 0 and verify_kit(tmp_path / "site", told).good, done.stderr
