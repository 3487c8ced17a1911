"""The configuration as checked values.

Every number that limits something stands here, with its default, unit and reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from egress_proxy.config.sources import Sources
from egress_proxy.core.challenge import Asks
from egress_proxy.core.contract import ContractHeaders
from egress_proxy.core.demands import Terms
from egress_proxy.core.hops import ForwardedFor
from egress_proxy.core.names import Authority
from egress_proxy.core.networks import IPNetwork
from egress_proxy.core.policy import CompiledPolicy, HostPattern

KIB = 1024


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """Where to listen. Port 0 lets the system choose (for tests)."""

    host: str
    """A literal IPv4 or IPv6 address, without brackets."""
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return self.host == "::1" or self.host.startswith("127.")


@dataclass(frozen=True, slots=True)
class Listen:
    """``listen:``. Changing it needs a restart."""

    proxy: SocketAddress = SocketAddress("127.0.0.1", 3128)
    admin: SocketAddress = SocketAddress("127.0.0.1", 9090)


@dataclass(frozen=True, slots=True)
class Dns:
    """``dns:``. Changing it needs a restart."""

    servers: tuple[str, ...] = ()
    """``host:port`` each, asked in this order; empty means the system's (``/etc/resolv.conf``)."""
    hosts_file: str = "/etc/hosts"
    """Asked before any server; pods' hostAliases land there. Read again when it changes."""
    timeout: float = 5.0
    """Seconds for one name, all tries together: clients give up soon after."""
    tries: int = 2
    """How often each server is asked, within ``timeout``: UDP loses packets."""
    min_ttl: float = 1.0
    """Seconds that an answer is kept at least, so that TTL 0 does not ask per request."""
    max_ttl: float = 300.0
    """Seconds that an answer is kept at most, so that a moved service is found again."""
    negative_ttl: float = 5.0
    """Seconds that a failure is remembered at most, less where the zone's SOA record says so: long enough to
    stop a storm, short enough to mend soon."""
    stale_if_error: float = 0.0
    """Seconds that an answer still serves beyond its TTL while the name servers fail; 0 is never."""
    cache_entries: int = 10_000
    """Names kept; the one that was asked for longest ago goes first. About 1 KiB each."""


class Family(StrEnum):
    """A version of the internet protocol."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"


@dataclass(frozen=True, slots=True)
class Dial:
    """``dial:``. It applies to requests that begin after a reload."""

    prefer: Family = Family.IPV6
    """Which family is tried first (RFC 8305 §4 prefers IPv6); the two then take turns."""
    stagger: float = 0.25
    """Seconds that one address has before the next is tried beside it (RFC 8305 §5)."""
    max_attempts: int = 16
    """Addresses of one destination that are tried at most."""
    failure_memory: float = 10.0
    """Seconds for which an address that could not be reached, or that another has overtaken, is tried after the
    others; 0 is never."""
    source_addresses: tuple[str, ...] = ()
    """Where connections come from: an address of this machine, or one of each family. Empty leaves it to the system."""


class Ech(StrEnum):
    """What becomes of a tunnel whose ClientHello carries Encrypted ClientHello (RFC 9849)."""

    ALLOW = "allow"
    """The outer name, which anybody on the way can read, is compared."""
    GREASE = "grease"
    """Refused where the host publishes the configuration that the hello is encrypted with. What clients send to
    all others is noise (GREASE), and cannot be told from the real thing without asking."""
    REFUSE = "refuse"
    """Refused, GREASE or not."""


@dataclass(frozen=True, slots=True)
class Tunnels:
    """``tunnels:``. It applies to tunnels that begin after a reload."""

    ech: Ech = Ech.ALLOW


@dataclass(frozen=True, slots=True)
class Timeouts:
    """``timeouts:``, all in seconds. They apply to requests and tunnels that begin after
    a reload."""

    head: float = 10.0
    """From the first byte (or from accept) to the end of a request head: bounds slow heads."""
    keep_alive: float = 60.0
    """Between two requests of one client connection."""
    connect: float = 10.0
    """For one destination, all of its addresses together; through a parent proxy, until that has answered CONNECT."""
    connect_attempt: float = 4.0
    """For one address; those after it do not wait for that (``dial.stagger``)."""
    client_hello: float = 10.0
    """From the 200 to the end of the tunnel's ClientHello (``tls: verify``)."""
    response: float = 60.0
    """From the end of a request to the origin's answer (absolute-form)."""
    origin_keep_alive: float = 30.0
    """For which a connection to an origin waits for another request (absolute-form). Many origins close it after 60 s
    or less, and what they close first costs a repetition."""
    idle: float = 900.0
    """Without a byte in either direction, a tunnel or a body is closed. Longer than most keep-alive intervals."""
    lifetime: float = 86_400.0
    """A tunnel or a plain request is closed after this, whatever passes: no permission lasts for ever."""


@dataclass(frozen=True, slots=True)
class Limits:
    """``limits:`` of the whole proxy."""

    head_bytes: int = 32 * KIB
    """Bytes of a request or response head. Cookies and tokens of 8 to 16 KiB exist."""
    head_fields: int = 100
    """Header lines of a head."""
    client_hello_bytes: int = 32 * KIB
    """Bytes of a tunnel's ClientHello, with its record headers. Post-quantum ones have 2 KiB, tickets add some more."""
    connections: int = 10_000
    """Client connections at once; over it they are answered 503. Each may need two descriptors and
    two more for a pipe."""
    connections_per_client: int = 2000
    """Of these, from one client (of IPv6, one /64); over it that client is answered 503, and the others have room."""
    tunnels: int = 10_000
    """Tunnels open at once; over it CONNECT is answered 503."""
    heads: int = 2000
    """Clients at once that have connected, or begun a request head, and not finished it; over it they are answered 503.
    Such are few where clients mean well."""
    idle_origins: int = 1024
    """Connections to origins that wait for another request (absolute-form), in all; 0 is none. An eighth of all
    descriptors at most, whatever it says."""
    idle_per_origin: int = 64
    """Of these, to one origin for clients of one user and the same policies; 0 is none."""


@dataclass(frozen=True, slots=True)
class Audit:
    """``audit:``. Changing it needs a restart."""

    queue_lines: int = 100_000
    """Lines that wait while stdout stalls; beyond it lines are dropped and counted, DENIED lines last."""
    flush_interval: float = 0.1
    """Seconds that a line waits for company at most: one write carries a batch."""


class OnRevoke(StrEnum):
    """What becomes of an open tunnel that a new policy does not allow."""

    CLOSE = "close"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Credentials:
    """``credentials:``. Without it nobody is asked for a user name."""

    users_file: str = ""
    """Lines of ``user:hash`` with bcrypt hashes, as ``htpasswd -B`` writes them; read again when it changes."""
    required: bool = False
    """Whether a client without credentials is refused (407). Wrong credentials always are."""
    tenants: Mapping[str, str] = field(default_factory=dict)
    """The tenant that a user's requests are charged to, where the policy names none: ``USER: TENANT``."""
    users: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What the file says: each user's hash."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """``upstream:``. It applies to requests that begin after a reload."""

    proxy: Authority | None = None
    """The parent proxy, as `http://HOST:PORT`. No rule needs to name it, and its address may be a private one."""
    no_proxy: tuple[HostPattern | IPNetwork, ...] = ()
    """Hosts that are reached directly, and networks for destinations that are written as an address."""
    credentials_file: str = ""
    """A file with one line `user:password`, which the parent is shown; read again when it changes."""


@dataclass(frozen=True, slots=True)
class MemoryState:
    """``state: memory``: counters that end with the process."""

    def __str__(self) -> str:
        return "memory"


@dataclass(frozen=True, slots=True)
class FileState:
    """``state: sqlite:///PATH``: budgets outlive the process."""

    path: str
    """Absolute."""

    def __str__(self) -> str:
        return f"sqlite://{self.path}"


class OnStoreFailure(StrEnum):
    """What becomes of requests with limits while the shared store is away."""

    LOCAL = "local"
    """Each replica goes on by what it knows, and tells the store when that is back."""
    CLOSED = "closed"
    """They are refused."""


@dataclass(frozen=True, slots=True)
class SharedState:
    """``state: redis://…``: counters that all replicas share, in Redis or Valkey."""

    host: str = ""
    port: int = 6379
    database: int = 0
    tls: bool = False
    """``rediss://``."""
    user: str = ""
    """Empty is the store's default user."""
    password_file: str = ""
    """A file with one line, the password; read again when it changes, and then used after a restart."""
    ca_file: str = ""
    """Certificates of the authorities that the store's is checked against, as PEM; empty means the system's."""
    on_store_failure: OnStoreFailure = OnStoreFailure.LOCAL
    """By default requests go on: limits keep order, and rules keep the fence."""
    timeout: float = 0.1
    """Seconds that a request waits for the store at most: what a client does not notice beside a connection."""
    prefix: str = "egress-proxy"
    """What all of its keys begin with, in braces: another one for another group of replicas."""
    lease: float = 15.0
    """Seconds of silence after which a replica counts as dead, and its tunnels as closed."""
    password: str = field(default="", repr=False)
    """What the file says."""
    ca: str = field(default="", repr=False)
    """What the file says."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"redis{'s' if self.tls else ''}://{host}:{self.port}/{self.database}"


#: Where counters are kept.
State = MemoryState | FileState | SharedState


@dataclass(frozen=True, slots=True)
class Config:
    """One whole configuration."""

    policy: CompiledPolicy
    source: str
    """The file it came from."""
    digest: str
    """SHA-256 of the file's bytes, in hexadecimal; with further files, of the digests of all."""
    sources: Sources = field(default_factory=Sources, repr=False, compare=False)
    """Every file and directory that it was read from, to be watched for changes."""
    listen: Listen = field(default_factory=Listen)
    dns: Dns = field(default_factory=Dns)
    dial: Dial = field(default_factory=Dial)
    tunnels: Tunnels = field(default_factory=Tunnels)
    timeouts: Timeouts = field(default_factory=Timeouts)
    limits: Limits = field(default_factory=Limits)
    audit: Audit = field(default_factory=Audit)
    drain_timeout: float = 20.0
    """Seconds that open tunnels get after SIGTERM: Kubernetes' default grace period of 30 s, less a
    preStop sleep of 5 s, and what flushing the log may take."""
    credentials: Credentials | None = None
    parent_credentials: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """What goes to parent proxies as Proxy-Authorization, by the path of the file that it was read from."""
    on_revoke: OnRevoke = OnRevoke.CLOSE
    contract_headers: ContractHeaders = ContractHeaders.OFF
    """Whether a plain HTTP request that changes something must carry them, where no policy says otherwise: a client
    that was not told of them can send none."""
    forwarded_for: ForwardedFor = ForwardedFor.REMOVE
    """What origins are told about who asks in plain HTTP: nothing, for addresses of a cluster are its own business."""
    state: State = field(default_factory=MemoryState)
    """Where the counters of limits are kept. `memory`: they begin anew with each start."""
    admin_token_file: str | None = None
    """File with the bearer token of ``/v1/``; without it the admin port's ``/v1/`` answers on loopback alone."""

    contract_wanted: bool = field(init=False, repr=False, compare=False)
    """Whether contract headers are looked at for any request at all. Asked first, for each request."""

    names_tenants: bool = field(init=False, repr=False, compare=False)
    """Whether it says who requests are charged to, so that their lines name the tenant."""

    def __post_init__(self) -> None:
        said = (self.contract_headers, *(each.contract_headers for each in self.policy.policies))
        wanted = any(each not in (None, ContractHeaders.OFF) for each in said)
        object.__setattr__(self, "contract_wanted", wanted)
        named = any(each.tenant or each.trust_tenant_header for each in self.policy.policies)
        users = self.credentials is not None and bool(self.credentials.tenants)
        object.__setattr__(self, "names_tenants", named or users)

    @property
    def terms(self) -> Terms:
        """What it asks of requests that rules let through, beside what policies say."""
        tenants = {} if self.credentials is None else self.credentials.tenants
        return Terms(self.contract_headers, tenants)

    @property
    def asks(self) -> Asks:
        """Whom it asks for credentials."""
        if self.credentials is None:
            return Asks.NOBODY
        return Asks.EVERYBODY if self.credentials.required else Asks.WHOM_THEY_HELP
