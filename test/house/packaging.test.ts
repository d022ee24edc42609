import { describe, expect, it } from "vitest";
import { loadSettings } from "../../src/settings/settings.ts";
import { files, read } from "./repository.ts";

const dockerfile = read("Dockerfile");
const instructions = dockerfile
  .replace(/^\s*#.*\n/gm, "")
  .replace(/\\\n/g, " ")
  .split("\n")
  .filter((line) => line.trim() !== "")
  .map((line) => ({ word: line.split(/\s+/)[0] ?? "", rest: line.replace(/^\S+\s+/, "") }));
const stages = instructions.filter(({ word }) => word === "FROM");
const lastStage = instructions.slice(instructions.findLastIndex(({ word }) => word === "FROM"));
const rest = (word: string): string[] => lastStage.filter((each) => each.word === word).map((each) => each.rest);

describe("Dockerfile", () => {
  it("builds in one stage and runs in another, both from pinned major versions", () => {
    expect(stages.length).toBe(2);
    for (const stage of stages) expect(stage.rest).toMatch(/^node:\d+-slim( AS \w+)?$/);
  });

  it("runs as a user who is not root, with a health check, a volume and a port", () => {
    expect(rest("USER")).toEqual(["1000:1000"]);
    expect(rest("HEALTHCHECK").join()).toContain('CMD ["node"');
    expect(rest("VOLUME")).toEqual(["/var/lib/persisto/storage"]);
    expect(rest("EXPOSE")).toEqual(["8080"]);
  });

  it("starts the program itself, so that it gets the signals", () => {
    expect(rest("CMD")).toEqual(['["node", "/opt/persisto/main.js"]']);
    expect(rest("ENTRYPOINT")).toEqual([]);
  });

  it("leaves no package lists behind, and adds nothing from elsewhere", () => {
    for (const { word, rest } of instructions) {
      if (word === "RUN" && rest.includes("apt-get install")) {
        expect(rest).toContain("--no-install-recommends");
        expect(rest).toContain("rm -rf /var/lib/apt/lists/*");
      }
      expect(word).not.toBe("ADD");
      expect(rest).not.toMatch(/curl|wget|sudo|:latest|chmod 777/);
    }
  });

  it("copies only what is there and what .dockerignore lets through", () => {
    const allowed = read(".dockerignore")
      .split("\n")
      .filter((line) => line.startsWith("!"))
      .map((line) => line.slice(1));
    const copied = instructions
      .filter(({ word, rest }) => word === "COPY" && !rest.startsWith("--from"))
      .flatMap(({ rest }) => rest.split(/\s+/).slice(0, -1));
    expect(copied.toSorted()).toEqual(allowed.toSorted());
    for (const path of copied)
      expect([path, files(".", "").some((file) => file === path || file.startsWith(`${path}/`))]).toEqual([path, true]);
  });
});

describe("compose.yaml", () => {
  it("publishes to this machine alone and waits for the drain", () => {
    const compose = read("compose.yaml");
    expect(compose).toContain('"127.0.0.1:8080:8080"');
    expect(compose).toContain("- storage:/var/lib/persisto/storage");
    const { server, engine, sync } = loadSettings({ SERVER_DRAIN_DELAY_SECONDS: "5" });
    const endMs = server.drainDelayMs + server.drainSocketsMs + engine.closeGraceMs + sync.closeGraceMs;
    expect(Number(/stop_grace_period: (\d+)s/.exec(compose)?.[1]) * 1000).toBeGreaterThan(endMs);
  });

  it("has room for the memory stage", () => {
    const compose = read("compose.yaml");
    const shmMiB = Number(/shm_size: (\d+)mb/.exec(compose)?.[1]);
    expect(Number(/STORAGE_MEMORY_BYTES_MAX: (\d+)MiB/.exec(compose)?.[1])).toBeLessThan(shmMiB);
  });
});

describe("workflows", () => {
  it("check by the same script, and release only from tags", () => {
    expect(read(".github/workflows/ci.yml")).toContain("bash .ci/run");
    const release = read(".github/workflows/release.yml");
    expect(release).toContain("bash .ci/run");
    expect(release).toContain('tags: ["v*.*.*"]');
    expect(release).not.toMatch(/\$\{\{[^}]*\}\}[^\n]*\|\s*(sh|bash)/);
  });
});

describe("Makefile", () => {
  it("has the targets that people and CI type", () => {
    const targets = [...read("Makefile").matchAll(/^([a-z-]+):/gm)].map(([, name]) => name);
    for (const target of [
      "install-tools",
      "build",
      "run",
      "test",
      "check",
      "bench",
      "conformance",
      "fuzz",
      "tag-release",
    ]) {
      expect(targets).toContain(target);
    }
  });

  it("runs npm scripts that exist", () => {
    const { scripts } = JSON.parse(read("package.json"));
    const asked = [...read("Makefile").matchAll(/npm run --silent ([\w:-]+)/g)].map(([, name]) => name);
    expect(asked.length).toBeGreaterThan(5);
    for (const name of asked) expect(Object.keys(scripts)).toContain(name);
  });
});
