"""What an error of Redis means, from the texts of Redis 3.2, 5.0, 6.2 and 7.0."""

from __future__ import annotations

import pytest

from proxy.redis.refusal import ADVICE, MAX_TEXT, REASONS, explained, kind_of, reason_of
from proxy.redis.resp import Lost, ReplyError
from tests.kit.cpu import cpu_seconds

SCRIPT = "ERR Error running script (call to f_0a1b): @user_script:27: "


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", "OOM"),
        ("MOVED 3999 127.0.0.1:6381", "MOVED"),
        ("READONLY You can't write against a read only replica. script: 0a1b, on @user_script:27.", "READONLY"),
        (SCRIPT + "@user_script: 27: -READONLY You can't write against a read only replica.", "READONLY"),
        (SCRIPT + "@user_script: 27: -OOM command not allowed when used memory > 'maxmemory'.", "OOM"),
        (SCRIPT + "WRONGTYPE Operation against a key holding the wrong kind of value", "WRONGTYPE"),
        ("ERR The user executing the script can't run this command or subcommand script: 0a1b", "NOPERM"),
        (
            SCRIPT + "@user_script: 12: The user executing the script can't run this command or subcommand",
            "NOPERM",
        ),
        (SCRIPT + "@user_script: 27: Write commands not allowed after non deterministic commands. Call x", "ERR"),
        (SCRIPT + "-DENIED by a module", "ERR"),
        ("DENIED x", "ERR"),
        ("ERR x", "ERR"),
        ("oom x", "ERR"),
        ("", "ERR"),
    ],
)
def test_the_reason_is_redis_own_code_inside_a_script_too(text: str, reason: str) -> None:
    assert reason_of(text) == ReplyError(text).reason == reason
    assert reason in REASONS


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "NOPERM this user has no permissions to run the 'mget' command or its subcommand",
            "(NOPERM mget): its ACL",
        ),
        ("NOPERM this user has no permissions to run the 'script|load' command", "(NOPERM script): its ACL"),
        ("NOPERM this user has no permissions to access one of the keys used as arguments", "(NOPERM): its ACL"),
        (
            "ERR SELECT is not allowed in cluster mode",
            "(ERR): --redis names a database, and it is a node of a Redis C",
        ),
        ("ERR DB index is out of range", "(ERR): it has no database of that number; "),
        ("ERR invalid DB index", "(ERR): it has no database of that number; "),
        ("ERR max number of clients reached", "(ERR): it has as many clients as its maxclients allows"),
        ("ERR unknown command `MGET`, with args beginning with: `k`, ", "(ERR): it lacks a command that"),
        (
            SCRIPT + "@user_script: 27: Write commands not allowed after non deterministic commands.",
            "(ERR): it is old",
        ),
        ("ERR wrong number of arguments", "(ERR)"),
        ("DENIED x", "(DENIED)"),
        ("NOPERM the 'secret word' command", "(NOPERM): its ACL"),
    ],
)
def test_the_remedy_is_said_and_no_argument_is(text: str, says: str) -> None:
    assert explained(text).startswith(says)
    assert explained(text).endswith(")") is says.endswith(")")
    assert "`k`" not in explained(text)


def test_a_remedy_is_one_line_for_a_log_and_reasons_that_share_it_are_of_one_kind() -> None:
    assert all(words.isprintable() and len(words) < 120 for words in ADVICE.values())
    cluster = {kind_of(reason) for reason in ("ASK", "CROSSSLOT", "MOVED", "TRYAGAIN")}
    assert len(cluster) == 1
    assert len({kind_of(reason) for reason in REASONS}) == len(REASONS) - 3
    assert kind_of("LOADING") == kind_of(Lost("gone").reason) == "", "it follows a loss"


def test_an_endless_error_is_read_to_its_first_words_only() -> None:
    endless = "ERR Error running script: -A " * 1_000_000 + "-OOM x"
    assert cpu_seconds(lambda: ReplyError(endless)) < 5
    error = ReplyError(endless)
    assert error.reason == "ERR"
    assert len(str(error)) < MAX_TEXT
