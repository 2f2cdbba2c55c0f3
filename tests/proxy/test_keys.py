"""`python -m proxy.keys`: the entry on stdout, the key on stderr, and the two belong together."""

from __future__ import annotations

import io

import pytest

from proxy.access.api_keys import read_keys
from proxy.keys import main, new_key


def test_a_new_key_is_let_in_by_its_entry_which_does_not_hold_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "team-a", "--tenant", "blue", "--model", "m1", "--model", 'm"2']) == 0
    told = capsys.readouterr()
    key = told.err.strip()
    caller = read_keys(told.out, "k").find(key)
    assert caller is not None
    assert (caller.name, caller.models) == ("team-a", frozenset({"m1", 'm"2'}))
    assert key not in told.out
    assert len(key) > 40
    assert key != new_key()


@pytest.mark.parametrize("short", [False, True])
def test_a_key_that_exists_is_hashed_from_stdin_and_a_short_one_is_warned_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    warning = "proxy.keys: warning: a key under 16 characters can be guessed; new NAME makes one\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("my-own-key-0123\n" if short else "my-own-key-01234\n"))
    assert main(["hash", "old"]) == 0
    told = capsys.readouterr()
    assert read_keys(told.out, "k").find("my-own-key-0123" if short else "my-own-key-01234") is not None
    assert told.err == (warning if short else "")


@pytest.mark.parametrize(
    ("argv", "given"), [(["hash", "a"], "\n"), (["hash", "a"], "a b\n"), (["hash", "a b"], "k")]
)
def test_what_could_not_be_used_is_refused(
    argv: list[str], given: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(given))
    assert main(argv) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("proxy.keys: ")


def test_a_key_may_be_made_to_end_and_for_an_operator(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "ops", "--expires", "2027-01-31T00:00:00Z", "--operator"]) == 0
    told = capsys.readouterr()
    caller = read_keys(told.out, "k").find(told.err.strip())
    assert caller is not None
    assert (caller.expires, caller.operator) == (1801353600.0, True)
    assert main(["new", "ops", "--expires", "soon"]) == 2


def test_without_a_command_it_says_which_there_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["proxy/keys.py"])
    assert main([]) == 2
    told = "proxy.keys: a COMMAND is required, new or hash; python -m proxy.keys --help explains them\n"
    assert capsys.readouterr().err == told
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.startswith("usage: python -m proxy.keys [-h] [--version] COMMAND ...\n")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["new"], "the following arguments are required: NAME"),
        (["new", "a", "--expires"], "flag --expires: needs a value"),
        (["new", "a", "--operator=yes"], "flag --operator: takes no value"),
        (["new", "a", "--tenat", "sk-secret"], "unknown flag --tenat; "),
        (["new", "a", "--tenat=sk-secret"], "unknown flag --tenat; "),
        (["hash", "a", "sk-secret"], "one NAME is expected, and no other argument; a key is read from stdin"),
        (["make", "a"], "COMMAND: invalid choice: 'make'"),
    ],
)
def test_a_wrong_command_line_is_one_line_that_names_the_flag(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"proxy.keys: {said}")
    assert told.err.count("\n") == 1
    assert "secret" not in told.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["new", "a b"], "name: must be 1 to 64 letters"),
        (["new", "a", "--tenant", ""], "tenant: must be a text of 1 to 256 characters"),
        (["new", "a", "--expires", "tomorrow"], "expires: must be a time with its offset"),
        (
            ["hash", "a"],
            "a key has printable ASCII characters and no spaces; hash reads it from stdin: hash NAME < FILE",
        ),
    ],
)
def test_what_is_wrong_is_told_by_its_name_and_without_the_line_of_a_file(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(argv) == 2
    assert capsys.readouterr().err.startswith(f"proxy.keys: {said}")


def test_a_key_that_no_header_can_hold_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for given in ("\u00e9\n", "a\x7fb\n", "a\tb"):
        monkeypatch.setattr("sys.stdin", io.StringIO(given))
        assert main(["hash", "old"]) == 2
        assert capsys.readouterr().err == "proxy.keys: a key has printable ASCII characters and no spaces\n"


def test_no_stdin_and_one_that_cannot_be_read_hold_no_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def readline(self) -> str:
            raise self.error

    for stdin in (None, Broken(OSError()), Broken(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"))):
        monkeypatch.setattr("sys.stdin", stdin)
        assert main(["hash", "old"]) == 2
        assert "printable ASCII" in capsys.readouterr().err


def test_an_entry_has_what_was_asked_for_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "plain"]) == 0
    told = capsys.readouterr()
    assert [line.partition(" ")[0] for line in told.out.splitlines()] == ["[[keys]]", "name", "sha256"]
    caller = read_keys(told.out, "k").find(told.err.strip())
    assert caller is not None
    assert (caller.operator, caller.models) == (False, None)
    assert main(["new", "team", "--tenant", "t", "--operator", "--model", "m"]) == 0
    names = [line.partition(" ")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["[[keys]]", "name", "sha256", "tenant", "models", "role"]
