"""Callbacks: the end of an execution, told by HTTP to whoever asked for it.

`destination.py` says where one may go, `secrets.py` what signs it, `door.py` asks both when one is accepted; `schedule.py`
says when it is sent again, and `callbacks.py` has the calls of the scripts in `lua/`, which alone judge. A callback comes to
be in the script that ends its execution (`ledger/lua/finish.lua`), and is sent by the notifier (`notifier/callbacks.py`).
"""
