"""Wrong input of every kind: one clear line, the right exit code or status, and nothing lost."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLosslessSV1
from pynetdicom import AE

from pe_triage.cli import main
from tests.node.conftest import NewStudy, storescu
from tests.support.dcmtk import StoreScp
from tests.support.node import RunningNode, pe_triage, send
from tests.support.peers import dcmtk_environment, require_program

CT = "1.2.840.10008.5.1.4.1.1.2"


def run_here(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str]]:
    """Exit code and lines on stderr of a command, in this process: an escape would show here."""
    code = main([str(a) for a in arguments])
    return code, capsys.readouterr().err.splitlines()


def assert_one_line(lines: list[str], *words: str) -> None:
    assert len(lines) == 1, lines
    assert lines[0].startswith("pe-triage: ")
    for word in words:
        assert word in lines[0], lines[0]


@pytest.fixture(scope="module")
def flipped_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with one byte of its weights changed."""
    copy = tmp_path_factory.mktemp("flipped") / "bundle"
    shutil.copytree(tiny_bundle, copy)
    (weights,) = copy.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-10] ^= 0x01
    weights.write_bytes(content)
    return copy


@contextmanager
def busy_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield int(taken.getsockname()[1])


def name(value: object) -> str:
    """Name of a case: its flags, or the word that is looked for."""
    return (value if isinstance(value, str) else " ".join(value))[:40]  # type: ignore[arg-type]


SERVE = [
    (("--send-to", "nonsense"), "--send-to"),
    (("--send-to", "PACS@host:99999"), "--send-to"),
    (("--send-to", "PACS@127.0.0.1:104", "--send-to", "PACS@127.0.0.1:104"), "twice"),
    (("--port", "99999"), "--port"),
    (("--quiet-s", "-1"), "--quiet-s"),
    (("--aet", "A TITLE THAT IS MUCH TOO LONG"), "--aet"),
    (("--accept-from", "@"), "--accept-from"),
    (("--model", "{tmp}/no-such-bundle"), "no-such-bundle"),
    (("--database", "nonsense://x"), "database"),
    (("--database", "sqlite:///{tmp}/no/such/folder/x.db"), "no/such/folder"),
    (("--config", "{tmp}/unknown.toml"), "colour"),
    (("--config", "{tmp}/broken.toml"), "broken.toml"),
    (("--config", "{tmp}/missing.toml"), "missing.toml"),
    (("--config", "{tmp}/rules.toml"), "nonsense_mm"),
    (("--data-dir", "{tmp}/a-file/below"), "a-file"),
    (("--data-dir", "/proc/pe-triage"), "/proc/pe-triage"),
]


@pytest.mark.parametrize(("flags", "word"), SERVE, ids=name)
def test_serve_refuses(flags: tuple[str, ...], word: str, tmp_path: Path) -> None:
    (tmp_path / "unknown.toml").write_text('colour = "red"\n')
    (tmp_path / "broken.toml").write_text("this is = = not TOML")
    (tmp_path / "rules.toml").write_text("[eligibility]\nnonsense_mm = 3\n")
    (tmp_path / "a-file").write_text("")
    arguments = [flag.format(tmp=tmp_path) for flag in flags]
    if "--data-dir" not in arguments:
        arguments += ["--data-dir", str(tmp_path / "data")]
    done = pe_triage("serve", "--port", 0, *arguments, timeout_s=60)
    assert done.returncode == 2, done.stderr
    assert_one_line(done.stderr.splitlines(), word)


def test_serve_says_when_its_database_server_is_away(tmp_path: Path) -> None:
    """Not wrong usage, so exit code 1: a service manager may try again."""
    url = "postgresql://nobody@127.0.0.1:1/none"
    done = pe_triage("serve", "--port", 0, "--data-dir", tmp_path / "data", "--database", url)
    assert done.returncode == 1
    assert_one_line(done.stderr.splitlines(), "database not available")


def test_serve_refuses_a_bundle_with_one_wrong_byte(flipped_bundle: Path, tmp_path: Path) -> None:
    done = pe_triage(
        "serve", "--port", 0, "--data-dir", tmp_path / "data", "--model", flipped_bundle
    )
    assert done.returncode == 2
    assert_one_line(done.stderr.splitlines(), "SHA-256")


def test_serve_refuses_a_port_in_use(tmp_path: Path) -> None:
    with busy_port() as port:
        done = pe_triage("serve", "--port", port, "--data-dir", tmp_path / "data")
    assert done.returncode == 2
    assert_one_line(done.stderr.splitlines(), str(port), "in use")


def test_a_second_node_on_the_same_data_directory(quick_node: RunningNode) -> None:
    done = pe_triage("serve", "--port", 0, "--data-dir", quick_node.data_dir)
    assert done.returncode == 2
    assert_one_line(done.stderr.splitlines(), "another pe-triage node")


COMMANDS = [
    (("frobnicate",), "frobnicate"),
    (("show", "1.2.3", "--data-dir", "{tmp}/none"), "none"),
    (("show", "1.2.3", "--data-dir", "{node}"), "unknown study: 1.2.3"),
    (("show", "no-uid-at-all", "--data-dir", "{node}"), "no-uid-at-all"),
    (("show", "{tmp}/text.dcm"), "text.dcm"),
    (("studies", "--data-dir", "{tmp}/none"), "none"),
    (("studies", "--since", "yesterday", "--data-dir", "{node}"), "yesterday"),
    (("studies", "--limit", "0", "--data-dir", "{node}"), "--limit"),
    (("reprocess", "1.2.3", "--data-dir", "{node}"), "unknown study: 1.2.3"),
    (("reprocess", "--data-dir", "{node}"), "STUDY_UID"),
    (("reprocess", "--from-file", "{tmp}/none.txt", "--data-dir", "{node}"), "none.txt"),
    (("analyze", "{tmp}/empty", "--out", "{tmp}/out"), "no readable DICOM instance"),
    (("analyze", "{tmp}/nowhere", "--out", "{tmp}/out"), "nowhere"),
    (("analyze", "{tmp}/text.dcm", "--out", "{tmp}/out"), "text.dcm"),
    (("analyze", "{tmp}/two", "--out", "{tmp}/out"), "2 studies"),
    (("analyze", "{tmp}/one", "--out", "{tmp}/text.dcm/out"), "cannot write"),
    (("analyze", "{tmp}/one", "--out", "{tmp}/out", "--model", "{flipped}"), "SHA-256"),
    (("analyze", "{tmp}/one"), "--out"),
    (("bundle", "verify", "{flipped}"), "SHA-256"),
    (("phantom", "--out", "{tmp}/p", "--preset", "nonsense"), "nonsense"),
    (("phantom", "--out", "{tmp}/p", "--count", "0"), "--count"),
    (("echo", "nonsense"), "nonsense"),
    (("db", "upgrade", "--database", "mysql://x/y"), "mysql"),
    (("demo", "--keep", "{tmp}/one"), "not empty"),
]


@pytest.mark.parametrize(("arguments", "word"), COMMANDS, ids=name)
def test_commands_refuse(
    arguments: tuple[str, ...],
    word: str,
    quick_node: RunningNode,
    flipped_bundle: Path,
    phantom_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("PE_TRIAGE_CONFIG", raising=False)
    (tmp_path / "text.dcm").write_text("This is no DICOM file.\n" * 20)
    for folder in ("empty", "one", "two"):
        (tmp_path / folder).mkdir()
    first = sorted(phantom_dir.iterdir())[0]
    (tmp_path / "one" / "a.dcm").symlink_to(first)
    (tmp_path / "two" / "a.dcm").symlink_to(first)
    ds = dcmread(first)
    ds.StudyInstanceUID += ".1"
    ds.SOPInstanceUID += ".1"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.save_as(tmp_path / "two" / "b.dcm", enforce_file_format=True)
    places = {"tmp": tmp_path, "node": quick_node.data_dir, "flipped": flipped_bundle}
    code, lines = run_here(capsys, *(a.format(**places) for a in arguments))
    assert code == 2, lines
    assert_one_line(lines, word)


def test_an_unknown_command_says_so_without_a_traceback() -> None:
    done = pe_triage("frobnicate")
    assert done.returncode == 2
    assert_one_line(done.stderr.splitlines(), "frobnicate")


# ------------------------------------------------------------------ by the network


PLANTED = ("GEHEIMRAT", "SECRETMRN5150", "19010203", "SECRETACC9")


def test_bad_objects_are_refused_and_a_good_study_still_works(
    new_study: NewStudy, quick_node: RunningNode, store_scp: StoreScp, tmp_path: Path
) -> None:
    """A file that is no DICOM, a truncated instance, Deflated only, bytes that are no protocol."""
    node = quick_node
    program = require_program("storescu", "dcmtk")
    study_uid, files = new_study(
        PatientID=PLANTED[1],
        PatientName=f"{PLANTED[0]}^X",
        PatientBirthDate=PLANTED[2],
        AccessionNumber=PLANTED[3],
    )
    text = tmp_path / "text.dcm"
    text.write_text("no DICOM at all")
    done = send(program, node, [text], environment=dcmtk_environment())
    assert done.returncode != 0

    whole = files[0].read_bytes()
    truncated = tmp_path / "truncated.dcm"
    truncated.write_bytes(whole[: len(whole) // 2])
    done = send(program, node, [truncated], "-v", environment=dcmtk_environment())
    assert "Response (Success)" not in done.stdout + done.stderr

    with socket.create_connection(("127.0.0.1", node.port)) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n")
        raw.settimeout(20)
        raw.recv(1 << 16)

    ae = AE("SCANNER")
    ae.add_requested_context(CT, DeflatedExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", node.port, ae_title="PETRIAGE")
    assert not association.accepted_contexts
    if association.is_established:
        association.release()

    ds = dcmread(files[0])
    ae = AE("SCANNER")
    ae.add_requested_context(CT, ds.file_meta.TransferSyntaxUID)
    association = ae.associate("127.0.0.1", node.port, ae_title="PETRIAGE")
    overrun = dcmread(files[0])
    overrun.PixelData = overrun.PixelData[:-100]
    assert association.send_c_store(overrun).Status in (0xA900, 0xC000)
    assert association.send_c_store(ds).Status == 0x0000
    association.release()

    storescu(node, files)
    doc = node.wait_ended(study_uid)
    assert (doc["state"], doc["instances"]) == ("DONE", len(files))
    assert store_scp.stored(study_uid)
    held = list((node.data_dir / "spool").rglob("*.dcm"))
    assert not [p for p in held if "text" in p.name]
    for word in PLANTED:
        assert not [line for line in node.lines if word in line]
        assert word not in str(doc)


def test_an_acknowledged_file_that_cannot_be_read_later_is_kept_and_listed(
    new_study: NewStudy, quick_node: RunningNode
) -> None:
    """What a failing disk might do to the journal: visible, in quarantine, others flow."""
    node = quick_node
    _, files = new_study(slices=1, PatientName=f"{PLANTED[0]}^X", PatientID=PLANTED[1])
    spoiled = bytearray(files[0].read_bytes())
    spoiled[128:132] = b"XXXX"
    name = f"{1:013d}00000000-{1:08d}-{1:09d}.dcm"
    (node.data_dir / "spool" / "incoming" / name).write_bytes(spoiled)
    deadline = time.monotonic() + 20
    while not node.events("instance.unreadable") and time.monotonic() < deadline:
        time.sleep(0.1)
    (event,) = node.events("instance.unreadable")
    done = pe_triage("quarantine", "list", "--json", "--data-dir", node.data_dir)
    entries = [e for e in json.loads(done.stdout) if e["study_uid"] is None]
    assert [Path(e["path"]).read_bytes() for e in entries] == [bytes(spoiled)]
    assert entries[0]["reason"] == event["error"]
    for word in PLANTED:
        assert not [line for line in node.lines if word in line]
        assert word not in done.stdout


def probabilities(doc: dict[str, Any]) -> list[float]:
    return [s["probability"] for s in doc["slices"]]


def test_parallel_and_compressed_senders(
    new_study: NewStudy, quick_node: RunningNode, store_scp: StoreScp, tmp_path: Path
) -> None:
    """Four associations interleave two studies; one of them is JPEG lossless: same answer."""
    node = quick_node
    program = require_program("storescu", "dcmtk")
    dcmcjpeg = require_program("dcmcjpeg", "dcmtk")
    plain_uid, plain = new_study()
    jpeg_uid, raw = new_study()
    jpeg = []
    for path in raw:
        target = tmp_path / f"j-{path.name}"
        subprocess.run([dcmcjpeg, "+e1", str(path), str(target)], check=True, timeout=30)
        jpeg.append(target)
    assert dcmread(jpeg[0]).file_meta.TransferSyntaxUID == JPEGLosslessSV1
    assert [dcmread(p).SOPInstanceUID for p in jpeg[:2]] == [
        dcmread(p).SOPInstanceUID for p in raw[:2]
    ]
    parts = [(plain[0::2], ()), (jpeg[0::2], ("-xs",)), (plain[1::2], ()), (jpeg[1::2], ("-xs",))]
    senders = [
        subprocess.Popen(
            [program, *flags, "-aec", "PETRIAGE", "127.0.0.1", str(node.port), *map(str, files)],
            env=dcmtk_environment(),
        )
        for files, flags in parts
    ]
    assert [sender.wait(60) for sender in senders] == [0, 0, 0, 0]
    one, other = node.wait_ended(plain_uid), node.wait_ended(jpeg_uid)
    for doc in (one, other):
        assert (doc["state"], doc["run"], doc["instances"]) == ("DONE", 1, len(plain))
    assert probabilities(one) == probabilities(other)
