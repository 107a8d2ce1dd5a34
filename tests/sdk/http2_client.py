"""httpx with HTTP/2: http2_client.py ORIGIN SERVER_KEY. Many requests at once on one connection."""

import asyncio
import sys

import httpx

origin, key = sys.argv[1:]


async def main():
    limits = httpx.Limits(max_connections=1)
    headers = {"X-Environment-Key": key}
    # Without HTTP/1.1 the client begins with the preface in cleartext too.
    options = {"http1": False, "http2": True, "verify": False, "limits": limits, "timeout": 60}
    async with httpx.AsyncClient(base_url=origin, headers=headers, **options) as client:

        # Together below the window for bodies of one connection, 1 MiB (docs/limits.md).
        async def ask(number):
            if number % 2 == 0:
                return await client.get("/api/v1/flags/")
            padding = "x" * (number * 80)
            return await client.post("/api/v1/identities/", json={"identifier": f"user-{number}", "padding": padding})

        first = await ask(0)
        assert first.http_version == "HTTP/2", first.http_version
        for number, answer in enumerate(await asyncio.gather(*(ask(number) for number in range(200)))):
            assert (answer.status_code, answer.http_version) == (200, "HTTP/2"), answer.text
            body = answer.json()
            flags = body if number % 2 == 0 else body["flags"]
            assert any(flag["feature"]["name"] == "banner" for flag in flags), body
            assert number % 2 == 0 or body["identifier"] == f"user-{number}", body
        again = await client.get("/api/v1/flags/", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b""), again.text
        assert (await client.get("/unknown")).status_code == 404
    print("200 requests")


asyncio.run(main())
