import { readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { type History, makeHistory } from "../stages/support.ts";
import { temporaryFolders } from "../support/temporary-folder.ts";
import { CommandScene, call } from "./scene.ts";

const newFolder = temporaryFolders();
let history: History;

beforeAll(async () => {
  history = await makeHistory(newFolder());
});

async function withReplica(): Promise<CommandScene> {
  const scene = new CommandScene(newFolder());
  await scene.fill("old/app.db", history, 7);
  return scene;
}

const manifestOf = (scene: CommandScene, id: string) =>
  scene.withRemote(async ({ manifests }) => (await manifests.read(id, call))?.manifest);

describe("adopt", () => {
  it("publishes a replica where it is, and takes its next number", async () => {
    const scene = await withReplica();
    const before = scene.remoteFiles();
    const { code, printed } = await scene.run("adopt", "app", "/old/app.db/", "--json");
    expect(code).toBe(0);
    expect(JSON.parse(printed)).toMatchObject({
      database: "app",
      prefix: "old/app.db",
      isAdopted: true,
      txid: "8",
      fileCount: 7,
      pageBytes: 4096,
      problems: [],
    });
    expect(scene.remoteFiles()).toEqual([...before, expect.stringMatching(/ltx\/0\/0{15}8-0{15}8\.ltx$/)]);
    expect(await manifestOf(scene, "app")).toMatchObject({ id: "app", prefix: "old/app.db", pageBytes: 4096 });
    expect(await scene.verify("app")).toMatchObject({ code: 0, isGood: true });
  });

  it("copies a folder from elsewhere, and leaves nothing there", async () => {
    const scene = new CommandScene(newFolder());
    const elsewhere = new CommandScene(newFolder());
    await elsewhere.fill("app.db", history, 7);
    rmSync(join(elsewhere.remote, ".persisto-objects"), { recursive: true });
    const path = join(elsewhere.remote, "app.db");
    const { code, printed } = await scene.run("adopt", "app", path, "--folder", "--json");
    expect(code).toBe(0);
    expect(JSON.parse(printed)).toMatchObject({ isAdopted: true, txid: "7" });
    expect(readdirSync(elsewhere.remote)).toEqual(["app.db"]);
    expect(await scene.verify("app")).toMatchObject({ code: 0, isGood: true });
    expect((await scene.run("adopt", "other", elsewhere.remote, "--folder")).code).toBe(2);
  });

  it("only looks with --dry-run", async () => {
    const scene = await withReplica();
    const { code, printed } = await scene.run("adopt", "app", "old/app.db", "--dry-run");
    expect([code, printed]).toEqual([0, expect.stringContaining("can be adopted as app")]);
    expect(await manifestOf(scene, "app")).toBeUndefined();
  });

  it("takes no replica that cannot be restored", async () => {
    const scene = await withReplica();
    scene.damage(join(scene.remote, scene.remoteFiles()[3] as string));
    const { code, printed } = await scene.run("adopt", "app", "old/app.db");
    expect([code, printed]).toEqual([1, expect.stringContaining("not adopted")]);
    expect(await manifestOf(scene, "app")).toBeUndefined();
  });

  it("takes no name that is in use, no prefix without a replica, and no nonsense", async () => {
    const scene = await withReplica();
    await scene.publish("taken", history, 1);
    scene.place("here", history.states[0] as Buffer, { batches: [] });
    for (const args of [
      ["taken", "old/app.db"],
      ["here", "old/app.db"],
      ["app", "nothing/there"],
      ["Not An Id", "old/app.db"],
      ["app", "../up"],
      ["app"],
    ]) {
      const { code, complaints } = await scene.run("adopt", ...args);
      expect([args, code, complaints === ""]).toEqual([args, 2, false]);
    }
  });
});
