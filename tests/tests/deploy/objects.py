"""YAML in, JSON out: the objects, and what Kubernetes' own schemas find wrong with them."""

import json
import sys

import kubernetes_validate
import yaml

VERSION = "1.33"


def wrong(thing):
    """What is wrong with an object, or None."""
    if thing["apiVersion"] == "monitoring.coreos.com/v1":
        # Imported here, since it takes seconds.
        from cloudcoil.models.prometheus_operator import v1 as monitoring

        try:
            model = getattr(monitoring, thing["kind"]).model_validate(thing)
        except ValueError as error:
            return str(error)
        # The models ignore unknown fields.
        known = model.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return None if known == thing else f"only this is known: {known}"
    try:
        kubernetes_validate.validate(thing, VERSION, strict=True)
    except Exception as error:  # its exceptions have no common base
        return f"{error.message} at {list(error.path)}" if hasattr(error, "path") else str(error)
    return None


objects = [thing for thing in yaml.safe_load_all(sys.stdin) if thing]
found = [(f"{thing['kind']} {thing['metadata']['name']}", wrong(thing)) for thing in objects]
json.dump({"objects": objects, "errors": [f"{name}: {error}" for name, error in found if error]}, sys.stdout)
