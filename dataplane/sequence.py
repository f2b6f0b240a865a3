"""TCP sequence numbers: a type whose arithmetic wraps, so that nobody compares them as integers (RFC 9293, 3.4)."""

from __future__ import annotations

_MODULUS = 1 << 32
_HALF = 1 << 31
_new, _plus, _minus = int.__new__, int.__add__, int.__sub__


class Seq(int):
    """A 32-bit sequence number.

    `Seq + n` and `Seq - n` wrap; `a.distance(b)` is how far `b` lies ahead of `a`, from -2**31 to 2**31 - 1;
    `<`, `<=`, `>`, `>=` order two numbers that are less than half the space apart, as the standard does.
    """

    __slots__ = ()

    def __new__(cls, value: int) -> Seq:
        return _new(cls, value % _MODULUS)

    def __add__(self, count: int) -> Seq:
        return _new(Seq, _plus(self, count) % _MODULUS)

    def __sub__(self, count: int) -> Seq:
        return _new(Seq, _minus(self, count) % _MODULUS)

    def distance(self, other: int) -> int:
        """How far `other` lies ahead of this number; negative when it lies behind."""
        return (int(other) - int(self) + _HALF) % _MODULUS - _HALF

    def ahead(self, other: int) -> int:
        """How far `other` lies ahead when it is known not to lie behind: 0 to 2**32 - 1."""
        return (int(other) - int(self)) % _MODULUS

    def __lt__(self, other: int) -> bool:
        return self.distance(other) > 0

    def __le__(self, other: int) -> bool:
        return self.distance(other) >= 0

    def __gt__(self, other: int) -> bool:
        return self.distance(other) < 0

    def __ge__(self, other: int) -> bool:
        return self.distance(other) <= 0

    def __repr__(self) -> str:
        return f"Seq({int(self)})"
