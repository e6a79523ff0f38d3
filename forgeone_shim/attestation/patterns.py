"""Regular expressions about signers: RE2's, as whoever wrote them for policy-controller tried them there.

What they are matched with is written by strangers: a certificate's name is its owner's choice, and Python's own
expressions can be kept busy for years by one (``(.+\\.)*example`` and a name of many dots), with every thread waiting.
RE2 takes time that grows with the text alone. It comes with CEL. https://github.com/google/re2/wiki/syntax
"""

from __future__ import annotations

from cel_expr_python import cel


class Pattern:
    """One expression. Thread-safe."""

    def __init__(self, text: str) -> None:
        """:raises ValueError: it is none."""
        if "\0" in text:
            raise ValueError("it has a NUL")
        self._text = text
        self._env = cel.NewEnv(variables={"text": cel.Type.STRING, "pattern": cel.Type.STRING})
        self._program = self._env.compile("text.matches(pattern)")
        self._matches("")

    def __repr__(self) -> str:
        return f"Pattern({self._text!r})"

    def search(self, text: str) -> bool:
        """Whether something in the text matches; where that cannot be told, nothing does."""
        # The binding would end the text there.
        if "\0" in text:
            return False
        try:
            return self._matches(text)
        except ValueError:
            return False

    def _matches(self, text: str) -> bool:
        try:
            value = self._program.eval(self._env.Activation({"text": text, "pattern": self._text}))
            found, answer = value.type(), value.value()
        except Exception as error:  # the binding raises what it likes
            raise ValueError(str(error)[:200]) from None
        if found != cel.Type.BOOL:
            raise ValueError(str(answer).rpartition("regular expression: ")[2][:200])
        return answer is True
