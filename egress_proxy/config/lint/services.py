"""What listens on well-known ports other than the web's, and what a client could do there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    harm: str
    """What a client can do there, after "through which"."""
    plain: str = ""
    """How a connection starts if not with TLS: ``never`` or ``seldom`` does it start with TLS."""


_MAIL: Final = "mail can be read and sent"
_SHELL: Final = "a client can work on other machines, and tunnel whatever it wants"
_FILES: Final = "files can be carried off"
_DIRECTORY: Final = "a directory of users can be read"
_DNS: Final = "data can leave in the names that are asked for"
_DATABASE: Final = "a database can be read and filled"
_CONTROL: Final = "a cluster or its machines can be taken over"

#: By port. What speaks HTTP in clear is not "plain": requests in absolute form reach it without a tunnel.
SERVICES: Final = {
    21: Service("FTP", _FILES, "never"),
    22: Service("SSH", _SHELL, "never"),
    23: Service("Telnet", _SHELL, "never"),
    25: Service("SMTP", _MAIL, "never"),
    53: Service("DNS", _DNS, "never"),
    110: Service("POP3", _MAIL, "never"),
    139: Service("SMB", _FILES, "never"),
    143: Service("IMAP", _MAIL, "never"),
    389: Service("LDAP", _DIRECTORY, "never"),
    445: Service("SMB", _FILES, "never"),
    465: Service("SMTP over TLS", _MAIL),
    587: Service("mail submission", _MAIL, "never"),
    636: Service("LDAP over TLS", _DIRECTORY),
    853: Service("DNS over TLS", _DNS),
    873: Service("rsync", _FILES, "never"),
    993: Service("IMAP over TLS", _MAIL),
    995: Service("POP3 over TLS", _MAIL),
    1433: Service("SQL Server", _DATABASE, "seldom"),
    1521: Service("Oracle", _DATABASE, "seldom"),
    2049: Service("NFS", _FILES, "never"),
    2375: Service("Docker", _CONTROL),
    2376: Service("Docker", _CONTROL),
    2379: Service("etcd", _CONTROL),
    2380: Service("etcd", _CONTROL),
    3306: Service("MySQL", _DATABASE, "never"),
    3389: Service("RDP", _SHELL, "never"),
    5432: Service("PostgreSQL", _DATABASE, "seldom"),
    5900: Service("VNC", _SHELL, "never"),
    5985: Service("WinRM", _SHELL),
    5986: Service("WinRM", _SHELL),
    6379: Service("Redis", _DATABASE, "seldom"),
    6443: Service("Kubernetes", _CONTROL),
    9042: Service("Cassandra", _DATABASE, "seldom"),
    9200: Service("Elasticsearch", _DATABASE),
    10250: Service("kubelet", _CONTROL),
    11211: Service("memcached", _DATABASE, "seldom"),
    27017: Service("MongoDB", _DATABASE),
}
