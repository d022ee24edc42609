import { describe, expect, it } from "vitest";
import { temporaryFolders } from "../../support/temporary-folder.ts";
import { statement } from "../fixtures.ts";
import { rowsOf } from "../scene.ts";
import { failureOf } from "../support.ts";
import { openStages, type StagesScene } from "./stages.ts";

const newFolder = temporaryFolders();

/** Writes without pause until it is stopped, and knows what was acknowledged. */
class Writer {
  readonly acknowledged = new Set<number>();
  longestMs = 0;
  #next = 0;
  #isStopped = false;
  readonly #scene: StagesScene;
  readonly #id: string;
  readonly #running: Promise<void>[];

  constructor(scene: StagesScene, id: string, concurrency: number) {
    this.#scene = scene;
    this.#id = id;
    this.#running = Array.from({ length: concurrency }, () => this.#run());
    // The end asks each of them how it went.
    for (const running of this.#running) running.catch(() => undefined);
  }

  async stop(): Promise<void> {
    this.#isStopped = true;
    await Promise.all(this.#running);
  }

  /** Rows are those that were acknowledged, exactly: nobody failed. */
  async check(): Promise<void> {
    const rows = await this.#scene.rows(this.#id, "SELECT x FROM t ORDER BY x");
    expect(rows.map(([x]) => x)).toEqual([...this.acknowledged].sort((a, b) => a - b));
    expect(await this.#scene.rows(this.#id, "PRAGMA integrity_check")).toEqual([["ok"]]);
  }

  async #run(): Promise<void> {
    while (!this.#isStopped) {
      // A turn for the others: executors of this process would take them all.
      await new Promise(setImmediate);
      const x = this.#next++;
      const startMs = performance.now();
      await this.#scene.run(this.#id, `INSERT INTO t VALUES (${x}, randomblob(200))`);
      this.longestMs = Math.max(this.longestMs, performance.now() - startMs);
      this.acknowledged.add(x);
    }
  }
}

async function withTable(scene: StagesScene, id: string): Promise<void> {
  await scene.create(id);
  await scene.run(id, "CREATE TABLE t (x INTEGER PRIMARY KEY, y)");
}

describe("a move", () => {
  it("to memory and back and to the remote stage keeps every row, and says where the database is", async () => {
    const folder = newFolder();
    const scene = await openStages({ folder });
    await withTable(scene, "a");
    await scene.run("a", "INSERT INTO t VALUES (1, 'one')");
    expect(await scene.stageOf("a")).toBe("local");

    await scene.move("promote", "a");
    expect(await scene.engine.getDatabaseStage("a")).toMatchObject({ stage: "memory", operation: undefined });
    expect(scene.memoryFiles()).toHaveLength(1);
    await scene.run("a", "INSERT INTO t VALUES (2, 'two')");
    expect(await scene.rows("a", "SELECT x FROM t")).toEqual([[1], [2]]);

    await scene.move("demote", "a");
    expect(await scene.stageOf("a")).toBe("local");
    await scene.run("a", "INSERT INTO t VALUES (3, 'three')");
    expect(await scene.rows("a", "SELECT x FROM t")).toEqual([[1], [2], [3]]);

    await scene.move("demote", "a");
    expect(await scene.stageOf("a")).toBe("remote");
    expect(scene.localFiles("a")).toEqual([]);
    expect(scene.memoryFiles()).toEqual([]);
    expect(await scene.placesOf("a")).toEqual(["remote"]);

    expect(await scene.rows("a", "SELECT x FROM t")).toEqual([[1], [2], [3]]);
    expect(await scene.stageOf("a")).toBe("remote");
    expect(await scene.placesOf("a")).toEqual(["local", "remote"]);
    await scene.move("promote", "a", "memory");
    expect(await scene.rows("a", "SELECT x FROM t")).toEqual([[1], [2], [3]]);
    await scene.close();
  });

  it.each([false, true])("under writes without pause loses none (executors in processes: %s)", async (processes) => {
    const scene = await openStages({ folder: newFolder(), processes });
    await withTable(scene, "a");
    const writer = new Writer(scene, "a", 4);
    for (let round = 0; round < 2; round++) {
      await scene.move("promote", "a");
      await scene.move("demote", "a");
    }
    await scene.move("demote", "a");
    await scene.move("promote", "a");
    await writer.stop();
    expect(writer.acknowledged.size).toBeGreaterThan(10);
    await writer.check();
    await scene.move("demote", "a");
    await writer.check();
    await scene.close();
  });

  it("lets a query that runs end in the file that it began in", async () => {
    const scene = await openStages({ folder: newFolder() });
    await withTable(scene, "a");
    await scene.run(
      "a",
      "INSERT OR IGNORE INTO t WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 500) SELECT x, 'y' FROM c",
    );
    const query = () =>
      scene.engine.query("a", statement("SELECT x FROM t ORDER BY x"), undefined, {
        ...scene.options(),
        chunkRowsMax: 10,
        chunkBytesMax: 65_536,
      });
    const first = await query();
    await scene.move("promote", "a");
    await scene.run("a", "DELETE FROM t");
    let chunks = 0;
    while ((await first.cursor.next()) !== undefined) chunks++;
    expect(first.cursor.summary().rowCount).toBe(500n);
    expect(chunks).toBeGreaterThan(5);
    expect(await scene.rows("a", "SELECT count(*) FROM t")).toEqual([[0]]);
    await scene.move("demote", "a");
    expect(await scene.rows("a", "SELECT count(*) FROM t")).toEqual([[0]]);
    await scene.close();
  });

  it("fails as busy while a write transaction stays open, and the transaction goes on", async () => {
    const scene = await openStages({ folder: newFolder(), settings: { moveWaitMsMax: 50 } });
    await withTable(scene, "a");
    const transaction = await scene.engine.begin("a", true, 0, undefined, scene.options());
    await transaction.execute(statement("INSERT INTO t VALUES (1, 1)"), scene.options());
    await failureOf(scene.move("promote", "a"), "DATABASE_BUSY");
    expect(await scene.stageOf("a")).toBe("local");
    expect(scene.memoryFiles()).toEqual([]);
    await failureOf(scene.move("demote", "a"), "DATABASE_BUSY");
    await transaction.commit("committed", scene.options());
    expect(await scene.rows("a", "SELECT x FROM t")).toEqual([[1]]);
    await scene.move("promote", "a");
    expect(await scene.rows("a", "SELECT x FROM t")).toEqual([[1]]);
    await scene.close();
  });

  it("moves in the wrong direction, or to a stage that is not there, are refused; to where it is, done", async () => {
    const scene = await openStages({ folder: newFolder(), memory: false });
    await withTable(scene, "a");
    await failureOf(scene.move("promote", "a", "remote"), "FIELD_INVALID");
    await failureOf(scene.move("promote", "a", "memory"), "STAGE_NOT_CONFIGURED");
    await scene.move("promote", "a", "local");
    expect((await scene.engine.listStages()).map(({ stage }) => stage)).toEqual(["local", "remote"]);
    await scene.close();
  });
});

describe("a remote database", () => {
  it("is brought here once for many calls, and each gets its answer", async () => {
    const scene = await openStages({ folder: newFolder() });
    await withTable(scene, "a");
    await scene.run("a", "INSERT INTO t VALUES (1, 1)");
    await scene.move("demote", "a");
    scene.calls.length = 0;
    const answers = await Promise.all(
      Array.from({ length: 50 }, () =>
        scene.engine.read("a", statement("SELECT count(*) FROM t"), undefined, scene.options()),
      ),
    );
    for (const { body } of answers) expect(rowsOf(body)).toEqual([[1]]);
    expect(scene.calls.filter((call) => call.startsWith("list "))).toHaveLength(1);
    await scene.close();
  });
});
