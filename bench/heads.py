"""Request heads as real clients send them: what `bench.py` and the scripts in `wrk/` send by default.

Each is the header fields of one client besides `Host`, key, `Content-Type` and `Content-Length`, in its
order and spelling. `plain(...)` is the same client without compression, the second column of the tables.
"""

CLIENTS = {
    # requests 2.32, of the Python SDK
    "python": [
        "User-Agent: flagsmith-python-sdk/5.0.3 python/3.12.3",
        "Accept-Encoding: gzip, deflate",
        "Accept: */*",
        "Connection: keep-alive",
    ],
    # net/http, of the Go SDK
    "go": ["User-Agent: flagsmith-go-sdk/5.0.0", "Accept: application/json", "Accept-Encoding: gzip"],
    # OkHttp 4.12, of the Java and Android SDKs
    "okhttp": ["Connection: Keep-Alive", "Accept-Encoding: gzip", "User-Agent: okhttp/4.12.0"],
    # fetch of Node 20 (undici)
    "node": [
        "connection: keep-alive",
        "accept: */*",
        "accept-language: *",
        "sec-fetch-mode: cors",
        "user-agent: node",
        "accept-encoding: gzip, deflate",
    ],
    # Chromium, the JavaScript SDK on a page of another origin
    "chromium": [
        "Connection: keep-alive",
        'sec-ch-ua: "Chromium";v="130", "Not?A_Brand";v="99"',
        "sec-ch-ua-mobile: ?0",
        'sec-ch-ua-platform: "Linux"',
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36",
        "Accept: */*",
        "Origin: https://shop.example",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Mode: cors",
        "Sec-Fetch-Dest: empty",
        "Referer: https://shop.example/",
        "Accept-Encoding: gzip, deflate, br, zstd",
        "Accept-Language: en-US,en;q=0.9",
    ],
}


def plain(lines):
    """The fields of a client that does not accept compression."""
    return [line for line in lines if not line.lower().startswith("accept-encoding:")]


def of(client, gzip=True):
    return CLIENTS[client] if gzip else plain(CLIENTS[client])


def text(gzip=True):
    """All clients for a load generator: one head after another, an empty line between them."""
    return "\n\n".join("\n".join(of(client, gzip)) for client in CLIENTS) + "\n"
