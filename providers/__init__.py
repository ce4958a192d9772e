"""OpenAI, Groq, and whatever else speaks their wire, behind one boundary: `catalog.Providers` and `provider.Provider`.

Knows no execution and no queue; of Redis, only the limits that all workers share (`gate.Gate`). Raises
`agent_exec.errors.ProviderError` alone.
"""
