import { describe, expect, it } from "vitest";
import { read } from "../../house/repository.ts";
import { SyncScene } from "./scene.ts";

const hourMs = 3_600_000;

/** Requests of one kind of day, as docs/OPERATIONS.md has them: puts, gets, lists. */
function documented(row: string): number[] {
  const line = read("docs/OPERATIONS.md")
    .split("\n")
    .find((each) => each.startsWith(`| ${row} |`));
  return (line ?? "")
    .split("|")
    .slice(2, 5)
    .map((cell) => Number(cell.trim().replaceAll(",", "")));
}

function requests(calls: readonly string[]): number[] {
  return ["put", "get", "list"].map((operation) => calls.filter((call) => call.startsWith(`${operation} `)).length);
}

describe("what the remote stage costs", () => {
  it("is nothing for a database that nobody writes to", async () => {
    const scene = await SyncScene.open();
    const database = scene.database("a");
    database.log.timeOf = () => scene.clock.wallMs();
    scene.commit(database);
    await scene.pass(hourMs, 10_000);
    scene.calls.length = 0;
    await scene.pass(24 * hourMs, 60_000);
    expect(scene.calls).toEqual([]);
    expect(documented("nothing")).toEqual([0, 0, 0]);
  });

  it("is what the documents say for a database that is written once an hour", async () => {
    const scene = await SyncScene.open();
    const database = scene.database("a");
    database.log.timeOf = () => scene.clock.wallMs();
    const day = async () => {
      scene.calls.length = 0;
      for (let hour = 0; hour < 24; hour++) {
        scene.commit(database);
        await scene.pass(hourMs, 30_000);
      }
      return requests(scene.calls);
    };
    await day();
    expect(await day()).toEqual(documented("one write an hour"));
  });

  it("is what the documents say for a database that is written all the time", async () => {
    const scene = await SyncScene.open();
    const database = scene.database("a");
    database.log.timeOf = () => scene.clock.wallMs();
    const hour = async () => {
      scene.calls.length = 0;
      for (let second = 0; second < 3600; second++) {
        scene.commit(database);
        scene.clock.advance(1000);
        for (let turn = 0; turn < 6; turn++) await new Promise(setImmediate);
      }
      return requests(scene.calls);
    };
    await hour();
    const [puts = 0, gets = 0, lists = 0] = await hour();
    // The documents count a day; a snapshot a day comes on top.
    const day = documented("one write a second");
    expect([puts * 24, gets * 24, lists * 24].map((count, index) => Math.abs(count - (day[index] ?? 0)) <= 60)).toEqual(
      [true, true, true],
    );
  });
});
