import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import { ErrorReason } from "../../gen/persisto/v1/error_reason_pb.js";
import { reasons } from "../../src/failure/reasons.ts";
import { allSettings } from "../../src/settings/schema.ts";
import { configurationPage, environmentExample } from "../../tools/configuration-docs.ts";
import { files, read, root } from "./repository.ts";

const pages = files(".", ".md");
const settingNames = allSettings().map(({ setting }) => setting.name);

/** The anchor that a heading gets. */
function anchorOf(heading: string): string {
  return heading
    .trim()
    .toLowerCase()
    .replace(/[^\p{L}\p{N}\s_-]/gu, "")
    .replace(/\s/g, "-");
}

describe("documents", () => {
  it("link to what is there", () => {
    const broken = pages.flatMap((page) => {
      const text = read(page).replace(/```[\s\S]*?```/g, "");
      return [...text.matchAll(/(?<!\\)\]\(([^)\s]+)\)/g)]
        .map(([, link = ""]) => link)
        .filter((link) => !/^(https?|mailto):/.test(link))
        .filter((link) => {
          const [path = "", anchor] = link.split("#");
          const target = path === "" ? page : join(dirname(page), path);
          if (!existsSync(join(root, target))) return true;
          if (anchor === undefined || !target.endsWith(".md")) return false;
          return ![...read(target).matchAll(/^#+ (.*)$/gm)].some(([, heading = ""]) => anchorOf(heading) === anchor);
        })
        .map((link) => `${page}: ${link}`);
    });
    expect(broken).toEqual([]);
  });

  it("name tests that are there, each under its title", () => {
    const links = [...read("docs/ARCHITECTURE.md").matchAll(/\[([^\]]+)\]\(\.\.\/(test\/[^)]+)\)/g)];
    expect(links.length).toBeGreaterThan(20);
    const missing = links.filter(
      ([, title = "", path = ""]) => !existsSync(join(root, path)) || !read(path).includes(title),
    );
    expect(missing.map(([link]) => link)).toEqual([]);
  });

  it("list every setting, and nothing that is none", () => {
    expect(read("docs/CONFIGURATION.md")).toBe(configurationPage());
    expect(read(".env.example")).toBe(environmentExample());
    const listed = [...read("docs/CONFIGURATION.md").matchAll(/^\| ([A-Z_]+) \|/gm)].map(([, name]) => name);
    expect(listed).toEqual(settingNames);
    expect(new Set(settingNames).size).toBe(settingNames.length);
  });

  it("name only settings that exist", () => {
    const known = new Set([...settingNames, ...settingNames.map((name) => `${name.split("_")[0]}_`)]);
    const unknown = [...pages, "Dockerfile", "compose.yaml"].flatMap((page) =>
      [...read(page).matchAll(/\b(?:SERVER|STORAGE|SETTINGS|LOGGING|EXECUTOR|LIMIT)_[A-Z_]+\b/g)]
        .map(([name]) => name)
        .filter((name) => !known.has(name) && !(name in reasons))
        .map((name) => `${page}: ${name}`),
    );
    expect(unknown).toEqual([]);
  });

  it("name settings with their unit", () => {
    const withoutUnit = allSettings()
      .filter(({ setting }) => /number/.test(setting.expected))
      .map(({ setting }) => setting.name)
      .filter((name) => !/_(SECONDS|BYTES|BYTES_MAX|BYTES_MIN|COUNT|COUNT_MAX|COUNT_MIN)$/.test(name));
    expect(withoutUnit).toEqual([
      "SERVER_PORT",
      "SETTINGS_DEFAULT_DATABASE_CREATION_STAGE",
      "SETTINGS_PERSISTENCE_STAGE",
      "SETTINGS_REQUEST_COUNT_THRESHOLD",
    ]);
  });

  it("promise no setting that nothing heeds", () => {
    const heeding = files("src", ".ts").filter((path) => !/^src\/settings\/(?!places)/.test(path));
    const text = [...heeding, "tools/tag-release.ts"].map(read).join("\n");
    const unheeded = allSettings().filter(({ key }) => !new RegExp(`\\b${key}\\b`).test(text));
    // The settings heed this one themselves.
    expect(unheeded.map(({ setting }) => setting.name)).toEqual(["SERVER_ALLOW_UNAUTHENTICATED"]);
  });

  it("quote make targets that exist", () => {
    const targets = new Set([...read("Makefile").matchAll(/^([a-z-]+):/gm)].map(([, name]) => name));
    const unknown = pages.flatMap((page) =>
      [...read(page).matchAll(/\bmake ([a-z-]+)`/g)].map(([, name = ""]) => name).filter((name) => !targets.has(name)),
    );
    expect(unknown).toEqual([]);
  });

  it("have one row of the failure table for each reason of the contracts", () => {
    const contract = Object.keys(ErrorReason).filter((name) => Number.isNaN(Number(name)) && name !== "UNSPECIFIED");
    expect(Object.keys(reasons).sort()).toEqual(contract.sort());
    const errors = read("docs/ERRORS.md");
    for (const reason of contract)
      expect(errors).toContain(`| ${reason} | ${reasons[reason as keyof typeof reasons].code} |`);
  });
});

describe("packages", () => {
  const { dependencies, devDependencies, allowScripts, version } = JSON.parse(read("package.json"));
  const all: Record<string, string> = { ...dependencies, ...devDependencies };

  it("are pinned exactly", () => {
    expect(Object.entries(all).filter(([, range]) => !/^\d+\.\d+\.\d+$/.test(range))).toEqual([]);
  });

  it("match where they must: protobuf's runtime and generators, Node and .nvmrc", () => {
    expect(all["@bufbuild/protoc-gen-es"]).toBe(all["@bufbuild/protobuf"]);
    expect(all["@bufbuild/protoplugin"]).toBe(all["@bufbuild/protobuf"]);
    expect(all["node"]?.split(".")[0]).toBe(read(".nvmrc").trim());
    expect(read("Dockerfile")).toContain(`node:${read(".nvmrc").trim()}-`);
  });

  it("run no install script but Node's own", () => {
    const allowed = Object.entries(allowScripts).filter(([, isAllowed]) => isAllowed);
    expect(allowed).toEqual([[`node@${all["node"]}`, true]]);
  });

  it("have their version in the changelog", () => {
    expect(read("CHANGELOG.md")).toContain(`## ${version}`);
  });
});

describe("docs/DEPENDENCIES.md", () => {
  it("has every package and no other", () => {
    const { dependencies, devDependencies } = JSON.parse(read("package.json"));
    const rows = read("docs/DEPENDENCIES.md").matchAll(/^\| ([^|]+) \|/gm);
    const listed = [...rows]
      .flatMap(([, cell = ""]) => cell.split(", "))
      .filter((name) => !/^(package|-+)$/.test(name));
    expect(listed.toSorted()).toEqual(Object.keys({ ...dependencies, ...devDependencies }).toSorted());
  });

  it("lists at run time what the sources import, and nothing else", () => {
    const { dependencies } = JSON.parse(read("package.json"));
    const imported = files("src", ".ts").flatMap((path) =>
      [...read(path).matchAll(/(?:\bfrom "|\bimport\(")((?:@[^/"\n]+\/)?[^./"\n][^/"\n]*)[/"]/g)].map(
        ([, name = ""]) => name,
      ),
    );
    const packages = new Set(imported.filter((name) => !name.startsWith("node:")));
    // Its headers are read when the native library is compiled.
    expect([...packages, "node-api-headers"].toSorted()).toEqual(Object.keys(dependencies).toSorted());
  });
});
