"""Sockets and HTTP/1.1 on the client's side: accept connections within their limit, read the PROXY protocol
header and the request's head, bound how long a client may take. Only `listener.py` uses private names of
aiohttp; its head says how to leave them."""
