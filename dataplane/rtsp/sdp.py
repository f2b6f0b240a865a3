"""Session descriptions (RFC 4566) of one stream, with the attributes of RFC 2326 appendix C."""

from __future__ import annotations

from dataplane.rtp.media import Media
from dataplane.rtp.packet import CLOCK_RATE
from dataplane.rtsp.headers import TRACK, npt
from state.sections import ObjectRef

TYPE = "application/sdp"


def describe(ref: ObjectRef, media: Media, server: str) -> bytes:
    """`server`: address of the VIP. The version changes with the file."""
    family, anywhere = ("IP6", "::") if ":" in server else ("IP4", "0.0.0.0")
    version = ref.mtime_ns // 1_000_000_000
    name = "".join(letter if letter.isprintable() else "?" for letter in ref.identifier)
    lines = [
        "v=0",
        f"o=- {abs(version)} {abs(version)} IN {family} {server}",
        f"s={name}",
        "t=0 0",
        "a=control:*",
        f"a=range:npt=0-{npt(media.ticks(media.packets))}",
        f"m=video 0 RTP/AVP {media.payload_type}",
        f"c=IN {family} {anywhere}",
        f"a=rtpmap:{media.payload_type} {media.encoding}/{CLOCK_RATE}",
        f"a=control:{TRACK}",
    ]
    if media.parameters:
        lines.insert(-1, f"a=fmtp:{media.payload_type} {media.parameters}")
    return "".join(f"{line}\r\n" for line in lines).encode("utf-8")
