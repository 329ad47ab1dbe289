"""An unmodified boto3 in a pod, driven by JSON requests, one a line; each with a client and connections of its own.

Nothing is set but the endpoint: names come from the pod's resolver, credentials from the environment.
"""

import hashlib
import json
import random
import sys
import time
import traceback

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError


def main():
    for line in sys.stdin:
        print(json.dumps(answer_to(json.loads(line))), flush=True)


def answer_to(ask):
    client = make_client(ask)
    if "cache_control" in ask:
        add_header(client, "Cache-Control", ask["cache_control"])
    started = time.monotonic()
    try:
        result = DO[ask["do"]](client, ask)
    except ClientError as error:
        answer = error.response
        result = {
            "status": answer["ResponseMetadata"]["HTTPStatusCode"],
            "code": answer["Error"].get("Code", ""),
            "headers": answer["ResponseMetadata"]["HTTPHeaders"],
            "size": int(answer["ResponseMetadata"]["HTTPHeaders"].get("content-length", 0)),
        }
    except Exception:
        return {"error": traceback.format_exc()}
    finally:
        client.close()
    result.setdefault("seconds", time.monotonic() - started)
    return result


def make_client(ask):
    return boto3.client(
        "s3",
        endpoint_url=ask["endpoint"],
        verify=ask.get("ca"),
        region_name="us-east-1",
        config=Config(
            s3={"addressing_style": ask["style"]},
            retries={"total_max_attempts": ask.get("attempts", 3)},
            connect_timeout=5,
            read_timeout=60,
        ),
    )


def add_header(client, name, value):
    def add(request, **_):
        request.headers.add_header(name, value)

    client.meta.events.register("before-sign.s3.GetObject", add)


def content(ask):
    return random.Random(ask["seed"]).randbytes(ask["size"])


def result_of(answer, **more):
    meta = answer["ResponseMetadata"]
    return {"status": meta["HTTPStatusCode"], "headers": meta["HTTPHeaders"], **more}


def create_bucket(client, ask):
    return result_of(client.create_bucket(Bucket=ask["bucket"]))


def put(client, ask):
    body = content(ask)
    started = time.monotonic()
    answer = client.put_object(Bucket=ask["bucket"], Key=ask["key"], Body=body, Metadata={"made-by": "lab"})
    return result_of(answer, sha256=hashlib.sha256(body).hexdigest(), seconds=time.monotonic() - started)


def upload(client, ask):
    """The transfer manager's way: parallel multipart."""
    import io

    body = content(ask)
    started = time.monotonic()
    client.upload_fileobj(io.BytesIO(body), ask["bucket"], ask["key"])
    return {"status": 200, "sha256": hashlib.sha256(body).hexdigest(), "seconds": time.monotonic() - started}


def get(client, ask):
    more = {"Range": ask["range"]} if "range" in ask else {}
    started = time.monotonic()
    answer = client.get_object(Bucket=ask["bucket"], Key=ask["key"], **more)
    body = answer["Body"].read()
    seconds = time.monotonic() - started
    return result_of(answer, sha256=hashlib.sha256(body).hexdigest(), size=len(body), seconds=seconds)


def download(client, ask):
    """The transfer manager's way: HEAD, then parallel ranged GETs, each signed with its Range."""
    import io

    body = io.BytesIO()
    started = time.monotonic()
    client.download_fileobj(ask["bucket"], ask["key"], body)
    seconds = time.monotonic() - started
    body = body.getvalue()
    return {"status": 200, "sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "seconds": seconds}


def get_until_hit(client, ask):
    """Reads until the cache answers."""
    for _ in range(50):
        got = get(client, ask)
        if got["headers"].get("lota-cache", "").startswith("hit"):
            return got
        time.sleep(0.02)
    return got


def put_and_hit(client, ask):
    """Writes `count` objects and reads each until it is a hit."""
    for number in range(ask["count"]):
        one = {**ask, "key": f"{ask['key']}-{number}"}
        put(client, one)
        got = get_until_hit(client, one)
    return got


def busy(_, ask):
    """Reads `count` objects by as many threads as asked, each with its own client and no second attempt, until a
    file appears."""
    import os
    import threading

    failures, reads = [], []
    expected = hashlib.sha256(content(ask)).hexdigest()

    def work(number):
        client = make_client(ask)
        while not os.path.exists(ask["until"]):
            one = {**ask, "key": f"{ask['key']}-{number % ask['count']}"}
            try:
                reads.append(get(client, one)["sha256"] == expected)
            except Exception as error:
                failures.append(f"{time.time():.3f} {type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(ask["threads"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failures += ["other bytes"] * reads.count(False)
    return {"status": 200, "size": len(reads), "code": "; ".join(failures[:5])}


def digest(_, ask):
    """What a slice of the content should be; asks nobody."""
    body = content(ask)[ask["start"] : ask["end"]]
    return {"status": 200, "sha256": hashlib.sha256(body).hexdigest(), "size": len(body)}


def delete(client, ask):
    return result_of(client.delete_object(Bucket=ask["bucket"], Key=ask["key"]))


DO = {
    "create_bucket": create_bucket,
    "put": put,
    "upload": upload,
    "get": get,
    "download": download,
    "put_and_hit": put_and_hit,
    "busy": busy,
    "digest": digest,
    "delete": delete,
}

if __name__ == "__main__":
    main()
