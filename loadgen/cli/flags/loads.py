"""The flags that make a load more than single requests to one model: conversations, cancelled requests, models."""

from __future__ import annotations

import argparse
import re
from typing import Final

from loadgen.cli.flags import values
from loadgen.errors import UsageError
from loadgen.spec import GENERATING, Cancel, Endpoint, ModelMix

_AFTER: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?) *(?P<unit>tokens?|s|ms)")


def add_cancel(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "cancelled requests",
        "Clients that leave before the end. If the engine's metrics show that it goes on, the exit code is 1.",
    )
    group.add_argument(
        "--cancel", type=values.share, metavar="SHARE", help="share of the requests, such as 10%% or 0.1"
    )
    group.add_argument(
        "--cancel-after",
        type=cancel_after,
        metavar="WHEN",
        help="20tokens (of the response), or 1.5s or 300ms from sending",
    )
    group.add_argument(
        "--cancel-within",
        type=values.number(0, 600, above=True),
        default=1.0,
        metavar="S",
        help="the engine must have stopped by then (default %(default)g)",
    )
    group.add_argument(
        "--cancel-metrics",
        type=values.http_url,
        action="append",
        metavar="URL",
        help="where the engine shows its running requests; repeatable (default: /metrics of the server)",
    )


def cancel_after(text: str) -> str:
    """The text, checked."""
    cancel_point(text)
    return text


def cancel_point(text: str) -> tuple[int | None, float | None]:
    """(tokens, seconds), of which one is None."""
    match = _AFTER.fullmatch(text.strip())
    number = 0.0 if match is None else float(match["number"])
    if match is not None and number > 0:
        if match["unit"] in ("s", "ms"):
            return None, number if match["unit"] == "s" else number / 1000
        if number.is_integer():
            return int(number), None
    raise argparse.ArgumentTypeError(
        f"{text!r}: give a number of tokens or a time, such as 20tokens, 1.5s or 300ms"
    )


def cancel_of(args: argparse.Namespace, endpoint: Endpoint) -> Cancel | None:
    """Raises UsageError for a flag without the other."""
    share, after = getattr(args, "cancel", None), getattr(args, "cancel_after", None)
    if not share:
        if after is not None:
            raise UsageError("--cancel-after needs --cancel SHARE, such as --cancel 10%")
        return None
    if after is None:
        raise UsageError("--cancel needs --cancel-after, such as 20tokens or 1.5s")
    tokens, seconds = cancel_point(after)
    if tokens is not None and args.no_stream:
        raise UsageError("--cancel-after TOKENS needs a stream: with --no-stream give a time, such as 1.5s")
    if tokens is not None and endpoint not in GENERATING:
        raise UsageError(f"--endpoint {endpoint} generates no tokens: give --cancel-after a time, such as 20ms")
    return Cancel(share=share, tokens=tokens, seconds=seconds, seed=args.seed)


_SHARE: Final = re.compile(r"(?P<name>.+):(?P<share>0?\.\d+|1\.0+|\d+(?:\.\d+)?%)")


def model_share(text: str) -> tuple[str, float | None]:
    """A model's name and its share, if it has one: `a:0.7` and `a:70%` have one, `llama3:8b` has none."""
    match = _SHARE.fullmatch(text)
    if match is None:
        return text, None
    share = values.share(match["share"])
    if not share:
        raise argparse.ArgumentTypeError(f"{text!r}: the share must be above 0")
    return match["name"], share


class AddModel(argparse.Action):
    """`--model` once is a name; `model` stays the first one. All of them are in `model_mix`."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: object, _: object = None
    ) -> None:
        try:
            model = model_share(str(value))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        mix = [*getattr(namespace, "model_mix", []), model]
        namespace.model_mix = mix
        namespace.model = mix[0][0]


def add_lora(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several models")
    group.add_argument(
        "--lora-modules",
        nargs="+",
        type=model_share,
        metavar="NAME[:SHARE]",
        help="models to use instead of --model, such as LoRA adapters; the report has each one's figures",
    )
    group.add_argument(
        "--lora-assignment",
        choices=("random", "round-robin", "zipf"),
        default="random",
        help="random (by the shares, if given; default), in turn, or as popular as --zipf says, in their order",
    )


def models_of(args: argparse.Namespace) -> ModelMix | None:
    """None for one model. Raises UsageError."""
    listed = args.lora_modules or getattr(args, "model_mix", [])
    if not args.lora_modules and (len(listed) < 2 and not any(share for _, share in listed)):
        if args.lora_assignment != "random":
            raise UsageError("--lora-assignment needs several models: --lora-modules, or --model repeated")
        return None
    names = [name for name, _ in listed]
    if len({*names}) < len(names):
        raise UsageError("a model is named twice; give each one share")
    shares = [share for _, share in listed if share is not None]
    if shares and len(shares) < len(listed):
        raise UsageError("give a share to every model or to none, such as a:0.7 b:0.3")
    if shares and args.lora_assignment != "random":
        raise UsageError(f"--lora-assignment {args.lora_assignment} sets the shares; give the models without them")
    if args.lora_assignment == "zipf":
        shares = [(rank + 1) ** -args.zipf for rank in range(len(names))]
    return ModelMix(
        names=tuple(names),
        shares=tuple(shares or [1.0] * len(names)),
        in_turn=args.lora_assignment == "round-robin",
        by_prompt=args.duplicates > 0,
        seed=args.seed,
    )


def add_conversation_rate(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--conversation-rate",
        type=values.number(0, above=True),
        metavar="R",
        help="open loop: conversations (--turns) begun per second; else --max-concurrency users have one each",
    )
