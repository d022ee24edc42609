import { dirname, join, normalize } from "node:path";
import { describe, expect, it } from "vitest";
import { files, places, read } from "./repository.ts";

const sources = files("src", ".ts");
const everything = [...sources, ...files("test", ".ts"), ...files("tools", ".ts"), ...files("bench", ".ts")];

/** Whom each layer may import, besides itself and what is generated. What is not listed here may not exist. */
const mayImport: Readonly<Record<string, readonly string[]>> = {
  "clock.ts": [],
  "fail-points.ts": [],
  failure: [],
  settings: [],
  observe: [],
  ltx: ["failure"],
  objects: ["clock.ts"],
  files: [],
  stages: ["clock.ts", "fail-points.ts", "failure", "files", "ltx", "objects"],
  sqlite: ["clock.ts", "failure"],
  engine: ["clock.ts", "fail-points.ts", "failure", "files", "ltx", "objects", "stages", "sqlite"],
  transport: ["clock.ts"],
  api: ["clock.ts", "failure", "sqlite", "engine", "transport"],
  "open-stages.ts": ["clock.ts", "failure", "files", "settings", "observe", "ltx", "objects", "stages", "engine"],
  commands: [
    "clock.ts",
    "failure",
    "files",
    "settings",
    "ltx",
    "objects",
    "stages",
    "sqlite",
    "engine",
    "open-stages.ts",
  ],
  "server.ts": [
    "clock.ts",
    "failure",
    "files",
    "settings",
    "observe",
    "objects",
    "stages",
    "sqlite",
    "engine",
    "transport",
    "api",
    "open-stages.ts",
  ],
  "healthcheck.ts": ["settings"],
  "main.ts": ["clock.ts", "settings", "observe", "sqlite", "commands", "open-stages.ts", "server.ts"],
};

/** Connect promises nothing about these; with each new version somebody has to look at them again. */
const privateImports: Readonly<Record<string, readonly string[]>> = {
  "@connectrpc/connect/protocol": [
    "Compression",
    "MethodSerializationLookup",
    "UniversalHandler",
    "UniversalServerResponse",
    "createMethodSerializationLookup",
    "invokeUnaryImplementation",
    "validateUniversalHandlerOptions",
  ],
  "@connectrpc/connect/protocol-connect": ["codeFromString"],
  "@connectrpc/connect/protocol-grpc": ["setTrailerStatus"],
};

interface Import {
  readonly from: string;
  readonly names: readonly string[];
}

function importsOf(path: string): Import[] {
  const statements = read(path).matchAll(
    /^(?:import|export)\s+(?:type\s+)?(?:\{([^}]*)\}|[^"';{]*)\s*from\s+"([^"]+)"|import\("([^"]+)"\)/gm,
  );
  return [...statements].map(([, names = "", from, dynamic]) => ({
    from: from ?? dynamic ?? "",
    names: names
      .split(",")
      .map(
        (name) =>
          name
            .trim()
            .replace(/^type /, "")
            .split(" as ")[0] ?? "",
      )
      .filter((name) => name !== ""),
  }));
}

function layerOf(path: string): string {
  return path.split("/")[1] ?? "";
}

describe("sources", () => {
  it("import downward through the layers only", () => {
    const upward = sources.flatMap((path) => {
      const layer = layerOf(path);
      const allowed = mayImport[layer];
      if (allowed === undefined) return [`${path} is in no layer`];
      return importsOf(path)
        .filter(({ from }) => from.startsWith("."))
        .map(({ from }) => normalize(join(dirname(path), from)))
        .filter(
          (target) => target.startsWith("src/") && layerOf(target) !== layer && !allowed.includes(layerOf(target)),
        )
        .map((target) => `${path} imports ${target}`);
    });
    expect(upward).toEqual([]);
  });

  it("reach from api into the layers below for their interfaces only, and the rule of names", () => {
    const reaching = sources
      .filter((path) => layerOf(path) === "api")
      .flatMap((path) => importsOf(path).map(({ from }) => `${path} imports ${normalize(join(dirname(path), from))}`))
      .filter((line) => / src\/(sqlite|transport|engine)\//.test(line))
      .filter((line) => !/ src\/(sqlite\/executor|transport\/transport|engine\/(engine|names))\.ts$/.test(line));
    expect(reaching).toEqual([]);
  });

  it("read the environment in settings/ only", () => {
    expect(places(sources, /process\.env\b/, (path) => layerOf(path) === "settings")).toEqual([]);
  });

  it("take time and timers from the clock", () => {
    const time =
      /\b(setTimeout|setInterval|Date\.now|new Date\(\)|performance\.now|process\.hrtime|timers\/promises)\b/;
    expect(places(sources, time, (path) => path === "src/clock.ts")).toEqual([]);
  });

  it("take randomness from their caller", () => {
    const random = /\bMath\.random\b|crypto\.(random|getRandom)|^import .*\brandom\w+\b.* from "node:crypto"/;
    expect(places(sources, random, (path) => path === "src/main.ts")).toEqual([]);
  });

  it("swallow no error: an empty catch says why", () => {
    const swallowing = everything.flatMap((path) => {
      const text = read(path);
      const blocks = [...text.matchAll(/catch\s*(?:\([^)]*\))?\s*\{\s*\}/g)];
      const chains = [...text.matchAll(/^(.*\n)?.*\.catch\(\(\w*\)\s*=>\s*(?:\{\s*\}|undefined|null)\)/gm)].filter(
        ([, before = ""]) => !before.trim().startsWith("//"),
      );
      return [...blocks, ...chains].map((found) => `${path}: ${found[0].trim()}`);
    });
    expect(swallowing).toEqual([]);
  });

  it("do not log an error and go on", () => {
    const logging = /catch\s*\((\w+)[^)]*\)\s*\{\s*(?:\w+\.)*(?:log|console)\.\w+\([^;]*\);\s*\}/g;
    expect(sources.flatMap((path) => [...read(path).matchAll(logging)].map(([text]) => `${path}: ${text}`))).toEqual(
      [],
    );
  });

  it("write to the log, not to the console", () => {
    expect(places(sources, /\bconsole\./)).toEqual([]);
  });

  it("leave nothing for later", () => {
    const later = /\b(TODO|FIXME|XXX|HACK)\b/;
    const all = [...everything, ...files("native", ".c", ".h"), ...files("docs", ".md"), ...files("proto", ".proto")];
    expect(places(all, later, (path) => path.startsWith("test/house/"))).toEqual([]);
  });

  it("skip no test for good, and run none alone", () => {
    const alone = /\b(it|test|describe)\.(only|todo|skip)\(/;
    expect(places(files("test", ".test.ts"), alone, (path) => path.startsWith("test/house/"))).toEqual([]);
  });

  it("use private parts of Connect only where this test knows of it", () => {
    const found: Record<string, Set<string>> = {};
    for (const path of sources) {
      for (const { from, names } of importsOf(path)) {
        if (!/^@connectrpc\/connect\/protocol/.test(from)) continue;
        found[from] ??= new Set();
        for (const name of names) found[from].add(name);
      }
    }
    const sorted = Object.fromEntries(Object.entries(found).map(([from, names]) => [from, [...names].sort()]));
    expect(sorted).toEqual(privateImports);
    const { dependencies } = JSON.parse(read("package.json"));
    expect([dependencies["@connectrpc/connect"], dependencies["@connectrpc/connect-node"]]).toEqual(["2.2.0", "2.2.0"]);
  });
});
