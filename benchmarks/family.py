"""The real models the benchmarks run on: what each was tuned from, and on which text."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: where ``family`` and ``texts`` lie
SHARED = Path(os.environ.get("BLOCKZOO_SHARED", ROOT.parent / "shared"))

#: the base and its full fine-tunes, and the domain of each; the base's is plain prose
FULL = {
    "base": "novel",
    "math-full": "math",
    "sql-full": "sql",
    "sql-then-trec-full": "trec",
    "shakespeare-top3": "shakespeare",
    "shakespeare-norms": "shakespeare",
    "novel-lora-merged": "novel",
    "chat-added-tokens": "math",
}
#: the base's adapters, and the domain of each
ADAPTERS = {
    "code-lora-qv": "code",
    "sentiment-lora-all": "sentiment",
    "trec-dora": "trec",
    "sentiment-ia3": "sentiment",
    "trec-prefix": "trec",
}
#: what each full fine-tune was tuned from
PARENTS = {name: "base" for name in FULL if name != "base"} | {"sql-then-trec-full": "sql-full"}
