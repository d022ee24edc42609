"""A database, a write, and rows streamed back, without proto files: the server describes itself (reflection)."""

import os
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8080"
database = f"python-{os.getpid()}"

with grpc.insecure_channel(address) as channel:
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    service = pool.FindServiceByName("persisto.v1.DatabaseService")

    def call(name, **fields):
        method = service.FindMethodByName(name)
        kind = channel.unary_stream if method.server_streaming else channel.unary_unary
        stub = kind(
            f"/{service.full_name}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        return stub(GetMessageClass(method.input_type)(**fields), timeout=10)

    call("CreateDatabase", database=database, labels={"example": "python"})
    call("ExecuteScript", database=database, script="CREATE TABLE city (name TEXT, people INTEGER)")
    call(
        "Execute",
        database=database,
        statement={
            "sql": "INSERT INTO city VALUES (?, ?), (?, ?)",
            "parameters": [{"text": "Lisbon"}, {"integer": 567131}, {"text": "Porto"}, {"integer": 248769}],
        },
    )
    statement = {"sql": "SELECT name, people FROM city ORDER BY people DESC"}
    for message in call("Query", database=database, statement=statement):
        for row in message.row_batch.rows:
            print(*[getattr(value, value.WhichOneof("kind")) for value in row.values])
        if message.HasField("summary"):
            print(message.summary.row_count, "rows")

    try:
        call("Execute", database=database, statement={"sql": "ATTACH '/etc/passwd' AS x"})
    except grpc.RpcError as error:
        print(error.code().name, "-", error.details())
    call("DeleteDatabase", database=database)
