"""A real server whose port gets what no site sends: it stays up, its memory bounded, and good sites still come in."""

import base64
import os
import random
import socket
import ssl
import struct
import time

import psutil
import pytest

from fl_app.deployment.kit import open_kit
from fl_app.site import SiteSettings, write_site
from tests.federation import processes_about, write_sites
from tests.test_sites import Running, make_kits

pytestmark = pytest.mark.slow

MOST_GROWTH = 150 * 2**20  # bytes


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The kits' folder, a running server, and its port."""
    folder = tmp_path_factory.mktemp("hostile")
    kits = make_kits(folder / "consortium")
    running = Running("server", "start", kits / "server", cwd=folder)
    running.wait_for("ready at localhost", seconds=60)
    yield kits, running, open_kit(kits / "site-1", "site").port
    running.end()
    assert processes_about(folder) == []


@pytest.fixture
def unharmed(server):
    """Afterwards the server runs, holds little more memory, and greets the next one at once."""
    _, running, _ = server
    before = memory(running)
    yield
    assert running.process.poll() is None, running.text
    with secured(server) as connection:
        assert b"404" in exchange(connection, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    grown = memory(running) - before
    assert grown < MOST_GROWTH, f"{grown / 2**20:.0f} MiB more"


def memory(running):
    """Bytes that the server's processes hold."""
    process = psutil.Process(running.process.pid)
    return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)])


def plain(server):
    return socket.create_connection(("localhost", server[2]), timeout=10)


def secured(server, certificate=True):
    """A connection inside TLS, with a site's certificate or none."""
    startup = server[0] / "site-1" / "startup"
    context = ssl.create_default_context(cafile=startup / "rootCA.pem")
    context.check_hostname = False  # as FLARE connects: the certificate's name is the server's identity
    if certificate:
        context.load_cert_chain(startup / "client.crt", startup / "client.key")
    return context.wrap_socket(plain(server), server_hostname="localhost")


def exchange(connection, content):
    """Send, and what comes back until the other side has no more to say; a closed connection is an answer, too."""
    received = b""
    try:
        connection.sendall(content)
        connection.settimeout(3)
        while part := connection.recv(65536):
            received += part
            if b"\r\n\r\n" in received:
                break
    except OSError:
        pass
    return received


def websocket(server):
    """A connection that has become FLARE's WebSocket."""
    connection = secured(server)
    key = base64.b64encode(os.urandom(16)).decode()
    answer = exchange(
        connection,
        f"GET /f3 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode(),
    )
    assert b"101" in answer.split(b"\r\n")[0], answer
    return connection


def frame(content, length=None):
    """A masked binary frame that says it is as long as its content, or any other length."""
    return b"\x82\xff" + struct.pack(">Q", len(content) if length is None else length) + bytes(4) + content


@pytest.mark.promise(
    "port: random bytes, idle connections, HTTP, oversized frames",
    "the server stays up, and a good site still registers",
)
def test_random_bytes(server, unharmed):
    chance = random.Random(5)
    for size in [0, 1, 5, 100, 1000, 20_000] * 8:
        with plain(server) as connection:
            start = chance.choice([b"", b"\x16\x03\x01", b"\x16\x03\x03\xff\xff", b"\x80"])
            try:
                connection.sendall(start + chance.randbytes(size))
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                continue  # the server may hang up before it has heard everything


def test_plain_http(server, unharmed):
    with plain(server) as connection:
        assert b"200" not in exchange(connection, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    with plain(server) as connection:
        assert b"101" not in exchange(connection, b"POST /f3 HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\nx")


def test_tls_without_a_certificate(server, unharmed):
    with pytest.raises(OSError), secured(server, certificate=False) as connection:
        connection.sendall(b"GET /f3 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        # with TLS 1.3 the refusal comes with the first answer
        if not connection.recv(1):
            raise OSError("closed")


@pytest.mark.promise("port: random bytes, idle connections, HTTP, oversized frames")
def test_two_hundred_idle_connections_do_not_keep_others_out(server, unharmed):
    idle = [plain(server) for _ in range(200)]
    try:
        for number, connection in enumerate(idle):
            if number % 2:
                connection.sendall(b"\x16\x03\x01\x02\x00\x01")  # half a greeting
        started = time.monotonic()
        with secured(server) as connection:
            assert b"404" in exchange(connection, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert time.monotonic() - started < 10
    finally:
        for connection in idle:
            connection.close()


def test_http_that_never_ends_inside_tls(server, unharmed):
    with secured(server) as connection:
        answer = exchange(connection, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 2**21)
        assert b"200" not in answer
    with secured(server) as connection:
        answer = exchange(connection, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
        assert b"200" not in answer


@pytest.mark.promise("port: random bytes, idle connections, HTTP, oversized frames")
@pytest.mark.parametrize("length", [2**31 + 1, 2**40, 2**63 - 1, 2**64 - 1])
def test_an_oversized_frame_of_a_real_site_is_refused(server, unharmed, length):
    with websocket(server) as connection:
        connection.settimeout(10)
        try:
            connection.sendall(frame(os.urandom(2**16), length))
            answer = connection.recv(65536)
        except (ConnectionError, ssl.SSLEOFError):
            answer = b""
        assert answer[:1] in (b"", b"\x88"), "closed, with a word or without"


def test_frames_of_a_real_site_that_hold_nonsense(server, unharmed):
    chance = random.Random(6)
    for number in range(40):
        with websocket(server) as connection:
            kind = number % 4
            content = chance.randbytes(chance.choice([0, 1, 15, 16, 24, 200, 5000]))
            if kind > 1:
                # FLARE's prefix: lengths of frame and headers, type, reserved, flags, application, stream, sequence
                lengths = len(content) + 16, chance.choice([0, len(content), 65535])
                small = [chance.randrange(6), 0, *(chance.choice([0, 1, 65535]) for _ in range(4))]
                content = struct.pack(">IHBBHHHH", *lengths, *small) + content
            sent = frame(content) if kind else chance.randbytes(300)
            try:
                connection.sendall(sent * 3)
            except OSError:
                continue  # it had enough of it


def test_afterwards_a_good_site_registers(server, tmp_path):
    kits, running, _ = server
    data = write_sites(tmp_path / "data", site_1=3)
    write_site(kits / "site-1" / "site.yaml", SiteSettings(data=data / "site-1", threads=1, device="cpu"))
    site = Running("client", "start", kits / "site-1", cwd=tmp_path)
    try:
        site.wait_for("site site-1 registered with server localhost", seconds=60)
    finally:
        site.end()
    assert running.process.poll() is None
    assert "Traceback" not in running.text
