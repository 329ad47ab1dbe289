"""A Delta table with deltalake: `table.py delta up|down`. `up` creates the table and appends to it, each by a conditional
PUT of a file of its log; `down` reads a column."""

import os
import sys

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder, write_deltalake

ROWS = 200_000
PLACE = f"s3://{os.environ['BUCKET']}/delta-table"
OPTIONS = {"aws_endpoint_url": "http://cwlota.com", "aws_allow_http": "true"}


def up():
    names = [f"row {number}" for number in range(ROWS)]
    rows = pa.table({"number": range(ROWS), "name": names})
    for _ in range(2):
        write_deltalake(PLACE, rows, mode="append", storage_options=OPTIONS)


def down():
    # pyarrow's reader of the table sometimes aborts when the process ends.
    table = DeltaTable(PLACE, storage_options=OPTIONS)
    sums = QueryBuilder().register("rows", table).execute("SELECT sum(number) FROM rows").read_all()
    read = pa.table(sums).column(0).to_pylist()
    assert read == [ROWS * (ROWS - 1)], read


{"up": up, "down": down}[sys.argv[2]]()
