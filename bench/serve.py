"""The server of examples/serve.py at several numbers of clients: `python -m bench.serve`, about a minute.

Three servers, each a process: stock transformers (batches sorted by length, 16 rows, padded), our full depth, and early
exit; all in float32, with the same dynamic batching. Clients ask for one row at a time over connections that stay open,
and ask again once they are answered. Servers take turns, the others idle; the clients are a process beside them on the
same cores. Answers of full depth are held against stock's first.
"""

import argparse
import asyncio
import importlib.util
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import pabee_fast as pf
from bench import timing
from bench.text import columns
from pabee_fast.runtime.device import choose_device

ROOT = Path(__file__).parents[1]
VARIANTS = ("stock", "full depth", "early exit")
BATCH = 16
CLOSE = 1e-3
"""How far scores of full depth may lie from stock's."""
STARTS = 120
"""Seconds that a server may take to load its model."""

Score = Callable[[list[Any]], Sequence[pf.RowResult]]


def stock(directory: str, device: torch.device) -> Score:
    """Return what scores rows as stock transformers does."""
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).to(device).eval()
    tokenizer, names = AutoTokenizer.from_pretrained(directory), model.config.id2label
    longest = min(tokenizer.model_max_length, model.config.max_position_embeddings)

    @torch.no_grad()
    def score(rows: list[Any]) -> list[pf.RowResult]:
        tokens = tokenizer(rows, truncation=True, max_length=longest)
        order = np.argsort([len(ids) for ids in tokens["input_ids"]])
        results: dict[int, pf.RowResult] = {}
        for start in range(0, len(rows), BATCH):
            places = order[start : start + BATCH].tolist()
            some = {name: [values[place] for place in places] for name, values in tokens.items()}
            batch = tokenizer.pad(some, return_tensors="pt").to(device)
            for place, row in zip(places, model(**batch).logits.softmax(dim=1).tolist(), strict=True):
                best = max(range(len(row)), key=row.__getitem__)
                results[place] = pf.RowResult(names[best], row[best], tuple(row), model.config.num_hidden_layers)
        return [results[place] for place in range(len(rows))]

    return score


def example() -> Any:
    """examples/serve.py."""
    spec = importlib.util.spec_from_file_location("example_serve", ROOT / "examples" / "serve.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_server(args: argparse.Namespace) -> None:
    """One of the servers, until it is ended."""
    server, device = example(), choose_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.variant == "stock":
        score = stock(args.model, device)
    else:
        policy = args.policy if args.variant == "early exit" else "full-depth"
        scorer = pf.Scorer.from_pretrained(args.model, policy, device=device, dtype="float32")

        def score(rows: list[Any]) -> list[pf.RowResult]:
            return list(scorer.score(rows))

    app = server.make_app(score, {"variant": args.variant}, rows=args.rows, wait_ms=args.wait_ms)
    server.serve(app, "127.0.0.1", args.port)


class Server:
    """One of the servers, in a process of its own."""

    def __init__(self, variant: str, args: argparse.Namespace) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        told = {"--model": args.model, "--policy": args.policy, "--device": args.device, "--rows": args.rows}
        told |= {"--wait-ms": args.wait_ms, "--variant": variant, "--port": self.port, "--threads": args.threads}
        words = [str(word) for pair in told.items() for word in pair]
        self.process = subprocess.Popen([sys.executable, "-m", "bench.serve", *words], cwd=ROOT)

    def wait(self) -> None:
        """Until it answers."""
        until = time.monotonic() + STARTS
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health").close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > until:
                    raise SystemExit("a server did not start") from None
                time.sleep(0.1)

    def ask(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Return the results of one request."""
        body, kind = json.dumps({"texts": texts}).encode(), {"content-type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/classify", body, kind)
        with urllib.request.urlopen(request) as answer:
            results: list[dict[str, Any]] = json.load(answer)["results"]
        return results

    def end(self) -> None:
        """End its process."""
        self.process.terminate()
        self.process.wait()


async def load(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> tuple[list[float], float]:
    """Return seconds that each request took, and seconds that all of them did."""
    took: list[float] = []
    started = time.perf_counter()

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        turn = number
        while (asked := time.perf_counter()) < started + seconds:
            writer.write(requests[turn % len(requests)])
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not head.startswith(b"http/1.1 200"):
                raise SystemExit(f"a server answered {head[:40]!r}")
            await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
            took.append(time.perf_counter() - asked)
            turn += clients
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*map(client, range(clients)))
    return took, time.perf_counter() - started


def as_request(text: str) -> bytes:
    """Return the bytes of a request of one row."""
    body = json.dumps({"texts": [text]}).encode()
    head = f"POST /classify HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def check(servers: dict[str, Server], texts: Sequence[str]) -> dict[str, float]:
    """Hold full depth against stock; how often early exit agrees, and after how many layers."""
    found = {variant: server.ask(texts) for variant, server in servers.items()}
    for ours, theirs in zip(found["full depth"], found["stock"], strict=True):
        if ours["prediction"] != theirs["prediction"] or abs(ours["score"] - theirs["score"]) > CLOSE:
            raise SystemExit(f"full depth answers {ours} where stock answers {theirs}")
    same = [a["prediction"] == b["prediction"] for a, b in zip(found["early exit"], found["stock"], strict=True)]
    exits = [result["exit_layer"] for result in found["early exit"]]
    return {"agreement": float(np.mean(same)), "mean_exit_layer": float(np.mean(exits))}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Start the servers, check them, and let clients ask them by turns."""
    texts = args.texts[: args.most_texts]
    servers: dict[str, Server] = {}
    try:
        for variant in VARIANTS:
            servers[variant] = Server(variant, args)
        for server in servers.values():
            server.wait()
        checked = check(servers, texts)
        requests, found = [as_request(text) for text in texts], []
        for clients in args.clients:
            took: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
            spent = dict.fromkeys(VARIANTS, 0.0)
            for turn in range(args.rounds):
                for variant in VARIANTS[turn % 3 :] + VARIANTS[: turn % 3]:
                    some, seconds = asyncio.run(load(servers[variant].port, requests, clients, args.seconds))
                    took[variant] += some
                    spent[variant] += seconds
            for variant in VARIANTS:
                p50, p99 = (1_000 * np.quantile(took[variant], (0.5, 0.99))).tolist()
                rate = len(took[variant]) / spent[variant]
                found.append({"clients": clients, "variant": variant, "p50_ms": p50, "p99_ms": p99, "rows_s": rate})
    finally:
        for server in servers.values():
            server.end()
    return {"measured": found, **checked}


def arguments() -> argparse.Namespace:
    """Return what the command was told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "examples" / "sample-model"))
    parser.add_argument("--policy", default="patience:3")
    parser.add_argument("--table", default=str(ROOT / "examples" / "sample.csv"))
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--most-texts", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of a server's model; 0: torch's choice")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=64, help="most rows of a call")
    parser.add_argument("--wait-ms", type=float, default=2.0)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.variant:
        run_server(args)
        return
    import pyarrow.csv

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the servers would outlive this process
    args.texts = pyarrow.csv.read_csv(args.table)[args.text_column].to_pylist()
    figures = measure(args)
    device = choose_device(args.device)
    print(f"{Path(args.model).name}, float32, {timing.hardware(device)}, torch {torch.__version__}")
    if args.threads:
        print(f"each model on {args.threads} of these threads")
    print(
        f"{args.policy}: mean exit layer {figures['mean_exit_layer']:.2f}, answers of full depth "
        f"{figures['agreement']:.1%}; calls of up to {args.rows} rows, or what came in {args.wait_ms} ms"
    )
    lines = [["clients", "server", "p50 ms", "p99 ms", "rows/s"]]
    for one in figures["measured"]:
        times = [f"{one['p50_ms']:.1f}", f"{one['p99_ms']:.1f}", f"{one['rows_s']:.0f}"]
        lines.append([str(one["clients"]), one["variant"], *times])
    print(columns(lines, left=(1,)))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
