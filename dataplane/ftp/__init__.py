"""FTP server (RFC 959, 2428, 3659): `command`, `reply`, `address`, `paths` and `listing` read and write, `session`
decides, `doorkeeper` proves passwords, `protocol` and `transfer` are the applications of control and data connections,
on the stack."""

from dataplane.ftp.protocol import FtpApplication, kind

__all__ = ["FtpApplication", "kind"]
