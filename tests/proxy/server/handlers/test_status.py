"""The models, one and all: what the engines serve, and what of it a caller may name."""

from __future__ import annotations

from pathlib import Path

from tests.kit.client import get
from tests.kit.engine import Engine
from tests.kit.running import gateway
from tests.system.test_queueing import key, keys_file


def limited(folder: Path) -> str:
    """Keys of which `light` may name another model only."""
    path = Path(keys_file(folder))
    path.write_text(path.read_text().replace('name = "light"', 'name = "light"\nmodels = ["other"]'))
    return str(path)


async def test_one_model_is_told_as_in_the_list_and_one_that_is_not_there_is_404(engine: Engine) -> None:
    async with gateway(engine) as app:
        listed = (await get(app.url, "/v1/models")).json()["data"]
        for model in listed:
            answer = await get(app.url, f"/v1/models/{model['id']}")
            assert (answer.status, answer.json()) == (200, model)
        answer = await get(app.url, "/v1/models/org/none")
        assert (answer.status, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert "'org/none'" in answer.json()["error"]["message"]


async def test_a_key_sees_its_own_models_only_one_by_one_too(engine: Engine, tmp_path: Path) -> None:
    async with gateway(engine, api_keys_file=limited(tmp_path)) as app:
        model = (await get(app.url, "/v1/models", [key("heavy")])).json()["data"][0]["id"]
        assert (await get(app.url, f"/v1/models/{model}", [key("heavy")])).status == 200
        assert (await get(app.url, f"/v1/models/{model}", [key("light")])).status == 404
        assert (await get(app.url, f"/v1/models/{model}")).status == 401
