"""Media files as RTP (RFC 3550): what of a file goes into which packet and when, as pure functions.

`mpegts` and `h264` make the table of a file, `plan` makes the packets of one playing of it, `rtcp` the reports.
Nothing here has a socket or a clock: a backup that knows the same few numbers makes the very same packets.
"""
