"""What an error reply of Redis means: its reason, one of a bounded set, and what an operator does about it."""

from __future__ import annotations

import re
from typing import Final

MAX_TEXT: Final = 500  # characters of an error that are read
_CLUSTER: Final = "it is a node of a Redis Cluster; write --redis redis+cluster://HOST:PORT in place of redis://"

OTHER: Final = "ERR"  # the reason of each error that is not in ADVICE
ADVICE: Final = {
    "ASK": _CLUSTER,
    "BUSY": "one of its scripts runs for long; wait for it, or end it with SCRIPT KILL",
    "CLUSTERDOWN": "some slots of the Redis Cluster have no master; CLUSTER INFO and CLUSTER NODES say which",
    "CROSSSLOT": _CLUSTER,
    "LOADING": "it reads its data set from disk, and answers when it has finished",
    "MASTERDOWN": "it is a replica that has lost its master; give --redis the master",
    "MISCONF": "it cannot save to its disk and accepts no writes until it can; its log has the reason",
    "MOVED": _CLUSTER,
    "NOAUTH": "it requires a password; add it to --redis",
    "NOPERM": "its ACL user lacks a command or key pattern; the documentation lists those needed",
    "NOREPLICAS": "too few replicas are connected (min-replicas-to-write), so that it accepts no writes",
    "OOM": "its memory is full; raise its maxmemory, or set its maxmemory-policy to volatile-lru",
    "READONLY": "it is a replica; give --redis its master, or its Sentinels (redis+sentinel://)",
    "TRYAGAIN": _CLUSTER,
    "WRONGPASS": "it does not accept the user and the password in --redis",
    "WRONGTYPE": "another program writes to the gateway's keys; give it a Redis or a --redis-namespace of its own",
}
"""What to do about each reason: an error code of Redis."""
REASONS: Final = (*ADVICE, OTHER)

_PHRASES: Final = {
    "not allowed in cluster mode": f"--redis names a database, and {_CLUSTER}",
    "DB index": "it has no database of that number; use another at the end of --redis, such as /0",
    "number of clients": "it has as many clients as its maxclients allows",
    "unknown command": "it lacks a command that the gateway needs: it is too old, a proxy, or renames commands",
    "non deterministic commands": "it is older than Redis 5, which rate limits need",
}
"""What to do about errors without a code of their own, by a part of their text."""
_SCRIPT_USER: Final = "The user executing the script can't"  # NOPERM inside a script
_INSIDE: Final = re.compile(r"Error running script.*: -?([A-Z]{2,32}) ", re.DOTALL)  # before Redis 7
_COMMAND: Final = re.compile(r"'([a-z]{1,40})(?:\|[a-z]{1,40})?' command")


def code_of(text: str) -> str:
    """The first word of an error reply, where it is one: ERR, OOM, READONLY, MOVED, NOSCRIPT..."""
    word = text.partition(" ")[0]
    return word if word.isascii() and word.isalpha() and word.isupper() and len(word) <= 32 else OTHER


def reason_of(text: str) -> str:
    """The reason of an error reply: a key of ADVICE, or OTHER."""
    text = text[:MAX_TEXT]
    code = code_of(text)
    if code == OTHER:
        inside = _INSIDE.search(text)
        code = inside[1] if inside else "NOPERM" if _SCRIPT_USER in text else code
    return code if code in ADVICE else OTHER


def explained(text: str) -> str:
    """The code and what to do, in one line without a word of the command's arguments."""
    text = text[:MAX_TEXT]
    reason = reason_of(text)
    command = _COMMAND.search(text) if reason == "NOPERM" else None
    known = (advice for phrase, advice in _PHRASES.items() if phrase in text)
    advice = ADVICE.get(reason) or next(known, "")
    shown = code_of(text) if reason == OTHER else reason
    return f"({shown}{f' {command[1]}' if command else ''}){advice and ': '}{advice}"


def kind_of(reason: str) -> str:
    """Reasons with the same remedy are of one kind, and are reported once. LOADING is of the kind of a loss (""):
    it follows one and ends by itself."""
    return "" if reason == "LOADING" else ADVICE.get(reason, reason)
