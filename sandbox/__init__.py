"""The four neighbours played on this machine, and the whole stack in one terminal; for the demo, tests and benchmarks.

Owns a scripted LLM, a tool registry, an Agent Management service and an orchestrator, each on a real socket: these know the
contract and nothing else of ours. `stack`, `up` and `demo` start the real processes beside them. Nothing of ours knows it.
"""
