"""Dial the server as a site's kit says, step by step, and name the step that fails, its likely cause and the remedy."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from urllib.request import getproxies, proxy_bypass

from cryptography import x509
from cryptography.x509.oid import NameOID

from fl_app.data.findings import Finding, error, warning
from fl_app.deployment.kit import Kit
from fl_app.errors import FederationError

_TIMEOUT_SECONDS = 5.0
_CLOCK_TOLERANCE_SECONDS = 60.0
_EXPIRED = 10  # OpenSSL's code for a certificate whose time is over
_SERVER_IDENTITY = "server"


@dataclass(frozen=True)
class Connection:
    """How far one came.

    Attributes:
        reached: what works: "name", "port", "tls", "accepted", in this order.
        findings: what does not, or is worth knowing.
        may_come: whether waiting may help: the server is not there yet.
        clock: seconds by which this machine's clock is ahead of the server's; none if that cannot be known.
        proxy: FLARE dials through this HTTP proxy, so that nothing was dialled here.
    """

    reached: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    may_come: bool = False
    clock: float | None = None
    proxy: str | None = None

    @property
    def accepted(self) -> bool:
        """Whether the server took this site's certificate."""
        return "accepted" in self.reached

    def with_(self, step: str) -> Connection:
        """One step further."""
        return replace(self, reached=(*self.reached, step))

    def but(self, *findings: Finding, may_come: bool = False) -> Connection:
        """No further, and why."""
        return replace(self, findings=(*self.findings, *findings), may_come=may_come)


def reach_server(kit: Kit) -> Connection:
    """Dial the server.

    Raises:
        FederationError: it cannot be reached, or refuses the kit's certificate, and why.
    """
    connection = probe(kit)
    if not connection.accepted and not connection.proxy:
        finding = connection.findings[0]
        raise FederationError(f"{finding.problem} - {finding.remedy}")
    return connection


def probe(kit: Kit) -> Connection:
    """Dial the server with a site's, or an administrator's, kit."""
    where, done = f"{kit.host}:{kit.port}", Connection()
    proxy = getproxies().get("https") if kit.scheme == "grpc" and not proxy_bypass(kit.host) else None
    if proxy:
        words = f"gRPC dials through the proxy {proxy} (https_proxy); the connection was not checked"
        remedy = "if the site does not get registered, let the proxy's administrators allow CONNECT to this address"
        return replace(done, proxy=proxy, findings=(warning("proxy", where, words, remedy),))
    try:
        socket.getaddrinfo(kit.host, kit.port, type=socket.SOCK_STREAM)
    except OSError as problem:
        return done.but(
            error(
                "name-unknown",
                where,
                f"the name {kit.host} cannot be resolved: {problem.strerror or problem}",
                "ask your network's administrators for a DNS entry, or add a line to /etc/hosts",
            )
        )
    done = done.with_("name")
    try:
        plain = socket.create_connection((kit.host, kit.port), _TIMEOUT_SECONDS)
    except ConnectionRefusedError:
        return done.but(
            warning(
                "port-closed",
                where,
                f"nothing listens at {where}",
                "normal before the server is started; otherwise ask the lead for the right host and port",
            ),
            may_come=True,
        )
    except OSError as problem:
        return done.but(
            error(
                "port-unreachable",
                where,
                f"no connection to {where}: {problem.strerror or 'no answer'}",
                f"let a firewall rule allow outgoing TCP connections to {where}, and ask the lead if the server is up",
            ),
            may_come=True,
        )
    with plain:
        return _secure(plain, kit, done.with_("port"))


def _secure(plain: socket.socket, kit: Kit, done: Connection) -> Connection:
    where = f"{kit.host}:{kit.port}"
    try:
        secure = _context(kit).wrap_socket(plain, server_hostname=kit.host)
    except ssl.SSLCertVerificationError as problem:
        return done.but(_untrusted(kit, where, problem))
    except (ssl.SSLError, ConnectionError, TimeoutError) as problem:
        return done.but(_no_tls(where, problem))
    with secure:
        presented = _common_name(secure)
        if presented != _SERVER_IDENTITY:
            return done.but(
                error(
                    "not-the-server",
                    where,
                    f"{where} presents the certificate of {presented}, not of the server",
                    "do not connect; tell the lead of the consortium",
                )
            )
        return _ask(secure, kit, done.with_("tls"))


def _ask(secure: ssl.SSLSocket, kit: Kit, done: Connection) -> Connection:
    """In TLS 1.3 a refused certificate shows only when something is read."""
    where = f"{kit.host}:{kit.port}"
    try:
        secure.sendall(f"GET / HTTP/1.1\r\nHost: {kit.host}\r\nConnection: close\r\n\r\n".encode())
        answer = secure.recv(4096)
    except TimeoutError:
        # it took the certificate and says nothing: no refusal at any rate
        return done.with_("accepted")
    except (ssl.SSLError, ConnectionError) as problem:
        return done.but(_refused(kit, where, _alert(kit) or str(problem)))
    if not answer:
        return done.but(_refused(kit, where, _alert(kit)))
    skew = _clock_skew(answer)
    done = replace(done.with_("accepted"), clock=skew)
    if skew is not None and abs(skew) > _CLOCK_TOLERANCE_SECONDS:
        ahead = "ahead of" if skew > 0 else "behind"
        return done.but(
            warning(
                "clock",
                where,
                f"this machine's clock is {abs(skew):.0f} s {ahead} the server's",
                "set the clock (NTP): certificates are valid between two instants",
            )
        )
    return done


def _context(kit: Kit, newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED) -> ssl.SSLContext:
    startup = kit.folder / "startup"
    context = ssl.create_default_context(cafile=str(startup / "rootCA.pem"))
    context.load_cert_chain(startup / "client.crt", startup / "client.key")
    context.check_hostname = False  # FLARE compares the certificate's identity, not the host's name
    context.maximum_version = newest
    if kit.scheme == "grpc":
        context.set_alpn_protocols(["h2"])
    return context


def _alert(kit: Kit) -> str | None:
    """What TLS 1.2 says of a refusal; TLS 1.3 servers often close without a word."""
    try:
        with (
            socket.create_connection((kit.host, kit.port), _TIMEOUT_SECONDS) as plain,
            _context(kit, ssl.TLSVersion.TLSv1_2).wrap_socket(plain, server_hostname=kit.host) as secure,
        ):
            secure.recv(1)
    except ssl.SSLError as problem:
        return problem.reason or None
    except OSError:
        return None
    return None


def _refused(kit: Kit, where: str, alert: str | None) -> Finding:
    alert = alert or "the connection was closed"
    if "EXPIRED" in alert:
        cause, remedy = "it has expired", "ask the lead to renew it"
    elif "UNKNOWN_CA" in alert or "DECRYPT" in alert or "BAD_CERTIFICATE" in alert:
        cause, remedy = "it was issued by another authority than the server's", "ask the lead for a new kit"
    else:
        cause, remedy = alert.lower().replace("_", " "), "ask the lead what the server's log.txt says about it"
    return error(
        "certificate-refused", where, f"the server at {where} refuses the certificate of {kit.name}: {cause}", remedy
    )


def _untrusted(kit: Kit, where: str, problem: ssl.SSLCertVerificationError) -> Finding:
    if problem.verify_code == _EXPIRED:
        return error(
            "server-expired",
            where,
            f"the certificate of the server at {where} has expired (or this machine's clock is wrong)",
            f"tell the lead of {kit.report.consortium}: only they can renew it",
        )
    issuer, consortium = _issuer(kit), kit.report.consortium
    if issuer.split(", ")[0] == consortium:
        return error(
            "server-untrusted",
            where,
            f"{where} is the server of another consortium that is called {consortium}, too",
            "this kit is older than the server's, or not meant for it: ask the lead for the kit and the fingerprint "
            "that go with this server",
        )
    return error(
        "server-untrusted",
        where,
        f"{where} presents a certificate of another authority ({issuer}), not of {consortium}",
        "a proxy or firewall that opens TLS is in between: let your network's administrators exempt this host and port "
        "from TLS inspection; if there is none, this is not the consortium's server",
    )


def _common_name(secure: ssl.SSLSocket) -> str:
    certificate = x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _issuer(kit: Kit) -> str:
    """Who signed what is presented; looked at without trusting it."""
    try:
        pem = ssl.get_server_certificate((kit.host, kit.port), timeout=_TIMEOUT_SECONDS)
        issuer = x509.load_pem_x509_certificate(pem.encode()).issuer
    except (OSError, ValueError):
        return "which one is not known"
    names = [
        str(each.value)
        for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)
        for each in issuer.get_attributes_for_oid(oid)
    ]
    return ", ".join(names)[:100] or "without a name"


def _no_tls(where: str, problem: Exception) -> Finding:
    reason = getattr(problem, "reason", None)
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_MESSAGE", "RECORD_LAYER_FAILURE"):
        return error(
            "plain-text",
            where,
            f"what answers at {where} does not speak TLS ({reason})",
            "a load balancer or proxy that ends TLS itself, or another program on this port: connections must go "
            "through to the server as they are (TCP or TLS passthrough)",
        )
    if isinstance(problem, TimeoutError):
        return error(
            "no-tls",
            where,
            f"{where} accepts connections and does not answer the TLS handshake",
            "another program may own this port, or a firewall swallows TLS: ask the lead for the right host and port",
        )
    return error(
        "tls-failed",
        where,
        f"the TLS handshake with {where} failed: {reason or problem or 'the connection was closed'}",
        "ask your network's administrators if a firewall or proxy interferes with TLS to this host and port",
    )


def _clock_skew(answer: bytes) -> float | None:
    for line in answer.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":")
        if name.lower() == "date":
            try:
                return (datetime.now(timezone.utc) - parsedate_to_datetime(value.strip())).total_seconds()
            except (ValueError, TypeError):
                return None
    return None
