"""llm-comply's tests of one API, for Responses those of the Open Responses specification:
`compliance LLM_COMPLY FORMAT TARGETS`. Each test is a feature."""

from __future__ import annotations

import json
import subprocess
import sys

from ops.clients.programs.kit import Target

SECONDS = 120
FLAGS = {"anthropic": ["--auth-header", "x-api-key", "--no-bearer", "-H", "anthropic-version:2023-06-01"]}


def main(program: str, form: str) -> None:
    for name, fields in json.loads(sys.argv[-1]).items():
        target = Target(**fields)
        command = [program, "-u", f"{target.url}/v1", "-k", "none", "-m", target.model, "--format", form, "--json"]
        command += ["--timeout", str(SECONDS), *FLAGS.get(form, ())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout, done.stderr
        for test in json.loads(done.stdout)["results"]:
            words = "" if test["status"] == "passed" else f"{test['status']}: {'; '.join(test.get('errors', []))}"
            print(json.dumps({"target": name, "feature": test["id"], "words": words[:400]}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
