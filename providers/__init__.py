"""OpenAI, Groq, and whatever else speaks their wire, behind one boundary: `catalog.Providers` and `provider.Provider`.

Knows no execution, no queue and no Redis. Raises `agent_exec.errors.ProviderError` alone.
"""
