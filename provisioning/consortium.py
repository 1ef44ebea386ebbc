"""Who takes part: the server, the sites, the administrators. One YAML file, typed and validated.

Three things are easily mixed up: a site's *name* (its identity in certificate, logs and results), the *host name* of
the server (what sites dial), and an *organisation* (whose administrators may stop which sites).
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from fl_app.config import Settings
from fl_app.config_file import FileKind, load_settings, parse_settings

SERVER_NAME = "server"  # FLARE's own name for the server's cell; the server's host names can change, this cannot
FLARE_ROLES = {"lead": "project_admin", "site-admin": "org_admin", "member": "member"}
_Item = TypeVar("_Item")
_RESERVED = {SERVER_NAME, "state", "kits", "client", "admin", "all", "con", "prn", "aux", "nul", "simulator_server"}


def _allowed(words: str) -> PydanticCustomError:
    return PydanticCustomError("allowed", "{allowed}", {"allowed": words, "choices": []})


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", name):
        raise _allowed("letters, digits, '-' and '_', at most 40, beginning with a letter or digit")
    if name.lower() in _RESERVED:
        raise _allowed(f"another name: {', '.join(sorted(_RESERVED))} have a meaning of their own")
    return name


def _check_organisation(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_]{1,64}", name):
        raise _allowed("letters, digits and '_', at most 64 (FLARE's rule for organisations)")
    return name


def _check_host(host: str) -> str:
    label = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    if len(host) > 253 or not re.fullmatch(rf"{label}(\.{label})*", host):
        raise _allowed("a host name such as fl.example.org, or an IPv4 address; no scheme, no port")
    if re.fullmatch(r"[\d.]+", host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise _allowed("an IPv4 address is four numbers up to 255") from None
    return host


def _check_email(email: str) -> str:
    # FLARE's rule, without the characters that a file name should not hold
    if len(email) > 64 or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*@[A-Za-z0-9.-]+\.[A-Za-z]{2,}", email):
        raise _allowed("an e-mail address of at most 64 characters, such as lead@example.org")
    return email


Name = Annotated[str, AfterValidator(_check_name)]
Organisation = Annotated[str, AfterValidator(_check_organisation)]
Host = Annotated[str, AfterValidator(_check_host)]
Email = Annotated[str, AfterValidator(_check_email)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Server(Settings):
    """The machine that all sites dial."""

    hosts: tuple[Host, ...] = Field(
        description="host names of the server: sites dial the first, its certificate holds all"
    )
    port: Port = Field(8002, description="the one port that sites and administrators connect to")
    listen_port: Port | None = Field(
        None, description="the port that the server opens, where a proxy or NAT maps another one to it; none: port"
    )
    bind: Literal["all", "loopback"] = Field(
        "all", description="all: every network interface; loopback: only 127.0.0.1, behind a proxy on the same machine"
    )
    transport: Literal["http", "grpc"] = Field(
        "http", description="both inside mutual TLS; grpc can leave a site through an HTTP CONNECT proxy"
    )
    organisation: Organisation = Field("consortium", description="who runs the server")

    @field_validator("hosts")
    @classmethod
    def _hosts_are_distinct(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        if not hosts:
            raise _allowed("at least one host name")
        return _distinct(hosts, hosts)

    @property
    def opened_port(self) -> int:
        """The port that the server opens on its own machine."""
        return self.listen_port or self.port


class Site(Settings):
    """A hospital that trains on its own images."""

    name: Name = Field(description="the site's identity: letters, digits, '-' and '_'")
    organisation: Organisation = Field(description="whose site this is: letters, digits and '_'")
    own_key: bool = Field(False, description="the site makes its key itself, and nobody else ever holds it")


class Administrator(Settings):
    """A person with a kit of their own."""

    email: Email = Field(description="identity of the administrator")
    role: Literal["lead", "site-admin", "member"] = Field(
        description="lead: submits and stops jobs, manages sites; site-admin: stops the sites of their own "
        "organisation; member: sees the state"
    )
    organisation: Organisation = Field("consortium", description="whom the administrator works for")
    own_key: bool = Field(False, description="the administrator makes the key, and nobody else ever holds it")


class Certificates(Settings):
    """How long certificates are valid, in days."""

    root_days: Annotated[int, Field(ge=1, le=10950)] = Field(
        3650, description="the consortium's own certificate; when it ends, all kits end with it"
    )
    kit_days: Annotated[int, Field(ge=1, le=10950)] = Field(
        365, description="certificates of server, sites and administrators"
    )

    @field_validator("kit_days")
    @classmethod
    def _kits_end_first(cls, days: int, info: ValidationInfo) -> int:
        if days > info.data.get("root_days", days):
            raise _allowed("at most root_days: no certificate outlives the one that signed it")
        return days


class Consortium(Settings):
    """Everybody who takes part."""

    name: Name = Field(description="of the consortium: letters, digits, '-' and '_'")
    server: Server = Field(description="a section with the server's 'hosts' and 'port'")
    sites: tuple[Site, ...] = Field(description="a list of sites, each with 'name' and 'organisation'")
    administrators: tuple[Administrator, ...] = Field(
        description="a list of administrators, each with 'email' and 'role', at least one of them a lead"
    )
    certificates: Certificates = Field(default_factory=Certificates, description="how long certificates are valid")

    @property
    def own_keys(self) -> frozenset[str]:
        """Who makes their key themselves."""
        people = {each.email for each in self.administrators if each.own_key}
        return frozenset(people | {site.name for site in self.sites if site.own_key})

    def without(self, names: frozenset[str]) -> Consortium:
        """The consortium without these sites and administrators."""
        sites = tuple(site for site in self.sites if site.name not in names)
        people = tuple(each for each in self.administrators if each.email not in names)
        return self.model_copy(update={"sites": sites, "administrators": people})

    @field_validator("sites")
    @classmethod
    def _sites_are_distinct(cls, sites: tuple[Site, ...]) -> tuple[Site, ...]:
        if not sites:
            raise _allowed("at least one site")
        return _distinct(sites, (site.name for site in sites))

    @field_validator("administrators")
    @classmethod
    def _administrators_fit(
        cls, administrators: tuple[Administrator, ...], info: ValidationInfo
    ) -> tuple[Administrator, ...]:
        if not any(each.role == "lead" for each in administrators):
            raise _allowed("at least one administrator with role: lead")
        known = {site.organisation for site in info.data.get("sites", ())}
        lost = [each.email for each in administrators if each.role == "site-admin" and each.organisation not in known]
        if lost and known:
            raise _allowed(f"a site-admin has the organisation of a site: {', '.join(lost)}")
        return _distinct(administrators, (each.email for each in administrators))


def is_site_name(name: str) -> bool:
    """Whether this could be a site's name."""
    return _passes(_check_name, name)


def is_participant(name: str) -> bool:
    """Whether this could be a site's name or an administrator's e-mail address."""
    return _passes(_check_name, name) or _passes(_check_email, name)


def is_organisation(name: str) -> bool:
    """Whether this could be an organisation."""
    return _passes(_check_organisation, name)


def _passes(check: Callable[[str], str], name: str) -> bool:
    try:
        return bool(check(name))
    except PydanticCustomError:
        return False


_FILE = FileKind(Consortium, "consortium", "keys such as 'name:', 'server:' and 'sites:'")


def load_consortium(path: Path) -> Consortium:
    """The consortium in a YAML file.

    Raises:
        ConfigError: one line for each mistake: ``file:line key: value - what is allowed (did you mean ...?)``.
    """
    return load_settings(path, _FILE)


def parse_consortium(text: str, name: str = "consortium") -> Consortium:
    """The consortium in a YAML text; ``name`` stands for the file in messages. Raises as `load_consortium`."""
    return parse_settings(text, name, _FILE)


def _distinct(values: tuple[_Item, ...], names: Iterable[str]) -> tuple[_Item, ...]:
    """The values; names that differ in upper and lower case only are the same file on some systems."""
    twice = [name for name, count in Counter(name.lower() for name in names).items() if count > 1]
    if twice:
        raise _allowed(f"each name once, and not in another spelling: {', '.join(twice)}")
    return values
