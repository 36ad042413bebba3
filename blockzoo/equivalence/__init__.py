"""Proving that one block may stand in for another, and at what cost.

`certify` is the front door: it swaps blocks in the receiving model, measures what that does to
its next-token distributions, and keeps the result as a record. Whoever shares blocks without
loss of bytes being proven (`dedupe --equivalent`, adaptive assembly) does so on such a record.
"""
