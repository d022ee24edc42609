/**
 * dist/: the server and the executor's program, each bundled into one file, with the native libraries beside them. It needs
 * Node 24 and nothing else: no node_modules, no compiler.
 */
import { execFileSync } from "node:child_process";
import { copyFileSync, cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { build, type Metafile, type Plugin } from "esbuild";

const OUT = "dist";
const NATIVE_LIBRARY = "build/persisto.node";
const SQLITE_PACKAGE = "better-sqlite3";
const LZ4_PACKAGE = "lz4-napi";
const LZ4_BINARY_SCOPE = "@antoniomuso";

/**
 * Node builds every export of a module that is imported, node:http's WebSocket too, which loads a whole HTTP client:
 * 35 ms of each start. require() builds none that nobody asks for.
 */
const requiredHttp: Plugin = {
  name: "required-http",
  setup({ onResolve, onLoad }) {
    const namespace = "required-http";
    onResolve({ filter: /^(node:)?https?$/ }, ({ path, namespace: from }) =>
      from === namespace ? { path, external: true } : { path, namespace },
    );
    onLoad({ filter: /.*/, namespace }, ({ path }) => ({ contents: `module.exports = require("${path}");` }));
  },
};

execFileSync("tsc", ["-p", "tsconfig.build.json"], { stdio: "inherit" });
rmSync(OUT, { recursive: true, force: true });
const { metafile } = await build({
  entryPoints: { main: "src/main.ts", program: "src/sqlite/program.ts", healthcheck: "src/healthcheck.ts" },
  outdir: OUT,
  bundle: true,
  splitting: true,
  platform: "node",
  target: "node24",
  format: "esm",
  // ES modules where a package has both: import() of a bundled CommonJS module gives no named exports, and the object
  // store's SDK loads in a tenth of the time.
  mainFields: ["module", "main"],
  chunkNames: "[name]-[hash]",
  // Their binaries are found at run time by their own paths; copied below.
  external: [SQLITE_PACKAGE, LZ4_PACKAGE],
  plugins: [requiredHttp],
  // Some of what is bundled is CommonJS and asks for Node's modules by require().
  banner: {
    js: 'import { createRequire as requireOf } from "node:module";\nconst require = requireOf(import.meta.url);',
  },
  legalComments: "none",
  metafile: true,
  logLevel: "warning",
});
writeFileSync(join(OUT, "package.json"), `${JSON.stringify({ type: "module", private: true })}\n`);
copySqlite();
const lz4Packages = copyLz4();
if (!existsSync(NATIVE_LIBRARY)) throw new Error(`${NATIVE_LIBRARY} is missing; \`make build\` compiles it first`);
copyFileSync(NATIVE_LIBRARY, join(OUT, "persisto.node"));
writeFileSync(join(OUT, "THIRD-PARTY-LICENSES.txt"), licences(metafile));

/** Its JavaScript and the binary of this platform; the sources of SQLite stay behind. */
function copySqlite(): void {
  const from = join("node_modules", SQLITE_PACKAGE);
  const to = join(OUT, "node_modules", SQLITE_PACKAGE);
  mkdirSync(join(to, "prebuilds"), { recursive: true });
  for (const name of ["package.json", "LICENSE", "lib"]) cpSync(join(from, name), join(to, name), { recursive: true });
  const platform = `${process.platform}${isMusl() ? "musl" : ""}-${process.arch}.node`;
  copyFileSync(join(from, "prebuilds", platform), join(to, "prebuilds", platform));
}

/** The package and its binary, which is a package of its own for each platform; npm installs that of this one. */
function copyLz4(): string[] {
  const { optionalDependencies = {} } = JSON.parse(
    readFileSync(join("node_modules", LZ4_PACKAGE, "package.json"), "utf8"),
  );
  const binaries = Object.keys(optionalDependencies).filter(
    (name) => name.startsWith(`${LZ4_BINARY_SCOPE}/`) && existsSync(join("node_modules", name)),
  );
  if (binaries.length === 0) throw new Error(`${LZ4_PACKAGE} has no binary for this platform; \`npm ci\` brings it`);
  for (const name of [LZ4_PACKAGE, ...binaries]) {
    cpSync(join("node_modules", name), join(OUT, "node_modules", name), { recursive: true });
  }
  return [LZ4_PACKAGE, ...binaries];
}

function isMusl(): boolean {
  if (process.platform !== "linux") return false;
  const { header } = process.report.getReport() as { header: { glibcVersionRuntime?: string } };
  return header.glibcVersionRuntime === undefined;
}

/** The licence of every package that is in the bundles. */
function licences({ inputs }: Metafile): string {
  const bundled = Object.keys(inputs).flatMap((path) => /^.*node_modules\/(?:@[^/]+\/)?[^/]+/.exec(path)?.[0] ?? []);
  const folders = [
    ...new Set([...bundled, ...[SQLITE_PACKAGE, ...lz4Packages].map((name) => `node_modules/${name}`)]),
  ].sort();
  return folders
    .map((folder) => {
      const { name, version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
      const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
      const text = file === undefined ? "" : readFileSync(join(folder, file), "utf8").trim();
      return `${name} ${version} (${license})\n\n${text}\n`;
    })
    .join(`\n${"-".repeat(80)}\n\n`);
}
