"""The four neighbours played on this machine, for the demo, the tests and the benchmarks.

Owns a scripted LLM, a tool registry, an Agent Management service and an orchestrator, each on a real socket. Knows the
contract and nothing else of ours; nothing of ours knows it.
"""
