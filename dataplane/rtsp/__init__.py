"""RTSP 1.0 server of media files (RFC 2326): `message` and `headers` read and write, `session` decides, `protocol`
is the application on the stack."""

from dataplane.rtsp.protocol import RTSP, RtspApplication

__all__ = ["RTSP", "RtspApplication"]
