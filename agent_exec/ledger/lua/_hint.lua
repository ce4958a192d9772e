-- Shared by the scripts that name hints: what of a hint the ledger knows. Its twin reads it: hint_of in ledger/pending.py.
local function hint(tenant, execution, agent, priority, step, fields)
  return {tenant, agent, execution, step, tonumber(priority), fields.fence, fields.parent}
end
