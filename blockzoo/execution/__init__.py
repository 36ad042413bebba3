"""Blocks as something that runs: transformers' own modules, bound to tensors at each call.

`chain.RunnableChain` is the front door; the runtime and the certification of equivalences use
it. Needs torch and transformers, and never peft: adapters are applied here (`adapters`), and
held to peft's results by the tests.
"""
