"""S3 libraries as people use them, with nothing said but the endpoint: `libraries.py CLIENT up|down`, in a folder with
small.bin and big.bin; `down` leaves small.out, big.out, and range.out with bytes 100 to 199 of small.bin."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BUCKET = os.environ["BUCKET"]
HOST = "cwlota.com"
ENDPOINT = f"http://{HOST}"
PART = 5 << 20


def in_parallel(size, read):
    """All of an object, by ranges: `read(start, length)`."""
    with ThreadPoolExecutor(4) as pool:
        return b"".join(pool.map(lambda start: read(start, min(PART, size - start)), range(0, size, PART)))


class Boto3:
    def __init__(self):
        import boto3
        from boto3.s3.transfer import TransferConfig

        self.s3 = boto3.client("s3", endpoint_url=ENDPOINT, region_name="us-east-1")
        self.transfer = TransferConfig(multipart_threshold=8 << 20, multipart_chunksize=PART, max_concurrency=4)

    def put(self, key, file):
        self.s3.upload_file(file, BUCKET, key, Config=self.transfer)

    def get(self, key, file):
        self.s3.download_file(BUCKET, key, file, Config=self.transfer)

    def range(self, key, start, length):
        answer = self.s3.get_object(Bucket=BUCKET, Key=key, Range=f"bytes={start}-{start + length - 1}")
        return answer["Body"].read()


class Minio:
    def __init__(self):
        from minio import Minio as Client

        access, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
        self.s3 = Client(endpoint=HOST, access_key=access, secret_key=secret, secure=False)

    def put(self, key, file):
        self.s3.fput_object(BUCKET, key, file, part_size=PART, num_parallel_uploads=4)

    def get(self, key, file):
        size = self.s3.stat_object(BUCKET, key).size
        Path(file).write_bytes(in_parallel(size, lambda start, length: self.range(key, start, length)))

    def range(self, key, start, length):
        answer = self.s3.get_object(BUCKET, key, offset=start, length=length)
        try:
            return answer.read()
        finally:
            answer.close()
            answer.release_conn()


class Pyarrow:
    def __init__(self):
        from pyarrow import fs

        self.s3 = fs.S3FileSystem(endpoint_override=HOST, scheme="http", region="us-east-1")

    def put(self, key, file):
        content = memoryview(Path(file).read_bytes())
        with self.s3.open_output_stream(f"{BUCKET}/{key}") as out:
            for start in range(0, len(content), 8 << 20):
                out.write(content[start : start + (8 << 20)])

    def get(self, key, file):
        with self.s3.open_input_file(f"{BUCKET}/{key}") as source:
            Path(file).write_bytes(in_parallel(source.size(), lambda start, length: source.read_at(length, start)))

    def range(self, key, start, length):
        with self.s3.open_input_file(f"{BUCKET}/{key}") as source:
            return source.read_at(length, start)


class Obstore:
    def __init__(self):
        from obstore.store import S3Store

        options = {"allow_http": True}
        self.s3 = S3Store(BUCKET, endpoint=ENDPOINT, region="us-east-1", client_options=options)

    def put(self, key, file):
        big = os.path.getsize(file) > PART
        with open(file, "rb") as source:
            self.s3.put(key, source, use_multipart=big, chunk_size=PART, max_concurrency=4)

    def get(self, key, file):
        size = self.s3.head(key)["size"]
        Path(file).write_bytes(in_parallel(size, lambda start, length: self.range(key, start, length)))

    def range(self, key, start, length):
        return bytes(self.s3.get_range(key, start=start, end=start + length))


class Crt:
    """The AWS Common Runtime, as PyTorch's connector has it; buckets in the host."""

    def __init__(self):
        from s3torchconnectorclient._mountpoint_s3_client import MountpointS3Client

        self.s3 = MountpointS3Client(region="us-east-1", endpoint=ENDPOINT, part_size=PART)

    def put(self, key, file):
        writer = self.s3.put_object(BUCKET, key)
        with open(file, "rb") as source:
            while piece := source.read(1 << 20):
                writer.write(piece)
        writer.close()

    def get(self, key, file):
        Path(file).write_bytes(b"".join(self.s3.get_object(BUCKET, key)))

    def range(self, key, start, length):
        return b"".join(self.s3.get_object(BUCKET, key, start, start + length))


class AwsCrt:
    """The AWS Common Runtime without a connector, as LMCache uses it; buckets in the host."""

    def __init__(self):
        from awscrt import auth, io, s3

        bootstrap = io.ClientBootstrap.get_or_create_static_default()
        credential = auth.AwsCredentialsProvider.new_default_chain(bootstrap)
        plain = s3.S3RequestTlsMode.DISABLED
        self.kind = s3.S3RequestType
        self.s3 = s3.S3Client(
            bootstrap=bootstrap, region="us-east-1", credential_provider=credential, tls_mode=plain, part_size=PART
        )

    def send(self, method, key, kind, headers=(), **options):
        from awscrt.http import HttpHeaders, HttpRequest

        request = HttpRequest(method, f"/{key}", HttpHeaders([("Host", f"{BUCKET}.{HOST}"), *headers]))
        self.s3.make_request(type=kind, request=request, **options).finished_future.result()

    def put(self, key, file):
        self.send("PUT", key, self.kind.PUT_OBJECT, send_filepath=file)

    def get(self, key, file):
        self.send("GET", key, self.kind.GET_OBJECT, recv_filepath=file)

    def range(self, key, start, length):
        pieces = []
        of = [("Range", f"bytes={start}-{start + length - 1}")]
        self.send("GET", key, self.kind.GET_OBJECT, of, on_body=lambda chunk, **_: pieces.append(bytes(chunk)))
        return b"".join(pieces)


CLIENTS = {"awscrt": AwsCrt, "boto3": Boto3, "crt": Crt, "minio": Minio, "obstore": Obstore, "pyarrow": Pyarrow}


def main():
    name, way = sys.argv[1:]
    client = CLIENTS[name]()
    for file in ["small", "big"]:
        if way == "up":
            client.put(f"{name}-{file}", f"{file}.bin")
        else:
            client.get(f"{name}-{file}", f"{file}.out")
    if way == "down":
        Path("range.out").write_bytes(client.range(f"{name}-small", 100, 100))


main()
