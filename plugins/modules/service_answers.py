#!/usr/bin/python
"""Asks the service over HTTPS, verified, for its models and for a prediction of some: each model's first example.

It asks with curl, which verifies the name while it connects to another address, without DNS and past any proxy.
Without `ask`, or where none of these models has an example, it asks the first model that has one.

Returned: `models`, their names; `answers`, for each model asked its `model`, `example` and `outputs` (name -> label or
values).

Runs on servers, so it supports Python 2.7 as well as 3.
"""

import json
import os
import shutil
import subprocess
import tempfile

from ansible.module_utils.basic import AnsibleModule


class AskError(Exception):
    """Why there is no answer."""


class Service(object):
    """The service at `address`, `https://name:port`, by way of the IP address `host`."""

    def __init__(self, address, host, ca):
        self._address = address.rstrip("/")
        target = self._address.partition("://")[2]
        self._curl = ["curl", "--fail", "--silent", "--show-error", "--max-time", "30", "--noproxy", "*"]
        # Not --connect-to, which CentOS 7's curl does not know.
        self._curl += ["--resolve", "%s:%s" % (target, host)] + (["--cacert", ca] if ca else [])

    def ask(self, path, *options):
        command = self._curl + list(options) + [self._address + "/" + path.lstrip("/")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate()
        if process.returncode != 0:
            raise AskError("%s/%s: %s" % (self._address, path.lstrip("/"), err.decode("utf-8", "replace").strip()))
        return out

    def predict(self, model, row, folder):
        """The answers to one row, which may be a file of the service."""
        path = os.path.join(folder, "row")
        if isinstance(row, dict) and "url" in row:
            options = ["--form", "file=@" + path]
            content = self.ask(row["url"])
        else:
            options = ["--header", "Content-Type: application/json", "--data", "@" + path]
            content = json.dumps({"row": row}).encode("utf-8")
        with open(path, "wb") as file:
            file.write(content)
        return json.loads(self.ask("predict/" + model, *options).decode("utf-8"))["answers"][0]


def chosen(models, ask):
    """The models to ask, of those with an example."""
    able = [model for model in models if model.get("examples")]
    return [model for model in able if model["name"] in ask] or able[:1]


def plain(output):
    """An output as the label, where there is one, else as its values."""
    return output.get("label") or output["values"]


def main():
    module = AnsibleModule(
        {
            "address": {"type": "str", "required": True},
            "host": {"type": "str", "default": "127.0.0.1"},
            "ca": {"type": "str", "default": ""},
            "ask": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    service = Service(*(module.params[name] for name in ("address", "host", "ca")))
    folder = tempfile.mkdtemp()
    try:
        models = json.loads(service.ask("models").decode("utf-8"))["models"]
        answers = []
        for model in chosen(models, module.params["ask"]):
            example = model["examples"][0]
            said = service.predict(model["name"], example["row"], folder)
            outputs = {name: plain(output) for name, output in said.items()}
            answers.append({"model": model["name"], "example": example["name"], "outputs": outputs})
    except (AskError, EnvironmentError, ValueError) as error:
        module.fail_json(msg="%s. Remedy: run playbooks/status.yml, and see docs/operations.md, Trouble." % error)
    finally:
        shutil.rmtree(folder)
    module.exit_json(changed=False, models=[model["name"] for model in models], answers=answers)


if __name__ == "__main__":
    main()
