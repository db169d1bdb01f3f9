"""CocoIndex does the job of benchmarks/incremental_build.py, in an interpreter that has cocoindex and lancedb.

python benchmarks/peer_cocoindex.py FOLDER STATE

Each line on stdin asks for one update, which is answered by one JSON object. As in CocoIndex's own LanceDB example:
one component per file, rows in a managed table, embeddings memoized by their text.
"""

import json
import pathlib
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import numpy as np
from numpy.typing import NDArray

from benchmarks.synthetic import DIMENSION, embed, parts

TABLE = "chunks"


def main() -> None:
    if len(sys.argv) != 3:
        print("run by benchmarks/incremental_build.py --cocoindex-python")
        return
    serve(*map(pathlib.Path, sys.argv[1:]))


def serve(folder: pathlib.Path, state: pathlib.Path) -> None:
    """Annotations are evaluated here, not kept as text: CocoIndex reads the schema from them."""
    import cocoindex as coco
    import lancedb as plain
    from cocoindex.connectors import lancedb, localfs
    from cocoindex.resources.file import FileLike, PatternFilePathMatcher
    from cocoindex.resources.schema import VectorSchema

    uri = str(state / "lance")
    embedded = 0
    connection = coco.ContextKey[lancedb.LanceAsyncConnection]("connection")

    @dataclass
    class Row:
        chunk_id: str
        document_id: str
        text: str
        vector: Annotated[NDArray[np.float32], VectorSchema(np.dtype(np.float32), DIMENSION)]

    @coco.lifespan
    async def lifespan(builder: coco.EnvironmentBuilder) -> AsyncIterator[None]:
        builder.settings.db_path = state / "cocoindex.db"
        builder.provide(connection, await lancedb.connect_async(uri))
        yield

    @coco.fn(memo=True, version=1, logic_tracking=None)
    async def vector_of(text: str) -> NDArray[np.float32]:
        nonlocal embedded
        embedded += 1
        return embed([text])[0]

    @coco.fn(memo=True, version=1, logic_tracking=None)
    async def process(file: FileLike, table: lancedb.TableTarget[Row]) -> None:
        name = file.file_path.path.stem
        for number, text in enumerate(parts(await file.read_text())):
            table.declare_row(row=Row(f"{name}#{number}", name, text, await vector_of(text)))

    @coco.fn(version=1, logic_tracking=None)
    async def build(source: pathlib.Path) -> None:
        schema = await lancedb.TableSchema.from_class(Row, primary_key=["chunk_id"])
        table = await lancedb.mount_table_target(connection, TABLE, schema)
        files = localfs.walk_dir(source, path_matcher=PatternFilePathMatcher(included_patterns=["*.md"]))
        await coco.mount_each(process, files.items(), table)

    app = coco.App(coco.AppConfig(name="peer"), build, source=folder)
    for _ in sys.stdin:
        before, embedded = _version(plain, uri), 0
        started, cpu = time.perf_counter(), time.process_time()
        app.update_blocking()
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        rows = plain.connect(uri).open_table(TABLE).search().select(["document_id", "text"]).limit(None).to_arrow()
        answer = {
            "embedded": embedded,
            "wall_s": wall,
            "cpu_s": cpu,
            "commits": _version(plain, uri) - before,
            "texts": list(zip(rows["document_id"].to_pylist(), rows["text"].to_pylist(), strict=True)),
        }
        print(json.dumps(answer), flush=True)


def _version(lancedb: Any, uri: str) -> int:
    try:
        return lancedb.connect(uri).open_table(TABLE).version
    except ValueError:
        return 0


if __name__ == "__main__":
    main()
