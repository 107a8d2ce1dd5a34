"""The PyPI engine in the smallest FastAPI server that does the proxy's job.

python_engine.py PORT KEY DOCUMENT: flags, identities and the document of one environment, for one
server-side key. The context is made once, as the Python Edge Proxy does; answers by orjson.
"""

import sys

import orjson
import uvicorn
from fastapi import FastAPI, Header, Response
from flag_engine.engine import get_evaluation_result
from flagsmith.mappers import (
    map_context_and_identity_data_to_context,
    map_environment_document_to_context,
)
from pydantic import BaseModel

port, key, path = sys.argv[1:]
with open(path, "rb") as file:
    raw = file.read()
document = orjson.loads(raw)
context = map_environment_document_to_context(document)
features = {state["feature"]["name"]: state["feature"] for state in document["feature_states"]}
app = FastAPI()


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
    return answer(flags(get_evaluation_result(context)))


@app.post("/api/v1/identities/")
async def post_identities(identity: Identity, x_environment_key: str = Header()):
    if x_environment_key != key:
        return Response(status_code=401)
    traits = {trait.trait_key: trait.trait_value for trait in identity.traits}
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
    return Response(raw, media_type="application/json")


uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)
