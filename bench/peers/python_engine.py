"""The PyPI engine in the smallest FastAPI server that does the Python Edge Proxy's job its way.

python_engine.py PORT KEY DOCUMENT: flags, identities and the document of one environment, for one
server-side key. As the Python Edge Proxy 2.23 does: the parsed document is kept, the engine's
context is mapped from it for each request (its caches are off unless configured), answers go
through the CORS and gzip middlewares, and uvicorn runs with h11 and asyncio.
"""

import sys

import orjson
import uvicorn
from fastapi import FastAPI, Header, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.gzip import GZipMiddleware
from flag_engine.engine import get_evaluation_result
from flagsmith.mappers import (
    map_context_and_identity_data_to_context,
    map_environment_document_to_context,
)
from pydantic import BaseModel

port, key, path = sys.argv[1:]
with open(path, "rb") as file:
    document = orjson.loads(file.read())
features = {state["feature"]["name"]: state["feature"] for state in document["feature_states"]}
app = FastAPI()
app.add_middleware(
    CORSMiddleware,
    allow_origins=["*"],
    allow_credentials=True,
    allow_methods=["*"],
    allow_headers=["*"],
)
app.add_middleware(GZipMiddleware, minimum_size=1000)


class Trait(BaseModel):
    trait_key: str
    trait_value: bool | int | float | str | None = None


class Identity(BaseModel):
    identifier: str
    traits: list[Trait] = []


def flags(result):
    return [
        {
            "feature": {"id": feature["id"], "name": name, "type": feature["type"]},
            "enabled": result["flags"][name]["enabled"],
            "feature_state_value": result["flags"][name]["value"],
        }
        for name, feature in features.items()
    ]


def answer(body):
    return Response(orjson.dumps(body), media_type="application/json")


@app.get("/api/v1/flags/")
async def get_flags(x_environment_key: str = Header()):
    if x_environment_key != key:
        return Response(status_code=401)
    context = map_environment_document_to_context(document)
    return answer(flags(get_evaluation_result(context)))


@app.post("/api/v1/identities/")
async def post_identities(identity: Identity, x_environment_key: str = Header()):
    if x_environment_key != key:
        return Response(status_code=401)
    traits = {trait.trait_key: trait.trait_value for trait in identity.traits}
    context = map_environment_document_to_context(document)
    result = get_evaluation_result(
        map_context_and_identity_data_to_context(context, identity.identifier, traits)
    )
    body = {
        "identifier": identity.identifier,
        "traits": [trait.model_dump() for trait in identity.traits],
        "flags": flags(result),
    }
    return answer(body)


@app.get("/api/v1/environment-document/")
async def get_document(x_environment_key: str = Header()):
    if x_environment_key != key:
        return Response(status_code=401)
    return answer(document)


uvicorn.run(
    app,
    host="127.0.0.1",
    port=int(port),
    http="h11",
    loop="asyncio",
    log_level="warning",
    access_log=False,
)
